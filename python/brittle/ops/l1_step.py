"""One step of a sparse L1 attack: steepest ascent on a few elements, exact projection.

What :mod:`brittle.ops.gradient_step` says of tensors, bounds, per-sample values and traces holds here too.
"""

import torch
from torch import Tensor

import brittle._library  # noqa: F401  (registers the operators)
from brittle.ops._arguments import overwritten, per_row, register_fake, written

_ops = torch.ops.brittle

Bounds = tuple[float, float]


def l1_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    k: float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    *,
    trace: Tensor | None = None,
) -> Tensor:
    """Move the ``k`` elements of the largest gradient, in place, then project onto L1 ball and bounds.

    The elements whose gradient's magnitude is among the ``k`` largest (all of them where several tie for the
    last place) each move by ``step_size / count`` along their gradient's sign, so the step's L1 length is
    ``step_size``. Elements at the bound that their gradient leads to are passed over. The result is the point
    of ball and bounds together that is nearest to the moved one in L2: not the ball's nearest point, clipped.
    A step of 0 is that projection alone; projecting twice changes nothing.

    Moves 16 bytes per float32 element of memory; the two searches (for the k-th largest gradient and for the
    projection's threshold) work in the cache and need no sorting.

    Args:
        adv: ``[N, ...]``, the current point; overwritten.
        grad: like ``adv``, the gradient to ascend.
        clean: like ``adv``, the centre of the ball, inside the bounds. May be ``adv`` itself.
        step_size: L1 length of the step, finite and >= 0, a float or ``[N]``.
        eps: radius of the ball, >= 0 (``inf`` for no ball), a float or ``[N]``.
        k: elements to move, >= 1, a number or ``[N]``; rounded down, and to the number of elements whose
            gradient is finite and not zero.
        bounds: ``(lo, hi)``, lo < hi.
        trace: ``[N, 3]`` int64, contiguous, to be overwritten; by default none.

    Returns:
        ``adv``. The L1 distance from ``clean``, recomputed in float32 (float64 for float64), is at most eps
        in every dtype. An element whose gradient is zero, NaN or infinite is not moved.

    Raises:
        ValueError: shapes, dtypes or devices differ; eps, step_size or k is NaN, out of range or of wrong
            shape; lo >= hi; adv is an expanded tensor; trace is not int64 ``[N, 3]``.

    References:
        Tramer and Boneh, "Adversarial training and robustness for multiple perturbations", NeurIPS 2019.
        Duchi et al., "Efficient projections onto the l1-ball for learning in high dimensions", ICML 2008.
        Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML
        2021.

    Example:
        >>> import torch, brittle
        >>> clean = torch.tensor([[0.25, 0.5, 0.75]])
        >>> grad = torch.tensor([[-3.0, 0.5, 2.0]])
        >>> brittle.ops.l1_step_(clean.clone(), grad, clean, step_size=0.25, eps=1.0, k=2)
        tensor([[0.1250, 0.5000, 0.8750]])
    """
    lo, hi = bounds
    overwritten("l1_step_", (grad, clean, step_size, eps), adv=adv)
    if any(isinstance(value, Tensor) for value in (step_size, eps, k)):
        rows = [per_row(value, adv) for value in (step_size, eps, k)]
        _ops.l1_step_.rows(adv, grad, clean, *rows, lo, hi, trace)
    else:
        _ops.l1_step_.default(adv, grad, clean, step_size, eps, k, lo, hi, trace)
    return written(adv, trace)


register_fake("l1_step_")
register_fake("l1_step_.rows")
