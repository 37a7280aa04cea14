"""Projected gradient descent: many small steps, each projected back into the ball."""

from dataclasses import dataclass

from torch import Tensor

from brittle import _checks as check
from brittle import engine
from brittle.ops import linf_start, linf_step_
from brittle.target import Model, Target

# Draws from here on are the attacks' random starts; a start and the caller's own noise never share a number.
START_DRAW = 2**31

_COMPAT_STEP_SIZE = {"torchattacks": 2 / 255}


@dataclass(frozen=True)
class LinfRule:
    """Start uniformly in the box (or at the clean point), then step along the sign of the gradient."""

    eps: float | Tensor
    step_size: float | Tensor
    random_start: bool
    seed: int
    sample_ids: Tensor
    bounds: tuple[float, float]
    projection: str = "exact"

    def start(self, clean: Tensor, rows: Tensor, attempt: int) -> Tensor:
        """The clean point itself, or a random one that depends on seed, sample id and attempt alone."""
        if not self.random_start:
            return clean.clone()
        ids, draw = self.sample_ids[rows], START_DRAW + attempt
        return linf_start(clean, _of(self.eps, rows), self.seed, ids, draw, self.bounds)

    def step_(self, adv: Tensor, grad: Tensor, clean: Tensor, rows: Tensor) -> None:
        """``adv <- project(adv + step_size * sign(grad))``."""
        step_size, eps = _of(self.step_size, rows), _of(self.eps, rows)
        linf_step_(adv, grad, clean, step_size, eps, self.bounds, projection=self.projection)


def default_step_size(eps: float | Tensor, steps: int) -> float | Tensor:
    """``max(2/255, 2.5 eps / steps)``: far enough to cross the ball, at least two grey levels of 255."""
    if isinstance(eps, Tensor):
        return (2.5 / steps * eps).clamp(min=2 / 255)
    return max(2 / 255, 2.5 * eps / steps)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 40,
    step_size: float | Tensor | None = None,
    restarts: int = 1,
    targeted: bool = False,
    random_start: bool = True,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    compat: str | None = None,
    *,
    early_stop: bool = True,
) -> Tensor:
    """Projected gradient descent on the cross-entropy loss.

        adv_0     = clip(x + U(-eps, eps))                  (x itself without random_start)
        adv_{t+1} = project(adv_t + step_size * sign(grad loss(adv_t)))

    For a verdict on robustness keep ``early_stop``: a sample is returned at its first success, which
    may be the clean point itself, and costs nothing from then on; one that never falls is returned at its
    highest loss. For adversarial training or transfer studies take ``early_stop=False``: every sample
    takes every step, and its iterate of highest loss is returned.

    The model runs in evaluation mode and is given back as it was (see :func:`brittle.fgsm`).

    Args:
        model: an ``nn.Module`` or a callable that maps ``x`` to logits ``[N, C]``.
        x: ``[N, ...]``, floating point, inside ``bounds``. Any strides; a dense layout is kept.
        y: int64 ``[N]``, the true labels, or the labels to reach if ``targeted``.
        eps: radius of the ball in x's units, >= 0, a float or ``[N]``.
        norm: ``"linf"``.
        steps: gradient steps per restart, >= 1.
        step_size: > 0 in x's units, a float or ``[N]``; by default ``max(2/255, 2.5 * eps / steps)``.
        restarts: how often to start again for the samples not yet fooled; more than one needs random_start.
        targeted: descend towards ``y`` instead of ascending away from it.
        random_start: start at a uniformly random point of the ball.
        seed: of the random starts, 64 bits.
        sample_ids: int64 ``[N]``, each sample's identity in its data set, by default its place in the batch.
            With ids a sample's random starts are the same in any batch.
        bounds: the smallest and the largest value of ``x``.
        compat: ``"torchattacks"`` reproduces that library bit for bit (without random start): every step for
            every sample, loss averaged over the batch, its rounding, the last iterate, step size 2/255.
        early_stop: see above; no effect with ``compat``.

    Returns:
        The adversarial points, like ``x``.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range; the model returns something else
            than logits ``[N, C]``, or NaN (the samples are named).

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
        Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world", ICLR 2017 workshop.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> adv = brittle.pgd(model, x, y, eps=0.1, steps=10, seed=1)
        >>> bool((adv - x).abs().max() <= 0.1)
        True
    """
    op = "pgd"
    check.check_choice(op, "norm", norm, ("linf",))
    check.check_choice(op, "compat", compat, (None, "torchattacks"))
    check.check_images(op, x, bounds)
    check.check_labels(op, y, x)
    eps = check.check_amount(op, "eps", eps, x)
    check.check_schedule(op, steps, restarts, random_start)
    check.check_seed(op, seed)
    if restarts > 1 and compat:
        raise ValueError(f"{op}: compat={compat!r} has no restarts; got restarts={restarts}")
    if step_size is None:
        step_size = _COMPAT_STEP_SIZE[compat] if compat else default_step_size(eps, steps)
    step_size = check.check_amount(op, "step_size", step_size, x)
    with Target(model, op) as target:
        check.check_device(op, x, target)
        ids = check.check_sample_ids(op, sample_ids, x)
        clean, labels = x.detach().clone(), y.clone()
        if len(x) == 0:
            return clean
        projection = "difference" if compat else "exact"
        rule = LinfRule(eps, step_size, random_start, seed, ids, bounds, projection)
        if compat:
            return engine.run_to_last(target, rule, clean, labels, ids, steps=steps, targeted=targeted)
        return engine.run(
            target,
            rule,
            clean,
            labels,
            ids,
            steps=steps,
            restarts=restarts,
            targeted=targeted,
            early_stop=early_stop,
        ).adversarial


def _of(value: float | Tensor, rows: Tensor) -> float | Tensor:
    return value[rows] if isinstance(value, Tensor) else value
