"""How far a batch may stray by chance: for each measure its value, its p-value and its threshold.

All hold for batches of any size and account for the chance in the reference as well. The features' mean
aside, they assume nothing about the distributions:

==================== ============================= ===========================================================
measure              value                         under no drift
==================== ============================= ===========================================================
confidence, energy,  Kolmogorov-Smirnov statistic  at most Kolmogorov's law for n m / (n + m) samples
feature distance
predicted classes    chi-square of two samples     chi-square; the rarest classes are counted as one, so that
                                                   every count that is expected is 5 at least
feature mean         squared Mahalanobis distance  Gamma of the mean and the variance that follow from the
                                                   held-out samples' second and fourth moments
out-of-domain share  share beyond the held-out     Beta-binomial, as the 99 % distance is an order statistic
                     samples' 99 % distance
==================== ============================= ===========================================================

References:
    Rabanser, Guennemann and Lipton, "Failing loudly: an empirical study of methods for detecting dataset
    shift", NeurIPS 2019 (univariate tests on reduced features and on outputs, with Bonferroni's correction).
    Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020.
    Box, "Some theorems on quadratic forms applied in the study of analysis of variance problems", Annals of
    Mathematical Statistics 1954 (the Gamma).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from brittle.evaluation.drift.statistics import FeatureSpace, Sketch

_LEAST_EXPECTED = 5


@dataclass(frozen=True)
class Measure:
    """One way in which a batch may differ from the reference.

    Attributes:
        name: which.
        value: how far the batch is from the reference.
        threshold: the value above which it counts as drift; None where so small a batch can show none.
        p_value: how often a batch of this size without drift strays as far.
        rate: how often one without drift may be accused by this measure.
    """

    name: str
    value: float
    threshold: float | None
    p_value: float
    rate: float

    @property
    def drifted(self) -> bool:
        """Whether chance does not explain the value."""
        return self.p_value <= self.rate


def same_distribution(name: str, sketch: Sketch, values: Tensor, rate: float) -> Measure:
    """Whether float64 ``[N]`` values are spread like the reference's."""
    from scipy.stats import kstwo

    n, m = len(values), sketch.samples
    effective = max(1, n * m // (n + m))
    value = sketch.distance(values)
    return Measure(name, value, _kolmogorov(rate, effective), float(kstwo.sf(value, effective)), rate)


@lru_cache
def _kolmogorov(rate: float, samples: int) -> float:
    """What Kolmogorov's statistic exceeds at this rate: batches of one size ask again and again."""
    from scipy.stats import kstwo

    return float(kstwo.isf(rate, samples))


def same_classes(name: str, reference: Tensor, predicted: Tensor, rate: float) -> Measure:
    """Whether classes are predicted as often as in the reference, int64 ``[C]`` counts."""
    from scipy.stats import chi2

    n, m = len(predicted), int(reference.sum())
    group = _groups(reference, n)
    count = int(group.max()) + 1
    if count == 1:
        return Measure(name, 0.0, None, 1.0, rate)
    before = torch.zeros(count, dtype=torch.float64).index_add_(0, group, reference.double())
    seen = torch.bincount(predicted, minlength=len(reference)).double()
    now = torch.zeros(count, dtype=torch.float64).index_add_(0, group, seen)
    # Pearson's statistic of the table of two rows.
    value = (m * n * (before / m - now / n).square() / (before + now)).sum().item()
    freedom = count - 1
    return Measure(name, value, float(chi2.isf(rate, freedom)), float(chi2.sf(value, freedom)), rate)


def _groups(reference: Tensor, n: int) -> Tensor:
    """The group of each class: classes expected less than 5 times among n share the last one."""
    m = int(reference.sum())
    order = reference.argsort(descending=True, stable=True)
    expected = reference[order].double() * n / m
    alone = int((expected >= _LEAST_EXPECTED).sum())
    if alone < len(order) and alone > 0 and expected[alone:].sum() < _LEAST_EXPECTED:
        alone -= 1
    group = torch.empty_like(order)
    group[order] = torch.arange(len(order)).clamp(max=alone)
    return group


def same_mean(name: str, space: FeatureSpace, m: int, mean: Tensor, n: int, rate: float) -> Measure:
    """Whether the mean coordinates ``[K]`` of n samples are those of the m reference samples."""
    from scipy.stats import gamma

    value = (mean - space.mean).square().sum().item()
    each = 1 / n + 1 / m
    cumulant = max(0.0, space.fourth - space.variance**2 - 2 * space.variance_squared)
    expected = space.variance * each
    variance = 2 * space.variance_squared * each**2 + cumulant * (1 / n**3 + 1 / m**3)
    if expected == 0 or variance == 0:  # an outlier gave the only direction there is
        return Measure(name, value, None, 1.0, rate)
    shape, scale = expected**2 / variance, variance / expected
    p_value, threshold = gamma.sf(value, shape, scale=scale), gamma.isf(rate, shape, scale=scale)
    return Measure(name, value, float(threshold), float(p_value), rate)


def few_outside(name: str, space: FeatureSpace, outside: int, n: int, rate: float) -> Measure:
    """Whether no more of n samples than by chance lie beyond the reference's 99 % distance."""
    from scipy.stats import betabinom

    law = betabinom(n, space.distances.samples + 1 - space.rank, space.rank)
    chances = torch.from_numpy(law.pmf(torch.arange(n + 1).numpy()))
    tail = chances.flip(0).cumsum(0).flip(0) - chances  # of more than k
    allowed = int((tail > rate).sum())  # with more than that, P(at least as many) <= rate
    p_value = 1.0 if outside == 0 else tail[outside - 1].item()
    return Measure(name, outside / n, allowed / n if allowed < n else None, p_value, rate)
