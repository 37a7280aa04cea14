"""Noise on a batch of samples. Shared by all of these functions:

* ``x`` is ``[N, ...]``, float32, float64, float16 or bfloat16, of any strides; a dense layout is kept.
* The amount of noise is a float or a tensor ``[N]`` with one value per sample, in x's units unless said
  otherwise.
* The numbers come from Philox4x32-10 keyed by ``(seed, sample id, draw, element)``: a sample's noise does
  not depend on the batch it is in, on its place there, on the thread count or the device, and its bits
  never change between versions. ``seed`` has 64 bits. ``sample_ids`` is int64 ``[N]``, >= 0, each sample's
  identity in its data set, by default ``0 .. N - 1``. Another ``draw``, in ``[0, 2**31)``, is independent
  noise.
* ``bounds`` are the smallest and the largest value of the result, ``None`` for no bounds.
* The result is ``out`` if given (``x`` itself for noise in place, which is not differentiable), otherwise a
  new tensor like ``x``, differentiable with respect to ``x`` and fit for ``torch.compile(fullgraph=True)``.
  Where the bounds have clamped an element its gradient is zero.
* A wrong argument raises a ``ValueError`` that names function, argument, what it must be and what it was.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brittle import ops

Bounds = tuple[float, float]


def gaussian(
    x: Tensor,
    sigma: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """``clamp(x + sigma * z)``, z standard normal. The gradient is the identity inside the bounds.

    Args:
        x: ``[N, ...]``.
        sigma: standard deviation, finite and >= 0, a float or ``[N]``.
        seed, sample_ids, draw, bounds, out: see the module.

    References:
        Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 1995.

    Example:
        >>> import torch, brittle
        >>> x = torch.full((2, 3), 0.5)
        >>> noisy = brittle.noise.gaussian(x, sigma=0.1, seed=7)
        >>> second = brittle.noise.gaussian(x[1:], sigma=0.1, seed=7, sample_ids=torch.tensor([1]))
        >>> torch.equal(noisy[1:], second)
        True
    """
    return apply("gaussian", "sigma", x, "gaussian", sigma, seed, sample_ids, draw, bounds, out)


def uniform(
    x: Tensor,
    width: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """``clamp(x + width * u)``, u uniform on [-1, 1). The gradient is the identity inside the bounds.

    Args:
        x: ``[N, ...]``.
        width: the largest distance from ``x``, finite and >= 0, a float or ``[N]``; the standard deviation is
            ``width / sqrt(3)``.
        seed, sample_ids, draw, bounds, out: see the module.

    Example:
        >>> import torch, brittle
        >>> x = torch.full((2, 3), 0.5)
        >>> bool(((brittle.noise.uniform(x, width=0.1) - x).abs() <= 0.1).all())
        True
    """
    return apply("uniform", "width", x, "uniform", width, seed, sample_ids, draw, bounds, out)


def laplace(
    x: Tensor,
    scale: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """``clamp(x + scale * l)``, l of density ``exp(-|l|) / 2``. The gradient is as for :func:`gaussian`.

    Args:
        x: ``[N, ...]``.
        scale: mean absolute noise, finite and >= 0, a float or ``[N]``; the standard deviation is
            ``scale * sqrt(2)``.
        seed, sample_ids, draw, bounds, out: see the module.

    References:
        Dwork et al., "Calibrating noise to sensitivity in private data analysis", TCC 2006.

    Example:
        >>> import torch, brittle
        >>> noise = brittle.noise.laplace(torch.zeros(1, 100_000), scale=2.0, bounds=None)
        >>> abs(noise.abs().mean().item() - 2) < 0.05
        True
    """
    return apply("laplace", "scale", x, "laplace", scale, seed, sample_ids, draw, bounds, out)


def speckle(
    x: Tensor,
    sigma: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """``clamp(x + x * sigma * z)``, z standard normal. The gradient is ``1 + sigma * z`` inside the bounds.

    Args:
        x: ``[N, ...]``.
        sigma: standard deviation relative to ``x``, finite and >= 0, a float or ``[N]``.
        seed, sample_ids, draw, bounds, out: see the module.

    References:
        Goodman, "Some fundamental properties of speckle", J. Opt. Soc. Am. 1976 (multiplicative noise of
        coherent imaging; Gaussian here, as in the image-corruption benchmarks).

    Example:
        >>> import torch, brittle
        >>> brittle.noise.speckle(torch.zeros(1, 3), sigma=0.5)
        tensor([[0., 0., 0.]])
    """
    return apply("speckle", "sigma", x, "speckle", sigma, seed, sample_ids, draw, bounds, out)


def shot(
    x: Tensor,
    photons: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """``clamp(Poisson(photons * x) / photons)``: the noise of counting light.

    Fewer photons, more noise: the variance is ``x / photons``. An element below 0 counts as 0. The gradient
    is taken straight through: the identity inside the bounds, though the count itself has none.

    Args:
        x: ``[N, ...]``.
        photons: expected count where ``x`` is 1, finite and > 0, a float or ``[N]``.
        seed, sample_ids, draw, bounds, out: see the module.

    References:
        Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
        perturbations", ICLR 2019.

    Example:
        >>> import torch, brittle
        >>> counts = 60 * brittle.noise.shot(torch.rand(2, 3), photons=60)
        >>> torch.allclose(counts, counts.round(), atol=1e-4)
        True
    """
    return apply("shot", "photons", x, "shot", photons, seed, sample_ids, draw, bounds, out)


def salt_and_pepper(
    x: Tensor,
    amount: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """Each element becomes ``bounds[0]`` or ``bounds[1]``, with probability ``amount / 2`` each.

    Also called impulse noise. The gradient is 1 for elements that are kept, 0 for the others.

    Args:
        x: ``[N, ...]``.
        amount: share of the elements that are replaced, in [0, 1], a float or ``[N]``.
        bounds: pepper and salt, finite.
        seed, sample_ids, draw, out: see the module.

    References:
        Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
        perturbations", ICLR 2019.

    Example:
        >>> import torch, brittle
        >>> noisy = brittle.noise.salt_and_pepper(torch.full((1, 1000), 0.5), amount=0.2)
        >>> noisy.unique()
        tensor([0.0000, 0.5000, 1.0000])
    """
    return apply(
        "salt_and_pepper", "amount", x, "salt_and_pepper", amount, seed, sample_ids, draw, bounds, out
    )


def dropout(
    x: Tensor,
    rate: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Each element becomes 0 with probability ``rate``, else ``x / (1 - rate)``; the gradient likewise.

    Args:
        x: ``[N, ...]``.
        rate: in [0, 1), a float or ``[N]``.
        seed, sample_ids, draw, bounds, out: see the module.

    References:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014.

    Example:
        >>> import torch, brittle
        >>> brittle.noise.dropout(torch.ones(1, 1000), rate=0.5).unique()
        tensor([0., 2.])
    """
    return apply("dropout", "rate", x, "dropout", rate, seed, sample_ids, draw, bounds, out)


