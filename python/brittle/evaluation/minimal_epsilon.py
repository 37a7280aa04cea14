"""The smallest perturbation that fools the model, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.attacks import PGD, Attack
from brittle.attacks.base import plan_of
from brittle.attacks.run import Progress, step_length_at
from brittle.data import Data, Samples, known_length
from brittle.engine import Rows, Rule, distances, start_warm_or_cold
from brittle.evaluation.curve import NORM_NAMES, Curve, Run, check_epsilons, check_verdicts
from brittle.progress import bar
from brittle.target import Bounds, Model, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class MinimalEpsilon:
    """How far each of N samples had to be moved to fool the model, in the order of the data, on the CPU.

    Attributes:
        attack: the attack and its settings as text.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        upper: the largest radius tried.
        tolerance: by how much a smaller radius was still tried.
        epsilon: float64 ``[N]``, the distance of the nearest adversarial point found: 0 where the model is
            wrong without any attack, infinite where it was not fooled at ``upper``.
        sample_ids: int64 ``[N]``.
        prediction: int64 ``[N]``, the class of the point in ``adversarial``.
        forwards, backwards: evaluations of the model spent, in samples.
        adversarial: like the data ``[N, ...]``, the nearest points, and for samples never fooled the iterate
            of highest loss; None if they were not to be kept.
    """

    attack: str
    norm: str
    upper: float
    tolerance: float
    epsilon: Tensor
    sample_ids: Tensor
    prediction: Tensor
    forwards: int
    backwards: int
    adversarial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.epsilon)

    @property
    def median(self) -> float:
        """Half of the samples are fooled within it; infinite if fewer are, NaN without samples."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> float:
        """The smallest radius within which at least this share of the samples is fooled.

        Args:
            share: in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"quantile: share must be in (0, 1]; got {share}")
        if len(self) == 0:
            return math.nan
        # Shares such as 0.1 are not exact in binary: a hair above a whole number of samples is that number.
        place = math.ceil(share * len(self) * (1 - 1e-12))
        return float(self.epsilon.sort().values[place - 1])

    def curve(self, epsilons: Sequence[float]) -> Curve:
        """Accuracy at other radii, without another evaluation.

        Args:
            epsilons: finite and in [0, upper], in any order.
        """
        values = check_epsilons("curve", epsilons)
        if max(values) > self.upper:
            raise ValueError(f"curve: epsilons must be at most upper = {self.upper}; got {max(values)}")
        radii = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
        return Curve(
            self.attack,
            values,
            self.epsilon > radii,
            self.sample_ids,
            self.forwards,
            self.backwards,
            self.norm,
        )

    def table(self) -> str:
        """The distribution as text: the radius within which each share of the samples is fooled."""
        wrong, never = int((self.epsilon == 0).sum()), int(self.epsilon.isinf().sum())
        lines = [
            f"minimal epsilon ({NORM_NAMES[self.norm]}) under {self.attack}",
            f"  samples {len(self)}, wrong without attack {wrong}, not fooled at {self.upper:g}: {never}",
            f"{'fooled':>9}  epsilon",
        ]
        return "\n".join(lines + [f"{share:>9.0%}  {self.quantile(share):.4g}" for share in _SHARES])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of samples fooled over epsilon with matplotlib, on ``ax`` or on a new figure's.

        Returns:
            The axes.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        found = self.epsilon[self.epsilon.isfinite()].sort().values.tolist()
        shares = [100 * k / len(self) for k in range(len(found) + 1)] if len(self) else [math.nan]
        # Level from the last point found to the end of what was tried.
        ax.step([0.0, *found, self.upper], [*shares, shares[-1]], where="post", label=self.attack)
        ax.set(xlabel=f"epsilon ({NORM_NAMES[self.norm]})", ylabel="fooled (%)", ylim=(-2, 102))
        return ax


def minimal_epsilon(
    model: Model | Target,
    data: Data | Samples,
    attack: Attack | None = None,
    *,
    upper: float,
    tolerance: float | None = None,
    slots: int = 256,
    seed: int = 0,
    bounds: Bounds | None = None,
    keep: bool | None = None,
    progress: Progress = False,
) -> MinimalEpsilon:
    """The smallest radius at which an attack fools the model, for every sample of a data set.

    The attack runs at ``upper`` first. From then on a sample's radius is bisected, each sample at its own
    pace: an adversarial point lowers the upper end to its distance, a failure raises the lower end to the
    radius that failed. Attempts start warm: after a success from the point found, pulled into the smaller
    ball; after a failure from its iterate of highest loss. An attack of one step starts afresh each time, for
    its step is its result.

    What comes out is an upper bound of the true distance to the decision boundary, with the point that proves
    it, certified by the caller's own model. A sample's result depends on the sample, its id and the seed
    alone, as far as the model's own forward treats samples independently. The model is given back as it was
    (see :func:`brittle.fgsm`), also when an exception or Ctrl-C ends the run.

    Args:
        model: an ``nn.Module`` or a callable that maps inputs to logits ``[N, C]``, used as it is; or a
            :class:`brittle.Target`, which searches on a faster copy.
        data: a pair of tensors ``(x, y)``, or an iterable of batches, as for :func:`brittle.attack`.
        attack: by default ``brittle.attacks.PGD()``. Its own eps is not used; its step size is the one it has
            at each radius. With ``restarts`` or ``targets`` every radius gets that many attempts, the first
            of them warm.
        upper: the largest radius to try, in the attack's norm; finite and > 0.
        tolerance: stop where the ends are no further apart; > 0, by default ``upper / 256``.
        slots: samples at a time. Where memory runs out it is halved, with a warning, and the run goes on.
        seed: of random starts, 64 bits.
        bounds: the smallest and the largest value of the inputs; by default (0, 1), or the target's.
        keep: keep the adversarial points in the result; by default where the data is a pair of tensors.
        progress: True for a progress bar on stderr (needs ``rich``), or a function that is called with the
            number of samples finished and their total, None where it is not known.

    Returns:
        The distances.

    Raises:
        ValueError: an argument or a batch that the attack refuses; an attack with ``early_stop=False``, which
            is after high losses rather than verdicts, or with ``compat``.

    Warns:
        GradientMaskingWarning: many samples had no gradient at all.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])), model.bias.zero_()
        >>> x, y = torch.tensor([[0.4, -0.1], [0.3, 0.3]]), torch.tensor([0, 0])
        >>> found = brittle.evaluation.minimal_epsilon(model, (x, y), upper=0.5, bounds=(-1, 1))
        >>> exact = torch.tensor([0.2, 0.9]).double() / 3  # margin over the dual norm of the weights
        >>> bool(((found.epsilon >= exact) & (found.epsilon <= exact + found.tolerance)).all())
        True
        >>> found.curve([0.0, 0.2, 0.4]).accuracy
        [1.0, 0.5, 0.0]
    """
    op = "minimal_epsilon"
    attack = PGD() if attack is None else attack
    check_verdicts(op, attack)
    check.check_count(op, "slots", slots)
    check.check_seed(op, seed)
    if not 0 < upper < math.inf:
        raise ValueError(f"{op}: upper must be finite and > 0; got {upper}")
    tolerance = upper / 256 if tolerance is None else tolerance
    if not 0 < tolerance < math.inf:
        raise ValueError(f"{op}: tolerance must be finite and > 0; got {tolerance}")
    keep = isinstance(data, tuple) if keep is None else keep
    lent = Target.of(model, op, bounds)
    check.check_inside(op, "upper", upper, attack.norm, lent.bounds)
    spent = lent.forwards, lent.backwards
    total = known_length(data)
    with bar(progress, op, total) as tick, lent:
        run = Run(op, lent, attack, data, slots, seed, tick, total)
        plan = Bisection(attack, upper, tolerance)
        found = run.search(plan, [0.0, upper], check_clean=True, keep=keep)
    found.warn_of_masking()
    epsilon = torch.where(found.success, found.distance, torch.inf)
    return MinimalEpsilon(
        attack.text(eps=False),
        attack.norm,
        float(upper),
        float(tolerance),
        torch.where(found.clean_wrong, 0.0, epsilon),
        found.sample_ids,
        found.prediction,
        lent.forwards - spent[0],
        lent.backwards - spent[1],
        found.adversarial,
    )


class Bisection:
    """Attempts at radii halfway between the largest that failed and the distance of the nearest point found.

    The nearest point is kept apart from the attempt's own: what an attempt finds on a copy of the model may
    not fool the model itself.

    Rows come with the two radii ``0, upper``, and the plan moves these ends. Their ``attempt`` counts on
    through the radii, ``draws`` attempts for each.
    """

    def __init__(self, attack: Attack, upper: float, tolerance: float) -> None:
        self._attack, self._tolerance = attack, tolerance
        self._cold = plan_of(attack)
        self._warm = attack.step_count > 1
        # Halved so often, the ends are close enough. It must end where rounding keeps them apart, too.
        radii = 1 + max(0, math.ceil(math.log2(upper) - math.log2(tolerance)))
        self._count = radii * self._cold.draws

    def begin(self, rows: Rows, rule: Rule) -> None:
        """Choose the radius, and start warm, or cold as an attack at that radius would."""
        if rows.nearest is None:
            rows.nearest = rows.clean.clone()
        draws = self._cold.draws
        draw = rows.attempt % draws
        rows.fooled.fill_(False)
        rows.highest.masked_fill_(draw == 0, -torch.inf)
        lower, upper = rows.radii
        at_upper = rows.attempt < draws
        rows.eps.copy_(torch.where(at_upper, upper, lower + (upper - lower) / 2))
        rows.step_size.copy_(torch.as_tensor(step_length_at(self._attack, rows.eps, rows.index)))
        warm = (draw == 0) & ~at_upper & self._warm
        if self._cold.targets:
            at = (draw // self._cold.restarts).unsqueeze(0)
            rows.goal.copy_(torch.where(warm, rows.reached, rows.goals.gather(0, at)[0]))
        start_warm_or_cold(rows, rule, warm, draw)

    def advance(self, rows: Rows) -> Tensor:
        """Move the ends; the next attempt while they are apart, then the nearest point as what was found."""
        draws = self._cold.draws
        lower, upper = rows.radii
        distance = distances(rows.kept, rows.clean, self._attack.norm)
        rows.save_nearest()
        upper.copy_(torch.where(rows.fooled, torch.minimum(distance, rows.eps), upper))
        after = (rows.attempt // draws + 1) * draws
        rows.attempt.copy_(torch.where(rows.fooled, after, rows.attempt + 1))
        next_radius = rows.attempt == after
        lower.copy_(torch.where(next_radius & ~rows.fooled, rows.eps, lower))
        found = rows.reached >= 0
        apart = found & (upper - lower > self._tolerance) & (rows.attempt < self._count)
        more: Tensor = ~next_radius | apart
        rows.return_nearest((~more & found).nonzero().squeeze(1), upper)
        return more
