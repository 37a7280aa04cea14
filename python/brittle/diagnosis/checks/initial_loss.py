"""The loss before training: a network that knows nothing should say so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from brittle import _checks as check
from brittle.data import Data
from brittle.diagnosis.checks._trial import (
    check_classes,
    first_samples,
    fresh,
    logits_of,
    require_module,
    trial,
)
from brittle.diagnosis.checks.verdict import Verdict

# Nats. Logits of standard deviation s add about s**2 / 2 to the loss: usual initialisers stay below 0.2.
_TOLERANCE = 0.5
_BIAS = 0.5
# Of log C, or of the labels' entropy where that is less: to be better than this takes knowledge of labels.
_BELOW = 0.1


@dataclass(frozen=True)
class InitialLoss(Verdict):
    """The loss of an untrained network.

    Attributes:
        loss: the mean cross-entropy, nats.
        expected: log C.
        samples: how many it is the mean of.
        mean_logits: float64 ``[C]``, each class's mean logit less the mean of them all.
        mean_probabilities: float64 ``[C]``.
        bias: Kullback-Leibler divergence, nats, of the mean probabilities from the uniform distribution or
            from the labels' frequencies, whichever is nearer.
    """

    loss: float
    expected: float
    samples: int
    mean_logits: Tensor
    mean_probabilities: Tensor
    bias: float

    def _figures(self) -> list[str]:
        lines = [f"loss {self.loss:.4f} on {self.samples} samples, log C = {self.expected:.4f}"]
        lines.append(f"{'class':>6}{'mean logit':>12}{'mean probability':>18}")
        for label in self.mean_probabilities.argsort(descending=True, stable=True)[:10].tolist():
            lines.append(f"{label:>6}{self.mean_logits[label]:>12.4f}{self.mean_probabilities[label]:>18.4f}")
        return lines


def initial_loss(
    model: nn.Module,
    data: Data,
    *,
    tolerance: float = _TOLERANCE,
    batch_size: int = 256,
    seed: int = 0,
) -> InitialLoss:
    """Compare the loss of an untrained classifier with log C, that of equal probabilities.

    A loss far above it means logits that are large before anything was learnt: a last layer initialised too
    wide, or inputs that were not scaled. The first epochs then go into unlearning them. A loss below what the
    labels' frequencies alone allow means that the network is not untrained, or that the inputs hold the
    labels. One class far ahead of the others on average is a bias that training must first remove; one
    that agrees with the frequencies of the labels is intended, and accepted.

    Args:
        model: untrained, mapping inputs to logits ``[N, C]``. A copy of it in training mode is asked.
        data: a pair of tensors ``(x, y)`` or an iterable of batches; the first ``batch_size`` samples count.
        tolerance: how far, in nats, the loss may be above log C.
        batch_size: samples.
        seed: of dropout and whatever else is random in the model.

    Returns:
        The loss, the classes' biases and the verdict.

    Raises:
        ValueError: data or model does not fit, or there are no samples.

    References:
        Karpathy, "A Recipe for Training Neural Networks", 2019 ("verify loss @ init").

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> data = torch.randn(256, 20), torch.arange(256) % 4
        >>> model = torch.nn.Linear(20, 4)
        >>> checks.initial_loss(model, data).ok
        True
        >>> _ = torch.nn.init.normal_(model.weight, std=2)
        >>> checks.initial_loss(model, data).ok
        False
    """
    op = "initial_loss"
    require_module(op, model)
    check.check_scalar(op, "tolerance", tolerance)
    with trial(op, model, seed):
        x, y = first_samples(op, data, batch_size, model, seed)
        with torch.no_grad():
            logits = logits_of(op, fresh(op, model), x).double().cpu()
    y = y.cpu()
    classes = logits.shape[1]
    check_classes(op, y, classes)
    loss, expected = float(F.cross_entropy(logits, y)), math.log(classes)
    frequencies = torch.bincount(y, minlength=classes).double() / len(y)
    mean = logits.softmax(1).mean(0)
    bias = min(_divergence(mean, torch.full_like(mean, 1 / classes)), _divergence(mean, frequencies))
    least = _entropy(frequencies) - _BELOW * expected
    problems = []
    if not math.isfinite(loss):
        problems.append(f"the loss is {loss}: the inputs or the weights are not finite, or overflow")
    elif loss > expected + tolerance:
        problems.append(
            f"the loss is {loss:.3f} where log C = {expected:.3f}: the logits are large before training "
            f"(standard deviation {float(logits.std()):.3g}); usually the last layer's weights are, "
            "or the inputs are not scaled"
        )
    elif loss < least:
        problems.append(
            f"the loss is {loss:.3f} where log C = {expected:.3f}: the model knows labels before training; "
            "usually it was trained before, or the inputs hold the label"
        )
    if bias > _BIAS:
        largest = int(mean.argmax())
        problems.append(
            f"class {largest} has a mean probability of {float(mean[largest]):.2f} before training, and "
            f"{float(frequencies[largest]):.2f} of the labels; usually the last layer's bias is off"
        )
    return InitialLoss(
        problems=tuple(problems),
        notes=(),
        loss=loss,
        expected=expected,
        samples=len(y),
        mean_logits=logits.mean(0) - logits.mean(),
        mean_probabilities=mean,
        bias=bias,
    )


def _entropy(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())


def _divergence(p: Tensor, q: Tensor) -> float:
    return float((torch.xlogy(p, p) - torch.xlogy(p, q)).sum())
