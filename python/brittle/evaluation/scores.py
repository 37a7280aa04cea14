"""What a model's answers are worth: accuracy, log-loss, confidence, calibration, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Scores:
    """Of one model on one set of samples; NaN without samples.

    Attributes:
        samples: how many.
        accuracy: the share classified correctly.
        log_loss: mean negative log-likelihood of the true class, in nats.
        confidence: mean probability of the predicted class.
        ece: expected calibration error, 15 equal-width bins of confidence: the gap between confidence and
            accuracy, averaged over the bins by their share of the samples.
    """

    samples: int
    accuracy: float
    log_loss: float
    confidence: float
    ece: float


class Answers(NamedTuple):
    """What a model says to N samples, on the CPU."""

    predicted: Tensor  # int64 [N]
    correct: Tensor  # bool [N]
    log_loss: Tensor  # float64 [N], nats
    confidence: Tensor  # float64 [N]

    def scores(self) -> Scores:
        """The averages over the samples."""
        return Scores(
            samples=len(self.correct),
            accuracy=self.correct.double().mean().item(),
            log_loss=self.log_loss.mean().item(),
            confidence=self.confidence.mean().item(),
            ece=expected_calibration_error(self.confidence, self.correct),
        )


def answers(logits: Tensor, y: Tensor) -> Answers:
    """Of ``logits`` ``[N, C]`` about samples of classes ``y``."""
    # Half precision has too few digits for the loss of a confident answer.
    log_probabilities = logits.detach().cpu().double().log_softmax(1)
    labels = y.cpu()
    highest, predicted = log_probabilities.max(1)
    loss = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    return Answers(predicted, predicted == labels, loss, highest.exp())


def concatenate(parts: Sequence[Answers]) -> Answers:
    """The answers of several batches as one."""
    if not parts:
        empty = torch.zeros(0, dtype=torch.float64)
        return Answers(empty.long(), empty.bool(), empty, empty)
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))


def calibration_bins(confidence: Tensor) -> Tensor:
    """int64 ``[N]``: the bin k of each confidence, which is ``(k / 15, (k + 1) / 15]``."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    return (BINS - torch.bucketize(1 - confidence.double(), edges, right=True)).clamp(0, BINS - 1)


def expected_calibration_error(
    confidence: Tensor, correct: Tensor, norm: Literal["l1", "max"] = "l1"
) -> float:
    """Over 15 bins ``(k / 15, (k + 1) / 15]``; the largest gap of a bin with ``"max"``; NaN without samples.

    References:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    if len(confidence) == 0:
        return float("nan")
    # torchmetrics' bins are closed below, and a confidence of 1 has one to itself. The gaps between the share
    # of errors and 1 - confidence are the same ones, in bins closed where the paper's are.
    doubt, wrong = 1 - confidence.double(), (~correct).long()
    return binary_calibration_error(doubt, wrong, BINS, norm, validate_args=False).item()


def confusion_matrix(y: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 ``[C, C]``: how many samples of class i (row) were taken for class j (column)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    # torchmetrics refuses a single class.
    counts = multiclass_confusion_matrix(predicted, y, max(classes, 2), validate_args=False)
    return counts[:classes, :classes]
