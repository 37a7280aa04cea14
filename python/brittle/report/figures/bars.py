"""Bars: reliability diagrams, histograms, and measures with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from brittle.report.figures.curves import floats
from brittle.report.figures.theme import BLUE, INK, LINE, ORANGE, PANEL, SMALL, SOFT, drawn, legend
from brittle.report.text import percent, shortened

Json = Mapping[str, Any]


@drawn((3.1, 3.1))
def reliability_diagram(figure: Figure, condition: Json) -> str:
    """Accuracy over confidence in bins, the gap to perfect calibration, and how many samples each bin has."""
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    bins = [part for part in condition["bins"] if part["samples"]]
    low, high = (floats([part[end] for part in bins], 100) for end in ("low", "high"))
    accuracy, confidence = (floats([part[key] for part in bins], 100) for key in ("accuracy", "confidence"))
    samples = floats([part["samples"] for part in bins])
    widths = 0.86 * (high - low)
    middles = (low + high) / 2
    axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle=(0, (3, 2)), label="perfect")
    axes.bar(middles, np.nan_to_num(accuracy), widths, color=BLUE, alpha=0.85, label="accuracy")
    # What is missing to the confidence, or beyond it.
    axes.bar(
        middles,
        np.nan_to_num(confidence - accuracy),
        widths,
        bottom=np.nan_to_num(accuracy),
        facecolor=(*to_rgb(ORANGE), 0.22),
        edgecolor=ORANGE,
        linewidth=1,
        label="gap",
    )
    ticks = range(0, 101, 25)
    axes.set(xlim=(0, 100), ylim=(0, 102), yticks=ticks, title="accuracy (%)")
    below.bar(middles, samples, widths, color=SOFT, alpha=0.6)
    below.set(xlabel="confidence (%)", xticks=ticks, title="samples")
    below.set_yticks([0, float(np.nanmax(samples, initial=1))])
    below.grid(False)
    axes.grid(axis="x", visible=False)
    legend(figure, axes)
    return f"Reliability diagram, {condition['name']}"


@drawn(SMALL)
def histograms(figure: Figure, score: Json, inside: str, outside: str) -> str:
    """How a score is distributed inside and outside the distribution."""
    axes = figure.subplots()
    bars = score["histogram"]
    edges = floats(bars["edges"])
    looks = ((inside, bars["inside"], BLUE, "-"), (outside, bars["outside"], ORANGE, (0, (4, 1.5))))
    for name, shares, colour, dashes in looks:
        heights = floats(shares, 100)
        axes.stairs(heights, edges, color=colour, fill=True, alpha=0.18)
        axes.stairs(heights, edges, color=colour, linewidth=1.6, linestyle=dashes, label=shortened(name, 18))
    axes.set(xlabel=shortened(score["score"]), title="share of samples (%)")
    axes.set_ylim(bottom=0)
    legend(figure, axes, columns=2)
    return f"Histograms of {score['score']}, {inside} and {outside}"


@drawn(PANEL)
def bars_with_intervals(figure: Figure, rows: Sequence[Json], name: str, worst: str | None = None) -> str:
    """Accuracy with its interval, one bar for each segment or set; the worst in another colour."""
    figure.set_size_inches(PANEL[0], 0.75 + 0.3 * max(len(rows), 2))
    axes = figure.subplots()
    at = np.arange(len(rows))
    accuracy = floats([row["accuracy"] for row in rows], 100)
    ends = [row.get("interval") or (None, None) for row in rows]
    low, high = (floats([pair[end] for pair in ends], 100) for end in (0, 1))
    marked = [row[name] == worst for row in rows]
    axes.barh(at, np.nan_to_num(accuracy), 0.62, color=[ORANGE if m else BLUE for m in marked], alpha=0.8)
    axes.hlines(at, low, high, color=INK, linewidth=1.2)
    for end in (low, high):
        axes.plot(end, at, color=INK, marker="|", markersize=6, linestyle="")
    for place, row in zip(at, rows, strict=True):
        axes.annotate(
            percent(row["accuracy"]),
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    labels = [shortened(row[name]) + (" (worst)" if m else "") for row, m in zip(rows, marked, strict=True)]
    axes.set_yticks(at, labels, color=INK)
    axes.set(xlim=(0, 100), xticks=range(0, 101, 25), xlabel="accuracy (%)", ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.spines.left.set_visible(False)
    return "Accuracy with 95 % intervals, a bar each"


@drawn(PANEL)
def spread_dots(figure: Figure, measures: Sequence[Json]) -> str:
    """Every value of each measure, and the range from the smallest to the largest."""
    figure.set_size_inches(PANEL[0], 0.75 + 0.34 * max(len(measures), 2))
    axes = figure.subplots()
    at = np.arange(len(measures))
    for place, measure in zip(at, measures, strict=True):
        values = 100 * (floats(measure["values"]) - (measure["mean"] or 0))
        axes.plot(values, np.full(len(values), place), color=LINE, linewidth=5, solid_capstyle="round")
        axes.plot(values, np.full(len(values), place), color=BLUE, marker="o", linestyle="", alpha=0.75)
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set_yticks(at, [shortened(measure["measure"], 34) for measure in measures], color=INK)
    axes.set(title="difference from the mean (points)", ylim=(len(measures) - 0.4, -0.6))
    reach = 1.1 * max(map(abs, axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.grid(axis="y", visible=False)
    axes.spines.left.set_visible(False)
    return "Differences from the mean, a row for each measure"
