"""The fast gradient sign method: one step to the corner of the ball."""

import math

from torch import Tensor

from brittle import _checks as check
from brittle.ops import linf_step_
from brittle.target import Model, Target


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    compat: str | None = None,
) -> Tensor:
    """One step of length ``eps`` along the sign of the loss gradient.

        adv = clip(x + eps * sign(grad_x loss(model(x), y)))

    The loss is cross-entropy, summed over the batch, so that a sample's result does not depend on its
    batch. The model runs in evaluation mode and is given back as it was: modes, ``requires_grad``,
    ``.grad``, buffers and the global random state, also when an exception passes through.

    Args:
        model: an ``nn.Module`` or a callable that maps ``x`` to logits ``[N, C]``.
        x: ``[N, ...]``, floating point, inside ``bounds``. Any strides; a dense layout is kept.
        y: int64 ``[N]``, the true labels, or the labels to reach if ``targeted``.
        eps: size of the step in x's units, >= 0, a float or ``[N]``.
        targeted: descend towards ``y`` instead of ascending away from it.
        bounds: the smallest and the largest value of ``x``.
        compat: ``"torchattacks"`` for the same bits as that library: loss averaged over the batch, and
            rounding that may leave the recomputed distance one ulp above eps (by default never).

    Returns:
        The adversarial points, like ``x``.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range; the model returns something else
            than logits ``[N, C]``, or NaN (the samples are named).

    References:
        Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> adv = brittle.fgsm(model, x, y, eps=0.1)
        >>> bool((adv - x).abs().max() <= 0.1)
        True
    """
    op = "fgsm"
    check.check_choice(op, "compat", compat, (None, "torchattacks"))
    check.check_images(op, x, bounds)
    check.check_labels(op, y, x)
    eps = check.check_amount(op, "eps", eps, x)
    with Target(model, op) as target:
        check.check_device(op, x, target)
        clean, labels = x.detach().clone(), y.clone()
        if len(x) == 0:
            return clean
        ids = check.check_sample_ids(op, None, x)
        target.expect_labels(labels)
        reduction = "mean" if compat else "sum"
        grad = target.evaluate(clean, labels, ids, targeted=targeted, reduction=reduction).gradient
        assert grad is not None
        # The peers take the step and clip, and do not project.
        return linf_step_(clean.clone(), grad, clean, eps, math.inf if compat else eps, bounds)
