"""Backdoors planted in the training data, found in the features of a network trained on it.

The two classical searches cut every class in two and name one part. On clean data they name one as well,
for honest classes also fall into groups: ways of writing a seven, breeds of dog. Here a class is accused only
if a test says so whose rate of false alarms over the whole data set was chosen beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brittle import _checks as check

# Of the ridge beside the mean eigenvalue; with what it is added to, chosen on 270 networks of digits.
_TOTAL_RIDGE, _WITHIN_RIDGE = 0.5, 1.0
_COMPONENTS = 10  # Chen et al.'s number
_MOST_DIMENSIONS = 256
_LEAST_SAMPLES, _LEAST_CLASSES = 4, 4
_MARGIN = 1.5  # Tran, Li & Madry: so many times the expected number are named


@dataclass(frozen=True)
class ClassVerdict:
    """What was found in one class.

    Attributes:
        label: the class.
        samples: how many there are.
        statistic: what was tested, see the function; larger is more suspicious.
        group: the size of the smaller of its two groups.
        p_value: of this class alone: how often clean data gives as much.
        adjusted: the same for all classes together (Holm); compare this one with the false-alarm rate.
        flagged: whether it is at most the false-alarm rate.
        suspects: int64, the places of its suspects in the data; none where it is not flagged.
    """

    label: int
    samples: int
    statistic: float
    group: int
    p_value: float
    adjusted: float
    flagged: bool
    suspects: Tensor


@dataclass(frozen=True)
class Poisoning:
    """A search for poisoned samples.

    Attributes:
        method: ``"activation clustering"`` or ``"spectral signatures"``.
        calibration: ``"classes"``, where each class was measured by the others, or ``"trusted"``.
        false_alarm_rate: the chance of any flagged class on clean data, as it was asked for.
        classes: a verdict for each class, in the order of their labels.
        scores: float64 ``[N]``, how far each sample is on the suspicious side of its class: a sample's place
            along the line between the groups' centres (0 and 1), or the length of its component along the
            class's first singular vector. Ranks samples of one class; also in classes not flagged.
    """

    method: str
    calibration: str
    false_alarm_rate: float
    classes: tuple[ClassVerdict, ...]
    scores: Tensor

    @property
    def alarm(self) -> bool:
        """Whether any class is flagged."""
        return any(verdict.flagged for verdict in self.classes)

    @property
    def suspects(self) -> Tensor:
        """int64, the places of all suspects in the data, ascending."""
        return torch.cat([verdict.suspects for verdict in self.classes]).sort().values

    def precision_recall(self, poisoned: Tensor) -> tuple[float, float]:
        """How much of what is suspected is poisoned, and how much of what is poisoned is suspected.

        Args:
            poisoned: bool ``[N]``, the truth.

        Returns:
            Precision and recall; NaN for a share of nothing.

        Raises:
            ValueError: ``poisoned`` is not bool ``[N]``.
        """
        if poisoned.dtype != torch.bool or poisoned.shape != self.scores.shape:
            raise ValueError(
                f"precision_recall: poisoned must be bool [N] with N = {len(self.scores)}; "
                f"got {poisoned.dtype} {list(poisoned.shape)}"
            )
        found = int(poisoned.cpu()[self.suspects].sum())
        named, there = len(self.suspects), int(poisoned.sum())
        return found / named if named else math.nan, found / there if there else math.nan

    def table(self) -> str:
        """The verdicts as text, a line for each class."""
        lines = [
            f"{'class':>6}{'samples':>9}{'group':>7}{'statistic':>11}{'p':>10}{'adjusted':>10}  suspects"
        ]
        lines += [
            f"{c.label:>6}{c.samples:>9}{c.group:>7}{c.statistic:>11.3f}{c.p_value:>10.2g}{c.adjusted:>10.2g}"
            f"  {len(c.suspects) if c.flagged else '-'}"
            for c in self.classes
        ]
        return "\n".join(lines)


class _Split(NamedTuple):
    """A class in two groups."""

    statistic: float
    small: np.ndarray  # bool [n], the smaller group
    trusted: np.ndarray  # bool [t], the trusted samples that fall into it
    scores: np.ndarray  # float64 [n]
    named: np.ndarray  # bool [n], who is suspected if the class is flagged


_Splitter = Callable[[np.ndarray, np.ndarray], _Split]


def activation_clustering(
    features: Tensor,
    labels: Tensor | Sequence[int],
    false_alarm_rate: float = 0.05,
    seed: int = 0,
    *,
    trusted: tuple[Tensor, Tensor | Sequence[int]] | None = None,
) -> Poisoning:
    """Search each class for a second group of samples, such as those that a trigger brought there.

    Each class's features are measured in the units in which the *other* classes' vary (their covariance made
    the identity), reduced to 10 principal components and cut in two by 2-means; the smaller group is the
    suspect. Whitening is what makes it precise: honest groups differ in ways that other classes' samples
    differ in too, a trigger's do not. Whether a class is accused is decided in one of two ways.

    Without ``trusted``: the statistic is the logarithm of the distance of the two centres. A class is
    compared with the mean and standard deviation of the others by Student's t (Grubbs' test for an outlier).
    The promise rests on the clean classes' statistics being draws of one normal distribution, which a data
    set with one class unlike all others (two merged ones, say) breaks; and a poisoned class among the others
    widens the comparison, so that several are harder to find than one.

    With ``trusted``, clean samples of the same source that the network was not trained on: they are what the
    units are taken from, and the test is whether the smaller group has a larger share of the class here than
    among them (Fisher's exact test). Honest groups occur in both. That holds for classes of any kind, two are
    enough, it finds more, and a trigger may be in all of them; it assumes that training on a sample does not
    move it to the other group.

    A test of groups cannot tell intent: label errors that make a group of their own may raise an alarm too.

    Args:
        features: ``[N, D]``, of the training samples in the layer before the last, floating point and finite.
            Of more than 256 columns, their first 256 principal components are used.
        labels: ``[N]`` integers, the classes that the network was trained to give; at least 4 classes
            (2 with ``trusted``) of at least 4 samples each.
        false_alarm_rate: the chance of any flagged class on clean data, over all classes together (Holm's
            correction), between 0 and 1.
        seed: of 2-means' starting points.
        trusted: features ``[T, D]`` and labels ``[T]`` of trusted samples, some of every class.

    Returns:
        Verdicts and suspects.

    Raises:
        ValueError: an argument is of wrong shape, dtype or range, or not finite; or too few classes or
            samples.

    References:
        Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018
        (arXiv:1811.03728).
        Tang et al., "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
        Detection", USENIX Security 2021, on comparing classes.
        Grubbs, "Procedures for Detecting Outlying Observations in Samples", Technometrics 11, 1969.

    Example:
        >>> import torch, brittle
        >>> draw = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(6).repeat_interleave(60)
        >>> features = 3 * torch.eye(6, 16)[labels] + torch.randn(360, 16, generator=draw)
        >>> features[:12, 10] += 9  # a trigger's direction
        >>> found = brittle.diagnosis.activation_clustering(features, labels)
        >>> found.alarm, found.suspects.tolist() == list(range(12))
        (True, True)
    """

    def divide(x: np.ndarray, y: np.ndarray) -> _Split:
        axes = np.linalg.svd(x, full_matrices=False)[2][:_COMPONENTS].T
        x, y = x @ axes, y @ axes
        small = _two_groups(x, seed)
        one, other = x[small].mean(0), x[~small].mean(0)
        between = one - other
        distance = float(np.linalg.norm(between))
        if distance == 0:
            return _Split(_log(0.0), small, np.zeros(len(y), bool), np.zeros(len(x)), small)
        place, theirs = ((part - other) @ between / distance**2 for part in (x, y))
        return _Split(_log(distance), small, theirs > 0.5, place, small)

    return _search(
        "activation_clustering", features, labels, false_alarm_rate, seed, trusted, divide, within=False
    )


def spectral_signatures(
    features: Tensor,
    labels: Tensor | Sequence[int],
    expected_rate: float | None = None,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
    *,
    trusted: tuple[Tensor, Tensor | Sequence[int]] | None = None,
) -> Poisoning:
    """Search each class for samples that stretch it along one direction.

    A group of poisoned samples shifts the features of its class and so adds to their covariance: the class
    spreads more than others, most along its first singular vector. Each class's features are measured in
    the units in which samples of the *other* classes vary about their class's mean.

    Without ``trusted``: the statistic is the logarithm of the class's total variance, the sum of its squared
    singular values over the samples; it is compared with the other classes'. With ``trusted``: samples are
    divided along the first singular vector, and the smaller group's share among the trusted samples is
    compared. Both tests, what they assume and what they promise are as for :func:`activation_clustering`.

    Args:
        features: as for :func:`activation_clustering`.
        labels: as for :func:`activation_clustering`.
        expected_rate: the share of a poisoned class that is expected to be poisoned, between 0 and 1. Then
            the 1.5 times as many samples with the largest components along the first singular vector are
            named in a flagged class, as Tran, Li & Madry do. By default it is the smaller group.
        false_alarm_rate: the chance of any flagged class on clean data, over all classes together (Holm's
            correction), between 0 and 1.
        seed: of 2-means' starting points.
        trusted: as for :func:`activation_clustering`.

    Returns:
        Verdicts and suspects.

    Raises:
        ValueError: an argument is of wrong shape, dtype or range, or not finite; or too few classes or
            samples.

    References:
        Tran, Li & Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018 (arXiv:1811.00636).
        Hayase et al., "SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics", ICML 2021, on
        whitening.

    Example:
        >>> import torch, brittle
        >>> draw = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(6).repeat_interleave(60)
        >>> features = 3 * torch.eye(6, 16)[labels] + torch.randn(360, 16, generator=draw)
        >>> features[:12, 10] += 9  # a trigger's direction
        >>> found = brittle.diagnosis.spectral_signatures(features, labels)
        >>> found.alarm, found.suspects.tolist() == list(range(12))
        (True, True)
    """
    op = "spectral_signatures"
    if expected_rate is not None and not 0 < expected_rate < 1:
        raise ValueError(f"{op}: expected_rate must be between 0 and 1; got {expected_rate}")

    def divide(x: np.ndarray, y: np.ndarray) -> _Split:
        _, values, axes = np.linalg.svd(x, full_matrices=False)
        along, theirs = x @ axes[0], y @ axes[0]
        small = _two_groups(along[:, None], seed)
        one, other = along[small].mean(), along[~small].mean()
        statistic = _log(float((values**2).sum()) / len(x))
        named = small
        if expected_rate is not None:
            count = max(1, min(len(x) - 1, round(_MARGIN * expected_rate * len(x))))
            named = np.zeros(len(x), bool)
            named[np.argsort(-np.abs(along), kind="stable")[:count]] = True
        nearer = np.abs(theirs - one) < np.abs(theirs - other)
        return _Split(statistic, small, nearer, np.abs(along), named)

    return _search(op, features, labels, false_alarm_rate, seed, trusted, divide, within=True)


def _search(
    op: str,
    features: Tensor,
    labels: Tensor | Sequence[int],
    false_alarm_rate: float,
    seed: int,
    trusted: tuple[Tensor, Tensor | Sequence[int]] | None,
    divide: _Splitter,
    *,
    within: bool,
) -> Poisoning:
    """Every class whitened by the others, divided, tested."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"{op}: false_alarm_rate must be between 0 and 1; got {false_alarm_rate}")
    check.check_seed(op, seed)
    x, y = _given(op, "", features, labels)
    classes, counts = np.unique(y, return_counts=True)
    least = _LEAST_CLASSES if trusted is None else 2
    if len(classes) < least:
        hint = "" if trusted is not None else ", or 2 with trusted samples"
        raise ValueError(f"{op}: labels must name at least {least} classes{hint}; got {len(classes)}")
    if counts.min() < _LEAST_SAMPLES:
        few = classes[counts.argmin()]
        raise ValueError(
            f"{op}: every class must have at least {_LEAST_SAMPLES} samples; "
            f"got {counts.min()} of class {few}"
        )
    theirs, their_classes = x[:0], y[:0]
    if trusted is not None:
        if not isinstance(trusted, tuple) or len(trusted) != 2:
            raise ValueError(f"{op}: trusted must be a pair (features, labels); got {type(trusted).__name__}")
        theirs, their_classes = _given(op, "trusted ", *trusted)
        if theirs.shape[1] != x.shape[1]:
            raise ValueError(
                f"{op}: trusted features must be [T, D] with D = {x.shape[1]}; got {list(theirs.shape)}"
            )
        kept = np.isin(their_classes, classes)
        theirs, their_classes = theirs[kept], their_classes[kept]
        missing = np.setdiff1d(classes, their_classes)
        if len(missing):
            raise ValueError(f"{op}: trusted samples must be of every class; got none of class {missing[0]}")
    x, theirs = _reduced(x, theirs)
    # Trusted samples are clean: of the others, a trigger in several classes would hide itself.
    known, their_names = (x, y) if trusted is None else (theirs, their_classes)
    spread = _Spread.of(known, their_names, classes, within)
    splits = []
    for place, name in enumerate(classes):
        rows = y == name
        centre = x[rows].mean(0)
        scale = spread.whitening(place, known[their_names == name] - spread.centre)
        splits.append(divide((x[rows] - centre) @ scale, (theirs[their_classes == name] - centre) @ scale))
    if trusted is None:
        p_values = _outliers(np.array([split.statistic for split in splits]))
    else:
        p_values = np.array([_over_represented(split.small, split.trusted) for split in splits])
    adjusted = _holm(p_values)
    scores = np.empty(len(x))
    verdicts = []
    for name, split, p, together in zip(classes, splits, p_values, adjusted, strict=True):
        places = np.flatnonzero(y == name)
        scores[places] = split.scores
        flagged = bool(together <= false_alarm_rate)
        verdicts.append(
            ClassVerdict(
                label=int(name),
                samples=len(places),
                statistic=split.statistic,
                group=int(split.small.sum()),
                p_value=float(p),
                adjusted=float(together),
                flagged=flagged,
                suspects=torch.from_numpy(places[split.named] if flagged else places[:0]),
            )
        )
    return Poisoning(
        method=op.replace("_", " "),
        calibration="classes" if trusted is None else "trusted",
        false_alarm_rate=float(false_alarm_rate),
        classes=tuple(verdicts),
        scores=torch.from_numpy(scores),
    )


@dataclass(frozen=True)
class _Spread:
    """How features vary, all classes but any one of them taken together."""

    centre: np.ndarray  # [D], of all samples
    sums: np.ndarray  # [C, D], of each class's samples about it
    counts: np.ndarray  # [C]
    scatter: np.ndarray  # [D, D], of all samples
    within: bool  # about each class's own mean

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, classes: np.ndarray, within: bool) -> _Spread:
        centre = x.mean(0)
        x = x - centre
        sums = np.stack([x[y == name].sum(0) for name in classes])
        counts = np.array([(y == name).sum() for name in classes])
        return cls(centre, sums, counts, x.T @ x, within)

    def whitening(self, place: int, own: np.ndarray) -> np.ndarray:
        """``[D, D]``, multiplied from the right: makes the other classes' covariance nearly the identity.

        A ridge bounds what a direction counts in which the others hardly vary.
        """
        scatter = self.scatter - own.T @ own
        others = np.arange(len(self.counts)) != place
        sums, counts = self.sums[others], self.counts[others]
        if self.within:
            scatter = scatter - (sums / counts[:, None]).T @ sums
        else:
            scatter = scatter - np.outer(sums.sum(0), sums.sum(0)) / counts.sum()
        variances, axes = np.linalg.eigh(scatter / counts.sum())
        variances = variances.clip(min=0)
        ridge = (_WITHIN_RIDGE if self.within else _TOTAL_RIDGE) * variances.mean()
        if ridge == 0:
            return np.eye(len(variances))  # the others do not vary at all
        return np.asarray(axes / np.sqrt(variances + ridge))


