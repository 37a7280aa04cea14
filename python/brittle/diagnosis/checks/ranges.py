"""Weights and gradients before training: finite, as wide as the usual initialisers make them, not dead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

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

# A standard deviation may be so many times below or above those of all the usual initialisers.
_FACTOR = 3.0
# Decades between a weight's gradient-to-weight ratio and the layers' median; healthy ones stay below 1.
_DECADES = 2.5
# Layers that begin at zero on purpose hold up the gradient of those behind them for a step each.
_STEPS = 4


@dataclass(frozen=True)
class ParameterRange:
    """One parameter.

    Attributes:
        name: as in ``model.named_parameters()``.
        shape: of the tensor.
        mean, std: of its values.
        usual: the least and the greatest standard deviation among the usual initialisers; None where none is
            usual (biases, norms, embeddings).
        gradient: the norm of its gradient; NaN where there is none.
        ratio: that over the norm of the values.
        remark: what is wrong with it; empty if nothing is.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    usual: tuple[float, float] | None
    gradient: float
    ratio: float
    remark: str


@dataclass(frozen=True)
class WeightsAndGradients(Verdict):
    """The parameters of a network and the gradients of its loss.

    Attributes:
        parameters: a row each, in the model's order.
        loss: of the batch.
    """

    parameters: tuple[ParameterRange, ...]
    loss: float

    def _figures(self) -> list[str]:
        width = max([len(row.name) for row in self.parameters] + [9])
        lines = [
            f"{'parameter':<{width}}{'mean':>10}{'std':>10}{'usual':>19}{'gradient':>11}{'ratio':>10}  remark"
        ]
        for row in self.parameters:
            usual = "-" if row.usual is None else f"{row.usual[0]:.2g} to {row.usual[1]:.2g}"
            lines.append(
                f"{row.name:<{width}}{row.mean:>10.3g}{row.std:>10.3g}{usual:>19}{row.gradient:>11.3g}"
                f"{row.ratio:>10.3g}  {row.remark}".rstrip()
            )
        return lines


def weights_and_gradients(
    model: nn.Module,
    data: Data,
    *,
    loss_fn: LossFunction = F.cross_entropy,
    untrained: bool = True,
    batch_size: int = 64,
    seed: int = 0,
) -> WeightsAndGradients:
    """Look at every parameter and at its gradient, on one batch.

    Reported are: values, buffers or gradients that are not finite; parameters that take no part in the loss,
    or whose gradient is exactly zero and stays so over four steps (layers that begin at zero on purpose hold
    up the gradient for a step or two); linear, convolutional and attention layers all of whose units have
    the same weights, zero apart; weights whose gradient, relative to them, is 2.5 orders of magnitude from
    the other layers'. Of an untrained network also such layers' weights more than 3 times wider or narrower
    than all the usual initialisers make them (Glorot, He, LeCun, torch's own, and 0.02).

    Args:
        model: maps inputs to logits ``[N, C]``. A copy of it in training mode is looked at.
        data: a pair of tensors ``(x, y)`` or an iterable of batches; the first ``batch_size`` samples count.
        loss_fn: ``loss_fn(logits, y)`` gives a scalar.
        untrained: whether to compare the weights with initialisers.
        batch_size: samples.
        seed: of dropout and whatever else is random in the model.

    Returns:
        A row for each parameter and the verdict. Frozen parameters are a note unless all are.

    Raises:
        ValueError: data or model does not fit, or there are no samples.

    References:
        Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
        He et al., "Delving Deep into Rectifiers", ICCV 2015.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
        >>> data = torch.rand(30, 6), torch.arange(30) % 3
        >>> checks.weights_and_gradients(model, data).ok
        True
        >>> _ = torch.nn.init.constant_(model[0].weight, 0.3)
        >>> [row.name for row in checks.weights_and_gradients(model, data).parameters if row.remark]
        ['0.weight']
    """
    op = "weights_and_gradients"
    require_module(op, model)
    with trial(op, model, seed):
        x, y = first_samples(op, data, batch_size, model, seed)
        copied = fresh(op, model)
        before = {name: parameter.detach().clone() for name, parameter in copied.named_parameters()}
        problems = [
            f"buffer {name!r} holds NaN or infinity"
            for name, buffer in copied.named_buffers()
            if buffer.is_floating_point() and not bool(buffer.isfinite().all())
        ]
        logits = logits_of(op, copied, x)
        check_classes(op, y, logits.shape[1])
        loss = loss_fn(logits, y)
        learning = {name: p for name, p in copied.named_parameters() if p.requires_grad}
        gradients: dict[str, Tensor | None] = dict.fromkeys(learning)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
            gradients = dict(zip(learning, found, strict=True))
        zero = _staying_zero(op, copied, x, y, loss_fn, gradients)

    usual = _usual_spreads(model)
    ratios = {
        name: _norm(gradient) / _norm(before[name])
        for name, gradient in gradients.items()
        if gradient is not None and before[name].dim() > 1 and _norm(before[name]) > 0
    }
    logs = torch.tensor([math.log10(r) for r in ratios.values() if 0 < r < math.inf], dtype=torch.float64)
    median = float(logs.median()) if len(logs) > 2 else math.nan
    rows = []
    for name, value in before.items():
        gradient = gradients.get(name)
        norm = math.nan if gradient is None else _norm(gradient)
        ratio = norm / _norm(value) if value.numel() and _norm(value) > 0 else math.nan
        spread = float(value.double().std(correction=0)) if value.numel() else math.nan
        remark = (
            _fault_of_values(value, spread, usual.get(name), untrained)
            or (_fault_of_gradient(gradient, name in zero) if name in learning else "")
            or (_fault_of_ratio(ratio, median) if name in ratios else "")
        )
        mean = float(value.double().mean()) if value.numel() else math.nan
        rows.append(
            ParameterRange(name, tuple(value.shape), mean, spread, usual.get(name), norm, ratio, remark)
        )
    problems += [f"{row.name!r}: {row.remark}" for row in rows if row.remark]
    total = loss.item()
    if not math.isfinite(total):
        finite = "finite" if bool(x.isfinite().all()) else "not finite"
        problems.append(f"the loss is {total}, and the inputs are {finite}")
    notes = []
    frozen = len(before) - len(learning)
    if not learning:
        problems.append("no parameter requires a gradient: nothing can be trained")
    elif frozen:
        notes.append(f"{frozen} of {len(before)} parameters are frozen")
    return WeightsAndGradients(
        problems=tuple(problems), notes=tuple(notes), parameters=tuple(rows), loss=total
    )


