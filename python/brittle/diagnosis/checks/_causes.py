"""Why a batch is not learnt: what is usual, judged from the copy that tried."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brittle.diagnosis.checks.outputs import softmax_kind

FALLING = 0.98
_ROUNDING = 1e-5


def gradients_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """Of every parameter that requires one; None where the loss does not depend on it."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        return dict.fromkeys(learning)
    return dict(
        zip(learning, torch.autograd.grad(loss, list(learning.values()), allow_unused=True), strict=True)
    )


def irreducible(x: Tensor, y: Tensor) -> float:
    """The mean entropy of the labels given the input: above zero where equal inputs have different labels."""
    group = torch.zeros_like(y)
    if x[0].numel():
        _, group = torch.unique(x.flatten(1), dim=0, return_inverse=True)

    def entropy(kind: Tensor) -> float:
        p = torch.bincount(kind).double() / len(kind)
        return float(torch.special.entr(p).sum())

    return max(0.0, entropy(group * (int(y.max()) + 1) + y) - entropy(group))


def why(
    losses: list[float],
    goal: float,
    logits: Tensor,
    x: Tensor,
    gradients: dict[str, Tensor | None],
    nothing_moved: bool,
) -> str:
    """What usually causes a loss that stays up."""
    stays = f"the loss stays at {losses[-1]:.4g}, above {goal:.3g}"
    classes = logits.shape[1]
    found = [gradient for gradient in gradients.values() if gradient is not None]
    alive = sum(bool(gradient.any()) for gradient in found)
    differ = len(x) > 1 and not bool((x == x[:1]).all())
    if nothing_moved:
        return f"{stays}, and no parameter changes: the optimizer has other parameters, or a rate of zero"
    if alive <= 2 < len(found):  # a weight and a bias
        return f"{stays}: the network is dead, no gradient gets behind its last layer"
    if differ and bool(((logits - logits[:1]).abs() <= 1e-5 * logits.abs().max().clamp(min=1)).all()):
        return f"{stays}: every sample has the same output: the model ignores its input, or is dead"
    if softmax_kind(logits) == "probabilities":
        floor = math.log(math.e + classes - 1) - 1
        return (
            f"{stays}: the model gives probabilities, on which cross-entropy cannot fall below {floor:.4f}; "
            "remove the model's softmax"
        )
    tenth = len(losses) // 10
    if tenth and sum(losses[-tenth:]) < FALLING * sum(losses[-2 * tenth : -tenth]):
        return f"{stays} after {len(losses)} steps, and still falls: allow more steps, or a higher rate"
    return (
        f"{stays}; usually the labels are not those of the inputs (shuffled or drawn anew for each step), "
        "the rate is too low or too high, the logits are squashed, or regularisation is too strong"
    )


def unmoved(model: nn.Module, names: Sequence[str], gradients: dict[str, Tensor | None]) -> list[str]:
    """Why these parameters did not change, a sentence for each reason."""
    named = dict(model.named_parameters())
    strongest = max((float(g.norm()) for g in gradients.values() if g is not None), default=0.0)
    reasons: dict[str, list[str]] = {}
    for name in names:
        gradient = gradients.get(name)
        if not named[name].requires_grad:
            reason = "frozen (requires_grad=False); if that is intended, name them in frozen="
        elif gradient is None:
            reason = "not used by the loss"
        elif not bool(gradient.any()):
            reason = "without gradient: it is zero"
        elif float(gradient.norm()) <= _ROUNDING * strongest:
            continue  # a bias before a norm: what is left of its gradient is rounding
        else:
            reason = "never changed by the optimizer, which does not have them or has a rate of zero"
        reasons.setdefault(reason, []).append(name)
    return [
        f"{len(some)} of {len(named)} parameters are {reason}: {', '.join(some[:3])}"
        + (", ..." if len(some) > 3 else "")
        for reason, some in reasons.items()
    ]