def _given(
    op: str, whose: str, features: Tensor, labels: Tensor | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``[N, D]`` and int64 ``[N]``."""
    if not isinstance(features, Tensor) or features.dim() != 2:
        got = f"shape {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{op}: {whose}features must be [N, D]; got {got}")
    if not features.is_floating_point():
        raise ValueError(f"{op}: {whose}features must be floating point; got {features.dtype}")
    x = features.detach().to("cpu", torch.float64).numpy()
    if x.shape[1] == 0:
        raise ValueError(f"{op}: {whose}features must have at least one column; got shape {list(x.shape)}")
    lost = ~np.isfinite(x).all(1)
    if lost.any():
        raise ValueError(f"{op}: {whose}features must be finite; got NaN or infinity in row {lost.argmax()}")
    y = torch.as_tensor(labels).detach().cpu()
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != (len(x),):
        raise ValueError(
            f"{op}: {whose}labels must be integers [N] with N = {len(x)}; got {y.dtype} {list(y.shape)}"
        )
    return x, y.to(torch.int64).numpy()


def _reduced(x: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 256 columns, at a scale at which no square is too large or too small."""
    scale = np.abs(x).max()
    if scale > 0:
        x, theirs = x / scale, theirs / scale
    if x.shape[1] <= _MOST_DIMENSIONS:
        return x, theirs
    centre = x.mean(0)
    x, theirs = x - centre, theirs - centre
    axes = np.linalg.eigh(x.T @ x)[1][:, -_MOST_DIMENSIONS:]
    return x @ axes, theirs @ axes


def _two_groups(x: np.ndarray, seed: int) -> np.ndarray:
    """bool ``[n]``, the smaller group of 2-means; half of them where all samples are one."""
    if np.ptp(x, axis=0).max() == 0:
        return np.arange(len(x)) < len(x) // 2
    from sklearn.cluster import KMeans

    random = np.random.RandomState(np.random.MT19937(seed % 2**64))
    found = KMeans(2, n_init=10, random_state=random).fit_predict(x)
    sizes = np.bincount(found, minlength=2)
    # Of two halves, the one without the first sample: names must not depend on the starting points.
    smaller = int(sizes[1] < sizes[0]) if sizes[0] != sizes[1] else 1 - int(found[0])
    return np.asarray(found == smaller)


def _log(value: float) -> float:
    return math.log(max(value, np.finfo(np.float64).tiny))


def _outliers(values: np.ndarray) -> np.ndarray:
    """For each value the chance that a draw of the others' normal distribution is as large."""
    from scipy.stats import t

    p_values = np.ones(len(values))
    for place, value in enumerate(values):
        others = np.delete(values, place)
        deviation = others.std(ddof=1) * math.sqrt(1 + 1 / len(others))
        if deviation > 0:
            p_values[place] = t.sf((value - others.mean()) / deviation, len(others) - 1)
    return p_values


def _over_represented(here: np.ndarray, there: np.ndarray) -> float:
    """Fisher's exact test: the chance of so large a share here, were the shares the same."""
    from scipy.stats import fisher_exact

    table = [[here.sum(), (~here).sum()], [there.sum(), (~there).sum()]]
    return float(fisher_exact(table, "greater").pvalue)


def _holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted for all being tested: at most ``rate`` where Holm's procedure rejects at ``rate``."""
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(stepped).clip(max=1.0)
    return adjusted
