"""What is held of a layer for a batch, and the sums over batches that similarities of layers come from."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from brittle.ops import pairwise_cosine

# Elements of features that are centred and multiplied at a time: a CPU's cache, or enough to fill a GPU.
_TILE, _TILE_ON_DEVICE = 1 << 20, 1 << 26

# The standard deviation up to which cosines in float32 may differ by rounding alone.
_ROUNDING = 1e-6

# Of a histogram's bins: one for each sign, exponent and value of the first bits of the mantissa of a float32.
_MANTISSA_BITS = 3
_BINS = 1 << (1 + 8 + _MANTISSA_BITS)


class Measure(Protocol):
    """What is held of a layer for one batch, and the sums over batches that similarities come from."""

    least: int  # samples of a batch

    def of(self, features: Tensor) -> Tensor:
        """Of features ``[n, D]`` what is to be compared, ``[m]``."""

    def add(self, rows: Tensor, columns: Tensor | None, samples: int) -> None:
        """A batch: ``[L_a, m]`` and ``[L_b, m]``, or None to compare the former with each other."""

    def values(self) -> Tensor:
        """float64 ``[L_a, L_b]``."""


class Products:
    """Inner products of ``[m]`` between all layers, all pairs by one matrix product, summed over batches."""

    def __init__(self) -> None:
        self.cross = self.own = self.own_b = torch.zeros((), dtype=torch.float64)
        self.places = torch.empty(0)

    def above_diagonal(self, square: Tensor) -> Tensor:
        """``[n (n - 1) / 2]``: all there is to a symmetric matrix whose diagonal does not count."""
        n = len(square)
        if self.places.shape != (n * (n - 1) // 2,) or self.places.device != square.device:
            row, column = torch.triu_indices(n, n, 1, device=square.device)
            self.places = row * n + column
        return square.flatten().index_select(0, self.places)

    def add(self, rows: Tensor, columns: Tensor | None, samples: int) -> None:
        """As :meth:`Measure.add`."""
        weight = self.weight(samples)
        if columns is None:
            product = (rows @ rows.T).triu_()
            own = own_b = product.diagonal().clone()
            product += product.triu(1).T  # the same bits on both sides
        else:
            columns = columns.to(rows.device)
            product = rows @ columns.T
            own, own_b = rows.square().sum(1), columns.square().sum(1)
        self.cross = self.cross.to(rows.device) + weight * product
        self.own = self.own.to(rows.device) + weight * own
        self.own_b = self.own_b.to(rows.device) + weight * own_b

    def weight(self, samples: int) -> float:
        """Of a batch, given its samples."""
        return 1.0

    def values(self) -> Tensor:
        """As :meth:`Measure.values`."""
        return _normalised(self.cross, self.own, self.own_b)


class CKA(Products):
    """Unbiased linear CKA: centred Gram matrices."""

    least = 4

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Tensor] = {}

    def weight(self, samples: int) -> float:
        """Of a batch, given its samples."""
        # HSIC is the sum over all off-diagonal elements over n (n - 3), and we have one half of them; then n
        # because a batch counts by its samples.
        return 2 / (samples - 3)

    def of(self, features: Tensor) -> Tensor:
        """As :meth:`Measure.of`."""
        gram = self.gram(features).fill_diagonal_(0.0)
        n = len(gram)
        means = gram.sum(1) / (n - 2)
        gram += means.sum() / (n - 1)
        gram -= means
        gram -= means.unsqueeze(1)
        return self.above_diagonal(gram)

    def gram(self, features: Tensor) -> Tensor:
        """``X X^T`` in float64, of features less the mean sample's; overwritten by the next.

        A tile of columns at a time, so that shifting and scaling happen in the cache. The first row is taken
        off before the mean is, so that constant features give zero exactly.
        """
        n, width = features.shape
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        gram = self.scratch("gram", n, n, torch.float64, features).zero_()
        product = self.scratch("product", n, n, dtype, features)
        step = max(1, (_TILE if features.device.type == "cpu" else _TILE_ON_DEVICE) // n)
        for begin in range(0, width, step):
            columns = features[:, begin : begin + step]
            tile = self.scratch("tile", n, columns.shape[1], dtype, features).copy_(columns)
            tile -= tile[0].clone()
            exponent = math.frexp(max(map(abs, torch.stack(tile.aminmax()).tolist())))[1]
            # In float32's range, where even the fourth powers to come are in float64's.
            exponent = max(-126, min(126, exponent))
            tile *= math.ldexp(1.0, -exponent)
            tile -= tile.mean(0)
            torch.mm(tile, tile.T, out=product)
            gram.add_(product, alpha=math.ldexp(1.0, 2 * exponent))
        return gram

    def scratch(self, name: str, rows: int, columns: int, dtype: torch.dtype, like: Tensor) -> Tensor:
        """Uninitialised memory, the same again: fresh pages would cost more than the arithmetic on them."""
        count = rows * columns
        found = self.memory.get(name)
        if found is None or found.numel() < count or (found.dtype, found.device) != (dtype, like.device):
            found = self.memory[name] = torch.empty(count, dtype=dtype, device=like.device)
        return found[:count].view(rows, columns)


class Cosine(Products):
    """The cosines of all samples, compared by their own cosine."""

    least = 2

    def of(self, features: Tensor) -> Tensor:
        """As :meth:`Measure.of`."""
        return self.above_diagonal(pairwise_cosine(features)).double()


class Correlation(Cosine):
    """The same, compared by Pearson's correlation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.sum = self.sum_b = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor, columns: Tensor | None, samples: int) -> None:
        """As :meth:`Measure.add`."""
        super().add(rows, columns, samples)
        columns = rows if columns is None else columns.to(rows.device)
        self.count += rows.shape[1]
        self.sum = self.sum.to(rows.device) + rows.sum(1)
        self.sum_b = self.sum_b.to(rows.device) + columns.sum(1)

    def values(self) -> Tensor:
        """As :meth:`Measure.values`."""
        mean, mean_b = self.sum / self.count, self.sum_b / self.count
        variances = self.own / self.count - mean**2, self.own_b / self.count - mean_b**2
        variance, variance_b = (part.masked_fill(part <= _ROUNDING**2, 0.0) for part in variances)
        return _normalised(self.cross / self.count - torch.outer(mean, mean_b), variance, variance_b)


