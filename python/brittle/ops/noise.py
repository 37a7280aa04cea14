"""Random numbers drawn, scaled, applied and clamped in one pass over memory.

A result is a function of (seed, sample id, draw, element) and nothing else: it does not depend on the batch a
sample is in, on its place there, on memory layout, thread count or device, bit for bit. The numbers are
stream 1 of :mod:`brittle`, whose bits never change: Philox4x32-10, Gaussian numbers by Box and Muller. They
are float32 numbers in every dtype; float16 and bfloat16 hold the rounding of the float32 result.
"""

import math
from typing import Any

import torch
from torch import Tensor

import brittle._library  # noqa: F401  (registers the operators)
from brittle.ops._arguments import per_row, signed64, written
from brittle.ops.gradient_step import linf_start

_ops = torch.ops.brittle

Bounds = tuple[float, float]

# In the order of brittle::Noise.
KINDS = ("gaussian", "uniform", "laplace", "speckle", "shot", "salt_and_pepper", "dropout")


def noise(
    x: Tensor,
    kind: str,
    scale: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x`` with noise of one kind, clamped to the bounds.

    ================== =========================================== ==========================
    kind               result, before clamping                     scale
    ================== =========================================== ==========================
    gaussian           ``x + scale * z``                           >= 0
    uniform            ``x + scale * u``, u uniform on [-1, 1)     >= 0
    laplace            ``x + scale * l``, density exp(-abs(l)) / 2 >= 0
    speckle            ``x + x * scale * z``                       >= 0
    shot               ``Poisson(scale * x) / scale``              photons at 1, (0, 2^24]
    salt_and_pepper    a bound, each with probability scale / 2    [0, 1]; finite bounds
    dropout            0 with probability scale, else              [0, 1)
                       ``x / (1 - scale)``
    ================== =========================================== ==========================

    Differentiable with respect to ``x`` where ``out`` is not given: the identity (speckle: ``1 + scale * z``,
    dropout: the factor, salt and pepper: 0 where replaced, shot: straight through), and 0 where the
    result was clamped. The backward pass draws the numbers again instead of storing a mask.

    Shot noise takes about ``sqrt(scale * x)`` operations an element, and leaves elements of more than 2^30
    expected photons as they are.

    Args:
        x: ``[N, ...]``, float32, float64, float16 or bfloat16, any strides.
        kind: see above.
        scale: see above, a float or ``[N]``.
        seed: 64-bit seed.
        sample_ids: int64 ``[N]``, >= 0: each sample's identity in its data set; by default ``0 .. N - 1``.
        draw: in ``[0, 2**32)``; another draw is other, independent numbers. Those from 2**31 on belong to
            the attacks' random starts.
        bounds: ``(lo, hi)``, lo < hi; None for none.
        out: like ``x``, to write into; may be ``x`` itself.

    Returns:
        ``out``, or a new tensor of ``x``'s layout.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
        Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Stat. 1958.

    Example:
        >>> import torch, brittle
        >>> x = torch.rand(4, 3, 8, 8)
        >>> noisy = brittle.ops.noise(x, "gaussian", 0.1, seed=7, bounds=(0.0, 1.0))
        >>> alone = brittle.ops.noise(x[2:3], "gaussian", 0.1, 7, torch.tensor([2]), bounds=(0.0, 1.0))
        >>> torch.equal(noisy[2:3], alone)
        True
    """
    if kind not in KINDS:
        raise ValueError(f"noise: kind must be one of {', '.join(KINDS)}; got {kind!r}")
    lo, hi = (-math.inf, math.inf) if bounds is None else bounds
    seed = signed64("noise", seed)
    ids = None if sample_ids is None else sample_ids.contiguous()
    rows = None
    if isinstance(scale, Tensor):
        rows, scale = per_row(scale, x), 0.0
    if out is None:
        result: Tensor = _ops.noise.default(x, KINDS.index(kind), scale, rows, seed, ids, draw, lo, hi)
        return result
    _ops.noise_out.default(x, KINDS.index(kind), scale, rows, seed, ids, draw, lo, hi, out)
    return written(out)


def in_ball(
    x: Tensor,
    eps: float | Tensor,
    norm: str = "linf",
    surface: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A uniformly random point of a ball around each sample, then clipped to the bounds.

    Args:
        x: ``[N, ...]``, the centres, float32, float64, float16 or bfloat16, any strides.
        eps: radius, finite and >= 0, a float or ``[N]``.
        norm: ``"linf"`` (the box), ``"l2"`` or ``"l1"``.
        surface: on the L2 or L1 sphere instead of inside it.
        seed, sample_ids, draw, bounds, out: as for :func:`noise`.

    Returns:
        ``out``, or a new tensor of ``x``'s layout. L2 and L1 points are drawn for a radius one millionth
        below eps; each element is then rounded to the dtype on its own, so the recomputed distance can
        differ from the drawn one by the elements' rounding errors. The box is exact.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range.

    References:
        Muller, "A note on a method for generating points uniformly on n-dimensional spheres", CACM 1959.

    Example:
        >>> import torch, brittle
        >>> x = torch.zeros(5, 100)
        >>> bool((brittle.ops.in_ball(x, 2.0, "l2").norm(dim=1) <= 2.0).all())
        True
    """
    if norm not in ("linf", "l2", "l1"):
        raise ValueError(f"in_ball: norm must be 'linf', 'l2' or 'l1'; got {norm!r}")
    lo, hi = (-math.inf, math.inf) if bounds is None else bounds
    if norm == "linf":
        if surface:
            raise ValueError("in_ball: surface must be False for norm 'linf'; got True")
        return linf_start(x, eps, seed, sample_ids, draw, (lo, hi), out)
    seed = signed64("in_ball", seed)
    ids = None if sample_ids is None else sample_ids.contiguous()
    if out is None:
        out = torch.empty_like(x)
    rows = None
    if isinstance(eps, Tensor):
        rows, eps = per_row(eps, x), 0.0
    _ops.in_ball.default(x, eps, rows, int(norm[1]), surface, seed, ids, draw, lo, hi, out)
    return written(out)


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kind, scale, rows, *rest = inputs
    ctx.save_for_backward(x, rows, rest[1])
    ctx.settings = kind, scale, rest[0], rest[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rows, ids = ctx.saved_tensors
    kind, scale, seed, rest = ctx.settings
    return _ops.noise_backward.default(grad, x, kind, scale, rows, seed, ids, *rest), *[None] * 8


torch.library.register_fake("brittle::noise", _fake)
torch.library.register_fake("brittle::noise_backward", _fake_backward)
torch.library.register_fake("brittle::noise_out", lambda *_: None)
torch.library.register_fake("brittle::in_ball", lambda *_: None)
torch.library.register_autograd("brittle::noise", _backward, setup_context=_save)
