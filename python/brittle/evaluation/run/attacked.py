"""What the stages that attack have in common: a name, radii, and rows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brittle.evaluation.run.store import Row
from brittle.evaluation.run.work import Stage, Work, Writer

#: Of the table ``attacks``, one number for each sample.
ATTACK_COLUMNS = (
    "distance", "prediction", "certified", "zero_gradient", "nonfinite_gradient", "stalled", "cycled",
    "forwards", "backwards",
)  # fmt: skip


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
        values = zip(*(columns[name].tolist() for name in ATTACK_COLUMNS), strict=True)
        return {
            "attacks": [(*key, i, *map(_number, row)) for i, row in zip(ids, values, strict=True)],
            "verdicts": [
                (*key, eps, i, int(yes))
                for eps, verdict in zip(self.epsilons, fooled.tolist(), strict=True)
                for i, yes in zip(ids, verdict, strict=True)
            ],
        }


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
