"""Reading what other people made, and writing so that nothing is left by halves.

Whatever a user or a run's folder names may be a pipe that nobody writes to, a device without an end, a link
that leads out of the folder, or JSON of another kind than it says. Everything that brittle reads goes through
here, so that each of these is an error that says what was found, before anything of it is read. Names and
titles that UTF-8 cannot hold are cleaned here where they come in.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast

_Shape = TypeVar("_Shape")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
)


def require_regular(path: str | Path, *, follow: bool = True) -> None:
    """Raise OSError, whose ``strerror`` is a phrase for users, unless ``path`` is a regular file.

    For libraries that open a path themselves; it is not opened here, so nothing can hang.

    Args:
        path: of the file.
        follow: take a symbolic link for what it points to. Off, a link is refused: in a folder that came from
            somebody else it may lead anywhere.
    """
    _refuse_other_kinds(os.stat(path, follow_symlinks=follow), path)


def open_regular(path: str | Path, *, follow: bool = True) -> IO[bytes]:
    """A regular file, opened for reading in binary; OSError as of :func:`require_regular` otherwise."""
    require_regular(path, follow=follow)
    # It may have been exchanged since: opened without waiting, and asked again.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        _refuse_other_kinds(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, *, follow: bool = True) -> bytes:
    """All of a regular file; OSError for anything else."""
    with open_regular(path, follow=follow) as file:
        return file.read()


def parse_json(text: str | bytes, shape: type[_Shape]) -> _Shape:
    """JSON of the kind that it should be.

    Args:
        text: JSON in UTF-8, by the standard: no NaN, no infinity.
        shape: what it must hold, most often a ``typing_extensions.TypedDict``. Numbers are not taken from
            text, nor text from numbers; keys that the shape does not name are let through.

    Returns:
        What the text holds; half characters, which escapes may stand for, are question marks.

    Raises:
        ValueError: what is wrong and where, as a phrase for the end of a sentence.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        # An escape may stand for half a character, which no page, database or terminal takes.
        if b"\\ud" in (text.lower() if isinstance(text, bytes) else text.lower().encode(errors="replace")):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON that can be read ({_line(error)})") from None
    return check_shape(value, shape)


def check_shape(value: Any, shape: type[_Shape]) -> _Shape:
    """``value`` itself, if it is of that shape, as :func:`parse_json` says; a NaN counts as a number here."""
    import pydantic

    try:
        _validator(cast(Any, shape)).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(
            f"{place} is not as expected: {first['msg']}; got {_short(first['input'])}"
        ) from None
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply ({_line(error)})") from None
    found: _Shape = value
    return found


@lru_cache
def _validator(shape: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(shape)


def clean_text(text: str) -> str:
    """The text with U+FFFD for whatever UTF-8 cannot hold, so that any file or database takes it.

    A file's name that is no UTF-8 comes from the system with a lone surrogate for each byte.
    """
    return _LONE_SURROGATE.sub("\ufffd", text)


def clean_names(names: Iterable[object]) -> tuple[str, ...]:
    """Names as :func:`clean_text` gives them; names that were different stay different, by a number."""
    texts = [str(name) for name in names]
    cleaned = {text: clean_text(text) for text in texts}
    taken = {text for text, clean in cleaned.items() if text == clean}
    uses: Counter[str] = Counter()
    for text, clean in cleaned.items():
        if text == clean:
            continue
        candidate = clean
        while candidate in taken:
            uses[clean] += 1
            candidate = f"{clean} ({uses[clean] + 1})"
        taken.add(candidate)
        cleaned[text] = candidate
    return tuple(cleaned[text] for text in texts)


#: What a page of brittle's begins with, and with it everything that may be replaced by another.
PAGE = b'<meta name="generator" content="brittle">'
_HEAD = 1 << 16


def refuse_foreign(op: str, path: Path, mark: bytes) -> None:
    """Raise ValueError if ``path`` is there already and is not brittle's, so that writing would destroy it.

    Args:
        op: the operator to name.
        path: of the file that is to be written.
        mark: bytes near the beginning of every file of its kind that brittle writes.
    """
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            ours = mark in file.read(_HEAD)
    except OSError as error:
        raise ValueError(f"{op}: {path} must be a file that can be replaced; {error.strerror}") from None
    if not ours:
        raise ValueError(f"{op}: {path} is there already and was not written by brittle; name another place")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there as a whole, on disk, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_other_kinds(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
    raise OSError(errno.EINVAL, f"must be a regular file; it is {kind}", str(path))


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text}, which is too large")
    return number


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
