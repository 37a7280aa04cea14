"""MI-FGSM: sign steps along accumulated gradients, which transfer better to other models."""

from dataclasses import dataclass

from torch import Tensor

from brittle import _checks as check
from brittle.attacks.base import Bounds, SteppedAttack, on_batch
from brittle.attacks.rules import MomentumRule
from brittle.target import Model, Target


@dataclass(frozen=True, kw_only=True)
class MIFGSM(SteppedAttack):
    """Momentum: see :func:`brittle.mifgsm`, and :class:`brittle.attacks.Attack` for the settings.

    Attributes:
        steps: gradient steps; by default 10, or the peer's number.
        step_size: in the units of eps; by default ``eps / steps``, or the peer's.
        decay: of the accumulated gradient, finite and >= 0.
        normalize: of each gradient before it is added: ``"mean"`` or ``"l1"`` of its magnitudes, or
            ``"sign"``.
    """

    name = "mifgsm"
    usual_steps = 10

    decay: float = 1.0
    normalize: str = "mean"

    def check(self, op: str) -> None:
        """Raise ValueError for a setting out of range."""
        super().check(op)
        check.check_scalar(op, "decay", self.decay)
        check.check_choice(op, "normalize", self.normalize, ("mean", "l1", "sign"))

    def usual_step_length(self, eps: float | Tensor) -> float | Tensor:
        """``eps / steps``."""
        return eps / self.step_count

    def rule(self, bounds: Bounds, seed: int) -> MomentumRule:
        """Sign steps along the accumulated gradient."""
        return MomentumRule(self.step_count, False, seed, bounds, self.decay, self.normalize)


def mifgsm(
    model: Model | Target,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor = 8 / 255,
    *,
    steps: int | None = None,
    step_size: float | Tensor | None = None,
    decay: float = 1.0,
    normalize: str = "mean",
    loss: str = "ce",
    targeted: bool = False,
    early_stop: bool = True,
    bounds: Bounds | None = None,
    compat: str | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """Sign steps along a decaying sum of normalised gradients.

        g_{t+1}   = decay * g_t + grad loss(adv_t) / mean|grad loss(adv_t)|
        adv_{t+1} = project(adv_t + step_size * sign(g_{t+1}))

    For transfer to other models take ``early_stop=False``, which goes on after the first success. A gradient
    that is all zero adds nothing, and the sample goes on along what it has accumulated.

    Args:
        model, x, y, eps, loss, targeted, bounds, seed, sample_ids, precision: as for :func:`brittle.fgsm`.
        steps: gradient steps, >= 1; by default 10 (a peer's own number with ``compat``).
        step_size: in x's units, >= 0, a float or ``[N]``; by default ``eps / steps`` (a peer's own with
            ``compat``).
        decay: of the sum, finite and >= 0; 0 is BIM.
        normalize: what each gradient is divided by: its ``"mean"`` magnitude, its ``"l1"`` norm, or element
            by element (``"sign"``).
        early_stop: return the first success, else the highest loss; False: every step, highest loss.
        compat: ``"torchattacks"``, ``"foolbox"`` or ``"art"``: that library's bits, normalisation and last
            iterate.

    Returns:
        The adversarial points, like ``x``.

    Raises:
        ValueError: as for :func:`brittle.fgsm`.

    References:
        Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> bool((brittle.mifgsm(model, x, y, eps=0.1) - x).abs().max() <= 0.1)
        True
    """
    attack = MIFGSM(
        eps,
        steps=steps,
        step_size=step_size,
        decay=decay,
        normalize=normalize,
        loss=loss,
        targeted=targeted,
        early_stop=early_stop,
        compat=compat,
    )
    return on_batch(attack, model, x, y, seed=seed, sample_ids=sample_ids, bounds=bounds, precision=precision)
