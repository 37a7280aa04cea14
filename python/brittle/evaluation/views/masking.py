"""Signs that an attack failed because the gradient led it nowhere, not because the model is robust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from brittle._radius import radius
from brittle.evaluation.rows import AttackRows

BLIND = 0.10  # the share of the attacked from which on brittle.GradientMaskingWarning is given
BEATEN = 0.02  # a share of the attacked: single samples are lost to the luck of a random start
FEWEST_BEATEN = 3
HALF = 0.5  # of the range: at this Linf radius any image can be made grey throughout
SURVIVES = 0.05
FLAT = 0.01  # of the accuracy, while the radius doubles
FELL = 0.05
FEWEST = 50  # attacked samples before the shape of a curve is read
FEWEST_LEFT = 20  # of which so many are still right: that none of a few falls is no wonder


def fooled_by_then(rows: AttackRows) -> Tensor:
    """bool ``[K, N]``: at a radius or at a smaller one, for a point in a small ball is in the larger too."""
    return rows.fooled.cummax(0).values if len(rows.fooled) else rows.fooled


def masking(
    rows: Sequence[AttackRows],
    attacked: Tensor,
    epsilons: Sequence[float],
    robust: Sequence[float],
    clean: float,
    bounds: Sequence[float],
) -> dict[str, Any]:
    """The counts of one norm, and sentences for those that are signs.

    Args:
        rows: of the attacks in the norm, one seed.
        attacked: bool ``[N]``, the samples that are right without an attack.
        epsilons, robust: the curve over all attacks, 0 not among them.
        clean: accuracy without an attack.
        bounds: of the inputs.

    References:
        Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018.
    """
    count = int(attacked.sum())
    by_gradient = [one for one in rows if one.attack != "random"]

    # A sample that was fooled all the same shows that a gradient led somewhere.
    standing = attacked.clone()
    for one in by_gradient:
        standing &= ~one.distance.isfinite()

    def flagged(name: str) -> int:
        flags = [getattr(one, name) for one in by_gradient]
        return int((torch.stack(flags).any(0) & standing).sum()) if flags else 0

    result = {
        "attacked": count,
        "zero_gradient": flagged("zero_gradient"),
        "nonfinite_gradient": flagged("nonfinite_gradient"),
        "stalled": flagged("stalled"),
        "random_beats_gradient": _beats(rows, "random", attacked),
        "single_step_beats_iterative": _beats(rows, "fgsm", attacked),
        "robust_at_largest": robust[-1] if robust else None,
    }
    return {**result, "signs": _signs(result, rows, epsilons, robust, clean, bounds)}


def _beats(rows: Sequence[AttackRows], attack: str, attacked: Tensor) -> int:
    """How many samples an attack fools at some radius where PGD, run at the same ones, does not."""
    strong = [one for one in rows if one.attack == "pgd"]
    beaten = torch.zeros_like(attacked)
    for weak in (one for one in rows if one.attack == attack):
        same = [one for one in strong if one.epsilons == weak.epsilons]
        if same:
            by_pgd = torch.stack([fooled_by_then(one) for one in same]).any(0)
            beaten |= (fooled_by_then(weak) & ~by_pgd).any(0)
    return int((beaten & attacked).sum())


def _signs(
    found: dict[str, Any],
    rows: Sequence[AttackRows],
    epsilons: Sequence[float],
    robust: Sequence[float],
    clean: float,
    bounds: Sequence[float],
) -> list[str]:
    count = found["attacked"]
    if not count:
        return []
    signs = []
    for name, words in (("zero_gradient", "exactly zero"), ("nonfinite_gradient", "not finite")):
        if found[name] >= BLIND * count:
            signs.append(
                f"The gradient of {found[name]} of {count} samples was {words}, and they were not fooled."
            )
    enough = max(FEWEST_BEATEN, BEATEN * count)
    if found["random_beats_gradient"] >= enough:
        signs.append(
            f"Random search fooled {found['random_beats_gradient']} of {count} samples at a radius where PGD "
            "did not."
        )
    if found["single_step_beats_iterative"] >= enough:
        signs.append(
            f"A single step fooled {found['single_step_beats_iterative']} of {count} samples at a radius "
            "where PGD did not."
        )
    if count < FEWEST or not robust:
        return signs
    norm, gradient = rows[0].norm, any(one.attack == "pgd" for one in rows)
    whole = HALF * (bounds[1] - bounds[0])
    if gradient and norm == "linf" and epsilons[-1] >= whole * (1 - 1e-9) and robust[-1] > SURVIVES:
        signs.append(
            f"At radius {radius(epsilons[-1])}, where every input can be made the same, "
            f"{100 * robust[-1]:.1f} % are still right."
        )
    left = count * robust[-1] / clean
    flat = _flat(epsilons, robust, clean) if gradient and left >= FEWEST_LEFT else None
    if flat is not None:
        signs.append(
            f"The accuracy stops falling: {100 * flat[2]:.1f} % at radius {radius(flat[0])} and still "
            f"{100 * flat[3]:.1f} % at {radius(flat[1])}."
        )
    return signs


def _flat(
    epsilons: Sequence[float], robust: Sequence[float], clean: float
) -> tuple[float, float, float, float] | None:
    """The last stretch over which the radius doubles and the accuracy, having begun to fall, does not."""
    last, end = epsilons[-1], robust[-1]
    for eps, value in zip(epsilons, robust, strict=True):
        if eps <= last / 2 and clean - value >= FELL and value - end < FLAT and end > SURVIVES:
            return eps, last, value, end
    return None
