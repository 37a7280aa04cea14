"""Lines over epsilon, over severity, over recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brittle.report.figures.theme import (
    BLUE,
    DASHES,
    INK,
    LINE,
    MARKERS,
    ORANGE,
    PANEL,
    SERIES,
    SMALL,
    SOFT,
    drawn,
    legend,
    percent_axis,
)
from brittle.report.text import epsilon, norm_name, shortened

Json = Mapping[str, Any]


def floats(values: Sequence[float | None] | None, scale: float = 1.0) -> Any:
    """Numbers to draw: what is missing leaves a gap."""
    return scale * np.array([np.nan if v is None else v for v in values or ()], dtype=float)


def series(index: int) -> dict[str, Any]:
    """What sets one line apart from the next: colour, mark and dashes."""
    return {
        "color": SERIES[index % len(SERIES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


@drawn(PANEL)
def robustness_curves(figure: Figure, norm: Json) -> str:
    """Accuracy over epsilon: the worst of all attacks with its interval, and each attack."""
    axes = figure.subplots()
    over = floats(norm["epsilons"])
    low, high = (floats([ends and ends[end] for ends in norm["interval"]], 100) for end in (0, 1))
    axes.fill_between(over, low, high, color=BLUE, alpha=0.16)
    axes.plot(over, floats(norm["robust_accuracy"], 100), color=BLUE, linewidth=3.2, label="worst case")
    for index, curve in enumerate(norm["curves"], start=1):
        look = series(index) | {"linewidth": 1.3}
        axes.plot(over, floats(curve["accuracy"], 100), label=shortened(curve["attack"]), **look)
    _mark_epsilon(axes, norm.get("reported"))
    _epsilon_axis(axes, over, norm["norm"])
    percent_axis(axes, "accuracy")
    legend(figure, axes)
    return f"Accuracy over epsilon, {norm_name(norm['norm'])}"


@drawn(PANEL)
def overlaid_curves(figure: Figure, norm: str, runs: Sequence[tuple[str, Json]]) -> str:
    """The worst-case accuracy of several runs over epsilon."""
    axes = figure.subplots()
    everywhere = []
    for index, (name, numbers) in enumerate(runs):
        over = floats(numbers["epsilons"])
        everywhere += over.tolist()
        low, high = (floats([ends and ends[end] for ends in numbers["interval"]], 100) for end in (0, 1))
        look = series(index)
        axes.fill_between(over, low, high, color=look["color"], alpha=0.14)
        axes.plot(over, floats(numbers["robust_accuracy"], 100), label=shortened(name), **look)
    _epsilon_axis(axes, np.array(everywhere), norm)
    percent_axis(axes, "robust accuracy")
    legend(figure, axes)
    return f"Robust accuracy over epsilon, {norm_name(norm)}"


@drawn(PANEL)
def minimal_epsilon_curve(figure: Figure, norm: Json) -> str:
    """The share of samples whose nearest adversarial point lies within each epsilon."""
    axes = figure.subplots()
    smallest = norm["minimal_epsilon"]
    over, fooled = floats(smallest["curve"]["epsilon"]), floats(smallest["curve"]["fooled"], 100)
    axes.fill_between(over, 0, fooled, color=ORANGE, alpha=0.14)
    axes.plot(over, fooled, color=ORANGE, linewidth=2.2)
    median = smallest.get("median")
    if median is not None:
        axes.plot([0, median, median], [50, 50, 0], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.plot([median], [50], color=INK, marker="o", clip_on=False)
        room_right = median < 0.6 * float(np.nanmax(over, initial=0))
        axes.annotate(
            f"median {epsilon(median)}",
            (median, 50),
            xytext=(7 if room_right else -7, -11),
            textcoords="offset points",
            ha="left" if room_right else "right",
        )
    _epsilon_axis(axes, over, norm["norm"])
    percent_axis(axes, "fooled within epsilon")
    return f"Share of samples fooled within epsilon, {norm_name(norm['norm'])}"


@drawn((PANEL[0], 3.9))
def precision_recall(figure: Figure, curves: Sequence[Json], worst: Sequence[str]) -> str:
    """Precision over recall of each class; the worst ones in colour."""
    axes = figure.subplots()
    for curve in curves:
        if curve["class"] not in worst:
            axes.plot(_recall(curve), _precision(curve), color=SOFT, linewidth=0.8, alpha=0.45)
    by_name = {curve["class"]: curve for curve in curves}
    for index, name in enumerate(name for name in worst if name in by_name):
        look = series(index) | {"marker": ""}
        axes.plot(_recall(by_name[name]), _precision(by_name[name]), label=shortened(name), **look)
    axes.set(xlabel="recall (%)", xlim=(-1, 101), xticks=range(0, 101, 25))
    lowest = min((float(np.nanmin(_precision(curve), initial=100)) for curve in curves), default=0)
    percent_axis(axes, "precision", bottom=25 * (max(lowest - 1, 0) // 25))
    legend(figure, axes)
    return "Precision over recall, a line for each class"


@drawn(SMALL)
def shift_curves(figure: Figure, clean: Json, kind: Json) -> str:
    """Accuracy and calibration error over the severity of one kind of corruption."""
    axes = figure.subplots()
    levels = kind["levels"]
    over = [0, *(level["severity"] for level in levels)]
    for index, (key, name) in enumerate((("accuracy", "accuracy"), ("ece", "ECE"))):
        values = floats([clean.get(key), *(level.get(key) for level in levels)], 100)
        axes.plot(over, values, label=name, **series(index))
    axes.set(xlabel="severity (0: clean)", xticks=over)
    percent_axis(axes, "share")
    legend(figure, axes)
    return f"Accuracy and calibration error over the severity of {kind['kind']}"


@drawn((PANEL[0], 3.3))
def landscape_lines(figure: Figure, landscape: Json) -> str:
    """The mean loss along the gradient and along a random direction."""
    axes = figure.subplots()
    over = floats(landscape["alphas"])
    axes.axvline(0, color=LINE, linewidth=1)
    axes.plot(over, floats(landscape["along_gradient"]), label="gradient", **series(1))
    axes.plot(over, floats(landscape["along_random"]), label="random direction", **series(0))
    axes.set_xlabel(f"distance from the sample ({norm_name(landscape['norm'])})")
    axes.set_title("mean loss")
    legend(figure, axes)
    return "Mean loss along the gradient and along a random direction"


def _recall(curve: Json) -> Any:
    return floats(curve["recall"], 100)


def _precision(curve: Json) -> Any:
    return floats(curve["precision"], 100)


def _epsilon_axis(axes: Axes, over: Any, norm: str) -> None:
    largest = float(np.nanmax(over, initial=0)) or 1.0
    axes.set(xlabel=f"epsilon ({norm_name(norm)})", xlim=(-0.02 * largest, 1.02 * largest))


def _mark_epsilon(axes: Axes, reported: float | None) -> None:
    if reported is not None:
        name = f"epsilon {epsilon(reported)}"
        axes.axvline(reported, color=SOFT, linewidth=1, linestyle=(0, (2, 2)), label=name)
