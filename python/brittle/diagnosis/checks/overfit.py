"""Can the model learn one small batch by heart? If not, something between data and optimizer is broken."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from brittle import _checks as check
from brittle._folding import deep_copy
from brittle.data import Data
from brittle.diagnosis.checks._causes import FALLING, gradients_of, irreducible, unmoved, why
from brittle.diagnosis.checks._trial import (
    LossFunction,
    MakeOptimizer,
    check_classes,
    first_samples,
    logits_of,
    require_module,
    trial,
)
from brittle.diagnosis.checks.verdict import Verdict

#: One step of the caller's own training: ``step(model, optimizer, x, y)`` gives the loss.
TrainStep = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], Tensor | float]

_NEAR_ZERO = 0.05  # of log C
_IN_A_ROW = 3
_STALLED, _CONSTANT = 200, 50
_RATE = 1e-3


@dataclass(frozen=True)
class OverfitOneBatch(Verdict):
    """A copy of a model, trained on one batch.

    Attributes:
        losses: before each step.
        goal: what the loss had to come under.
        reached: the step at which it was under it for the third time in a row; None if never.
        accuracy: on the batch, after the last step.
        samples: of the batch.
        unmoved: the parameters that the steps never changed.
    """

    losses: tuple[float, ...]
    goal: float
    reached: int | None
    accuracy: float
    samples: int
    unmoved: tuple[str, ...]

    def _figures(self) -> list[str]:
        steps = len(self.losses)
        shown = sorted({0, *(steps * k // 8 for k in range(1, 8)), steps - 1} & set(range(steps)))
        reached = "never" if self.reached is None else f"at step {self.reached}"
        return [
            f"{'step':>6}{'loss':>12}",
            *(f"{step:>6}{self.losses[step]:>12.5f}" for step in shown),
            f"under {self.goal:.4f}: {reached}; accuracy on the {self.samples} samples: {self.accuracy:.0%}",
        ]

    def plot(self, path: str | Path) -> None:
        """Draw the loss, on a logarithmic scale, to a picture file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        ax = figure.subplots()
        ax.semilogy(range(len(self.losses)), self.losses, color="C0")
        if self.goal > 0:
            ax.axhline(self.goal, color="0.5", linestyle="--", linewidth=1, label=f"goal {self.goal:.3g}")
            ax.legend()
        ax.set(xlabel="step", ylabel="loss", title=f"One batch of {self.samples} samples")
        figure.savefig(path, dpi=150)


