"""Peer libraries' conventions: how each rounds, orders its operations, scales its loss, and what it returns.

With ``compat`` an attack is the peer's own: to the bit for Linf and momentum, to 1e-6 for L2, in float32 with
finite gradients. Every sample takes every step, in one batch (for ART, of ``batch_size``). A random start has
the peer's distribution and brittle's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from brittle.attacks.rules import START_DRAW
from brittle.losses import attack_loss
from brittle.ops import in_ball, l2_step_, linf_start, linf_step_, noise
from brittle.target import Target

if TYPE_CHECKING:
    from brittle.attacks.base import Attack

Amount = float | Tensor
Bounds = tuple[float, float]


@dataclass
class Walk:
    """One batch on its way from ``clean`` to ``adv``."""

    adv: Tensor
    clean: Tensor
    eps: Amount
    step_size: Amount
    bounds: Bounds
    decay: float
    carried: Tensor  # from step to step: the momentum, or the perturbation

    @property
    def radius(self) -> Tensor:
        """``eps`` in the data's dtype, shaped to broadcast."""
        eps = torch.as_tensor(self.eps, dtype=self.adv.dtype, device=self.adv.device)
        return eps.reshape(-1, *[1] * (self.adv.dim() - 1))


Step = Callable[[Walk, Tensor], None]


@dataclass(frozen=True)
class Convention:
    """One peer's form of one attack in one norm.

    Attributes:
        step: moves the walk along the gradient.
        steps, step_size: its defaults, the step size by eps. None: it has none, so brittle's.
        reduction: of the loss over the batch.
        random_start: its default.
        start: where a random start is drawn: ``"box"``, ``"ball"``, ``"radius"`` (a random direction, a
            uniform length), ``"pressed box"`` (of the box, then projected into the ball), or ``"signs"`` (a
            corner of the box of one step).
        last_success: return the last success, or the clean sample, rather than the last iterate.
    """

    step: Step
    steps: int | None
    step_size: Callable[[Amount], Amount] | None
    reduction: str = "mean"
    random_start: bool = False
    start: str = "box"
    last_success: bool = False


def _difference(walk: Walk, grad: Tensor) -> None:
    """Clamp the difference to the clean point, add it back, clip to the bounds.

    Peers that clip before they project, or both before and after, or take one step without projecting, get
    the same bits.
    """
    linf_step_(walk.adv, grad, walk.clean, walk.step_size, walk.eps, walk.bounds, projection="difference")


def _limits(walk: Walk, grad: Tensor) -> None:
    """Clip between the clean point's limits, never taking a difference."""
    linf_step_(walk.adv, grad, walk.clean, walk.step_size, math.inf, walk.bounds)
    torch.maximum(walk.adv, walk.clean - walk.radius, out=walk.adv)
    torch.minimum(walk.adv, walk.clean + walk.radius, out=walk.adv)


def _perturbation(walk: Walk, grad: Tensor) -> None:
    """Step and clamp the perturbation itself; the iterate is the clean point plus it, rounded anew."""
    lo, hi = walk.bounds
    delta = walk.carried
    linf_step_(delta, grad, delta, walk.step_size, math.inf, (-math.inf, math.inf))
    torch.maximum(delta, torch.maximum(lo - walk.clean, -walk.radius), out=delta)
    torch.minimum(delta, torch.minimum(hi - walk.clean, walk.radius), out=delta)
    torch.add(walk.clean, delta, out=walk.adv)


def _l2(walk: Walk, grad: Tensor, *, projection: str, floor: str) -> None:
    ball = walk.step_size, walk.eps, walk.bounds
    l2_step_(walk.adv, grad, walk.clean, *ball, projection=projection, floor=floor)


def _momentum(walk: Walk, grad: Tensor, *, normalize: Callable[[Tensor], Tensor]) -> None:
    """Accumulated by the peer's own expression. NaN moves nothing, as the peers' sign of it is 0."""
    walk.carried.mul_(walk.decay).add_(normalize(grad))
    _difference(walk, walk.carried)


def _by_mean(grad: Tensor) -> Tensor:
    """A gradient of zeros gives NaN."""
    return grad / grad.abs().mean(tuple(range(1, grad.dim())), keepdim=True)


def _by_l1(grad: Tensor) -> Tensor:
    flat = grad.flatten(1)
    norm = torch.linalg.vector_norm(flat, 1, dim=1, keepdim=True)
    return (flat * torch.where(norm == 0, norm, 1 / norm)).view_as(grad)


def _fixed(step_size: float) -> Callable[[Amount], Amount]:
    return lambda eps: step_size


def _relative(share: float) -> Callable[[Amount], Amount]:
    return lambda eps: share * eps


def _relative_in_float32(eps: Amount) -> Amount:
    """Multiplied in the data's own dtype, which moves it by an ulp."""
    step_size = torch.as_tensor(eps, dtype=torch.float32) * _THIRTIETH
    return step_size.double() if isinstance(eps, Tensor) else step_size.item()


_THIRTIETH = 0.01 / 0.3

_ONCE = 1, _relative(1.0)
_TORCHATTACKS = 10, _fixed(2 / 255)
_FOOLBOX = 10, _relative(0.2), "sum"
_ART = 100, _fixed(0.1)

