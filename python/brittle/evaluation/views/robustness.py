"""What attacks make of the model, norm by norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from brittle._radius import radius
from brittle.evaluation.curve import NORM_NAMES
from brittle.evaluation.rows import AttackRows, RunRows
from brittle.evaluation.statistics import percents
from brittle.evaluation.verdict import BROKEN
from brittle.evaluation.views.common import (
    Finding,
    attacked,
    interval,
    own_seed,
    percent,
    thin,
)
from brittle.evaluation.views.masking import masking

CURVE_POINTS = 200
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
DESTROYED = 0.1  # of the clean accuracy: what is left is of no use
WEAKENED = 0.9  # of the clean accuracy: an attack that surely takes a tenth of it matters


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of the main set; None where it was not attacked."""
    main, seed = run.main, own_seed(run)
    rows = [a for a in main.attacks if a.seed == seed]
    if not rows or not len(main):
        return None
    right = int(attacked(run).sum())
    return {
        "set": main.name,
        "samples": len(main),
        "clean_accuracy": right / len(main),
        "clean_interval": interval(right, len(main)),
        "norms": [
            _of(run, norm, [a for a in rows if a.norm == norm])
            for norm in dict.fromkeys(a.norm for a in rows)
        ],
        "examples": [],
    }


def _of(run: RunRows, norm: str, rows: Sequence[AttackRows]) -> dict[str, Any]:
    right, samples = attacked(run), len(run.main)
    epsilons = sorted({eps for one in rows for eps in one.epsilons})
    kept = [right, *(~fooled for fooled in worst_case(rows, epsilons, ~right))]
    counts = [int(k.sum()) for k in kept]
    robust = [count / samples for count in counts]
    return {
        "norm": norm,
        "epsilons": [0.0, *epsilons],
        "reported": nearest_radius(run.settings, norm, epsilons),
        "curves": [
            {"attack": one.attack, "text": one.text, "accuracy": [robust[0], *_alone(one, epsilons, ~right)]}
            for one in rows
        ],
        "robust_accuracy": robust,
        "interval": [interval(count, samples) for count in counts],
        "minimal_epsilon": _minimal(rows, ~right),
        "cost": {
            "forwards": sum(int(one.forwards.sum()) for one in rows),
            "backwards": sum(int(one.backwards.sum()) for one in rows),
        },
        "masking": masking(
            rows, right, epsilons, robust[1:], robust[0], run.settings.get("bounds", (0.0, 1.0))
        ),
    }


def worst_case(rows: Sequence[AttackRows], epsilons: Sequence[float], wrong: Tensor) -> list[Tensor]:
    """bool ``[N]`` for each radius: fooled by any attack within it.

    A point found at some distance settles every radius that is no smaller, also where an attack that was run
    at that radius has missed it; so the curve never rises.
    """
    nearest = torch.stack([_proven(one) for one in rows]).amin(0)
    return [wrong | (nearest <= eps) for eps in epsilons]


def _proven(rows: AttackRows) -> Tensor:
    """float64 ``[N]``: the least radius at which the attack is known to have fooled each sample."""
    proven = rows.distance.double().clone()
    for eps, fooled in zip(rows.epsilons, rows.fooled, strict=True):
        proven[fooled & (proven > eps)] = eps
    return proven


def _alone(rows: AttackRows, epsilons: Sequence[float], wrong: Tensor) -> list[float | None]:
    """The accuracy that one attack leaves, by its own runs; None at a radius where it was not run."""
    samples = rows.fooled.shape[1]
    at = {
        eps: int((~(fooled | wrong)).sum()) / samples
        for eps, fooled in zip(rows.epsilons, rows.fooled, strict=True)
    }
    return [at.get(eps) for eps in epsilons]


