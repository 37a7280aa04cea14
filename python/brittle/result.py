"""What an attack found, sample by sample, and the ledger it is written to while the attack runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

# A tenth of the attacked samples: far above what a trained network shows by chance.
_MASKED_SHARE = 0.1

Sink = Callable[[Tensor, Tensor, Tensor], None]


class GradientMaskingWarning(UserWarning):
    """Many samples gave the attack no gradient to follow, so its robust accuracy may be an illusion."""


@dataclass(frozen=True)
class AttackResult:
    """The outcome of an attack on N samples, in the order of the data. All tensors are on the CPU.

    Attributes:
        attack: the attack and its settings as text.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        sample_ids: int64 ``[N]``.
        label: int64 ``[N]``, the labels given (those to reach, if the attack is targeted).
        success: bool ``[N]``, whether the adversarial point is misclassified (reaches its label, if targeted)
            by the caller's own model. Samples that the model gets wrong without any attack count as
            successes.
        clean_wrong: bool ``[N]``, those that needed no attack.
        prediction: int64 ``[N]``, the class of the returned point.
        distance: float64 ``[N]``, its distance from the clean point in ``norm``.
        eps: float64 ``[N]``, the radius at which it was found; for samples never fooled, the last one tried.
        attempt: int64 ``[N]``, which attempt (epsilon, target and restart, in this order) found it; -1 where
            none was needed, and the number of attempts where all failed.
        steps: int64 ``[N]``, gradient steps taken.
        forwards, backwards: int64 ``[N]``, evaluations of a model spent on the sample, certification
            included.
        zero_gradient: bool ``[N]``, the gradient was zero in every element at some step.
        nonfinite_gradient: bool ``[N]``, it held NaN or an infinity at some step.
        stalled: bool ``[N]``, a step left the point exactly where it was.
        cycled: bool ``[N]``, the point came back to where it had been, so that no later step could succeed.
        certified: bool ``[N]``, the success was seen in the caller's own model and precision, and the point
            is inside ball and bounds.
        adversarial: like the data ``[N, ...]``: the first success, else the iterate of highest loss (see the
            attack); None if it was not to be kept.
        complete: False if the run was interrupted: the samples it had finished are here.
    """

    attack: str
    norm: str
    sample_ids: Tensor
    label: Tensor
    success: Tensor
    clean_wrong: Tensor
    prediction: Tensor
    distance: Tensor
    eps: Tensor
    attempt: Tensor
    steps: Tensor
    forwards: Tensor
    backwards: Tensor
    zero_gradient: Tensor
    nonfinite_gradient: Tensor
    stalled: Tensor
    cycled: Tensor
    certified: Tensor
    adversarial: Tensor | None = None
    complete: bool = True

    def __len__(self) -> int:
        return len(self.success)

    @property
    def clean_accuracy(self) -> float:
        """The share of samples that the model gets right unattacked; NaN without samples."""
        return float((~self.clean_wrong).double().mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of samples that withstood the attack; NaN without samples."""
        return float((~self.success).double().mean())

    def summary(self) -> str:
        """The result as a few lines of text."""
        n = len(self)
        attacked = int((~self.clean_wrong).sum())
        fooled = self.success & ~self.clean_wrong
        lines = [
            self.attack,
            f"  samples            {n}" + ("" if self.complete else "  (interrupted: finished ones only)"),
            f"  clean accuracy     {self.clean_accuracy:.2%}",
            f"  robust accuracy    {self.robust_accuracy:.2%}",
            f"  fooled             {int(fooled.sum())} of {attacked} attacked, "
            f"{int((fooled & self.certified).sum())} certified",
        ]
        if fooled.any():
            lines.append(f"  median distance    {self.distance[fooled].median():.4g} ({self.norm})")
        if n:
            lines.append(
                f"  cost per sample    {self.forwards.double().mean():.1f} forwards, "
                f"{self.backwards.double().mean():.1f} backwards"
            )
        for name in ("zero_gradient", "nonfinite_gradient", "stalled", "cycled"):
            count = int(getattr(self, name).sum())
            if count:
                lines.append(f"  {name.replace('_', ' '):<18} {count}")
        return "\n".join(lines)

    def warn_of_masking(self, stacklevel: int = 2) -> None:
        """Warn where the zero gradients are too many for the robust accuracy to be believed."""
        attacked = ~self.clean_wrong
        blind = attacked & ~self.success & self.zero_gradient
        if attacked.any() and int(blind.sum()) >= _MASKED_SHARE * int(attacked.sum()):
            warnings.warn(
                f"gradient masking: {int(blind.sum())} of {int(attacked.sum())} attacked samples had a "
                "gradient of exactly zero and were not fooled, so the robust accuracy says little about "
                "them. Try loss='margin' or 'dlr', or float64, against a saturated softmax; look for "
                "operations in the model that have no gradient; try an attack that needs none.",
                GradientMaskingWarning,
                stacklevel=stacklevel + 1,
            )

    def joined(self, other: AttackResult) -> AttackResult:
        """Both results' samples, these first; complete if ``other`` is."""
        values: dict[str, Any] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            both = isinstance(mine, Tensor) and isinstance(theirs, Tensor)
            values[field.name] = torch.cat([mine, theirs]) if both else theirs
        if self.adversarial is None or other.adversarial is None:
            values["adversarial"] = None
        return AttackResult(**values)


