"""Several named sets side by side."""

from __future__ import annotations

from typing import Any

from brittle.evaluation.rows import RunRows
from brittle.evaluation.statistics import differ_by_chance, percents
from brittle.evaluation.views.common import (
    ALPHA,
    Finding,
    clean_scores,
    interval,
    labelled_sets,
    macro_scores,
    percent,
)

GAP = 0.05  # the same as between segments
WIDE_GAP = 0.10


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of the labelled sets; None where there is but one."""
    sets = labelled_sets(run)
    if len(sets) < 2:
        return None
    return {
        "rows": [
            {
                "set": rows.name,
                "samples": len(rows),
                "interval": interval(int(rows.answers.correct.sum()), len(rows)),
                **clean_scores(rows),
                **macro_scores(rows.label, rows.answers.predicted, len(rows.classes)),
            }
            for rows in sets
        ]
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """Sets that the model knows better than others, beyond chance."""
    found = []
    first, *others = numbers["rows"]
    for other in others:
        high, low = sorted((first, other), key=lambda row: -row["accuracy"])
        gap = high["accuracy"] - low["accuracy"]
        right = [round(row["accuracy"] * row["samples"]) for row in (high, low)]
        p = differ_by_chance(right, [high["samples"], low["samples"]])
        if gap < GAP or p is None or p >= ALPHA / len(others):
            continue
        found.append(
            Finding(
                "serious" if gap >= WIDE_GAP else "moderate",
                "sets",
                f"The model is worse on {low['set']} than on {high['set']}",
                f"{percent(low['accuracy'])} of {low['samples']} samples (95 % interval "
                f"{percents(low['interval'])}) against {percent(high['accuracy'])} of {high['samples']} "
                f"({percents(high['interval'])}).",
                "Results on one set do not carry over to the other: find what differs before it is used "
                "there.",
            )
        )
    return found
