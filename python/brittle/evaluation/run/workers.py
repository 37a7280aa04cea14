"""The processes that share an evaluation: as many as torchrun has started, or this one alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

# A worker may be done long before the others are.
_PATIENCE = timedelta(days=30)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Workers:
    """This process among those that share the run.

    Attributes:
        rank: this one, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that begins the run and writes the report."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(found, value)
        return found

    def from_leader(self, value: Callable[[], T]) -> T:
        """What the leader's call gives, for all of them."""
        if self.count == 1:
            return value()
        found: list[T | None] = [value() if self.leads else None]
        dist.broadcast_object_list(found, src=0)
        result: T = found[0]  # type: ignore[assignment]
        return result


@contextmanager
def workers() -> Iterator[Workers]:
    """Join the process group, which is made where ``torchrun`` asks for one and the caller has none."""
    if dist.is_available() and dist.is_initialized():
        yield Workers(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Only names and barriers pass between the workers, so gloo does on a GPU machine, too.
        with _ending_with_launcher():
            dist.init_process_group("gloo", timeout=_PATIENCE)
            try:
                yield Workers(dist.get_rank(), dist.get_world_size())
            finally:
                dist.destroy_process_group()
    else:
        yield Workers()


@contextmanager
def _ending_with_launcher() -> Iterator[None]:
    """A launcher that is killed would leave its workers waiting for each other."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_PDEATHSIG, 0)
