"""Cosine similarity of every row with every other, on a GPU.

DESIGN. Two launches. The first reads each row once (float64: twice) and keeps three numbers of it: one over
the length that it has after scaling by a power of two into [1, 2), and that power as two factors, since
alone it may be out of range. Squares are summed in float64, where those of float32, float16 and bfloat16
cannot be out of range. The launch is bound by memory: (N + M) D elements in, next to nothing out.

The second is a tiled product with the normalisation in its epilogue. A tile of BLOCK_M x BLOCK_N reads
(BLOCK_M + BLOCK_N) D elements, most of them from the second-level cache because programs that run together
share rows (GROUP), does 2 BLOCK_M BLOCK_N D operations, and writes each cosine once. No normalised copy is
made. Without b only tiles that touch the upper triangle are launched, about half, in an order found by
integer arithmetic alone. Each is stored twice, the second time transposed through shared memory so that both
stores are coalesced. An element is computed once and stored in both its places: the matrix is symmetric to
the bit, and on the diagonal, where the cosine is known, it is not computed at all.

Rows of extreme length must be scaled before they are multiplied, and that takes operands through registers
on their way from shared memory to the tensor cores. So each tile looks at its rows' powers of two, and takes
the plain loop unless one is out of the range where products and sums are safe. A power of two changes no
significand: both loops give the same cosine. float16 has no second loop, as it never needs one: its products
have 22 bits and lie within 2^-48..2^32.

Where D is long and tiles are few, D is split over programs whose partial sums go through a workspace, and a
third launch adds them in a fixed order. There are no atomics: equal calls give equal bits. Calls of other
shapes may be tiled otherwise, and differ in the last bits.

Precision. float32 at torch's "highest" runs on the FMA units. Sums of BLOCK_K products are added up with
Kahan's compensation. One running sum of 100,000 products is off by up to 1e-3 where its roundings all fall
the same way, as they do for constant rows; this, by 5e-7. Tensor cores truncate as they add; there, running
sums of CHUNK products are added up in float32.
"""

# Compile-time constants are in capitals, as everywhere in Triton, whose functions know no Python types.
# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WORKSPACE = 16 * 2**20
"""Cosines that top-k looks at in one go: 64 MB of float32, and some 256 MB to find the best of them."""
TOPK_COLUMNS = 2**14
SPLIT_WORKSPACE = 32 * 2**20
"""Elements that the partial sums of a split D may take."""
H200_MULTIPROCESSORS = 132

# Rows of lengths within 2^-40..2^40 need no scaling in float32: sums of their products lie within
# 2^-80..2^80, with room at both ends. In float64, 2^-400..2^400.
_SAFE = tl.constexpr(2.0**40)
_SAFE_WIDE = tl.constexpr(2.0**400)


# ---- the rows' lengths ----


