"""One step of a gradient attack that needs a norm of each sample first.

What :mod:`brittle.ops.gradient_step` says of tensors, ``bounds``, ``eps``, ``step_size`` and ``trace`` holds
here too, but that every tensor is ``[N, ...]``. An element of the gradient that is NaN or infinite counts as
zero. Norms are summed in double in one fixed order, so that a row has the same bits whatever its neighbours,
the thread count, the instruction set or the device.
"""

import torch
from torch import Tensor

import brittle._library  # noqa: F401  (registers the operators)
from brittle.ops._arguments import choice, overwritten, per_row, register_fake, written

_ops = torch.ops.brittle

Bounds = tuple[float, float]

L2_PROJECTIONS = ("exact", "project_clip", "clip_project")
NORMALIZATIONS = ("l1", "mean", "sign")
_LINF_PROJECTIONS = ("exact", "difference")
NORM_FLOORS = ("none", "torchattacks", "foolbox", "autoattack", "cleverhans")


def l2_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    *,
    projection: str = "exact",
    floor: str = "none",
    trace: Tensor | None = None,
) -> Tensor:
    """Move ``adv`` by ``step_size`` along the gradient, in place, then back into the L2 ball and the bounds.

    With ``projection="exact"``, given a clean point inside the bounds, the L2 norm of ``adv - clean``
    recomputed in float32 (float64 for float64) is at most eps and every element is inside the bounds,
    whatever the dtype and wherever ``adv`` was before: ``step_size=0`` projects any start. A sample whose
    gradient is all zeros is only projected. Moves 28 bytes per float32 element, 16 where a GPU keeps the row
    in registers.

    Args:
        adv: ``[N, ...]``, the current point; overwritten.
        grad: like ``adv``, the gradient to ascend.
        clean: like ``adv``, the centre of the ball. May be ``adv`` itself.
        step_size: length of the step in L2, >= 0, a float or ``[N]``.
        eps: radius of the ball in L2, >= 0 (``inf`` for no ball), a float or ``[N]``.
        bounds: ``(lo, hi)``, lo < hi.
        projection: ``"exact"``; or the peers' order of operations and rounding, without the guarantee:
            ``"project_clip"`` scales into the ball, then clamps (torchattacks, foolbox, AutoAttack),
            ``"clip_project"`` clamps before and after it scales (ART, cleverhans).
        floor: what keeps the peer's division by the gradient's norm from being one by zero: ``"none"`` (a
            gradient of zeros moves nothing; ART), ``"torchattacks"`` adds 1e-10, ``"foolbox"`` takes at least
            1e-12, ``"autoattack"`` adds 1e-12, ``"cleverhans"`` takes the square as at least 1e-12.
        trace: ``[N, 3]`` int64, contiguous, to be overwritten; by default none.

    Returns:
        ``adv``.

    Raises:
        ValueError: shapes, dtypes or devices differ; adv has no dimension; eps or step_size is negative, NaN
            or of wrong shape; lo >= hi; adv is an expanded tensor; trace is not int64 ``[N, 3]``; projection
            or floor is unknown.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.

    Example:
        >>> import torch, brittle
        >>> clean = torch.full((1, 2), 0.5)
        >>> grad = torch.tensor([[30.0, -40.0]])
        >>> brittle.ops.l2_step_(clean.clone(), grad, clean, step_size=0.25, eps=0.5)
        tensor([[0.6500, 0.3000]])
    """
    lo, hi = bounds
    overwritten("l2_step_", (grad, clean, step_size, eps), adv=adv)
    mode = choice("l2_step_", "projection", projection, L2_PROJECTIONS)
    least = choice("l2_step_", "floor", floor, NORM_FLOORS)
    if isinstance(step_size, Tensor) or isinstance(eps, Tensor):
        steps, balls = per_row(step_size, adv), per_row(eps, adv)
        _ops.l2_step_.rows(adv, grad, clean, steps, balls, lo, hi, mode, least, trace)
    else:
        _ops.l2_step_.default(adv, grad, clean, step_size, eps, lo, hi, mode, least, trace)
    return written(adv, trace)


def momentum_step_(
    adv: Tensor,
    grad: Tensor,
    momentum: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    decay: float = 1.0,
    bounds: Bounds = (0.0, 1.0),
    *,
    normalize: str = "l1",
    norm: Tensor | None = None,
    projection: str = "exact",
    trace: Tensor | None = None,
) -> Tensor:
    """Accumulate the gradient into ``momentum``, then take a Linf step along it; both in place.

    ``momentum <- decay * momentum + grad / norm``, then :func:`brittle.ops.linf_step_` with ``momentum`` as
    the gradient. Every operation is rounded to the tensors' dtype, as eager code rounds it. A sample whose
    norm is zero or not finite adds nothing to its momentum. Moves 28 bytes per float32 element; 24 with
    ``normalize="sign"``, with ``norm``, or where a GPU keeps the row in registers.

    Args:
        adv: ``[N, ...]``, the current point; overwritten.
        grad: like ``adv``, the gradient to ascend.
        momentum: like ``adv``, of any strides; overwritten. Zeros before the first step.
        clean: like ``adv``, the centre of the ball. May be ``adv`` itself.
        step_size: >= 0, a float or ``[N]``.
        eps: radius of the ball in Linf, >= 0 (``inf`` for no ball), a float or ``[N]``.
        decay: finite, >= 0; 1 keeps every step's gradient for ever.
        bounds: ``(lo, hi)``, lo < hi.
        normalize: ``"l1"`` divides a sample's gradient by the sum of its magnitudes, ``"mean"`` by their mean
            (torchattacks), ``"sign"`` adds its signs (foolbox).
        norm: float64 ``[N]``, what to divide by in place of the sample's own; by default none.
        projection: as of :func:`brittle.ops.linf_step_`.
        trace: ``[N, 3]`` int64, contiguous, to be overwritten; by default none.

    Returns:
        ``adv``.

    Raises:
        ValueError: shapes, dtypes or devices differ; adv has no dimension; eps or step_size is negative, NaN
            or of wrong shape; decay is negative or not finite; lo >= hi; adv or momentum is an expanded
            tensor; norm is not float64 ``[N]``; trace is not int64 ``[N, 3]``; normalize or projection is
            unknown.

    References:
        Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018.

    Example:
        >>> import torch, brittle
        >>> clean, momentum = torch.full((1, 2), 0.5), torch.tensor([[1.0, -0.25]])
        >>> grad = torch.tensor([[1.0, 3.0]])
        >>> brittle.ops.momentum_step_(clean.clone(), grad, momentum, clean, 0.25, 0.5)
        tensor([[0.7500, 0.7500]])
        >>> momentum
        tensor([[1.2500, 0.5000]])
    """
    lo, hi = bounds
    overwritten("momentum_step_", (grad, clean, step_size, eps), adv=adv, momentum=momentum)
    exact = choice("momentum_step_", "projection", projection, _LINF_PROJECTIONS) == 0
    mode = choice("momentum_step_", "normalize", normalize, NORMALIZATIONS)
    tensors, modes = (adv, grad, momentum, clean), (mode, exact, norm, trace)
    if isinstance(step_size, Tensor) or isinstance(eps, Tensor):
        steps, balls = per_row(step_size, adv), per_row(eps, adv)
        _ops.momentum_step_.rows(*tensors, steps, balls, decay, lo, hi, *modes)
    else:
        _ops.momentum_step_.default(*tensors, step_size, eps, decay, lo, hi, *modes)
    return written(adv, momentum, trace)


for _name in ("l2_step_", "l2_step_.rows", "momentum_step_", "momentum_step_.rows"):
    register_fake(_name)
