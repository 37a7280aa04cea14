"""Measurements along a network's layers: the first layer on top, one row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from brittle.report.figures.curves import floats
from brittle.report.figures.theme import DASHES, MARKERS, PANEL, SERIES, drawn, legend
from brittle.report.text import shortened

Json = Mapping[str, Any]
_MOST_ROWS, _ROW, _SMALL_ROW = 40, 0.26, 0.17  # rows that are all named; their height in inches


@dataclass(frozen=True)
class LayerPanel:
    """Measures that are read together.

    Attributes:
        title: what the horizontal axis is.
        lines: the name of each measure, and what it is called beside the others.
        log: a logarithmic axis.
        limits: of the axis, where they are known beforehand.
        note: how to read it.
    """

    title: str
    lines: Mapping[str, str]
    log: bool = False
    limits: tuple[float, float] | None = None
    note: str = ""


def present(panels: Sequence[LayerPanel], measures: Json) -> list[LayerPanel]:
    """The panels that have something to show: a finite number at least."""
    return [
        panel
        for panel in panels
        if any(np.isfinite(floats(measures.get(name))).any() for name in panel.lines)
    ]


def draw_along_layers(axes: Axes, panel: LayerPanel, measures: Json, colours: Sequence[str] = SERIES) -> None:
    """A line for each measure of a panel, downwards; what is missing leaves a gap."""
    for index, (name, label) in enumerate(panel.lines.items()):
        values = floats(measures.get(name))
        if panel.log:
            values = np.where(values > 0, values, np.nan)
        if not np.isfinite(values).any():
            continue
        look: Any = {"marker": MARKERS[index % len(MARKERS)], "linestyle": DASHES[index % len(DASHES)]}
        axes.plot(values, np.arange(len(values)), color=colours[index % len(colours)], label=label, **look)
    if panel.log:
        axes.set_xscale("log")
        # Short labels in plain text: the page's figures know no mathematical notation.
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))
        axes.xaxis.set_minor_locator(NullLocator())
        _whole_decades(axes)
    elif panel.limits is not None:
        low, high = panel.limits
        margin = 0.04 * (high - low)
        axes.set_xlim(low - margin, high + margin)


def _whole_decades(axes: Axes) -> None:
    """Limits at powers of ten, of which there are two at least."""
    values = np.concatenate(
        [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines] or [np.ones(1)]
    )
    values = values[np.isfinite(values)]
    if len(values):
        low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
        axes.set_xlim(10.0 ** (low - 0.1), 10.0 ** (max(high, low + 1) + 0.1))


def row_axis(axes: Axes, names: Sequence[str], most: int = _MOST_ROWS) -> None:
    """The layers, from top to bottom; of more than ``most``, evenly spaced ones are named."""
    step = max(1, -(-len(names) // most))
    places = range(0, len(names), step)
    axes.set_yticks(places, [shortened(names[place] or "(model)") for place in places])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name may have dollar signs
    axes.set_ylim(len(names) - 0.4, -0.6)


@drawn(PANEL)
def along_layers(figure: Figure, panel: LayerPanel, layers: Sequence[str], measures: Json) -> str:
    """One panel, as the page shows it."""
    height = _ROW if len(layers) <= 16 else _SMALL_ROW
    figure.set_size_inches(PANEL[0], 1.1 + height * min(max(len(layers), 3), _MOST_ROWS))
    axes = figure.subplots()
    draw_along_layers(axes, panel, measures)
    row_axis(axes, layers)
    if len(panel.lines) > 1:
        legend(figure, axes)
    return f"{panel.title}, a row for each layer"
