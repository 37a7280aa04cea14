"""Checks of what callers hand to an attack. Each error names operator, argument, expected and got."""

import math

import torch
from torch import Tensor

from brittle.target import Target, some

Bounds = tuple[float, float]

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_images(op: str, x: Tensor, bounds: Bounds, ids: Tensor | None = None) -> None:
    """``x`` is a floating-point ``[N, ...]`` inside the bounds; samples that are not are named by ``ids``, or
    by their place.

    A few units in the last place outside are let through: normalising and denormalising leaves them, and
    the kernels bring every result back inside.
    """
    lo, hi = bounds
    if not lo < hi:
        raise ValueError(f"{op}: bounds must be (lo, hi) with lo < hi; got ({lo}, {hi})")
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: x must be a tensor; got {type(x).__name__}")
    if x.dtype not in _FLOATING:
        hint = "; scale integer images first, e.g. x.float() / 255" if not x.is_floating_point() else ""
        raise ValueError(f"{op}: x must be float32, float64, float16 or bfloat16; got {x.dtype}{hint}")
    if x.dim() < 1:
        raise ValueError(f"{op}: x must be [N, ...]; got shape []")
    if x.numel() == 0:
        return
    smallest, largest = (value.item() for value in x.detach().aminmax())
    slack = 4 * torch.finfo(x.dtype).eps * max(abs(lo), abs(hi), hi - lo)
    if not (smallest >= lo - slack and largest <= hi + slack):
        rows = x.detach().flatten(1) if x.dim() > 1 else x.detach().unsqueeze(1)
        inside = ((rows >= lo - slack) & (rows <= hi + slack)).all(1)
        wrong = (~inside).nonzero().squeeze(1) if ids is None else ids[~inside]
        got = f"values from {smallest} to {largest}" if smallest <= largest else "NaN"
        raise ValueError(
            f"{op}: x must lie inside bounds ({lo}, {hi}); got {got} in {len(wrong)} sample(s): {some(wrong)}"
        )


def check_labels(op: str, y: Tensor, x: Tensor) -> None:
    """``y`` is int64 ``[N]`` on x's device."""
    if not isinstance(y, Tensor):
        raise ValueError(f"{op}: y must be a tensor; got {type(y).__name__}")
    if y.dtype != torch.int64:
        raise ValueError(f"{op}: y must be int64 class labels; got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"{op}: y must be [N] with N = {len(x)}; got shape {list(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"{op}: y must be on x's device {x.device}; got {y.device}")


def check_device(op: str, x: Tensor, target: Target) -> None:
    """``x`` is where the model is."""
    if target.device is not None and target.device != x.device:
        raise ValueError(f"{op}: x must be on the model's device {target.device}; got {x.device}")


def check_scalar(op: str, name: str, value: float) -> float:
    """A finite number >= 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{op}: {name} must be finite and >= 0; got {value}")
    return float(value)


def check_amount(op: str, name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    """A finite number >= 0, or one for each sample, ready for indexing by sample."""
    if not isinstance(value, Tensor):
        return check_scalar(op, name, value)
    if value.dim() not in (0, 1) or (value.dim() == 1 and value.shape != x.shape[:1]):
        raise ValueError(
            f"{op}: {name} must be a scalar or [N]; got shape {list(value.shape)} for N = {len(x)}"
        )
    if value.dim() == 1 and value.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}; got {value.device}")
    wrong = ~((value >= 0) & value.isfinite())
    if wrong.any():
        raise ValueError(f"{op}: {name} must be finite and >= 0; got {value[wrong][0].item()}")
    return value.to(torch.float64) if value.dim() == 1 else value.item()


def check_radius(op: str, name: str, value: float | Tensor) -> None:
    """A finite number >= 0; tensors are checked beside the samples that they are for."""
    if not isinstance(value, Tensor):
        check_scalar(op, name, value)


def check_inside(op: str, name: str, eps: float | Tensor, norm: str, bounds: Bounds) -> None:
    """In Linf, ``eps`` is at most the width of the bounds: beyond it every input is in every ball.

    The usual slip is 8 for 8/255. A radius as large as the width is let through: it is where a search for the
    smallest one may well begin.
    """
    width = bounds[1] - bounds[0]
    largest = max(eps.flatten().tolist(), default=0.0) if isinstance(eps, Tensor) else eps
    if norm == "linf" and 0 < width * (1 + 1e-6) < largest:
        lo, hi = bounds
        raise ValueError(
            f"{op}: {name} must be at most {width:g}, the width of the bounds ({lo:g}, {hi:g}), beyond which "
            f"every input is in reach and nothing is proven; got {largest:g} (is it {largest:g}/255?)"
        )


def check_count(op: str, name: str, value: int, least: int = 1) -> int:
    """An integer of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{op}: {name} must be an integer >= {least}; got {value!r}")
    return value


def check_schedule(op: str, steps: int, restarts: int, random_start: bool) -> None:
    """At least one step and one start, and a random start where there are several."""
    check_count(op, "steps", steps)
    check_count(op, "restarts", restarts)
    if restarts > 1 and not random_start:
        raise ValueError(f"{op}: restarts > 1 needs random_start; got restarts={restarts} without it")


def check_seed(op: str, seed: int) -> None:
    """A signed or unsigned 64-bit integer."""
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"{op}: seed must be an integer of 64 bits; got {seed!r}")


def check_sample_ids(op: str, sample_ids: Tensor | None, x: Tensor) -> Tensor:
    """int64 ``[N]`` on x's device; ``0 .. N - 1`` by default."""
    if sample_ids is None:
        return torch.arange(len(x), device=x.device)
    if sample_ids.dtype != torch.int64 or sample_ids.shape != x.shape[:1]:
        raise ValueError(
            f"{op}: sample_ids must be int64 [N] with N = {len(x)}; "
            f"got {sample_ids.dtype} {list(sample_ids.shape)}"
        )
    if sample_ids.device != x.device:
        raise ValueError(f"{op}: sample_ids must be on x's device {x.device}; got {sample_ids.device}")
    return sample_ids


def check_choice(op: str, name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    """One of the names offered."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
