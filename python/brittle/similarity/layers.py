"""How alike the layers of networks are, by what they compute on the same samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from brittle import _checks as check
from brittle.ops import pairwise_cosine
from brittle.progress import Tick, bar
from brittle.similarity.features import Inputs, LayerFeatures, Pool, inputs
from brittle.similarity.measures import CKA, METRICS
from brittle.target import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerSimilarity:
    """How alike every layer of one model is to every layer of another, or of itself.

    Attributes:
        values: float64 ``[L_a, L_b]``, on the CPU. NaN where a layer gave the same features for every sample
            (for ``"js"``: never), or any that are not finite.
        layers_a, layers_b: names of rows and columns, in the order in which the layers ran.
        metric: ``"cka"``, ``"cosine"``, ``"correlation"`` or ``"js"``.
        samples: how many samples it is estimated from.
    """

    values: Tensor
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    metric: str
    samples: int

    def table(self) -> str:
        """The values as text, a line for each of ``layers_a``; columns with long names are numbered."""
        rows, names = ([name or "(model)" for name in layers] for layers in (self.layers_a, self.layers_b))
        heads, legend = names, []
        if max(map(len, names)) > 10:
            heads = [str(i) for i in range(len(names))]
            numbered = [f"{i} {name}" for i, name in enumerate(names)]
            if self.layers_a == self.layers_b:
                rows = numbered
            else:
                legend = ["columns: " + ", ".join(numbered)]
        first, width = max(map(len, [*rows, self.metric])), max(8, *(len(head) + 2 for head in heads))
        lines = [f"{self.metric:<{first}}" + "".join(f"{head:>{width}}" for head in heads)]
        for name, values in zip(rows, self.values.tolist(), strict=True):
            lines.append(f"{name:<{first}}" + "".join(f"{value:>{width}.3f}" for value in values))
        return "\n".join(lines + legend)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a heat map with matplotlib (see :func:`plot_layers`); returns the axes."""
        from brittle.similarity.pictures import plot_layers

        return plot_layers(self, ax)


def layer_similarity(
    model_a: nn.Module | Target,
    data: Inputs,
    model_b: nn.Module | Target | None = None,
    metric: str = "cka",
    layers: str | Sequence[str] | None = None,
    layers_b: str | Sequence[str] | None = None,
    pool: Pool = "flatten",
    *,
    batch_size: int = 256,
    progress: bool | Tick = False,
) -> LayerSimilarity:
    r"""Compare all layers of a model with each other, or with those of another, in one pass over the data.

    With :math:`K` and :math:`L` the matrices of a batch's n samples for two layers, and sums over all
    batches:

    - ``"cka"``: linear CKA, :math:`\sum h(K, L) / \sqrt{\sum h(K, K) \sum h(L, L)}`, where the Gram matrix is
      :math:`K = X X^T` and h the unbiased estimate of HSIC. It does not change when a layer's features are
      rotated, shifted or scaled alike; 1 for layers that agree up to that, 0 on average for independent ones,
      and because unbiased possibly a little below. Each batch counts by its samples.
    - ``"cosine"``: :math:`K` and :math:`L` hold the cosines of :func:`brittle.ops.pairwise_cosine`; the
      cosine of the angle between what is off their diagonals, all batches together. In [-1, 1].
    - ``"correlation"``: Pearson's correlation between the same (representational similarity analysis).
    - ``"js"``: one less the Jensen-Shannon divergence, to base 2, between the histograms of all activations
      of the two layers, in [0, 1]: what values occur, not for which samples. Bins have the width of 1/8 of
      the power of two at or below a value, so that no range need be known; -0 counts as 0.

    Memory does not grow with the data: for each layer ``n^2`` float64 numbers of the batch (for ``"js"``,
    4096 counts), beside what one batch needs in the model. The order of batches changes results by rounding
    alone. The models are given back as they were (see :func:`brittle.fgsm`).

    Args:
        model_a: an ``nn.Module``, or a :class:`brittle.Target` of one.
        data: a tensor, a pair ``(x, y)``, or an iterable of batches, as for :meth:`LayerFeatures.stream`.
        model_b: another model for the same ``x``; by default ``model_a``.
        metric: see above.
        layers, layers_b: of either model, as for :class:`LayerFeatures`; ``layers_b`` are by default
            ``layers``.
        pool: from outputs to features, as for :class:`LayerFeatures`.
        batch_size: for tensors. Larger batches give ``"cka"`` less variance.
        progress: True for a progress bar on stderr (needs ``rich``), or a function that is called with the
            number of samples done and their total, None where it is not known.

    Returns:
        The similarities. Batches of fewer samples than an estimate needs (4 for ``"cka"``, 2 for ``"cosine"``
        and ``"correlation"``) are left out, and not counted in ``samples``.

    Raises:
        ValueError: an unknown metric or pool; a layer that does not exist, did not run, or gave no features;
            the layers that ran differ from batch to batch; no samples, or no batch with enough of them.

    References:
        Kornblith et al., "Similarity of neural network representations revisited", ICML 2019.
        Nguyen, Raghu and Kornblith, "Do wide and deep networks learn the same things?", ICLR 2021 (batches).
        Song et al., "Feature selection via dependence maximization", JMLR 2012 (the unbiased estimate).
        Székely and Rizzo, "Partial distance correlation with methods for dissimilarities", 2014 (U-centring).
        Kriegeskorte, Mur and Bandettini, "Representational similarity analysis", 2008.

    Example:
        >>> import torch
        >>> from brittle.similarity import layer_similarity
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> result = layer_similarity(model, torch.rand(64, 8))
        >>> result.values.shape, result.layers_a
        (torch.Size([3, 3]), ('0', '1', '2'))
        >>> bool((result.values.diagonal() - 1).abs().max() < 1e-9)
        True
    """
    op = "layer_similarity"
    check.check_choice(op, "metric", metric, tuple(METRICS))
    check.check_count(op, "batch_size", batch_size)
    measure = METRICS[metric]()
    a = LayerFeatures(model_a, layers, pool, measure.of, name=op)
    b = None
    if model_b is not None or layers_b is not None:
        model_b = model_a if model_b is None else model_b
        b = LayerFeatures(model_b, layers if layers_b is None else layers_b, pool, measure.of, name=op)
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    samples, total = 0, known_length(data)
    devices = gpus(a.target) if b is None else [*gpus(a.target), *gpus(b.target)]
    with bar(progress, op, total) as tick, torch.random.fork_rng(devices=devices):
        for x in inputs(op, data, batch_size, a.target):
            if len(x) < measure.least:
                continue
            rows = a.of(x)
            columns = rows if b is None else b.of(x)
            if names not in (None, (tuple(rows), tuple(columns))):
                raise ValueError(
                    f"{op}: the same layers must run for every batch; got {list(rows)} and {list(columns)} "
                    f"after {list(names[0])} and {list(names[1])}"
                )
            names = tuple(rows), tuple(columns)
            measure.add(_stacked(rows), None if b is None else _stacked(columns), len(x))
            samples += len(x)
            if tick is not None:
                tick(samples, total)
    if names is None:
        raise ValueError(
            f"{op}: data must have batches of >= {measure.least} samples for metric={metric!r}; got none"
        )
    values = measure.values().cpu()
    for layers, undefined in ((names[0], values.isnan().all(1)), (names[1], values.isnan().all(0))):
        nameless = [layer for layer, nan in zip(layers, undefined.tolist(), strict=True) if nan]
        if nameless:
            some = ", ".join(map(repr, nameless[:10])) + (", ..." if nameless[10:] else "")
            warnings.warn(
                f"{op}: similarity is undefined (nan) for layers whose features are the same for every "
                f"sample or not finite; got {some}",
                RuntimeWarning,
                stacklevel=2,
            )
        if b is None:
            break
    return LayerSimilarity(values, *names, metric, samples)


