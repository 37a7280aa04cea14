"""The basic iterative method: small sign steps from the clean point."""

from dataclasses import dataclass

from torch import Tensor

from brittle.attacks.base import Bounds, SteppedAttack, on_batch
from brittle.attacks.rules import LinfRule
from brittle.target import Model, Target


@dataclass(frozen=True, kw_only=True)
class BIM(SteppedAttack):
    """Sign steps from the clean point: see :func:`brittle.bim`, and :class:`brittle.attacks.Attack` for the
    settings.

    Attributes:
        steps: gradient steps; by default 10, or the peer's number.
        step_size: in the units of eps; by default ``eps / 5``, or the peer's.
    """

    name = "bim"
    usual_steps = 10

    def usual_step_length(self, eps: float | Tensor) -> float | Tensor:
        """``eps / 5``."""
        return eps / 5

    def rule(self, bounds: Bounds, seed: int) -> LinfRule:
        """Sign steps from the clean point."""
        return LinfRule(self.step_count, False, seed, bounds)


def bim(
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
    """Iterated FGSM: sign steps from the clean point, each projected into the Linf ball.

        adv_0     = x
        adv_{t+1} = project(adv_t + step_size * sign(grad loss(adv_t)))

    PGD (:func:`brittle.pgd`) without its random start, and so a weaker verdict. What is returned, and when to
    take ``early_stop=False``: as for PGD.

    Args:
        model, x, y, eps, loss, targeted, bounds, seed, sample_ids, precision: as for :func:`brittle.fgsm`.
        steps: gradient steps, >= 1; by default 10 (a peer's own number with ``compat``).
        step_size: in x's units, >= 0, a float or ``[N]``; by default ``eps / 5`` (a peer's own with
            ``compat``).
        early_stop: return the first success, else the highest loss; False: every step, highest loss.
        compat: ``"torchattacks"``, ``"foolbox"`` or ``"art"``: that library's bits, last iterate.

    Returns:
        The adversarial points, like ``x``.

    Raises:
        ValueError: as for :func:`brittle.fgsm`.

    References:
        Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world", ICLR 2017 workshop.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> bool((brittle.bim(model, x, y, eps=0.1) - x).abs().max() <= 0.1)
        True
    """
    attack = BIM(
        eps,
        steps=steps,
        step_size=step_size,
        loss=loss,
        targeted=targeted,
        early_stop=early_stop,
        compat=compat,
    )
    return on_batch(attack, model, x, y, seed=seed, sample_ids=sample_ids, bounds=bounds, precision=precision)
