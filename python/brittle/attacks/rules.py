"""How attacks start and step, norm by norm: what the engine's loop is handed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from brittle.engine import Rows
from brittle.ops import in_ball, l1_step_, l2_step_, linf_step_, momentum_step_, noise

# Draws from here on are the attacks' random starts; a start and the caller's own noise never share a number.
START_DRAW = 2**31

Bounds = tuple[float, float]


@dataclass(frozen=True)
class _Rule:
    """What all rules share.

    Attributes:
        steps: gradient steps of an attempt.
        random_start: whether an attempt starts at a random point of the ball, or at the clean point.
        seed: of the random starts.
        bounds: of the data.
    """

    steps: int
    random_start: bool
    seed: int
    bounds: Bounds

    norm = "linf"

    def anywhere(self, rows: Rows, draw: int) -> None:
        """Put the iterates at a random point of their balls."""
        in_ball(
            rows.clean,
            rows.eps,
            self.norm,
            seed=self.seed,
            sample_ids=rows.ids,
            draw=START_DRAW + draw,
            bounds=self.bounds,
            out=rows.adv,
        )


@dataclass(frozen=True)
class LinfRule(_Rule):
    """Start uniformly in the box, then step along the sign of the gradient."""

    norm = "linf"
    has_momentum = False
    memoryless = True

    def start(self, rows: Rows, draw: int) -> None:
        """The clean point, or one that depends on seed, sample id and draw alone."""
        if self.random_start:
            self.anywhere(rows, draw)
        else:
            rows.adv.copy_(rows.clean)

    def step_(self, rows: Rows, grad: Tensor, step_size: Tensor, trace: Tensor) -> None:
        """``adv <- project(adv + step_size * sign(grad))``."""
        linf_step_(rows.adv, grad, rows.clean, step_size, rows.eps, self.bounds, trace=trace)


@dataclass(frozen=True)
class SignedGaussianRule(LinfRule):
    """Start at a random corner, half-way to the ball's surface; then sign steps."""

    def start(self, rows: Rows, draw: int) -> None:
        """``clean + (eps - step_size) * sign(z)``, z Gaussian: what the steps leave of the ball."""
        zeros = rows.clean.new_zeros(rows.clean.shape)
        signs = noise(zeros, "gaussian", 1.0, self.seed, rows.ids, START_DRAW + draw)
        rows.adv.copy_(rows.clean)
        first = (rows.eps - rows.step_size).clamp(min=0)
        linf_step_(rows.adv, signs, rows.clean, first, rows.eps, self.bounds)


@dataclass(frozen=True)
class L2Rule(_Rule):
    """Start uniformly in the ball, then step along the gradient, whatever its length."""

    norm = "l2"
    has_momentum = False
    memoryless = True

    def start(self, rows: Rows, draw: int) -> None:
        """The clean point, or one that depends on seed, sample id and draw alone."""
        rows.adv.copy_(rows.clean)
        if self.random_start:
            self.anywhere(rows, draw)
            # The rounding of each element may have left the ball; a step of length 0 projects.
            l2_step_(rows.adv, rows.adv, rows.clean, 0.0, rows.eps, self.bounds)

    def step_(self, rows: Rows, grad: Tensor, step_size: Tensor, trace: Tensor) -> None:
        """``adv <- project(adv + step_size * grad / |grad|_2)``."""
        l2_step_(rows.adv, grad, rows.clean, step_size, rows.eps, self.bounds, trace=trace)


@dataclass(frozen=True)
class L1Rule(_Rule):
    """Start uniformly in the ball, then move the elements of largest gradient, all by the same amount.

    Attributes:
        quantile: of the gradient's magnitudes, above which elements move; in [0, 1).
    """

    quantile: float

    norm = "l1"
    has_momentum = False
    memoryless = True

    def start(self, rows: Rows, draw: int) -> None:
        """The clean point, or one that depends on seed, sample id and draw alone."""
        rows.adv.copy_(rows.clean)
        if self.random_start:
            self.anywhere(rows, draw)
            l1_step_(rows.adv, rows.adv, rows.clean, 0.0, rows.eps, 1, self.bounds)

    def step_(self, rows: Rows, grad: Tensor, step_size: Tensor, trace: Tensor) -> None:
        """``adv <- project(adv + step_size / k * sign(grad))`` on the k elements of largest gradient."""
        k = max(1, round((1 - self.quantile) * rows.clean[0].numel()))
        l1_step_(rows.adv, grad, rows.clean, step_size, rows.eps, k, self.bounds, trace=trace)


@dataclass(frozen=True)
class MomentumRule(LinfRule):
    """Sign steps along a decaying sum of normalised gradients.

    Attributes:
        decay: of the sum, from step to step.
        normalize: ``"mean"`` or ``"l1"`` (of the magnitudes), or ``"sign"``.
    """

    decay: float
    normalize: str

    has_momentum = True
    memoryless = False

    def start(self, rows: Rows, draw: int) -> None:
        """As for the sign steps, without any momentum."""
        super().start(rows, draw)
        assert rows.momentum is not None
        rows.momentum.zero_()

    def step_(self, rows: Rows, grad: Tensor, step_size: Tensor, trace: Tensor) -> None:
        """``g <- decay * g + grad / mean|grad|``, then ``adv <- project(adv + step_size * sign(g))``."""
        assert rows.momentum is not None
        momentum_step_(
            rows.adv,
            grad,
            rows.momentum,
            rows.clean,
            step_size,
            rows.eps,
            self.decay,
            self.bounds,
            normalize=self.normalize,
            trace=trace,
        )
