"""The L1 step as a definition: one row at a time, the selection by sorting."""

import math
import struct

import torch
from torch import Tensor

from brittle.reference.gradient_step import _bounds, _compute, memory_order, step_trace
from brittle.reference.gradient_step import _project as _nearest
from brittle.reference.row_step import row_sum

_NEWTON_ROUNDS = 40


def l1_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    k: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    trace: Tensor | None = None,
) -> Tensor:
    """``adv <- project(adv + step_size / count * sign(grad))``, where the k largest gradients are."""
    rows = [_values(value, adv) for value in (step_size, eps, k)]
    for row, (step, radius, count) in enumerate(zip(*rows, strict=True)):
        if not adv.numel():
            break
        move = _move(_free(adv[row], grad[row], bounds), step, count)
        adv[row] = _project(adv[row], move, clean[row], radius, bounds, adv)
    if trace is not None:
        trace.copy_(step_trace(adv, grad))
    return adv


def _free(adv: Tensor, grad: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The gradient, or 0 where the element is at the bound that it leads to."""
    lo, hi = _bounds(bounds, adv.dtype)
    blocked = torch.where(grad.signbit(), adv <= lo, adv >= hi)
    return torch.where(blocked, 0, grad)


def _move(grad: Tensor, step_size: float, k: float) -> Tensor:
    """What the step adds to each element of a row; elements as large as the k-th move with it."""
    compute = _compute(grad.dtype)
    size = torch.where(grad.isfinite(), grad, 0).to(compute).abs()
    movable = size[size > 0].sort(descending=True).values
    if not len(movable):
        return torch.zeros_like(size)
    moved = size >= movable[int(min(k, len(movable))) - 1]
    share = torch.tensor(step_size / int(moved.sum()), dtype=torch.float64).to(compute)
    return torch.where(moved, share.copysign(grad.to(compute)), 0)


def _project(
    adv: Tensor, move: Tensor, clean: Tensor, eps: float, bounds: tuple[float, float], batch: Tensor
) -> Tensor:
    dtype, compute = adv.dtype, move.dtype
    lo, hi = _bounds(bounds, dtype)
    centre = clean.to(compute)
    way = (adv.to(compute) - centre) + move
    length, below = way.abs(), way.signbit()
    length = torch.where(length.isinf(), torch.finfo(compute).max, length)
    room = _not_negative(torch.where(below, centre - lo, hi - centre))
    room = torch.where(length.isnan(), 0, room)
    in_order = [memory_order(t[None], batch[:1])[0].to(torch.float64) for t in (length, room)]
    shrink = 0.0 if math.isinf(eps) else _shrink(in_order[0], in_order[1], eps, compute)
    kept = length
    if shrink:
        left = length.to(torch.float64) - shrink
        if compute == torch.float32:  # to a float that is no more
            left = left * (1 - 2.0**-24) - 2.0**-150
        kept = _not_negative(left.to(compute))
    kept = torch.where(room < kept, room, kept)
    projected = _nearest(centre + torch.where(below, -kept, kept), clean, kept, bounds)
    unmoved = torch.where(adv < lo, lo, torch.where(adv > hi, hi, adv))
    return torch.where((move == 0) & (shrink == 0.0), unmoved, projected)


def _shrink(length: Tensor, room: Tensor, eps: float, compute: torch.dtype) -> float:
    """The root of ``sum(clamp(length - shrink, 0, room)) = radius``, from the side of the smaller sum."""
    single = compute == torch.float32
    radius = eps * (1 - 2.0**-18 if single else 1 - 2.0**-40)
    band = 2.0**-30 if single else 2.0**-44
    lo, hi, at = 0.0, torch.finfo(compute).max, 0.0
    length = torch.where(length.isnan(), 0, length)
    for rounds in range(_NEWTON_ROUNDS + 66):
        left = length - at
        total = row_sum(torch.where(left > 0, torch.minimum(left, room), 0)[None]).item()
        if rounds == 0 and total <= radius:
            return 0.0
        if radius == 0:
            return hi
        giving = float(((left > 0) & (left <= room)).sum())
        slack = radius * band + giving * at * 2.0**-50
        if total > radius:
            lo = at
        else:
            hi = at
            if total >= radius - slack:
                return at
        above = total - (radius - 0.5 * slack)
        at = at + above / giving if giving else math.copysign(math.inf, above)
        if rounds >= _NEWTON_ROUNDS or not lo < at < hi:
            far = hi > 16 * lo if lo > 0 else hi == torch.finfo(compute).max
            by_bits = _double(_word(lo) + (_word(hi) - _word(lo)) // 2)
            at = by_bits if far or rounds >= _NEWTON_ROUNDS else lo + 0.5 * (hi - lo)
        if not lo < at < hi:
            return hi
    raise AssertionError("the bracket did not close")


def _not_negative(x: Tensor) -> Tensor:
    return torch.where(x.signbit(), 0, x)


def _word(x: float) -> int:
    word: int = struct.unpack("<q", struct.pack("<d", x))[0]
    return word


def _double(word: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<q", word))[0]
    return value


def _values(value: float | Tensor, like: Tensor) -> list[float]:
    return torch.as_tensor(value, dtype=torch.float64).expand(len(like)).tolist()