def in_ball(
    x: Tensor,
    eps: float | Tensor,
    norm: str = "linf",
    surface: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """A uniformly random point of the ball around each sample, clipped to the bounds; no gradient flows.

    Args:
        x: ``[N, ...]``, the centres.
        eps: radius, finite and >= 0, a float or ``[N]``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``, over all elements of a sample.
        surface: a point of the sphere instead of the ball; for ``"l2"`` and ``"l1"``.
        seed, sample_ids, draw, bounds, out: see the module.

    References:
        Barthe et al., "A probabilistic approach to the geometry of the l_p^n-ball", Ann. Probab. 2005.

    Example:
        >>> import torch, brittle
        >>> x = torch.full((2, 16), 0.5)
        >>> ball = brittle.noise.in_ball(x, eps=0.25, norm="l2", surface=True)
        >>> (ball - x).norm(dim=1)
        tensor([0.2500, 0.2500])
    """
    check_draw("in_ball", draw)
    if torch.compiler.is_compiling():
        return ops.in_ball(x, eps, norm, surface, seed, sample_ids, draw, bounds, out)
    try:
        return ops.in_ball(x, eps, norm, surface, seed, sample_ids, draw, bounds, out)
    except ValueError as error:  # the box has a kernel of its own, which calls x clean
        message = str(error).replace("linf_start: clean", "in_ball: x", 1)
        raise ValueError(message.replace("linf_start:", "in_ball:", 1)) from None


def apply(
    op: str,
    name: str,
    x: Tensor,
    kind: str,
    scale: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The kernel, with errors in the caller's words: ``op`` for the operator, ``name`` for the scale."""
    check_draw(op, draw)
    if torch.compiler.is_compiling():
        return ops.noise(x, kind, scale, seed, sample_ids, draw, bounds, out)
    try:
        return ops.noise(x, kind, scale, seed, sample_ids, draw, bounds, out)
    except ValueError as error:
        message = str(error).replace("noise: scale", f"noise: {name}", 1).replace("noise:", f"{op}:", 1)
        raise ValueError(message) from None


def check_draw(op: str, draw: int) -> None:
    """An integer below the draws that belong to the attacks' random starts."""
    if not isinstance(draw, int) or not 0 <= draw < 2**31:
        raise ValueError(f"{op}: draw must be an integer in [0, 2**31); got {draw!r}")
