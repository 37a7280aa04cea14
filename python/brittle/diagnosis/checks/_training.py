"""The short training runs that some checks need, each a function of its seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from brittle.diagnosis.checks._trial import LossFunction, MakeOptimizer, logits_of

_PEAK_RATE = 3e-3

#: Called after each step with the rows of its batch and their logits.
Record = Callable[[Tensor, Tensor], None]


def fit(
    op: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    optimizer: MakeOptimizer | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    record: Record | None = None,
) -> None:
    """Train in place; by default with Adam on one cycle of the learning rate up to 3e-3."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    chosen = adam_one_cycle(epochs, batch_size, len(x)) if optimizer is None else optimizer
    stepper = chosen(trainable(op, model))
    model.train()
    for _ in range(epochs):
        for rows in shuffled_batches(len(x), batch_size, generator):
            rows = rows.to(x.device)
            logits = logits_of(op, model, x[rows])
            stepper.zero_grad(set_to_none=True)
            loss_fn(logits, y[rows]).backward()  # type: ignore[no-untyped-call]
            stepper.step()
            if record is not None:
                record(rows, logits.detach())


def trainable(op: str, model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients; ValueError if there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{op}: the model must have parameters that require gradients; got none")
    return parameters


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterable[Tensor]:
    """Rows in random order; no batch of a single row, which batch-norm could not be trained on."""
    order = torch.randperm(count, generator=generator)
    sizes = [len(part) for part in torch.split(order, batch_size)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return torch.split(order, sizes)


def adam_one_cycle(epochs: int, batch_size: int, count: int) -> MakeOptimizer:
    """Adam whose rate rises to its peak and falls again over the whole run."""
    total = max(2, epochs * math.ceil(count / batch_size))

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        stepper = torch.optim.Adam(parameters)
        schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, _PEAK_RATE, total_steps=total)
        taken = 0

        def advance(*_: object) -> None:
            nonlocal taken
            taken += 1
            if taken < total:
                schedule.step()

        stepper.register_step_post_hook(advance)
        return stepper

    return make


@torch.no_grad()
def evaluated(op: str, model: nn.Module, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits in evaluation mode; the model's modes stay as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return torch.cat([logits_of(op, model, part) for part in torch.split(x, batch_size)])
    finally:
        for module, training in modes:
            module.training = training
