"""Pictures of similarity: between samples, and between layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from brittle.similarity.layers import LayerSimilarity

# Tick labels that still can be read on an axis of the usual size, and values that can inside cells.
_MOST_TICKS, _MOST_VALUES = 20, 12

_METRIC_NAMES = {
    "cka": "linear CKA",
    "cosine": "cosine of similarities",
    "correlation": "correlation of similarities",
    "js": "1 - Jensen-Shannon divergence",
}


def plot_matrix(
    cosines: Tensor,
    labels: Any = None,
    order: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a similarity matrix with matplotlib: samples ordered by cluster, with the clusters' edges.

    Colours reach from the smallest value to 1, or from -1 to 1 where there are values below -0.1.

    Args:
        cosines: ``[N, N]`` in [-1, 1]; NaN is grey.
        labels: the cluster or class of each sample, integers ``[N]``, or what
            :func:`brittle.similarity.cluster` returns. They come in ascending order.
        order: a permutation of the samples, int64 ``[N]``; by default that of the clusters where they know
            one, else that of the data. With labels it holds inside each of them.
        ax: axes to draw on; by default a new figure's.

    Returns:
        The axes.

    Raises:
        ValueError: ``cosines`` is not square, or labels or order do not fit it.

    Example:
        >>> import brittle, torch
        >>> x = torch.rand(20, 8)
        >>> axes = brittle.similarity.plot_matrix(brittle.ops.pairwise_cosine(x), torch.arange(20) % 3)
        >>> axes.get_xlabel()
        'sample, ordered by cluster'
    """
    op = "plot_matrix"
    if cosines.dim() != 2 or len(cosines) != cosines.shape[1] or not len(cosines):
        raise ValueError(f"{op}: cosines must be [N, N] with N >= 1; got shape {list(cosines.shape)}")
    n = len(cosines)
    if order is None and hasattr(labels, "order"):
        order = labels.order()
    groups = None if labels is None else torch.as_tensor(getattr(labels, "labels", labels)).cpu()
    if groups is not None and (groups.shape != (n,) or groups.is_floating_point()):
        got = f"{groups.dtype} {list(groups.shape)}"
        raise ValueError(f"{op}: labels must be integers [N] with N = {n}; got {got}")
    rows = torch.arange(n) if order is None else torch.as_tensor(order).cpu()
    if rows.shape != (n,) or not torch.equal(rows.sort().values, torch.arange(n)):
        got = f"{rows.dtype} {list(rows.shape)}"
        raise ValueError(f"{op}: order must hold each of 0 .. {n - 1} once; got {got}")
    if groups is not None:
        rows = rows[groups[rows].argsort(stable=True)]
    values = cosines.detach().cpu().double()[rows][:, rows]
    ax = _axes(ax)
    # Layers before training find all samples alike: on a scale from 0 there would be nothing to see.
    finite = values[values.isfinite()]
    lowest = min(float(finite.min()), 0.999) if len(finite) else 0.0
    image = _heat_map(ax, values, lowest, "cosine similarity")
    axis = "sample" if groups is None else "sample, ordered by cluster"
    ax.set(xlabel=axis, ylabel=axis)
    if groups is not None:
        colour = "black" if image.get_clim()[0] < -0.1 else "white"
        sizes = [int((groups == label).sum()) for label in sorted(set(groups.tolist()))]
        for edge in (total - 0.5 for total in itertools.accumulate(sizes[:-1])):
            ax.axhline(edge, color=colour, linewidth=0.8)
            ax.axvline(edge, color=colour, linewidth=0.8)
    return ax


def plot_layers(result: LayerSimilarity, ax: Axes | None = None) -> Axes:
    """Draw the similarity of layers as a heat map with matplotlib, the first layers at the top left.

    Colours reach from 0 to 1, or from -1 where there are values below -0.1, so that pictures compare; NaN is
    grey. Of many layers, evenly spaced ones are named; of few, the values are written into the cells.

    Args:
        result: what :func:`layer_similarity` returns.
        ax: axes to draw on; by default a new figure's.

    Returns:
        The axes.

    Example:
        >>> import torch
        >>> from brittle.similarity import layer_similarity, plot_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        >>> axes = plot_layers(layer_similarity(model, torch.rand(64, 8)))
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['0', '1']
    """
    ax = _axes(ax)
    image = _heat_map(ax, result.values, 0.0, _METRIC_NAMES[result.metric])
    for axis, names in ((ax.xaxis, result.layers_b), (ax.yaxis, result.layers_a)):
        places = _thinned(len(names))
        axis.set_ticks(places, [names[place] or "(model)" for place in places])
    ax.tick_params(labelsize="small")
    ax.tick_params(axis="x", labelrotation=90)
    ax.set(xlabel="layer", ylabel="layer")
    if max(result.values.shape) <= _MOST_VALUES:
        for i, row in enumerate(result.values.tolist()):
            for j, value in enumerate(row):
                # Legible on either end of the colours; NaN's grey counts as bright.
                red, green, blue, _ = image.to_rgba(value)
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                colour = "white" if dark else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", size=8, color=colour)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _heat_map(ax: Axes, values: Tensor, lowest: float, title: str) -> AxesImage:
    """From ``lowest`` to 1 with a colour bar; from -1, in two colours, where something is negative."""
    from matplotlib import colormaps

    negative = bool((values < -0.1).any())  # unbiased estimates of 0 are as often below it
    colours = colormaps["RdBu_r" if negative else "viridis"].with_extremes(bad="0.6")
    image = ax.imshow(values.numpy(), cmap=colours, vmin=-1.0 if negative else lowest, vmax=1.0)
    image.set_interpolation("nearest")
    figure = ax.get_figure()
    assert figure is not None
    # Inside the axes' own frame, so as to be as high as the matrix.
    figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.05, 1.0)), label=title)
    return image


def _thinned(count: int) -> Sequence[int]:
    """Places of evenly spaced layers."""
    return range(0, count, -(-count // _MOST_TICKS))
