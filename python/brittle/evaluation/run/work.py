"""The work of an evaluation: a stage, a worker's share of it, and how its rows are committed.

What a stage writes about a sample depends on the sample, its id and the run's settings alone. So it does not
matter which worker does it, in which batch, or whether it was done before or after an interruption.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.evaluation.run.store import Row, RunStore, RunStoreError
from brittle.evaluation.scores import Answers
from brittle.losses import attack_loss
from brittle.sources import BadSample, Source
from brittle.target import Loss, Target

Tick = Callable[[int], None]

_FLUSH_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """A worker's share of one stage on one data set.

    Attributes:
        store: where rows go.
        target: entered, with a fixed batch.
        source: the data set.
        data_set: its name.
        ids: the samples still to be done.
        batch_size: samples to read, and slots of an attack.
        skip_bad: record samples that cannot be read instead of giving up.
        tick: called with the number of samples finished.
    """

    store: RunStore
    target: Target
    source: Source
    data_set: str
    ids: Sequence[int]
    batch_size: int
    skip_bad: bool
    tick: Tick

    def batches(self, size: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """x in the model's dtype, y and ids, on its device, ``size`` samples at a time."""
        size = self.batch_size if size is None else size
        device = self.target.device or torch.device("cpu")
        for first in range(0, len(self.ids), size):
            rows = list(self.ids[first : first + size])
            while rows:
                try:
                    x, y = self.source.load(rows)
                except BadSample as bad:
                    if not self.skip_bad:
                        raise unreadable(bad, self.data_set) from None
                    self.store.skip(self.data_set, bad.row, bad.name, bad.reason)
                    rows.remove(bad.row)
                    self.tick(1)
                    continue
                yield x.to(device, self.target.dtype), y.to(device), torch.tensor(rows, device=device)
                break


class Writer:
    """Gathers the rows of finished samples and commits them, some at a time.

    An interruption may come between any two of its lines: samples are added with all that belongs to them in
    one step, and let go before they are committed, so that they are never committed by halves or twice.

    Args:
        work: whose samples they are.
        stage: which marks them as done.
        attack: attack, norm and seed of the adversarial points, if there are any.
    """

    def __init__(self, work: Work, stage: str, attack: tuple[str, str, int] | None = None) -> None:
        self._work, self._stage, self._attack = work, stage, attack
        self.data_set = work.data_set
        self._finished: list[_Finished] = []
        self._last = time.monotonic()

    def add(
        self, ids: list[int], rows: Mapping[str, Iterable[Row]], points: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """These samples are finished: their rows, by table, and the adversarial points of some, by id."""
        if points is not None:
            points = points[0].cpu(), points[1].detach().cpu()
        self._finished.append(_Finished(ids, {table: list(part) for table, part in rows.items()}, points))
        many = sum(len(one.ids) for one in self._finished) >= self._work.batch_size
        if many or time.monotonic() - self._last > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what has been gathered."""
        finished, self._finished = self._finished, []
        if not finished:
            return
        store = self._work.store
        ids = [sample for one in finished for sample in one.ids]
        tables: dict[str, list[Row]] = {"points": self._save_points(finished)}
        for one in finished:
            for table, rows in one.rows.items():
                tables.setdefault(table, []).extend(rows)
        with store.writing():
            for table, rows in tables.items():
                store.insert(table, rows)
            store.mark(self._stage, self.data_set, ids)
        self._work.tick(len(ids))
        self._last = time.monotonic()

    def _save_points(self, finished: Sequence[_Finished]) -> list[Row]:
        found = [one.points for one in finished if one.points is not None and len(one.points[0])]
        if not found:
            return []
        assert self._attack is not None
        ids, points = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = ids.argsort()
        attack, norm, seed = self._attack
        # A file's name holds 255 bytes, a set's any number.
        stem = f"{self.data_set[:100]}-{attack}-{norm}-{seed}"
        file = self._work.store.save_points(stem, ids[order], points[order])
        return [
            (self.data_set, attack, norm, seed, sample, file, place)
            for place, sample in enumerate(ids[order].tolist())
        ]

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an interruption or a fault, too, what is finished is kept; but where writing has failed, there
        # is no use in trying again.
        if kind is None or not issubclass(kind, RunStoreError):
            self.flush()


class _Finished(NamedTuple):
    ids: list[int]
    rows: dict[str, list[Row]]
    points: tuple[Tensor, Tensor] | None


class Stage(ABC):
    """Something that is done to every sample of a data set."""

    name: str
    needs_gradients = False

    @abstractmethod
    def run(self, work: Work) -> None:
        """Do it to ``work.ids``."""


def answer_rows(
    data_set: str, kind: str, level: int, scale: float, seed: int, ids: Tensor, found: Answers
) -> list[Row]:
    """Rows of the table ``answers``."""
    columns = (part.tolist() for part in (ids, found.predicted, found.confidence, found.log_loss))
    return [(data_set, kind, level, scale, seed, *row) for row in zip(*columns, strict=True)]


def unreadable(bad: BadSample, data_set: str) -> ValueError:
    """The error of a sample that is not to be skipped."""
    return ValueError(
        f"evaluate: data must be readable; got {bad} in {data_set!r} (skip_bad=True or --skip-bad leaves "
        "such samples out and lists them)"
    )


def refuse_outside(x: Tensor, bounds: tuple[float, float], where: str) -> None:
    """Raise ValueError for samples that are not inside the bounds, as images that are normalised already."""
    try:
        check.check_images("evaluate", x, bounds)
    except ValueError as error:
        raise ValueError(
            f"{error} {where}; for images that are normalised already, hand over the plain ones with mean "
            "and std (--mean, --std), or say their bounds"
        ) from None


def away_from(y: Tensor) -> Loss:
    """The loss that an attack ascends to leave the labels."""
    return lambda logits: attack_loss("ce", logits, y)
