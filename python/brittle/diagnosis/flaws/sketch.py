"""What is kept of a layer's features for each sample."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

#: Large maps are averaged to so many places a side, long sequences to the square of that, and what is still
#: longer than WIDTH is projected at random to WIDTH, which keeps distances to a few per cent.
PLACES, WIDTH = 4, 384


def sketch(features: Tensor, is_map: bool) -> Tensor:
    """``[N, at most WIDTH]`` of features ``[N, ...]``, on the CPU; the same projection for every batch.

    Args:
        features: a map ``[N, C, H, W]``, tokens ``[N, T, C]`` or rows ``[N, D]``.
        is_map: whether the channels come before the places.

    References:
        Johnson & Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984.

    Example:
        >>> sketch(torch.rand(5, 64, 32, 32), True).shape
        torch.Size([5, 384])
    """
    if is_map and features.dim() == 4 and max(features.shape[2:]) > 2 * PLACES:
        features = functional.adaptive_avg_pool2d(features, PLACES)
    elif not is_map and features.dim() == 3 and features.shape[1] > PLACES**2:
        features = functional.adaptive_avg_pool1d(features.mT, PLACES**2)
    flat = features.flatten(1).float()
    width = flat.shape[1]
    return flat.cpu() if width <= WIDTH else (flat @ _projection(width, flat.device)).cpu()


@functools.lru_cache(maxsize=64)
def _projection(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return (torch.randn(width, WIDTH, generator=generator) / math.sqrt(WIDTH)).to(device)
