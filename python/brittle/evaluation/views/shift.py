"""Noise and blur as they come without an enemy, from mild to strong."""

from __future__ import annotations

from typing import Any

from brittle.evaluation.rows import RunRows
from brittle.evaluation.statistics import differ_by_chance
from brittle.evaluation.views.common import (
    ALPHA,
    Finding,
    clean_scores,
    condition_scores,
    interval,
    noise_conditions,
    percent,
)

DROP = 0.10  # of the accuracy, at half the range of severities: every tenth answer turns
WIDE_DROP = 0.30


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of the main set; None where it met no noise."""
    conditions = noise_conditions(run)
    if not conditions or not len(run.main) or not run.main.labelled:
        return None
    kinds: dict[str, list[dict[str, Any]]] = {}
    for condition in conditions:
        kinds.setdefault(condition.kind, []).append(
            {
                "severity": condition.level,
                "scale": condition.scale,
                **condition_scores(condition, run.main.label),
                "interval": interval(int((condition.predicted == run.main.label).sum()), len(run.main)),
            }
        )
    return {
        "set": run.main.name,
        "samples": len(run.main),
        "clean": clean_scores(run.main),
        "kinds": [{"kind": kind, "levels": levels} for kind, levels in kinds.items()],
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """The kind that costs most at its middle severity."""
    samples, clean = numbers["samples"], numbers["clean"]["accuracy"]
    middle = [(one["kind"], one["levels"][len(one["levels"]) // 2]) for one in numbers["kinds"]]
    kind, level = min(middle, key=lambda entry: entry[1]["accuracy"])
    drop = clean - level["accuracy"]
    right = [round(share * samples) for share in (clean, level["accuracy"])]
    # As if of different samples, although they are the same ones: that errs towards chance.
    p = differ_by_chance(right, [samples, samples])
    if drop < DROP or p is None or p >= ALPHA / len(middle):
        return []
    also = sum(clean - other["accuracy"] >= DROP for _, other in middle) - 1
    more = f" {also} other kinds cost {percent(DROP)} or more." if also else ""
    return [
        Finding(
            "serious" if drop >= WIDE_DROP else "moderate",
            "shift",
            f"Accuracy falls under {kind.replace('_', ' ')} at severity {level['severity']}",
            f"From {percent(clean)} to {percent(level['accuracy'])} of {samples} samples at scale "
            f"{level['scale']:g}; mean confidence {percent(numbers['clean']['confidence'])} before, "
            f"{percent(level['confidence'])} then.{more}",
            "Train with such changes, or measure how often the data of the field holds them.",
        )
    ]
