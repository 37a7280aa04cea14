"""What a report is made of: sections of panels, tables and tiles, ready for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Numbers in words: the first cell of a row is its name.

    Attributes:
        columns: the head of each column.
        rows: as many cells each.
        caption: what the numbers are.
        words: the columns, beside the first, that hold words and not numbers.
        marked: the rows that need attention, by place.
        shown: how many rows are seen at once; the others unfold.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    shown: int | None = None


@dataclass(frozen=True)
class Panel:
    """A figure, and its numbers a click away."""

    title: str
    figure: Markup
    numbers: Table
    note: str = ""


@dataclass(frozen=True)
class Panels:
    """Figures side by side, two in a row or three small ones; a table fills what the last row leaves free.

    Those in ``more`` unfold.
    """

    kind: ClassVar[str] = "panels"
    panels: Sequence[Panel]
    title: str = ""
    small: bool = False
    table: Table | None = None
    more: Sequence[Panel] = ()

    @property
    def span(self) -> int:
        """How many columns the table takes: what is left of the last row, or all."""
        columns = 3 if self.small else 2
        free = columns - len(self.panels) % columns
        narrow = self.table is None or len(self.table.columns) <= 4 * free
        return free if narrow and not self.more else columns


@dataclass(frozen=True)
class Answer:
    """What the model said: a class, whether it is the right one, and how sure it was."""

    label: str
    right: bool
    confidence: float | None


@dataclass(frozen=True)
class Shot:
    """One picture of a tile; None where the sample is no picture."""

    name: str
    source: str | None
    pixelated: bool = False
    answer: Answer | None = None
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """One sample, or a pair of them: pictures with what there is to say."""

    title: str
    notes: Sequence[str]
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Tiles:
    """Tiles in a grid."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]
    numbers: Table
    title: str = ""
    note: str = ""
    wide: bool = False


def tiles_or_table(tiles: Tiles) -> Part:
    """The tiles; where none of them has a picture, the table that says the same."""
    if any(shot.source for tile in tiles.tiles for shot in tile.shots):
        return tiles
    return replace(tiles.numbers, caption=tiles.title or tiles.numbers.caption, shown=12)


@dataclass(frozen=True)
class Notice:
    """A judgement in sentences: all is well, or there are signs to look into."""

    kind: ClassVar[str] = "notice"
    title: str
    good: bool
    sentences: Sequence[str]
    numbers: Table


@dataclass(frozen=True)
class Row:
    """Parts side by side, two in a row."""

    kind: ClassVar[str] = "row"
    parts: Sequence[Part]


class Part(Protocol):
    """A table, panels, tiles, a notice or a row of them: ``kind`` names the macro that shows it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Section:
    """One view of the model."""

    id: str
    title: str
    lead: str
    parts: Sequence[Part] = field(default=())


@dataclass(frozen=True)
class Card:
    """A number that a reader should take away."""

    value: str
    name: str
    note: str = ""
