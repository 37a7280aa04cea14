"""From what a user names to a data set."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from brittle import _files
from brittle.sources.arrays import Items, Tensors, check_groups
from brittle.sources.base import Source
from brittle.sources.digits import digits
from brittle.sources.folder import ImageFolder
from brittle.sources.npz import Archive

_NO_GROUP = "unknown"
_LONGEST_LINE = 1 << 20  # characters of a CSV file


def open_source(
    text: str,
    *,
    groups: Path | None = None,
    group_column: str | None = None,
    size: tuple[int, int] | None = None,
) -> Source:
    """A data set by name or place.

    Args:
        text: ``"digits"``, scikit-learn's 500 test digits as :func:`digits` splits them; an ``.npz`` file
            with the arrays ``x`` (8-bit images, ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``, or
            floating-point ``[N, ...]`` as they are) and ``y`` (integers ``[N]``), if wanted ``classes`` and
            ``groups`` (names); or a folder with one folder of images for each class. An archive is compared
            with its checksums when it is opened, except for an ``x`` that is stored without compression:
            that is left on the disk and compared by :meth:`Source.digest`, with which an evaluation begins.
        groups: a CSV file with a header, whose first column is a sample's name or row number. Every sample
            must be in it; an empty segment becomes ``"unknown"``.
        group_column: the column of ``groups`` with the segments; by default the second.
        size: height and width to resize the images of a folder to.

    Raises:
        ValueError: the data cannot be opened or are damaged, images differ in size, a class folder is empty,
            or a sample has no segment. A corrupt image is no reason: :meth:`Source.load` raises
            :class:`BadSample`.

    Example:
        >>> from brittle.sources import open_source
        >>> source = open_source("digits")
        >>> x, y = source.load([0, 1, 2])
        >>> len(source), list(x.shape), y.dtype
        (500, [3, 1, 8, 8], torch.int64)
    """
    op = "open_source"
    path = Path(text)
    source: Source
    folder = os.path.isdir(path)
    if size is not None and not folder:
        raise ValueError(f"{op}: size is for folders of images; got {text}")
    if text == "digits":
        test = digits()[1]
        source = Tensors(op, test.x, test.y, [str(digit) for digit in range(10)])
    elif folder:
        source = ImageFolder(op, path, size)
    elif not os.path.exists(path):  # also where a name is too long for a file
        raise ValueError(f"{op}: data must be 'digits', an .npz file or a folder; {text} does not exist")
    elif path.suffix == ".npz":
        source = Archive(op, path)
    else:
        raise ValueError(f"{op}: data must be 'digits', an .npz file or a folder; got the file {text}")
    if groups is not None:
        source.groups = _groups(op, groups, group_column, source)
    return source


def as_source(
    data: Any, *, classes: Sequence[str] | None = None, groups: Sequence[str] | None = None
) -> Source:
    """Whatever Python code has at hand, as a data set.

    Args:
        data: a :class:`Source`; a pair ``(x, y)`` of tensors or arrays; or a map-style torch data set whose
            items are ``(x, y)``, the same at every read.
        classes: names of the classes, by label; for a ``Source`` they replace its own.
        groups: the segment of every sample; for a ``Source`` they replace its own.

    Raises:
        ValueError: ``data`` is none of these, or its parts do not fit together.

    Example:
        >>> import torch
        >>> from brittle.sources import as_source
        >>> source = as_source((torch.rand(3, 4), torch.tensor([0, 1, 1])), groups=["a", "b", "b"])
        >>> source.labels(), source.groups, source.name_of(2)
        (tensor([0, 1, 1]), ('a', 'b', 'b'), '#2')
    """
    op = "as_source"
    if isinstance(data, (tuple, list)):
        if len(data) != 2 or not all(hasattr(part, "ndim") for part in data):
            raise ValueError(f"{op}: data must be a pair (x, y) of tensors or arrays")
        return Tensors(op, data[0], data[1], classes, groups)
    if not isinstance(data, Source):
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise ValueError(
                f"{op}: data must be a Source, a pair (x, y) or a map-style data set; "
                f"got {type(data).__name__}"
            )
        return Items(op, data, classes, groups)
    for attribute, given in (("classes", classes), ("groups", groups)):
        names = getattr(data, attribute) if given is None else given
        # Whoever wrote the source need not have thought of names that no file can hold.
        cleaned = None if names is None else _files.clean_names(names)
        if attribute == "groups" and cleaned is not None:
            check_groups(op, len(cleaned), len(data))
        if cleaned != names:
            setattr(data, attribute, cleaned)
    return data


def _groups(op: str, path: Path, column: str | None, source: Source) -> tuple[str, ...]:
    """The segment of every row, from a CSV file, of which no more is kept than the set has samples."""
    names = [source.name_of(row).removeprefix("#") for row in range(len(source))]
    wanted = {*names, *map(str, range(len(names)))}
    segments: dict[str, str] = {}
    try:
        with io.TextIOWrapper(_files.open_regular(path), "utf-8-sig", newline="") as file:
            lines = (line for line in csv.reader(_lines(file)) if line)
            header = next(lines, [])
            if len(header) < 2:
                raise ValueError(f"{op}: {path} must have a header and two columns, sample and segment")
            if column is not None and column not in header[1:]:
                offered = ", ".join(map(repr, header[1:]))
                raise ValueError(f"{op}: the column of {path} must be one of {offered}; got {column!r}")
            place = 1 if column is None else header.index(column, 1)
            for line in lines:
                key, segment = line[0].removeprefix("#"), line[place].strip() if place < len(line) else ""
                if key in wanted and segments.setdefault(key, segment) != segment:
                    raise ValueError(f"{op}: {path} must have one segment a sample; got two for {line[0]!r}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{op}: groups must be a CSV file in UTF-8; {path}: {reason}") from None
    found = []
    for row, name in enumerate(names):
        segment_of = segments.get(name, segments.get(str(row)))
        if segment_of is None:
            raise ValueError(
                f"{op}: {path} must name every sample; {source.name_of(row)!r} (row {row}) is missing"
            )
        found.append(segment_of or _NO_GROUP)
    return tuple(found)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """A text's lines; one without an end is no table."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line has more than {_LONGEST_LINE:,} characters")
        yield line
