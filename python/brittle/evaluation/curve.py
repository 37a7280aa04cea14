"""Accuracy over the size of the perturbation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.attacks import FGSM, PGD, Attack
from brittle.attacks.base import plan_of
from brittle.attacks.run import Progress, chunks_of
from brittle.data import Data, Samples, known_length
from brittle.engine import Attempts, Chunk, Engine, Plan, Rows, Rule, distances, start_warm_or_cold
from brittle.losses import attack_loss
from brittle.ops import sign_sweep
from brittle.progress import Tick, bar
from brittle.result import AttackResult, Ledger
from brittle.target import Bounds, Loss, Model, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class Curve:
    """Accuracy under attack at each epsilon, and the verdict on every sample behind it.

    Attributes:
        attack: ``"fgsm"``, ``"pgd"``, or the attack and its settings as text.
        epsilons: K values, as given.
        correct: bool ``[K, N]``, on the CPU: whether the model is still right on each sample (in a targeted
            attack: has not given the label to be reached).
        sample_ids: int64 ``[N]``.
        forwards, backwards: evaluations of the model spent, in samples.
        norm: of the epsilons: ``"linf"``, ``"l2"`` or ``"l1"``.
    """

    attack: str
    epsilons: tuple[float, ...]
    correct: Tensor
    sample_ids: Tensor
    forwards: int
    backwards: int
    norm: str = "linf"

    @property
    def accuracy(self) -> list[float]:
        """The share of samples still classified correctly, one for each epsilon; NaN without samples."""
        return (
            [float("nan")] * len(self.epsilons)
            if not self.samples
            else self.correct.double().mean(1).tolist()
        )

    @property
    def samples(self) -> int:
        """How many samples were evaluated."""
        return self.correct.shape[1]

    def table(self) -> str:
        """The curve as text, a line for each epsilon."""
        lines = [f"{'epsilon':>9}  accuracy under {self.attack}"]
        lines += [f"{e:9.4f}  {a:8.2%}" for e, a in zip(self.epsilons, self.accuracy, strict=True)]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the curve with matplotlib, on ``ax`` or on a new figure's; returns the axes."""
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        order = sorted(range(len(self.epsilons)), key=self.epsilons.__getitem__)
        ax.plot(
            [self.epsilons[k] for k in order],
            [100 * self.accuracy[k] for k in order],
            marker="o",
            label=self.attack if self.attack.endswith(")") else self.attack.upper(),
        )
        ax.set(xlabel=f"epsilon ({NORM_NAMES[self.norm]})", ylabel="accuracy (%)", ylim=(-2, 102))
        return ax


