"""Projected gradient descent: many small steps, each projected back into the ball."""

from dataclasses import dataclass, field

from torch import Tensor

from brittle import _checks as check
from brittle.attacks.base import Bounds, SteppedAttack, on_batch
from brittle.attacks.rules import L1Rule, L2Rule, LinfRule
from brittle.target import Model, Target

_NORMS = ("linf", "l2", "l1")


@dataclass(frozen=True, kw_only=True)
class PGD(SteppedAttack):
    """Projected gradient descent: see :func:`brittle.pgd`, and :class:`brittle.attacks.Attack` for the
    settings.

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        steps: gradient steps of an attempt; by default 40, or the peer's number.
        step_size: in the units of eps; by default ``2.5 * eps / steps`` (Linf: at least 2/255), or the
            peer's.
        restarts: attempts from different random starts, each for the samples that no earlier one fooled.
        random_start: start at a random point of the ball; by default True (L1: with restarts alone), or the
            peer's default.
        targets: aim for so many of the likeliest other classes, one after the other; 0: just leave the label.
        l1_quantile: of the gradient's magnitudes, above which elements move in an L1 step; in [0, 1).
    """

    name = "pgd"
    usual_steps = 40

    norm: str = "linf"
    restarts: int = 1
    # None until the attack is made, which settles it.
    random_start: bool = field(default=None, metadata={"usual": True})  # type: ignore[assignment]
    targets: int = 0
    l1_quantile: float = 0.99

    def __post_init__(self) -> None:
        if self.random_start is None:
            peer = self.convention if self.compat in self.peers() else None
            own = self.norm != "l1" or self.restarts > 1
            object.__setattr__(self, "random_start", peer.random_start if peer else own)
        super().__post_init__()

    def check(self, op: str) -> None:
        """Raise ValueError for a setting out of range."""
        check.check_choice(op, "norm", self.norm, _NORMS)
        super().check(op)
        check.check_schedule(op, self.step_count, self.restarts, self.random_start)
        check.check_count(op, "targets", self.targets, 0)
        if self.targets and self.targeted:
            raise ValueError(f"{op}: targets chooses the classes to aim for; with targeted=True y does")
        if self.compat and (self.restarts > 1 or self.targets):
            extra = f"restarts={self.restarts}, targets={self.targets}"
            raise ValueError(f"{op}: compat={self.compat!r} has no restarts and no targets; got {extra}")
        if not 0 <= self.l1_quantile < 1:
            raise ValueError(f"{op}: l1_quantile must be in [0, 1); got {self.l1_quantile}")

    def usual_step_length(self, eps: float | Tensor) -> float | Tensor:
        """Far enough to cross the ball; in Linf at least two grey levels of 255."""
        length = 2.5 / self.step_count * eps
        if self.norm != "linf":
            return length
        return length.clamp(min=2 / 255) if isinstance(length, Tensor) else max(2 / 255, length)

    def rule(self, bounds: Bounds, seed: int) -> LinfRule | L2Rule | L1Rule:
        """The norm's own start and step."""
        if self.norm == "l1":
            return L1Rule(self.step_count, self.random_start, seed, bounds, self.l1_quantile)
        kind = LinfRule if self.norm == "linf" else L2Rule
        return kind(self.step_count, self.random_start, seed, bounds)


