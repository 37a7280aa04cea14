"""The fast gradient sign method: one step to the corner of the ball."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brittle.attacks.base import Attack, Bounds, on_batch
from brittle.attacks.rules import LinfRule
from brittle.engine import Settings
from brittle.target import Model, Target


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length ``eps``: see :func:`brittle.fgsm`, and :class:`brittle.attacks.Attack` for the
    settings."""

    name = "fgsm"

    @property
    def step_count(self) -> int:
        """One."""
        return 1

    def step_length(self, eps: float | Tensor) -> float | Tensor:
        """All of ``eps``."""
        return eps

    def rule(self, bounds: Bounds, seed: int) -> LinfRule:
        """A sign step from the clean point."""
        return LinfRule(1, False, seed, bounds)

    def settings(self, slots: int, **changes: Any) -> Settings:
        """The point after the step is the result, whatever its loss."""
        return super().settings(slots, keep_start=False, **changes)


def fgsm(
    model: Model | Target,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor = 8 / 255,
    *,
    loss: str = "ce",
    targeted: bool = False,
    bounds: Bounds | None = None,
    compat: str | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """One step of length ``eps`` along the sign of the loss gradient, for every sample.

        adv = clip(x + eps * sign(grad_x loss(model(x), y)))

    The loss is summed over the batch, so that a sample's result does not depend on its batch. The model
    runs in evaluation mode and is given back as it was: modes, ``requires_grad``, ``.grad``, buffers and the
    global random state, also when an exception passes through.

    Args:
        model: an ``nn.Module`` or a callable that maps ``x`` to logits ``[N, C]``, used as it is; or a
            :class:`brittle.Target`, which searches on a faster copy.
        x: ``[N, ...]``, floating point as the model takes it, inside ``bounds``. Any strides; a dense
            layout is kept.
        y: int64 ``[N]``, the true labels, or the labels to reach if ``targeted``.
        eps: size of the step in x's units, >= 0 and at most the width of the bounds, a float or ``[N]``.
        loss: ``"ce"``, ``"margin"`` or ``"dlr"``, see :mod:`brittle.losses`.
        targeted: descend towards ``y`` instead of ascending away from it.
        bounds: the smallest and the largest value of ``x``; by default (0, 1), or the target's.
        compat: ``"torchattacks"``, ``"foolbox"``, ``"art"`` or ``"cleverhans"`` for the same bits as that
            library: its loss reduction, and rounding that may leave the recomputed distance one ulp above eps
                (by default never).
        seed, sample_ids: accepted like every attack's; nothing here is random.
        precision: None to use a module as it is; or, of a search on a prepared copy of it: ``"float32"``
            (batch-norm folded, channels last), ``"bfloat16"``, or ``"auto"``, bfloat16 where the device
            multiplies it natively. The copy is made for this one call; for more than one batch make a
            :class:`brittle.Target`, which keeps it. The step is the copy's, and not certified.

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
    attack = FGSM(eps, loss=loss, targeted=targeted, compat=compat, early_stop=False)
    return on_batch(attack, model, x, y, seed=seed, sample_ids=sample_ids, bounds=bounds, precision=precision)
