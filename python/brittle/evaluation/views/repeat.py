"""How far results move when only the random numbers change."""

from __future__ import annotations

from typing import Any

from brittle._radius import radius
from brittle.evaluation.rows import RunRows
from brittle.evaluation.views.common import Finding, middle_conditions, percent
from brittle.evaluation.views.robustness import nearest_radius, worst_case

SPREAD = 0.02  # larger than what rounding and a few samples on the edge make


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of robust accuracy at the reported radii, and of accuracy under noise; None of a single seed."""
    main = run.main
    seeds = sorted({a.seed for a in main.attacks} | {c.seed for c in main.conditions})
    if len(seeds) < 2 or not len(main):
        return None
    measures: dict[str, dict[int, float]] = {}
    for seed in seeds:
        for norm in dict.fromkeys(a.norm for a in main.attacks):
            rows = [a for a in main.attacks if a.norm == norm and a.seed == seed]
            if rows:
                epsilons = sorted({e for a in rows for e in a.epsilons})
                eps = nearest_radius(run.settings, norm, epsilons)
                fooled = worst_case(rows, [eps], ~main.answers.correct)[0]
                name = f"robust accuracy, {norm} {radius(eps)}"
                measures.setdefault(name, {})[seed] = int((~fooled).sum()) / len(main)
        for condition in middle_conditions(run, seed):
            name = f"accuracy, {condition.kind} {condition.level}"
            right = int((condition.predicted == main.label).sum())
            measures.setdefault(name, {})[seed] = right / len(main)
    complete = {name: of for name, of in measures.items() if len(of) == len(seeds)}
    if not complete:
        return None
    return {
        "seeds": seeds,
        "measures": [
            {
                "measure": name,
                "values": [of[seed] for seed in seeds],
                "mean": sum(of.values()) / len(of),
                "spread": max(of.values()) - min(of.values()),
            }
            for name, of in complete.items()
        ],
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """The measure that moves most."""
    widest = max(numbers["measures"], key=lambda one: one["spread"])
    if widest["spread"] < SPREAD:
        return []
    low, high = min(widest["values"]), max(widest["values"])
    return [
        Finding(
            "note",
            "repeat",
            f"The seed moves {widest['measure']} by {percent(widest['spread'])}",
            f"Between {percent(low)} and {percent(high)} over {len(numbers['seeds'])} seeds.",
            "Read differences between models of this size as none; more restarts or samples narrow them.",
        )
    ]
