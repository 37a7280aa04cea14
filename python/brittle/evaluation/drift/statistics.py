"""The compact statistics that a reference is made of: of one number per sample, and of features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

QUANTILES = 201
_DIRECTIONS, _BASIS = 64, 2**16  # at most: directions, and their elements together
_LEAST_DIRECTIONS = 8
_OUTSIDE = 0.01


@dataclass(frozen=True)
class Sketch:
    """The distribution of one number over M samples, known exactly at no more than 201 of its values.

    Attributes:
        values: float64 ``[Q]``, ascending, all different: the values at evenly spread ranks.
        below, upto: float64 ``[Q]``, the share of samples below each of them, and at or below.
        samples: M.
    """

    values: Tensor
    below: Tensor
    upto: Tensor
    samples: int

    @classmethod
    def of(cls, values: Tensor) -> Sketch:
        """Of float64 ``[M]``, M >= 1."""
        ordered = values.sort().values
        ranks = torch.linspace(0, len(values) - 1, QUANTILES, dtype=torch.float64).round().long()
        knots: Tensor = ordered[ranks].unique()  # type: ignore[no-untyped-call]
        return cls(knots, *_shares(ordered, knots), len(values))

    def distance(self, values: Tensor) -> float:
        """The Kolmogorov-Smirnov statistic, with the largest gap taken over the sketch's values alone.

        So it is never above the statistic of the full samples.
        """
        below, upto = _shares(values.sort().values, self.values)
        return max((below - self.below).abs().max().item(), (upto - self.upto).abs().max().item())


def _shares(ordered: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    below = torch.searchsorted(ordered, knots).double() / len(ordered)
    upto = torch.searchsorted(ordered, knots, right=True).double() / len(ordered)
    return below, upto


@dataclass(frozen=True)
class FeatureSpace:
    """Where features lie: a centre, the directions in which they spread most, and the rest.

    Coordinates along the K directions have variance 1 on the samples it was fitted to; all other directions
    share one variance. The squared distance of a sample is that of its coordinates from 0 plus what is left
    of its features over that variance: Mahalanobis' distance for a covariance of low rank plus a multiple of
    the identity. How far samples lie that it was *not* fitted to, is counted on others that were held out.

    Attributes:
        centre: float64 ``[D]``.
        directions: float32 ``[K, D]``, orthonormal.
        spread: float64 ``[K]``, standard deviations along them.
        rest: variance in every other direction.
        mean: float64 ``[K]``, the mean coordinates of all reference samples.
        variance, variance_squared, fourth: of the coordinates of the held-out samples: the trace of their
            covariance S, that of S S, and the mean fourth power of their distance from their mean.
        distances: of the held-out samples.
        limit: a distance that about 1 % of the samples exceed.
        rank: the held-out samples at or within ``limit``.
    """

    centre: Tensor
    directions: Tensor
    spread: Tensor
    rest: float
    mean: Tensor
    variance: float
    variance_squared: float
    fourth: float
    distances: Sketch
    limit: float
    rank: int

    @classmethod
    def of(cls, fitted: Tensor, held_out: Tensor, mean: Tensor) -> FeatureSpace | None:
        """Fit to ``[A, D]``, count on ``[B, D]``; ``mean`` float64 ``[D]`` of all samples.

        None if the features to fit to never vary.
        """
        fitted = fitted.double()
        centre = fitted.mean(0)
        fitted = fitted - centre
        total = fitted.square().sum().item() / (len(fitted) - 1)
        size = fitted.shape[1]
        least = 1e-6 * total / size  # less variance is none: a feature that never varies has no direction
        if least == 0:
            return None
        most = min(_DIRECTIONS, max(_LEAST_DIRECTIONS, _BASIS // size), len(fitted) // 5, size)
        found, variances = _principal(fitted, most)
        kept = int((variances > least).sum())
        directions, variances = found[:kept].float(), variances[:kept]
        spread = variances.sqrt()
        rest = max((total - variances.sum().item()) / max(1, size - kept), least)
        coordinates, distances = _place(held_out, centre, directions, spread, rest)
        apart = coordinates - coordinates.mean(0)
        covariance = apart.T @ apart / (len(apart) - 1)
        rank = rank_of_limit(len(distances))
        return cls(
            centre=centre,
            directions=directions,
            spread=spread,
            rest=rest,
            mean=_place(mean[None], centre, directions, spread, rest)[0][0],
            variance=covariance.trace().item(),
            variance_squared=covariance.square().sum().item(),
            fourth=apart.square().sum(1).square().mean().item(),
            distances=Sketch.of(distances),
            limit=distances.sort().values[rank - 1].item(),
            rank=rank,
        )

    def place(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates ``[N, K]`` and distances ``[N]``, float64, of features ``[N, D]``."""
        return _place(features, self.centre, self.directions, self.spread, self.rest)


def rank_of_limit(samples: int) -> int:
    """Which of so many held-out distances, in ascending order, about 1 % of new samples exceed."""
    return min(samples, math.ceil((1 - _OUTSIDE) * (samples + 1)))


def _place(
    features: Tensor, centre: Tensor, directions: Tensor, spread: Tensor, rest: float
) -> tuple[Tensor, Tensor]:
    apart = features.double() - centre
    basis = directions.double()
    along = apart @ basis.T
    coordinates, left = along / spread, apart - along @ basis
    return coordinates, (coordinates.square().sum(1) + left.square().sum(1) / rest).sqrt()


def _principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The leading eigenvectors ``[K, D]`` and eigenvalues ``[K]`` of the covariance, by subspace iteration.

    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011.
    """
    width = min(x.shape[1], len(x), 2 * count + 8)
    start = np.random.default_rng(0).standard_normal((x.shape[1], width))
    basis = torch.linalg.qr(torch.from_numpy(start)).Q
    for _ in range(4):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    within = x @ basis
    values, vectors = torch.linalg.eigh(within.T @ within / (len(x) - 1))
    leading = values.argsort(descending=True)[:count]
    return (basis @ vectors[:, leading]).T, values[leading].clamp(min=0)


class Reservoir:
    """A random part of the rows that pass by, of bounded size; which rows, depends on how many passed alone.

    Args:
        elements: how many numbers may be held, as long as that is at least 200 rows.
    """

    def __init__(self, elements: int = 2**25) -> None:
        self._elements = elements
        self._draws = np.random.default_rng(1)
        self._rows: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._held = 0

    def add(self, rows: Tensor) -> None:
        """Rows ``[N, D]``."""
        self._rows.append(rows)
        self._keys.append(torch.from_numpy(self._draws.random(len(rows))))
        self._held += len(rows)
        if self._held > 2 * self._room(rows):
            self._shrink()

    def halves(self) -> tuple[Tensor, Tensor]:
        """Two random halves of what is held."""
        self._shrink()
        half = (self._held + 1) // 2
        return self._rows[0][:half], self._rows[0][half:]

    def _room(self, rows: Tensor) -> int:
        return min(10_000, max(200, self._elements // max(1, rows.shape[1])))

    def _shrink(self) -> None:
        rows, keys = torch.cat(self._rows), torch.cat(self._keys)
        chosen = keys.argsort()[: self._room(rows)]
        self._rows, self._keys = [rows[chosen]], [keys[chosen]]
        self._held = len(chosen)