def linear_cka(features: Sequence[Tensor], features_b: Sequence[Tensor] | None = None) -> Tensor:
    """Unbiased linear CKA between all layers, from features that are at hand: one batch of n samples.

    Each layer's Gram matrix is made and centred once; all pairs then come from one product of the
    ``L x n(n - 1) / 2`` matrix of what is above the diagonals with itself.

    Features are shifted, which changes nothing, and scaled by powers of two before they are multiplied in
    float32 (float64 if they are that), so neither a large mean nor their scale costs digits; sums are
    float64.

    Args:
        features: for each layer ``[n, ...]``, floating point; n >= 4 and the same for all.
        features_b: of the layers to compare them with; by default ``features``.

    Returns:
        float64 ``[L_a, L_b]`` on the features' device, at most 1, possibly a little below 0; NaN for layers
        whose features are the same for every sample or not finite.

    Raises:
        ValueError: features are no tensors ``[n, ...]`` of one n >= 4, or not floating point.

    References:
        See :func:`layer_similarity`.

    Example:
        >>> import torch
        >>> from brittle.similarity import linear_cka
        >>> x = torch.rand(100, 32)
        >>> turned = 3 * x @ torch.linalg.qr(torch.randn(32, 32))[0] + 1
        >>> bool((linear_cka([x, turned]) - 1).abs().max() < 1e-5)
        True
    """
    op, measure = "linear_cka", CKA()
    layers, layers_b = list(features), [] if features_b is None else list(features_b)
    for part in (*layers, *layers_b):
        if not isinstance(part, Tensor) or not part.is_floating_point() or not part.dim():
            got = f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{op}: features must be floating-point tensors [n, ...]; got {got}")
    counts = sorted({len(part) for part in (*layers, *layers_b)})
    if not layers or (features_b is not None and not layers_b):
        raise ValueError(f"{op}: features must hold at least one layer; got none")
    if len(counts) > 1 or counts[0] < measure.least:
        raise ValueError(
            f"{op}: features must be of the same n >= {measure.least} samples in every layer; got n of "
            f"{', '.join(map(str, counts))}"
        )
    rows, columns = (_filled(measure, part) if part else None for part in (layers, layers_b))
    assert rows is not None
    measure.add(rows, columns, counts[0])
    return measure.values()


