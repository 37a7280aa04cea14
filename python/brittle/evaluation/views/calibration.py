"""Does a confidence of 90 % mean right nine times out of ten?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from brittle._radius import radius
from brittle.evaluation.rows import Condition, RunRows, SetRows, blocks
from brittle.evaluation.scores import BINS, calibration_bins, expected_calibration_error
from brittle.evaluation.views.common import (
    ALPHA,
    ATTACKS,
    Finding,
    labelled_sets,
    mean,
    means_over,
    middle_conditions,
    number,
    own_seed,
    percent,
)

POOR = 0.05  # a probability that is off by this much on average misleads whoever acts on it
BAD = 0.15  # three times that
_SEED, _DRAWS = 0, 1999


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of every labelled set as it is; of the main one also under noise and under attack."""
    sets = []
    for rows in labelled_sets(run):
        found = rows.answers
        conditions = [_of("clean", found.confidence, found.correct, _brier(rows))]
        if rows is run.main:
            for condition in [*middle_conditions(run), *_attacked(run)]:
                correct = condition.predicted == rows.label
                conditions.append(_of(_name(condition), condition.confidence, correct, None))
        sets.append({"set": rows.name, "conditions": conditions})
    return {"sets": sets} if sets else None


def _attacked(run: RunRows) -> list[Condition]:
    """Answers to attacked samples: at the radius that is reported, where it is among them."""
    found = [c for c in run.main.conditions if c.seed == own_seed(run) and c.kind in ATTACKS]
    reported = set(run.settings.get("reported", {}).values())
    return [c for c in found if c.scale in reported] or found


def _name(condition: Condition) -> str:
    if condition.kind in ATTACKS:
        return f"{condition.kind} {radius(condition.scale)}"
    return f"{condition.kind.replace('_', ' ')} {condition.level}"


def _of(name: str, confidence: Tensor, correct: Tensor, brier: float | None) -> dict[str, Any]:
    index = calibration_bins(confidence)
    counts, accuracies = means_over(index, correct, BINS)
    _, confidences = means_over(index, confidence, BINS)
    accuracy, sure = mean(correct), mean(confidence)
    return {
        "name": name,
        "samples": len(confidence),
        "accuracy": accuracy,
        "confidence": sure,
        "ece": number(expected_calibration_error(confidence, correct)),
        "mce": number(expected_calibration_error(confidence, correct, "max")),
        "brier": brier,
        "over_confidence": None if accuracy is None or sure is None else sure - accuracy,
        "bins": [
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "samples": counts[k],
                "accuracy": number(accuracies[k]),
                "confidence": number(confidences[k]),
            }
            for k in range(BINS)
        ],
    }


def _brier(rows: SetRows) -> float | None:
    """Squared distance of the probabilities from the truth, 0 to 2 (Brier, 1950)."""
    total = 0.0
    for part in blocks(len(rows)):
        probabilities = rows.logits[part].double().softmax(1)
        probabilities[torch.arange(len(probabilities)), rows.label[part]] -= 1
        total += float(probabilities.square().sum())
    return number(total / len(rows))


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """Confidences that are off by more than so many samples would be by chance."""
    found = []
    for one in numbers["sets"]:
        clean = one["conditions"][0]
        if clean["ece"] >= POOR and _chance(clean) < ALPHA / len(numbers["sets"]):
            over = clean["over_confidence"]
            word = "too sure of itself" if over >= 0 else "not sure enough of itself"
            found.append(
                Finding(
                    "serious" if clean["ece"] >= BAD else "moderate",
                    "calibration",
                    f"The model is {word} on {one['set']}",
                    f"Mean confidence {percent(clean['confidence'])}, accuracy {percent(clean['accuracy'])}; "
                    f"expected calibration error {clean['ece']:.3f} over {clean['samples']} samples.",
                    "Scale the logits by a temperature fitted on held-out data before it is used.",
                )
            )
        noisy = [c for c in one["conditions"][1:] if c["name"].split()[0] not in ATTACKS and c["samples"]]
        worst = max(noisy, key=lambda c: c["over_confidence"], default=None)
        if worst is not None and worst["over_confidence"] >= BAD and _chance(worst) < ALPHA / len(noisy):
            found.append(
                Finding(
                    "moderate",
                    "calibration",
                    f"The model stays sure of itself under noise ({worst['name']})",
                    f"Accuracy {_moves(clean['accuracy'], worst['accuracy'])}, mean confidence "
                    f"{_moves(clean['confidence'], worst['confidence'])}; expected calibration error "
                    f"{worst['ece']:.3f}.",
                    "Do not rely on low confidence to catch bad inputs; watch for drift instead.",
                )
            )
    return found


def _moves(before: float, after: float) -> str:
    word = "falls" if after < before else "rises" if after > before else "stays as it was,"
    return f"{word} from {percent(before)} to {percent(after)}"


def _chance(condition: dict[str, Any]) -> float:
    """How often a model whose confidences are true would have as large a calibration error."""
    bins = [b for b in condition["bins"] if b["samples"]]
    counts = np.array([b["samples"] for b in bins])
    # Means of a bin: as many samples of different probabilities vary less, so this errs towards chance.
    true = np.array([b["confidence"] for b in bins])
    generator = np.random.Generator(np.random.PCG64(_SEED))
    right = generator.binomial(counts, np.clip(true, 0, 1), size=(_DRAWS, len(bins)))
    errors = (np.abs(right / counts - true) * counts).sum(1) / counts.sum()
    return (1 + int((errors >= condition["ece"]).sum())) / (1 + _DRAWS)
