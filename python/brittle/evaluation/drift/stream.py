"""The answers and features that drift is measured on, sample after sample in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brittle.evaluation.penultimate import capture_penultimate
from brittle.evaluation.run.fingerprint import of_weights
from brittle.similarity.features import Inputs, LayerFeatures, inputs
from brittle.sources import Source
from brittle.target import Model, Target


class Rows(NamedTuple):
    """What a model makes of some samples that follow one another, on the CPU."""

    predicted: Tensor  # int64 [N]
    confidence: Tensor  # float64 [N]
    energy: Tensor  # float64 [N], -log sum exp of the logits
    classes: int
    features: Tensor | None  # float32 [N, D]


def rows(
    op: str,
    model: Model | Target,
    data: Inputs | Source,
    layer: str | None,
    batch_size: int,
    fixed_batch: int,
) -> Iterator[Rows]:
    """Up to ``fixed_batch`` samples at a time, in the order of the data.

    The model always runs on ``fixed_batch`` samples, padded where there are fewer: how the data is cut into
    batches changes no bit of the answers.

    Args:
        op: the operator to name in error messages.
        model: as :meth:`brittle.evaluation.drift.Reference.of` takes it.
        data: as there.
        layer: whose output the features are; None for the input of the last linear layer.
        batch_size: for tensors and sources.
        fixed_batch: how many samples the model runs on.

    Raises:
        ValueError: no samples; logits or features that are not finite; a batch that does not fit.
    """
    target = Target.of(model, op)
    first = 0
    for x in _chunks(op, _inputs(op, data, batch_size, target), fixed_batch):
        with target, _fixed(target, fixed_batch), _captured(op, target, layer) as features:
            try:
                logits = target.logits(x, torch.arange(first, first + len(x), device=x.device)).cpu().double()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise ValueError(
                    f"{op}: the model must take samples of shape {list(x.shape[1:])}; got {reason}"
                ) from error
            last = features()
        if last is not None:
            last = last[: len(x)].float().cpu()
            wrong = ~last.isfinite().all(1)
            if wrong.any():
                sample = first + int(wrong.nonzero()[0])
                raise ValueError(f"{op}: features must be finite; got others for sample {sample}")
        confidence, predicted = logits.softmax(1).max(1)
        energy = -logits.logsumexp(1)
        wrong = ~(confidence.isfinite() & energy.isfinite())
        if wrong.any():
            sample = first + int(wrong.nonzero()[0])
            raise ValueError(f"{op}: logits must be finite; got others for sample {sample}")
        yield Rows(predicted, confidence, energy, logits.shape[1], last)
        first += len(x)


def fingerprint(model: Model | Target) -> str:
    """SHA-256 in hex of a model's weights and of the normalisation in front of it."""
    if not isinstance(model, Target):
        return of_weights(model)
    parts = [None if part is None else part.tolist() for part in (model._mean, model._std)]
    if parts == [None, None]:
        return of_weights(model.model)
    return hashlib.sha256(f"{of_weights(model.model)} {parts}".encode()).hexdigest()


def _inputs(op: str, data: Inputs | Source, batch_size: int, target: Target) -> Iterator[Tensor]:
    if not isinstance(data, Source):
        yield from inputs(op, data, batch_size, target)
        return
    for first in range(0, len(data), batch_size):
        x = data.load(range(first, min(first + batch_size, len(data))))[0]
        yield x if target.device is None else x.to(target.device)


@contextmanager
def _fixed(target: Target, size: int) -> Iterator[None]:
    before = target.fixed_batch
    target.fixed_batch = size
    try:
        yield
    finally:
        target.fixed_batch = before


@contextmanager
def _captured(op: str, target: Target, layer: str | None) -> Iterator[Callable[[], Tensor | None]]:
    """A block in which the yielded function gives the features of the last forward pass."""
    if layer is None:
        with capture_penultimate(target) as last:
            yield lambda: last.features
    elif isinstance(target.model, nn.Module):
        with LayerFeatures(target.model, layer, name=op) as layers:
            yield lambda: layers[layer]
    else:
        got = type(target.model).__name__
        raise ValueError(f"{op}: model must be an nn.Module where features are of a named layer; got {got}")


def _chunks(op: str, batches: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples, ``size`` at a time."""
    held: Tensor | None = None
    for x in batches:
        if held is not None and x.shape[1:] != held.shape[1:]:
            shapes = f"{list(held.shape[1:])} and {list(x.shape[1:])}"
            raise ValueError(f"{op}: data must have samples of one shape; got {shapes}")
        held = x if held is None else torch.cat([held, x])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held is not None and len(held):
        yield held
