"""Near-duplicates of training samples in the test set, which make a test accuracy say too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.ops import pairwise_cosine_topk

View = Callable[[Tensor], Tensor]

# Of the training samples, ordered by the distance to their nearest neighbour: those that the tail is fitted
# to, and how many of them are only counted, because they may be duplicates themselves.
_TAIL, _COUNTED = 0.2, 0.02
_LEAST = 50


@dataclass(frozen=True)
class Leakage:
    """Pairs of samples that are more alike than different samples are.

    Attributes:
        test_index: int64 ``[P]``, places in the test set, most alike first.
        train_index: int64 ``[P]``, places in the training set. Within one set, the larger place of each pair.
        cosines: float64 ``[P]``.
        p_values: float64 ``[P]``, how often a clean sample's nearest neighbour is as near; NaN where the
            threshold was given.
        threshold: the least cosine that counts.
        false_alarm_rate: the chance of any pair on clean data; None where the threshold was given.
        exponent: how fast the chance of a neighbour nearer than d falls, d to this power, d = 1 - cosine:
            about half the intrinsic dimension of the data. None where the threshold was given.
        samples: M, how many samples were looked at.
    """

    test_index: Tensor
    train_index: Tensor
    cosines: Tensor
    p_values: Tensor
    threshold: float
    false_alarm_rate: float | None
    exponent: float | None
    samples: int

    def __len__(self) -> int:
        return len(self.cosines)

    @property
    def suspects(self) -> Tensor:
        """int64, the places in the test set of the samples that have a near-duplicate, ascending."""
        found: Tensor = self.test_index.unique()  # type: ignore[no-untyped-call]
        return found

    @property
    def share(self) -> float:
        """The share of test samples that have a near-duplicate; NaN without samples."""
        return len(self.suspects) / self.samples if self.samples else math.nan

    def table(self, most: int = 20) -> str:
        """The pairs as text, at most ``most`` of them."""
        lines = [f"{'test':>8}{'train':>8}{'cosine':>9}{'p':>10}"]
        columns = self.test_index, self.train_index, self.cosines, self.p_values
        for row in zip(*(column[:most].tolist() for column in columns), strict=True):
            lines.append("{:>8}{:>8}{:>9.4f}{:>10.2g}".format(*row))
        if len(self) > most:
            lines.append(f"... and {len(self) - most} more")
        lines.append(
            f"{len(self.suspects)} of {self.samples} samples have a near-duplicate: "
            f"cosine >= {self.threshold:.4f}"
        )
        return "\n".join(lines)


def near_duplicates(
    train: Tensor,
    test: Tensor | None = None,
    threshold: float | None = None,
    *,
    k: int = 5,
    false_alarm_rate: float = 0.01,
    ignore_contrast: bool | None = None,
    views: View | Sequence[View] = (),
) -> Leakage:
    """Find test samples that are copies, or altered copies, of training samples.

    Samples are compared by the cosine of what is left of them after the training set's mean is taken away: of
    raw images any two have a high cosine, because they share that mean.

    Which cosine is suspicious is learnt from the training set: its samples are each other's unrelated
    neighbours. The distance 1 - cosine of a clean sample to its nearest one of N others falls below a small d
    with a probability proportional to ``d ** exponent``, as volumes shrink. The exponent is the
    maximum-likelihood estimate from the nearest fifth of the training samples' own nearest distances (Hill
    1975), less 1.64 of its standard errors. Of the nearest 2 % only their number is used, so that a few
    duplicates inside the training set hardly move the threshold; they make it stricter, never looser. The
    threshold is where the expected number of clean samples with such a neighbour is
    ``false_alarm_rate``.

    So on clean data the chance of any pair being reported is at most about ``false_alarm_rate``, for all of
    ``test`` together, if training and test samples are independent draws of one distribution and its density
    is smooth at the distances in question. Samples of one patient, or frames of one film, are no independent
    draws: they are leaks, and are reported as such where they are near enough. In few dimensions unrelated
    samples come close, and only closer copies can be told from them.

    Args:
        train: ``[N, ...]``, floating point and finite: inputs, or features of a layer, which also see
            through changes that the network ignores. Anything behind N is flattened.
        test: ``[M, ...]`` of ``train``'s shape, dtype and device; by default ``train`` is searched itself,
            every sample among the others.
        threshold: a cosine to use instead of a calibrated one.
        k: the pairs reported of one test sample, at most; N or N - 1 if that is less.
        false_alarm_rate: see above, between 0 and 1.
        ignore_contrast: first take away each sample's own mean and length, so that brighter and paler copies
            count as equal; by default for samples of more than one dimension.
        views: a function ``[M, ...] -> [M, ...]`` or several, such as a flip or a shift by a pixel. A sample
            is then as near as its nearest view is, the plain one among them; the calibration sees the
            same views.

    Returns:
        The pairs, the most alike first, on the CPU.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range, or not finite; or the training set
            is too small (less than 50) or holds too many exact duplicates to calibrate a threshold.

    References:
        Hill, "A Simple General Approach to Inference About the Tail of a Distribution", Annals of Statistics
        3, 1975.
        Barz & Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates", Journal of Imaging 6,
        2020.

    Example:
        >>> import torch, brittle
        >>> draw = torch.Generator().manual_seed(0)
        >>> train, test = torch.randn(500, 40, generator=draw), torch.randn(100, 40, generator=draw)
        >>> test[7] = train[123] + 0.1 * torch.randn(40, generator=draw)
        >>> found = brittle.diagnosis.near_duplicates(train, test)
        >>> found.test_index.tolist(), found.train_index.tolist()
        ([7], [123])
    """
    op = "near_duplicates"
    _check(op, "train", train)
    if test is not None:
        _check(op, "test", test)
        if test.shape[1:] != train.shape[1:] or test.dtype != train.dtype or test.device != train.device:
            raise ValueError(
                f"{op}: test must be [M, {', '.join(map(str, train.shape[1:]))}], {train.dtype} on "
                f"{train.device}; got {list(test.shape)}, {test.dtype} on {test.device}"
            )
    if len(train) < 2:
        raise ValueError(f"{op}: train must hold at least 2 samples; got {len(train)}")
    check.check_count(op, "k", k)
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"{op}: threshold must be a cosine in [-1, 1]; got {threshold}")
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"{op}: false_alarm_rate must be between 0 and 1; got {false_alarm_rate}")
    functions = (views,) if callable(views) else tuple(views)
    contrast = train.dim() > 2 if ignore_contrast is None else ignore_contrast
    compare = _Comparison(op, train.detach(), contrast, functions)

    count = len(train) if test is None else len(test)
    own = compare.nearest(None, k) if test is None or threshold is None else None
    found = own if test is None else compare.nearest(test.detach(), k)
    assert found is not None
    cosines, indices = found
    exponent = None
    if threshold is None:
        assert own is not None
        # One candidate more than each training sample had, unless they are what is searched.
        more = 1.0 if test is None else len(train) / (len(train) - 1)
        tail = _Tail.of(op, 1 - own[0][:, 0], more)
        # Cosines are read to the rounding of their dtype; no threshold is above what a copy reaches.
        least = max(tail.distance(false_alarm_rate / max(count, 1)), 8 * torch.finfo(torch.float32).eps)
        threshold, exponent = 1 - least, tail.exponent
    alike = (cosines >= threshold) & (indices >= 0)
    rows, columns = alike.nonzero(as_tuple=True)
    values, partners = cosines[rows, columns], indices[rows, columns]
    if test is None:
        # Either of a pair may have found the other, or both.
        pairs = torch.stack([torch.minimum(rows, partners), torch.maximum(rows, partners)], 1)
        unique, place = pairs.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        best = torch.full((len(unique),), -torch.inf, dtype=values.dtype)
        values = best.scatter_reduce(0, place, values, "amax")
        rows, partners = unique[:, 0], unique[:, 1]
    order = values.argsort(descending=True, stable=True)
    values = values[order]
    return Leakage(
        test_index=rows[order],
        train_index=partners[order],
        cosines=values,
        p_values=torch.full_like(values, torch.nan) if exponent is None else tail.p_value(1 - values),
        threshold=float(threshold),
        false_alarm_rate=None if exponent is None else float(false_alarm_rate),
        exponent=exponent,
        samples=count,
    )


class _Comparison:
    """Samples as they are compared with the training set's."""

    def __init__(self, op: str, train: Tensor, contrast: bool, views: Sequence[View]) -> None:
        self._op, self._contrast, self._views = op, contrast, views
        self._train = train
        flat = self._flat(train)
        self._mean = flat.mean(0)
        self._base = (flat - self._mean).contiguous()

    def nearest(self, samples: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Cosines in float64 and places ``[M, k]``, on the CPU; of the training set among its others."""
        inputs = self._train if samples is None else samples
        alone = samples is None
        count = len(self._base)
        k = min(k, count - alone)
        if len(inputs) == 0:
            return torch.zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.int64)
        found = [self._search(None if alone else inputs, k)]
        for number, view in enumerate(self._views):
            seen = view(inputs)
            if not isinstance(seen, Tensor) or seen.shape != inputs.shape or seen.dtype != inputs.dtype:
                got = f"{seen.dtype} {list(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
                raise ValueError(
                    f"{self._op}: view {number} must return {inputs.dtype} {list(inputs.shape)}; got {got}"
                )
            _check(self._op, f"view {number}", seen)
            cosines, indices = self._search(seen, min(k + alone, count))
            if alone:
                itself = indices == torch.arange(len(inputs))[:, None]
                cosines = cosines.masked_fill(itself, -torch.inf)
            found.append((cosines, indices))
        return _merged(found, k) if self._views else found[0]

    def _search(self, inputs: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        if inputs is None:
            cosines, indices = pairwise_cosine_topk(self._base, k=k)
        else:
            queries = (self._flat(inputs) - self._mean).contiguous()
            cosines, indices = pairwise_cosine_topk(queries, self._base, k)
        return cosines.to("cpu", torch.float64), indices.cpu()

    def _flat(self, x: Tensor) -> Tensor:
        """``[N, D]`` in float32, or float64 for float64."""
        x = x.flatten(1)
        x = x if x.dtype == torch.float64 else x.float()
        if self._contrast:
            x = x - x.mean(1, keepdim=True)
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            x = x / torch.where(length > 0, length, 1.0)
        return x


def _merged(found: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The k best of several lists of neighbours; a neighbour that is in several counts once, at its best."""
    cosines = torch.cat([part[0] for part in found], 1)
    indices = torch.cat([part[1] for part in found], 1)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    by_place = indices.sort(dim=1, stable=True)
    again = torch.zeros_like(indices, dtype=torch.bool)
    again[:, 1:] = by_place.values[:, 1:] == by_place.values[:, :-1]
    repeated = torch.zeros_like(again).scatter(1, by_place.indices, again)
    cosines, order = cosines.masked_fill(repeated, -torch.inf).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)[:, :k]
    cosines = cosines[:, :k]
    lost = cosines == -torch.inf
    return cosines.masked_fill(lost, torch.nan), indices.masked_fill(lost, -1)


