"""Early stopping against catastrophic overfitting."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from brittle.attacks import PGD, attack
from brittle.data import Data, batches
from brittle.repair.state import Training
from brittle.result import GradientMaskingWarning
from brittle.target import Target

SAMPLES, STEPS = 512, 10  # of a look
_SHARE, _ERRORS = 0.5, 3.0


class CollapseGuard:
    """A callback that watches the robust accuracy on held-out samples, and stops training if it collapses.

    A network that is trained on one-step attacks may learn, within an epoch, to defeat those and nothing
    else: its accuracy under PGD falls to nothing while the training loss looks better than ever. After each
    epoch PGD of 10 steps attacks up to 512 held-out samples, and ``history[-1]["robust_accuracy"]`` tells how
    many it left standing. The accuracy has collapsed if it is under half of the best so far, by more than
    three standard errors of such a difference, and the best was above the share of the largest class (which
    any constant answer has) by as much. Then the model gets the best epoch's weights back and training ends.

    Args:
        data: the held-out samples.
        eps, norm, bounds: of the ball, as for :func:`brittle.pgd`.
        seed: of PGD's random starts.
        name: the operator to name in error messages.

    References:
        Wong, Rice and Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020.

    Example:
        >>> import torch, brittle
        >>> from brittle.repair import CollapseGuard
        >>> x = torch.rand(64, 4)
        >>> data = x, (x.mean(1) > 0.5).long()
        >>> model = torch.nn.Linear(4, 2)
        >>> guard = CollapseGuard(data, eps=0.1)
        >>> training = brittle.repair.train(model, data, epochs=2, callbacks=[guard])
        >>> sorted(training.history[-1])
        ['accuracy', 'epoch', 'learning_rate', 'loss', 'robust_accuracy']
    """

    def __init__(
        self,
        data: Data,
        eps: float,
        norm: str = "linf",
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        name: str = "CollapseGuard",
    ) -> None:
        self.data, self.bounds, self.seed, self.name = data, bounds, seed, name
        self.attack = PGD(eps, norm=norm, steps=STEPS)
        self.best, self.best_epoch = -1.0, 0
        self.weights: dict[str, Tensor] = {}

    def on_epoch(self, training: Training) -> None:
        """Look, remember the best weights, and stop where they are far behind."""
        target = Target(
            training.model, self.bounds, channels_last=False, fold_batchnorm=False, name=self.name
        )
        with warnings.catch_warnings():
            # Whole epochs may have no gradients; the collapse that follows is told by other means.
            warnings.simplefilter("ignore", GradientMaskingWarning)
            found = attack(target, self.attack, self._samples(target), seed=self.seed)
        if len(found) == 0:
            raise ValueError(f"{self.name}: validation must hold samples; got none")
        robust = found.robust_accuracy
        training.history[-1]["robust_accuracy"] = robust
        if robust > self.best:
            self.best, self.best_epoch = robust, len(training.history) - 1
            self.weights = {name: value.clone() for name, value in training.model.state_dict().items()}
        elif has_collapsed(robust, self.best, len(found), found.label.bincount().max().item() / len(found)):
            training.model.load_state_dict(self.weights)
            training.stop(
                f"catastrophic overfitting: robust accuracy on {len(found)} held-out samples fell from "
                f"{self.best:.1%} to {robust:.1%} in epoch {len(training.history) - 1}; the weights are "
                f"those after epoch {self.best_epoch}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.best, self.best_epoch, self.weights = state["best"], state["best_epoch"], state["weights"]

    def _samples(self, target: Target) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        left = SAMPLES
        for part in batches(self.name, self.data, SAMPLES, target):
            yield tuple(tensor[:left] for tensor in part)  # type: ignore[misc]
            left -= len(part[0])
            if left <= 0:
                return


def has_collapsed(now: float, best: float, count: int, constant: float = 0.0) -> bool:
    """Whether an accuracy on ``count`` samples is under half of the best, beyond sampling error.

    Args:
        now, best: the accuracies.
        count: of the samples.
        constant: the accuracy of the best constant answer, which the best was above beyond sampling error.

    Example:
        >>> from brittle.repair.early_stopping import has_collapsed
        >>> has_collapsed(0.20, 0.60, 100), has_collapsed(0.35, 0.60, 100), has_collapsed(0.20, 0.60, 8)
        (True, False, False)
        >>> has_collapsed(0.20, 0.60, 100, constant=0.55)
        False
    """
    return now < _SHARE * best and _above(best, now, count) and _above(best, constant, count)


def _above(one: float, other: float, count: int) -> bool:
    return one - other > _ERRORS * math.sqrt((one * (1 - one) + other * (1 - other)) / count)
