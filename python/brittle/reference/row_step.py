"""The L2 step and the momentum step, as definitions.

The exact L2 step is given to the bit; its compat projections as the peers' eager code, to rounding.
"""

import math

import torch
from torch import Tensor

from brittle.reference.gradient_step import (
    _bounds,
    _column,
    _compute,
    _project,
    linf_step_,
    memory_order,
    step_trace,
)

_LANES = 1024


def row_sum(terms: Tensor) -> Tensor:
    """The sum of each row of float64 ``[N, elements]``, in the kernels' order: 1024 lanes, then halved."""
    rows, elements = terms.shape
    padded = torch.zeros(rows, -(-elements // _LANES) * _LANES, dtype=torch.float64)
    padded[:, :elements] = terms
    lanes = torch.zeros(rows, _LANES, dtype=torch.float64)
    for part in padded.reshape(rows, -1, _LANES).unbind(1):
        lanes = lanes + part
    while lanes.shape[1] > 1:
        lower, upper = lanes.chunk(2, 1)
        lanes = lower + upper
    return lanes[:, 0]


def l2_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    projection: str = "exact",
    floor: str = "none",
    trace: Tensor | None = None,
) -> Tensor:
    """``adv <- _project(adv + step_size * grad / |grad|)`` in the L2 ball; a zero gradient moves nothing."""
    if adv.numel():
        if projection == "exact":
            _exact_l2(adv, grad, clean, step_size, eps, bounds, floor)
        else:
            _eager_l2(adv, grad, clean, step_size, eps, bounds, floor, projection == "clip_project")
    if trace is not None:
        trace.copy_(step_trace(adv, grad))
    return adv


def momentum_step_(
    adv: Tensor,
    grad: Tensor,
    momentum: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    decay: float = 1.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    normalize: str = "l1",
    norm: Tensor | None = None,
    projection: str = "exact",
    trace: Tensor | None = None,
) -> Tensor:
    """``momentum <- decay * momentum + grad / norm``, then the Linf step along it."""
    dtype, compute = adv.dtype, _compute(adv.dtype)
    if adv.numel():
        live = torch.where(grad.isfinite(), grad, 0).to(compute)
        if normalize == "sign":
            added = live.sign()
        else:
            if norm is None:
                norm = row_sum(memory_order(live.double().abs(), adv))
                norm = norm / adv[0].numel() if normalize == "mean" else norm
            divisor = torch.where(norm.to(compute) > 0, norm.to(compute), math.inf)
            added = (live / divisor.reshape(-1, *[1] * (adv.dim() - 1))).to(dtype).to(compute)
        decayed = (momentum.to(compute) * torch.tensor(decay, dtype=compute)).to(dtype).to(compute)
        momentum.copy_((added + decayed).to(dtype))
        linf_step_(adv, momentum, clean, step_size, eps, bounds, projection=projection)
    if trace is not None:
        trace.copy_(step_trace(adv, grad))
    return adv


def _exact_l2(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: tuple[float, float],
    floor: str,
) -> None:
    compute = _compute(adv.dtype)
    wide = compute == torch.float64
    live = torch.where(grad.isfinite(), grad, 0).to(compute)
    difference = adv.to(compute) - clean.to(compute)

    def total(terms: Tensor) -> Tensor:
        """Of each row, shaped to broadcast."""
        return row_sum(memory_order(terms, adv)).reshape(-1, *[1] * (adv.dim() - 1))

    d = torch.where(difference.isfinite(), difference, 0).double()
    shift = torch.zeros(len(adv), *[1] * (adv.dim() - 1), dtype=torch.float64)
    if adv.dtype == torch.float64:
        squares = total(live * live)
        shift = torch.where(squares < 1e-280, 600.0, torch.where(squares > 1e300, -600.0, 0.0)).double()
    unit = _power_of_two(shift)
    g = live.double() * unit
    gg, dg, dd = total(g * g), total(d * g), total(d * d)

    norm = _root(gg)
    still = norm == 0
    divisor = {
        "none": norm,
        "torchattacks": norm + 1e-10 * unit,
        "foolbox": norm.maximum(1e-12 * unit),
        "autoattack": norm + 1e-12 * unit,
        "cleverhans": norm.maximum(1e-6 * unit),
    }[floor]
    divisor = torch.where(still, 1.0, divisor)
    step = _column(step_size, adv).clamp(max=2.0**500 if wide else 2.0**100)
    step = torch.where(still, 0.0, step)
    # up * down is the power of two that brings the gradient's divisor into [1, 2).
    exponent = divisor.frexp().exponent - 1
    k = (shift - exponent).to(torch.int64)
    half = k.div(2, rounding_mode="trunc")
    up, down = _power_of_two(half).to(compute), _power_of_two(k - half).to(compute)
    per_unit = (step / (divisor * _power_of_two(-exponent))).to(compute)
    moved = difference + live * up * down * per_unit

    limit = _column(eps, adv) * (1 - 2.0 ** (-40 if wide else -18))
    reach = step * (norm / divisor)
    length = _root((dd + 2 * step * (dg / divisor) + reach * reach).clamp(min=0))
    farthest = _root(dd) + reach
    finite = torch.where(moved.isfinite(), moved, 0).double()
    measured = _root(total(finite * finite))
    cancelled = (4 * length < farthest) & (length + 2.0**-20 * farthest > limit)
    length = torch.where(cancelled, measured, length)
    factor = torch.where(length <= limit, 1.0, (limit / length).nan_to_num(0.0)).to(compute)
    delta = moved * factor
    adv.copy_(_project(clean.to(compute) + delta, clean, delta.abs(), bounds))


def _eager_l2(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: tuple[float, float],
    floor: str,
    clip_first: bool,
) -> None:
    dtype = adv.dtype
    live = torch.where(grad.isfinite(), grad, 0).to(torch.float64)
    norm = _length(live)
    divisor = {
        "none": torch.where(norm == 0, 1.0, norm),
        "torchattacks": norm + 1e-10,
        "foolbox": norm.maximum(torch.tensor(1e-12)),
        "autoattack": norm + 1e-12,
        "cleverhans": (norm**2).maximum(torch.tensor(1e-12)).sqrt(),
    }[floor]
    moved = adv + (_column(step_size, adv) * (live / divisor)).to(dtype)
    lo, hi = _bounds(bounds, dtype)
    if clip_first:
        moved = moved.clamp(lo, hi)
    delta = moved - clean
    length = _length(delta.double())
    factor = torch.where(length <= _column(eps, adv), 1.0, _column(eps, adv) / length)
    adv.copy_((clean + (delta * factor.to(_compute(dtype))).to(dtype)).clamp(lo, hi))


def _length(x: Tensor) -> Tensor:
    """The L2 norm of each sample, shaped to broadcast; by way of the largest, so that squares fit."""
    rows = x.reshape(len(x), -1)
    largest = rows.abs().amax(1, keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    length = largest * (rows / largest).square().sum(1, keepdim=True).sqrt()
    return length.reshape(-1, *[1] * (x.dim() - 1))


def _root(x: Tensor) -> Tensor:
    """The square root, correctly rounded, which torch's need not be."""
    return torch.tensor([math.sqrt(value) for value in x.flatten().tolist()], dtype=x.dtype).view(x.shape)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
