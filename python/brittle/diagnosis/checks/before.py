"""All that is to be checked before the first long training run."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import nn

from brittle.data import Data
from brittle.diagnosis.checks._trial import LossFunction, MakeOptimizer, require_module
from brittle.diagnosis.checks.initial_loss import initial_loss
from brittle.diagnosis.checks.outputs import output_kind
from brittle.diagnosis.checks.overfit import TrainStep, overfit_one_batch
from brittle.diagnosis.checks.placement import placement
from brittle.diagnosis.checks.ranges import weights_and_gradients
from brittle.diagnosis.checks.verdict import Verdict


@dataclass(frozen=True)
class BeforeTraining(Verdict):
    """The checks in the order in which they were made.

    Attributes:
        results: the name of each check that was made, and its result.
        skipped: the checks that were not made, because what they need does not hold.
    """

    results: dict[str, Verdict]
    skipped: tuple[str, ...]

    def _figures(self) -> list[str]:
        lines = [f"{'check':<24}verdict"]
        for name, result in self.results.items():
            count = len(result.problems)
            lines.append(f"{name:<24}{'ok' if result.ok else f'{count} problem' + 's' * (count > 1)}")
        return lines + [f"{name:<24}not made" for name in self.skipped]


def before_training(
    model: nn.Module,
    data: Data,
    *,
    loss_fn: LossFunction = F.cross_entropy,
    optimizer: MakeOptimizer | None = None,
    train_step: TrainStep | None = None,
    steps: int = 1000,
    batch_size: int = 32,
    moved: bool = True,
    untrained: bool = True,
    seed: int = 0,
) -> BeforeTraining:
    """Look at a model and its data before training: seconds that save days.

    Makes, in this order, :func:`placement`, :func:`output_kind`, :func:`initial_loss`,
    :func:`weights_and_gradients` and :func:`overfit_one_batch`. What a check says is in its own page; the
    model is left as it was.

    Args:
        model: untrained, mapping inputs to logits ``[N, C]``.
        data: a pair of tensors ``(x, y)`` or an iterable of batches that can be gone through several times.
        loss_fn: ``loss_fn(logits, y)`` gives a scalar.
        optimizer, train_step, steps: as for :func:`overfit_one_batch`.
        batch_size: samples of the batches that are looked at.
        moved: as for :func:`placement`.
        untrained: False for a network that begins from trained weights: then neither its loss nor the spread
            of its weights is compared with what initialisers give.
        seed: of whatever is random.

    Returns:
        A verdict for each check. Where model and data are not on one device, nothing else is tried.

    Raises:
        ValueError: data or model does not fit, or there are no samples.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> print(checks.before_training(model, (torch.randn(64, 20), torch.arange(64) % 4)).table())
        check                   verdict
        placement               ok
        output_kind             ok
        initial_loss            ok
        weights_and_gradients   ok
        overfit_one_batch       ok
        no problem
    """
    require_module("before_training", model)
    results: dict[str, Verdict] = {"placement": placement(model, data, moved=moved)}
    names = ["output_kind", "initial_loss", "weights_and_gradients", "overfit_one_batch"]
    if not untrained:
        names.remove("initial_loss")
    if results["placement"].ok:
        results["output_kind"] = output_kind(model, data, loss_fn, batch_size=batch_size, seed=seed)
        if untrained:
            results["initial_loss"] = initial_loss(model, data, batch_size=8 * batch_size, seed=seed)
        results["weights_and_gradients"] = weights_and_gradients(
            model, data, loss_fn=loss_fn, untrained=untrained, batch_size=2 * batch_size, seed=seed
        )
        results["overfit_one_batch"] = overfit_one_batch(
            model,
            data,
            train_step=train_step,
            optimizer=optimizer,
            loss_fn=loss_fn,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
        )
    return BeforeTraining(
        problems=tuple(f"{name}: {p}" for name, result in results.items() for p in result.problems),
        notes=tuple(f"{name}: {n}" for name, result in results.items() for n in result.notes),
        results=results,
        skipped=tuple(name for name in names if name not in results),
    )
