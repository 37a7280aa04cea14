"""What a diagnosis found, as a page: flaws first, then layers against kinds, then what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.report.blocks import Card, Panel, Panels, Part, Section, Table
from brittle.report.figures.layers import LayerPanel, along_layers, present
from brittle.report.render import render
from brittle.report.text import count, number, percent

Json = Mapping[str, Any]
_CHANNELS_SHOWN = 12

#: What each kind of flaw is, in the order in which pages show them.
KINDS = {
    "dead": "units that give the same answer to every sample",
    "redundant": "units that repeat each other",
    "unformed": "features no different from those of an untrained network",
    "overfit": "features that fit the training samples and not others",
    "vanishing": "gradients that fade on their way to the layer",
    "exploding": "gradients that grow on their way to the layer",
    "broken-link": "a layer that undoes what the one before it has made",
    "fragile": "features that a small change of the input moves far",
}

#: Which measurements of a diagnosis are read together.
PANELS: tuple[LayerPanel, ...] = (
    LayerPanel(
        "units, share",
        {"dead units": "dead", "duplicate units": "duplicates", "effective rank share": "rank"},
        limits=(0, 1),
        note="Units without a say; units that repeat another; effective rank of the outputs, relative.",
    ),
    LayerPanel(
        "gradient",
        {"update": "over the weights", "signal": "at the outputs"},
        log=True,
        note="Of the loss: the weights' gradient over their length, and the outputs' gradient.",
    ),
    LayerPanel(
        "movement of the weights",
        {"movement": "movement"},
        log=True,
        note="Since initialisation, over the length of the initial weights.",
    ),
    LayerPanel(
        "linear probe, accuracy",
        {"probe, train": "train", "probe, validation": "validation"},
        limits=(0, 1),
        note="Of labels read off the features: of training samples it was not fitted to, and of others.",
    ),
    LayerPanel(
        "similarity (CKA)",
        {"link": "to the layer before", "similarity to untrained": "to untrained"},
        limits=(0, 1),
    ),
    LayerPanel(
        "features moved",
        {"moved by attack": "attack", "moved by noise": "noise"},
        log=True,
        note="By a small change of the input, over the features' spread.",
    ),
)

_UNJUDGED: Json = {"severity": None, "reason": "not judged"}


@dataclass(frozen=True)
class Cell:
    """How severe a kind of flaw is in a layer; ``severity`` is None where it could not be judged."""

    severity: str | None
    reason: str


@dataclass(frozen=True)
class Row:
    """A layer and its cells."""

    layer: str
    described: str
    cells: Sequence[Cell]


def diagnosis_page(summary: Json, title: str, provenance: Mapping[str, str] | None = None) -> str:
    """The whole diagnosis as one page that opens offline and loads nothing.

    Args:
        summary: what :meth:`brittle.diagnosis.Diagnosis.summary` gives.
        title: of what was diagnosed.
        provenance: what it takes to get the same numbers again.

    Returns:
        HTML, complete in itself; the same arguments give the same bytes.

    Example:
        >>> finding = {"layer": "fc<1>", "kind": "dead", "severity": "severe", "channels": [0, 2]}
        >>> finding |= {"evidence": {"share": 0.5}, "region": None, "reason": "2 of 4 units never answer."}
        >>> summary = {"layers": ["fc<1>"], "described": ["Linear 8 -> 4"], "measures": {}, "notes": []}
        >>> summary |= {"findings": [finding], "samples": {"train": 100}, "accuracy": {"train": 0.9}}
        >>> page = diagnosis_page(summary, "A network")
        >>> "1 severe flaw in 1 of 1 layers." in page, "fc&lt;1&gt;" in page, "fc<1>" in page
        (True, True, False)
    """
    flaws = [each for each in summary["findings"] if each["severity"] != "none"]
    sections = [_measures(summary)]
    return render(
        "diagnosis.html.jinja",
        title=title,
        headline=headline(summary),
        held=not flaws,
        cards=_cards(summary),
        flaws=[flaw(each) for each in flaws],
        kinds=KINDS,
        rows=grid(summary),
        sections=[each for each in sections if each is not None],
        samples=_samples(summary),
        notes=summary["notes"],
        provenance=provenance or {},
    )


def headline(summary: Json) -> str:
    """How many flaws there are, in a sentence.

    Example:
        >>> headline({"findings": [], "layers": ["fc1", "fc2"]})
        'No flaws found in 2 layers.'
    """
    flaws = [each for each in summary["findings"] if each["severity"] != "none"]
    layers = len(summary["layers"])
    if not flaws:
        return f"No flaws found in {layers} layer{'s' * (layers != 1)}."
    counts = {
        severity: total
        for severity in ("severe", "mild")
        if (total := sum(each["severity"] == severity for each in flaws))
    }
    counted = " and ".join(f"{total} {severity}" for severity, total in counts.items())
    places = len({each["layer"] for each in flaws})
    return f"{counted} flaw{'s' * (len(flaws) != 1)} in {places} of {layers} layers."


def grid(summary: Json) -> list[Row]:
    """A row for each layer, with a cell for each of :data:`KINDS`."""
    found = {(each["layer"], each["kind"]): each for each in summary["findings"]}
    rows = []
    for layer, described in zip(summary["layers"], summary["described"], strict=True):
        judged = (found.get((layer, kind), _UNJUDGED) for kind in KINDS)
        cells = [Cell(each["severity"], each["reason"]) for each in judged]
        rows.append(Row(named(layer), described, cells))
    return rows


def flaw(finding: Json) -> dict[str, Any]:
    """A finding in words."""
    evidence = (f"{name.replace('_', ' ')} {number(value)}" for name, value in finding["evidence"].items())
    where, channels = [], finding["channels"]
    if channels:
        more = len(channels) - _CHANNELS_SHOWN
        rest = f" and {count(more)} more" if more > 0 else ""
        where.append(f"units {', '.join(map(str, channels[:_CHANNELS_SHOWN]))}{rest}")
    if finding["region"] is not None:
        (top, bottom), (left, right) = finding["region"]
        where.append(f"rows {top} to {bottom - 1}, columns {left} to {right - 1}")
    return {
        "severity": finding["severity"],
        "title": f"{finding['kind']}: {named(finding['layer'])}",
        "reason": finding["reason"],
        "evidence": ", ".join(evidence),
        "where": "; ".join(where),
    }


def named(layer: str) -> str:
    """A layer's name; the model itself has none."""
    return layer or "(model)"


