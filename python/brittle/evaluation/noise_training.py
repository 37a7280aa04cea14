"""Did training with noise help? Two models on two data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.data import Data, batches
from brittle.evaluation.scores import Scores, answers, concatenate, confusion_matrix
from brittle.target import Model, Target


@dataclass(frozen=True)
class Cell:
    """One model on one data set.

    Attributes:
        scores: accuracy, log-loss and calibration.
        confusion: int64 ``[C, C]``, rows the true class, columns the predicted one.
    """

    scores: Scores
    confusion: Tensor


@dataclass(frozen=True)
class NoiseTrainingTable:
    """The two-by-two experiment of noise injection, a cell for each model and data set.

    Attributes:
        original_in, original_out: the model trained without noise, in and out of distribution.
        noise_trained_in, noise_trained_out: the model trained with noise.
    """

    original_in: Cell
    original_out: Cell
    noise_trained_in: Cell
    noise_trained_out: Cell

    def table(self) -> str:
        """The four losses and accuracies as text; then the confusion matrices, a row for each true class."""
        grid = {
            "in-distribution": (self.original_in, self.noise_trained_in),
            "out-of-distribution": (self.original_out, self.noise_trained_out),
        }
        lines = [f"{'':<33}{'original':>10}{'noise-trained':>15}"]
        for data, cells in grid.items():
            losses, accuracies, confidences = zip(
                *((c.scores.log_loss, c.scores.accuracy, c.scores.confidence) for c in cells), strict=True
            )
            lines.append(f"{data:<21}{'loss':<12}{losses[0]:>10.4f}{losses[1]:>15.4f}")
            lines.append(f"{'':<21}{'accuracy':<12}{accuracies[0]:>10.2%}{accuracies[1]:>15.2%}")
            lines.append(f"{'':<21}{'confidence':<12}{confidences[0]:>10.2%}{confidences[1]:>15.2%}")
        for data, cells in grid.items():
            lines += ["", f"confusion, {data}: original, noise-trained"]
            left, right = (_matrix(cell.confusion) for cell in cells)
            lines += [f"{a}   {b}" for a, b in zip(left, right, strict=True)]
        return "\n".join(lines)


def noise_training_table(
    original: Model,
    noise_trained: Model,
    in_distribution: Data,
    out_of_distribution: Data,
    *,
    batch_size: int = 256,
) -> NoiseTrainingTable:
    """Loss, accuracy and confusion matrix of two models, each on two labelled data sets.

    The question of the noise-injection experiment: what does training with noise cost on data like the
    training set, and what does it gain on data unlike it? The models are given back as they were (see
    :func:`brittle.fgsm`).

    Args:
        original: a model trained without noise, mapping inputs to logits ``[N, C]``.
        noise_trained: one trained with it, otherwise alike.
        in_distribution, out_of_distribution: pairs of tensors ``(x, y)`` or iterables of batches that can be
            gone through twice, as for :func:`accuracy_vs_epsilon`.
        batch_size: for pairs of tensors.

    Returns:
        The four cells.

    Raises:
        ValueError: data or a model does not fit, or a data set is empty.

    Example:
        >>> import torch, brittle
        >>> x, model = torch.rand(64, 4), torch.nn.Linear(4, 2)
        >>> y = model(x).argmax(1)
        >>> result = brittle.evaluation.noise_training_table(model, model, (x, y), (1 - x, 1 - y))
        >>> result.original_in.scores.accuracy, int(result.noise_trained_in.confusion.trace())
        (1.0, 64)
    """
    check.check_count("noise_training_table", "batch_size", batch_size)
    sets: Mapping[str, Data] = {
        "in_distribution": in_distribution,
        "out_of_distribution": out_of_distribution,
    }
    cells = [
        _cell(model, name, data, batch_size)
        for model in (original, noise_trained)
        for name, data in sets.items()
    ]
    return NoiseTrainingTable(*cells)


def _cell(model: Model, name: str, data: Data, batch_size: int) -> Cell:
    op = "noise_training_table"
    collected, labels, classes = [], [], 0
    with Target.of(model, op) as target:
        for x, y, ids in batches(op, data, batch_size, target):
            check.check_labels(op, y, x)
            check.check_device(op, x, target)
            if len(x) == 0:
                continue
            target.expect_labels(y)
            logits = target.logits(x, ids)
            classes = logits.shape[1]
            collected.append(answers(logits, y))
            labels.append(y.cpu())
    if not collected:
        raise ValueError(f"{op}: {name} must hold samples; got none (was an iterator used up before?)")
    together = concatenate(collected)
    return Cell(together.scores(), confusion_matrix(torch.cat(labels), together.predicted, classes))


def _matrix(confusion: Tensor) -> list[str]:
    width = max(3, len(str(int(confusion.max()))) + 1)
    return ["".join(f"{count:>{width}}" for count in row) for row in confusion.tolist()]
