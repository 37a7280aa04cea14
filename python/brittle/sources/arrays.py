"""Data sets that are arrays already: a pair of them, or a map-style torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brittle._files import clean_names
from brittle.sources.base import Source, as_float, refuse_nonfinite

_INT64 = range(-(2**63), 2**63)


class Tensors(Source):
    """``x`` and ``y`` as they are in memory: floating-point, or uint8 that is divided by 255."""

    def __init__(
        self,
        op: str,
        x: Tensor | NDArray[Any],
        y: Tensor | NDArray[Any],
        classes: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self._op = op
        for name, part in (("x", x), ("y", y)):
            _check_kind(op, name, part)
        check_inputs(op, x.shape)
        self._x = x
        as_float(op, self._rows([0]))
        self._y = _labels(op, y, len(x))
        self.classes = None if classes is None else clean_names(classes)
        self.groups = None if groups is None else clean_names(groups)
        if self.groups is not None:
            check_groups(op, len(self.groups), len(self))

    def __len__(self) -> int:
        return len(self._x)

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See :meth:`Source.load`."""
        x = as_float(self._op, self._rows(rows))
        refuse_nonfinite(self, rows, x)
        return x, self._y[list(rows)]

    def labels(self) -> Tensor:
        """See :meth:`Source.labels`."""
        return self._y

    def _rows(self, rows: Sequence[int]) -> Tensor:
        if isinstance(self._x, Tensor):
            return self._x[torch.as_tensor(rows, device=self._x.device)].cpu()
        return _images(torch.from_numpy(_plain(self._op, self._x[list(rows)])))


class SupportsItems(Protocol):
    """A map-style data set: ``len(data)`` items ``(x, y)``."""

    def __len__(self) -> int:
        """The number of items."""

    def __getitem__(self, row: int, /) -> Any:
        """Item ``row``."""