def overfit_one_batch(
    model: nn.Module,
    data: Data,
    *,
    train_step: TrainStep | None = None,
    optimizer: torch.optim.Optimizer | MakeOptimizer | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    steps: int = 1000,
    batch_size: int = 32,
    goal: float | None = None,
    frozen: Sequence[str] = (),
    seed: int = 0,
) -> OverfitOneBatch:
    """Train a copy on one small batch: a network that cannot bring its loss near zero is not being trained.

    Fires on parameters that are frozen, unused or unknown to the optimizer, on a loss that is cut off from
    them, on labels that are drawn anew for each step, on probabilities given to cross-entropy, on a dead
    network, and on one that ignores its input. Give your own ``train_step`` and ``optimizer`` to have them
    checked rather than the model alone; then gradients that are not cleared between steps are found too, by
    putting NaN into those that a step leaves behind. (In the loss they cannot be seen: they act as a
    momentum that never fades, and one batch is often learnt with them.) What this cannot see either: labels
    that belong to other samples, but always to the same ones; see :func:`shuffled_labels` for those.

    Args:
        model: maps inputs to logits ``[N, C]``. A copy of it is trained, in training mode.
        data: a pair of tensors ``(x, y)`` or an iterable of batches; the first ``batch_size`` samples count.
        train_step: ``train_step(model, optimizer, x, y)`` takes one step with the model and optimizer given
            and returns the loss; by default the gradient of ``loss_fn(model(x), y)`` and a step. It is called
            at most twice more than there are steps.
        optimizer: the one that was made for ``model``, which is copied with it, or a function that makes one
            of parameters; by default Adam at a rate of 1e-3.
        loss_fn: ``loss_fn(logits, y)`` gives a scalar.
        steps: at most so many; fewer where the mean loss of 200 steps is no lower than that of the 200
            before, or where 50 steps leave it as it is.
        batch_size: samples.
        goal: the loss to come under; by default 0.05 log C, more where equal inputs have different labels. A
            loss that cannot reach zero (label smoothing) needs another.
        frozen: patterns, such as ``"backbone.*"``, of parameters that are not meant to change.
        seed: of dropout and whatever else is random in the model.

    Returns:
        The losses and the verdict, with what usually causes such a failure.

    Raises:
        ValueError: data or model does not fit, or there are no samples.

    References:
        Karpathy, "A Recipe for Training Neural Networks", 2019 ("overfit one batch").

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> data = torch.randn(32, 20), torch.arange(32) % 4
        >>> checks.overfit_one_batch(model, data).ok
        True
        >>> optimizer = torch.optim.Adam(model[2].parameters())
        >>> found = checks.overfit_one_batch(model, data, optimizer=optimizer)
        >>> found.unmoved
        ('0.weight', '0.bias')
    """
    op = "overfit_one_batch"
    require_module(op, model)
    check.check_count(op, "steps", steps)
    if goal is not None:
        check.check_scalar(op, "goal", goal)
    patterns = [frozen] if isinstance(frozen, str) else list(frozen)
    step = _plain_step(loss_fn) if train_step is None else train_step
    with trial(op, model, seed):
        x, y = first_samples(op, data, batch_size, model, seed)
        copied, stepper = _copies(op, model, optimizer)
        start = {name: p.detach().clone() for name, p in copied.named_parameters()}
        logits = logits_of(op, copied, x)
        classes = logits.shape[1]
        check_classes(op, y, classes)
        least = irreducible(x, y)
        if goal is None:
            goal = least + _NEAR_ZERO * math.log(classes)
        gradients = gradients_of(copied, loss_fn(logits, y))
        losses, reached, cut = _trained(op, step, copied, stepper, x, y, steps, goal)
        still = [name for name, p in copied.named_parameters() if torch.equal(p, start[name])]
        left = (
            train_step is not None and not cut and _gradients_left(*_copies(op, model, optimizer), step, x, y)
        )
        with torch.no_grad():
            logits = logits_of(op, copied, x)

    problems = []
    wanted = [name for name in still if not any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if losses and not math.isfinite(losses[-1]):
        problems.append(
            f"the loss is {losses[-1]} at step {len(losses) - 1}; usually the rate is too high, or something "
            "is divided by zero"
        )
    elif cut:
        problems.append(
            "the loss does not depend on any parameter: all are frozen, or the graph is cut (detach, item, "
            "numpy, no_grad, argmax)"
        )
    elif reached is None:
        problems.append(why(losses, goal, logits, x, gradients, still == list(start)))
    problems += unmoved(copied, wanted, gradients)
    if left:
        problems.append(
            "a step's gradients are still there in the next: zero_grad() is missing, unless they are "
            "accumulated on purpose"
        )
    notes = []
    if least > 1e-9:
        notes.append(f"equal inputs have different labels: no loss below {least:.3f} can be reached")
    return OverfitOneBatch(
        problems=tuple(problems),
        notes=tuple(notes),
        losses=tuple(losses),
        goal=goal,
        reached=reached,
        accuracy=float((logits.argmax(1) == y).double().mean()),
        samples=len(y),
        unmoved=tuple(still),
    )


def _plain_step(loss_fn: LossFunction) -> TrainStep:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        loss = loss_fn(model(x.clone()), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def _copies(
    op: str, model: nn.Module, optimizer: torch.optim.Optimizer | MakeOptimizer | None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and an optimizer that stands to the copy as the caller's stands to the model."""
    if isinstance(optimizer, torch.optim.Optimizer):
        # Copied together, what is one tensor stays one tensor, and what is another model's stays another's.
        copied, stepper = copy.deepcopy((model, optimizer))
    else:
        copied = deep_copy(model)
        if optimizer is None:
            stepper = torch.optim.Adam(copied.parameters(), lr=_RATE)
        else:
            stepper = optimizer(copied.parameters())
        if not isinstance(stepper, torch.optim.Optimizer):
            raise ValueError(
                f"{op}: optimizer must be a torch Optimizer or a function that makes one; "
                f"got {type(stepper).__name__}"
            )
    copied.zero_grad(set_to_none=True)
    return copied.train(), stepper


def _trained(
    op: str,
    step: TrainStep,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    steps: int,
    goal: float,
) -> tuple[list[float], int | None, bool]:
    """The losses, the step at which the goal was reached, and whether there was nothing to differentiate."""
    losses: list[float] = []
    for number in range(steps):
        try:
            loss = step(model, optimizer, x, y)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            return losses, None, True
        if (isinstance(loss, Tensor) and loss.numel() != 1) or not isinstance(loss, (Tensor, float, int)):
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{op}: train_step must return the loss, a number; got {got}")
        losses.append(loss.item() if isinstance(loss, Tensor) else float(loss))
        if not math.isfinite(losses[-1]):
            break
        if len(losses) >= _IN_A_ROW and max(losses[-_IN_A_ROW:]) < goal:
            return losses, number, False
        if len(losses) >= _CONSTANT and len(set(losses[-_CONSTANT:])) == 1:
            break
        last, before = losses[-_STALLED:], losses[-2 * _STALLED : -_STALLED]
        if len(before) == _STALLED and sum(last) > FALLING * sum(before):
            break
    return losses, None, False


def _gradients_left(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: TrainStep, x: Tensor, y: Tensor
) -> bool:
    """Whether the gradients that a step leaves behind reach the next step's parameters."""
    step(model, optimizer, x, y)
    for parameter in model.parameters():
        if parameter.grad is not None:
            # Not in place: what a step has cleared to zeros it may go on adding to.
            if not bool(parameter.grad.any()):
                return False
            parameter.grad = torch.full_like(parameter.grad, math.nan)
    step(model, optimizer, x, y)
    return not all(bool(parameter.isfinite().all()) for parameter in model.parameters())
