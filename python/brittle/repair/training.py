"""A training loop: plain PyTorch with callbacks, a regularizer, and checkpoints that resume to the bit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer

from brittle import _checks as check
from brittle.data import Data
from brittle.progress import Tick, bar
from brittle.repair import checkpoints, loop
from brittle.repair.state import Batch, MakeOptimizer, MakeSchedule, Regularizer, Schedule, Step, Training


def cross_entropy(batch: Batch) -> tuple[Tensor, Tensor]:
    """The step of ordinary training: mean cross-entropy, and the logits.

    Args:
        batch: whose model gives logits ``[N, C]``; labels are int64 ``[N]`` or probabilities ``[N, C]``.

    Example:
        >>> import torch
        >>> from brittle.repair import Batch, cross_entropy
        >>> y = torch.tensor([0, 1])
        >>> batch = Batch(torch.nn.Identity(), torch.zeros(2, 4), y, torch.arange(2), epoch=0, step=0)
        >>> cross_entropy(batch)[0]
        tensor(1.3863)
    """
    logits = batch.model(batch.x)
    return F.cross_entropy(logits, batch.y), logits


def train(
    model: nn.Module,
    data: Data,
    *,
    step: Step | None = None,
    epochs: int = 10,
    optimizer: MakeOptimizer | Optimizer | None = None,
    schedule: MakeSchedule | None = None,
    batch_size: int = 128,
    validation: Data | None = None,
    regularizer: Regularizer | None = None,
    parameters: Iterable[str] | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
    callbacks: Iterable[Any] = (),
    checkpoint: str | Path | None = None,
    progress: bool | Tick = False,
    replays: int = 1,
    channels_last: bool | None = None,
    name: str = "train",
) -> Training:
    """Train a model in place.

    Modules run in training mode; those whose own parameters are all left out run in evaluation mode, so that
    frozen batch-norm keeps its statistics. Afterwards each module's mode, each parameter's ``requires_grad``
    and ``.grad``, and torch's global random state are as they were.

    The order of the samples and torch's random state, which dropout draws from, depend on seed and epoch
    alone. The same call gives the same weights, and a run that is interrupted and taken up again from its
    checkpoint ends in the same bits as one that is not. That holds for callbacks with a state of their own if
    they have ``state_dict()`` and ``load_state_dict()``, of tensors and plain data.

    Args:
        model: changed in place. The default step and ``validation`` want logits ``[N, C]`` of it.
        data: a pair of tensors ``(x, y)``, cut anew each epoch into shuffled batches, whose sizes differ by
            one at most; or an iterable of batches ``(x, y)`` or ``(x, y, ids)``, gone through anew each
            epoch, in its own order. If it or its ``sampler`` has ``set_epoch(epoch)``, that is called first.
        step: maps a :class:`~brittle.repair.Batch` to the loss to minimise, a scalar, or to it and the
            logits; by default :func:`~brittle.repair.cross_entropy`.
        epochs: passes through the data.
        optimizer: maps a list of parameters to an optimizer; or an optimizer, which decides what is trained.
            By default Adam on one cycle of the learning rate, up to 3e-3 and down again.
        schedule: maps the optimizer and the number of all steps to a schedule of the learning rate, for
            example ``lambda adam, steps: torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)``.
        batch_size: at most so many samples at a time, from a pair of tensors.
        validation: data to give loss and accuracy of after each epoch, in evaluation mode.
        regularizer: maps the model to a scalar that is added to the loss, for example
            :func:`~brittle.repair.regularizer`. If it has ``on_batch``, that is called instead, with the
            :class:`~brittle.repair.Batch`.
        parameters: names of parameters, or of modules for all of theirs; the others stay. By default all that
            require gradients.
        max_grad_norm: gradients are scaled down to this L2 norm, taken over all of them.
        seed: of the order and of torch's random state meanwhile, 64 bits.
        callbacks: objects with any of ``on_step(training)``, ``on_epoch(training)`` and ``on_end(training)``,
            called after each optimizer step, each epoch, and in the end. See :class:`Training`, whose
            ``stop`` they may call.
        checkpoint: a safetensors file, written whole after each epoch. If it is there, training goes on from
            it; the arguments must be the same.
        progress: True for a progress bar on stderr (needs ``rich``), or a function that is called with the
            number of steps taken and their total, None where it is not known.
        replays: steps taken on each batch before the next.
        channels_last: lay out the convolutions' weights with their channels last meanwhile, which changes
            the order of sums and so the last bits; by default where that is faster and the model takes it:
            on a CPU, if data is a pair of tensors, of which one sample is tried.
        name: the operator to name in error messages.

    Returns:
        The training. If a loss is not finite, its step is not taken and ``stopped`` tells.

    Raises:
        ValueError: an argument is out of range, there is nothing to train or to train on, or the checkpoint
            is damaged or another run's.

    References:
        Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
        rates", 2018 (one cycle).

    Example:
        >>> import torch, brittle
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > x[:, 1]).long()
        >>> model = torch.nn.Linear(2, 2)
        >>> training = brittle.repair.train(
        ...     model, (x, y), epochs=5, batch_size=20, optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        ...     validation=(x, y),
        ... )
        >>> training.steps, training.stopped, training.history[-1]["validation_accuracy"] > 0.9
        (50, None, True)
    """
    for option, count in (("epochs", epochs), ("batch_size", batch_size), ("replays", replays)):
        check.check_count(name, option, count)
    check.check_seed(name, seed)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: model must be a module; got {type(model).__name__}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"{name}: max_grad_norm must be > 0; got {max_grad_norm}")
    if isinstance(data, Iterator) and epochs > 1:
        raise ValueError(f"{name}: data must be iterable anew for each epoch; got an iterator")
    order = loop.Order(name, data, batch_size, seed, model)
    total = None if order.count is None else order.count * replays * epochs
    chosen = loop.chosen_parameters(name, model, optimizer, parameters)
    listeners = list(callbacks)
    begin = time.perf_counter()
    with (
        loop.prepared(model, chosen),
        loop.channels_last(model, data, channels_last) as laid_out,
        bar(progress, name, total) as tick,
    ):
        made, rates = loop.optimizer_and_schedule(name, optimizer, schedule, chosen, total)
        training = Training(model, made)
        arguments = checkpoints.Arguments(
            name,
            epochs=epochs,
            batch_size=batch_size,
            batches=order.count,
            replays=replays,
            seed=seed,
            max_grad_norm=max_grad_norm,
            channels_last=laid_out,
            optimizer=type(made).__name__,
            schedule=type(rates).__name__,
            callbacks=[type(listener).__name__ for listener in listeners],
            parameters={n: list(p.shape) for n, p in model.named_parameters() if p.requires_grad},
        )
        saved = _Saved(name, checkpoint, training, [arguments, *listeners], rates)
        ended = saved.load()

        def after_step() -> None:
            _call(listeners, "on_step", training)
            if tick is not None:
                tick(training.steps, total)

        while training.epochs < epochs and training.stopped is None:
            torch.manual_seed(loop.derived_seed(seed, "draws", training.epochs))
            loop.to_training_mode(model)
            record = loop.run_epoch(
                training,
                (batch for batch in order.epoch(training.epochs) for _ in range(replays)),
                step or cross_entropy,
                regularizer=regularizer,
                schedule=rates,
                max_grad_norm=max_grad_norm,
                after_step=after_step,
            )
            if validation is not None:
                record |= loop.look(name, model, validation, batch_size)
            training.history.append(record)
            training.epochs += training.stopped is None
            _call(listeners, "on_epoch", training)
            saved.write(ended=False)
        if not ended:
            _call(listeners, "on_end", training)
            saved.write(ended=True)
    training.seconds = time.perf_counter() - begin
    return training


def _call(listeners: list[Any], event: str, training: Training) -> None:
    for listener in listeners:
        if hasattr(listener, event):
            getattr(listener, event)(training)


class _Saved:
    """A run's checkpoint: everything that its next epoch depends on."""

    counts = ("epochs", "steps", "history", "stopped")

    def __init__(
        self,
        op: str,
        path: str | Path | None,
        training: Training,
        listeners: list[Any],
        schedule: Schedule | None,
    ) -> None:
        self.op, self.path, self.training = op, None if path is None else Path(path), training
        # Arguments first: where they differ, nothing is to be loaded.
        listeners = sorted(listeners, key=lambda listener: not isinstance(listener, checkpoints.Arguments))
        parts = [*listeners, training.model, training.optimizer, schedule]
        self.parts = [part for part in parts if hasattr(part, "state_dict")]

    def load(self) -> bool:
        """Go on from the checkpoint, if there is one; True if there is nothing left to do."""
        if self.path is None or not self.path.exists():
            return False
        state = checkpoints.read(self.op, self.path)
        # The first part tells whether the others are of the same kinds.
        for part, own in zip(self.parts, state["parts"], strict=False):
            part.load_state_dict(own)
        for name in self.counts:
            setattr(self.training, name, state[name])
        # The file keeps no strides, and sums and products of other strides may round otherwise.
        for parameter, kept in self.training.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter).copy_(value)
        ended: bool = state["ended"]
        return ended

    def write(self, *, ended: bool) -> None:
        """The state as it is now."""
        if self.path is None:
            return
        counts = {name: getattr(self.training, name) for name in self.counts}
        parts = [part.state_dict() for part in self.parts]
        checkpoints.write(self.op, self.path, {"ended": ended, "parts": parts, **counts})
