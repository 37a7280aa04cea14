"""What a report shows: each view a pure function of the rows that a run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from brittle.evaluation.rows import RunRows
from brittle.evaluation.verdict import Requirement, judge
from brittle.evaluation.views import (
    calibration,
    classification,
    duplicates,
    landscape,
    ood,
    repeat,
    robustness,
    samples,
    segments,
    sets,
    shift,
)
from brittle.evaluation.views.common import SEVERITIES, Finding

FORMAT = 1


@dataclass(frozen=True)
class View:
    """One section of a report.

    Attributes:
        numbers: of a run, as ``report.json`` holds them; None where there is nothing to show.
        findings: what a reader should know of those numbers.
    """

    numbers: Callable[[RunRows], dict[str, Any] | None]
    findings: Callable[[dict[str, Any]], list[Finding]]


VIEWS: dict[str, View] = {
    "classification": View(classification.numbers, classification.findings),
    "segments": View(segments.numbers, segments.findings),
    "calibration": View(calibration.numbers, calibration.findings),
    "ood": View(ood.numbers, ood.findings),
    "robustness": View(robustness.numbers, robustness.findings),
    "shift": View(shift.numbers, shift.findings),
    "sets": View(sets.numbers, sets.findings),
    "landscape": View(landscape.numbers, landscape.findings),
    "samples": View(samples.numbers, samples.findings),
    "repeat": View(repeat.numbers, repeat.findings),
    "duplicates": View(duplicates.numbers, duplicates.findings),
}


def summarise(
    run: RunRows,
    *,
    title: str = "Evaluation",
    partial: Mapping[str, int] | None = None,
    requirements: Sequence[Requirement] = (),
    provenance: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The contents of ``report.json``: a pure function of its arguments, the same bits for the same rows.

    Args:
        run: the rows. Of its settings, ``"views"`` names those to show (all by default).
        title: of the report.
        partial: ``{"used": 100, "of": 500}`` where only some of the main set's samples were evaluated.
        requirements: what must hold.
        provenance: versions and the like, to be quoted.

    Returns:
        Values of JSON: where a number is undefined or infinite it is None.

    Example:
        >>> import torch
        >>> from brittle.evaluation.rows import RunRows, SetRows
        >>> from brittle.evaluation.views import summarise
        >>> label, names = torch.tensor([0, 1, 1, 0]), ("a", "b", "c", "d")
        >>> logits = torch.tensor([[2.0, 0], [0, 3], [1, 0], [4, 1]])
        >>> rows = SetRows("test", torch.arange(4), label, logits, None, None, ("cat", "dog"), names)
        >>> report = summarise(RunRows((rows,), {}))
        >>> list(report["views"]), report["views"]["classification"]["sets"][0]["accuracy"]
        (['classification', 'calibration', 'samples'], 0.75)
    """
    wanted = run.settings.get("views") or VIEWS
    views: dict[str, Any] = {}
    with one_thread():
        for name, view in VIEWS.items():
            if name in wanted and (numbers := view.numbers(run)) is not None:
                views[name] = numbers
    found = [finding for name in views for finding in VIEWS[name].findings(views[name])]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    verdict = judge(views, requirements, partial=partial)
    return {
        "format": FORMAT,
        "title": title,
        "partial": dict(partial) if partial else None,
        "sets": [
            {
                "name": rows.name,
                "samples": len(rows),
                "classes": list(rows.classes),
                "labelled": rows.labelled,
                "skipped": [{"name": name, "reason": reason} for name, reason in rows.skipped],
                "groups": rows.groups is not None,
            }
            for rows in run.sets
        ],
        "main": run.main.name,
        "settings": dict(run.settings),
        "verdict": asdict(verdict),
        "findings": [asdict(finding) for finding in found],
        "provenance": dict(provenance or {}),
        "views": views,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of threads that a worker is given."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)
