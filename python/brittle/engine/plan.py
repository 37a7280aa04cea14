"""What the loop is told: how an attack steps, what a sample's attempts are, how a run behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from brittle.engine.rows import Rows


class Rule(Protocol):
    """How an attack starts and steps."""

    @property
    def norm(self) -> str:
        """``"linf"``, ``"l2"`` or ``"l1"``."""

    @property
    def steps(self) -> int:
        """Gradient steps of an attempt."""

    @property
    def has_momentum(self) -> bool:
        """Whether rows need one."""

    @property
    def memoryless(self) -> bool:
        """The next iterate depends on the present one alone, so that a repeated one proves a cycle."""

    def start(self, rows: Rows, draw: int) -> None:
        """Put every row's iterate (and momentum) where an attempt starts; ``draw`` numbers the randomness."""

    def step_(self, rows: Rows, grad: Tensor, step_size: Tensor, trace: Tensor) -> None:
        """Move ``rows.adv`` in place along ``grad`` and write the step kernel's trace."""


class Plan(Protocol):
    """What a sample's attempts are."""

    def begin(self, rows: Rows, rule: Rule) -> None:
        """Set up and start the attempt that ``rows.attempt`` numbers."""

    def advance(self, rows: Rows) -> Tensor:
        """After an attempt, of which ``rows.fooled`` tells: number the next; bool ``[N]``, which rows have
        one."""


@dataclass(frozen=True)
class Attempts:
    """Epsilons in order, at each the targets in order, at each the restarts; until one succeeds.

    A restart's random start is numbered by target and restart alone, so that it is the same direction at
    every epsilon.
    """

    epsilons: int = 1
    targets: int = 0  # 0: the attack leaves the label rather than aims
    restarts: int = 1
    stop: bool = True  # at the first success

    @property
    def count(self) -> int:
        """The number of attempts."""
        return self.epsilons * self.draws

    @property
    def draws(self) -> int:
        """The number of attempts at each epsilon."""
        return max(self.targets, 1) * self.restarts

    def begin(self, rows: Rows, rule: Rule) -> None:
        """Set eps, step size and goal, and start."""
        self.set_up(rows)
        start_by_draw(rows, rule, rows.attempt % self.draws)

    def set_up(self, rows: Rows) -> None:
        """Set eps, step size and goal."""
        at = (rows.attempt // self.draws).unsqueeze(0)
        rows.eps[:] = rows.radii.gather(0, at)[0]
        rows.step_size[:] = rows.step_sizes.gather(0, at)[0]
        draw = rows.attempt % self.draws
        if self.targets:
            rows.goal[:] = rows.goals.gather(0, (draw // self.restarts).unsqueeze(0))[0]

    def advance(self, rows: Rows) -> Tensor:
        """The next number, while there is one and the last did not succeed."""
        ended = rows.fooled if self.stop else torch.zeros_like(rows.fooled)
        rows.attempt.add_(~ended)
        return ~ended & (rows.attempt < self.count)


def start_by_draw(rows: Rows, rule: Rule, draw: Tensor) -> None:
    """Start rows whose random starts have different numbers."""
    numbers = sorted(set(draw.tolist()))
    if len(numbers) == 1:
        rule.start(rows, numbers[0])
        return
    for number in numbers:
        places = (draw == number).nonzero().squeeze(1)
        part = rows.take(places)
        rule.start(part, number)
        rows.put(places, part)


def start_warm_or_cold(rows: Rows, rule: Rule, warm: Tensor, draw: Tensor) -> None:
    """Start where the last attempt left its point, pulled into the ball, where bool ``warm`` holds; elsewhere
    as ``draw`` numbers it."""
    places = warm.nonzero().squeeze(1)
    if len(places) < len(rows):
        start_by_draw(rows, rule, draw)
    if len(places) == 0:
        return
    part = rows.take(places)
    part.adv.copy_(part.kept)
    # A step of length 0 projects.
    trace = torch.zeros(len(part), 3, dtype=torch.int64, device=part.adv.device)
    rule.step_(part, part.clean, torch.zeros_like(part.eps), trace)
    if part.momentum is not None:
        part.momentum.zero_()
    rows.put(places, part)


@dataclass(frozen=True)
class Settings:
    """How a run behaves.

    Attributes:
        loss: see :mod:`brittle.losses`.
        targeted: labels are to be reached rather than left.
        targets: how many other classes to aim for, most likely ones first; 0 to just leave the label.
        slots: rows at a time; halved where memory runs out.
        early_stop: keep a sample's first success. False keeps the iterate of highest loss, success or not.
        shortcuts: let fooled and cycling rows go at once. Off, every attempt takes all its steps, for the
            same verdict.
        keep_start: the start may be what is kept. Off for one-step attacks, whose result is their step.
        check_clean: ask the model about the clean samples first: those it gets wrong need no attack. Without,
            the first iterate tells, if it is the clean sample.
        ask_again: look whether the model's answers waver, and if so count a success only if it holds in most
            of repeated forwards. Off where no verdict is wanted.
        late: read flags one turn late, as on a GPU. None: where the data is on one.
    """

    loss: str = "ce"
    targeted: bool = False
    targets: int = 0
    slots: int = 256
    early_stop: bool = True
    shortcuts: bool = True
    keep_start: bool = True
    check_clean: bool = True
    ask_again: bool = True
    late: bool | None = None
