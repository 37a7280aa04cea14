"""What attacks and evaluations read from: a pair of tensors or arrays, a data set or any loader, batch by
batch where the model is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from brittle import _checks as check
from brittle.sources.arrays import Items, Tensors
from brittle.sources.base import Source
from brittle.target import Target


class Samples(Protocol):
    """A map-style data set of pairs of a tensor and a label, as torchvision's are, or a list of them."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitem__(self, row: int, /) -> Any:
        """A sample and its label."""


Data = Iterable[Sequence[Tensor]] | tuple[Tensor, Tensor]


def batches(
    op: str, data: Data | Samples, batch_size: int, target: Target
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(x, y, sample ids) on the model's device, fit for autograd."""
    first = 0
    for batch in _in_batches(op, data, batch_size):
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise ValueError(
                f"{op}: data must yield (x, y) or (x, y, sample_ids); got {type(batch).__name__}"
            )
        x, y = batch[0], batch[1]
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            got = ", ".join(type(part).__name__ for part in batch)
            raise ValueError(f"{op}: data must yield batches of tensors (x, y); got ({got})")
        ids = batch[2] if len(batch) == 3 else torch.arange(first, first + len(x))
        first += len(x)
        device = target.device if target.device is not None else x.device
        # Never the caller's own memory, which a model may write to; and autograd refuses to save tensors that
        # were made in inference mode.
        x, y, ids = (part.detach().to(device, copy=True) for part in (x, y, ids))
        yield x, y, check.check_sample_ids(op, ids, x)


def known_length(data: Data | Samples) -> int | None:
    """The number of samples, where that can be known before the data are read."""
    if isinstance(data, tuple):
        return len(data[0]) if len(data) == 2 and hasattr(data[0], "__len__") else None
    return len(cast(Samples, data)) if _holds_samples(data) else None


def _in_batches(op: str, data: Data | Samples, batch_size: int) -> Iterator[Sequence[Tensor]]:
    if isinstance(data, tuple):
        if len(data) != 2 or not all(isinstance(part, (Tensor, np.ndarray)) for part in data):
            got = ", ".join(type(part).__name__ for part in data)
            raise ValueError(
                f"{op}: data must be a pair (x, y) of tensors or arrays, or batches; got ({got})"
            )
        x, y = cast(tuple[Any, Any], data)
        if len(x) != len(y):
            raise ValueError(f"{op}: x and y must have one length; got {len(x)} and {len(y)}")
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            for i in range(0, len(x), batch_size):
                yield x[i : i + batch_size], y[i : i + batch_size]
            return
        source: Source = Tensors(op, x, y)
    elif isinstance(data, Source):
        source = data
    elif _holds_samples(data):
        source = Items(op, cast(Samples, data))
    elif isinstance(data, Iterable):
        yield from data
        return
    else:
        raise ValueError(
            f"{op}: data must be a pair (x, y), a data set of such pairs, or batches; got "
            f"{type(data).__name__}"
        )
    for i in range(0, len(source), batch_size):
        yield source.load(range(i, min(i + batch_size, len(source))))


def _holds_samples(data: Any) -> bool:
    """Whether these are samples one by one, and not batches: what tells is the label of the first."""
    if isinstance(data, Source):
        return True
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or len(data) == 0:
        return False
    first = data[0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        return False
    label = first[1]
    return isinstance(label, (int, np.integer)) or getattr(label, "ndim", None) == 0
