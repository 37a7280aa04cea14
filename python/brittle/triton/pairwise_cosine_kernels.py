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

import triton
import triton.language as tl

# Rows of lengths within 2^-40..2^40 need no scaling in float32: sums of their products lie within
# 2^-80..2^80, with room at both ends. In float64, 2^-400..2^400.
_SAFE = tl.constexpr(2.0**40)
_SAFE_WIDE = tl.constexpr(2.0**400)


# ---- the rows' lengths ----


@triton.jit
def row_scales_kernel(x, scales, n, d, x_row, x_column, x_step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
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
def triangle_tile(index, tiles, GROUP: tl.constexpr, STEPS: tl.constexpr):
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
def rectangle_tile(index, row_tiles, column_tiles, GROUP: tl.constexpr):
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
        square, column = triangle_tile(index // SLICES, (n + BLOCK_N - 1) // BLOCK_N, GROUP, STEPS)
        row = square * SLICES + index % SLICES
    else:
        row, column = rectangle_tile(index, (n + BLOCK_M - 1) // BLOCK_M, (m + BLOCK_N - 1) // BLOCK_N, GROUP)
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
def product_kernel(
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
def add_shares_kernel(
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
