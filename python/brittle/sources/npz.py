"""Arrays of an .npz archive, left on the disk and never unpickled."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from brittle import _files
from brittle.sources.arrays import Tensors, check_groups, check_inputs, check_labels, check_numbers

_NAMES = ("classes", "groups")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENTRY = b"PK\1\2"  # begins each entry of an archive's directory
_CHUNK = 1 << 20  # bytes unpacked or summed at a time
_LONGEST_NAME = 4096  # bytes, 4 for a character
_MOST_NAMES = 1 << 28  # bytes of an array of names
_MOST_AXES, _LARGEST_AXIS = 32, 1 << 48
_MOST_MEMBERS = 10_000
_SHOWN = 10  # members of an archive that an error lists


class _Member(NamedTuple):
    """An array as archive and header describe it, which agree; its values are not read yet."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    header: int  # bytes before the values


class Archive(Tensors):
    """The arrays x and y of an .npz archive, with ``classes`` and ``groups`` where it has them.

    Nothing is unpickled, and x stays on the disk: it is mapped where the archive stores it as it is, and
    unpacked into a temporary file where it is compressed. No more is unpacked than the arrays' headers say.
    What is unpacked or read as a whole is compared with its checksum at once. A mapped x is compared by
    :meth:`digest`, which reads everything and with which every evaluation begins; :meth:`load` alone reads
    the rows that it is asked for, and a changed bit in them is not noticed.

    Args:
        op: the operator to name in error messages.
        path: of the archive.

    Raises:
        ValueError: it is no such archive, it is damaged, or there is no room to unpack it.
    """

    def __init__(self, op: str, path: Path) -> None:
        self._path = path
        self._mapped: zipfile.ZipInfo | None = None
        try:
            self._file = _files.open_regular(path)
        except OSError as error:
            raise ValueError(f"{op}: {path} cannot be read as an .npz archive: {error.strerror}") from None
        try:
            # Of the file that is mapped, whatever the path leads to later.
            self._opened = self._status()
            with _decoding(op, path, "must be an .npz archive"):
                archive = zipfile.ZipFile(self._file)
            members = _members(op, path, archive)
            x = self._inputs(op, archive, members["x"])
            y = _whole(op, path, archive, members["y"])
            names = {}
            for name in _NAMES:
                if name in members:
                    array = _whole(op, path, archive, members[name])
                    with _decoding(op, path, f"must hold {name} as text"):
                        names[name] = [_text(entry) for entry in array.tolist()]
            super().__init__(op, x, y, names.get("classes"), names.get("groups"))
        except BaseException:
            self._file.close()
            raise
        if self._mapped is None:
            self._file.close()
        else:
            weakref.finalize(self, self._file.close)

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See :meth:`Source.load`."""
        self._require_unchanged()
        return super().load(rows)

    def contents(self) -> Iterator[bytes]:
        """See :meth:`Source.contents`; a mapped x is compared with its checksum first."""
        if self._mapped is not None:
            self._require_unchanged()
            self._require_checksum(self._mapped)
        yield from super().contents()

    def _inputs(self, op: str, archive: zipfile.ZipFile, member: _Member) -> NDArray[Any]:
        """x on the disk."""
        path, info = self._path, member.info
        if info.compress_type == zipfile.ZIP_STORED:
            self._mapped = info
            with _decoding(op, path, "must be a whole .npz archive"):
                offset = self._start(info) + member.header
                return np.memmap(self._file, member.dtype, "r", offset, member.shape, member.order)
        try:
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if info.file_size > free:
                raise ValueError(
                    f"{op}: x of {path} must fit on the disk to be unpacked; it has "
                    f"{info.file_size:,} bytes, and {folder} has room for {free:,} "
                    "(TMPDIR names another folder)"
                )
            with tempfile.TemporaryFile() as file:
                for chunk in _unpacked(op, path, archive, info):
                    file.write(chunk)
                file.flush()
                return np.memmap(file, member.dtype, "r", member.header, member.shape, member.order)
        except OSError as error:
            raise ValueError(
                f"{op}: x of {path} must fit on the disk to be unpacked; {error.strerror or error} "
                "(TMPDIR names another folder)"
            ) from None

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin, behind a second header with a length of its own."""
        local = os.pread(self._file.fileno(), 30, info.header_offset)
        return info.header_offset + 30 + sum(int.from_bytes(local[k : k + 2], "little") for k in (26, 28))

    def _require_checksum(self, info: zipfile.ZipInfo) -> None:
        place, left, checksum = self._start(info), info.file_size, 0
        while left and (chunk := os.pread(self._file.fileno(), min(_CHUNK, left), place)):
            checksum = zlib.crc32(chunk, checksum)
            place, left = place + len(chunk), left - len(chunk)
        if left or checksum != info.CRC:
            raise ValueError(
                f"{self._op}: {self._path} must be an undamaged .npz archive; x does not match its checksum"
            )

    def _require_unchanged(self) -> None:
        """To read mapped bytes that are no longer there ends the process."""
        if self._mapped is not None and self._status() != self._opened:
            raise ValueError(
                f"{self._op}: {self._path} must not change while it is read; it has since it was opened"
            )

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _members(op: str, path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The arrays that are used, described, as far as they fit together."""
    if len(archive.infolist()) > _MOST_MEMBERS:
        raise ValueError(
            f"{op}: {path} must hold at most {_MOST_MEMBERS:,} arrays; got {len(archive.infolist()):,}"
        )
    found = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
    counts = Counter(name for name, _ in found)
    if not counts["x"] or not counts["y"]:
        shown = [" ".join(name.split())[:60] for name in sorted(counts)[:_SHOWN]]
        got = ", ".join(shown) + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")
        raise ValueError(f"{op}: {path} must hold the arrays x and y; got {got or 'none'}")
    # An array that damage hides would be missing without a word: behind another name, which is written twice,
    # or in what should be the comment of another.
    for _, info in found:
        if _ENTRY in info.comment or _ENTRY in info.extra:
            raise ValueError(f"{op}: {path} must be an .npz archive; its directory is damaged")
        try:
            archive.open(info).close()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{op}: {path} must be an .npz archive; {_line(error)}") from None
        except Exception:  # of a kind that is not read, which matters only if it is wanted
            continue
    wanted = {name: info for name, info in found if name in ("x", "y", *_NAMES)}
    for name in wanted:
        if counts[name] > 1:
            raise ValueError(f"{op}: {path} must hold {name} once; got it {counts[name]} times")
    members = {name: _member(op, path, archive, info) for name, info in wanted.items()}
    # Before anything is unpacked: what a header says is cheap to say.
    x, y = members["x"], members["y"]
    check_inputs(op, x.shape)
    check_labels(op, y.shape, x.shape[0])
    check_numbers(op, x.dtype)
    check_numbers(op, y.dtype)
    for name in _NAMES:
        if name in members:
            _check_names(op, path, name, members[name])
    if "groups" in members:
        check_groups(op, members["groups"].shape[0], x.shape[0])
    return members


def _check_names(op: str, path: Path, name: str, member: _Member) -> None:
    if len(member.shape) != 1:
        raise ValueError(f"{op}: {name} must be a list of names; got shape {list(member.shape)}")
    if member.dtype.kind not in "USbiuf":
        raise ValueError(f"{op}: {name} of {path} must be text or numbers; got {member.dtype}")
    if member.dtype.itemsize > _LONGEST_NAME or _size(member.shape, member.dtype) > _MOST_NAMES:
        raise ValueError(
            f"{op}: {name} of {path} must be names of at most {_LONGEST_NAME // 4:,} characters and "
            f"{_MOST_NAMES >> 20} MiB together; got {member.shape[0]:,} of {member.dtype.itemsize:,} bytes"
        )


def _member(op: str, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """An array's header, and that it is the archive's description of the array as well."""
    name = info.filename
    if info.flag_bits & 1:
        raise ValueError(f"{op}: {path} must not be encrypted")
    if info.compress_type not in _METHODS:
        raise ValueError(
            f"{op}: {name} of {path} must be compressed by deflate, as np.savez_compressed does, "
            f"or not at all; got method {info.compress_type} of ZIP"
        )
    with _decoding(op, path, "must be an .npz archive"), archive.open(info) as packed:
        shape, fortran, dtype = _read_header(op, path, packed)
        header = packed.tell()
    if dtype.hasobject:
        raise ValueError(
            f"{op}: {name} of {path} must hold numbers or text; got Python objects, which only unpickling "
            "reads, and that can run code"
        )
    if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n <= _LARGEST_AXIS for n in shape):
        raise ValueError(
            f"{op}: {path} must hold arrays as np.savez writes them; {name} has shape {_short(shape)}"
        )
    stored = info.compress_type == zipfile.ZIP_STORED
    sizes = {info.file_size, header + _size(shape, dtype)} | ({info.compress_size} if stored else set())
    if len(sizes) > 1:
        raise ValueError(
            f"{op}: {path} must be a whole .npz archive; {name} must have "
            f"{header + _size(shape, dtype):,} bytes for shape {_short(shape)} of {dtype}; "
            f"got {info.file_size:,}"
        )
    return _Member(info, shape, "F" if fortran else "C", dtype, header)


def _read_header(op: str, path: Path, packed: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with _decoding(op, path, "must hold arrays as np.savez writes them"):
        version = npy.read_magic(packed)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version[0]}.{version[1]} is for structured arrays")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(packed)
    return shape, fortran, dtype


def _unpacked(op: str, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member's bytes, as many as it should have, compared with their checksum."""
    left = info.file_size
    with _decoding(op, path, "must be a whole .npz archive"):
        packed = archive.open(info)
    with packed:
        while left:
            with _decoding(op, path, "must be a whole .npz archive"):
                chunk = packed.read(min(_CHUNK, left))
            if not chunk:
                raise ValueError(f"{op}: {path} must be a whole .npz archive; {info.filename} is cut off")
            left -= len(chunk)
            yield chunk


def _whole(op: str, path: Path, archive: zipfile.ZipFile, member: _Member) -> NDArray[Any]:
    """An array in memory."""
    content = b"".join(_unpacked(op, path, archive, member.info))
    with _decoding(op, path, "must hold arrays as np.savez writes them"):
        return np.ndarray(member.shape, member.dtype, content, member.header, order=member.order)


@contextmanager
def _decoding(op: str, path: Path, expected: str) -> Iterator[None]:
    """Whatever a decoder trips over, as one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{op}: "):
            raise
        if isinstance(error, (zipfile.BadZipFile, zlib.error)):
            expected = "must be an .npz archive"
        raise ValueError(f"{op}: {path} {expected}; {_line(error)}") from None


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


def _text(entry: Any) -> str:
    return entry.decode(errors="surrogateescape") if isinstance(entry, bytes) else str(entry)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _short(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) <= 60 else f"{text[:57]}..."
