"""The work of an evaluation, stage by stage: what is done to each sample, and the rows that are kept of it.

What a stage writes about a sample depends on the sample, its id and the run's settings alone. So it does not
matter which worker does it, in which batch, or whether it was done before or after an interruption.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brittle.attacks import PGD
from brittle.attacks.rules import L1Rule, L2Rule, LinfRule
from brittle.attacks.run import chunks_of
from brittle.engine import Chunk, Engine, Plan, Rows, distances
from brittle.evaluation.curve import Bisected
from brittle.evaluation.minimal_epsilon import Bisection
from brittle.evaluation.penultimate import capture_penultimate
from brittle.evaluation.scores import Answers, answers
from brittle.evaluation.shifts import apply_shift, kinds_for
from brittle.evaluation.store import Row, RunStore
from brittle.losses import attack_loss
from brittle.noise import gaussian
from brittle.result import Ledger
from brittle.sources import BadSample, Source
from brittle.target import Loss, Target

Tick = Callable[[int], None]
StepRule = LinfRule | L2Rule | L1Rule

# Random search draws its points far away from the numbers of PGD's restarts.
_RANDOM_DRAW = 2**20
_RANDOM_DRAWS = 5
# Of a sample's gradient and one random direction; odd, so that the sample itself is on the grid.
LANDSCAPE_SIDE = 21
# Wider features are projected: distances survive, and 50,000 samples take 100 MB.
_FEATURES = 512
_FLUSH_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """A worker's share of one stage on one data set.

    Attributes:
        store: where rows go.
        target: entered, with a fixed batch.
        source: the data set.
        data_set: its name.
        ids: the samples still to be done.
        batch_size: samples to read, and slots of an attack.
        seed: of the run.
        skip_bad: record samples that cannot be read instead of giving up.
        tick: called with the number of samples finished.
    """

    store: RunStore
    target: Target
    source: Source
    data_set: str
    ids: Sequence[int]
    batch_size: int
    skip_bad: bool
    tick: Tick

    def batches(self, size: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """x, y and ids on the model's device, ``size`` samples at a time."""
        size = self.batch_size if size is None else size
        device = self.target.device or torch.device("cpu")
        for first in range(0, len(self.ids), size):
            rows = list(self.ids[first : first + size])
            while rows:
                try:
                    x, y = self.source.load(rows)
                except BadSample as bad:
                    if not self.skip_bad:
                        raise ValueError(
                            f"evaluate: data must be readable; got {bad} in {self.data_set!r} (skip_bad=True "
                            "or --skip-bad leaves such samples out and lists them)"
                        ) from None
                    self.store.skip(self.data_set, bad.row, bad.name, bad.reason)
                    rows.remove(bad.row)
                    self.tick(1)
                    continue
                yield x.to(device), y.to(device), torch.tensor(rows, device=device)
                break


class Writer:
    """Gathers the rows of finished samples and commits them, some at a time.

    Args:
        work: whose samples they are.
        stage: which marks them as done.
        attack: attack, norm and seed of the adversarial points, if there are any.
    """

    def __init__(self, work: Work, stage: str, attack: tuple[str, str, int] | None = None) -> None:
        self._work, self._stage, self._attack = work, stage, attack
        self.data_set = work.data_set
        self._rows: dict[str, list[Row]] = {}
        self._ids: list[int] = []
        self._points: list[tuple[Tensor, Tensor]] = []
        self._last = time.monotonic()

    def add(self, ids: Sequence[int], rows: Mapping[str, Iterable[Row]]) -> None:
        """These samples are finished; their rows, by table."""
        for table, values in rows.items():
            self._rows.setdefault(table, []).extend(values)
        self._ids += ids
        if len(self._ids) >= self._work.batch_size or time.monotonic() - self._last > _FLUSH_SECONDS:
            self.flush()

    def add_points(self, ids: Tensor, points: Tensor) -> None:
        """Adversarial points of samples that are about to be added."""
        if len(ids):
            self._points.append((ids.cpu(), points.detach().cpu()))

    def flush(self) -> None:
        """Commit what has been gathered."""
        if not self._ids:
            return
        store, data_set = self._work.store, self._work.data_set
        if self._points:
            assert self._attack is not None
            ids, points = (torch.cat(parts) for parts in zip(*self._points, strict=True))
            order = ids.argsort()
            attack, norm, seed = self._attack
            file = store.save_points(f"{data_set}-{attack}-{norm}-{seed}", ids[order], points[order])
            self._rows["points"] = [
                (data_set, attack, norm, seed, sample, file, place)
                for place, sample in enumerate(ids[order].tolist())
            ]
        with store.writing():
            for table, rows in self._rows.items():
                store.insert(table, rows)
            store.mark(self._stage, data_set, self._ids)
        self._work.tick(len(self._ids))
        self._rows, self._ids, self._points = {}, [], []
        self._last = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an interruption too: what is finished is kept.
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.flush()


