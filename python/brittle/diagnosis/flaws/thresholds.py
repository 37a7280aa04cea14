"""From which measurement on a layer is called flawed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from brittle.diagnosis.flaws.capture import OP

Pair = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where each kind of flaw begins to be mild, and to be severe.

    They were set between healthy networks and networks with planted flaws on digits, on one half of the
    seeds; ``docs/diagnosis.md`` shows what the other half gave.

    Attributes:
        dead: share of units that have no say for any sample.
        duplicates: share of units whose outputs have a cosine above ``duplicate`` with those of another
            unit, beyond one of each such group.
        duplicate: that cosine, of outputs less their mean.
        collapse: mean cosine of two samples' features.
        movement: length of the change of the weights since initialisation, over the initial weights': at
            most so much. A layer is unformed only if it also moved ten times less than the median layer, or
            if that one did not move either.
        freshness: without an untrained copy: the p-value of the weights coming from their initialiser's
            distribution: at least so much.
        memory: accuracy of a linear probe on samples that the network was trained on and the probe was not,
            less that on validation samples, beyond the same difference of the layers that feed this one.
        update: the loss gradient's length over the weights', relative to the second largest of the other
            layers: at most so much vanishes.
        explosion: the loss gradient's length over the weights', of the layer where it is second largest: at
            least so much explodes.
        gain: how often more than its inputs a layer's outputs must vary, unit by unit, to be what makes the
            gradients explode.
        loss_of_reading: by so much the validation accuracy of a linear probe falls from the layers that feed
            a layer to the layer.
        flip: a layer undoes the one that feeds it where its features are by so much more like (CKA) those
            before that one; mild.
        similarity: linear CKA of a layer's features with those that feed it: at most so much.
        amplification: factor by which a layer enlarges the relative displacement that an attack makes.
        displacement: under attack, over the features' deviation, below which no layer is fragile.
    """

    dead: Pair = (0.5, 0.8)
    duplicates: Pair = (0.15, 0.45)
    duplicate: float = 0.99
    collapse: Pair = (0.99, 0.999)
    movement: Pair = (0.05, 0.01)
    freshness: Pair = (0.01, 0.05)
    memory: Pair = (0.1, 0.25)
    update: Pair = (1e-2, 1e-4)
    explosion: Pair = (2.5, 100.0)
    gain: float = 1.2
    loss_of_reading: Pair = (0.15, 0.4)
    flip: float = 0.3
    similarity: Pair = (0.25, 0.1)
    amplification: Pair = (3.0, 10.0)
    displacement: float = 0.3

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            wanted = "two numbers >= 0" if isinstance(one.default, tuple) else "a number >= 0"
            parts = value if isinstance(value, tuple) else (value,)
            fits = isinstance(value, tuple) == isinstance(one.default, tuple) and len(parts) in (1, 2)
            if not fits or not all(isinstance(part, (int, float)) and part >= 0 for part in parts):
                raise ValueError(f"{OP}: thresholds.{one.name} must be {wanted}; got {value!r}")


def from_above(value: float, pair: Pair) -> str:
    """The severity of a measurement of which much is bad; a NaN is none."""
    return "severe" if value >= pair[1] else "mild" if value >= pair[0] else "none"


def from_below(value: float, pair: Pair) -> str:
    """The severity of a measurement of which little is bad; a NaN is none."""
    return "severe" if value <= pair[1] else "mild" if value <= pair[0] else "none"
