"""What the views share: findings, numbers fit for JSON, the scores of a set or of a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from brittle.evaluation.rows import Condition, RunRows, SetRows
from brittle.evaluation.scores import expected_calibration_error
from brittle.evaluation.statistics import wilson

Severity = Literal["critical", "serious", "moderate", "note"]
SEVERITIES: tuple[Severity, ...] = ("critical", "serious", "moderate", "note")
ALPHA = 0.01  # of a run's findings of one kind, one in a hundred may be chance
ATTACKS = ("fgsm", "pgd", "minimal", "random")
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something a reader should know of, with the numbers that show it.

    Attributes:
        severity: ``"critical"``, ``"serious"``, ``"moderate"`` or ``"note"``.
        view: that found it.
        title: what is the matter.
        evidence: the numbers.
        advice: what to do about it, one sentence.
    """

    severity: Severity
    view: str
    title: str
    evidence: str
    advice: str


def number(value: float | Tensor | None) -> float | None:
    """A float that JSON can hold: None for NaN and infinities."""
    if value is None:
        return None
    plain = float(value)
    return plain if isfinite(plain) else None


def rounded(value: float | Tensor | None) -> float | None:
    """Six digits, which is what torchmetrics' divisions in single precision leave: 0.9, not 0.89999998."""
    plain = number(value)
    return None if plain is None else float(f"{plain:.6g}")


def interval(right: int, samples: int) -> list[float] | None:
    """Wilson's at 95 %, as JSON holds it."""
    bounds = wilson(right, samples)
    return None if bounds is None else list(bounds)


def mean(values: Tensor) -> float | None:
    """The mean; None without values, or where it is not finite."""
    return number(values.double().mean())


def thin(points: Sequence[T], most: int) -> list[T]:
    """At most ``most`` (>= 2) of the points, evenly over their positions, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def percent(share: float | None) -> str:
    """In words of a finding: ``"12.4 %"``."""
    return "no number" if share is None else f"{100 * share:.1f} %"


def labelled_sets(run: RunRows) -> list[SetRows]:
    """Those with labels and samples."""
    return [rows for rows in run.sets if len(rows) and rows.labelled]


def attacked(run: RunRows) -> Tensor:
    """bool ``[N]`` of the main set: right without an attack, so that there is something to attack."""
    return run.main.answers.correct


def own_seed(run: RunRows) -> int:
    """The seed whose results are the report; others only show the spread."""
    return int(run.settings.get("seed", 0))


def noise_conditions(run: RunRows, seed: int | None = None) -> list[Condition]:
    """The main set's answers to noisy samples, of one seed, by kind as they were run and by severity."""
    seed = own_seed(run) if seed is None else seed
    found = [c for c in run.main.conditions if c.seed == seed and c.kind not in ATTACKS]
    kinds = list(dict.fromkeys(c.kind for c in found))
    return sorted(found, key=lambda c: (kinds.index(c.kind), c.level))


def middle_conditions(run: RunRows, seed: int | None = None) -> list[Condition]:
    """Of each kind of noise the middle severity: the one to quote where there is room for one."""
    by_kind: dict[str, list[Condition]] = {}
    for condition in noise_conditions(run, seed):
        by_kind.setdefault(condition.kind, []).append(condition)
    return [levels[len(levels) // 2] for levels in by_kind.values()]


def condition_scores(condition: Condition, label: Tensor) -> dict[str, Any]:
    """Accuracy, log-loss, confidence and calibration error under a condition."""
    correct = condition.predicted == label
    return {
        "accuracy": mean(correct),
        "log_loss": mean(condition.log_loss),
        "confidence": mean(condition.confidence),
        "ece": number(expected_calibration_error(condition.confidence, correct)),
    }


def clean_scores(rows: SetRows) -> dict[str, Any]:
    """The same of the samples as they are."""
    found = rows.answers.scores()
    return {
        "accuracy": number(found.accuracy),
        "log_loss": number(found.log_loss),
        "confidence": number(found.confidence),
        "ece": number(found.ece),
    }


def macro_scores(label: Tensor, predicted: Tensor, classes: int) -> dict[str, Any]:
    """Precision, recall and F1, averaged over the classes that occur among labels or predictions."""
    from torchmetrics.functional.classification import multiclass_precision, multiclass_recall

    if len(label) == 0:
        return {"precision": None, "recall": None, "f1": None}
    arguments = predicted, label, max(classes, 2)
    return {
        "precision": rounded(multiclass_precision(*arguments, average="macro", validate_args=False)),
        "recall": rounded(multiclass_recall(*arguments, average="macro", validate_args=False)),
        "f1": macro_f1(label, predicted, classes),
    }


def macro_f1(label: Tensor, predicted: Tensor, classes: int) -> float | None:
    """F1 averaged over the classes that occur among labels or predictions; of at least one sample."""
    from torchmetrics.functional.classification import multiclass_f1_score

    return rounded(
        multiclass_f1_score(predicted, label, max(classes, 2), average="macro", validate_args=False)
    )


def means_over(index: Tensor, values: Tensor, groups: int) -> tuple[list[int], list[float]]:
    """How many values each group has and their mean there, NaN of none."""
    counts = torch.bincount(index, minlength=groups)
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, index, values.double())
    return counts.tolist(), (sums / counts).tolist()
