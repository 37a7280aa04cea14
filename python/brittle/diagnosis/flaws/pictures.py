"""A diagnosis as a picture: layers against kinds of flaws, beside what was measured along the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brittle.diagnosis.flaws.result import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from brittle.diagnosis.flaws.result import Diagnosis

# From light to dark, so that they differ without their hue; the letters say the same without any colour.
_CELLS = {
    "none": ("#e9ecf0", ""),
    "mild": ("#f4b183", "m"),
    "severe": ("#8f2d00", "S"),
    None: ("#ffffff", "?"),
}
_SERIES = ("#0b62a8", "#c04a05", "#00775a", "#a03c7d", "#8a6a00", "#4b5f73")
_ROW, _LEAST, _MOST = 0.22, 2.4, 30.0  # inches
_MAP_WIDTH, _PANEL_WIDTH = 2.6, 2.1
_MOST_NAMES = 120


def drawn(diagnosis: Diagnosis) -> Figure:
    """Severities by layer and kind, and the measurements that there are, all in one row for each layer.

    Args:
        diagnosis: what :func:`brittle.diagnosis.diagnose` found.

    Returns:
        The figure; it belongs to no window.

    Example:
        >>> from brittle.diagnosis.flaws.pictures import drawn
        >>> from brittle.diagnosis.flaws.result import Diagnosis, Finding
        >>> finding = Finding("fc1", "dead", "severe", {"dead share": 0.5}, channels=(0, 2))
        >>> described = ("Linear 8 -> 4", "Linear 4 -> 2")
        >>> figure = drawn(Diagnosis(("fc1", "fc2"), described, {}, (finding,), {}, {}))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['fc1', 'fc2']
    """
    from matplotlib.figure import Figure

    from brittle.report.diagnosis import PANELS
    from brittle.report.figures.layers import draw_along_layers, present, row_axis

    measures = diagnosis.summary()["measures"]
    panels = present(PANELS, measures)
    widths = [_MAP_WIDTH, *[_PANEL_WIDTH] * len(panels)]
    longest = max((len(layer) for layer in diagnosis.layers), default=0)
    names = 0.4 + 0.07 * min(longest, 22)
    height = min(max(_LEAST, 1.5 + _ROW * len(diagnosis.layers)), _MOST)
    figure = Figure(figsize=(names + sum(widths), height), layout="constrained")
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _severity_map(axes[0], diagnosis)
    row_axis(axes[0], diagnosis.layers, most=_MOST_NAMES)
    for panel, place in zip(panels, axes[1:], strict=True):
        draw_along_layers(place, panel, measures, _SERIES)
        row_axis(place, diagnosis.layers)
        place.tick_params(axis="y", labelleft=False)
        place.tick_params(labelsize="small")
        place.set_xlabel(panel.title, size="small")
        place.grid(color="0.9")
        place.set_axisbelow(True)
        place.spines[["top", "right"]].set_visible(False)
        if len(panel.lines) > 1:
            place.legend(
                loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", frameon=False, borderpad=0
            )
    return figure


def _severity_map(axes: Axes, diagnosis: Diagnosis) -> None:
    from matplotlib.patches import Patch, Rectangle

    size = 8 if len(diagnosis.layers) * _ROW < _MOST else 5
    for row, layer in enumerate(diagnosis.layers):
        for column, kind in enumerate(KINDS):
            severity = diagnosis.severity(layer, kind)
            colour, letter = _CELLS[severity]
            edge = "0.75" if severity is None else "none"
            axes.add_patch(
                Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, facecolor=colour, edgecolor=edge, lw=0.5)
            )
            ink = "white" if severity == "severe" else "0.45" if severity is None else "black"
            axes.text(column, row, letter, ha="center", va="center", size=size, color=ink)
    axes.set_xlim(-0.55, len(KINDS) - 0.45)
    axes.set_xticks(range(len(KINDS)), KINDS, rotation=55, ha="left", rotation_mode="anchor")
    axes.tick_params(length=0, labelsize="small", top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    names = {"none": "none", "mild": "m mild", "severe": "S severe", None: "? not judged"}
    looks = [
        Patch(facecolor=colour, edgecolor="0.75", linewidth=0.5, label=names[severity])
        for severity, (colour, _) in _CELLS.items()
    ]
    axes.legend(
        handles=looks, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=2, fontsize="small", frameon=False,
        handlelength=1, columnspacing=1,
    )  # fmt: skip