_NUMBERS = {
    "sample_ids": torch.int64,
    "label": torch.int64,
    "success": torch.bool,
    "clean_wrong": torch.bool,
    "prediction": torch.int64,
    "distance": torch.float64,
    "eps": torch.float64,
    "attempt": torch.int64,
    "steps": torch.int64,
    "forwards": torch.int64,
    "backwards": torch.int64,
    "zero_gradient": torch.bool,
    "nonfinite_gradient": torch.bool,
    "stalled": torch.bool,
    "cycled": torch.bool,
    "certified": torch.bool,
}


class Ledger:
    """Takes finished samples in any order and gives the result in the order of the data.

    Args:
        keep: whether the adversarial points are kept, on ``device``; otherwise they are forgotten, or handed
            to ``sink``.
        sink: called with sample ids, adversarial points and successes of every group of samples that
            finishes.
        progress: called with the number of samples done and their total, None where it is not known.
        device: where the kept points are gathered; the CPU unless the caller wants them where the data is.
    """

    def __init__(
        self,
        *,
        keep: bool,
        sink: Sink | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        total: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.done = 0
        self._keep = keep
        self._sink = sink
        self._progress = progress
        self._total = total
        self._device = torch.device("cpu") if device is None else device
        self._index: list[Tensor] = []
        self._numbers: dict[str, list[Tensor]] = {name: [] for name in _NUMBERS}
        self._points: list[Tensor] = []

    def record(self, index: Tensor, points: Tensor, **numbers: Tensor) -> None:
        """Samples at places ``index`` of the data are finished: their points, and a tensor for each field."""
        assert numbers.keys() == _NUMBERS.keys()
        self._index.append(index.cpu())
        for name, dtype in _NUMBERS.items():
            self._numbers[name].append(numbers[name].to("cpu", dtype))
        if self._keep:
            self._points.append(points.to(self._device))
        if self._sink is not None:
            self._sink(numbers["sample_ids"], points, numbers["success"])
        self.done += len(index)
        if self._progress is not None:
            self._progress(self.done, self._total)

    def points(self, like: Tensor) -> Tensor:
        """The kept points in the order of the data, with ``like``'s dtype, device and layout."""
        out = torch.empty_like(like)
        for index, points in zip(self._index, self._points, strict=True):
            out[index.to(out.device)] = points
        return out

    def result(self, attack: str, norm: str, *, complete: bool = True) -> AttackResult:
        """All that was recorded, by place in the data."""
        order = torch.cat(self._index).argsort() if self._index else torch.zeros(0, dtype=torch.int64)
        columns = {
            name: torch.cat(parts)[order] if parts else torch.zeros(0, dtype=_NUMBERS[name])
            for name, parts in self._numbers.items()
        }
        points = torch.cat(self._points)[order.to(self._device)] if self._points else None
        return AttackResult(attack, norm, **columns, adversarial=points, complete=complete)
