"""The losses that attacks ascend, one number for each sample.

============ ========================= =============================== ==============================
name         away from label y         towards goal g                  towards g, away from y
============ ========================= =============================== ==============================
``"ce"``     ``CE(z, y)``              ``-CE(z, g)``                   ``-CE(z, g)``
``"margin"`` ``max_{j!=y} z_j - z_y``  ``z_g - max_{j!=g} z_j``        ``z_g - z_y``
``"dlr"``    the margin over           the margin over                 the difference over
             ``z_(1) - z_(3)``         ``z_(1) - (z_(3) + z_(4)) / 2`` ``z_(1) - (z_(3) + z_(4)) / 2``
============ ========================= =============================== ==============================

``z_(k)`` is the k-th largest logit. The margin is above zero exactly where the attack has succeeded.
Cross-entropy of a confident network underflows to a zero gradient; the margin and DLR do not, and DLR does
not depend on the scale of the logits either.

References:
    Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017 (margin).
    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020 (DLR).
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LOSSES = ("ce", "margin", "dlr")


def attack_loss(name: str, logits: Tensor, y: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
    """The loss ``[N]`` that an attack ascends.

    Args:
        name: ``"ce"``, ``"margin"`` or ``"dlr"``.
        logits: ``[N, C]``, not probabilities.
        y: int64 ``[N]``, the labels to leave, or None.
        goal: int64 ``[N]``, the labels to reach, or None. At least one of the two is given.

    Raises:
        ValueError: the loss needs more classes than there are (margin 2, DLR 3, with a goal 4).

    Example:
        >>> import torch
        >>> from brittle.losses import attack_loss
        >>> attack_loss("margin", torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    if name == "ce":
        return -F.cross_entropy(logits, goal, reduction="none") if goal is not None else _ce(logits, y)
    needed = 2 if name == "margin" else 3 if goal is None else 4
    if logits.shape[1] < needed:
        raise ValueError(
            f"loss {name!r}{' towards a goal' if goal is not None else ''} needs at least {needed} classes; "
            f"got {logits.shape[1]}"
        )
    if goal is None:
        assert y is not None
        difference = _largest_other(logits, y) - _chosen(logits, y)
    else:
        away_from = _largest_other(logits, goal) if y is None else _chosen(logits, y)
        difference = _chosen(logits, goal) - away_from
    if name == "margin":
        return difference
    top = logits.topk(needed, dim=1).values
    scale = top[:, 0] - (top[:, 2] if goal is None else (top[:, 2] + top[:, 3]) / 2)
    return difference / (scale + 1e-12)  # three equal largest logits leave nothing to divide by


def _ce(logits: Tensor, y: Tensor | None) -> Tensor:
    assert y is not None
    return F.cross_entropy(logits, y, reduction="none")


def _chosen(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y.unsqueeze(1)).squeeze(1)


def _largest_other(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