def _staying_zero(
    op: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss_fn: LossFunction,
    gradients: dict[str, Tensor | None],
) -> set[str]:
    """The parameters whose gradient is zero and stays so in a few steps, which train the model."""
    named = dict(model.named_parameters())
    zero = {name for name, gradient in gradients.items() if gradient is not None and not bool(gradient.any())}
    if not zero:
        return zero
    stepper = torch.optim.Adam((p for p in named.values() if p.requires_grad), lr=1e-3)
    for _ in range(_STEPS):
        loss = loss_fn(logits_of(op, model, x), y)
        stepper.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()
        for name in tuple(zero):
            gradient = named[name].grad
            if gradient is not None and bool(gradient.any()):
                zero.remove(name)
    return zero


def _fault_of_values(value: Tensor, spread: float, usual: tuple[float, float] | None, untrained: bool) -> str:
    lost = int((~value.isfinite()).sum())
    if lost:
        return f"{lost} values are NaN or infinite"
    if usual is None:
        return ""
    if len(value) > 1 and bool((value == value[:1]).all()) and bool(value.any()):
        return "all units have the same weights"
    if not untrained or spread == 0:
        return ""
    narrowest, widest = usual
    if spread > widest * _FACTOR:
        return f"{spread / widest:.1f} times as wide as the widest usual initialiser"
    if spread < narrowest / _FACTOR:
        return f"{narrowest / spread:.1f} times as narrow as the narrowest usual initialiser"
    return ""


def _fault_of_gradient(gradient: Tensor | None, stays_zero: bool) -> str:
    if gradient is None:
        return "takes no part in the loss"
    if not bool(gradient.isfinite().all()):
        return "its gradient is NaN or infinite"
    return "its gradient is zero and stays so" if stays_zero else ""


def _fault_of_ratio(ratio: float, median: float) -> str:
    if not ratio > 0 or math.isnan(median):
        return ""
    decades = math.log10(ratio) - median
    if abs(decades) <= _DECADES:
        return ""
    side = "above" if decades > 0 else "below"
    return f"gradient over weight is 10^{abs(decades):.1f} {side} the layers' median"


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _usual_spreads(model: nn.Module) -> dict[str, tuple[float, float]]:
    """The least and the greatest standard deviation that a usual initialiser gives each weight."""
    return {
        name: (min(spreads), max(spreads))
        for name, fan_in, fan_out in _weights(model)
        for spreads in [
            (
                math.sqrt(1 / (3 * fan_in)),
                math.sqrt(1 / fan_in),
                math.sqrt(2 / fan_in),
                math.sqrt(2 / (fan_in + fan_out)),
                0.02,
            )
        ]
    }


def _weights(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Names of the weights that initialisers are for, with how many values go into and come out of a unit."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            names = ["weight"]
        elif isinstance(module, nn.MultiheadAttention):
            names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        else:
            continue
        for name in names:
            weight = module._parameters.get(name)
            if weight is None or weight.dim() < 2 or not weight.numel():
                continue
            field = math.prod(weight.shape[2:])
            yield f"{path}.{name}" if path else name, weight.shape[1] * field, weight.shape[0] * field
