"""From a diagnosis to repairs: causes first, and one repair for findings that share a cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from brittle.data import Data
from brittle.diagnosis.flaws.result import SEVERITIES, Diagnosis, Finding
from brittle.repair.adversarial import adversarial_train
from brittle.repair.duplicates import duplicate_units
from brittle.repair.masking import mask
from brittle.repair.recycling import recycle
from brittle.repair.regularization import regularizer
from brittle.repair.retraining import retrain
from brittle.repair.state import Training
from brittle.repair.structure import norm_after, reader_of
from brittle.repair.training import train

#: What a suggestion may do, and what it is called in a table.
ACTIONS: Mapping[str, str] = {
    "recycle": "start the dead units anew and train them",
    "merge": "merge the units that repeat each other, start the freed ones anew and train them",
    "decorrelate": "train with a penalty on units that repeat each other",
    "retrain": "train the layers",
    "restart": "initialise the layers anew and train them",
    "adversarial_train": "train on adversarial samples",
}

# Kinds that training a layer from new weights may mend, whatever it was started for.
_OF_THE_WEIGHTS = ("dead", "redundant", "unformed", "overfit", "vanishing", "exploding", "broken-link")
# Of a layer's units: from there on the layer is started anew rather than its units.
_MOSTLY = 0.5
_NAMED = 6  # layers in a title
_L2, _REDUNDANCY, _MAX_GRAD_NORM = 5e-4, 0.1, 1.0


@dataclass(frozen=True)
class Suggestion:
    """One repair, and the findings that it is for.

    Attributes:
        action: one of :data:`ACTIONS`.
        layers: the names of the layers that it changes; empty for all.
        findings: what it is to mend: the cause first, then what is likely to follow from it.
        arguments: of the action.
        why: the reasoning in a sentence.
    """

    action: str
    layers: tuple[str, ...]
    findings: tuple[Finding, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    def apply(
        self, model: nn.Module, data: Data, *, eps: float = 8 / 255, bounds: tuple[float, float] = (0.0, 1.0),
        **training: Any,
    ) -> Training:  # fmt: skip
        """Carry it out.

        Args:
            model: changed in place.
            data: what to train on, a pair of tensors or an iterable of batches.
            eps, bounds: of an adversarial training.
            training: further arguments of :func:`brittle.repair.train`, such as ``epochs`` and ``seed``.

        Returns:
            The training that ended it.

        Example:
            >>> import torch
            >>> from brittle.diagnosis import Finding
            >>> from brittle.repair import Suggestion
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
            >>> suggestion = Suggestion("retrain", ("0",), (Finding("0", "unformed", "severe", {}),))
            >>> suggestion.apply(model, (x, (x[:, 0] > 0).long()), epochs=2).epochs
            2
        """
        if self.action not in ACTIONS:
            raise ValueError(
                f"Suggestion.apply: action must be one of {', '.join(map(repr, ACTIONS))}; "
                f"got {self.action!r}"
            )
        return _DO[self.action](self, model, data, {"eps": eps, "bounds": bounds}, training)

    def title(self) -> str:
        """What to do and where, in a few words."""
        names = [layer or "(model)" for layer in self.layers]
        if len(names) > _NAMED:
            names[_NAMED:] = [f"{len(names) - _NAMED} more"]
        where = f"layer{'s' * (len(names) > 1)} {', '.join(names)}" if names else "all layers"
        return f"{self.action} {where}"

    def text(self) -> str:
        """The suggestion in two lines: what to do and where; then what for."""
        details = "; ".join(f"{name}: {_short(value)}" for name, value in self.arguments.items())
        found = ", ".join(f"{f.severity} {f.kind} in {f.layer or '(model)'}" for f in self.findings)
        what = f"{self.title()}: {ACTIONS[self.action]}" + (f" ({details})" if details else "")
        return f"{what}\n    for {found}. {self.why}"

    def summary(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "action": self.action,
            "title": self.title(),
            "what": ACTIONS[self.action],
            "layers": list(self.layers),
            "findings": [{"layer": f.layer, "kind": f.kind, "severity": f.severity} for f in self.findings],
            "arguments": {name: _short(value) for name, value in self.arguments.items()},
            "why": self.why,
        }


def suggest(diagnosis: Diagnosis) -> tuple[Suggestion, ...]:
    """What to do about the flaws of a diagnosis, in the order in which to do it.

    Causes come before what follows from them: where a layer's units are dead, gradients vanish before it and
    nothing forms there; where gradients vanish or explode, the layers they reach do not form. Such findings
    join the suggestion for their cause. Neighbouring layers with one flaw make one suggestion.

    Args:
        diagnosis: what :func:`brittle.diagnosis.diagnose` found.

    Returns:
        The suggestions; none where there are no flaws. Every flaw is in one of them.

    Example:
        >>> from brittle.diagnosis import Diagnosis, Finding
        >>> from brittle.repair import suggest
        >>> layers = ("conv1", "conv2", "fc")
        >>> findings = (Finding("fc", "fragile", "mild", {}), Finding("conv2", "unformed", "severe", {}))
        >>> for suggestion in suggest(Diagnosis(layers, ("", "", ""), {}, findings, {}, {})):
        ...     print(suggestion.action, suggestion.layers, suggestion.findings[0].kind)
        retrain ('conv2',) unformed
        adversarial_train () fragile
    """
    left = _Left(diagnosis)
    made: list[Suggestion] = []
    for layer in left.layers("dead", least="severe"):
        made += _dead(left, [layer])
    made += _gradients(left, "exploding")
    made += _gradients(left, "vanishing")
    for run in left.runs("dead"):
        made += _dead(left, run)
    for run in left.runs("unformed"):
        made += _trained(left, run, "unformed", "The layer has learned nothing; it may have been frozen.")
    for run in left.runs("broken-link"):
        made += _trained(left, run, "broken-link", "The layer loses what the one before it passes on.")
    for layer in left.layers("redundant"):
        made += _redundant(left, layer)
    for run in left.runs("overfit"):
        made += _overfit(left, run)
    fragile = left.take("fragile")
    if fragile:
        why = "Small changes of the input move these features far; training on such changes holds them."
        made.append(Suggestion("adversarial_train", (), fragile, {}, why))
    return tuple(made)


class _Left:
    """The flaws that no suggestion has taken up yet."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self.order = diagnosis.layers
        self.flaws = list(diagnosis.flaws)

    def layers(self, kind: str, least: str = "mild") -> list[str]:
        """Those with a flaw of this kind, in running order."""
        found = {
            f.layer
            for f in self.flaws
            if f.kind == kind and SEVERITIES.index(f.severity) >= SEVERITIES.index(least)
        }
        return [layer for layer in self.order if layer in found]

    def runs(self, kind: str) -> list[list[str]]:
        """The same, neighbours together."""
        runs: list[list[str]] = []
        places = [self.order.index(layer) for layer in self.layers(kind)]
        for place in places:
            if runs and self.order[place - 1] == runs[-1][-1]:
                runs[-1].append(self.order[place])
            else:
                runs.append([self.order[place]])
        return runs

    def take(self, *kinds: str, layers: Sequence[str] | None = None) -> tuple[Finding, ...]:
        """Take up the flaws of these kinds, by kind as they are named, the worst first."""
        taken = [
            f
            for kind in kinds
            for f in self.flaws
            if f.kind == kind and (layers is None or f.layer in layers)
        ]
        self.flaws = [f for f in self.flaws if f not in taken]
        return tuple(taken)

    def until(self, layer: str) -> tuple[str, ...]:
        """The layers that run no later than one."""
        return self.order[: self.order.index(layer) + 1]


