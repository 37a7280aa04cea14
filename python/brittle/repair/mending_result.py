"""What mending a model came to: what was tried, what was kept, and the model before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from brittle.diagnosis.flaws.result import SEVERITIES, Diagnosis
from brittle.repair.suggestions import Suggestion


@dataclass(frozen=True)
class Score:
    """How good a model is on some data.

    Attributes:
        accuracy, log_loss: on the samples as they are.
        robust_accuracy: under PGD; None where it was not asked for.
        masked: gradients that are exactly zero kept PGD from attacking some samples, so that
            ``robust_accuracy`` is at most what it says.
    """

    accuracy: float
    log_loss: float
    robust_accuracy: float | None = None
    masked: bool = False


@dataclass(frozen=True)
class Step:
    """One suggestion, and what came of it.

    Attributes:
        suggestion: what was tried.
        outcome: ``"kept"``; ``"rolled back"``; or ``"not needed"``, where earlier repairs had mended it.
        reason: for the outcome, in a sentence.
        before, after: on the validation data; equal where nothing was tried.
    """

    suggestion: Suggestion
    outcome: str
    reason: str
    before: Score
    after: Score


@dataclass(frozen=True)
class Mending:
    """What :func:`mend` did.

    Attributes:
        model: the mended copy; where no repair helped, the same weights as the one given.
        before, after: the diagnoses.
        steps: what was tried, in order.
        scores: of the model before and after, on the data that ``judged_on`` names.
        judged_on: ``"test"``; or ``"validation"``, on which the repairs were chosen, so that the gain is
            likely to look larger than it is.
        eps: radius of the attacks behind ``robust_accuracy`` and fragility, Linf.
        out: the folder that holds it all; None where nothing was to be written.
    """

    model: nn.Module
    before: Diagnosis
    after: Diagnosis
    steps: tuple[Step, ...]
    scores: Mapping[str, Score]
    judged_on: str
    eps: float
    out: Path | None = None

    @property
    def kept(self) -> tuple[Step, ...]:
        """The repairs that the mended model has."""
        return tuple(step for step in self.steps if step.outcome == "kept")

    def rows(self) -> list[tuple[str, float, float, bool]]:
        """Each measure: its name, before, after, and whether more of it is better."""
        a, b = self.scores["before"], self.scores["after"]
        rows = [
            (f"{self.judged_on} accuracy", a.accuracy, b.accuracy, True),
            (f"{self.judged_on} log-loss", a.log_loss, b.log_loss, False),
        ]
        if a.robust_accuracy is not None and b.robust_accuracy is not None:
            name = f"{self.judged_on} accuracy under PGD, Linf {self.eps:.4g}"
            rows.append((name, a.robust_accuracy, b.robust_accuracy, True))
        for severity in SEVERITIES[:0:-1]:
            counts = [sum(f.severity == severity for f in d.findings) for d in (self.before, self.after)]
            rows.append((f"{severity} flaws", float(counts[0]), float(counts[1]), False))
        return rows

    def table(self) -> str:
        """What was tried and what came of it, then the model before and after."""
        lines = []
        for number, step in enumerate(self.steps, 1):
            lines.append(f"{number}. {step.suggestion.title()}: {step.outcome}. {step.reason}")
        if not self.steps:
            lines.append("No flaws found: there is nothing to mend.")
        rows = self.rows()
        width = max(len(name) for name, *_ in rows)
        lines += ["", f"{'':<{width}} {'before':>9} {'after':>9}"]
        for name, before, after, higher in rows:
            word = "" if before == after else "better" if (after > before) == higher else "worse"
            digits = 0 if name.endswith("flaws") else 4
            lines.append(f"{name:<{width}} {before:>9.{digits}f} {after:>9.{digits}f}  {word}".rstrip())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands between the numbers and a fair comparison."""
        notes = [
            f"The model {when} mending masks its gradients: its accuracy under PGD is at most that."
            for when, score in self.scores.items()
            if score.masked
        ]
        if self.judged_on == "validation" and self.steps:
            notes.append(
                "The repairs were chosen by the same validation data, so the numbers are likely to look "
                "better than they are. Give test data for numbers that are not chosen."
            )
        return tuple(notes)

    def summary(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "before": self.before.summary(),
            "after": self.after.summary(),
            "steps": [
                {
                    "suggestion": step.suggestion.summary(),
                    "outcome": step.outcome,
                    "reason": step.reason,
                    "before": _plain(step.before),
                    "after": _plain(step.after),
                }
                for step in self.steps
            ],
            "scores": {name: _plain(score) for name, score in self.scores.items()},
            "judged_on": self.judged_on,
            "eps": self.eps,
            "notes": list(self.notes),
        }


def _plain(score: Score) -> dict[str, float | None]:
    found = {"accuracy": score.accuracy, "log_loss": score.log_loss, "robust_accuracy": score.robust_accuracy}
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in found.items()
    }
