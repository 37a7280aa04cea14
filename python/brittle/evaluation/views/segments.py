"""Does the model serve every group of samples alike?"""

from __future__ import annotations

from typing import Any

import torch

from brittle.evaluation.rows import RunRows, SetRows
from brittle.evaluation.statistics import differ_by_chance, percents, wilson
from brittle.evaluation.views.common import (
    ALPHA,
    Finding,
    interval,
    labelled_sets,
    macro_f1,
    means_over,
    number,
    percent,
)

FEWEST = 20  # samples of one class in one group before its recall is compared
GAP = 0.05  # a gap that matters to the people in the group
WIDE_GAP = 0.10  # twice that


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of every labelled set with groups; None without one."""
    sets = [_of(rows) for rows in labelled_sets(run) if rows.groups is not None]
    return {"sets": sets} if sets else None


def _of(rows: SetRows) -> dict[str, Any]:
    assert rows.groups is not None
    found, names = rows.answers, sorted(set(rows.groups))
    at = {name: g for g, name in enumerate(names)}
    index = torch.tensor([at[name] for name in rows.groups])
    counts, accuracy = means_over(index, found.correct, len(names))
    _, loss = means_over(index, found.log_loss, len(names))
    members = torch.split(index.argsort(stable=True), counts)
    right = [int(found.correct[m].sum()) for m in members]
    groups: list[dict[str, Any]] = [
        {
            "group": name,
            "samples": counts[g],
            "accuracy": accuracy[g],
            "interval": interval(right[g], counts[g]),
            "log_loss": number(loss[g]),
            "f1": macro_f1(rows.label[members[g]], found.predicted[members[g]], len(rows.classes)),
        }
        for g, name in enumerate(names)
    ]
    # Of equals, the larger group is the surer one.
    worst = min(groups, key=lambda one: (one["accuracy"], -one["samples"]))
    best = max(groups, key=lambda one: (one["accuracy"], one["samples"]))
    return {
        "set": rows.name,
        "groups": groups,
        "worst": worst["group"],
        "best": best["group"],
        "gap": best["accuracy"] - worst["accuracy"],
        "recall_gap": _recall_gap(rows, index, len(names)),
        "p_value": differ_by_chance(right, counts),
    }


def _recall_gap(rows: SetRows, index: torch.Tensor, groups: int) -> float | None:
    """The largest difference between groups in the recall of one class: 0 is equal opportunity, class by
    class. Of classes and groups with at least 20 samples in common.

    References:
        Hardt, Price and Srebro, "Equality of opportunity in supervised learning", NeurIPS 2016.
    """
    classes = len(rows.classes)
    # Only the cells that occur: there may be many groups and many classes.
    cells, cell_of = torch.unique(index * classes + rows.label, return_inverse=True)
    counts, recall = means_over(cell_of, rows.answers.correct, len(cells))
    by_class: dict[int, list[float]] = {}
    for cell, count, share in zip(cells.tolist(), counts, recall, strict=True):
        if count >= FEWEST:
            by_class.setdefault(cell % classes, []).append(share)
    gaps = [max(shares) - min(shares) for shares in by_class.values() if len(shares) > 1]
    return max(gaps, default=None)


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """A gap between groups that is larger than chance."""
    found = []
    for one in numbers["sets"]:
        p = one["p_value"]
        if p is None or p >= ALPHA / len(numbers["sets"]) or one["gap"] < GAP:
            continue
        groups = one["groups"]
        samples = sum(g["samples"] for g in groups)
        overall = sum(g["accuracy"] * g["samples"] for g in groups) / samples
        # The group that is surely below, not the one that is lowest because it is small.
        upper = {g["group"]: _upper(g, 1 - ALPHA / len(groups)) for g in groups}
        low = min(groups, key=lambda g: upper[g["group"]])
        sure = upper[low["group"]] < overall
        found.append(
            Finding(
                "serious" if sure and overall - low["accuracy"] >= WIDE_GAP else "moderate",
                "segments",
                f"Group {low['group']} of {one['set']} is served worse"
                if sure
                else f"Accuracy differs between the groups of {one['set']}",
                f"{low['group']}: {percent(low['accuracy'])} of {low['samples']} samples (95 % interval "
                f"{percents(low['interval'])}); all groups together: {percent(overall)} of {samples}. "
                f"Chance alone gives as much at p = {p:.2g}.",
                "Look at what sets this group apart, and collect training samples of it.",
            )
        )
    return found


def _upper(group: dict[str, Any], level: float) -> float:
    bounds = wilson(round(group["accuracy"] * group["samples"]), group["samples"], level)
    assert bounds is not None
    return bounds[1]
