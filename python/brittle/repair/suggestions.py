"""From a diagnosis to repairs: causes first, and one repair for findings that share a cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from brittle.data import Data
from brittle.diagnosis.flaws.result import SEVERITIES, Diagnosis, Finding
from brittle.repair.actions import ACTIONS, perform
from brittle.repair.state import Training

# Of flaws that are equally severe in one layer, the likelier cause first.
_CAUSES = ("dead", "exploding", "vanishing", "unformed", "overfit", "broken-link", "redundant")
_GRADIENTS = ("exploding", "vanishing")
# Of a network's layers: where more are to start anew, all do.
_MOSTLY = 0.5
_L2, _REDUNDANCY, _MAX_GRAD_NORM = 5e-4, 0.1, 1.0
# A network that starts from nothing is trained so many times as long as one layer of it.
_LONGER = 5
_NAMED = 6  # layers in a title


@dataclass(frozen=True)
class Suggestion:
    """One repair, and the findings that it is for.

    Attributes:
        action: one of :data:`brittle.repair.actions.ACTIONS`.
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
        return perform(self, model, data, {"eps": eps, "bounds": bounds}, training)

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

    A layer's worst flaw decides what is done to it, and its lesser ones join: what mends a layer's units or
    weights mends them too. Between equals the likelier cause decides: dead units before gradients, gradients
    before features. Neighbouring layers with the same flaw make one suggestion. Where severe dead units or
    gradients keep the layers before them from learning, those layers' flaws join as well. Severe flaws come
    first, and fragility, which all layers share, last.

    Args:
        diagnosis: what :func:`brittle.diagnosis.diagnose` found.

    Returns:
        The suggestions; none where there are no flaws. Every flaw is in one of them.

    Example:
        >>> from brittle.diagnosis import Diagnosis, Finding
        >>> from brittle.repair import suggest
        >>> layers = ("conv1", "conv2", "fc")
        >>> findings = (Finding("conv2", "unformed", "severe", {}), Finding("fc", "fragile", "mild", {}))
        >>> for suggestion in suggest(Diagnosis(layers, ("", "", ""), {}, findings, {}, {})):
        ...     print(suggestion.action, suggestion.layers, suggestion.findings[0].kind)
        retrain ('conv2',) unformed
        adversarial_train () fragile
    """
    order = diagnosis.layers
    left = [flaw for flaw in diagnosis.flaws if flaw.kind != "fragile"]
    made: list[Suggestion] = []
    while left:
        lead = max(left, key=lambda f: (_weight(f), -_CAUSES.index(f.kind), -order.index(f.layer)))
        layers = _run(lead, left, order)
        taken = _taken(lead, layers, left, order)
        made.append(_suggestion(lead, layers, taken, order))
        left = [flaw for flaw in left if flaw not in taken]
    fragile = tuple(flaw for flaw in diagnosis.flaws if flaw.kind == "fragile")
    if fragile:
        why = "Small changes of the input move these features far; training on such changes holds them."
        made.append(Suggestion("adversarial_train", (), fragile, {}, why))
    return tuple(made)


def _weight(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _run(lead: Finding, flaws: Sequence[Finding], order: Sequence[str]) -> tuple[str, ...]:
    """The layer, and its neighbours that the same flaw is the worst of too.

    Gradients fade or grow over many layers, so any flaw of their kind counts; where most layers have it, all
    are meant. Copies are each layer's own.
    """
    if lead.kind == "redundant":
        return (lead.layer,)

    def joins(layer: str) -> bool:
        own = [f for f in flaws if f.layer == layer]
        if lead.kind in _GRADIENTS:
            return any(f.kind == lead.kind for f in own)
        return bool(own) and max(own, key=lambda f: (_weight(f), -_CAUSES.index(f.kind))).kind == lead.kind

    first = last = order.index(lead.layer)
    while first > 0 and joins(order[first - 1]):
        first -= 1
    while last + 1 < len(order) and joins(order[last + 1]):
        last += 1
    if lead.kind in _GRADIENTS and last + 1 - first > _MOSTLY * len(order):
        return tuple(order)
    return tuple(order[first : last + 1])


def _taken(
    lead: Finding, layers: Sequence[str], flaws: Sequence[Finding], order: Sequence[str]
) -> tuple[Finding, ...]:
    """The flaws that a repair of ``layers`` is for: the lead and its like first, then what may follow."""
    like = [f for f in flaws if f.layer in layers and f.kind == lead.kind]
    joined = [f for f in flaws if f.layer in layers and f.kind != lead.kind]
    if lead.kind == "redundant":
        # Merging copies trains little else.
        joined = []
    if lead.severity == "severe" and lead.kind in ("dead", *_GRADIENTS):
        before = order[: order.index(layers[0])]
        joined += [f for f in flaws if f.layer in before and f.kind in ("vanishing", "unformed")]
    return (lead, *(f for f in like + joined if f is not lead))


def _suggestion(
    lead: Finding, layers: tuple[str, ...], findings: tuple[Finding, ...], order: Sequence[str]
) -> Suggestion:
    def made(action: str, why: str, **arguments: Any) -> Suggestion:
        return Suggestion(action, layers, findings, arguments, why)

    if lead.kind in _GRADIENTS:
        word = "fade" if lead.kind == "vanishing" else "grow"
        why = (
            f"Gradients {word} from layer to layer; weights that pass the variance on start evenly. If it "
            "comes back, the architecture is at fault: try normalisation, skip connections or another "
            "activation."
        )
        start: dict[str, Any] = {"reset": "unit-variance", "max_grad_norm": _MAX_GRAD_NORM}
        if len(layers) == len(order) > 1:
            # Nothing is left to build on: this is training from the beginning.
            start["longer"] = _LONGER
        return made("restart", why, **start)
    if lead.kind == "dead":
        why = "These units have no say for any sample, so no gradient reaches them."
        if any(f.layer not in layers for f in findings):
            why += " That keeps the layers before them from learning."
        units = {f.layer: f.channels for f in findings if f.kind == "dead"}
        return made("recycle", why, units=units)
    if lead.kind == "unformed":
        return made("retrain", "The layer has learned nothing; it may have been frozen.", reset="none")
    if lead.kind == "overfit":
        why = "What the layer has learned holds for the training samples alone; it learns again, restrained."
        return made("retrain", why, reset="default", l2=_L2)
    if lead.kind == "broken-link":
        return made("retrain", "The layer loses what the one before it passes on.", reset="none")
    if any(f.channels for f in findings):
        why = "Some units repeat others; merging them changes little, and they are free to learn more."
        return made("merge", why, redundancy=_REDUNDANCY)
    why = "The units share few directions without being copies; a penalty drives them apart."
    return made("decorrelate", why, redundancy=_REDUNDANCY)


def _short(value: Any) -> Any:
    """An argument as it fits into a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{len(units)} of {name or '(model)'}" for name, units in value.items())
    return value