@triton.jit
def _row_scales(x, scales, n, d, x_row, x_column, x_step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """scales [3, N]: one over the scaled row's length (0: zero row, NaN: lost), two factors of the power."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < n)[:, None]
    at = x + (rows.to(tl.int64) * x_row)[:, None] + (columns.to(tl.int64) * x_column)[None, :]
    result = scales.dtype.element_ty
    if result == tl.float64:
        # float64 squares may be out of range: first the largest element's power of two, then the squares.
        largest = tl.full([ROWS, COLUMNS], 0.0, tl.float64)
        strange = tl.full([ROWS, COLUMNS], 0, tl.int32)
        ahead = at
        for start in range(0, d, COLUMNS):
            value = tl.abs(tl.load(ahead, mask=inside & (columns < d - start)[None, :], other=0.0))
            finite = value < float("inf")
            strange = tl.where(finite, strange, 1)
            largest = tl.where(finite & (value > largest), value, largest)
            ahead += x_step
        size = tl.max(largest, 1)
        lost = tl.max(strange, 1) > 0
        zero = size == 0.0
        # A subnormal has no exponent of its own.
        small = size < 2.2250738585072014e-308
        exponent = _exponent(tl.where(small, size * 18014398509481984.0, size)) - tl.where(small, 54, 0)
        exponent = tl.where(zero | lost, 0, exponent)
        first, second = _power(exponent)
        squares = tl.full([ROWS, COLUMNS], 0.0, tl.float64)
        for start in range(0, d, COLUMNS):
            value = tl.load(at, mask=inside & (columns < d - start)[None, :], other=0.0)
            value = value * first[:, None] * second[:, None]
            squares += value * value
            at += x_step
        length = tl.sqrt(tl.where(zero | lost, 1.0, tl.sum(squares, 1)))
    else:
        squares = tl.full([ROWS, COLUMNS], 0.0, tl.float64)
        for start in range(0, d, COLUMNS):
            value = tl.load(at, mask=inside & (columns < d - start)[None, :], other=0.0).to(tl.float64)
            squares += value * value
            at += x_step
        square = tl.sum(squares, 1)
        lost = (square != square) | (square == float("inf"))
        zero = square == 0.0
        whole = tl.sqrt(tl.where(zero | lost, 1.0, square))
        exponent = _exponent(whole)
        first, second = _power(exponent)
        length = whole * first * second
    reciprocal = tl.where(lost, float("nan"), tl.where(zero, 0.0, 1.0 / length))
    tl.store(scales + rows, reciprocal.to(result), mask=rows < n)
    tl.store(scales + n + rows, first.to(result), mask=rows < n)
    tl.store(scales + 2 * n + rows, second.to(result), mask=rows < n)


@triton.jit
def _exponent(x):
    """floor(log2(x)) of a positive normal float64."""
    return ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1023


@triton.jit
def _power(exponent):
    """Two float64 powers of two whose product is 2^-exponent, each in float32's range if x is."""
    half = (-exponent) >> 1
    rest = -exponent - half
    first = ((half + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    second = ((rest + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    return first, second


# ---- which program computes which tile ----


@triton.jit
def _triangle_tile(index, tiles, GROUP: tl.constexpr, STEPS: tl.constexpr):
    """The row and column of a tile of the upper triangle, of `tiles` x `tiles`, diagonal included.

    Bands of GROUP rows follow each other. A band is walked column by column, so that programs which run
    together share rows and columns. A binary search finds the band, one of 2^STEPS at most.
    """
    band = index * 0
    for bit in tl.static_range(STEPS):
        candidate = band + (1 << (STEPS - 1 - bit))
        first = candidate * GROUP
        before = first * tiles - first * (first - 1) // 2
        band = tl.where((first < tiles) & (before <= index), candidate, band)
    first = band * GROUP
    local = index - (first * tiles - first * (first - 1) // 2)
    # A band's first columns make a triangle: column c has c + 1 tiles. All others have GROUP; the last band,
    # where it is lower, has no others.
    CORNER: tl.constexpr = GROUP * (GROUP + 1) // 2
    column = index * 0
    for c in tl.static_range(1, GROUP):
        column += tl.where(local >= c * (c + 1) // 2, 1, 0)
    rest = local - CORNER
    row = tl.where(rest < 0, local - column * (column + 1) // 2, rest % GROUP)
    column = tl.where(rest < 0, column, GROUP + rest // GROUP)
    return first + row, first + column


@triton.jit
def _rectangle_tile(index, row_tiles, column_tiles, GROUP: tl.constexpr):
    """The same of a whole rectangle."""
    first = index // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    local = index % (GROUP * column_tiles)
    return first + local % height, local // height


@triton.jit
def _tile(
    n, m, SYMMETRIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """The first row and the first column of this program's tile."""
    index = tl.program_id(0)
    if SYMMETRIC:
        # BLOCK_N is a multiple of BLOCK_M: a triangle of squares of BLOCK_N, each in slices of BLOCK_M rows.
        SLICES: tl.constexpr = BLOCK_N // BLOCK_M
        square, column = _triangle_tile(index // SLICES, (n + BLOCK_N - 1) // BLOCK_N, GROUP, STEPS)
        row = square * SLICES + index % SLICES
    else:
        row, column = _rectangle_tile(
            index, (n + BLOCK_M - 1) // BLOCK_M, (m + BLOCK_N - 1) // BLOCK_N, GROUP
        )
    return row * BLOCK_M, column * BLOCK_N


# ---- the product ----


@triton.jit
def _load(
    at, inside, k_inside, first, second, EVEN_K: tl.constexpr, SCALED: tl.constexpr, UPCAST: tl.constexpr
):
    """A slice of operand rows, zero outside, scaled where SCALED."""
    value = tl.load(at, mask=inside if EVEN_K else inside & k_inside, other=0.0)
    if SCALED:
        value = (value.to(first.dtype) * first * second).to(value.dtype)
    if UPCAST:
        value = value.to(tl.float32)
    return value


@triton.jit
def _multiply_rows(
    a_at, b_at, a_step, b_step, length, a_inside, b_inside, a_first, a_second, b_first, b_second,
    SCALED: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, COMPENSATED: tl.constexpr,
    CHUNK: tl.constexpr, SUM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The sums over `length` columns, from a_at [BLOCK_M, BLOCK_K] and b_at [BLOCK_K, BLOCK_N] on."""
    ks = tl.arange(0, BLOCK_K)
    total = tl.full([BLOCK_M, BLOCK_N], 0.0, SUM)
    if COMPENSATED:
        missing = tl.full([BLOCK_M, BLOCK_N], 0.0, SUM)
        for start in range(0, length, BLOCK_K):
            k_inside = ks < length - start
            x = _load(a_at, a_inside, k_inside[None, :], a_first, a_second, EVEN_K, SCALED, UPCAST)
            y = _load(b_at, b_inside, k_inside[:, None], b_first, b_second, EVEN_K, SCALED, UPCAST)
            part = tl.dot(x, y, -missing, input_precision=PRECISION, out_dtype=SUM)
            grown = total + part
            missing = (grown - total) - part
            total = grown
            a_at += a_step
            b_at += b_step
    elif CHUNK == 0:
        for start in range(0, length, BLOCK_K):
            k_inside = ks < length - start
            x = _load(a_at, a_inside, k_inside[None, :], a_first, a_second, EVEN_K, SCALED, UPCAST)
            y = _load(b_at, b_inside, k_inside[:, None], b_first, b_second, EVEN_K, SCALED, UPCAST)
            total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=SUM)
            a_at += a_step
            b_at += b_step
    else:
        for chunk in range(0, length, CHUNK):
            part = tl.full([BLOCK_M, BLOCK_N], 0.0, SUM)
            for start in range(chunk, tl.minimum(chunk + CHUNK, length), BLOCK_K):
                k_inside = ks < length - start
                x = _load(a_at, a_inside, k_inside[None, :], a_first, a_second, EVEN_K, SCALED, UPCAST)
                y = _load(b_at, b_inside, k_inside[:, None], b_first, b_second, EVEN_K, SCALED, UPCAST)
                part = tl.dot(x, y, part, input_precision=PRECISION, out_dtype=SUM)
                a_at += a_step
                b_at += b_step
            total += part
    return total


@triton.jit
def _store_cosines(
    sums, row, column, n, m, a_scales, b_scales, out, out_row, out_column,
    SYMMETRIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Normalises the sums of scaled rows, and writes them; the mirror image too where SYMMETRIC."""
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    of_row = tl.load(a_scales + rows, mask=rows < n, other=0.0)
    of_column = tl.load(b_scales + columns, mask=columns < m, other=0.0)
    cosines = sums * (of_row[:, None] * of_column[None, :])
    cosines = tl.where(cosines > 1.0, 1.0, cosines)
    cosines = tl.where(cosines < -1.0, -1.0, cosines)  # comparisons with NaN are false: it stays
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    if SYMMETRIC:
        inside_mirrored = (columns < m)[:, None] & (rows < n)[None, :]
        if row < column + BLOCK_N and column < row + BLOCK_M:
            # The tile touches the diagonal, which is known, and beyond which the elements are mirror images.
            with_itself = tl.where(of_row > 0.0, 1.0, of_row)
            cosines = tl.where(rows[:, None] == columns[None, :], with_itself[:, None], cosines)
            inside = inside & (rows[:, None] <= columns[None, :])
            _store(out, rows, columns, out_row, out_column, cosines, inside)
            inside_mirrored = inside_mirrored & (rows[None, :] < columns[:, None])
            _store(out, columns, rows, out_row, out_column, tl.trans(cosines), inside_mirrored)
        else:
            _store(out, rows, columns, out_row, out_column, cosines, inside)
            _store(out, columns, rows, out_row, out_column, tl.trans(cosines), inside_mirrored)
    else:
        _store(out, rows, columns, out_row, out_column, cosines, inside)


@triton.jit
def _store(out, rows, columns, out_row, out_column, values, inside):
    at = out + (rows.to(tl.int64) * out_row)[:, None] + (columns.to(tl.int64) * out_column)[None, :]
    tl.store(at, values, mask=inside)


@triton.jit
def _product(
    a, b, a_scales, b_scales, out, n, m, d_units,
    a_row_units, a_column, a_step, b_row_units, b_column, b_step, out_row, out_column, share_steps, plane,
    D_UNIT: tl.constexpr, A_UNIT: tl.constexpr, B_UNIT: tl.constexpr, SYMMETRIC: tl.constexpr,
    SCALABLE: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, COMPENSATED: tl.constexpr,
    CHUNK: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of cosines; where SPLIT, of the sums over one share of D, to its plane of the workspace.

    D and the row strides come as multiples of a power of two: so the compiler knows how far it may vectorise.
    """
    SUM: tl.constexpr = tl.float64 if WIDE else tl.float32
    row, column = _tile(n, m, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP, STEPS)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    length = d_units * D_UNIT
    k_first = 0
    if SPLIT:
        k_first = tl.program_id(1) * share_steps * BLOCK_K
        length = tl.minimum(length - k_first, share_steps * BLOCK_K)
    k_columns = (k_first + ks).to(tl.int64)
    a_at = a + (rows.to(tl.int64) * a_row_units * A_UNIT)[:, None] + (k_columns * a_column)[None, :]
    b_at = b + (k_columns * b_column)[:, None] + (columns.to(tl.int64) * b_row_units * B_UNIT)[None, :]
    a_inside = (rows < n)[:, None]
    b_inside = (columns < m)[None, :]
    if SCALABLE:
        a_first = tl.load(a_scales + n + rows, mask=rows < n, other=1.0)
        a_second = tl.load(a_scales + 2 * n + rows, mask=rows < n, other=1.0)
        b_first = tl.load(b_scales + m + columns, mask=columns < m, other=1.0)
        b_second = tl.load(b_scales + 2 * m + columns, mask=columns < m, other=1.0)
        safe: tl.constexpr = _SAFE_WIDE if WIDE else _SAFE
        a_power = a_first * a_second
        b_power = b_first * b_second
        a_extreme = tl.max(((a_power > safe) | (a_power < 1.0 / safe)).to(tl.int32), 0)
        b_extreme = tl.max(((b_power > safe) | (b_power < 1.0 / safe)).to(tl.int32), 0)
        if a_extreme + b_extreme > 0:
            sums = _multiply_rows(
                a_at, b_at, a_step, b_step, length, a_inside, b_inside,
                a_first[:, None], a_second[:, None], b_first[None, :], b_second[None, :],
                True, EVEN_K, PRECISION, COMPENSATED, CHUNK, SUM, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST,
            )  # fmt: skip
        else:
            sums = _multiply_rows(
                a_at, b_at, a_step, b_step, length, a_inside, b_inside, 1.0, 1.0, 1.0, 1.0,
                False, EVEN_K, PRECISION, COMPENSATED, CHUNK, SUM, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST,
            )  # fmt: skip
            sums = sums * (a_power[:, None] * b_power[None, :])
    else:
        sums = _multiply_rows(
            a_at, b_at, a_step, b_step, length, a_inside, b_inside, 1.0, 1.0, 1.0, 1.0,
            False, EVEN_K, PRECISION, COMPENSATED, CHUNK, SUM, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST,
        )  # fmt: skip
        a_power = tl.load(a_scales + n + rows, mask=rows < n, other=1.0)
        a_power *= tl.load(a_scales + 2 * n + rows, mask=rows < n, other=1.0)
        b_power = tl.load(b_scales + m + columns, mask=columns < m, other=1.0)
        b_power *= tl.load(b_scales + 2 * m + columns, mask=columns < m, other=1.0)
        sums = sums * (a_power[:, None] * b_power[None, :])
    if SPLIT:
        at = out + tl.program_id(1).to(tl.int64) * plane
        at += (rows.to(tl.int64) * m)[:, None] + columns[None, :]
        wanted = a_inside & b_inside
        if SYMMETRIC:
            wanted = wanted & (rows[:, None] <= columns[None, :])
        tl.store(at, sums, mask=wanted)
    else:
        _store_cosines(
            sums, row, column, n, m, a_scales, b_scales, out, out_row, out_column, SYMMETRIC, BLOCK_M, BLOCK_N
        )


@triton.jit
def _add_shares(
    partial, a_scales, b_scales, out, n, m, shares, plane, out_row, out_column,
    SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The cosines of one tile whose sums are spread over planes; these are added in float64, in order."""
    row, column = _tile(n, m, SYMMETRIC, BLOCK, BLOCK, GROUP, STEPS)
    rows = row + tl.arange(0, BLOCK)
    columns = column + tl.arange(0, BLOCK)
    wanted = (rows < n)[:, None] & (columns < m)[None, :]
    if SYMMETRIC:
        wanted = wanted & (rows[:, None] <= columns[None, :])
    at = partial + (rows.to(tl.int64) * m)[:, None] + columns[None, :]
    sums = tl.full([BLOCK, BLOCK], 0.0, tl.float64)
    for _ in range(shares):
        sums += tl.load(at, mask=wanted, other=0.0).to(tl.float64)
        at += plane
    sums = sums.to(partial.dtype.element_ty)
    _store_cosines(
        sums, row, column, n, m, a_scales, b_scales, out, out_row, out_column, SYMMETRIC, BLOCK, BLOCK
    )


# ---- how large the tiles are ----


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
        side = _over(n, tiling.block_n)
        return side * (side + 1) // 2 * (tiling.block_n // tiling.block_m)
    return _over(n, tiling.block_m) * _over(m, tiling.block_n)


def search_steps(n: int, tiling: Tiling) -> int:
    """Enough to find one of the triangle's bands, and one of few numbers, since each is compiled for."""
    bands = _over(_over(n, tiling.block_n), tiling.group)
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
    return tiling._replace(block_k=block_k, shares=min(most, _over(multiprocessors, tiles)))


def candidates(dtype: torch.dtype, precision: str) -> list[Tiling]:
    """Every tiling that is worth timing on a GPU for this type; all are correct for every shape."""
    kind = multiplier(dtype, precision)
    return [*_TILINGS[kind], *_MORE_TILINGS[kind]]


# ---- launching ----

_INTERPRETED = not isinstance(_product, triton.runtime.JITFunction)


def _over(count: int, size: int) -> int:
    return -(-count // size)


def _unit(*counts: int) -> int:
    """The largest power of two, 16 at most, that divides all counts."""
    unit = 16
    while any(count % unit for count in counts):
        unit //= 2
    return unit


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return H200_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _precision(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "ieee" if dtype == torch.float64 else "tf32"


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the cosines of rows of this type are given in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_scales(x: Tensor) -> Tensor:
    """What the product must know of each row, ``[3, N]``; see the kernel."""
    n, d = x.shape
    scales = x.new_empty(3, n, dtype=result_dtype(x.dtype))
    if abs(x.stride(0)) < abs(x.stride(1)) and n > 1:
        rows, columns, warps = 32, 32, 4  # neighbours in memory are neighbouring rows
    else:
        columns = min(triton.next_power_of_2(d), 4096 if n < 2 * _multiprocessors(x.device) else 1024)
        rows, warps = max(1, 1024 // columns), 8 if columns > 1024 else 4
    _row_scales[(_over(n, rows),)](
        x, scales, n, d, x.stride(0), x.stride(1), x.stride(1) * columns, rows, columns,
        num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return scales


def constants(
    dtype: torch.dtype,
    precision: str,
    n: int,
    d: int,
    a_row: int,
    b_row: int,
    symmetric: bool,
    tiling: Tiling,
) -> dict[str, Any]:
    """What the product is compiled for, given N, D and the strides from row to row."""
    wide = dtype == torch.float64
    compensated = dtype == torch.float32 and precision != "tf32"
    share = _over(_over(d, tiling.block_k), tiling.shares) * tiling.block_k
    return {
        "D_UNIT": _unit(d),
        "A_UNIT": _unit(a_row),
        "B_UNIT": _unit(b_row),
        "SYMMETRIC": symmetric,
        "SCALABLE": dtype != torch.float16,
        "EVEN_K": d % tiling.block_k == 0,
        "PRECISION": precision,
        "COMPENSATED": compensated,
        "CHUNK": CHUNK if share > CHUNK and not wide and not compensated else 0,
        "SPLIT": tiling.shares > 1,
        "WIDE": wide,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK_K": tiling.block_k,
        "GROUP": tiling.group,
        "STEPS": search_steps(n, tiling),
        "UPCAST": _INTERPRETED and dtype == torch.bfloat16,
    }


def product(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor | None,
    b_scales: Tensor,
    out: Tensor,
    tiling: Tiling,
    precision: str,
) -> None:
    """Writes the cosines of a's rows with b's or, without b, with each other. No argument is empty.

    precision is Triton's, for float32: "ieee", "tf32", or "tf32x3", which splits every operand in two for
    tensor cores at three times the work, and which no operator asks for.
    """
    symmetric = b is None
    if b is None:
        b = a
    (n, d), m = a.shape, b.shape[0]
    known = constants(a.dtype, precision, n, d, a.stride(0), b.stride(0), symmetric, tiling)
    share_steps = _over(_over(d, tiling.block_k), tiling.shares)
    shares = _over(_over(d, tiling.block_k), share_steps)
    target, target_row, target_column, plane = out, out.stride(0), out.stride(1), 0
    if tiling.shares > 1:
        target = out.new_empty(shares, n, m)
        target_row, target_column, plane = m, 1, n * m
    _product[(tile_count(n, m, tiling, symmetric), shares)](
        a, b, a_scales, b_scales, target, n, m, d // known["D_UNIT"],
        a.stride(0) // known["A_UNIT"], a.stride(1), a.stride(1) * tiling.block_k,
        b.stride(0) // known["B_UNIT"], b.stride(1), b.stride(1) * tiling.block_k,
        target_row, target_column, share_steps, plane,
        **known, num_warps=tiling.num_warps, num_stages=tiling.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    if tiling.shares > 1:
        adding = Tiling(32, 32, 0, 8, 4, 3)
        _add_shares[(tile_count(n, m, adding, symmetric),)](
            target, a_scales, b_scales, out, n, m, shares, plane, out.stride(0), out.stride(1),
            SYMMETRIC=symmetric, BLOCK=adding.block_m, GROUP=adding.group, STEPS=search_steps(n, adding),
            num_warps=adding.num_warps, num_stages=adding.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


# ---- the operators ----


def pairwise_cosine(a: Tensor, b: Tensor | None = None) -> Tensor:
    """:func:`brittle.ops.pairwise_cosine` into a new tensor."""
    _check("pairwise_cosine", a, b)
    out = a.new_empty(a.shape[0], (a if b is None else b).shape[0], dtype=result_dtype(a.dtype))
    _fill(a, b, out)
    return out


def pairwise_cosine_out(a: Tensor, b: Tensor | None, out: Tensor) -> None:
    """:func:`brittle.ops.pairwise_cosine` into the caller's tensor."""
    _check("pairwise_cosine", a, b)
    _check_out("pairwise_cosine", a, b, out)
    _fill(a, b, out)


def _fill(a: Tensor, b: Tensor | None, out: Tensor) -> None:
    if out.numel() == 0:
        return
    if a.shape[1] == 0:
        out.zero_()
        return
    (n, d), m = a.shape, out.shape[1]
    precision = _precision(a.dtype)
    tiling = tiling_for(n, m, d, a.dtype, b is None, precision, _multiprocessors(a.device))
    with torch.cuda.device_of(a):
        a_scales = row_scales(a)
        product(a, a_scales, b, a_scales if b is None else row_scales(b), out, tiling, precision)


def pairwise_cosine_topk(a: Tensor, b: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """:func:`brittle.ops.pairwise_cosine_topk`: tiles of the product, each merged into the best so far."""
    _check("pairwise_cosine_topk", a, b)
    others = a if b is None else b
    n, m, d = a.shape[0], others.shape[0], a.shape[1]
    most = m if b is not None else max(n - 1, 0)
    if not 0 <= k <= most:
        whose = "rows of b" if b is not None else "other rows"
        raise ValueError(f"pairwise_cosine_topk: k must be in [0, {most}], the number of {whose}; got {k}")
    cosines = a.new_empty(n, k, dtype=result_dtype(a.dtype))
    indices = a.new_empty(n, k, dtype=torch.int64)
    if cosines.numel() == 0:
        return cosines, indices
    width = min(m, TOPK_COLUMNS)
    height = min(n, max(1, WORKSPACE // (width + 2 * k)))
    precision = _precision(a.dtype)
    # One tiling for all: equal rows then have equal cosines, wherever they stand.
    tiling = tiling_for(height, width, max(d, 1), a.dtype, False, precision, _multiprocessors(a.device))
    workspace = cosines.new_empty(height * width)
    with torch.cuda.device_of(a):
        a_scales, b_scales = (row_scales(a), row_scales(others)) if d else (None, None)
        for row in range(0, n, height):
            rows = min(height, n - row)
            best = (cosines.new_empty(rows, 0), indices.new_empty(rows, 0))
            for column in range(0, m, width):
                columns = min(width, m - column)
                tile = workspace[: rows * columns].view(rows, columns)
                if a_scales is None or b_scales is None:
                    tile.zero_()
                else:
                    of_a, of_b = slice(row, row + rows), slice(column, column + columns)
                    product(
                        a[of_a], a_scales[:, of_a].contiguous(), others[of_b], b_scales[:, of_b].contiguous(),
                        tile, tiling, precision,
                    )  # fmt: skip
                if b is None and -rows < row - column < columns:
                    tile.diagonal(row - column).fill_(torch.nan)  # a row is not its own neighbour
                best = _better(best, _best(tile, column, min(k, columns)), k)
            values, places = best
            cosines[row : row + rows] = values.masked_fill_(places < 0, torch.nan)
            indices[row : row + rows] = places
    return cosines, indices


def _best(tile: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """Of each row the k largest, of equal ones the lower index first; -inf and index -1 for NaN.

    ``torch.topk`` breaks ties as it likes. So it is given one integer for each float32: above, its bits, the
    negative ones' flipped so that they ascend; below, its index counted from the right, so no two are equal.
    """
    if tile.dtype == torch.float64:
        tile = tile.masked_fill_(tile.isnan(), -torch.inf)
        values, places = (x[:, :k] for x in tile.sort(dim=1, descending=True, stable=True))
    else:
        last = tile.shape[1] - 1
        bits = (tile + 0.0).nan_to_num_(nan=-torch.inf).view(torch.int32)  # -0.0 + 0.0 is 0.0
        keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) << 32
        keys += torch.arange(last, -1, -1, device=tile.device)
        keys = keys.topk(k, dim=1).values
        places = last - (keys & 0xFFFFFFFF)
        bits = (keys >> 32).to(torch.int32)
        values = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return values, torch.where(values == -torch.inf, -1, places + first)


def _better(best: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of both. `best` holds the lower indices, and the sort is stable: ties stay in order."""
    values, order = torch.cat([best[0], more[0]], 1).sort(dim=1, descending=True, stable=True)
    places = torch.cat([best[1], more[1]], 1).gather(1, order)
    return values[:, :k].contiguous(), places[:, :k].contiguous()


# ---- the checks that the C++ front makes for the CPU ----


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(op: str, a: Tensor, b: Tensor | None) -> None:
    if a.dtype not in FLOATING:
        raise ValueError(f"{op}: a must be float32, float64, float16 or bfloat16; got {_name(a.dtype)}")
    if a.dim() != 2:
        raise ValueError(f"{op}: a must be [N, D]; got shape {list(a.shape)}")
    if b is None:
        return
    if b.dim() != 2:
        raise ValueError(f"{op}: b must be [M, D]; got shape {list(b.shape)}")
    if b.dtype != a.dtype:
        raise ValueError(f"{op}: b must have a's dtype {_name(a.dtype)}; got {_name(b.dtype)}")
    if b.shape[1] != a.shape[1]:
        raise ValueError(f"{op}: b must have a's {a.shape[1]} columns; got shape {list(b.shape)}")
    if b.device != a.device:
        raise ValueError(f"{op}: b must be on a's device {a.device}; got {b.device}")


def _check_out(op: str, a: Tensor, b: Tensor | None, out: Tensor) -> None:
    shape = [a.shape[0], (a if b is None else b).shape[0]]
    if list(out.shape) != shape:
        raise ValueError(f"{op}: out must have shape {shape}; got {list(out.shape)}")
    if out.dtype != result_dtype(a.dtype):
        raise ValueError(f"{op}: out must be {_name(result_dtype(a.dtype))}; got {_name(out.dtype)}")
    if out.device != a.device:
        raise ValueError(f"{op}: out must be on a's device {a.device}; got {out.device}")
    if out.numel() and any(
        size > 1 and step == 0 for size, step in zip(out.shape, out.stride(), strict=True)
    ):
        raise ValueError(f"{op}: out must not be expanded: several of its elements share one place in memory")
    for name, read in (("a", a), ("b", b)):
        if read is not None and _overlap(read, out):
            raise ValueError(
                f"{op}: out must not share memory with {name}, which is read while it is written"
            )


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether the stretches of memory from the first to the last element of both have a byte in common."""
    if x.numel() == 0 or y.numel() == 0:
        return False
    (x_first, x_end), (y_first, y_end) = _extent(x), _extent(y)
    return x_first < y_end and y_first < x_end


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
