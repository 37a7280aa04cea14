"""Gradients that vanish or explode on their way through the layers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from brittle.diagnosis.flaws.evidence import Evidence
from brittle.diagnosis.flaws.result import Finding
from brittle.diagnosis.flaws.thresholds import from_above, from_below


def vanishing(about: Evidence) -> Iterator[Finding]:
    """Layers whose weights are told next to nothing by the loss, beside what other layers are told."""
    updates = {layer: _update(about, layer) for layer in about.layers}
    for layer in about.layers:
        update = about.measure("update", layer, updates[layer])
        signal = about.measure("signal", layer, about.validation.signal[layer])
        ratio = about.measure("signal ratio", layer, _ratio(about, layer))
        others = [updates[other] for other in about.layers if other != layer]
        usual = _usual([update for update in others if math.isfinite(update)])
        relative = update / usual if usual > 0 else math.nan
        about.measure("relative update", layer, relative)
        yield Finding(
            layer,
            "vanishing",
            from_below(relative, about.thresholds.update),
            {"relative update": relative, "signal": signal, "signal ratio": ratio},
            reason=f"the weights' gradient is {relative:.1e} of that of other layers, each over its weights",
        )


def exploding(about: Evidence) -> Iterator[Finding]:
    """Layers that enlarge what passes them, in a network whose gradients exceed its weights.

    A large gradient shows in every layer of such a network, the least in the ones to blame: it is inverse to
    the weights. The forward gain shows where it comes from.
    """
    updates = {layer: _update(about, layer) for layer in about.layers}
    usual = _usual(list(updates.values()))
    lost = [layer for layer in about.layers if not math.isfinite(about.validation.largest[layer])]
    gains = {layer: about.measure("gain", layer, about.validation.gain[layer]) for layer in about.layers}
    finite = [gain for gain in gains.values() if math.isfinite(gain)]
    # Layers in norms' hands have gains of any size that do no harm.
    highest = max(finite, default=0.0)
    for layer in about.layers:
        gain = gains[layer]
        severity = from_above(usual, about.thresholds.explosion)
        blamed = not gain < about.thresholds.gain and not gain < 0.2 * highest
        if layer in lost:
            severity, blamed = "severe", layer == lost[0] or blamed
        yield Finding(
            layer,
            "exploding",
            severity if blamed else "none",
            {"update": updates[layer], "update of the network": usual, "gain": gain},
            reason=(
                f"gradients have {usual:.3g} times the length of their weights, and the layer's outputs vary "
                f"{gain:.3g} times as much as its inputs"
            ),
        )


def _usual(updates: list[float]) -> float:
    """The second largest: one layer that fits badly, such as a frozen one, has a large gradient alone."""
    ordered = sorted((update for update in updates if not math.isnan(update)), reverse=True)
    return ordered[1 if len(ordered) > 2 else 0] if ordered else math.nan


def _update(about: Evidence, layer: str) -> float:
    """The median over batches; infinite if any was not finite."""
    values = about.train.updates.get(layer, [])
    if any(not math.isfinite(value) for value in values):
        return math.inf
    return statistics.median(values) if values else math.nan


def _ratio(about: Evidence, layer: str) -> float:
    """The signal that reaches what feeds the layer, over that which reaches the layer."""
    here = about.validation.signal[layer]
    before = [about.validation.signal[name] for name in about.parents(layer) or ("",)]
    return statistics.mean(before) / here if here else math.nan
