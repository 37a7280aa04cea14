"""How every figure looks: drawn by matplotlib, put into the page as SVG whose colours are the page's own.

Artists are drawn in stand-in colours, each of which becomes a CSS variable, so that one figure serves light,
dark and print. Marks are written out in place and nothing is clipped: no ids, so none that could clash.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import wraps
from io import BytesIO
from typing import Any, Concatenate, ParamSpec
from xml.etree import ElementTree

from cycler import cycler
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from brittle.report.text import clean

P = ParamSpec("P")
Element = ElementTree.Element

_VARIABLES = ("ink", "soft", "line", "card", "s1", "s2", "s3", "s4", "s5", "s6")
INK, SOFT, LINE, CARD, *_SERIES = (f"#a1b2c{digit:x}" for digit in range(len(_VARIABLES)))
SERIES = tuple(_SERIES)
BLUE, ORANGE = SERIES[:2]
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))

# In inches. A panel fills half the page's width, a small one a third; on a phone each fills it all.
PANEL, SMALL = (4.1, 2.75), (3.1, 2.4)

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9,
    "axes.linewidth": 1.0,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.02,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.handletextpad": 0.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "patch.linewidth": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "brittle",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "xtick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
}


def drawn(
    size: tuple[float, float],
) -> Callable[[Callable[Concatenate[Figure, P], str]], Callable[P, Markup]]:
    """Makes a function that draws on a figure, and returns what it shows in words, one that returns SVG."""

    def decorate(draw: Callable[Concatenate[Figure, P], str]) -> Callable[P, Markup]:
        @wraps(draw)
        def svg(*args: P.args, **kwargs: P.kwargs) -> Markup:
            # From matplotlib's defaults: a reader's own settings would change the figure.
            with style.context(["default", _STYLE]), warnings.catch_warnings():
                # The browser has glyphs that matplotlib, which only measures the text, has not.
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                figure = Figure(figsize=size, layout="constrained")
                label = draw(figure, *args, **kwargs)
                buffer = BytesIO()
                # Not savefig, which draws everything twice.
                canvas: Any = FigureCanvasSVG(figure)
                canvas.print_svg(buffer, metadata=_NO_METADATA)
            return _inline(buffer.getvalue(), label)

        return svg

    return decorate


def legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The names of the lines, above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        while columns > 1 and max(_row_lengths(labels, columns)) > 52 * figure.get_figwidth() / PANEL[0]:
            columns -= 1
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _row_lengths(labels: list[str], columns: int) -> list[int]:
    widths = [max(map(len, labels[column::columns]), default=0) + 7 for column in range(columns)]
    return [sum(widths)]


def percent_axis(axes: Axes, title: str, bottom: float = 0) -> None:
    """A vertical axis of shares in per cent, its name above it rather than on its side."""
    margin = 0.02 * (100 - bottom)
    axes.set_ylim(bottom - margin, 100 + margin)
    axes.set_title(f"{title} (%)")
    axes.set_yticks(range(int(bottom), 101, 25 if bottom < 50 else 10 if bottom < 75 else 5))


_NO_METADATA: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_KEPT = ("d", "points", "x", "y", "width", "height", "transform", "style", "viewBox")
_STAND_IN = re.compile(r"#a1b2c([0-9a-f])\b")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = "{http://www.w3.org/1999/xlink}href"


def _inline(svg: bytes, label: str) -> Markup:
    root = ElementTree.fromstring(svg)
    marks = {e.attrib["id"]: e for e in root.iter() if _tag(e) == "path" and "id" in e.attrib}
    drawing = _rebuilt(root, marks)
    drawing.attrib |= {
        "class": "plot",
        "role": "img",
        "aria-label": clean(label),
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return Markup(ElementTree.tostring(drawing, encoding="unicode"))


def _rebuilt(element: Element, marks: dict[str, Element]) -> Element:
    tag, attributes = _tag(element), {k: v for k, v in element.attrib.items() if k in _KEPT}
    if tag == "svg":
        attributes = {"viewBox": attributes["viewBox"]}
    elif tag == "use":
        mark = marks[element.attrib[_REFERENCE].removeprefix("#")]
        styles = (mark.get("style"), element.get("style"))
        tag, attributes = (
            "path",
            {
                "d": mark.attrib["d"],
                "transform": f"translate({element.get('x', 0)} {element.get('y', 0)})",
                "style": "; ".join(text for text in styles if text),
            },
        )
    rebuilt = ElementTree.Element(tag, {k: _tidied(k, v) for k, v in attributes.items()})
    rebuilt.text = element.text if tag == "text" else None
    for child in element:
        if _tag(child) in ("defs", "metadata"):
            continue
        part = _rebuilt(child, marks)
        # Groups without a meaning of their own are let go.
        rebuilt.extend(list(part) if part.tag == "g" and not part.attrib else [part])
    return rebuilt


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _tidied(name: str, value: str) -> str:
    if name == "style":
        value = re.sub(r"font-family:[^;]*(;|$)", "", value)
        value = _STAND_IN.sub(lambda found: f"var(--{_VARIABLES[int(found[1], 16)]})", value)
        return value.strip().rstrip(";")
    value = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    value = " ".join(value.split())
    return re.sub(r"rotate\(-?0 [^)]*\)", "", value).strip() if name == "transform" else value