def accuracy_vs_epsilon(
    model: Model | Target,
    data: Data | Samples,
    epsilons: Sequence[float],
    attack: str | Attack = "fgsm",
    *,
    batch_size: int = 256,
    bounds: Bounds | None = None,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    independent: bool = False,
    progress: Progress | None = None,
) -> Curve:
    """Accuracy of ``model`` under attack at every epsilon, in one run over the data.

    FGSM takes one gradient for all epsilons: 1 forward-backward and K forwards per sample. Any other attack
    bisects the epsilons, each sample at its own pace, in at most ``ceil(log2(K + 1))`` attempts. An
    adversarial point settles every epsilon that is no smaller than its distance, for it lies in those balls.
    A failure settles all smaller epsilons, whose balls lie in the one that was searched, and the next larger
    one starts from its iterate of highest loss (an attack of one step, or with ``targets``, starts afresh).

    So every sample that counts as fooled has a point to prove it, seen by the caller's own model, and the
    curve never rises. What it can miss is a point inside a ball where a search found nothing in a larger
    one. FGSM's curve may rise, and so may one with ``independent=True``. Samples that the model already gets
    wrong count as wrong throughout, and epsilon 0 is the clean accuracy. The model is given back as it was
    (see :func:`brittle.fgsm`), also when an exception or Ctrl-C ends the run.

    Args:
        model: an ``nn.Module`` or a callable that maps inputs to logits ``[N, C]``, used as it is; or a
            :class:`brittle.Target`, which searches on a faster copy and certifies every success.
        data: a pair of tensors ``(x, y)``, or an iterable of batches ``(x, y)`` such as a DataLoader. Batches
            may carry int64 sample ids as a third item; otherwise samples are numbered as they come, and a
            shuffling loader then gives each sample another random start every time. Batches are moved
            to the model's device.
        epsilons: K radii in the attack's norm, finite and >= 0, in any order.
        attack: ``"fgsm"``, ``"pgd"``, or an attack such as ``brittle.attacks.PGD(norm="l2", steps=20)``,
            whose own eps is not used; its step size is the one it has at each epsilon.
        batch_size: samples at a time (the slots of :func:`brittle.attack`).
        bounds: the smallest and the largest value of the inputs; by default (0, 1), or the target's.
        steps, step_size, restarts, random_start: of ``"pgd"``, as for :func:`brittle.pgd`.
        seed: of the random starts, 64 bits.
        independent: attack every sample at every epsilon, from its own start: the same verdicts, and nearly
            the same cost, as K runs of the attack.
        progress: True for a progress bar on stderr (needs ``rich``), or a function that is called with the
            number of samples finished and their total, None where it is not known.

    Returns:
        The curve.

    Raises:
        ValueError: no epsilons; an argument or a batch that the attack refuses; an attack with
            ``early_stop=False``, which is after high losses rather than verdicts, or with ``compat``.

    Warns:
        GradientMaskingWarning: many samples had no gradient at all.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 2)
        >>> x = torch.rand(64, 4)
        >>> y = model(x).argmax(1)
        >>> curve = brittle.evaluation.accuracy_vs_epsilon(model, (x, y), [0.0, 0.1], attack="pgd", steps=5)
        >>> curve.accuracy[0], curve.accuracy[1] <= 1.0
        (1.0, True)
        >>> in_l2 = brittle.attacks.PGD(norm="l2", steps=5, loss="margin")
        >>> brittle.evaluation.accuracy_vs_epsilon(model, (x, y), [0.0, 0.2], in_l2).norm
        'l2'
    """
    op = "accuracy_vs_epsilon"
    values = check_epsilons(op, epsilons)
    check.check_count(op, "batch_size", batch_size)
    check.check_seed(op, seed)
    if isinstance(attack, Attack):
        given = (steps, step_size, restarts, random_start)
        if given != (40, None, 1, True):
            raise ValueError(
                f"{op}: steps, step_size, restarts and random_start are the attack's own settings here; "
                f"got {given} beside {attack}"
            )
        check_verdicts(op, attack)
        text = attack.text(eps=False)
    else:
        text = attack
        attack = _named(op, attack, steps, step_size, restarts, random_start)
    lent = Target.of(model, op, bounds)
    spent = lent.forwards, lent.backwards
    total = known_length(data)
    for eps in values:
        check.check_inside(op, "epsilons", eps, attack.norm, lent.bounds)
    with bar(bool(progress) if progress is None else progress, op, total) as tick, lent:
        run = Run(op, lent, attack, data, batch_size, seed, tick, total)
        if isinstance(attack, FGSM):
            correct, ids = _sweep(run, values)
        else:
            correct, ids = _search(run, values, independent)
    forwards, backwards = lent.forwards - spent[0], lent.backwards - spent[1]
    return Curve(text, values, correct, ids, forwards, backwards, attack.norm)


@dataclass(frozen=True)
class Run:
    """What an evaluation runs: an attack over a data set, at radii and by a plan of the evaluation's own."""

    op: str
    target: Target  # entered
    attack: Attack
    data: Data | Samples
    slots: int
    seed: int
    tick: Tick | None
    total: int | None

    def chunks(self, epsilons: Sequence[float]) -> Iterator[Chunk]:
        """The data, to be attacked at ``epsilons``."""
        return chunks_of(self.op, self.attack, self.target, self.data, self.slots, epsilons=epsilons)

    def search(
        self, plan: Plan, epsilons: Sequence[float], *, keep: bool = False, **changes: bool
    ) -> AttackResult:
        """The engine's result; ``changes`` are to the attack's settings."""
        ledger = Ledger(keep=keep, progress=self.tick, total=self.total)
        rule = self.attack.rule(self.target.bounds, self.seed)
        settings = self.attack.settings(self.slots, **changes)
        Engine(self.target, rule, plan, settings, ledger).run(self.chunks(epsilons))
        return ledger.result(str(self.attack), self.attack.norm)