class JensenShannon:
    """Histograms of all activations."""

    least = 1

    def __init__(self) -> None:
        self.counts = self.counts_b = torch.zeros((), dtype=torch.int64)

    def of(self, features: Tensor) -> Tensor:
        """As :meth:`Measure.of`."""
        # Bits order values as sign and magnitude; adding 0 makes -0 into 0.
        bits = (features.float() + 0.0).view(torch.int32).flatten() >> (23 - _MANTISSA_BITS)
        return torch.bincount(bits & (_BINS - 1), minlength=_BINS)

    def add(self, rows: Tensor, columns: Tensor | None, samples: int) -> None:
        """As :meth:`Measure.add`."""
        self.counts = self.counts.to(rows.device) + rows
        self.counts_b = self.counts_b.to(rows.device) + (rows if columns is None else columns.to(rows.device))

    def values(self) -> Tensor:
        """As :meth:`Measure.values`."""
        shares, shares_b = (self._shares(counts) for counts in (self.counts, self.counts_b))
        entropy, entropy_b = _entropy(shares), _entropy(shares_b)
        mixed = torch.stack([_entropy((row + shares_b) / 2) for row in shares])
        divergence = mixed - (entropy.unsqueeze(1) + entropy_b) / 2
        return (1 - divergence).clamp(0.0, 1.0)

    def _shares(self, counts: Tensor) -> Tensor:
        exponents = torch.arange(_BINS, device=counts.device) >> _MANTISSA_BITS & 0xFF
        infinite = counts[:, exponents == 0xFF].any(1, keepdim=True)
        return (counts / counts.sum(1, keepdim=True, dtype=torch.float64)).masked_fill(infinite, torch.nan)


METRICS: dict[str, type[Measure]] = {
    "cka": CKA,
    "cosine": Cosine,
    "correlation": Correlation,
    "js": JensenShannon,
}


def _entropy(shares: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(shares).sum(1) / math.log(2)
    return entropy


def _normalised(cross: Tensor, own: Tensor, own_b: Tensor) -> Tensor:
    """Over the roots of both layers' own products; NaN where one of these is zero."""
    length, length_b = (part.where(part > 0, torch.nan).sqrt() for part in (own, own_b))
    similarity: Tensor = cross / torch.outer(length, length_b)
    return similarity.clamp(-1.0, 1.0)
