"""Data sets that are arrays already: a pair of them, or a map-style torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brittle.sources.base import Source, as_float, refuse_nonfinite


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
        if x.ndim < 1 or len(x) == 0:
            raise ValueError(f"{op}: x must be [N, ...] with N > 0; got shape {list(x.shape)}")
        self._x = x
        as_float(op, self._rows([0]))
        y = y.detach().cpu() if isinstance(y, Tensor) else torch.from_numpy(_plain(y))
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(f"{op}: y must be integers; got {y.dtype}")
        if y.shape != (len(x),):
            raise ValueError(f"{op}: y must be [N] with N = {len(x)}; got shape {list(y.shape)}")
        self._y = y.to(torch.int64)
        self.classes = None if classes is None else tuple(map(str, classes))
        self.groups = None if groups is None else tuple(map(str, groups))
        _check_names(op, self)

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
        return _images(torch.from_numpy(_plain(self._x[list(rows)])))


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
        self.classes = None if classes is None else tuple(map(str, classes))
        self.groups = None if groups is None else tuple(map(str, groups))
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
        _check_names(op, self)

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
        label = item[1].item() if isinstance(item[1], (Tensor, np.generic)) else item[1]
        if not isinstance(label, int):
            raise ValueError(f"{self._op}: labels must be integers; got {label!r} for #{row}")
        return as_float(self._op, item[0]), int(label)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """What torch can take: writable, in the processor's byte order."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"open_source: x and y must be numbers; got {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="))
    return array.astype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array


def _images(x: Tensor) -> Tensor:
    """8-bit images ``[N, H, W]`` or ``[N, H, W, C]`` as ``[N, C, H, W]``; anything else as it is."""
    if x.dtype != torch.uint8:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    channels_last = x.dim() == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3)
    return x.permute(0, 3, 1, 2) if channels_last else x


def _check_names(op: str, source: Source) -> None:
    if source.groups is not None and len(source.groups) != len(source):
        raise ValueError(
            f"{op}: groups must have one entry a sample, {len(source)}; got {len(source.groups)}"
        )
