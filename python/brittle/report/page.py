"""The demonstration's page: key figures, curves and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from cycler import cycler
from matplotlib import style
from matplotlib.figure import Figure

from brittle.report.pictures import Pixels, data_uri, perturbation_image
from brittle.report.render import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2563a8", "#c2410c", "#0f766e", "#7c3aed")
_PLOT_STYLE: Any = {
    "axes.edgecolor": "#9aa5b1",
    "axes.grid": True,
    "axes.labelcolor": "#3e4c59",
    "axes.prop_cycle": cycler(color=_COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.color": "#e4e7eb",
    "lines.linewidth": 2.2,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "brittle",
    "text.parse_math": False,
    "xtick.color": "#616e7c",
    "ytick.color": "#616e7c",
}
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


class Curve(Protocol):
    """What a page asks of a curve; :class:`brittle.evaluation.Curve` is one."""

    @property
    def attack(self) -> str:
        """The attack's name."""

    @property
    def epsilons(self) -> Sequence[float]:
        """Where the curve was measured."""

    @property
    def accuracy(self) -> Sequence[float]:
        """The share of samples still classified correctly at each epsilon."""

    @property
    def samples(self) -> int:
        """How many samples there were."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the curve on ``ax``."""


@dataclass(frozen=True)
class KeyFigure:
    """One number that a reader should take away."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """A predicted class and its softmax probability."""

    label: str
    confidence: float


@dataclass(frozen=True)
class Example:
    """One sample before and after an attack."""

    name: str
    label: str  # the true class
    clean: Pixels  # [H, W] in [0, 1]
    adversarial: Pixels  # [H, W] in [0, 1]
    before: Answer
    after: Answer


@dataclass(frozen=True)
class ExampleGroup:
    """What one attack did at one epsilon."""

    attack: str
    eps: float
    examples: tuple[Example, ...]


def robustness_page(
    *,
    title: str,
    summary: str,
    key_figures: Sequence[KeyFigure],
    curves: Sequence[Curve],
    groups: Sequence[ExampleGroup],
    rule: str,
    provenance: Mapping[str, str],
) -> str:
    """The report on a model under attack: key figures, accuracy over epsilon, examples, provenance.

    Args:
        title, summary: what the reader sees first.
        key_figures: shown large, at most four in a row.
        curves: at least one, all over the same epsilons in the same order.
        groups: examples, a grid for each attack.
        rule: how the examples were chosen.
        provenance: what it takes to get the same numbers again.

    Returns:
        HTML, complete in itself.
    """
    if not curves or any(curve.epsilons != curves[0].epsilons for curve in curves):
        raise ValueError("robustness_page: curves must be one or more over the same epsilons")
    return render(
        "robustness.html.jinja",
        title=title,
        summary=summary,
        key_figures=key_figures,
        curves=curves,
        figure=curve_figure(curves),
        colour_scale=perturbation_image(np.linspace(-1, 1, 65)[np.newaxis], 1.0),
        groups=groups,
        rule=rule,
        provenance=provenance,
    )


def curve_figure(curves: Sequence[Curve]) -> str:
    """Accuracy over epsilon, a line for each curve, as the data URI of an SVG image."""
    # From matplotlib's defaults: a reader's own settings would change the figure.
    with style.context(["default", _PLOT_STYLE]):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            curve.plot(axes)
        axes.legend(frameon=False)
        buffer = BytesIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return data_uri("image/svg+xml", buffer.getvalue().replace(b"'DejaVu Sans'", _FONT.encode()))