def pgd(
    model: Model | Target,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor = 8 / 255,
    norm: str = "linf",
    steps: int | None = None,
    step_size: float | Tensor | None = None,
    restarts: int = 1,
    targeted: bool = False,
    random_start: bool | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    bounds: Bounds | None = None,
    compat: str | None = None,
    *,
    loss: str = "ce",
    targets: int = 0,
    l1_quantile: float = 0.99,
    early_stop: bool = True,
    precision: str | None = None,
) -> Tensor:
    """Projected gradient descent in the Linf, L2 or L1 ball.

        adv_0     = a uniformly random point of the ball, clipped  (x itself without random_start)
        adv_{t+1} = project(adv_t + step_size * d_t)

    ``d_t`` is the steepest direction of unit length: ``sign(g)`` in Linf; ``g / |g|_2`` in L2; in L1
    ``sign(g) / k`` on the k elements of largest magnitude, 0 elsewhere. The projection keeps bounds and ball
    exactly; in L1 it is the nearest point of their intersection.

    For a verdict on robustness keep ``early_stop``: a sample is returned at its first success, which
    may be the clean point itself, and costs nothing from then on; one that never falls is returned at its
    highest loss. For adversarial training or transfer studies take ``early_stop=False``: every sample
    takes every step, and its iterate of highest loss is returned.

    A sample whose iterate comes back to where it was before would go round for ever; its attempt ends there.
    The model runs in evaluation mode and is given back as it was (see :func:`brittle.fgsm`). For more than
    one batch, and for what happened to each sample, see :func:`brittle.attack`.

    Args:
        model: an ``nn.Module`` or a callable that maps ``x`` to logits ``[N, C]``, used as it is; or a
            :class:`brittle.Target`, which searches on a faster copy and certifies every success.
        x: ``[N, ...]``, floating point as the model takes it, inside ``bounds``. Any strides; a dense
            layout is kept.
        y: int64 ``[N]``, the true labels, or the labels to reach if ``targeted``.
        eps: radius of the ball in x's units, >= 0 and in Linf at most the width of the bounds, a float or
            ``[N]``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        steps: gradient steps per attempt, >= 1; by default 40 (a peer's own number with ``compat``).
        step_size: in x's units and the same norm, >= 0, a float or ``[N]``; by default ``2.5 * eps / steps``,
            in Linf at least 2/255 (a peer's own with ``compat``).
        restarts: how often to start again for the samples not yet fooled; more than one needs random_start.
        targeted: descend towards ``y`` instead of ascending away from it.
        random_start: start at a uniformly random point of the ball; by default True, but in L1, where a step
            moves few elements and would be long in undoing it, only with restarts (a peer's own with
            ``compat``).
        seed: of the random starts, 64 bits.
        sample_ids: int64 ``[N]``, each sample's identity in its data set, by default its place in the batch.
            With ids a sample's random starts are the same in any batch.
        bounds: the smallest and the largest value of ``x``; by default (0, 1), or the target's.
        compat: ``"torchattacks"``, ``"foolbox"``, ``"art"``, ``"cleverhans"`` or ``"advlib"`` (Linf)
            reproduces that library, without a random start bit for bit in Linf and to 1e-6 in L2: every step
            for every sample, its loss reduction, rounding, order of projection and clipping, default steps,
            and what it returns.
        loss: ``"ce"``, ``"margin"`` or ``"dlr"``, see :mod:`brittle.losses`.
        targets: aim for so many of the likeliest other classes, one after the other; 0: just leave the label.
        l1_quantile: of the gradient's magnitudes, above which elements move in an L1 step; in [0, 1).
        early_stop: see above; no effect with ``compat``.
        precision: None to use a module as it is; or, of a search on a prepared copy of it: ``"float32"``
            (batch-norm folded, channels last), ``"bfloat16"``, or ``"auto"``, bfloat16 where the device
            multiplies it natively. The copy is made for this one call; for more than one batch make a
            :class:`brittle.Target`, which keeps it. Every success is certified by the module itself.

    Returns:
        The adversarial points, like ``x``.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range; the model returns something else
            than logits ``[N, C]``, or NaN (the samples are named).

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
        Tramer and Boneh, "Adversarial training and robustness for multiple perturbations", NeurIPS 2019 (L1
        step). Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks", ICML 2021 (L1
        projection).

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> adv = brittle.pgd(model, x, y, eps=0.1, steps=10, seed=1)
        >>> bool((adv - x).abs().max() <= 0.1)
        True
        >>> far = brittle.pgd(model, x, y, eps=0.5, norm="l2", steps=10)
        >>> bool((far - x).norm(dim=1).max() <= 0.5)
        True
    """
    attack = PGD(
        eps,
        norm=norm,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        targeted=targeted,
        random_start=random_start,  # type: ignore[arg-type]
        compat=compat,
        loss=loss,
        targets=targets,
        l1_quantile=l1_quantile,
        early_stop=early_stop,
    )
    return on_batch(attack, model, x, y, seed=seed, sample_ids=sample_ids, bounds=bounds, precision=precision)
