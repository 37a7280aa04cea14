"""The Linf step, the sign sweep and the random start, as definitions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brittle.reference.philox import sample_words

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def linf_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    projection: str = "exact",
    trace: Tensor | None = None,
) -> Tensor:
    """``adv <- project(adv + step_size * sign(grad))``; a zero, NaN or infinite gradient moves nothing."""
    _linf_step_(adv, grad, clean, step_size, eps, bounds, projection)
    if trace is not None:
        trace.copy_(step_trace(adv, grad))
    return adv


def step_trace(adv: Tensor, grad: Tensor) -> Tensor:
    """What ``trace`` holds after a step to ``adv`` along ``grad``: ``[N, 3]``."""
    if not adv.numel():
        return torch.zeros(len(adv), 3, dtype=torch.int64)
    grad = grad.reshape(len(grad), -1)
    finite = grad.isfinite()
    columns = [fingerprint(adv), (finite & (grad != 0)).sum(1), (~finite).sum(1)]
    return torch.stack(columns, 1)


def fingerprint(x: Tensor) -> Tensor:
    """A 64-bit hash of each row's stored bits and their places in memory, int64 ``[N]``.

    Sums and products are modulo 2**64.
    """
    rows = memory_order(x)
    width = 8 * x.element_size()
    stored = rows.view(_BITS[x.dtype]).to(torch.int64)
    z = stored & (2**width - 1) if width < 64 else stored
    z = z + torch.arange(rows.shape[1]) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 32)) * _signed(0xD6E8FEB86659FD93)
    z = (z ^ _shifted(z, 29)) * _signed(0xBF58476D1CE4E5B9)
    return (z ^ _shifted(z, 32)).sum(1)


def memory_order(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` as ``[N, elements]``, each row's elements in the order that ``like`` (or ``x``) has in memory."""
    strides = (x if like is None else like).stride()
    inner = [d for d in range(1, x.dim()) if x.shape[d] > 1]
    order = sorted(inner, key=lambda d: -strides[d])
    unit = [d for d in range(1, x.dim()) if x.shape[d] == 1]
    return x.permute(0, *order, *unit).reshape(len(x), -1)


def _shifted(z: Tensor, count: int) -> Tensor:
    """A logical shift to the right."""
    return z.bitwise_right_shift(count).bitwise_and(2 ** (64 - count) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _linf_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: tuple[float, float],
    projection: str,
) -> Tensor:
    dtype, compute = adv.dtype, _compute(adv.dtype)
    direction = torch.where(torch.isfinite(grad), grad, 0).to(compute).sign()
    step = _column(step_size, adv)
    if projection == "exact":
        moved = adv.to(compute) + step.to(compute) * direction
        return adv.copy_(_project(moved, clean, _round_down(_column(eps, adv), dtype), bounds))
    # As eager code rounds it: to the storage type after every operation.
    moved = (adv.to(compute) + step.to(dtype).to(compute) * direction).to(dtype)
    radius = _column(eps, adv).to(dtype)
    difference = torch.clamp(moved - clean, -radius, radius)
    return adv.copy_(torch.clamp(clean + difference, *_bounds(bounds, dtype)))


def sign_sweep(
    x: Tensor,
    grad: Tensor,
    eps: Sequence[float],
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    keep_ball: bool = True,
) -> Tensor:
    """One step of each length from ``x``."""
    return torch.stack([linf_step_(x.clone(), grad, x, e, e if keep_ball else math.inf, bounds) for e in eps])


def linf_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """``project(clean + eps * u)``, u uniform on [-1, 1) from the top 24 bits of each element's word."""
    ids = torch.arange(len(clean)) if sample_ids is None else sample_ids
    compute = _compute(clean.dtype)
    words = sample_words(seed, ids, draw, clean[:1].numel()).reshape(clean.shape)
    uniform = ((words >> 8) - 2**23).to(compute) * 2.0**-23
    radius = _round_down(_column(eps, clean), clean.dtype)
    return _project(clean.to(compute) + radius * uniform, clean, radius, bounds)


def _project(value: Tensor, clean: Tensor, radius: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The stored value nearest to ``value`` in the bounds and the ball, exactly inside the ball."""
    dtype, compute = clean.dtype, value.dtype
    centre = clean.to(compute)
    value = torch.clamp(value, *_bounds(bounds, dtype))
    value = torch.clamp(value, centre - radius, centre + radius)
    stored = value.to(dtype)
    difference = stored.to(compute) - centre
    outside = difference.abs() > radius
    towards_clean = torch.where(stored.signbit() == difference.signbit(), -1, 1)
    one_ulp_in = (stored.view(_BITS[dtype]) + towards_clean.to(_BITS[dtype])).view(dtype)
    return torch.where(outside, one_ulp_in, stored)


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """A float64 value that broadcasts over the samples of ``like``."""
    column = torch.as_tensor(value, dtype=torch.float64)
    return column.reshape(-1, *[1] * (like.dim() - 1)) if column.dim() else column


def _round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest ``dtype`` number that is not above ``value``, in the type the arithmetic is done in."""
    rounded = value.to(dtype)
    down = (rounded.view(_BITS[dtype]) - 1).view(dtype)
    return torch.where(rounded.to(torch.float64) > value, down, rounded).to(_compute(dtype))


def _bounds(bounds: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    lo, hi = (torch.tensor(bound, dtype=dtype).item() for bound in bounds)
    return lo, hi
