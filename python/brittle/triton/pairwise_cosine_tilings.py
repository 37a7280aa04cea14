"""How large the tiles of a product of cosines are: a table, and the choice from it by shape."""

from typing import NamedTuple

import torch
import triton

SPLIT_WORKSPACE = 32 * 2**20
"""Elements that the partial sums of a split D may take."""
H200_MULTIPROCESSORS = 132


class Tiling(NamedTuple):
    """What a product is launched with."""

    block_m: int
    block_n: int
    block_k: int
    group: int
    num_warps: int
    num_stages: int
    shares: int = 1
    """Programs among which D is split."""


# From the largest tile to the smallest, by what multiplies. Larger ones read less: of 16-bit elements they do
# 85 operations a byte at 128 x 256, 64 at 128 x 128, 32 at 64 x 64. Smaller ones keep more of the GPU busy.
# wgmma takes 64 rows at a time, so tensor cores get none narrower. Shared memory holds num_stages
# (BLOCK_M + BLOCK_N) BLOCK_K elements: 24 to 147 KB of the 227 that a Hopper multiprocessor has.
_TILINGS = {
    # 128 x 256: sums take 128 registers in each of 256 threads, the most that leaves room for the rest.
    "16 bit": (
        Tiling(128, 256, 64, 4, 8, 3),
        Tiling(128, 128, 64, 8, 8, 3),
        Tiling(64, 128, 64, 8, 4, 3),
        Tiling(64, 64, 64, 8, 4, 4),
    ),
    "tf32": (
        Tiling(128, 128, 32, 8, 8, 3),
        Tiling(64, 128, 32, 8, 4, 3),
        Tiling(64, 64, 32, 8, 4, 4),
    ),
    # FMA units. Registers hold each sum, what it lacks, and its next part. 32 products are few enough for a
    # part that is off by 1e-6 of its size where all its roundings fall the same way.
    "ieee": (
        Tiling(128, 128, 32, 8, 8, 3),
        Tiling(64, 64, 32, 8, 4, 3),
        Tiling(32, 32, 32, 8, 4, 3),
    ),
    "float64": (
        Tiling(64, 128, 16, 8, 8, 3),
        Tiling(64, 64, 16, 8, 4, 3),
        Tiling(32, 32, 16, 8, 4, 3),
    ),
}
# What a sweep on a GPU should also try.
_MORE_TILINGS = {
    "16 bit": (Tiling(128, 256, 64, 8, 8, 4), Tiling(128, 128, 64, 8, 4, 3), Tiling(128, 128, 128, 8, 8, 3)),
    "tf32": (Tiling(128, 256, 32, 8, 8, 3), Tiling(128, 128, 64, 8, 8, 3)),
    "ieee": (Tiling(128, 128, 16, 8, 8, 4), Tiling(64, 128, 32, 8, 8, 3), Tiling(128, 128, 32, 8, 16, 3)),
    "float64": (Tiling(64, 64, 32, 8, 4, 3), Tiling(128, 128, 16, 8, 8, 3)),
}
CHUNK = 4096
"""Products that one running sum of a tensor core takes before it is added to the total."""
LEAST_SHARE = 2048
"""The fewest columns that are worth a program of their own."""
MOST_SHARES = 64


def multiplier(dtype: torch.dtype, precision: str) -> str:
    """What multiplies elements of this type: a key of the table of tilings."""
    if dtype in (torch.float16, torch.bfloat16):
        return "16 bit"
    if dtype == torch.float64:
        return "float64"
    return "ieee" if precision == "ieee" else "tf32"


def tile_count(n: int, m: int, tiling: Tiling, symmetric: bool) -> int:
    """Programs that cover the result, or its upper triangle."""
    if symmetric:
        side = over(n, tiling.block_n)
        return side * (side + 1) // 2 * (tiling.block_n // tiling.block_m)
    return over(n, tiling.block_m) * over(m, tiling.block_n)


def search_steps(n: int, tiling: Tiling) -> int:
    """Enough to find one of the triangle's bands, and one of few numbers, since each is compiled for."""
    bands = over(over(n, tiling.block_n), tiling.group)
    return next(steps for steps in (4, 8, 16) if bands <= 2**steps)


def tiling_for(
    n: int, m: int, d: int, dtype: torch.dtype, symmetric: bool, precision: str, multiprocessors: int
) -> Tiling:
    """The tiling of a product of this shape: always the same one, so that equal calls give equal bits.

    The largest tile of which there is at least one for each multiprocessor. Where there are fewer, D is split
    in shares of at least :data:`LEAST_SHARE`: what a share writes is then little beside what it reads.
    """
    kind = multiplier(dtype, precision)
    most = max(1, min(d // LEAST_SHARE, MOST_SHARES, SPLIT_WORKSPACE // max(n * m, 1)))
    known = _TILINGS[kind]
    if kind == "16 bit" and d > CHUNK:
        known = known[1:]  # the total beside the running sum would not fit in the registers
    for tiling in known:
        tiles = tile_count(n, m, tiling, symmetric)
        if tiles * most >= multiprocessors:
            break
    block_k = min(tiling.block_k, max(16, triton.next_power_of_2(d)))
    return tiling._replace(block_k=block_k, shares=min(most, over(multiprocessors, tiles)))


def candidates(dtype: torch.dtype, precision: str) -> list[Tiling]:
    """Every tiling that is worth timing on a GPU for this type; all are correct for every shape."""
    kind = multiplier(dtype, precision)
    return [*_TILINGS[kind], *_MORE_TILINGS[kind]]


def over(count: int, size: int) -> int:
    """How many pieces of a size cover a count."""
    return -(-count // size)
