"""What is written on the command line, as values: lists, numbers, fractions, names."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

_DIGITS = 6  # of pixels along an edge
NORMS = ("linf", "l2", "l1")


def words(texts: Sequence[str]) -> list[str]:
    """Names that are repeated, separated by commas, or both."""
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


def numbers(command: str, option: str, text: str) -> list[float]:
    """Numbers and fractions such as ``8/255``, separated by commas."""
    values = []
    for word in words([text]):
        top, slash, bottom = word.partition("/")
        try:
            value = float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{command}: {option} must be numbers or fractions such as 8/255; got {word!r}")
        values.append(value)
    return values


def pair(command: str, option: str, text: str) -> tuple[float, float]:
    """Two numbers."""
    values = numbers(command, option, text)
    if len(values) != 2:
        raise ValueError(f"{command}: {option} must be two numbers; got {text!r}")
    return values[0], values[1]


def height_and_width(command: str, text: str | None) -> tuple[int, int] | None:
    """Of images: ``224,224``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and len(part) <= _DIGITS and int(part) for part in parts):
        raise ValueError(f"{command}: --size must be H,W in pixels, such as 224,224; got {text!r}")
    return int(parts[0]), int(parts[1])


def by_norm(
    command: str, option: str, texts: Sequence[str] | None, norms: Sequence[str]
) -> dict[str, list[float]] | None:
    """Numbers for each norm: ``8/255,16/255`` for Linf, ``l2:0.5,1`` for L2.

    What has no norm before it is for Linf; for the only norm where that is another.
    """
    found: dict[str, list[float]] = {}
    for text in texts or ():
        norm, colon, values = text.rpartition(":")
        if not colon:
            norm = norms[0] if len(norms) == 1 else "linf"
        if norm.strip() not in NORMS:
            raise ValueError(f"{command}: {option} must be for one of {', '.join(NORMS)}; got {text!r}")
        found.setdefault(norm.strip(), []).extend(numbers(command, option, values))
    return found or None


def require_utf8(command: str, option: str, text: str) -> None:
    """Raise ValueError for a path or name that no report could hold."""
    if text != text.encode(errors="replace").decode():
        raise ValueError(f"{command}: {option} must be in UTF-8; got {text!r}")


def named_data(command: str, texts: Sequence[str]) -> dict[str, str]:
    """Data sets by name, from ``NAME=PATH`` or ``PATH``, whose last part is the name then."""
    found: dict[str, str] = {}
    for text in texts:
        require_utf8(command, "--data", text)
        name, equals, place = text.partition("=")
        # What is too long to exist is no error here; os.path answers where pathlib raises.
        if not equals or os.path.exists(text):
            path = Path(text)
            name, place = (path.resolve().name if os.path.isdir(text) else path.stem), text
        if not name or not place:
            raise ValueError(f"{command}: --data must be NAME=PATH or PATH; got {text!r}")
        if name in found:
            raise ValueError(f"{command}: --data must have another NAME= for each set; got {name!r} twice")
        found[name] = place
    return found


def named_groups(
    command: str, texts: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[str, str | None]]:
    """CSV file and column of each set, from ``[NAME=]CSV[:COLUMN]``; without a name it is the first set's."""
    found: dict[str, tuple[str, str | None]] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or name not in names:
            name, place = names[0], text
        file, colon, column = place.rpartition(":")
        csv, wanted = (file, column) if colon and not Path(place).exists() else (place, None)
        if name in found:
            raise ValueError(f"{command}: --groups must be one CSV file for each set; got two for {name!r}")
        found[name] = csv, wanted
    return found
