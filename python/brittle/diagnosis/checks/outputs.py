"""Does the model give logits, and does the loss expect what the model gives?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle._folding import deep_copy
from brittle.data import Data
from brittle.diagnosis.checks._trial import (
    LossFunction,
    check_classes,
    first_samples,
    fresh,
    logits_of,
    require_module,
    trial,
)
from brittle.diagnosis.checks.verdict import Verdict

_SCALE = 1e6  # of the last layer's weights, to see what bounds its outputs


@dataclass(frozen=True)
class OutputKind(Verdict):
    """What a model gives, and what its loss expects.

    Attributes:
        kind: ``"logits"``, ``"probabilities"`` (softmax), ``"log-probabilities"``, ``"sigmoid"``, ``"tanh"``,
            ``"rectified"`` (by a ReLU), or ``"bounded"`` in some other way.
        expects: ``"logits"``, ``"log-probabilities"``, ``"probabilities"`` or ``"unknown"``; None without a
            loss.
        smallest, largest: of the outputs.
        sums: the least and the greatest sum of a sample's outputs.
    """

    kind: str
    expects: str | None
    smallest: float
    largest: float
    sums: tuple[float, float]

    def _figures(self) -> list[str]:
        lines = [
            f"the model gives {self.kind}: from {self.smallest:.4g} to {self.largest:.4g}, "
            f"sums from {self.sums[0]:.4g} to {self.sums[1]:.4g}"
        ]
        return lines if self.expects is None else [*lines, f"the loss expects {self.expects}"]


def output_kind(
    model: nn.Module,
    data: Data,
    loss_fn: LossFunction | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> OutputKind:
    """Find out whether a model gives logits or something that was squashed, and whether its loss fits.

    Outputs in [0, 1] that sum to 1 are probabilities; those with ``logsumexp`` = 0 are log-probabilities.
    Where the outputs of a copy stay in [0, 1] or [-1, 1] although the last layer's weights are a million
    times as large, a sigmoid or tanh is behind it. The loss is asked too: one that does not change when the
    same number is added to all logits of a sample applies a softmax itself, one that falls by that number
    expects log-probabilities, and one that falls by log 2 when all are doubled expects probabilities.

    Cross-entropy of probabilities is a second softmax: with C classes the loss cannot fall below
    ``log(e + C - 1) - 1``, and the gradients shrink.

    Args:
        model: maps inputs to ``[N, C]``. Copies of it in evaluation mode are asked.
        data: a pair of tensors ``(x, y)`` or an iterable of batches; the first ``batch_size`` samples count.
        loss_fn: ``loss_fn(outputs, y)`` gives a scalar; without it logits are expected.
        batch_size: samples.
        seed: of what is random in the model.

    Returns:
        The kinds and the verdict. Log-probabilities where logits are expected are a note, not a problem: a
        softmax of them changes nothing, though an energy score is zero for every sample.

    Raises:
        ValueError: data or model does not fit, or ``loss_fn`` gives no scalar.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> data = torch.rand(32, 8), torch.arange(32) % 3
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Softmax(dim=1))
        >>> found = checks.output_kind(model, data, torch.nn.functional.cross_entropy)
        >>> found.kind, found.expects, found.ok
        ('probabilities', 'logits', False)
    """
    op = "output_kind"
    require_module(op, model)
    with trial(op, model, seed), torch.no_grad():
        x, y = first_samples(op, data, batch_size, model, seed)
        out = logits_of(op, fresh(op, model).eval(), x).double()
        check_classes(op, y, out.shape[1])
        kind = _kind(op, model, x, out)
        expects = None if loss_fn is None else _expected(op, loss_fn, out, y)
    problems, notes = _judged(kind, expects, out.shape[1])
    sums = out.sum(1)
    return OutputKind(
        problems=tuple(problems),
        notes=tuple(notes),
        kind=kind,
        expects=expects,
        smallest=float(out.min()),
        largest=float(out.max()),
        sums=(float(sums.min()), float(sums.max())),
    )


def softmax_kind(out: Tensor) -> str | None:
    """``"probabilities"`` or ``"log-probabilities"`` if these ``[N, C]`` can be nothing else."""
    out = out.double()
    if not bool(out.isfinite().all()):
        # Exact zeros have infinite logarithms; NaN is nothing at all.
        return "log-probabilities" if _normalised(out.exp()) and bool((out <= 0).all()) else None
    if bool((out >= 0).all()) and _normalised(out):
        return "probabilities"
    return "log-probabilities" if bool((out <= 1e-3).all()) and _normalised(out.exp()) else None


def _normalised(p: Tensor) -> bool:
    return bool(((p.sum(1) - 1).abs() <= 2e-2).all()) and bool((p <= 1.01).all())


def _kind(op: str, model: nn.Module, x: Tensor, out: Tensor) -> str:
    known = softmax_kind(out)
    if known is not None:
        return known
    if not bool(out.isfinite().all()):
        return "logits"
    smallest, largest = float(out.min()), float(out.max())
    if smallest < -1 or largest > 1:
        # Without a ReLU an output is exactly 0 hardly ever.
        return "rectified" if smallest == 0 and int((out == 0).sum()) > 1 else "logits"
    louder = _amplified(op, model, x)
    if louder is None or not bool(louder.isfinite().all()):
        return "logits"
    smallest, largest = float(louder.min()), float(louder.max())
    if smallest >= 0:
        return "sigmoid" if largest <= 1 else "rectified" if bool((louder == 0).any()) else "logits"
    if smallest >= -1 and largest <= 1:
        return "tanh"
    return "logits" if max(-smallest, largest) > 10 * float(out.abs().max()) else "bounded"


def _amplified(op: str, model: nn.Module, x: Tensor) -> Tensor | None:
    """The outputs when the last layer that has a weight matrix is a million times as large."""
    louder = deep_copy(model).eval()
    ran: list[nn.Module] = []
    handles = [
        part.register_forward_hook(lambda module, args, output: ran.append(module))
        for part in louder.modules()
        if any(p.dim() > 1 and p.is_floating_point() for p in part.parameters(recurse=False))
    ]
    try:
        louder(x)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        return None
    for parameter in ran[-1].parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.mul_(_SCALE)
    return logits_of(op, louder, x).double()


def _expected(op: str, loss_fn: LossFunction, out: Tensor, y: Tensor) -> str:
    asked = loss_fn(out.float(), y)
    if not isinstance(asked, Tensor) or asked.numel() != 1:
        got = f"shape {list(asked.shape)}" if isinstance(asked, Tensor) else type(asked).__name__
        raise ValueError(f"{op}: loss_fn must give a scalar tensor; got {got}")
    z = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).mul(3).to(out.device)

    def falls(values: Tensor, changed: Tensor) -> float:
        """How far the loss falls; NaN where it refuses such values."""
        try:
            return float(loss_fn(values, y)) - float(loss_fn(changed, y))
        except (RuntimeError, ValueError):
            return math.nan

    def is_by(amount: float, fall: float) -> bool:
        """Of a mean over the samples or of a sum."""
        return any(math.isclose(fall, k * amount, rel_tol=1e-3, abs_tol=1e-3) for k in (1, len(y)))

    if is_by(0.0, falls(z, z + 2)) and not is_by(0.0, falls(z, 2 * z)):
        return "logits"
    logs = z.log_softmax(1)
    if is_by(2.0, falls(logs, logs + 2)):
        return "log-probabilities"
    # Away from 0, where losses of probabilities are clamped; halved, because they may refuse any above 1.
    p = 0.9 * z.softmax(1) + 0.1 / z.shape[1]
    return "probabilities" if is_by(math.log(2), falls(p / 2, p)) else "unknown"


def _judged(kind: str, expects: str | None, classes: int) -> tuple[list[str], list[str]]:
    """Problems and notes."""
    floor = math.log(math.e + classes - 1) - 1
    wanted = "logits" if expects is None else expects
    if wanted == "unknown":
        return [], [f"what the loss expects cannot be told from its values; the model gives {kind}"]
    if kind == wanted:
        return [], []
    if wanted == "logits":
        if kind == "log-probabilities":
            return [], [
                "the model ends in a log-softmax: harmless to cross-entropy, attacks and calibration, "
                "but an energy score is zero for every sample"
            ]
        if kind == "probabilities":
            return [
                "the model gives probabilities where logits are expected: with cross-entropy that is a "
                f"second softmax, and the loss cannot fall below {floor:.3f}; remove the model's softmax"
            ], []
        limit = {"sigmoid": "in [0, 1]", "tanh": "in [-1, 1]", "rectified": "never below 0"}.get(
            kind, "bounded"
        )
        last = {"sigmoid": "sigmoid", "tanh": "tanh", "rectified": "ReLU"}.get(kind, "last function")
        return [f"the logits are {limit}: remove the {last} behind the last layer"], []
    if wanted == "log-probabilities":
        return [
            f"the loss expects log-probabilities and the model gives {kind}: nothing normalises them, so the "
            "loss has no lower bound; use cross_entropy, or end the model in log_softmax"
        ], []
    return [f"the loss expects {wanted} and the model gives {kind}"], []
