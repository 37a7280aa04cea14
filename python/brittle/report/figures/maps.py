"""Maps: confusion matrices and the loss around samples, in shades that suit light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from brittle.report.figures.curves import floats
from brittle.report.figures.theme import BLUE, CARD, INK, ORANGE, PANEL, SOFT, drawn
from brittle.report.text import shortened

Json = Mapping[str, Any]
MOST_CLASSES = 40


@drawn((PANEL[0], 3.9))
def confusion_map(figure: Figure, classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Counts by true class (rows) and prediction (columns), shaded by the share of the row."""
    axes = figure.subplots()
    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    small = len(classes) <= 12
    size = 9 if len(classes) <= 10 else 7.5
    for row, column in np.argwhere(counts > 0):
        share = shares[row, column]
        colour = BLUE if row == column else ORANGE
        # An error of a single sample must still be seen.
        shade = 0.1 + 0.85 * share if row == column else 0.14 + 0.8 * min(1.0, 2.5 * share)
        place = (column - 0.47, row - 0.47)
        axes.add_patch(Rectangle(place, 0.94, 0.94, facecolor=(*to_rgb(colour), shade), linewidth=0))
        if small:
            ink = CARD if shade > 0.6 else INK
            text = f"{counts[row, column]:.0f}"
            axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=size)
    edges = (-0.55, len(classes) - 0.45)
    axes.set(xlim=edges, ylim=edges[::-1], aspect="equal", xlabel="predicted", title="true")
    names = [shortened(name, 12) for name in classes]
    ticks = np.arange(len(classes))
    if len(classes) > 20:
        ticks = ticks[:: -(-len(classes) // 20)]
    upright = max(map(len, names), default=0) > 3
    names = [names[tick] for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=8 if len(names) > 12 else 9)
    axes.set_yticks(ticks, names, fontsize=8 if len(names) > 12 else 9)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return "Confusion matrix: true classes in rows, predictions in columns"


@drawn((PANEL[0], 3.3))
def landscape_map(figure: Figure, landscape: Json) -> str:
    """The mean loss in the plane of the gradient and a random direction, as contours."""
    axes = figure.subplots()
    alphas = floats(landscape["alphas"])
    mean = np.array([floats(row) for row in landscape["mean"]]).T
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    levels = MaxNLocator(10).tick_values(low, high if high > low else low + 1)
    strengths = np.linspace(0.04, 0.86, len(levels) - 1)
    shades = [(*to_rgb(ORANGE), strength) for strength in strengths.tolist()]
    filled = axes.contourf(alphas, alphas, mean, levels=levels, colors=shades)
    lines: Any = {"colors": [INK], "linewidths": 0.5, "linestyles": "solid", "alpha": 0.55}
    axes.contour(alphas, alphas, mean, levels=levels, **lines)
    axes.plot([0], [0], marker="o", color=INK, linestyle="")
    axes.annotate("sample", (0, 0), xytext=(5, 4), textcoords="offset points")
    axes.set(xlabel="along the gradient", title="along a random direction")
    axes.grid(False)
    ticks = levels[:: -(-len(levels) // 7)]
    bar = figure.colorbar(filled, ax=axes, pad=0.02, aspect=24, ticks=ticks)
    bar.outline.set_visible(False)
    bar.ax.set_title("loss", color=SOFT)
    return "Contours of the mean loss around the samples"
