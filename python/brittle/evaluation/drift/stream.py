"""The answers and features that drift is measured on, sample after sample in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brittle.evaluation.penultimate import capture_penultimate
from brittle.similarity.features import Inputs, LayerFeatures, inputs
from brittle.target import Model, Target


class Rows(NamedTuple):
    """What a model makes of some samples that follow one another, on the CPU."""

    predicted: Tensor  # int64 [N]
    confidence: Tensor  # float64 [N]
    energy: Tensor  # float64 [N], -log sum exp of the logits
    classes: int
    features: Tensor | None  # float32 [N, D]


def rows(
    op: str, model: Model | Target, data: Inputs, layer: str | None, batch_size: int, fixed_batch: int
) -> Iterator[Rows]:
    """Up to ``fixed_batch`` samples at a time, in the order of the data.

    The model always runs on ``fixed_batch`` samples, the last of them repeated where there are fewer: how
    the data is cut into batches changes no bit of the answers.

    Args:
        op: the operator to name in error messages.
        model: as :meth:`brittle.evaluation.drift.Reference.of` takes it.
        data: as there.
        layer: whose output the features are; None for the input of the last linear layer.
        batch_size: for tensors.
        fixed_batch: how many samples the model runs on.

    Raises:
        ValueError: no samples; NaN logits or features that are not finite; a batch that does not fit.
    """
    target = Target.of(model, op)
    first = 0
    for chunk in _chunks(op, inputs(op, data, batch_size, target), fixed_batch):
        count = len(chunk)
        x = torch.cat([chunk, chunk[-1:].expand(fixed_batch - count, *chunk.shape[1:])])
        with target, _captured(op, target, layer) as features:
            ids = torch.arange(first, first + fixed_batch).clamp(max=first + count - 1)
            logits = target.logits(x, ids)[:count].cpu().double()
            last = features()
        if last is not None:
            last = last[:count].float().cpu()
            wrong = ~last.isfinite().all(1)
            if wrong.any():
                sample = first + int(wrong.nonzero()[0])
                raise ValueError(f"{op}: features must be finite; got others for sample {sample}")
        confidence, predicted = logits.softmax(1).max(1)
        yield Rows(predicted, confidence, -logits.logsumexp(1), logits.shape[1], last)
        first += count


def fingerprint(model: Model | Target) -> str:
    """SHA-256 in hex of a model's parameters and buffers (names, types, shapes, bytes) and normalisation."""
    module = model.model if isinstance(model, Target) else model
    digest = hashlib.sha256()
    if isinstance(module, nn.Module):
        for name, tensor in sorted(module.state_dict().items()):
            if not isinstance(tensor, Tensor):
                continue
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(model, Target):
        for part in (model._mean, model._std):
            digest.update(str(None if part is None else part.tolist()).encode())
    return digest.hexdigest()


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