class Stage(ABC):
    """Something that is done to every sample of a data set."""

    name: str

    @abstractmethod
    def run(self, work: Work) -> None:
        """Do it to ``work.ids``."""


class Clean(Stage):
    """The model's answers to the samples as they are, and what it sees just before its last layer."""

    name = "clean"

    def run(self, work: Work) -> None:
        """One forward."""
        target, source = work.target, work.source
        assert target.fixed_batch is not None
        module = isinstance(target.model, nn.Module)
        with Writer(work, self.name) as out, capture_penultimate(target) if module else nullcontext() as seen:
            for x, y, ids in work.batches(target.fixed_batch):
                labelled = bool((y >= 0).all())
                if labelled:
                    target.expect_labels(y)
                logits = target.logits(x, ids)
                _refuse_infinite(logits, ids)
                found = answers(logits, y.clamp(min=0))
                loss = found.log_loss.tolist() if labelled else [None] * len(ids)
                wide = None if seen is None or seen.features is None else seen.features
                features = [None] * len(ids) if wide is None else _compact(wide)[: len(ids)].cpu().numpy()
                rows = ids.tolist()
                segments = [None if source.groups is None else source.groups[row] for row in rows]
                names, labels = map(source.name_of, rows), y.tolist()
                sets = [work.data_set] * len(rows)
                columns = found.predicted.tolist(), found.confidence.tolist(), loss
                blobs = logits.float().cpu().numpy()
                out.add(
                    rows,
                    {
                        "samples": zip(sets, rows, names, labels, segments, *columns, strict=True),
                        "outputs": [
                            (work.data_set, row, z.tobytes(), None if f is None else f.tobytes())
                            for row, z, f in zip(rows, blobs, features, strict=True)
                        ],
                    },
                )


@dataclass(frozen=True)
class Shift(Stage):
    """The model's answers to noisy, blurred, brighter and paler samples, at every severity.

    Attributes:
        kinds: of :func:`brittle.evaluation.shifts.kinds_for`; None for the usual ones that the data allows.
        severities: which of the five, from 1.
        seed: of the noise.
    """

    seed: int
    kinds: tuple[str, ...] | None = None
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)

    _usual = ("gaussian", "shot", "salt_and_pepper", "blur", "brightness", "contrast")

    @property
    def name(self) -> str:  # type: ignore[override]
        """By which it is marked as done."""
        return f"shift {self.seed}" if self.kinds is None else f"shift {self.seed} {' '.join(self.kinds)}"

    def run(self, work: Work) -> None:
        """One forward for each kind and severity."""
        with Writer(work, self.name) as out:
            for x, y, ids in work.batches():
                scales = kinds_for(x.shape)
                rows: list[Row] = []
                for kind in self.kinds or [kind for kind in self._usual if kind in scales]:
                    for level in self.severities:
                        scale = scales[kind][level - 1]
                        shifted = apply_shift(kind, scale, x, ids, self.seed, work.target.bounds)
                        found = answers(work.target.logits(shifted, ids), y)
                        rows += answer_rows(work.data_set, kind, level, scale, self.seed, ids, found)
                out.add(ids.tolist(), {"answers": rows})


