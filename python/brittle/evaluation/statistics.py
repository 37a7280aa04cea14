"""How sure a share of samples is, and whether two differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
_SEED = 0
_DRAWS = 9999
_MOST_COUNTS = 2_000_000  # drawn in all, which bounds time and memory with many groups


def wilson(count: int, samples: int, level: float = 0.95) -> Interval | None:
    """The interval of a share, ``count`` of ``samples``; None without samples.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> from brittle.evaluation.statistics import wilson
        >>> [round(bound, 3) for bound in wilson(62, 500)]
        [0.098, 0.156]
    """
    if samples == 0:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = count / samples
    middle = share + z * z / (2 * samples)
    half = z * sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    low, high = (middle - half) / (1 + z * z / samples), (middle + half) / (1 + z * z / samples)
    # A bound that is 0 or 1 is so by definition, not up to rounding.
    return (low if count else 0.0), (high if count < samples else 1.0)


def differ_by_chance(counts: Sequence[int], samples: Sequence[int]) -> float | None:
    """The p-value of groups whose shares ``counts / samples`` are all of one probability.

    Groups are dealt the same counts at random, all margins fixed (as in Fisher's exact test), 9999 times: how
    often is Pearson's statistic as large? So small groups are no worse than large ones, and the number of
    groups needs no correction. None where there is nothing to compare: fewer than two groups with samples.

    Example:
        >>> from brittle.evaluation.statistics import differ_by_chance
        >>> differ_by_chance([90, 50], [100, 100]) < 0.001, differ_by_chance([1, 3], [3, 3]) > 0.1
        (True, True)
    """
    kept = [(count, size) for count, size in zip(counts, samples, strict=True) if size]
    if len(kept) < 2:
        return None
    seen, sizes = (np.array(column, dtype=np.int64) for column in zip(*kept, strict=True))
    total, positive = int(sizes.sum()), int(seen.sum())
    if positive in (0, total):
        return 1.0
    draws = max(99, min(_DRAWS, _MOST_COUNTS // len(kept)))
    generator = np.random.Generator(np.random.PCG64(_SEED))
    dealt = generator.multivariate_hypergeometric(sizes, positive, size=draws, method="marginals")

    def spread(of: np.ndarray) -> np.ndarray:
        """Pearson's statistic, but for a factor that the margins fix."""
        return np.asarray(((of - sizes * (positive / total)) ** 2 / sizes).sum(-1))

    # As large as what was seen, up to rounding.
    extreme = int((spread(dealt) >= spread(seen) * (1 - 1e-9)).sum())
    return (1 + extreme) / (1 + draws)


def auroc_interval(area: float, positives: int, negatives: int, level: float = 0.95) -> Interval | None:
    """The interval of an area under a ROC curve; None without samples of both kinds.

    The areas that would not be surprised by the one that was seen, with the variance that they themselves
    would have: so the interval of an area of 1 reaches below it, the further the fewer samples there are.

    References:
        Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", part
        2, Statistics in Medicine 2006 (method 5); the variance of Hanley and McNeil, Radiology 1982.

    Example:
        >>> from brittle.evaluation.statistics import auroc_interval
        >>> [round(bound, 3) for bound in auroc_interval(1.0, 16, 16)]
        [0.873, 1.0]
    """
    from scipy.optimize import brentq

    if not positives or not negatives:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    typical = (positives + negatives) / 2 - 1

    def excess(true: float) -> float:
        """Squared distance from the area seen, less what is not surprising."""
        spread = true * (1 - true) * (1 + typical * ((1 - true) / (2 - true) + true / (1 + true)))
        return (area - true) ** 2 - z * z * spread / (positives * negatives)

    near = 1e-9  # at 0 and 1 themselves the variance is 0
    low = brentq(excess, 0.0, min(area, 1 - near)) if area > near else 0.0
    high = brentq(excess, max(area, near), 1.0) if area < 1 - near else 1.0
    return float(low), float(high)


def percents(bounds: Sequence[float] | None) -> str:
    """An interval in words: ``"9.8-15.6 %"``."""
    return "no interval" if bounds is None else f"{_share(bounds[0])}-{_share(bounds[1])} %"


def _share(share: float) -> str:
    """100 and 0 only if it is exactly that."""
    if 0.9995 <= share < 1:
        return ">99.9"
    return "<0.1" if 0 < share < 0.0005 else f"{100 * share:.1f}"
