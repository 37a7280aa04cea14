"""Pages from figures, curves and examples. Pictures are data URIs, and everything else is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from cycler import cycler
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import image, style
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = NDArray[np.floating[Any]]

_COLOURS = ("#2563a8", "#c2410c", "#0f766e", "#7c3aed")
# An odd number of colours, so that exactly zero is exactly white.
_DIVERGING = LinearSegmentedColormap.from_list("perturbation", (_COLOURS[0], "#ffffff", _COLOURS[1]), N=257)
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


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in; a value that the template misses is an error."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "percent": percent,
        "grey_image": grey_image,
        "perturbation_image": perturbation_image,
        "largest": lambda pixels: float(np.abs(pixels).max()),
    }
    return pages.get_template(template).render(values)


def percent(share: float) -> str:
    """A share as per cent with one decimal; 100 % only if it is exactly that.

    Example:
        >>> percent(0.984), percent(0.99999), percent(1.0)
        ('98.4 %', '>99.9 %', '100 %')
    """
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return "100 %" if share == 1 else f"{share:.1%}".replace("%", " %")


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
    return _data_uri("image/svg+xml", buffer.getvalue().replace(b"'DejaVu Sans'", _FONT.encode()))


def grey_image(pixels: Pixels) -> str:
    """Pixels ``[H, W]`` in [0, 1] as the data URI of a PNG of that size, 1 being black."""
    return _png(pixels, "gray_r", 0, 1)


def perturbation_image(delta: Pixels, scale: float) -> str:
    """Differences ``[H, W]`` as the data URI of a PNG: ``-scale`` is blue, 0 white and ``scale`` orange."""
    return _png(delta, _DIVERGING, -scale, scale)


def _png(pixels: Pixels, colours: str | Colormap, smallest: float, largest: float) -> str:
    buffer = BytesIO()
    image.imsave(buffer, pixels, cmap=colours, vmin=smallest, vmax=largest, format="png")
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