@dataclass(frozen=True)
class Attacked(Stage):
    """What attacks have in common.

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        epsilons: K radii, ascending and > 0.
        seed: of random starts.
    """

    norm: str
    epsilons: tuple[float, ...]
    seed: int

    attack = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        """By which it is marked as done."""
        return f"{self.attack} {self.norm}" + (f" {self.seed}" if self.seed_matters else "")

    @property
    def seed_matters(self) -> bool:
        """Whether another seed gives other rows."""
        return True

    @property
    def name_in_texts(self) -> str:
        """Attack and norm: whatever the seed, the settings are the same."""
        return f"{self.attack} {self.norm}"

    @property
    @abstractmethod
    def text(self) -> str:
        """The attack and its settings."""

    def writer(self, work: Work) -> Writer:
        """For its rows and points."""
        return Writer(work, self.name, (self.attack, self.norm, self.seed))

    def rows(self, data_set: str, ids: list[int], fooled: Tensor, **columns: Tensor) -> dict[str, list[Row]]:
        """Of samples: bool ``[K, n]``, which radius they are fooled at, and a tensor for each column."""
        key = data_set, self.attack, self.norm, self.seed
        values = zip(*(columns[name].tolist() for name in _ATTACK_COLUMNS), strict=True)
        return {
            "attacks": [(*key, i, *map(_number, row)) for i, row in zip(ids, values, strict=True)],
            "verdicts": [
                (*key, eps, i, int(yes))
                for eps, verdict in zip(self.epsilons, fooled.tolist(), strict=True)
                for i, yes in zip(ids, verdict, strict=True)
            ],
        }


_ATTACK_COLUMNS = (
    "distance", "prediction", "certified", "zero_gradient", "nonfinite_gradient", "stalled", "cycled",
    "forwards", "backwards",
)  # fmt: skip


@dataclass(frozen=True)
class SingleStep(Attacked):
    """One step along the gradient at every radius: FGSM, and its like in L2 and L1.

    Attributes:
        keeps_answers: whether the model's answers at each radius are kept: calibration under attack.
    """

    keeps_answers: bool = False

    attack = "fgsm"

    @property
    def seed_matters(self) -> bool:
        """It draws nothing."""
        return False

    @property
    def text(self) -> str:
        """The attack and its settings."""
        return "FGSM" if self.norm == "linf" else f"single gradient step ({self.norm})"

    def run(self, work: Work) -> None:
        """One forward and backward, and one forward for each radius."""
        target = work.target
        rule = PGD(norm=self.norm, steps=1, random_start=False).rule(target.bounds, self.seed)
        with self.writer(work) as out:
            for x, y, ids in work.batches():
                target.expect_labels(y)
                own = not target.confirm_copy(x)
                found = target.evaluate(x, _away_from(y), own=own)
                wrong = target.logits(x, ids).argmax(1) != y
                search = _Search.of(rule, x, y, ids, wrong)
                rows: list[Row] = []
                for level, eps in enumerate(self.epsilons, 1):
                    logits = search.step(target, found.gradient, eps)
                    if self.keeps_answers:
                        said = answers(logits, y)
                        rows += answer_rows(work.data_set, self.attack, level, eps, self.seed, ids, said)
                one = torch.ones_like(ids)
                bad = ~found.gradient.flatten(1).isfinite().all(1)
                zero = (found.gradient.flatten(1) == 0).all(1)
                verdicts = search.rows(
                    self, out, zero_gradient=zero, nonfinite_gradient=bad, backwards=one,
                    forwards=one * (len(self.epsilons) + 2),
                )  # fmt: skip
                out.add(ids.tolist(), {**verdicts, "answers": rows})


@dataclass(frozen=True)
class RandomSearch(Attacked):
    """Uniformly random points of each ball. An attack with gradients must do better."""

    attack = "random"

    @property
    def text(self) -> str:
        """The attack and its settings."""
        return f"{_RANDOM_DRAWS} random points"

    def run(self, work: Work) -> None:
        """At most so many forwards for each radius; a sample that is fooled is done."""
        target = work.target
        rule = PGD(norm=self.norm, steps=1, random_start=True).rule(target.bounds, self.seed)
        with self.writer(work) as out:
            for x, y, ids in work.batches():
                target.expect_labels(y)
                wrong = target.logits(x, ids).argmax(1) != y
                search = _Search.of(rule, x, y, ids, wrong)
                for eps in self.epsilons:
                    search.draw(target, eps)
                none = torch.zeros_like(wrong)
                verdicts = search.rows(
                    self, out, zero_gradient=none, nonfinite_gradient=none,
                    backwards=torch.zeros_like(ids), forwards=search.forwards + 1,
                )  # fmt: skip
                out.add(ids.tolist(), verdicts)


