"""What attacks and evaluations read from: a pair of tensors or any loader, batch by batch where the model
is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.target import Target

Data = Iterable[Sequence[Tensor]] | tuple[Tensor, Tensor]


def batches(op: str, data: Data, batch_size: int, target: Target) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(x, y, sample ids) on the model's device, fit for autograd."""
    first = 0
    for batch in _slices(op, data, batch_size) if isinstance(data, tuple) else data:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise ValueError(
                f"{op}: data must yield (x, y) or (x, y, sample_ids); got {type(batch).__name__}"
            )
        x, y = batch[0], batch[1]
        ids = batch[2] if len(batch) == 3 else torch.arange(first, first + len(x))
        first += len(x)
        device = target.device if target.device is not None else x.device
        # Never the caller's own memory, which a model may write to; and autograd refuses to save tensors that
        # were made in inference mode.
        x, y, ids = (part.detach().to(device, copy=True) for part in (x, y, ids))
        yield x, y, check.check_sample_ids(op, ids, x)


def _slices(op: str, pair: tuple[Tensor, Tensor], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = pair if len(pair) == 2 else (None, None)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(f"{op}: data must be a pair of tensors (x, y) or an iterable of batches")
    if len(x) != len(y):
        raise ValueError(f"{op}: x and y must have one length; got {len(x)} and {len(y)}")
    for i in range(0, len(x), batch_size):
        yield x[i : i + batch_size], y[i : i + batch_size]