def _dead(left: _Left, layers: Sequence[str]) -> Iterable[Suggestion]:
    """Units that never answer: few are started anew one by one, many with their layer."""
    findings = left.take("dead", layers=layers)
    if not findings:  # taken up by the suggestion for another layer
        return
    severe = any(f.severity == "severe" for f in findings)
    # No gradient passes units that never answer.
    followed = left.take("vanishing", "unformed", layers=left.until(layers[-1])) if severe else ()
    followed += left.take("broken-link", "unformed", layers=layers)
    units = {f.layer: f.channels for f in findings}
    why = "These units give every sample the same answer, so no gradient reaches them."
    if followed:
        why += " That keeps the layers before them from forming."
    yield Suggestion("recycle", tuple(layers), findings + followed, {"units": units}, why)


def _gradients(left: _Left, kind: str) -> Iterable[Suggestion]:
    findings = left.take(kind)
    if not findings:
        return
    last = max((f.layer for f in findings), key=left.order.index)
    followed = left.take("unformed", "broken-link", "dead", layers=left.until(last))
    followed += left.take("exploding" if kind == "vanishing" else "vanishing")
    word = "fade" if kind == "vanishing" else "grow"
    why = (
        f"Gradients {word} from layer to layer. Weights that keep the variance of what they pass on start "
        "evenly; if it comes back, the architecture is at fault: try normalisation, skip connections, or "
        "another activation."
    )
    arguments = {"reset": "unit-variance", "max_grad_norm": _MAX_GRAD_NORM}
    yield Suggestion("restart", left.order, findings + followed, arguments, why)