@dataclass(frozen=True)
class _Tail:
    """How often an unrelated nearest neighbour is nearer than d: ``share * (d / reach) ** exponent``."""

    distances: Tensor  # float64 [N], ascending
    reach: float
    share: float
    exponent: float
    more: float  # candidates, relative to those that the distances were measured among

    @classmethod
    def of(cls, op: str, distances: Tensor, more: float) -> _Tail:
        d = distances.clamp(min=0).sort().values
        count = len(d)
        if count < _LEAST:
            raise ValueError(
                f"{op}: train must hold at least {_LEAST} samples to calibrate a threshold; got {count}; "
                "give a threshold"
            )
        tail = math.ceil(_TAIL * count)
        rounding = 8 * torch.finfo(torch.float32).eps
        counted = max(math.ceil(_COUNTED * count), int((d <= rounding).sum()))
        if counted > tail // 2:
            raise ValueError(
                f"{op}: {counted} of {count} training samples have an exact duplicate in train, too many to "
                "calibrate a threshold; give one, 0.999999 to find these"
            )
        reach = float(d[tail])
        logs = (reach / d[counted:tail]).log()
        # The counted ones are known to be below the least of the others, and no more.
        exponent = float((tail - counted) / (logs.sum() + counted * logs[0]).clamp(min=1e-12))
        exponent *= max(1 - 1.645 / math.sqrt(tail - counted), 0.1)
        return cls(d, reach, tail / count, exponent, more)

    def distance(self, chance: float) -> float:
        """Below which a clean sample's nearest neighbour lies with this probability."""
        chance = chance / self.more
        if chance >= self.share:
            at = int(chance * len(self.distances))
            return float(self.distances[min(at, len(self.distances) - 1)])
        return float(self.reach * (chance / self.share) ** (1 / self.exponent))

    def p_value(self, d: Tensor) -> Tensor:
        """The probability, for each of ``d``, in [0, 1]."""
        d = d.clamp(min=0)
        below = torch.searchsorted(self.distances, d.contiguous(), right=True).double()
        chance = self.share * (d / self.reach) ** self.exponent
        return (self.more * torch.where(d < self.reach, chance, below / len(self.distances))).clamp(max=1)


def _check(op: str, name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor; got {type(x).__name__}")
    if x.dim() < 2 or x.flatten(1).shape[1] == 0:
        raise ValueError(f"{op}: {name} must be [N, ...] with something in each sample; got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, e.g. x.float() / 255; got {x.dtype}")
    lost = ~x.detach().isfinite().flatten(1).all(1)
    if lost.any():
        row = int(lost.int().argmax())
        raise ValueError(f"{op}: {name} must be finite; got NaN or infinity in sample {row}")
