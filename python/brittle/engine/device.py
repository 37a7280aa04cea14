"""What keeps a GPU busy: a turn captured in a graph, and flags that are read one turn late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from brittle.engine.rows import Rows
from brittle.target import Target


class LateFlags:
    """A turn's status on its way to the host, to be read when the device is already in the next turn."""

    def __init__(self, status: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        if not status.is_cuda:
            self._host = status.clone()
            return
        self._host = torch.empty(status.shape, dtype=status.dtype, pin_memory=True)
        self._host.copy_(status, non_blocking=True)
        self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._there.record()

    def read(self) -> Tensor:
        """The status, on the host, once the turn that wrote it is over."""
        if self._there is not None:
            self._there.synchronize()
        return self._host


class Graph:
    """A turn captured in a CUDA graph."""

    _WARM_UP = 3  # libraries choose and set up their kernels in the first calls, which must not be captured

    def __init__(self, step: Callable[[Rows], Tensor], rows: Rows, target: Target) -> None:
        self._target, self._count = target, len(rows)
        spent = target.forwards, target.backwards
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        spare = rows.take(torch.arange(len(rows), device=rows.ints.device))
        with torch.cuda.stream(side):
            for _ in range(self._WARM_UP):
                step(spare)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._status: Tensor = step(rows)
        target.forwards, target.backwards = spent

    def replay(self) -> Tensor:
        """Run the captured turn on the rows it was captured with."""
        self._graph.replay()
        self._target.forwards += self._count
        self._target.backwards += self._count
        return self._status
