"""Which learning rate? Raised step by step until the loss explodes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from brittle import _checks as check
from brittle.data import Data, batches
from brittle.diagnosis.checks._training import shuffled_batches, trainable
from brittle.diagnosis.checks._trial import (
    LossFunction,
    MakeOptimizer,
    all_samples,
    check_classes,
    fresh,
    logits_of,
    require_module,
    trial,
)
from brittle.diagnosis.checks.verdict import Verdict
from brittle.target import Target

_SMOOTHING = 0.9
_DIVERGED = 4.0  # times the least smoothed loss
_WINDOW = 10  # steps
_LEARNS = 0.9  # of the first loss: what the least must be below


@dataclass(frozen=True)
class LearningRateRange(Verdict):
    """The loss of a copy whose learning rate rises from step to step.

    Attributes:
        rates: of each step.
        losses: of its batch, before the step.
        smoothed: their exponential average, without the bias of its start.
        suggested: a tenth of the rate at which the smoothed loss is least; NaN where the loss never falls.
        steepest: the rate around which the smoothed loss falls fastest over ten steps; NaN likewise.
        diverged: whether the ramp ended because the loss exploded.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggested: float
    steepest: float
    diverged: bool

    def _figures(self) -> list[str]:
        count = len(self.rates)
        shown = sorted({count * k // 10 for k in range(10)} | {count - 1})
        return [
            f"{'rate':>10}{'loss':>10}{'smoothed':>10}",
            *(f"{self.rates[k]:>10.2g}{self.losses[k]:>10.4f}{self.smoothed[k]:>10.4f}" for k in shown),
            f"suggested rate {self.suggested:.2g}, steepest fall at {self.steepest:.2g}"
            + (", diverged" if self.diverged else ""),
        ]

    def plot(self, path: str | Path) -> None:
        """Draw loss against rate, with the rates suggested, to a picture file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        ax = figure.subplots()
        ax.semilogx(self.rates, self.losses, color="0.75", linewidth=1, label="loss of a batch")
        ax.semilogx(self.rates, self.smoothed, color="C0", label="smoothed")
        if not math.isnan(self.suggested):
            ax.axvline(self.suggested, color="C2", label=f"suggested {self.suggested:.2g}")
            ax.axvline(self.steepest, color="C1", linestyle="--", label=f"steepest {self.steepest:.2g}")
        finite = [value for value in self.smoothed if math.isfinite(value)]
        if finite:
            # What exploded in the end would flatten all the rest.
            ax.set_ylim(0, 1.6 * max(finite[0], min(finite)))
        ax.set(xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
        ax.legend(fontsize="small")
        figure.savefig(path, dpi=150)


def learning_rate_range(
    model: nn.Module,
    data: Data,
    *,
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 200,
    optimizer: MakeOptimizer | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    batch_size: int = 64,
    seed: int = 0,
) -> LearningRateRange:
    """Train a copy while its learning rate grows exponentially, and see where the loss falls and explodes.

    The loss is averaged exponentially (0.9). The ramp ends where that average is four times its least, or not
    finite. The rate suggested is a tenth of the one at which the average is least; a schedule that rises to
    a peak (one cycle) bears about the steepest rate as its peak.

    Args:
        model: maps inputs to logits ``[N, C]``. A copy of it is trained, in training mode.
        data: a pair of tensors ``(x, y)``, shuffled by ``seed``, or an iterable of batches, taken as they
            come, over and over; one that can be gone through only once must last for ``steps``.
        lowest: the first step's rate, > 0.
        highest: the last step's, above it.
        steps: of the ramp, at least 10.
        optimizer: makes one of parameters; its rates are set from here. By default Adam.
        loss_fn: ``loss_fn(logits, y)`` gives a scalar.
        batch_size: for a pair of tensors.
        seed: of the order of samples and of what is random in the model.

    Returns:
        Rates, losses and suggestions; a problem where no rate lowered the loss by a tenth.

    Raises:
        ValueError: an argument is out of range, data or model does not fit, or there are no samples.

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> x = torch.randn(256, 8)
        >>> found = checks.learning_rate_range(model, (x, (x[:, 0] > 0).long()))
        >>> 1e-4 < found.suggested < 1
        True
    """
    op = "learning_rate_range"
    require_module(op, model)
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"{op}: rates must be 0 < lowest < highest; got {lowest} and {highest}")
    check.check_count(op, "steps", steps, 10)
    check.check_count(op, "batch_size", batch_size)
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average, diverged = 0.0, False
    with trial(op, model, seed):
        copied = fresh(op, model)
        made = trainable(op, copied)
        stepper = torch.optim.Adam(made) if optimizer is None else optimizer(made)
        stream = _endless(op, data, batch_size, model, seed)
        for number in range(steps):
            rate = lowest * (highest / lowest) ** (number / (steps - 1))
            for group in stepper.param_groups:
                group["lr"] = rate
            batch = next(stream, None)
            if batch is None:
                raise ValueError(f"{op}: data must last for {steps} steps; got {number} batches")
            x, y = batch
            logits = logits_of(op, copied, x)
            check_classes(op, y, logits.shape[1])
            loss = loss_fn(logits, y)
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss.item()
            rates.append(rate)
            losses.append(loss.item())
            smoothed.append(average / (1 - _SMOOTHING ** (number + 1)))
            if not smoothed[-1] <= _DIVERGED * min(smoothed):
                diverged = True
                break
            stepper.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.step()
    return _judged(rates, losses, smoothed, diverged)


def _judged(
    rates: list[float], losses: list[float], smoothed: list[float], diverged: bool
) -> LearningRateRange:
    least = min(range(len(smoothed)), key=lambda k: math.inf if math.isnan(smoothed[k]) else smoothed[k])
    learns = smoothed[least] < _LEARNS * smoothed[0]
    suggested = steepest = math.nan
    problems: tuple[str, ...] = ()
    if learns:
        suggested = rates[least] / 10
        steepest = rates[_steepest(smoothed[: least + 1])]
    else:
        end = "and exploded" if diverged else "and did not explode either"
        problems = (
            f"no rate from {rates[0]:.2g} to {rates[-1]:.2g} lowered the loss by a tenth "
            f"({smoothed[0]:.4g} at first, {smoothed[least]:.4g} at best), {end}; take more steps, or see "
            "overfit_one_batch",
        )
    notes: tuple[str, ...] = ()
    if learns and least == len(rates) - 1:
        notes = (f"the loss is least at the highest rate, {rates[-1]:.2g}: a higher end may suggest more",)
    return LearningRateRange(
        problems=problems,
        notes=notes,
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        suggested=suggested,
        steepest=steepest,
        diverged=diverged,
    )


def _steepest(smoothed: list[float]) -> int:
    """Where the fall over ten steps, or all there are, is greatest; its middle."""
    span = min(_WINDOW, len(smoothed) - 1)
    # The first averages are of few batches, and fall and rise by chance.
    begin = min(_WINDOW, len(smoothed) - 1 - span)
    falls = [smoothed[k] - smoothed[k + span] for k in range(begin, len(smoothed) - span)]
    return begin + falls.index(max(falls)) + span // 2


def _endless(
    op: str, data: Data, batch_size: int, model: nn.Module, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches over and over; the end, where the data cannot be gone through again."""
    if isinstance(data, tuple):
        x, y, _ = all_samples(op, data, model)
        generator = torch.Generator().manual_seed(seed % 2**63)
        while True:
            for rows in shuffled_batches(len(x), batch_size, generator):
                yield x[rows.to(x.device)], y[rows.to(x.device)]
    some = True
    while some:
        some = False
        for x, y, _ in batches(op, data, batch_size, Target.of(model, op)):
            check.check_labels(op, y, x)
            if len(x):
                some = True
                yield x, y
