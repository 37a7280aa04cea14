"""A folder of class folders of images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from brittle import _files
from brittle.sources.base import BadSample, Source

if TYPE_CHECKING:
    from PIL.Image import Image

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_NOT_SAMPLES = {"Thumbs.db", "desktop.ini"}
_GREY = {"1", "L", "LA", "La", "I", "F"}
_CHUNK = 1 << 20  # bytes hashed at a time
_TIFF_BITS = 258  # the tag of bits per sample

_Result = TypeVar("_Result")


class _Header(NamedTuple):
    size: tuple[int, int]  # height, width
    grey: bool

    def __str__(self) -> str:
        return f"{_by(self.size)}, {'grey' if self.grey else 'in colour'}"


class ImageFolder(Source):
    """Images of any format that Pillow reads, one folder for each class.

    Class folders are sorted by name and give the labels, files are sorted by path; hidden ones are left out.
    If all images are grey they have one channel, else three. 16-bit grey is divided by 65535. Transparency is
    dropped and orientation tags are ignored, as torchvision does; of several frames the first is taken.

    A file that is no regular one (a pipe, a device), is no image, is EPS, or has more pixels than Pillow's
    ``Image.MAX_IMAGE_PIXELS`` (89 million) is a bad sample. Links to files are followed, links to folders
    below a class folder are not.

    Args:
        op: the operator to name in error messages.
        folder: holds the class folders.
        size: height and width to resize to, with antialiasing; by default images must have one size.
    """

    def __init__(self, op: str, folder: Path, size: tuple[int, int] | None = None) -> None:
        self._folder = folder
        self._size = size
        try:
            found = {path: _files_below(path) for path in _class_folders(op, folder)}
        except OSError as error:
            raise ValueError(f"{op}: cannot list {error.filename}: {error.strerror}") from None
        for path, files in found.items():
            if not files:
                raise ValueError(f"{op}: every class folder must hold images; got none in {path}")
        self.classes = _files.clean_names(path.name for path in found)
        self._paths = [str(Path(file).relative_to(folder)) for files in found.values() for file in files]
        self._names = _files.clean_names(self._paths)
        self._y = torch.tensor([label for label, files in enumerate(found.values()) for _ in files])
        with _no_second_warning():
            self._headers = self._in_parallel(self._header, range(len(self)))
        good = {row: head for row, head in enumerate(self._headers) if isinstance(head, _Header)}
        self._mode = "L" if good and all(head.grey for head in good.values()) else "RGB"
        if size is None:
            self._check_sizes(op, {row: head.size for row, head in good.items()})

    def __len__(self) -> int:
        return len(self._paths)

    def name_of(self, row: int) -> str:
        """The path below the folder; what is no UTF-8 in it is replaced."""
        return self._names[row]

    def labels(self) -> Tensor:
        """See :meth:`Source.labels`."""
        return self._y

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See :meth:`Source.load`; images are decoded in parallel."""
        for row in rows:
            if isinstance(reason := self._headers[row], str):
                raise BadSample(row, self.name_of(row), reason)
        return torch.stack(self._in_parallel(self._decode, rows)), self._y[list(rows)]

    def contents(self) -> Iterator[bytes]:
        """The files' own bytes, and what is made of them."""
        yield f"{self._mode} {self._size}\n".encode()
        for path in self._paths:
            try:
                with _files.open_regular(self._folder / path) as file:
                    # No further, should somebody write to it.
                    left = os.fstat(file.fileno()).st_size
                    yield f"{left}\n".encode()
                    while left and (chunk := file.read(min(_CHUNK, left))):
                        yield chunk
                        left -= len(chunk)
            except OSError as error:
                yield f"unreadable: {error.strerror}\n".encode()

    def _check_sizes(self, op: str, sizes: dict[int, tuple[int, int]]) -> None:
        for row, size in sizes.items():
            first = next(iter(sizes))
            if size != sizes[first]:
                raise ValueError(
                    f"{op}: images must have one size; got {_by(sizes[first])} ({self.name_of(first)}) and "
                    f"{_by(size)} ({self.name_of(row)}); size=(H, W) or --size H,W resizes them"
                )

    def _header(self, row: int) -> _Header | str:
        """Size and kind without decoding, or what is wrong."""
        try:
            with self._opened(row) as image:
                return _header(image)
        except Exception as error:  # whatever a decoder trips over
            return _reason(error)

    def _decode(self, row: int) -> Tensor:
        before = self._headers[row]
        assert isinstance(before, _Header)
        try:
            with self._opened(row) as image:
                if (now := _header(image)) != before:
                    raise ValueError(f"it was {before} when the folder was listed, and now is {now}")
                pixels = _pixels(image, self._mode, self._size)
            got = pixels.shape[1], pixels.shape[2]
            if got != (self._size or before.size):
                raise ValueError(f"its header says {_by(before.size)}; got {_by(got)}")
        except MemoryError:
            raise
        except Exception as error:
            raise BadSample(row, self.name_of(row), _reason(error)) from None
        return pixels

    @contextmanager
    def _opened(self, row: int) -> Iterator[Image]:
        """An image that may be decoded."""
        from PIL import Image

        with _files.open_regular(self._folder / self._paths[row]) as file, Image.open(file) as image:
            if image.format == "EPS":
                raise ValueError("EPS is a program, which is not run; convert it to PNG")
            count, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and count > most:
                raise ValueError(
                    f"it has {_by((image.height, image.width))} pixels, more than the {most:,} of "
                    "PIL.Image.MAX_IMAGE_PIXELS; make it smaller"
                )
            yield image

    def _in_parallel(self, work: Callable[[int], _Result], rows: Sequence[int]) -> list[_Result]:
        """In the order of ``rows``; of several errors the first in that order is raised."""
        if len(rows) < 8:
            return [work(row) for row in rows]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(work, rows))


