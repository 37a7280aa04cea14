"""Progress on stderr: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from brittle.cli.exits import rank

Progress = Callable[[str, int, int], None]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """What to call with a stage, how much of it is done, and its total; the first process alone shows it."""
    if rank():
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _Lines()


class _Lines:
    """A line at the end of every stage, and every few seconds in between."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        typer.echo(_line(now - self._begun, stage, done, total), err=True)


def _line(seconds: float, stage: str, done: int, total: int) -> str:
    return f"{seconds:6.0f} s  {stage}: {done}/{total}"


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}
        begun: dict[str, float] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in begun:
                begun[stage] = time.monotonic()
                tasks[stage] = bars.add_task(escape(stage), total=total)
            if stage in tasks:
                bars.update(tasks[stage], completed=done, total=total)
            # What is finished becomes a line above: more bars than a terminal has lines hide the last ones.
            if stage in tasks and done >= total:
                bars.remove_task(tasks.pop(stage))
                bars.console.print(_line(time.monotonic() - begun[stage], stage, done, total), markup=False)

        yield advance