def layer_cosine(
    model: nn.Module | Target,
    data: Inputs,
    layers: str | Sequence[str] | None = None,
    pool: Pool = "flatten",
    *,
    batch_size: int = 256,
    budget: int = 1 << 30,
) -> dict[str, Tensor]:
    """The cosine of every sample with every other, as each layer sees them.

    A layer's features of the whole data set must be held until its matrix is made. As many layers as fit into
    ``budget`` bytes are held at a time, always at least one; the model runs over the data once for each such
    group. From N samples of D features each, a layer holds ``N D`` numbers of its own dtype, and as many
    again while its matrix is made. The batches' ``x`` are held too, so that a loader that shuffles, or an
    iterator that can be gone through only once, gives every layer the same samples in the same order.

    Args:
        model: an ``nn.Module``, or a :class:`brittle.Target` of one; given back as it was (see
            :func:`brittle.fgsm`).
        data: a tensor, a pair ``(x, y)``, or an iterable of batches, as for :meth:`LayerFeatures.stream`.
        layers, pool: as for :class:`LayerFeatures`.
        batch_size: for tensors.
        budget: bytes of features to hold at a time, at least 1.

    Returns:
        For each layer, in the order in which they run, ``[N, N]`` on the CPU, as
        :func:`brittle.ops.pairwise_cosine` gives it (float32, ``4 N^2`` bytes each, unless features are
        float64). Samples are in the order of the data.

    Raises:
        ValueError: an unknown pool; a layer that does not exist, did not run, or gave no features; features
            that differ in size from batch to batch; no samples.

    Example:
        >>> import torch
        >>> from brittle.similarity import layer_cosine
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        >>> cosines = layer_cosine(model, torch.rand(10, 8))
        >>> {name: matrix.shape for name, matrix in cosines.items()}
        {'0': torch.Size([10, 10]), '1': torch.Size([10, 10])}
    """
    op = "layer_cosine"
    check.check_count(op, "batch_size", batch_size)
    check.check_count(op, "budget", budget)

    def watch(some: str | Sequence[str] | None) -> LayerFeatures:
        return LayerFeatures(model, some, pool, name=op)

    features = watch(layers)
    seen: list[Tensor] = []
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=gpus(features.target)):
        batches: Iterable[Tensor] = _noted(inputs(op, data, batch_size, features.target), seen)
        order, later = _pass(features, watch, batches, budget, found)
        while later:
            _, later = _pass(watch(later), watch, seen, budget, found)
    return {layer: found[layer] for layer in order}


def _noted(batches: Iterable[Tensor], seen: list[Tensor]) -> Iterator[Tensor]:
    for x in batches:
        seen.append(x)
        yield x


def _pass(
    features: LayerFeatures,
    watch: Callable[[list[str]], LayerFeatures],
    batches: Iterable[Tensor],
    budget: int,
    found: dict[str, Tensor],
) -> tuple[list[str], list[str]]:
    """Fill in ``found`` for as many layers as may be held; return all layers, and those left for later."""
    held: dict[str, list[Tensor]] = {}
    order: list[str] = []
    for x in batches:
        rows = features.of(x)
        if not order:
            order = list(rows)
            held = {layer: [] for layer in order}
        for layer in sorted(rows.keys() ^ held.keys()):
            raise ValueError(f"{features.name}: the same layers must run for every batch; {layer!r} did not")
        for layer, part in rows.items():
            held[layer].append(part)
            if part.shape[1] != held[layer][0].shape[1]:
                raise ValueError(
                    f"{features.name}: layer {layer!r} must give as many features for every batch; got "
                    f"{part.shape[1]} after {held[layer][0].shape[1]}"
                )
        del rows
        dropped = False
        while len(held) > 1 and _size(held) > budget:
            held.popitem()
            dropped = True
        if dropped:
            features = watch(list(held))
    later = [layer for layer in order if layer not in held]
    for layer in list(held):
        found[layer] = pairwise_cosine(torch.cat(held.pop(layer))).cpu()
    return order, later


def _size(held: dict[str, list[Tensor]]) -> int:
    return sum(part.numel() * part.element_size() for parts in held.values() for part in parts)


def known_length(data: Inputs) -> int | None:
    """The number of samples, where the data is tensors."""
    first = data[0] if isinstance(data, tuple) and data else data
    return len(first) if isinstance(first, Tensor) and first.dim() else None


def gpus(target: Target) -> list[torch.device]:
    """The devices, beside the CPU, whose random state a run over the model may change."""
    return [target.device] if target.device is not None and target.device.type == "cuda" else []


def _filled(measure: CKA, layers: list[Tensor]) -> Tensor:
    """``[L, n (n - 1) / 2]``."""
    n = len(layers[0])
    rows = torch.empty(len(layers), n * (n - 1) // 2, dtype=torch.float64, device=layers[0].device)
    for row, part in zip(rows, layers, strict=True):
        row.copy_(measure.of(_rows(part)))
    return rows


def _rows(features: Tensor) -> Tensor:
    features = features.detach()
    return features.unsqueeze(1) if features.dim() == 1 else features.flatten(1)


def _stacked(rows: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(rows.values()))
