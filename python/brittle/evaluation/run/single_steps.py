"""Attacks that look at every radius for itself: one gradient step, and random points."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from brittle.attacks import PGD
from brittle.attacks.rules import L1Rule, L2Rule, LinfRule
from brittle.engine import Chunk, Rows, distances
from brittle.evaluation.run.attacked import Attacked
from brittle.evaluation.run.store import Row
from brittle.evaluation.run.work import Work, answer_rows, away_from
from brittle.evaluation.scores import answers
from brittle.target import Target

StepRule = LinfRule | L2Rule | L1Rule

# Random search draws its points far away from the numbers of PGD's restarts.
_RANDOM_DRAW = 2**20
_RANDOM_DRAWS = 5


@dataclass(frozen=True)
class SingleStep(Attacked):
    """One step along the gradient at every radius: FGSM, and its like in L2 and L1.

    Attributes:
        keeps_answers: whether the model's answers at each radius are kept: calibration under attack.
    """

    keeps_answers: bool = False

    attack = "fgsm"
    needs_gradients = True

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
                found = target.evaluate(x, away_from(y), own=own)
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
                    self, work.data_set, zero_gradient=zero, nonfinite_gradient=bad, backwards=one,
                    forwards=one * (len(self.epsilons) + 2),
                )  # fmt: skip
                out.add(ids.tolist(), {**verdicts, "answers": rows}, search.points)


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
                    self, work.data_set, zero_gradient=none, nonfinite_gradient=none,
                    backwards=torch.zeros_like(ids), forwards=search.forwards + 1,
                )  # fmt: skip
                out.add(ids.tolist(), verdicts, search.points)


@dataclass
class _Search:
    """A batch, and the first adversarial point found of each of its samples, radius after radius."""

    rule: StepRule
    state: Rows
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
        rows = self.state
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
        rows = self.state
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

    @property
    def points(self) -> tuple[Tensor, Tensor]:
        """Ids and adversarial points of the samples that have one."""
        return self.state.ids[self.found], self.kept[self.found]

    def rows(self, stage: Attacked, data_set: str, **columns: Tensor) -> dict[str, list[Row]]:
        """The rows of the batch."""
        rows = self.state
        distance = distances(self.kept, rows.clean, stage.norm)
        distance = torch.where(self.found, distance, torch.where(self.wrong, 0.0, torch.inf))
        none = torch.zeros_like(self.wrong)
        return stage.rows(
            data_set, rows.ids.tolist(), torch.stack(self.fooled), distance=distance,
            prediction=self.predicted, certified=self.found, stalled=none, cycled=none, **columns,
        )  # fmt: skip
