"""Right and wrong answers, class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brittle.evaluation.rows import RunRows, SetRows, blocks
from brittle.evaluation.scores import confusion_matrix
from brittle.evaluation.statistics import percents, wilson
from brittle.evaluation.views.common import (
    ALPHA,
    Finding,
    interval,
    labelled_sets,
    macro_scores,
    mean,
    number,
    percent,
    rounded,
    thin,
)

CURVE_POINTS = 101
MOST_CURVES = 20  # those of the lowest average precision: more cannot be told apart
FEWEST = 20  # samples of a class before anything is said about it: the interval of fewer is half the scale
WEAK_CLASS = 0.10  # a class this far below the accuracy is no longer one model for all classes
LOST_CLASS = 0.50  # a class that is missed more often than not


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of every labelled set; None without one."""
    sets = [_of(rows) for rows in labelled_sets(run)]
    return {"sets": sets} if sets else None


def _of(rows: SetRows) -> dict[str, Any]:
    from torchmetrics.functional.classification import multiclass_hamming_distance

    found, y, classes = rows.answers, rows.label, len(rows.classes)
    right = int(found.correct.sum())
    arguments = found.predicted, y, max(classes, 2)
    per_class, curves = _per_class(rows)
    recalls = [c["recall"] for c in per_class if c["recall"] is not None]
    precisions = [c["average_precision"] for c in per_class if c["average_precision"] is not None]
    return {
        "set": rows.name,
        "samples": len(rows),
        "accuracy": right / len(rows),
        "interval": interval(right, len(rows)),
        "balanced_accuracy": rounded(sum(recalls) / len(recalls)),
        **macro_scores(y, found.predicted, classes),
        "log_loss": mean(found.log_loss),
        "hamming": rounded(multiclass_hamming_distance(*arguments, average="micro", validate_args=False)),
        "average_precision": rounded(sum(precisions) / len(precisions)),
        "per_class": per_class,
        "confusion": confusion_matrix(y, found.predicted, classes).tolist(),
        "curves": curves,
    }


def _per_class(rows: SetRows) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table, and the precision-recall curves of the classes that are hardest to tell."""
    from torchmetrics.functional.classification import (
        binary_average_precision,
        binary_precision_recall_curve,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    found, y, classes = rows.answers, rows.label, len(rows.classes)
    arguments = found.predicted, y, max(classes, 2)
    precision, recall, f1 = (
        metric(*arguments, average="none", validate_args=False).tolist()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    )
    support = torch.bincount(y, minlength=classes).tolist()
    given = torch.bincount(found.predicted, minlength=classes).tolist()
    normaliser = _normaliser(rows.logits)
    table = []
    for c, name in enumerate(rows.classes):
        ranked = None
        if support[c]:
            probability = (rows.logits[:, c].double() - normaliser).exp()
            ranked = binary_average_precision(probability, (y == c).long(), validate_args=False)
        table.append(
            {
                "class": name,
                "support": support[c],
                "precision": rounded(precision[c]) if given[c] else None,
                "recall": rounded(recall[c]) if support[c] else None,
                "f1": rounded(f1[c]) if support[c] or given[c] else None,
                "average_precision": rounded(ranked),
            }
        )
    hardest = sorted((c for c in range(classes) if support[c]), key=lambda c: table[c]["average_precision"])
    curves = []
    for c in sorted(hardest[:MOST_CURVES]):
        probability = (rows.logits[:, c].double() - normaliser).exp()
        p, r, _ = binary_precision_recall_curve(probability, (y == c).long(), validate_args=False)
        points = thin(list(zip(p.tolist(), r.tolist(), strict=True)), CURVE_POINTS)
        curves.append(
            {
                "class": rows.classes[c],
                "precision": [rounded(point[0]) for point in points],
                "recall": [rounded(point[1]) for point in points],
            }
        )
    return table, curves


def _normaliser(logits: Tensor) -> Tensor:
    """float64 ``[N]``: what to take from the logits to have logarithms of probabilities."""
    return torch.cat([logits[part].double().logsumexp(1) for part in blocks(len(logits))])


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """A model that is worse than a constant answer, and classes it hardly knows."""
    found = []
    for one in numbers["sets"]:
        support = [c["support"] for c in one["per_class"]]
        usual = max(support) / one["samples"]
        answers = [sum(column) for column in zip(*one["confusion"], strict=True)]
        classes = [c["class"] for c in one["per_class"]]
        where = f"on {one['set']}"
        present = sum(s > 0 for s in support)
        constant = max(answers) == one["samples"] and present > 1
        if constant and one["samples"] >= FEWEST:
            name = classes[answers.index(one["samples"])]
            found.append(
                Finding(
                    "critical",
                    "classification",
                    f"The model gives one answer {where}",
                    f"All {one['samples']} samples are taken for {name}.",
                    "Check that inputs are scaled and ordered as they were in training.",
                )
            )
        elif present > 1 and one["interval"][1] < usual:
            guessing = one["balanced_accuracy"] <= 1 / present
            found.append(
                Finding(
                    "critical" if guessing else "moderate",
                    "classification",
                    f"The model is worse than a constant answer {where}",
                    f"Accuracy {percent(one['accuracy'])} (95 % interval {percents(one['interval'])}) of "
                    f"{one['samples']} samples; always answering the most frequent class gives "
                    f"{percent(usual)}.",
                    "Check the order of the classes and the scaling of the inputs."
                    if guessing
                    else "Judge it by the recall of each class: accuracy says little here.",
                )
            )
        else:
            found += _weak_class(one)
    return found


def _weak_class(one: dict[str, Any]) -> list[Finding]:
    """The class whose recall is surely, and by the most, below the accuracy."""
    known = [(c, row) for c, row in enumerate(one["per_class"]) if row["support"] >= FEWEST]
    weak = []
    for c, row in known:
        level = 1 - ALPHA / len(known)  # Bonferroni, over the classes looked at
        bounds = wilson(one["confusion"][c][c], row["support"], level)
        assert bounds is not None
        if bounds[1] < one["accuracy"] and row["recall"] <= one["accuracy"] - WEAK_CLASS:
            weak.append((row["recall"], bounds[1], row, bounds))
    if not weak:
        return []
    recall, upper, row, bounds = min(weak, key=lambda entry: entry[:2])
    others = f" {len(weak) - 1} other classes fall short as well." if len(weak) > 1 else ""
    return [
        Finding(
            "serious" if upper < LOST_CLASS else "moderate",
            "classification",
            f"Class {row['class']} is recognised less often than others on {one['set']}",
            f"Recall {percent(recall)} of {row['support']} samples (interval {percents(bounds)}, corrected "
            f"for the number of classes); accuracy over all is {percent(number(one['accuracy']))}.{others}",
            "Look at what it is taken for in the confusion matrix, and collect more samples of it.",
        )
    ]
