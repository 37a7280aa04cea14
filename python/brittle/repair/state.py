"""What a training loop hands around: a batch to its steps, the training so far to its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

from torch import Tensor, nn
from torch.optim import Optimizer

from brittle.data import Data
from brittle.progress import Tick


class Batch(NamedTuple):
    """What a step is given.

    Attributes:
        model: in training mode.
        x, y: samples and labels, on the model's device.
        ids: int64 ``[N]``, the samples' identities in the data set.
        epoch: from 0.
        step: optimizer steps taken so far.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    ids: Tensor
    epoch: int
    step: int


Step = Callable[[Batch], Tensor | tuple[Tensor, Tensor]]
Regularizer = Callable[[nn.Module], Tensor]


class Schedule(Protocol):
    """Of the learning rate, stepped after each optimizer step: one of torch's, for example."""

    def step(self) -> None:
        """On to the next learning rate."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""


MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], Schedule]


class TrainingOptions(TypedDict, total=False):
    """The arguments of :func:`brittle.repair.train` that other ways of training hand on to it."""

    optimizer: MakeOptimizer | Optimizer | None
    schedule: MakeSchedule | None
    batch_size: int
    regularizer: Regularizer | None
    parameters: Iterable[str] | None
    max_grad_norm: float | None
    checkpoint: str | Path | None
    progress: bool | Tick
    channels_last: bool | None


class AllTrainingOptions(TrainingOptions, total=False):
    """The same, of ways of training that have no use of their own for any of them."""

    epochs: int
    validation: Data | None
    seed: int
    callbacks: Iterable[Any]


@dataclass
class Training:
    """A training while it runs, which callbacks see, and its result.

    Attributes:
        model: the model that was given, with its new weights.
        optimizer: the one in use.
        epochs: epochs completed.
        steps: optimizer steps taken.
        history: a record for each epoch. ``epoch``, from 0; mean ``loss``, and ``accuracy`` if the step gave
            logits (both of what was trained on, while the weights changed); ``penalty`` of the regularizer;
            ``learning_rate`` of the last step; ``validation_loss`` and ``validation_accuracy``. Callbacks may
            add to ``history[-1]``.
        stopped: why training ended early, or None.
        seconds: time that the call took.
    """

    model: nn.Module
    optimizer: Optimizer
    epochs: int = 0
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str | None = None
    seconds: float = 0.0

    def stop(self, reason: str) -> None:
        """End the training: after this step when called from ``on_step``, else after this epoch."""
        self.stopped = self.stopped or reason

    def table(self) -> str:
        """The history as text, a line for each epoch.

        Example:
            >>> import torch
            >>> from brittle.repair import Training
            >>> model = torch.nn.Linear(2, 2)
            >>> training = Training(model, torch.optim.SGD(model.parameters()))
            >>> training.history = [{"epoch": 0, "loss": 1.25}, {"epoch": 1, "loss": 0.5}]
            >>> print(training.table())
               epoch      loss
                   0      1.25
                   1       0.5
        """
        names = list(dict.fromkeys(name for record in self.history for name in record))
        rows = [names]
        for record in self.history:
            rows.append([f"{record[name]:.4g}" if name in record else "" for name in names])
        lines = [
            "  ".join(f"{cell:>{max(len(name), 8)}}" for cell, name in zip(row, names, strict=True))
            for row in rows
        ]
        return "\n".join(lines if self.stopped is None else [*lines, f"stopped: {self.stopped}"])
