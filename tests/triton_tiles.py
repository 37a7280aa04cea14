"""A kernel that writes down which tile each program would take; loaded like the one that is tested."""

import triton
import triton.language as tl


@triton.jit
def write_tiles(
    triangle: tl.constexpr,
    rows,
    columns,
    first,
    count,
    tiles,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = triangle(first + index, tiles, GROUP, STEPS)
    tl.store(rows + index, row, mask=index < count)
    tl.store(columns + index, column, mask=index < count)
