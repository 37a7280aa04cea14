"""Inputs that every operator's tests share: all dtypes, awkward shapes and strides, awkward values."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BITS = {torch.float64: torch.int64, torch.float32: torch.int32}


def bits(x: Tensor) -> Tensor:
    """The stored bits, so that -0.0 differs from 0.0 and NaN equals itself."""
    return x.contiguous().view(BITS.get(x.dtype, torch.int16))


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    different = bits(a) != bits(b)
    assert not different.any(), f"{int(different.sum())} of {a.numel()}: {a[different]} != {b[different]}"


def images(shape: Any, dtype: torch.dtype, bounds: tuple[float, float], seed: int) -> Tensor:
    """Values in the bounds, the ends and zero-ish ones among them."""
    generator = torch.Generator().manual_seed(seed)
    lo, hi = bounds
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * (hi - lo) + lo
    special = torch.tensor([lo, hi, (lo + hi) / 2, min(max(0.0, lo), hi), min(max(1e-8, lo), hi)])
    pick = torch.randint(0, 20, x.shape, generator=generator)
    x = torch.where(pick < 5, special.double()[pick.clamp(max=4)], x)
    ends = torch.tensor([lo, hi], dtype=dtype)
    return x.to(dtype).clamp(ends[0], ends[1])


def gradients(shape: Any, dtype: torch.dtype, seed: int) -> Tensor:
    """Gradients of all sizes, with zeros of both signs, subnormals, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed + 1)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    g = g * 10.0 ** torch.randint(-6, 3, g.shape, generator=generator)
    tiny = torch.finfo(dtype).smallest_normal
    values = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), tiny / 4, -tiny / 4, tiny]
    pick = torch.randint(0, 40, g.shape, generator=generator)
    g = torch.where(pick < len(values), torch.tensor(values).double()[pick.clamp(max=len(values) - 1)], g)
    return g.to(dtype)


def array(x: Tensor) -> Any:
    """A NumPy array on the tensor's memory, strides kept; bfloat16 by way of ml_dtypes."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def tensor(x: Any) -> Tensor:
    """A tensor on the array's memory."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other strides."""
    found = {"contiguous": x.contiguous()}
    if x.dim() >= 2:
        found["reversed dims"] = (
            x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
        )
        found["inner slice"] = torch.stack([x, x], -1)[..., 0]
        found["outer slice"] = torch.stack([x, x], 1)[:, 1]
    if x.dim() == 4:
        found["channels last"] = x.contiguous(memory_format=torch.channels_last)
    if x.dim() >= 1:
        padded = x.new_zeros(x.numel() + 1)[1:].view(x.shape)  # starts off a 16-byte boundary
        found["misaligned"] = padded.copy_(x)
    return found


@dataclass(frozen=True)
class StepSample:
    adv: Tensor
    grad: Tensor
    clean: Tensor
    step_size: float | Tensor
    eps: float | Tensor
    bounds: tuple[float, float]


@st.composite
def step_samples(draw: st.DrawFn) -> StepSample:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    if draw(st.integers(0, 15)) == 0:
        shape[draw(st.integers(0, len(shape) - 1))] = 0
    shape[-1] = draw(st.sampled_from([shape[-1], 33, 67]))
    lo = draw(st.sampled_from([0.0, -1.0, 0.1, -2.117904]))
    bounds = (lo, lo + draw(st.sampled_from([1.0, 2.0, 255.0, 0.3])))
    seed = draw(st.integers(0, 2**31))
    amount = st.one_of(
        st.sampled_from([0.0, 2 / 255, 8 / 255, 0.1, 0.3, 1e-9]),
        st.floats(0, 2, allow_nan=False),
    )

    def per_sample_or_scalar() -> float | Tensor:
        if draw(st.booleans()):
            return draw(amount)
        return torch.tensor([draw(amount) for _ in range(shape[0])], dtype=torch.float64)

    clean = images(shape, dtype, bounds, seed)
    others = {
        "adv": images(shape, dtype, bounds, seed + 2),
        "grad": gradients(shape, dtype, seed),
        "clean": clean,
    }
    for name, value in others.items():
        choices = layouts(value)
        others[name] = choices[draw(st.sampled_from(sorted(choices)))]
    return StepSample(
        others["adv"],
        others["grad"],
        others["clean"],
        per_sample_or_scalar(),
        per_sample_or_scalar(),
        bounds,
    )
