"""What a labelled data set is to an evaluation: rows with names, read a few at a time."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from brittle._files import clean_text

_BLOCK = 256  # samples hashed at a time


class BadSample(ValueError):  # noqa: N818
    """A sample that cannot be used; the others of its set are as good as before.

    Attributes:
        row: its place in the set.
        name: as :meth:`Source.name_of` gives it.
        reason: what is wrong with it.
    """

    def __init__(self, row: int, name: str, reason: str) -> None:
        name, reason = clean_text(name), clean_text(reason)
        super().__init__(row, name, reason)
        self.row = row
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source(ABC):
    """A labelled data set of N rows, read a few rows at a time.

    A row keeps its number whatever happens to the others, so it can stand for the sample in a store.

    Attributes:
        classes: names of the classes, by label; None where the data has none.
        groups: the segment of every row, for scores by segment; None where there are none.
    """

    classes: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abstractmethod
    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The samples at ``rows``, which are at least one.

        Args:
            rows: row numbers in ``[0, N)``, in any order.

        Returns:
            float32 ``[n, ...]`` and int64 labels ``[n]``, on the CPU. Images are in [0, 1]; floating-point
            data is as it was given.

        Raises:
            BadSample: a sample cannot be read; of several, the first in ``rows``.
        """

    @abstractmethod
    def labels(self) -> Tensor:
        """The labels of all rows, int64 ``[N]``."""

    def name_of(self, row: int) -> str:
        """What a reader finds the sample by: a path below the folder, or ``#17``."""
        return f"#{row}"

    def digest(self) -> str:
        """SHA-256 of all there is: labels, names, classes, groups and inputs, in hexadecimal.

        Read through once, in bounded memory.

        Raises:
            ValueError: an archive is damaged, as its checksum tells.
        """
        hasher = hashlib.sha256()
        for facts in (len(self), self.classes, self.groups, self.labels().tolist()):
            hasher.update(json.dumps(facts).encode() + b"\n")
        for row in range(len(self)):
            hasher.update(json.dumps(self.name_of(row)).encode() + b"\n")
        for chunk in self.contents():
            hasher.update(chunk)
        return hasher.hexdigest()

    def contents(self) -> Iterator[bytes]:
        """The inputs of all rows as bytes, in order, a bounded number at a time."""
        for first in range(0, len(self), _BLOCK):
            rows = range(first, min(first + _BLOCK, len(self)))
            try:
                yield _bytes(self.load(rows)[0])
            except BadSample:
                for row in rows:
                    try:
                        yield _bytes(self.load([row])[0])
                    except BadSample as bad:
                        yield f"bad {bad}".encode()


def _bytes(x: Tensor) -> bytes:
    return json.dumps(list(x.shape[1:])).encode() + x.contiguous().numpy().tobytes()


def as_float(op: str, x: Tensor) -> Tensor:
    """float32, with 8-bit values divided by 255."""
    if x.dtype == torch.uint8:
        return x.to(torch.float32) / 255
    if not x.is_floating_point():
        raise ValueError(f"{op}: x must be uint8 or floating-point; got {x.dtype}")
    return x.detach().to("cpu", torch.float32)


def refuse_nonfinite(source: Source, rows: Sequence[int], x: Tensor) -> None:
    """Raise BadSample for the first row with a value that is no number."""
    finite = x.reshape(len(x), -1).isfinite().all(1)
    if not finite.all():
        row = rows[int((~finite).nonzero()[0])]
        raise BadSample(row, source.name_of(row), "holds NaN or infinite values")
