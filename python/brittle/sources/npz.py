"""Arrays of an .npz archive, left on the disk and never unpickled."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from brittle.sources.arrays import Tensors


def open_npz(op: str, path: Path) -> Tensors:
    """The arrays x and y of an archive, with ``classes`` and ``groups`` where it has them.

    Nothing is unpickled, and x stays on the disk: it is mapped where the archive stores it as it is, and
    unpacked into a temporary file where it is compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            missing = [name for name in ("x", "y") if name not in members]
            if missing:
                got = ", ".join(sorted(members)) or "none"
                raise ValueError(f"{op}: {path} must hold the arrays x and y; got {got}")
            arrays = {
                name: _mapped(op, path, archive, members[name])
                for name in ("x", "y", "classes", "groups")
                if name in members
            }
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{op}: {path} must be an .npz archive; {error}") from None
    named = {name: np.asarray(arrays[name]) for name in ("classes", "groups") if name in arrays}
    for name, array in named.items():
        if array.ndim != 1:
            raise ValueError(f"{op}: {name} must be a list of names; got shape {list(array.shape)}")
    texts = {name: [_text(entry) for entry in array.tolist()] for name, array in named.items()}
    return Tensors(op, arrays["x"], np.asarray(arrays["y"]), texts.get("classes"), texts.get("groups"))


def _mapped(op: str, path: Path, archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    """An array of an archive, read from the disk as it is used."""
    info = archive.getinfo(member)
    if info.flag_bits & 1:
        raise ValueError(f"{op}: {path} must not be encrypted")
    with archive.open(info) as packed:
        shape, fortran, dtype, header = _header(op, path, packed)
    if dtype.hasobject:
        raise ValueError(
            f"{op}: {member} of {path} must hold numbers or text; got Python objects, which only unpickling "
            "reads, and that can run code"
        )
    if 0 in shape or shape == ():
        with archive.open(info) as packed:
            packed.read(header)
            return np.frombuffer(packed.read(), dtype).reshape(shape)
    order = "F" if fortran else "C"
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(info.header_offset + 26)
            sizes = int.from_bytes(file.read(2), "little"), int.from_bytes(file.read(2), "little")
        start = info.header_offset + 30 + sum(sizes) + header
        return _map(op, path, path, dtype, start, shape, order)
    with tempfile.TemporaryFile() as file, archive.open(info) as packed:
        while chunk := packed.read(1 << 20):
            file.write(chunk)
        file.flush()
        return _map(op, path, file, dtype, header, shape, order)


def _map(
    op: str, path: Path, file: Any, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any
) -> NDArray[Any]:
    try:
        return np.memmap(file, dtype, "r", offset, shape, order)
    except ValueError:
        raise ValueError(f"{op}: {path} must be a whole .npz archive; got one that is cut off") from None


def _header(op: str, path: Path, packed: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, type and the length of what comes before the data."""
    try:
        version = npy.read_magic(packed)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(packed)
    except ValueError as error:
        raise ValueError(f"{op}: {path} must hold arrays as np.savez writes them; {error}") from None
    return shape, fortran, dtype, packed.tell()


def _text(entry: Any) -> str:
    return entry.decode() if isinstance(entry, bytes) else str(entry)