def _class_folders(op: str, folder: Path) -> list[Path]:
    found = sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_name)
    if not found:
        raise ValueError(f"{op}: {folder} must hold one folder of images for each class; got no folder in it")
    if all(path.name.lower() in _SPLITS for path in found):
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{op}: {folder} must hold one folder of images for each class; got splits: {names}")
    return found


def _name(path: Path) -> str:
    return path.name


def _files_below(folder: Path) -> list[str]:
    """All files below a folder that may be samples, however deep; links to folders are not followed."""
    found: list[str] = []
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _NOT_SAMPLES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not os.path.isdir(entry.path):
                    found.append(entry.path)
    return sorted(found)


@contextmanager
def _no_second_warning() -> Iterator[None]:
    """What Pillow warns about, and decodes nevertheless, is refused here."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _header(image: Image) -> _Header:
    return _Header((image.height, image.width), image.mode in _GREY or image.mode.startswith("I;"))


def _pixels(image: Image, mode: str, size: tuple[int, int] | None) -> Tensor:
    """float32 ``[C, H, W]`` in [0, 1]."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError(
            "floating-point images have no fixed range; convert them to 8 or 16 bits, or to .npz"
        )
    deep = image.mode == "I" or image.mode.startswith("I;")
    if deep:
        levels = np.asarray(image)
        least, most = int(levels.min()), int(levels.max())
        if least < 0 or most > 65535:
            raise ValueError(
                f"its values are from {least} to {most}, where 16 bits hold 0 to 65535; "
                "convert it to 8 or 16 bits"
            )
        # Of TIFF alone Pillow gives 12 bits as they are, not scaled to 16.
        bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))[0]
        image = Image.fromarray(levels.astype(np.float32) / (4095 if bits == 12 else 65535))
    elif image.mode != mode:
        image = image.convert(mode)
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(image, dtype=np.float32 if deep else np.uint8))
    if deep:
        return values.expand(1 if mode == "L" else 3, *values.shape).contiguous()
    pixels = values.unsqueeze(0) if mode == "L" else values.permute(2, 0, 1)
    return pixels.to(torch.float32) / 255


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if type(error).__name__ == "UnidentifiedImageError":
        return "is not an image, or of a format that Pillow cannot read"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded: {text}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