def _cards(summary: Json) -> list[Card]:
    samples, accuracy = summary["samples"], summary["accuracy"]
    cards = [
        Card(percent(accuracy.get(name)), f"{name} accuracy", f"{count(each)} samples")
        for name, each in samples.items()
    ]
    if "validation, attack" in accuracy:
        cards.append(
            Card(percent(accuracy["validation, attack"]), "accuracy under attack", "validation data")
        )
    flawed = {each["layer"] for each in summary["findings"] if each["severity"] != "none"}
    return [*cards, Card(f"{len(flawed)} of {len(summary['layers'])}", "layers with flaws")]


def _samples(summary: Json) -> Table:
    """Accuracies are of a data set, ``"validation"``, or of it under a change, ``"validation, noise"``."""
    samples, accuracy = summary["samples"], summary["accuracy"]
    names = dict.fromkeys([*samples, *accuracy])
    rows = [(name, count(samples.get(name.partition(",")[0])), percent(accuracy.get(name))) for name in names]
    return Table(("data", "samples", "accuracy"), rows)


def _measures(summary: Json) -> Section | None:
    layers, measures = summary["layers"], summary["measures"]
    panels = []
    for panel in present(PANELS, measures):
        lines = {name: label for name, label in panel.lines.items() if name in measures}
        figure = along_layers(panel, layers, measures)
        panels.append(Panel(panel.title, figure, _numbers(layers, measures, lines), panel.note))
    drawn = {name for panel in PANELS for name in panel.lines}
    others = {
        name: name.replace("_", " ")
        for name, row in measures.items()
        if name not in drawn and any(value is not None for value in row)
    }
    parts: list[Part] = [Panels(panels)] if panels else []
    if others:
        parts.append(_numbers(layers, measures, others, "Further measurements"))
    lead = "The network's layers from top to bottom, in the order in which they run."
    return Section("measures", "What was measured", lead, parts) if parts else None


def _numbers(layers: Sequence[str], measures: Json, names: Mapping[str, str], caption: str = "") -> Table:
    rows = [
        (named(layer), *(number(measures[name][place]) for name in names))
        for place, layer in enumerate(layers)
    ]
    return Table(("layer", *names.values()), rows, caption, shown=24 if caption else None)