class Items(Source):
    """A map-style torch data set of ``(x, y)``; the labels are collected by reading it through once."""

    def __init__(
        self,
        op: str,
        data: SupportsItems,
        classes: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self._op = op
        self._data = data
        self.classes = None if classes is None else clean_names(classes)
        self.groups = None if groups is None else clean_names(groups)
        if len(data) == 0:
            raise ValueError(f"{op}: data must have at least one sample; got an empty data set")
        once, again = self._item(0)[0], self._item(0)[0]
        if once.shape != again.shape or not torch.equal(once.nan_to_num(), again.nan_to_num()):
            raise ValueError(
                f"{op}: data must give the same sample at every read; got another x the second time "
                "(switch random transforms off)"
            )
        self._shape = once.shape
        self._y: Tensor | None = None
        if self.groups is not None:
            check_groups(op, len(self.groups), len(self))

    def __len__(self) -> int:
        return len(self._data)

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See :meth:`Source.load`."""
        items = [self._item(row) for row in rows]
        for row, (x, _) in zip(rows, items, strict=True):
            if x.shape != self._shape:
                raise ValueError(
                    f"{self._op}: samples must have one shape; got {list(self._shape)} (#0) "
                    f"and {list(x.shape)} (#{row})"
                )
        x = torch.stack([x for x, _ in items])
        refuse_nonfinite(self, rows, x)
        return x, torch.tensor([y for _, y in items])

    def labels(self) -> Tensor:
        """See :meth:`Source.labels`."""
        if self._y is None:
            self._y = torch.tensor([self._item(row)[1] for row in range(len(self))])
        return self._y

    def _item(self, row: int) -> tuple[Tensor, int]:
        item = self._data[row]
        parts = item if isinstance(item, (tuple, list)) else (item,)
        if len(parts) != 2 or not isinstance(parts[0], Tensor):
            got = ", ".join(type(part).__name__ for part in parts)
            raise ValueError(f"{self._op}: data must yield pairs of a tensor and a label; got {got}")
        x, label = parts
        _check_kind(self._op, "x", x)
        if x.numel() == 0:
            raise ValueError(
                f"{self._op}: x must have at least one value a sample; got shape {list(x.shape)} for #{row}"
            )
        if isinstance(label, np.ndarray) or (isinstance(label, Tensor) and label.numel() != 1):
            raise ValueError(
                f"{self._op}: labels must be integers, the numbers of the classes; got an array of shape "
                f"{list(label.shape)} for #{row}"
            )
        if isinstance(label, (Tensor, np.generic)):
            label = label.item()
        if not isinstance(label, int) or isinstance(label, bool):
            raise ValueError(f"{self._op}: labels must be integers; got {label!r} for #{row}")
        if label not in _INT64:
            raise ValueError(f"{self._op}: labels must be integers of 64 bits; got {label} for #{row}")
        return as_float(self._op, x), label


def _check_kind(op: str, name: str, array: Any) -> None:
    """What has a shape need not be an array that torch can take."""
    if not isinstance(array, (Tensor, np.ndarray)):
        raise ValueError(f"{op}: {name} must be a tensor or a NumPy array; got {type(array).__name__}")
    if isinstance(array, Tensor):
        if array.layout is not torch.strided or array.is_quantized or array.is_meta:
            kind = "a meta tensor" if array.is_meta else f"{array.dtype}, {array.layout}"
            raise ValueError(f"{op}: {name} must be a dense tensor with values; got {kind}")
    elif isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{op}: {name} must be an array without a mask; got a masked one")


def check_inputs(op: str, shape: Sequence[int]) -> None:
    """Raise ValueError unless there are samples, and values in them."""
    if len(shape) < 1 or shape[0] == 0:
        raise ValueError(f"{op}: x must be [N, ...] with N > 0; got shape {list(shape)}")
    if 0 in shape:
        raise ValueError(f"{op}: x must have at least one value a sample; got shape {list(shape)}")


def check_labels(op: str, shape: Sequence[int], count: int) -> None:
    """Raise ValueError unless there is one label a sample."""
    if tuple(shape) != (count,):
        hint = ""
        if len(shape) == 2:
            hint = (
                " (one-hot labels are y.argmax(1))" if shape[1] > 1 else " (labels in a column are y[:, 0])"
            )
        raise ValueError(f"{op}: y must be [N] with N = {count}; got shape {list(shape)}{hint}")


def check_groups(op: str, given: int, count: int) -> None:
    """Raise ValueError unless there is one segment a sample."""
    if given != count:
        raise ValueError(f"{op}: groups must have one entry a sample, {count}; got {given}")


def check_numbers(op: str, dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless torch has numbers of this kind."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{op}: x and y must be numbers of at most 64 bits; got {dtype}")


def _labels(op: str, y: Tensor | NDArray[Any], count: int) -> Tensor:
    """int64 ``[N]``, or an error that says what the labels are instead."""
    check_labels(op, y.shape, count)
    labels = y.detach().cpu() if isinstance(y, Tensor) else torch.from_numpy(_plain(op, y))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{op}: y must be integers; got {labels.dtype}")
    if labels.dtype == torch.uint64 and bool((labels.view(torch.int64) < 0).any()):
        raise ValueError(f"{op}: y must be integers of 64 bits with a sign; got {max(labels.tolist())}")
    return labels.to(torch.int64)


def _plain(op: str, array: NDArray[Any]) -> NDArray[Any]:
    """What torch can take: writable, in the processor's byte order."""
    check_numbers(op, array.dtype)
    return array.astype(array.dtype.newbyteorder("="))


def _images(x: Tensor) -> Tensor:
    """8-bit images ``[N, H, W]`` or ``[N, H, W, C]`` as ``[N, C, H, W]``; anything else as it is."""
    if x.dtype != torch.uint8:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    channels_last = x.dim() == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3)
    return x.permute(0, 3, 1, 2) if channels_last else x