def check_epsilons(op: str, epsilons: Sequence[float]) -> tuple[float, ...]:
    """At least one, all finite and >= 0."""
    values = tuple(float(e) for e in epsilons)
    if not values:
        raise ValueError(f"{op}: epsilons must hold at least one value; got none")
    for eps in values:
        check.check_scalar(op, "epsilons", eps)
    return values


def check_verdicts(op: str, attack: Attack) -> None:
    """The attack looks for the first success, by brittle's own conventions."""
    if not attack.early_stop:
        raise ValueError(f"{op}: attack must have early_stop=True; got {attack}")
    if attack.compat is not None:
        raise ValueError(f"{op}: attack must have compat=None; got {attack}")


def _named(
    op: str, name: str, steps: int, step_size: float | None, restarts: int, random_start: bool
) -> Attack:
    check.check_choice(op, "attack", name, ("fgsm", "pgd"))
    if step_size is not None:
        check.check_scalar(op, "step_size", step_size)
    check.check_schedule(op, steps, restarts, random_start)
    if name == "fgsm":
        return FGSM()
    return PGD(steps=steps, step_size=step_size, restarts=restarts, random_start=random_start)


def _sweep(run: Run, epsilons: Sequence[float]) -> tuple[Tensor, Tensor]:
    """bool ``[K, N]``, whether each sample is still right after one step of each length, and the ids."""
    target, targeted = run.target, run.attack.targeted
    correct, all_ids = [], []
    for chunk in run.chunks([0.0]):
        x, y, ids = chunk.clean, chunk.label, chunk.ids
        target.expect_labels(y)
        own = not target.confirm_copy(x)
        wavers = target.probe(x)
        found = target.evaluate(x, _loss(run.attack, y), own=own)
        nan = found.logits.isnan().any(1)
        if nan.any():
            target.refuse_nan(ids[nan])
        clean = found.logits if own else target.logits(x, ids)
        answers = [
            clean,
            *(target.logits(adv, ids) for adv in sign_sweep(x, found.gradient, epsilons, target.bounds)),
        ]
        holds = torch.stack([(logits.argmax(1) == y) != targeted for logits in answers])
        if wavers:
            # What was fooled must be so again.
            points = [x, *sign_sweep(x, found.gradient, epsilons, target.bounds)]
            fooled = partial(_fooled, y, targeted)
            holds |= ~torch.stack([target.holds(point, ids, fooled)[0] for point in points])
        correct.append((holds[0] & holds[1:]).cpu())
        all_ids.append(ids.cpu())
        if run.tick is not None:
            run.tick(sum(map(len, all_ids)), run.total)
    if not all_ids:
        return torch.zeros(len(epsilons), 0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    return torch.cat(correct, 1), torch.cat(all_ids)


def _fooled(y: Tensor, targeted: bool, predicted: Tensor, places: Tensor) -> Tensor:
    return (predicted == y[places]) == targeted


def _loss(attack: Attack, y: Tensor) -> Loss:
    if attack.targeted:
        return lambda logits: attack_loss(attack.loss, logits, goal=y)
    return lambda logits: attack_loss(attack.loss, logits, y)


def _search(run: Run, epsilons: Sequence[float], independent: bool) -> tuple[Tensor, Tensor]:
    """bool ``[K, N]``, whether each sample withstands the attack at each epsilon, and the ids."""
    # At 0 there is nothing to attack: any run tells what the model makes of the clean samples.
    radii = sorted({eps for eps in epsilons if eps > 0}) or [0.0]
    attempts = plan_of(run.attack, len(radii))
    settings = attempts.epsilons, attempts.targets, attempts.restarts
    # An attack's one step is its result; an attempt at one target is no start for the next one's.
    warm = run.attack.step_count > 1 and not run.attack.targets
    plan = EachEpsilon(*settings) if independent else Bisected(*settings, norm=run.attack.norm, warm=warm)
    result = run.search(plan, radii)
    result.warn_of_masking(stacklevel=3)
    right = ~result.clean_wrong
    if isinstance(plan, EachEpsilon):
        withstood = plan.withstood(len(result))
    else:
        withstood = result.attempt // plan.draws > torch.arange(len(radii)).unsqueeze(1)
    at = {eps: k for k, eps in enumerate(radii)}
    rows = [right & withstood[at[eps]] if eps > 0 else right for eps in epsilons]
    return torch.stack(rows), result.sample_ids


@dataclass(frozen=True)
class Bisected(Attempts):
    """The least of ascending epsilons at which a sample is fooled, by bisection; at each that is tried the
    targets and restarts until one succeeds.

    A row's answer lies between ``low``, below which everything withstood, and ``high``, from which on the
    sample is known to be fooled. The next epsilon is halfway, although a failure takes every step and a
    success often few: trying larger ones, as far as the bound on attempts allows, took 3 to 14 % more
    evaluations on the models that were measured. When a row is done, ``attempt`` is the first at ``high``.
    """

    norm: str = "linf"
    warm: bool = True  # after a failure, start from its iterate of highest loss

    def begin(self, rows: Rows, rule: Rule) -> None:
        """Set eps, step size and goal, and start: warm at a larger epsilon than the last, which failed."""
        if rows.nearest is None:
            rows.nearest = rows.clean.clone()
            rows.high.fill_(self.epsilons)
            rows.attempt.fill_(self.epsilons // 2 * self.draws)
            tried = torch.full_like(rows.eps, torch.inf)
        else:
            tried = rows.eps.clone()
        self.set_up(rows)
        draw = rows.attempt % self.draws
        rows.fooled.fill_(False)
        rows.highest.masked_fill_(draw == 0, -torch.inf)
        start_warm_or_cold(rows, rule, (draw == 0) & (rows.eps > tried) & self.warm, draw)

    def advance(self, rows: Rows) -> Tensor:
        """Move the ends; the next attempt while they are apart, then the nearest point as what was found."""
        at = rows.attempt // self.draws
        rows.save_nearest()
        # The first epsilon whose ball holds the point; rounding may put it a hair outside its own.
        holds = (rows.radii < distances(rows.kept, rows.clean, self.norm)).sum(0)
        rows.high.copy_(torch.where(rows.fooled, torch.minimum(holds, at), rows.high))
        rows.attempt.add_(1)
        failed = ~rows.fooled & (rows.attempt % self.draws == 0)
        rows.low.copy_(torch.where(failed, at + 1, rows.low))
        settled = rows.fooled | failed
        more = ~settled | (rows.low < rows.high)
        probe = torch.where(more, rows.low + (rows.high - rows.low) // 2, rows.high)
        rows.attempt.copy_(torch.where(settled, probe * self.draws, rows.attempt))
        found = rows.high.clamp(max=self.epsilons - 1).unsqueeze(0)
        ends = (~more & (rows.high < self.epsilons)).nonzero().squeeze(1)
        rows.return_nearest(ends, rows.radii.gather(0, found)[0])
        return more


@dataclass(frozen=True)
class EachEpsilon(Attempts):
    """Every epsilon in turn, whatever came of the one before; at each the targets and restarts until one
    succeeds."""

    # Places of samples in the data, which epsilon they withstood.
    verdicts: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def begin(self, rows: Rows, rule: Rule) -> None:
        """As for any attempts; at the first of an epsilon nothing is known yet."""
        first = rows.attempt % self.draws == 0
        rows.fooled.logical_and_(~first)
        super().begin(rows, rule)

    def advance(self, rows: Rows) -> Tensor:
        """The next at the same epsilon after a failure, as long as there is one; then the next epsilon's."""
        at = rows.attempt // self.draws
        rows.attempt.copy_(torch.where(rows.fooled, (at + 1) * self.draws, rows.attempt + 1))
        stood = ~rows.fooled & (rows.attempt % self.draws == 0)
        self.verdicts.append((at[stood].cpu(), rows.index[stood].cpu()))
        return rows.attempt < self.count

    def withstood(self, samples: int) -> Tensor:
        """bool ``[K, N]``."""
        table = torch.zeros(self.epsilons, samples, dtype=torch.bool)
        for at, places in self.verdicts:
            table[at, places] = True
        return table