@dataclass
class _Search:
    """A batch, and the first adversarial point found of each of its samples, radius after radius."""

    rule: StepRule
    rows_: Rows
    wrong: Tensor  # bool [n]
    kept: Tensor  # like x
    found: Tensor  # bool [n]: has an adversarial point in kept
    predicted: Tensor
    forwards: Tensor
    fooled: list[Tensor] = field(default_factory=list)  # bool [n] for each radius

    @classmethod
    def of(cls, rule: StepRule, x: Tensor, y: Tensor, ids: Tensor, wrong: Tensor) -> _Search:
        column = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        rows = Rows.fresh(
            Chunk(x, y, ids, torch.arange(len(x), device=x.device), column, column),
            y.new_zeros(len(y), 0),
            1,
            False,
        )
        return cls(rule, rows, wrong, x.clone(), torch.zeros_like(wrong), y.clone(), torch.zeros_like(ids))

    def step(self, target: Target, grad: Tensor, eps: float) -> Tensor:
        """One step of this length from the clean points; the model's own logits."""
        rows = self.rows_
        rows.adv.copy_(rows.clean)
        rows.eps.fill_(eps)
        trace = torch.zeros(len(rows), 3, dtype=torch.int64, device=rows.ids.device)
        self.rule.step_(rows, grad, rows.eps.clone(), trace)
        logits = target.logits(rows.adv, rows.ids)
        predicted = logits.argmax(1)
        success = ~self.wrong & (predicted != rows.label)
        self._keep(
            torch.arange(len(rows), device=rows.ids.device)[success & ~self.found], predicted, rows.adv
        )
        self.fooled.append(success | self.wrong)
        return logits

    def draw(self, target: Target, eps: float) -> None:
        """Random points of this radius for the samples that no smaller one fooled."""
        rows = self.rows_
        rows.eps.fill_(eps)
        for number in range(_RANDOM_DRAWS):
            left = (~self.wrong & ~self.found).nonzero().squeeze(1)
            if not len(left):
                break
            part = rows.take(left)
            self.rule.start(part, _RANDOM_DRAW + number)
            self.forwards[left] += 1
            predicted = target.logits(part.adv, part.ids).argmax(1)
            success = predicted != part.label
            everyone = self.predicted.clone()
            everyone[left] = predicted
            points = rows.adv
            points[left] = part.adv
            self._keep(left[success], everyone, points)
        self.fooled.append(self.found | self.wrong)

    def _keep(self, places: Tensor, predicted: Tensor, points: Tensor) -> None:
        self.kept[places] = points[places]
        self.predicted[places] = predicted[places]
        self.found[places] = True

    def rows(self, stage: Attacked, out: Writer, **columns: Tensor) -> dict[str, list[Row]]:
        """The rows of the batch; its points go to the writer."""
        rows = self.rows_
        out.add_points(rows.ids[self.found], self.kept[self.found])
        distance = distances(self.kept, rows.clean, stage.norm)
        distance = torch.where(self.found, distance, torch.where(self.wrong, 0.0, torch.inf))
        none = torch.zeros_like(self.wrong)
        return stage.rows(
            out.data_set, rows.ids.tolist(), torch.stack(self.fooled), distance=distance,
            prediction=self.predicted, certified=self.found, stalled=none, cycled=none, **columns,
        )  # fmt: skip


@dataclass(frozen=True)
class Iterated(Attacked):
    """Projected gradient descent through the engine: the radii bisected, or each sample's own smallest one.

    Attributes:
        steps, restarts: of each attempt.
        minimal: look for the nearest adversarial point, to 1/256 of the largest radius.
    """

    steps: int = 40
    restarts: int = 1
    minimal: bool = False

    @property
    def attack(self) -> str:  # type: ignore[override]
        """As it is called in the rows."""
        return "minimal" if self.minimal else "pgd"

    @property
    def text(self) -> str:
        """The attack and its settings."""
        return self._attack.text(eps=False)

    @property
    def _attack(self) -> PGD:
        # In L1 a random start would be long in undoing it, so restarts alone bring one.
        return PGD(norm=self.norm, steps=self.steps, restarts=self.restarts)

    def run(self, work: Work) -> None:
        """As many forwards and backwards as each sample needs."""
        attack, target = self._attack, work.target
        plan: Plan
        if self.minimal:
            radii = [0.0, self.epsilons[-1]]
            plan = Bisection(attack, radii[1], radii[1] / 256)
        else:
            radii = list(self.epsilons)
            plan = Bisected(len(radii), 0, self.restarts, norm=self.norm, warm=self.steps > 1)
        with self.writer(work) as out:
            chunks = chunks_of("evaluate", attack, target, work.batches(), work.batch_size, epsilons=radii)
            settings = attack.settings(work.batch_size, check_clean=True)
            ledger = _StoreLedger(self, out, None if self.minimal else self.restarts)
            Engine(target, attack.rule(target.bounds, self.seed), plan, settings, ledger).run(chunks)


