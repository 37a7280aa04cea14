"""Arrays as pictures: the data URIs of PNGs."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import image
from matplotlib.colors import Colormap, LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.floating[Any]]

LIGHTER, DARKER = "#2563a8", "#c2410c"
# An odd number of colours, so that exactly zero is exactly white.
_DIVERGING = LinearSegmentedColormap.from_list("perturbation", (LIGHTER, "#ffffff", DARKER), N=257)
# Larger pictures are made this small: a page of a hundred stays within a few megabytes.
_LARGEST_SIDE = 160


def photograph(pixels: Pixels) -> str:
    """Pixels ``[H, W]`` or ``[H, W, 3]`` in [0, 1], 0 being black, as the data URI of a PNG."""
    return _small_png(np.clip(np.nan_to_num(pixels), 0, 1), Image.Resampling.BOX)


def change_photograph(clean: Pixels, altered: Pixels) -> str:
    """What was added to each pixel, scaled so that the largest change is full: the data URI of a PNG.

    Grey pictures go from blue (darker) over white to orange (lighter), colours around mid-grey.
    """
    change = np.nan_to_num(altered - clean)
    largest = float(np.abs(change).max(initial=0)) or 1.0
    if change.ndim == 2:
        return _small_png(_DIVERGING((change / largest + 1) / 2)[..., :3], Image.Resampling.NEAREST)
    return _small_png((change / largest + 1) / 2, Image.Resampling.NEAREST)


def grey_image(pixels: Pixels) -> str:
    """Pixels ``[H, W]`` in [0, 1] as the data URI of a PNG of that size, 1 being black."""
    return _png(pixels, "gray_r", 0, 1)


def perturbation_image(delta: Pixels, scale: float) -> str:
    """Differences ``[H, W]`` as the data URI of a PNG: ``-scale`` is blue, 0 white and ``scale`` orange."""
    return _png(delta, _DIVERGING, -scale, scale)


def data_uri(kind: str, content: bytes) -> str:
    """Content that a page carries in itself."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _small_png(pixels: Pixels, resampling: Image.Resampling) -> str:
    picture = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    shrink = max(picture.size) / _LARGEST_SIDE
    if shrink > 1:
        size = (max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink)))
        picture = picture.resize(size, resampling)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def _png(pixels: Pixels, colours: str | Colormap, smallest: float, largest: float) -> str:
    buffer = BytesIO()
    image.imsave(buffer, pixels, cmap=colours, vmin=smallest, vmax=largest, format="png")
    return data_uri("image/png", buffer.getvalue())
