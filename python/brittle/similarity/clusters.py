"""Which samples a layer takes for alike: clusters, redundancy and rank of its cosine similarities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from brittle import _checks as check

METHODS = ("spectral", "kmeans")


@dataclass(frozen=True)
class Clusters:
    """A partition of N samples by their cosine similarities.

    Attributes:
        labels: int64 ``[N]``, 0 to k - 1, the largest cluster first; of equally large ones the one that holds
            the earliest sample.
        k: how many clusters were asked for. Where fewer samples differ, some of them stay empty.
        method: ``"spectral"`` or ``"kmeans"``.
        silhouette: mean silhouette coefficient at distance 1 - cosine, in [-1, 1] (Rousseeuw 1987); NaN where
            all samples came into one cluster.
        closeness: float64 ``[N]``, each sample's mean cosine with its cluster's samples, itself included.
    """

    labels: Tensor
    k: int
    method: str
    silhouette: float
    closeness: Tensor

    def agreement(self, labels: Tensor | Sequence[int]) -> float:
        """The adjusted Rand index with another partition: 1 for the same one, about 0 for an unrelated one.

        Args:
            labels: ``[N]`` integers, classes for instance. Their names play no part.

        Returns:
            At most 1; below 0 for less agreement than chance gives (Hubert & Arabie 1985).

        Raises:
            ValueError: ``labels`` are not N integers.
        """
        from sklearn.metrics import adjusted_rand_score

        other = _labels("Clusters.agreement", labels, len(self.labels))
        return float(adjusted_rand_score(other.numpy(), self.labels.numpy()))

    def order(self) -> Tensor:
        """int64 ``[N]``, the samples cluster by cluster, the most typical of each first.

        ``cosines[order][:, order]`` has its clusters along the diagonal.
        """
        keys = -self.closeness.numpy(), self.labels.numpy()
        return torch.from_numpy(np.lexsort(keys))


def cluster(cosines: Tensor, k: int, method: str = "spectral", seed: int = 0) -> Clusters:
    """Partition samples by their cosine similarities.

    ``"spectral"`` cuts the graph whose edges weigh ``(1 + cosine) / 2`` into k parts that little weight joins
    (von Luxburg 2007). Cutting off negative cosines instead finds about the same clusters, but leaves zero
    rows and opposed groups without any edge, and then the method has no unique answer. ``"kmeans"`` takes a
    sample's row of the matrix for its coordinates: samples are alike if they are alike to the same others.

    Args:
        cosines: ``[N, N]``, symmetric, values in [-1, 1], as
            :func:`brittle.ops.pairwise_cosine` gives it.
        k: clusters, 2 to N - 1.
        method: ``"spectral"`` or ``"kmeans"``. Both need scikit-learn.
        seed: of the starting points. One seed gives one result.

    Returns:
        The clusters, on the CPU.

    Raises:
        ValueError: ``cosines`` is no such matrix or holds a NaN, which a sample leaves whose features hold a
            NaN or an infinity; or another argument is out of range.

    References:
        von Luxburg, "A tutorial on spectral clustering", Statistics and Computing 17, 2007.
        Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis",
        Journal of Computational and Applied Mathematics 20, 1987.

    Example:
        >>> import torch, brittle
        >>> from brittle.similarity import cluster
        >>> directions = torch.eye(3).repeat_interleave(4, 0)
        >>> noise = 0.1 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        >>> found = cluster(brittle.ops.pairwise_cosine(directions + noise), k=3)
        >>> found.labels.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    """
    op = "cluster"
    matrix = _matrix(op, cosines)
    count = len(matrix)
    check.check_choice(op, "method", method, METHODS)
    check.check_count(op, "k", k, 2)
    if k > count - 1:
        raise ValueError(f"{op}: k must be 2 to N - 1 = {count - 1}; got {k}")
    check.check_seed(op, seed)
    # Both halves alike to the last bit: scikit-learn warns of any difference.
    matrix = (matrix + matrix.T) / 2
    random = np.random.RandomState(np.random.MT19937(seed % 2**64))
    from sklearn.cluster import KMeans, SpectralClustering

    if method == "spectral":
        estimator = SpectralClustering(k, affinity="precomputed", assign_labels="kmeans", random_state=random)
        found = estimator.fit_predict((1 + matrix) / 2)
    else:
        found = KMeans(k, n_init=10, random_state=random).fit_predict(matrix)
    labels = _renumbered(found)
    members = labels[:, None] == np.arange(k)
    closeness = ((matrix @ members) / members.sum(0).clip(min=1))[np.arange(count), labels]
    return Clusters(
        labels=torch.from_numpy(labels),
        k=k,
        method=method,
        silhouette=_silhouette(matrix, labels),
        closeness=torch.from_numpy(closeness),
    )


@overload
def redundancy(cosines: Tensor) -> float: ...


@overload
def redundancy(cosines: Mapping[str, Tensor]) -> dict[str, float]: ...


def redundancy(cosines: Tensor | Mapping[str, Tensor]) -> float | dict[str, float]:
    """The mean cosine of two different samples: 1 where a layer tells none apart, 0 where all are orthogonal.

    Args:
        cosines: ``[N, N]`` with N >= 2, or several such matrices by name of their layer.

    Returns:
        A number in [-1, 1], or one for each layer.

    Raises:
        ValueError: a matrix is not square, too small, or holds a NaN.

    Example:
        >>> import torch
        >>> from brittle.similarity import redundancy
        >>> redundancy(torch.tensor([[1.0, 0.25], [0.25, 1.0]]))
        0.25
    """
    if isinstance(cosines, Mapping):
        return {name: redundancy(matrix) for name, matrix in cosines.items()}
    matrix = _matrix("redundancy", cosines)
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))


def effective_rank(matrix: Tensor, *, gram: bool = False) -> float:
    """How many directions a matrix really uses: exp of the entropy of its singular values' shares.

    k equal singular values, the others zero, give exactly k; shares that decay give less than the rank. The
    features are taken as they are, not centred.

    Args:
        matrix: features ``[N, D]``; or with ``gram=True`` their inner products ``[N, N]``, whose eigenvalues
            are the squares of the features' singular values. Of a cosine matrix that is the effective rank
            of the features at length 1.
        gram: whether ``matrix`` holds inner products. Its eigenvalues below N times the machine epsilon of
            its dtype times the largest are rounding errors and count as 0.

    Returns:
        A number from 1 to min(N, D); 0 for a matrix of zeros.

    Raises:
        ValueError: the matrix is empty, not a floating-point matrix, not finite, or not square though
            ``gram``.

    References:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Example:
        >>> import torch
        >>> from brittle.similarity import effective_rank
        >>> round(effective_rank(torch.eye(3)), 6)
        3.0
    """
    op = "effective_rank"
    if gram:
        squares = np.linalg.eigvalsh(_matrix(op, matrix, least=1))
        smallest = len(squares) * torch.finfo(matrix.dtype).eps * squares.max()
        values = np.sqrt(np.where(squares > smallest, squares, 0.0))
    else:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2 or not matrix.is_floating_point():
            raise ValueError(f"{op}: matrix must be floating-point [N, D]; got {_described(matrix)}")
        if matrix.numel() == 0:
            raise ValueError(f"{op}: matrix must hold at least one element; got shape {list(matrix.shape)}")
        features = matrix.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(features).all():
            raise ValueError(f"{op}: matrix must be finite; got NaN or infinity")
        values = np.linalg.svd(features, compute_uv=False)
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return float(math.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True)
class LayerSummary:
    """What each layer makes of one set of samples, in figures.

    Attributes:
        layers: L names, in the order given.
        redundancy: mean cosine of two different samples, one for each layer.
        effective_rank: of the features at length 1, one for each layer.
        within: mean cosine of two different samples of one class; empty without labels.
        between: mean cosine of two samples of different classes; empty without labels.
    """

    layers: tuple[str, ...]
    redundancy: tuple[float, ...]
    effective_rank: tuple[float, ...]
    within: tuple[float, ...] = ()
    between: tuple[float, ...] = ()

    def table(self) -> str:
        """The figures as text, a line for each layer."""
        columns = {"redundancy": self.redundancy, "effective rank": self.effective_rank}
        if self.within:
            columns |= {"within class": self.within, "between classes": self.between}
        width = max(map(len, ("layer", *self.layers)))
        lines = [f"{'layer':<{width}}" + "".join(f"{name:>17}" for name in columns)]
        for row, layer in enumerate(self.layers):
            lines.append(
                f"{layer:<{width}}" + "".join(f"{values[row]:>17.4f}" for values in columns.values())
            )
        return "\n".join(lines)


def layer_summary(
    cosines: Mapping[str, Tensor], labels: Tensor | Sequence[int] | None = None
) -> LayerSummary:
    """Redundancy and effective rank of every layer, and with labels how well it separates the classes.

    Args:
        cosines: a matrix ``[N, N]`` for each layer by name, of the same samples.
        labels: ``[N]`` integers, the samples' classes.

    Returns:
        The figures. A mean over no pairs, such as within classes of one sample each, is NaN.

    Raises:
        ValueError: no layers, or a matrix or the labels do not fit.

    Example:
        >>> import torch
        >>> from brittle.similarity import layer_summary
        >>> print(layer_summary({"fc": torch.eye(4)}, labels=[0, 0, 1, 1]).table())
        layer       redundancy   effective rank     within class  between classes
        fc              0.0000           4.0000           0.0000           0.0000
    """
    op = "layer_summary"
    if not isinstance(cosines, Mapping) or not cosines:
        raise ValueError(f"{op}: cosines must hold at least one matrix by layer; got {_described(cosines)}")
    matrices = {name: _matrix(op, matrix) for name, matrix in cosines.items()}
    ranks = tuple(effective_rank(matrix, gram=True) for matrix in cosines.values())
    within: tuple[float, ...] = ()
    between: tuple[float, ...] = ()
    if labels is not None:
        classes = _labels(op, labels, len(next(iter(matrices.values())))).numpy()
        same = classes[:, None] == classes
        for name, matrix in matrices.items():
            if matrix.shape != same.shape:
                raise ValueError(
                    f"{op}: {name} must be [N, N] with N = {len(same)}; got {list(matrix.shape)}"
                )
        apart = ~np.eye(len(same), dtype=bool)
        within = tuple(_mean(matrix[same & apart]) for matrix in matrices.values())
        between = tuple(_mean(matrix[~same]) for matrix in matrices.values())
    return LayerSummary(tuple(cosines), tuple(redundancy(cosines).values()), ranks, within, between)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _matrix(op: str, cosines: Tensor, least: int = 2) -> np.ndarray:
    """float64 ``[N, N]`` without a NaN."""
    if not isinstance(cosines, Tensor) or cosines.dim() != 2 or cosines.shape[0] != cosines.shape[1]:
        raise ValueError(f"{op}: cosines must be [N, N]; got {_described(cosines)}")
    if not cosines.is_floating_point():
        raise ValueError(f"{op}: cosines must be floating point; got {cosines.dtype}")
    if len(cosines) < least:
        raise ValueError(f"{op}: cosines must be of at least {least} samples; got {len(cosines)}")
    matrix = cosines.detach().to("cpu", torch.float64).numpy()
    lost = ~np.isfinite(matrix)
    if lost.any():
        # The sample to blame has no cosine at all, also not with itself.
        row = int(lost.sum(1).argmax())
        raise ValueError(
            f"{op}: cosines must be finite; got NaN or infinity for sample {row}, whose features may not be"
        )
    return matrix


def _labels(op: str, labels: Tensor | Sequence[int], count: int) -> Tensor:
    found = torch.as_tensor(labels)
    if found.is_floating_point() or found.is_complex() or found.shape != (count,):
        raise ValueError(f"{op}: labels must be integers [N] with N = {count}; got {_described(found)}")
    return found.detach().cpu()


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """The largest first, then the one that begins first: names that do not depend on the method's order."""
    names, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    ranks = np.empty(int(names.max()) + 1, dtype=np.int64)
    ranks[names[np.lexsort((first, -sizes))]] = np.arange(len(names))
    return np.asarray(ranks[labels])


def _silhouette(matrix: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    if labels.max() == 0:
        return math.nan
    distance = (1 - matrix).clip(min=0)
    np.fill_diagonal(distance, 0.0)  # a zero row's cosine with itself is 0
    return float(silhouette_score(distance, labels, metric="precomputed"))
