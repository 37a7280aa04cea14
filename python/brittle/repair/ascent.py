"""The inner maximisation of adversarial training: a short attack on a model that is being trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle.attacks.rules import START_DRAW
from brittle.ops import in_ball, l2_step_, linf_step_

Bounds = tuple[float, float]
Loss = Callable[[Tensor], Tensor]

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Ascent:
    """Gradient ascent on a loss, from a random point of the ball, by the attacks' kernels.

    No verdict is wanted here, so there is nothing of :func:`brittle.pgd`'s but the steps: every sample takes
    all of them, and the last iterate counts.

    Attributes:
        norm: ``"linf"`` or ``"l2"``.
        steps: their number.
        random_start: start at a uniformly random point of the ball; else at the clean point.
        bounds: of the data.
        seed: of the random starts.
        half: whether the model's layers compute in bfloat16, where torch's autocast would have them do so.
            Steps, losses and iterates stay as they are.
    """

    norm: str
    steps: int
    random_start: bool
    bounds: Bounds
    seed: int
    half: bool = False

    def __call__(
        self, model: nn.Module, x: Tensor, ids: Tensor, draw: int, loss: Loss, eps: float, step_size: float
    ) -> Tensor:
        """The adversarial points, like ``x``.

        Args:
            model: see :func:`brittle.repair.loop.undisturbed`.
            x: the clean points.
            ids: the samples' identities.
            draw: numbers the random start.
            loss: maps logits to a scalar, a sum over samples.
            eps: radius of the ball.
            step_size: length of a step.
        """
        adv = self.start(x, ids, draw, eps)
        for _ in range(self.steps):
            leaf = adv.detach().clone().requires_grad_()  # the model may write into its input
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
                logits = model(leaf)
            (grad,) = torch.autograd.grad(loss(logits.to(x.dtype)), leaf)
            self.step_(adv, grad, x, step_size, eps)
        return adv

    def start(self, x: Tensor, ids: Tensor, draw: int, eps: float) -> Tensor:
        """Where the ascent begins."""
        if not self.random_start:
            return x.clone()
        adv = in_ball(
            x, eps, self.norm, seed=self.seed, sample_ids=ids, draw=START_DRAW + draw, bounds=self.bounds
        )
        # In L2 the rounding of each element may have left the ball; a step of length 0 projects.
        return adv if self.norm == "linf" else self.step_(adv, adv, x, 0.0, eps)

    def step_(self, adv: Tensor, grad: Tensor, x: Tensor, step_size: float, eps: float) -> Tensor:
        """``adv <- project(adv + step_size * d)``, in place: d is the norm's steepest unit direction."""
        step = linf_step_ if self.norm == "linf" else l2_step_
        return step(adv, grad, x, step_size, eps, self.bounds)
