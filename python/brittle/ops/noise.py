"""Random numbers drawn, scaled, applied and clamped in one pass over memory.

A result is a function of (seed, sample id, draw, element) and nothing else: it does not depend on the batch a
sample is in, on its place there, on memory layout, thread count or device, bit for bit. The numbers are
stream 1 of :mod:`brittle`, whose bits never change: Philox4x32-10, Gaussian numbers by Box and Muller. They
are float32 numbers in every dtype; float16 and bfloat16 hold the rounding of the float32 result.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import brittle._library  # noqa: F401  (registers the operators)
from brittle.ops._arguments import (
    constant,
    overwritten,
    per_row,
    register_fake,
    signed64,
    transformed,
    written,
)
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

    Differentiable with respect to ``x`` where ``out`` is not given, as often as you like, in both directions
    and under ``torch.func``'s transforms: the identity (speckle: ``1 + scale * z``,
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
        if scale.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "noise: scale must not require grad, since the result is differentiable with respect to x "
                "alone; got a tensor that does: give it detached"
            )
        constant("noise", scale)
        rows, scale = per_row(scale, x), 0.0
    if out is None:
        return _noise(x, KINDS.index(kind), scale, rows, seed, ids, draw, lo, hi)
    overwritten("noise", (x,), out=out)
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
    overwritten("in_ball", (x, eps), out=out)
    rows = None
    if isinstance(eps, Tensor):
        rows, eps = per_row(eps, x), 0.0
    _ops.in_ball.default(x, eps, rows, int(norm[1]), surface, seed, ids, draw, lo, hi, out)
    return written(out)


# ---- derivatives ----
#
# An element of the result depends on its own element of x alone, so the Jacobian is diagonal: the same
# factors take a gradient back and a tangent forward. noise_backward applies them; it is linear in what they
# are applied to, and constant in x between the places where an element meets a bound.


def _noise(x: Tensor, *numbers: Any) -> Tensor:
    operator: Any = _Noise.apply if transformed() else _ops.noise.default
    result: Tensor = operator(x, *numbers)
    return result


def _times_factors(grad: Tensor, x: Tensor, *numbers: Any) -> Tensor:
    operator: Any = _TimesFactors.apply if transformed() else _ops.noise_backward.default
    result: Tensor = operator(grad, x, *numbers)
    return result


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Of both operators: the arguments from x on. Those of noise_backward have the gradient in front."""
    x, kind, scale, rows, seed, ids, *rest = inputs[-9:]
    ctx.save_for_backward(x, rows, ids)
    ctx.save_for_forward(x, rows, ids)
    ctx.numbers = kind, scale, seed, rest


def _saved(ctx: Any) -> tuple[Any, ...]:
    x, rows, ids = ctx.saved_tensors
    kind, scale, seed, rest = ctx.numbers
    return x, kind, scale, rows, seed, ids, *rest


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _times_factors(grad, *_saved(ctx)), *[None] * 8


def _backward_of_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _times_factors(grad, *_saved(ctx)), *[None] * 9


class _Noise(torch.autograd.Function):
    """The operator for tensors that carry tangents or that ``torch.func`` has wrapped."""

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        result: Tensor = _ops.noise.default(*arguments)
        return result

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _times_factors(tangent, *_saved(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_noise, info.batch_size, in_dims, arguments)


class _TimesFactors(torch.autograd.Function):
    """noise_backward, likewise."""

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward_of_backward)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        result: Tensor = _ops.noise_backward.default(*arguments)
        return result

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor:
        x, *_others = _saved(ctx)
        return torch.zeros_like(x) if tangent is None else _times_factors(tangent, *_saved(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_times_factors, info.batch_size, in_dims, arguments)


def _over_batches(
    function: Callable[..., Tensor], batches: int, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """``B`` batches of ``N`` samples as one of ``B N``, each with the identities it has in its own batch."""

    def joined(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        batched = value.expand(batches, *value.shape) if dim is None else value.movedim(dim, 0)
        return batched.flatten(0, 1).contiguous()

    flat = [joined(*pair) for pair in zip(arguments, in_dims, strict=True)]
    samples = len(flat[0]) // batches
    if flat[-4] is None:
        flat[-4] = torch.arange(samples, device=flat[0].device).repeat(batches)
    whole: Any = function(*flat)
    return whole.unflatten(0, (batches, samples)), 0


register_fake("noise", lambda x, *_: torch.empty_like(x))
register_fake("noise_backward", lambda grad, x, *_: torch.empty_like(x))
register_fake("noise_out")
register_fake("in_ball")
torch.library.register_autograd("brittle::noise", _backward, setup_context=_save)
torch.library.register_autograd("brittle::noise_backward", _backward_of_backward, setup_context=_save)