class _StoreLedger(Ledger):
    """Hands finished samples to the store instead of keeping them.

    Args:
        stage: whose samples they are.
        out: their writer.
        draws: attempts at each radius, where an attempt's number tells the radius; None where the distance
            does.
    """

    def __init__(self, stage: Iterated, out: Writer, draws: int | None) -> None:
        super().__init__(keep=False)
        self._stage, self._out, self._draws = stage, out, draws

    def record(self, index: Tensor, points: Tensor, **numbers: Tensor) -> None:
        """See :meth:`brittle.result.Ledger.record`."""
        n = {name: value.cpu() for name, value in numbers.items()}
        wrong, success = n["clean_wrong"], n["success"]
        found = success & ~wrong
        distance = torch.where(found, n["distance"], torch.where(wrong, 0.0, torch.inf))
        if self._draws is None:
            fooled = distance <= torch.tensor(self._stage.epsilons, dtype=torch.float64)[:, None]
        else:
            first = torch.where(wrong, -1, n["attempt"] // self._draws)
            fooled = first <= torch.arange(len(self._stage.epsilons))[:, None]
        self._out.add_points(n["sample_ids"][found], points[found.to(points.device)])
        n["distance"] = distance
        ids = n["sample_ids"].tolist()
        columns = {name: n[name] for name in _ATTACK_COLUMNS}
        self._out.add(ids, self._stage.rows(self._out.data_set, ids, fooled, **columns))


@dataclass(frozen=True)
class Surroundings(Stage):
    """The loss around samples, over the plane of the gradient's sign and a random direction.

    Attributes:
        reach: how far along each direction, in Linf.
        seed: of the random directions.
    """

    reach: float
    seed: int

    name = "landscape"

    def run(self, work: Work) -> None:
        """One backward, and a forward for every point of the grid."""
        target = work.target
        lo, hi = target.bounds
        alphas = landscape_steps(self.reach)
        with Writer(work, self.name) as out:
            for x, y, ids in work.batches():
                target.expect_labels(y)
                g = target.evaluate(x, _away_from(y), own=True).gradient.sign()
                r = gaussian(torch.zeros_like(x), 1.0, self.seed, ids, _LANDSCAPE_DRAW, bounds=None).sign()
                losses = torch.empty(len(x), len(alphas), len(alphas))
                for a, along in enumerate(alphas):
                    for b, across in enumerate(alphas):
                        point = (x + along * g + across * r).clamp(lo, hi)
                        losses[:, a, b] = answers(target.logits(point, ids), y).log_loss.float()
                blobs = [
                    (work.data_set, i, grid.numpy().tobytes())
                    for i, grid in zip(ids.tolist(), losses, strict=True)
                ]
                out.add(ids.tolist(), {"landscapes": blobs})


_LANDSCAPE_DRAW = 2**30


def landscape_steps(reach: float) -> tuple[float, ...]:
    """The steps along each direction, from ``-reach`` to ``reach``."""
    half = LANDSCAPE_SIDE // 2
    return tuple(reach * k / half for k in range(-half, half + 1))


def answer_rows(
    data_set: str, kind: str, level: int, scale: float, seed: int, ids: Tensor, found: Answers
) -> list[Row]:
    """Rows of the table ``answers``."""
    columns = (part.tolist() for part in (ids, found.predicted, found.confidence, found.log_loss))
    return [(data_set, kind, level, scale, seed, *row) for row in zip(*columns, strict=True)]


def _away_from(y: Tensor) -> Loss:
    return lambda logits: attack_loss("ce", logits, y)


def _refuse_infinite(logits: Tensor, ids: Tensor) -> None:
    lost = ~logits.isfinite().all(1)
    if lost.any():
        raise ValueError(
            f"evaluate: the model must give finite logits; got infinity for sample {ids[lost][0]}"
        )


def _compact(features: Tensor) -> Tensor:
    """At most 512 features: more are projected onto so many fixed random directions."""
    wide = features.shape[1]
    if wide <= _FEATURES:
        return features
    narrow: Tensor = features @ _directions(wide, features.device).T / _FEATURES**0.5
    return narrow


@lru_cache(maxsize=1)
def _directions(wide: int, device: torch.device) -> Tensor:
    return gaussian(torch.zeros(_FEATURES, wide, device=device), 1.0, seed=0, bounds=None)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, (bool, np.bool_)) else value
