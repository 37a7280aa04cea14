"""What a linear classifier reads from features, of samples that the network was trained on and of others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Strengths of the penalty, over the largest eigenvalue of the features' covariance.
_PENALTIES = 10.0 ** torch.arange(-6.0, 1.5, 0.5, dtype=torch.float64)


@dataclass(frozen=True)
class Probe:
    """Accuracies of linear classifiers of one layer's features.

    Attributes:
        fitted: on the samples that they were fitted to.
        train: on training samples that they were not fitted to, but the network was. What these have over
            ``validation`` is what the network, not the probe, knows by heart.
        validation: on samples that neither was fitted to.
    """

    fitted: float
    train: float
    validation: float

    @property
    def gap(self) -> float:
        """Accuracy on the network's training samples less that on validation samples."""
        return self.train - self.validation


def probe(train: Tensor, y: Tensor, validation: Tensor, y_validation: Tensor) -> Probe | None:
    """Fit on either half of the training samples, ask about the other half and the validation samples.

    The halves are every other sample, so that sorted data make no difference. The classifier is ridge
    regression on one-hot labels, its penalty chosen by generalised cross-validation (Golub, Heath & Wahba
    1979): deterministic, and no iteration that might not end.

    Args:
        train: ``[N, d]``; y: int64 ``[N]``.
        validation: ``[M, d]``; y_validation: int64 ``[M]``.

    Returns:
        Means over the two fits, or None where features are not finite or there are too few samples.
    """
    if len(train) < 4 or not bool(train.isfinite().all() and validation.isfinite().all()):
        return None
    classes = int(max(y.max(), y_validation.max())) + 1
    even = torch.arange(len(train)) % 2 == 0
    results = []
    for fit, held in ((even, ~even), (~even, even)):
        classify = _Ridge(train[fit], y[fit], classes)
        results.append(
            (
                classify.accuracy(train[fit], y[fit]),
                classify.accuracy(train[held], y[held]),
                classify.accuracy(validation, y_validation),
            )
        )
    return Probe(*(sum(pair) / 2 for pair in zip(*results, strict=True)))


class _Ridge:
    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        self.mean = x.double().mean(0)
        centred = x.double() - self.mean
        self.scale = float(centred.abs().max()) or 1.0
        centred /= self.scale
        targets = functional.one_hot(y, classes).double()
        self.offset = targets.mean(0)
        targets -= self.offset
        n, width = centred.shape
        # Through the smaller of X X^T and X^T X.
        small = centred.T @ centred if width <= n else centred @ centred.T
        values, vectors = torch.linalg.eigh(small)
        values = values.clamp(min=0.0)
        largest = max(float(values[-1]), 1e-300)
        along = vectors.T @ (centred.T @ targets if width <= n else targets)  # in the eigenvectors' basis
        total = float(targets.square().sum())
        kept = values > 1e-12 * largest
        # Of X X^T's eigenvectors, the squares of the targets' parts.
        parts = along.square().sum(1) / (values.clamp(min=1e-300) if width <= n else 1.0)
        best = None
        for penalty in (_PENALTIES * largest).tolist():
            shrunk = torch.where(kept, values / (values + penalty), 0.0)
            residual = total - float((parts * (2 * shrunk - shrunk.square()))[kept].sum())
            freedom = max(n - 1 - float(shrunk.sum()), 1e-9)
            score = max(residual, 0.0) / freedom**2
            if best is None or score < best[0]:
                best = score, penalty
        assert best is not None
        solved = vectors @ (along / (values + best[1]).unsqueeze(1))
        self.weight = solved if width <= n else centred.T @ solved

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        scores = ((x.double() - self.mean) / self.scale) @ self.weight + self.offset
        return float((scores.argmax(1) == y).double().mean())