def _trained(left: _Left, layers: Sequence[str], kind: str, why: str) -> Iterable[Suggestion]:
    findings = left.take(kind, layers=layers)
    if findings:
        findings += left.take(*_OF_THE_WEIGHTS, layers=layers)
        yield Suggestion("retrain", tuple(layers), findings, {"reset": "none"}, why)


def _redundant(left: _Left, layer: str) -> Iterable[Suggestion]:
    findings = left.take("redundant", layers=[layer])
    if any(f.channels for f in findings):
        why = "Some units repeat others; merging them changes little, and they are free to learn more."
        yield Suggestion("merge", (layer,), findings, {"redundancy": _REDUNDANCY}, why)
    elif findings:
        why = "The units share few directions without being copies; a penalty drives them apart."
        yield Suggestion("decorrelate", (layer,), findings, {"redundancy": _REDUNDANCY}, why)


def _overfit(left: _Left, layers: Sequence[str]) -> Iterable[Suggestion]:
    findings = left.take("overfit", layers=layers)
    if findings:
        why = "What the layer has learned holds for the training samples alone; it learns again, restrained."
        arguments = {"reset": "default", "l2": _L2}
        yield Suggestion("restart", tuple(layers), findings, arguments, why)


Options = Mapping[str, Any]


def _recycle(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    wholly = []
    for layer, units in it.arguments["units"].items():
        count = len(model.get_submodule(layer).get_parameter("weight"))
        if not units or len(units) >= _MOSTLY * count:
            wholly.append(layer)
        else:
            recycle(model, layer, units, seed=training.get("seed", 0))
    if wholly:
        return retrain(model, it.layers, data, reset="unit-variance", **training)
    return train(model, data, parameters=_with_readers(model, it.layers), **training)


def _merge(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    seed = training.get("seed", 0)
    for layer in it.layers:
        repeated = duplicate_units(model, layer, data)
        if repeated.channels and reader_of(model, layer) is not None:
            mask(model, layer, found=repeated, data=data, merge=True).bake()
            recycle(model, layer, repeated.channels, seed=seed)
    return _decorrelate(it, model, data, attack, training)


def _decorrelate(
    it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options
) -> Training:
    strength = {"redundancy": it.arguments["redundancy"]}
    penalty = regularizer(redundancy_of="activations", layers=dict.fromkeys(it.layers, strength))
    return train(model, data, regularizer=penalty, parameters=_with_readers(model, it.layers), **training)


def _retrain(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    arguments = dict(it.arguments)
    strength = arguments.pop("l2", None)
    if strength is not None:
        arguments["regularizer"] = regularizer(l2=strength)
    return retrain(model, it.layers, data, **{**training, **arguments})


def _harden(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    # A part of a pair can be held out; of other data nothing is.
    held_out = {} if isinstance(data, tuple) else {"validation": None}
    return adversarial_train(model, data, **{**attack, **held_out, **it.arguments, **training})


_DO: Mapping[str, Callable[[Suggestion, nn.Module, Data, Options, Options], Training]] = {
    "recycle": _recycle,
    "merge": _merge,
    "decorrelate": _decorrelate,
    "retrain": _retrain,
    "restart": _retrain,
    "adversarial_train": _harden,
}


def _with_readers(model: nn.Module, layers: Sequence[str]) -> list[str] | None:
    """The layers with their norms and the layers that read them; None, for all, where those are unknown."""
    found = list(layers)
    for layer in layers:
        reader, norm = reader_of(model, layer), norm_after(model, layer)
        if reader is None:
            return None
        found += [reader.name] + ([norm] if norm else [])
    return list(dict.fromkeys(found))


def _short(value: Any) -> Any:
    """An argument as it fits into a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{len(units)} of {name or '(model)'}" for name, units in value.items())
    return value