def nearest_radius(settings: Mapping[str, Any], norm: str, epsilons: Sequence[float]) -> float:
    """The radius to quote: of those evaluated the one nearest to the settings', else the middle one."""
    wanted = settings.get("reported", {}).get(norm)
    if wanted is None:
        return epsilons[len(epsilons) // 2]
    return min(epsilons, key=lambda eps: abs(eps - wanted))


def _minimal(rows: Sequence[AttackRows], wrong: Tensor) -> dict[str, Any] | None:
    """How the least known radius that fools a sample is distributed; None where none was looked for."""
    searches = [one for one in rows if one.attack == "minimal"]
    if not searches:
        return None
    # Other attacks may have found a nearer point.
    nearest = torch.stack([one.distance.double() for one in rows]).amin(0)
    nearest[wrong] = 0.0
    ordered = nearest.sort().values
    samples, reached = len(ordered), int(ordered.isfinite().sum())
    fooled = ordered[:reached].tolist()

    def quantile(share: float) -> float | None:
        """The least radius that fools this share of the samples; None where it is not known."""
        rank = ceil(share * samples) - 1
        return fooled[rank] if rank < reached else None

    steps = {eps: (k + 1) / samples for k, eps in enumerate(fooled)}  # the last of equal ones stays
    points = thin(list(steps.items()), CURVE_POINTS)
    return {
        "quantiles": [{"share": share, "epsilon": quantile(share)} for share in SHARES],
        "median": quantile(0.5),
        "never_fooled": samples - reached,
        "upper": max(one.epsilons[-1] for one in searches) if searches[0].epsilons else None,
        "curve": {"epsilon": [p[0] for p in points], "fooled": [p[1] for p in points]},
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """Radii that break the model, and reasons to doubt those that do not."""
    found = []
    for one in numbers["norms"]:
        name = NORM_NAMES.get(one["norm"], one["norm"])
        found += [*_breaks(numbers, one, name), *_weakens(numbers, one, name)]
        signs = one["masking"]["signs"]
        if signs:
            found.append(
                Finding(
                    "serious",
                    "robustness",
                    f"Signs of gradient masking ({name})",
                    " ".join(signs),
                    "Take the robust accuracy for an upper bound: attack with more restarts, another loss, "
                    "and without gradients.",
                )
            )
    return found


def _weakens(numbers: dict[str, Any], one: dict[str, Any], name: str) -> list[Finding]:
    """At the reported radius, where it does not break the model: a tenth of what is right, for certain."""
    at = one["epsilons"].index(one["reported"])
    bounds, low = one["interval"][at], numbers["clean_interval"][0]
    if bounds[1] < BROKEN * numbers["clean_accuracy"] or bounds[1] >= WEAKENED * low:
        return []
    return [
        Finding(
            "moderate",
            "robustness",
            f"Attacks weaken the model at epsilon {radius(one['reported'])} ({name})",
            f"{percent(one['robust_accuracy'][at])} of {numbers['samples']} samples stay right (95 % "
            f"interval {percents(bounds)}), {percent(numbers['clean_accuracy'])} without an attack.",
            "Look at the samples that fall first, and train on adversarial examples of this radius.",
        )
    ]


def _breaks(numbers: dict[str, Any], one: dict[str, Any], name: str) -> list[Finding]:
    """At the smallest radius that does, as the headline has it. How bad that is, the reported radius says; a
    larger one is only a note."""
    clean, reported = numbers["clean_accuracy"], one["epsilons"].index(one["reported"])
    broken = [at for at, bounds in enumerate(one["interval"]) if at and bounds[1] < BROKEN * clean]
    if not broken:
        return []
    at, within = broken[0], broken[0] <= reported
    destroyed = one["interval"][max(at, reported)][1] < DESTROYED * clean
    asked = radius(one["reported"])
    return [
        Finding(
            "note" if not within else "critical" if destroyed else "serious",
            "robustness",
            f"Attacks break the model at epsilon {radius(one['epsilons'][at])} ({name})"
            + ("" if within else f", beyond the {asked} that is asked about"),
            f"{_right(numbers, one, at)}, {percent(clean)} without an attack."
            + (f" At {asked}: {_right(numbers, one, reported)}." if at < reported else ""),
            "Train on adversarial examples of this radius, and evaluate again.",
        )
    ]


def _right(numbers: dict[str, Any], one: dict[str, Any], at: int) -> str:
    return (
        f"{percent(one['robust_accuracy'][at])} of {numbers['samples']} samples stay right (95 % interval "
        f"{percents(one['interval'][at])})"
    )
