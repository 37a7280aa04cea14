"""What every attack is: settings, a rule made from them, and the ways to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.attacks.compat import Convention, convention, peers_with, run_as_peer
from brittle.engine import Attempts, Chunk, Engine, Rows, Rule, Settings
from brittle.losses import LOSSES, attack_loss
from brittle.result import Ledger
from brittle.target import Model, Target

Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """The settings that all attacks share. They are checked when the attack is made.

    Attributes:
        eps: radius of the ball in the data's units, finite and >= 0.
        loss: ``"ce"``, ``"margin"`` or ``"dlr"``, see :mod:`brittle.losses`.
        targeted: the labels given are to be reached rather than left.
        early_stop: for a verdict on robustness keep it: a sample is returned at its first success, which may
            be the clean point, and costs nothing from then on; one that never falls is returned at its
            highest loss. For adversarial training and transfer studies switch it off: every sample takes
            every step, and its iterate of highest loss is returned.
        compat: the peer library whose conventions to follow to the bit, or None for brittle's own.
    """

    eps: float | Tensor = field(default=8 / 255, kw_only=False)
    loss: str = "ce"
    targeted: bool = False
    early_stop: bool = True
    compat: str | None = None

    name: ClassVar[str]  # of the functional form
    # Settings of those attacks that have them.
    norm = "linf"
    restarts = 1
    targets = 0
    random_start = False

    def __post_init__(self) -> None:
        self.check(self.name)

    @property
    @abstractmethod
    def step_count(self) -> int:
        """Gradient steps of an attempt."""

    @abstractmethod
    def step_length(self, eps: float | Tensor) -> float | Tensor:
        """Length of a step at ``eps``, in its units."""

    @abstractmethod
    def rule(self, bounds: Bounds, seed: int) -> Rule:
        """How it starts and steps."""

    def check(self, op: str) -> None:
        """Raise ValueError for a setting out of range."""
        check.check_choice(op, "loss", self.loss, LOSSES)
        check.check_choice(op, "compat", self.compat, (None, *self.peers()))
        check.check_radius(op, "eps", self.eps)

    def peers(self) -> tuple[str, ...]:
        """The peers that have this attack in this norm."""
        return peers_with(self.name, self.norm)

    @property
    def convention(self) -> Convention | None:
        """The peer's conventions, where ``compat`` names one."""
        return None if self.compat is None else convention(self.compat, self.name, self.norm)

    def settings(self, slots: int, **changes: bool) -> Settings:
        """How the engine is to run it."""
        options: dict[str, object] = {
            "loss": self.loss,
            "targeted": self.targeted,
            "targets": self.targets,
            "slots": slots,
            "early_stop": self.early_stop,
            "shortcuts": self.early_stop,
            # Without a random start the first iterate is the clean sample: nothing to ask in advance.
            "check_clean": self.early_stop and self.random_start,
        }
        options.update(changes)
        return Settings(**options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.text()

    def text(self, *, eps: bool = True) -> str:
        """The attack and those of its settings that are not the default ones, with or without its eps."""
        shown = [f"eps={_text(self.eps)}"] if eps else []
        for setting in fields(self):
            value, usual = getattr(self, setting.name), setting.metadata.get("usual", setting.default)
            if setting.name != "eps" and (isinstance(value, Tensor) or value != usual):
                shown.append(f"{setting.name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, kw_only=True)
class SteppedAttack(Attack):
    """An attack of several steps.

    Attributes:
        steps: gradient steps of an attempt; by default brittle's number, or with ``compat`` the peer's.
        step_size: length of a step, in the units of eps; by default likewise.
    """

    steps: int | None = None
    step_size: float | Tensor | None = None

    usual_steps: ClassVar[int]

    @abstractmethod
    def usual_step_length(self, eps: float | Tensor) -> float | Tensor:
        """Brittle's own length of a step at ``eps``."""

    def check(self, op: str) -> None:
        """Raise ValueError for a setting out of range."""
        super().check(op)
        check.check_count(op, "steps", self.step_count)

    @property
    def step_count(self) -> int:
        """As given, or by default."""
        if self.steps is not None:
            return self.steps
        return (self.convention.steps if self.convention else None) or self.usual_steps

    def step_length(self, eps: float | Tensor) -> float | Tensor:
        """As given, or by default."""
        if self.step_size is not None:
            return self.step_size
        peer = self.convention
        return peer.step_size(eps) if peer and peer.step_size else self.usual_step_length(eps)


def on_batch(
    attack: Attack,
    model: Model | Target,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    sample_ids: Tensor | None,
    bounds: Bounds | None,
    precision: str | None,
) -> Tensor:
    """The functional form: the adversarial points of one batch, like ``x``."""
    op = attack.name
    check.check_seed(op, seed)
    target = Target.of(model, op, bounds, precision)
    check.check_images(op, x, target.bounds, sample_ids)
    check.check_labels(op, y, x)
    eps = check.check_amount(op, "eps", attack.eps, x)
    check.check_inside(op, "eps", eps, attack.norm, target.bounds)
    step_size = check.check_amount(op, "step_size", attack.step_length(eps), x)
    with target:
        check.check_device(op, x, target)
        ids = check.check_sample_ids(op, sample_ids, x)
        clean, labels = x.detach().clone(), y.clone()
        if len(x) == 0:
            return clean
        if attack.compat is not None:
            return run_as_peer(attack, target, clean, labels, ids, eps, step_size, seed)
        # Training and one-step attacks want no verdict, and would pay for the question at every batch.
        asks = attack.early_stop and attack.step_count > 1
        rule, settings = attack.rule(target.bounds, seed), attack.settings(len(x), ask_again=asks)
        ledger = Ledger(keep=True, device=clean.device)
        chunk = Chunk(clean, labels, ids, torch.arange(len(x)), column(eps, clean), column(step_size, clean))
        if attack.step_count == 1 and not settings.early_stop and not settings.keep_start:
            return _one_step(target, rule, settings, chunk)
        Engine(target, rule, plan_of(attack), settings, ledger).run(iter([chunk]))
        return ledger.points(clean)


def _one_step(target: Target, rule: Rule, settings: Settings, chunk: Chunk) -> Tensor:
    """The step of a one-step attack, with nothing to choose from afterwards: one forward, one backward."""
    target.expect_labels(chunk.label)
    rows = Rows.fresh(chunk, chunk.label.new_zeros(len(chunk.label), 0), 1, rule.has_momentum)
    Attempts().begin(rows, rule)
    y, goal = (None, rows.label) if settings.targeted else (rows.label, None)
    found = target.evaluate(rows.adv, lambda logits: attack_loss(settings.loss, logits, y, goal))
    nan = found.logits.isnan().any(1)
    if nan.any():
        target.refuse_nan(rows.ids[nan])
    trace = torch.zeros(len(rows), 3, dtype=torch.int64, device=rows.ids.device)
    rule.step_(rows, found.gradient, rows.step_size, trace)
    return rows.adv


def plan_of(attack: Attack, epsilons: int = 1) -> Attempts:
    """The attempts of an attack at one epsilon or several."""
    return Attempts(epsilons, attack.targets, attack.restarts, stop=attack.early_stop)


def column(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one for each sample, as float64 ``[N, 1]``."""
    amounts = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return amounts.expand(len(x)).unsqueeze(1)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "per sample" if isinstance(value, Tensor) else repr(value)
