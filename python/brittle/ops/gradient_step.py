"""One step of a gradient attack, fused into one pass over memory.

Shared by all three operators:

* Tensors are float32, float64, float16 or bfloat16, of any strides, and of one shape, dtype and device.
  The half types compute in float32. Layouts such as channels-last are kept.
* ``bounds`` are the smallest and the largest value that an element may take, e.g. ``(0.0, 1.0)``.
* ``eps`` and ``step_size`` are in the units of the data, a float or a tensor ``[N]`` with one value per
  sample. On the CPU a negative or NaN value raises; on another device the values of a tensor are not
  read back, and a negative or NaN value leaves that sample undefined: check them once, as the attacks do.
* Given a clean point inside the bounds, every result is inside the bounds and within eps of it, exactly,
  as ``(adv - clean).abs()`` recomputes it in the tensor's dtype. No finite input gives a NaN.
* An element whose gradient is zero, NaN or infinite does not move.
* ``trace``, int64 ``[N, 3]``, is overwritten with what a step tells of itself: ``[:, 0]`` a fingerprint of
  the row's new point (a 64-bit hash of its stored bits in ``adv``'s memory order), ``[:, 1]`` how many of its
  gradient's elements are finite and not zero, ``[:, 2]`` how many are NaN or infinite. A step of fixed length
  is a deterministic map of a finite set, so a fingerprint that returns means a trajectory that cycles.
* None of them is differentiable, and none uses the global random generator.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import brittle._library  # noqa: F401  (registers the operators)
from brittle.ops._arguments import overwritten, per_row, register_fake, signed64, written

_ops = torch.ops.brittle

Bounds = tuple[float, float]


def linf_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    *,
    projection: str = "exact",
    trace: Tensor | None = None,
) -> Tensor:
    """Move ``adv`` by ``step_size * sign(grad)``, in place, then back into the Linf ball and the bounds.

    Moves 16 bytes per float32 element: the speed of memory.

    Args:
        adv: ``[N, ...]``, the current point; overwritten.
        grad: like ``adv``, the gradient to ascend.
        clean: like ``adv``, the centre of the ball. May be ``adv`` itself.
        step_size: >= 0, a float or ``[N]``.
        eps: radius of the ball, >= 0 (``inf`` for no ball), a float or ``[N]``.
        bounds: ``(lo, hi)``, lo < hi.
        projection: ``"exact"`` keeps the recomputed distance at or under eps. ``"difference"`` clamps
            ``adv - clean`` and adds it back, rounding as torchattacks, foolbox, ART and cleverhans do, which
            can end one ulp outside.
        trace: ``[N, 3]`` int64, contiguous, to be overwritten; by default none.

    Returns:
        ``adv``.

    Raises:
        ValueError: shapes, dtypes or devices differ; eps or step_size is negative, NaN or of wrong shape;
            lo >= hi; adv is an expanded tensor; trace is not int64 ``[N, 3]``.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.

    Example:
        >>> import torch, brittle
        >>> clean = torch.tensor([[0.2, 0.5, 0.99]])
        >>> grad = torch.tensor([[-3.0, 0.0, 0.1]])
        >>> brittle.ops.linf_step_(clean.clone(), grad, clean, step_size=0.25, eps=0.125)
        tensor([[0.0750, 0.5000, 1.0000]])
    """
    lo, hi = bounds
    overwritten("linf_step_", (grad, clean, step_size, eps), adv=adv)
    exact = _is_exact(projection)
    if isinstance(step_size, Tensor) or isinstance(eps, Tensor):
        steps, balls = per_row(step_size, adv), per_row(eps, adv)
        _ops.linf_step_.rows(adv, grad, clean, steps, balls, lo, hi, exact, trace)
    else:
        _ops.linf_step_.default(adv, grad, clean, step_size, eps, lo, hi, exact, trace)
    return written(adv, trace)


def sign_sweep(
    x: Tensor,
    grad: Tensor,
    eps: Sequence[float] | Tensor,
    bounds: Bounds = (0.0, 1.0),
    out: Tensor | None = None,
    *,
    keep_ball: bool = True,
) -> Tensor:
    """The fast-gradient-sign points of ``x`` for K epsilons, in one pass over ``x`` and ``grad``.

    ``out[k] = clamp(x + eps[k] * sign(grad))``: what K calls of FGSM give, for 8 + 4K bytes per float32
    element instead of 12K.

    Args:
        x: ``[N, ...]``, the clean points.
        grad: like ``x``, the gradient to ascend.
        eps: K values >= 0.
        bounds: ``(lo, hi)``, lo < hi.
        out: ``[K, N, ...]`` to write into; by default a new tensor whose slices have ``x``'s layout.
        keep_ball: keep ``|out[k] - x| <= eps[k]`` exactly; False rounds as the peers' FGSM does.

    Returns:
        ``out``, ``[K, N, ...]``.

    Raises:
        ValueError: shapes, dtypes or devices differ; eps is empty, negative or NaN; lo >= hi.

    References:
        Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR 2015.

    Example:
        >>> import torch, brittle
        >>> x, grad = torch.tensor([[0.2, 0.5]]), torch.tensor([[1.0, -1.0]])
        >>> brittle.ops.sign_sweep(x, grad, [0.0, 0.25, 0.5])
        tensor([[[0.2000, 0.5000]],
        <BLANKLINE>
                [[0.4500, 0.2500]],
        <BLANKLINE>
                [[0.7000, 0.0000]]])
    """
    values = [float(value) for value in (eps.tolist() if isinstance(eps, Tensor) else eps)]
    lo, hi = bounds
    if out is None:
        out = _empty_stack(len(values), x)
    overwritten("sign_sweep", (x, grad), out=out)
    _ops.sign_sweep.default(x, grad, values, lo, hi, keep_ball, out)
    return written(out)


def linf_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: Bounds = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """A uniformly random point of the Linf ball around each sample, clipped to the bounds.

    The numbers come from Philox4x32-10 keyed by ``(seed, sample id, draw, element)``: a sample's start does
    not depend on the batch it is in, on its place there, on the layout, the thread count or the device.

    Args:
        clean: ``[N, ...]``, the centres.
        eps: radius, finite and >= 0, a float or ``[N]``.
        seed: 64-bit seed.
        sample_ids: int64 ``[N]``, each sample's identity in its data set; by default ``0 .. N - 1``.
        draw: in ``[0, 2**32)``; another draw is another independent point.
        bounds: ``(lo, hi)``, lo < hi.
        out: like ``clean``, to write into; by default a new tensor of ``clean``'s layout.

    Returns:
        ``out``.

    Raises:
        ValueError: shapes, dtypes or devices differ; eps is negative, infinite or NaN; lo >= hi;
            sample_ids is not int64 ``[N]``; draw is out of range.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Example:
        >>> import torch, brittle
        >>> x = torch.full((2, 3), 0.5)
        >>> both = brittle.ops.linf_start(x, eps=0.1, seed=7)
        >>> second = brittle.ops.linf_start(x[1:], eps=0.1, seed=7, sample_ids=torch.tensor([1]))
        >>> torch.equal(both[1:], second)
        True
    """
    lo, hi = bounds
    if out is None:
        out = torch.empty_like(clean)
    overwritten("linf_start", (clean, eps), out=out)
    seed = signed64("linf_start", seed)
    ids = None if sample_ids is None else sample_ids.contiguous()
    if isinstance(eps, Tensor):
        _ops.linf_start.rows(clean, per_row(eps, clean), seed, ids, draw, lo, hi, out)
    else:
        _ops.linf_start.default(clean, eps, seed, ids, draw, lo, hi, out)
    return written(out)


def _is_exact(projection: str) -> bool:
    if projection not in ("exact", "difference"):
        raise ValueError(f"linf_step_: projection must be 'exact' or 'difference'; got {projection!r}")
    return projection == "exact"


def _empty_stack(count: int, x: Tensor) -> Tensor:
    """An uninitialised ``[count, *x.shape]`` whose slices have x's layout."""
    strides = torch.empty_like(x, device="meta").stride()
    return x.new_empty_strided((count, *x.shape), (x.numel(), *strides))


for _name in ("linf_step_", "linf_step_.rows", "sign_sweep", "linf_start", "linf_start.rows"):
    register_fake(_name)
