"""Natural shifts of the inputs: blur, brightness and contrast, beside the kinds of noise.

A sample's shifted form depends on the sample, its id and the seed alone: every sum is taken element by
element in a fixed order, so neither the batch nor the thread count changes a bit of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.evaluation.noise_sweep import SEVERITIES
from brittle.noise.functional import apply

Bounds = tuple[float, float]

#: The five severities of the image-corruption benchmark. Blur's are standard deviations in pixels of an
#: image whose shorter side is 224; :func:`kinds_for` converts them.
SHIFTS: Mapping[str, tuple[float, ...]] = {
    "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}

# Less than these standard deviations leaves an image of few pixels as it is. They are the benchmark's own
# for images of 32 x 32 pixels.
_SIDE, _LEAST_SIGMA = 224, (0.4, 0.6, 0.7, 0.8, 1.0)
_TRUNCATE = 4.0  # standard deviations
_AT_ONCE = 2**18  # elements, so that a pass stays in cache


def kinds_for(shape: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """The shifts that inputs of a shape can undergo, and the scales of their five severities.

    Args:
        shape: of a batch. ``[N, C, H, W]``, with sides of two pixels at least, is images; anything else meets
            the kinds of noise alone.

    Returns:
        For each kind its scales, mildest first: those of :data:`brittle.evaluation.SEVERITIES` and of
        :data:`SHIFTS`; blur's in pixels of these images, ``sigma * min(H, W) / 224`` and at least 0.4, 0.6,
        0.7, 0.8, 1.

    Example:
        >>> from brittle.evaluation.shifts import kinds_for
        >>> kinds_for((1, 3, 448, 600))["blur"]
        (2.0, 4.0, 6.0, 8.0, 12.0)
        >>> kinds_for((1, 1, 8, 8))["blur"]
        (0.4, 0.6, 0.7, 0.8, 1.0)
        >>> "blur" in kinds_for((1, 100))
        False
    """
    kinds = dict(SEVERITIES)
    if len(shape) == 4 and min(shape[2:]) > 1:
        kinds.update(SHIFTS)
        side = min(shape[2:])
        kinds["blur"] = tuple(
            max(sigma * side / _SIDE, least)
            for sigma, least in zip(SHIFTS["blur"], _LEAST_SIGMA, strict=True)
        )
    return kinds


def apply_shift(
    kind: str,
    scale: float,
    x: Tensor,
    ids: Tensor | None = None,
    seed: int = 0,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """``x`` shifted, by name.

    Scales are for inputs in [0, 1]; inputs in other bounds are shifted as if mapped there and back.

    Args:
        kind: ``"blur"``, ``"brightness"``, ``"contrast"`` or a kind of noise.
        scale: its severity, as :func:`kinds_for` gives it.
        x: ``[N, ...]``, floating-point, inside the bounds.
        ids: int64 ``[N]``, the samples' ids, by default ``0 .. N - 1``; noise differs between them.
        seed: of the noise, 64 bits.
        bounds: the smallest and the largest value of the inputs, before and after.

    Returns:
        A tensor like ``x``. Noise is that of :mod:`brittle.noise` with ``draw=0``.

    Raises:
        ValueError: an unknown kind, a scale out of range, or an ``x`` that does not fit.

    Example:
        >>> import torch
        >>> from brittle.evaluation.shifts import apply_shift
        >>> apply_shift("brightness", 0.25, torch.tensor([[[[0.5, 0.875]]]]))
        tensor([[[[0.7500, 1.0000]]]])
    """
    op = "apply_shift"
    check.check_choice(op, "kind", kind, (*SEVERITIES, *SHIFTS))
    check.check_images(op, x, bounds)
    lo, hi = bounds
    usual = (lo, hi) == (0.0, 1.0)
    unit = x if usual else ((x - lo) / (hi - lo)).clamp(0, 1)
    if kind in SEVERITIES:
        ids = check.check_sample_ids(op, ids, x)
        shifted = apply(op, "scale", unit, kind, scale, seed, ids, 0, (0.0, 1.0))
    else:
        shifted = _SHIFTED[kind](unit, scale)
    return shifted if usual else (lo + (hi - lo) * shifted).clamp(lo, hi)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images in [0, 1], along rows and along columns.

    The Gaussian is sampled at the pixels, cut at 4 standard deviations and scaled to sum 1; beyond its edge
    an image goes on as its mirror image (``d c b a | a b c d | d c b a``), which keeps its mean.

    Args:
        x: ``[N, C, H, W]``.
        sigma: standard deviation in pixels, >= 0; 0 is no blur.

    Raises:
        ValueError: ``x`` is no batch of images, or ``sigma`` is out of range.

    Example:
        >>> import torch
        >>> from brittle.evaluation.shifts import blur
        >>> point = torch.zeros(1, 1, 9, 9)
        >>> point[0, 0, 4, 4] = 1
        >>> (1000 * blur(point, 0.5)[0, 0, 4]).round().int()
        tensor([  0,   0,   0,  84, 619,  84,   0,   0,   0], dtype=torch.int32)
    """
    _check(x, "blur")
    sigma = check.check_scalar("blur", "sigma", sigma)
    radius = int(_TRUNCATE * sigma + 0.5)
    if radius == 0:
        return x.clone()
    bells = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = bells[0] + 2 * math.fsum(bells[1:])
    weights = [bell / total for bell in bells]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    count = max(1, _AT_ONCE // max(1, x[:1].numel()))
    for first in range(0, len(x), count):
        part = x[first : first + count].double()
        for dim in (2, 3):
            part = _weighted(part, weights, dim)
        out[first : first + count] = part.clamp(0, 1)
    return out


def brightness(x: Tensor, amount: float) -> Tensor:
    """Images in [0, 1] made brighter, at most white: ``amount`` is added to the value of their colour (HSV).

    A pixel's value is its largest channel; hue and saturation stay. So a grey pixel ``g`` becomes
    ``min(g + amount, 1)``.

    Args:
        x: ``[N, C, H, W]``.
        amount: in [0, 1].

    Raises:
        ValueError: ``x`` is no batch of images, or ``amount`` is out of range.

    Example:
        >>> import torch
        >>> from brittle.evaluation.shifts import brightness
        >>> brightness(torch.tensor([0.5, 0.25, 0.0]).reshape(1, 3, 1, 1), 0.25).flatten()
        tensor([0.7500, 0.3750, 0.0000])
    """
    _check(x, "brightness")
    if not 0 <= amount <= 1:
        raise ValueError(f"brightness: amount must be in [0, 1]; got {amount}")
    value = x.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return (torch.where(value > 0, x / value, 1.0) * raised).to(x.dtype).clamp(0, 1)


def contrast(x: Tensor, share: float) -> Tensor:
    """Images in [0, 1] with less contrast: each channel keeps ``share`` of its distance from its mean.

    Args:
        x: ``[N, C, H, W]``.
        share: in [0, 1]; 1 is no change.

    Raises:
        ValueError: ``x`` is no batch of images, or ``share`` is out of range.

    Example:
        >>> import torch
        >>> from brittle.evaluation.shifts import contrast
        >>> contrast(torch.tensor([[[[0.0, 1.0]]]]), 0.5)
        tensor([[[[0.2500, 0.7500]]]])
    """
    _check(x, "contrast")
    if not 0 <= share <= 1:
        raise ValueError(f"contrast: share must be in [0, 1]; got {share}")
    mean = (_sum(x.double().flatten(2)) / max(1, x[0, 0].numel() if len(x) else 1))[..., None, None]
    return ((x.double() - mean) * share + mean).to(x.dtype).clamp(0, 1)


_SHIFTED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
}


def _check(x: Tensor, op: str) -> None:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{op}: x must be floating-point images [N, C, H, W]; got {got}")


def _weighted(x: Tensor, weights: Sequence[float], dim: int) -> Tensor:
    """Along ``dim``: ``weights[0]`` of the element itself, ``weights[k]`` of the two at distance k."""
    size, radius = x.shape[dim], len(weights) - 1
    places = torch.arange(-radius, size + radius, device=x.device) % (2 * size)
    padded = x.index_select(dim, torch.minimum(places, 2 * size - 1 - places))
    total = x * weights[0]
    for k, weight in enumerate(weights[1:], 1):
        pair = padded.narrow(dim, radius - k, size) + padded.narrow(dim, radius + k, size)
        total = total.add_(pair.mul_(weight))
    return total


def _sum(x: Tensor) -> Tensor:
    """Over the last dimension, by halves: torch's own order of additions depends on the batch's shape."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        pairs = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat([pairs, x[..., 2 * half :]], dim=-1)
    return x.squeeze(-1)
