"""PGD through the engine: the radii bisected, or each sample's own smallest radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brittle.attacks import PGD
from brittle.attacks.run import chunks_of
from brittle.engine import Engine, Plan
from brittle.evaluation.curve import Bisected
from brittle.evaluation.minimal_epsilon import Bisection
from brittle.evaluation.run.attacked import ATTACK_COLUMNS, Attacked
from brittle.evaluation.run.work import Work, Writer
from brittle.result import Ledger


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

    needs_gradients = True

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
        n["distance"] = distance
        ids = n["sample_ids"].tolist()
        columns = {name: n[name] for name in ATTACK_COLUMNS}
        rows = self._stage.rows(self._out.data_set, ids, fooled, **columns)
        self._out.add(ids, rows, (n["sample_ids"][found], points[found.to(points.device)]))
