"""A progress bar on stderr for whoever wants to see one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int, int | None], None]


@contextmanager
def bar(wanted: bool | Tick, title: str, total: int | None) -> Iterator[Tick | None]:
    """A function to call with what is done and the total: the caller's own, a bar's (needs rich), or None."""
    if not isinstance(wanted, bool):
        yield wanted
        return
    if not wanted:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining()
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total)

        def tick(done: int, known: int | None) -> None:
            shown.update(task, completed=done, total=known)

        yield tick
