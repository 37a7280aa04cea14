"""What is wrong with a network, layer by layer, and how badly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Kinds of structural flaws, in the order in which tables and pictures show them.
KINDS = ("dead", "redundant", "unformed", "overfit", "vanishing", "exploding", "broken-link", "fragile")

Region = tuple[tuple[int, int], tuple[int, int]]

#: From harmless to worst.
SEVERITIES = ("none", "mild", "severe")


@dataclass(frozen=True)
class Finding:
    """One judgement: a layer, a kind of flaw, how severe.

    Attributes:
        layer: the name of a module with weights, as in ``model.named_modules()``. It stands for itself and
            for the normalisation and activation between it and the next such module.
        kind: one of :data:`KINDS`.
        severity: ``"none"``, ``"mild"`` or ``"severe"``.
        evidence: the measurements that decided, by name.
        channels: the units that are to blame (output channels or features), where some are; else empty.
        region: the rows and columns of the layer's map that are to blame, ``((top, bottom), (left, right))``
            with ends excluded; None where it is all of it or there is no map.
        reason: the judgement in a sentence.
    """

    layer: str
    kind: str
    severity: str
    evidence: Mapping[str, float]
    channels: tuple[int, ...] = ()
    region: Region | None = None
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`brittle.diagnosis.diagnose` found.

    Attributes:
        layers: the names of the judged layers, in the order in which they run.
        described: of each layer, what it is, such as ``"Conv2d 16 -> 32"``.
        measures: by name, a number for each layer; NaN where a layer has none.
        findings: a judgement for every layer and kind that could be judged, the worst first, then in the
            order of the layers.
        samples: of each data set, how many samples were looked at.
        accuracy: of each data set, the model's accuracy on them.
        notes: what could not be judged, and why.
    """

    layers: tuple[str, ...]
    described: tuple[str, ...]
    measures: Mapping[str, tuple[float, ...]]
    findings: tuple[Finding, ...]
    samples: Mapping[str, int]
    accuracy: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())

    @property
    def flaws(self) -> tuple[Finding, ...]:
        """The findings whose severity is not ``"none"``, the worst first."""
        return tuple(finding for finding in self.findings if finding.severity != "none")

    def of(self, layer: str, kind: str | None = None) -> tuple[Finding, ...]:
        """The findings of one layer, or of one kind there.

        Raises:
            ValueError: the layer was not judged, or there is no such kind.
        """
        if layer not in self.layers:
            known = ", ".join(map(repr, self.layers))
            raise ValueError(f"Diagnosis.of: layer must be one of {known}; got {layer!r}")
        if kind is not None and kind not in KINDS:
            raise ValueError(f"Diagnosis.of: kind must be one of {', '.join(KINDS)}; got {kind!r}")
        return tuple(f for f in self.findings if f.layer == layer and kind in (None, f.kind))

    def severity(self, layer: str, kind: str) -> str | None:
        """How severe a kind of flaw is in a layer; None where it could not be judged."""
        found = self.of(layer, kind)
        return found[0].severity if found else None

    def table(self) -> str:
        """A line for each layer with the severity of each kind, then the reasons, then the notes."""
        rows: list[tuple[str, ...]] = [("layer", "is", *KINDS)]
        for layer, described in zip(self.layers, self.described, strict=True):
            severities = (_SHOWN[self.severity(layer, kind)] for kind in KINDS)
            rows.append((layer or "(model)", described, *severities))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.append("")
        lines += [f"{f.severity} {f.kind}, {f.layer or '(model)'}: {f.reason}" for f in self.flaws] or [
            "No flaws found."
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw layers against kinds, and the measurements along the layers.

        Args:
            path: where to save the picture; the ending names the format.

        Returns:
            The figure, for more.
        """
        from brittle.diagnosis.flaws.pictures import drawn

        figure: Figure = drawn(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def summary(self) -> dict[str, Any]:
        """All of it in JSON's types: a measurement that is not finite is None."""
        return {
            "layers": list(self.layers),
            "described": list(self.described),
            "measures": {name: [_plain(value) for value in row] for name, row in self.measures.items()},
            "findings": [
                {
                    "layer": f.layer,
                    "kind": f.kind,
                    "severity": f.severity,
                    "evidence": {name: _plain(value) for name, value in f.evidence.items()},
                    "channels": list(f.channels),
                    "region": None if f.region is None else [list(part) for part in f.region],
                    "reason": f.reason,
                }
                for f in self.findings
            ],
            "samples": dict(self.samples),
            "accuracy": {name: _plain(value) for name, value in self.accuracy.items()},
            "notes": list(self.notes),
        }


_SHOWN: dict[str | None, str] = {"none": "-", "mild": "mild", "severe": "SEVERE", None: "?"}


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
