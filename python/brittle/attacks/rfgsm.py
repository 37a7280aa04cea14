"""R-FGSM: a random step first, so that the gradient is not taken where it may be masked."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brittle.attacks.base import Bounds, SteppedAttack, on_batch
from brittle.attacks.rules import SignedGaussianRule
from brittle.engine import Settings
from brittle.target import Model, Target


@dataclass(frozen=True, kw_only=True)
class RFGSM(SteppedAttack):
    """A random corner, then a sign step: see :func:`brittle.rfgsm`, and :class:`brittle.attacks.Attack`.

    Attributes:
        step_size: of the gradient step, in the units of eps; by default ``eps / 2``. The random step takes
            the rest.
        steps: gradient steps; by default one (a peer's number with ``compat``).
    """

    name = "rfgsm"
    usual_steps = 1
    random_start = True

    def usual_step_length(self, eps: float | Tensor) -> float | Tensor:
        """``eps / 2``."""
        return eps / 2

    def rule(self, bounds: Bounds, seed: int) -> SignedGaussianRule:
        """A random corner, then sign steps."""
        return SignedGaussianRule(self.step_count, True, seed, bounds)

    def settings(self, slots: int, **changes: Any) -> Settings:
        """The point after the step is the result, not the random one before."""
        return super().settings(slots, keep_start=False, **changes)


def rfgsm(
    model: Model | Target,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor = 8 / 255,
    *,
    steps: int | None = None,
    step_size: float | Tensor | None = None,
    loss: str = "ce",
    targeted: bool = False,
    early_stop: bool = True,
    bounds: Bounds | None = None,
    compat: str | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """A random sign step, then FGSM with what is left of ``eps``.

        adv_0 = clip(x + (eps - step_size) * sign(z)),  z ~ N(0, 1)
        adv   = project(adv_0 + step_size * sign(grad loss(adv_0)))

    Args:
        model, x, y, eps, loss, targeted, bounds, precision: as for :func:`brittle.fgsm`.
        steps: gradient steps, >= 1; by default 1.
        step_size: of a gradient step, in x's units, >= 0, a float or ``[N]``; by default ``eps / 2``.
        early_stop: leave alone what the model gets wrong unattacked; False: the step for every sample.
        compat: ``"torchattacks"``: its steps (10 of 2/255 from ``x + step_size * sign(z)``), rounding and
            last iterate; its random numbers come from another generator, so only the distribution is the
            same.
        seed: of the random step, 64 bits.
        sample_ids: int64 ``[N]``, each sample's identity in its data set, by default its place in the batch.

    Returns:
        The adversarial points, like ``x``.

    Raises:
        ValueError: as for :func:`brittle.fgsm`.

    References:
        Tramer et al., "Ensemble adversarial training: attacks and defenses", ICLR 2018.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> bool((brittle.rfgsm(model, x, y, eps=0.1) - x).abs().max() <= 0.1)
        True
    """
    attack = RFGSM(
        eps,
        steps=steps,
        step_size=step_size,
        loss=loss,
        targeted=targeted,
        early_stop=early_stop,
        compat=compat,
    )
    return on_batch(attack, model, x, y, seed=seed, sample_ids=sample_ids, bounds=bounds, precision=precision)