_CONVENTIONS = {
    ("torchattacks", "fgsm", "linf"): Convention(_difference, *_ONCE),
    ("torchattacks", "rfgsm", "linf"): Convention(
        _difference, *_TORCHATTACKS, random_start=True, start="signs"
    ),
    ("torchattacks", "bim", "linf"): Convention(_limits, *_TORCHATTACKS),
    ("torchattacks", "mifgsm", "linf"): Convention(partial(_momentum, normalize=_by_mean), *_TORCHATTACKS),
    ("torchattacks", "pgd", "linf"): Convention(_difference, *_TORCHATTACKS, random_start=True),
    ("torchattacks", "pgd", "l2"): Convention(
        partial(_l2, projection="project_clip", floor="torchattacks"),
        10,
        _fixed(0.2),
        random_start=True,
        start="radius",
    ),
    ("foolbox", "fgsm", "linf"): Convention(_difference, *_ONCE, "sum"),
    ("foolbox", "bim", "linf"): Convention(_difference, *_FOOLBOX),
    ("foolbox", "mifgsm", "linf"): Convention(partial(_momentum, normalize=torch.sign), *_FOOLBOX),
    ("foolbox", "pgd", "linf"): Convention(_difference, 40, _relative(_THIRTIETH), "sum", random_start=True),
    ("foolbox", "pgd", "l2"): Convention(
        partial(_l2, projection="project_clip", floor="foolbox"),
        50,
        _relative(0.025),
        "sum",
        random_start=True,
        start="ball",
    ),
    ("art", "fgsm", "linf"): Convention(_difference, *_ONCE),
    ("art", "bim", "linf"): Convention(_difference, *_ART),
    ("art", "mifgsm", "linf"): Convention(partial(_momentum, normalize=_by_l1), *_ART),
    ("art", "pgd", "linf"): Convention(_difference, *_ART),
    ("art", "pgd", "l2"): Convention(
        partial(_l2, projection="clip_project", floor="none"), *_ART, start="ball"
    ),
    ("cleverhans", "fgsm", "linf"): Convention(_difference, *_ONCE),
    ("cleverhans", "pgd", "linf"): Convention(_difference, None, None, random_start=True),
    ("cleverhans", "pgd", "l2"): Convention(
        partial(_l2, projection="clip_project", floor="cleverhans"),
        None,
        None,
        random_start=True,
        start="pressed box",
    ),
    ("advlib", "pgd", "linf"): Convention(
        _perturbation, 40, _relative_in_float32, "sum", random_start=True, last_success=True
    ),
}


def peers_with(attack: str, norm: str) -> tuple[str, ...]:
    """The peers that have the attack in the norm."""
    return tuple(peer for peer, name, of in _CONVENTIONS if (name, of) == (attack, norm))


def convention(peer: str, attack: str, norm: str) -> Convention:
    """A peer's convention."""
    return _CONVENTIONS[peer, attack, norm]


def run_as_peer(
    attack: Attack,
    target: Target,
    clean: Tensor,
    y: Tensor,
    ids: Tensor,
    eps: Amount,
    step_size: Amount,
    seed: int,
) -> Tensor:
    """The peer's attack on one batch: every step for every sample."""
    rules = attack.convention
    assert rules is not None
    walk = Walk(
        adv=clean.clone(),
        clean=clean,
        eps=eps,
        step_size=step_size,
        bounds=target.bounds,
        decay=getattr(attack, "decay", 0.0),
        carried=torch.zeros_like(clean),
    )
    if attack.random_start:
        _start(walk, rules.start, seed, ids)
        if rules.step is _perturbation:
            torch.sub(walk.adv, clean, out=walk.carried)
    target.thaw()
    target.expect_labels(y)
    away, goal = (None, y) if attack.targeted else (y, None)
    last_success = clean.clone()
    nan = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    for _ in range(attack.step_count):
        found = target.evaluate(
            walk.adv,
            lambda logits: attack_loss(attack.loss, logits, away, goal),
            own=True,
            reduction=rules.reduction,
        )
        nan |= found.logits.isnan().any(1)
        if rules.last_success:
            reached = found.logits.argmax(1) == y
            success = reached if attack.targeted else ~reached
            last_success[success] = walk.adv[success]
        rules.step(walk, found.gradient)
    if nan.any():
        target.refuse_nan(ids[nan])
    return last_success if rules.last_success else walk.adv


def _start(walk: Walk, start: str, seed: int, ids: Tensor) -> None:
    """``walk.adv`` from the peer's distribution, in the ball and the bounds."""
    if start == "box":
        linf_start(walk.clean, walk.eps, seed, ids, START_DRAW, walk.bounds, out=walk.adv)
        return
    if start == "signs":
        z = noise(torch.zeros_like(walk.clean), "gaussian", 1.0, seed, ids, START_DRAW)
        linf_step_(walk.adv, z, walk.clean, walk.step_size, math.inf, walk.bounds)
        return
    eps: Amount = walk.eps
    if start == "radius":
        zeros = torch.zeros(len(ids), 1, dtype=torch.float64, device=ids.device)
        eps = eps * noise(zeros, "uniform", 1.0, seed, ids, START_DRAW + 1).abs().flatten()
    norm = "linf" if start == "pressed box" else "l2"
    in_ball(walk.clean, eps, norm, start == "radius", seed, ids, START_DRAW, out=walk.adv)
    # A step of length 0 projects, then clips.
    l2_step_(walk.adv, walk.adv, walk.clean, 0.0, walk.eps, walk.bounds, projection="project_clip")
