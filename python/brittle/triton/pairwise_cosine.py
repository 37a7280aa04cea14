"""The pairwise_cosine operators on a GPU: their checks, and how the kernels are launched."""

from typing import Any

import torch
import triton
from torch import Tensor

from brittle.triton.pairwise_cosine_kernels import add_shares_kernel, product_kernel, row_scales_kernel
from brittle.triton.pairwise_cosine_tilings import (
    CHUNK,
    H200_MULTIPROCESSORS,
    Tiling,
    over,
    search_steps,
    tile_count,
    tiling_for,
)

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WORKSPACE = 16 * 2**20
"""Cosines that top-k looks at in one go: 64 MB of float32, and some 256 MB to find the best of them."""
TOPK_COLUMNS = 2**14

_INTERPRETED = not isinstance(product_kernel, triton.runtime.JITFunction)


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
    row_scales_kernel[(over(n, rows),)](
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
    share = over(over(d, tiling.block_k), tiling.shares) * tiling.block_k
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
    share_steps = over(over(d, tiling.block_k), tiling.shares)
    shares = over(over(d, tiling.block_k), share_steps)
    target, target_row, target_column, plane = out, out.stride(0), out.stride(1), 0
    if tiling.shares > 1:
        target = out.new_empty(shares, n, m)
        target_row, target_column, plane = m, 1, n * m
    product_kernel[(tile_count(n, m, tiling, symmetric), shares)](
        a, b, a_scales, b_scales, target, n, m, d // known["D_UNIT"],
        a.stride(0) // known["A_UNIT"], a.stride(1), a.stride(1) * tiling.block_k,
        b.stride(0) // known["B_UNIT"], b.stride(1), b.stride(1) * tiling.block_k,
        target_row, target_column, share_steps, plane,
        **known, num_warps=tiling.num_warps, num_stages=tiling.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    if tiling.shares > 1:
        adding = Tiling(32, 32, 0, 8, 4, 3)
        add_shares_kernel[(tile_count(n, m, adding, symmetric),)](
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
    with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
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
    with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
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
