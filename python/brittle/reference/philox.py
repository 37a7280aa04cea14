"""Philox4x32-10 in 64-bit integer arithmetic (Salmon et al., SC 2011)."""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def _product(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, by 16-bit halves: int64 cannot hold all 64 bits."""
    low = multiplier * (word & 0xFFFF)
    high = multiplier * (word >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox4x32 on ``counter``, int64 ``[..., 4]`` of 32-bit words."""
    c0, c1, c2, c3 = counter.unbind(-1)
    key0, key1 = key
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], -1)


def sample_words(seed: int, sample_ids: Tensor, draw: int, elements: int) -> Tensor:
    """The 32-bit words of stream 1, int64 ``[N, elements]``: one for each element of each sample."""
    blocks = torch.arange((elements + 3) // 4)
    counter = torch.stack(
        [
            blocks.expand(len(sample_ids), -1),
            torch.full((len(sample_ids), len(blocks)), draw),
            (sample_ids & _MASK)[:, None].expand(-1, len(blocks)),
            ((sample_ids >> 32) & _MASK)[:, None].expand(-1, len(blocks)),
        ],
        -1,
    )
    words = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return words.reshape(len(sample_ids), 4 * len(blocks))[:, :elements]
