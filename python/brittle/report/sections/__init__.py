"""The sections of a report, a function for each view, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from brittle.report.blocks import Section
from brittle.report.pictures import Pixels
from brittle.report.sections import (
    calibration,
    classification,
    comparison,
    ood,
    robustness,
    samples,
    stability,
)

Json = Mapping[str, Any]
SECTIONS: dict[str, Callable[[Json, Json, Mapping[str, Pixels]], Section]] = {
    "robustness": robustness.section,
    "classification": classification.section,
    "segments": comparison.segments,
    "sets": comparison.data_sets,
    "calibration": calibration.section,
    "shift": comparison.shift,
    "ood": ood.section,
    "landscape": stability.landscape,
    "samples": samples.highest_losses,
    "duplicates": samples.duplicates,
    "repeat": stability.repeat,
}
