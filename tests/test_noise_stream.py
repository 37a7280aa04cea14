"""Stream 1 is a promise: the same numbers everywhere and for ever, and good ones."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brittle.numpy
import emulated_cuda
import numpy as np
import pytest
import scipy.stats
import torch
from brittle import ops, reference
from test_gradient_step import supported_levels

# 1,000 Gaussian numbers in hexadecimal: 4 samples of 250 elements, seed 2026, draw 3, ids 0, 1, 2^32, 10^15.
GAUSSIANS = Path(__file__).parent / "data" / "gaussians_stream_1.txt"
IDS = [0, 1, 2**32, 10**15]

FUNCTIONS = ["uniform", "negative_log", "sine", "cosine", "gaussian first", "gaussian second"]
HASHES = {
    "uniform": 0xBFFFCD8000000000,
    "negative_log": 0x40CAEA5639413A28,
    "sine": 0x6114C3251E367640,
    "cosine": 0x19CB94551E367640,
    "gaussian first": 0x4E5B4AD97919D29A,
    "gaussian second": 0xCE32A709B68D84D0,
}


def test_a_thousand_gaussians_are_what_they_were() -> None:
    written = [float.fromhex(line) for line in GAUSSIANS.read_text().split()]
    expected = torch.tensor(written, dtype=torch.float64).float().reshape(4, 250)
    ids = torch.tensor(IDS)
    zeros = torch.zeros(4, 250)
    out = np.empty((4, 250), np.float32)
    emulated_cuda.noise(None, zeros.numpy(), 0, 1.0, 2026, ids.numpy(), 3, -math.inf, math.inf, out)
    doors = {
        "torch": ops.noise(zeros, "gaussian", 1.0, 2026, ids, 3),
        "numpy": torch.from_numpy(brittle.numpy.noise(zeros.numpy(), "gaussian", 1.0, 2026, ids.numpy(), 3)),
        "emulated CUDA": torch.from_numpy(out),
        "reference": reference.noise(zeros, "gaussian", 1.0, 2026, ids, 3),
    }
    if torch.cuda.is_available():
        doors["CUDA"] = ops.noise(zeros.cuda(), "gaussian", 1.0, 2026, ids.cuda(), 3).cpu()
    for name, numbers in doors.items():
        assert torch.equal(numbers, expected), name


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whole_domain_at_every_level(function: str) -> None:
    """All 2^32 inputs: one hash, the same at every SIMD level and as written down."""
    index, parts = FUNCTIONS.index(function), 16
    bounds = [part * 2**32 // parts for part in range(parts + 1)]
    found = {}
    for level in supported_levels():
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setenv("BRITTLE_SIMD", level)
            sums = pool.map(emulated_cuda.domain_hash, [index] * parts, bounds[:-1], bounds[1:])
            found[level] = sum(sums) % 2**64
    assert set(found.values()) == {HASHES[function]}, {k: hex(v) for k, v in found.items()}


def test_hash_sees_what_the_reference_says() -> None:
    """The hashed functions are the definition's: on a slice of the domain, input by input."""
    start, count = 0x7FFFF000, 0x3000
    words = torch.arange(start, start + count)
    sine, cosine = reference.sine_cosine(words)
    values = {
        "uniform": ((words >> 8) - 2**23).float() * 2.0**-23,
        "negative_log": reference.negative_log(words),
        "sine": sine,
        "cosine": cosine,
    }
    for function, value in values.items():
        bits = value.view(torch.int32).tolist()
        pairs = zip(bits, range(start, start + count), strict=True)
        expected = sum((b % 2**32 + 1) * (2 * w + 1) for b, w in pairs) % 2**64
        assert emulated_cuda.domain_hash(FUNCTIONS.index(function), start, start + count) == expected


class TestAHundredMillionGaussians:
    CHUNKS, ROWS, ELEMENTS = 10, 100, 100_000  # 10^8 draws

    def chunk(self, index: int, **options: int) -> torch.Tensor:
        ids = torch.arange(index * self.ROWS, (index + 1) * self.ROWS)
        zeros = torch.zeros(self.ROWS, self.ELEMENTS)
        return ops.noise(zeros, "gaussian", 1.0, options.get("seed", 1), ids, options.get("draw", 0))

    def test_moments_distribution_tails_and_lags(self) -> None:
        n = self.CHUNKS * self.ROWS * self.ELEMENTS
        powers = torch.zeros(4, dtype=torch.float64)
        edges = torch.tensor(scipy.stats.norm.ppf(np.arange(1, 1000) / 1000)).float()
        counts = torch.zeros(1000, dtype=torch.int64)
        tails = {3.0: 0, 4.0: 0, 5.0: 0, 5.5: 0}
        lags = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 7: 0.0, 1000: 0.0}
        neighbours = 0.0
        for index in range(self.CHUNKS):
            z = self.chunk(index)
            wide = z.double()
            powers += torch.stack([(wide**k).sum() for k in (1, 2, 3, 4)])
            counts += torch.bincount(torch.bucketize(z.flatten(), edges), minlength=1000)
            for limit in tails:
                tails[limit] += int((z.abs() > limit).sum())
            for lag in lags:
                lags[lag] += float((z[:, lag:] * z[:, :-lag]).double().sum())
            neighbours += float((z[1:] * z[:-1]).double().sum())
        mean, second, third, fourth = (powers / n).tolist()
        assert abs(mean) < 5 / math.sqrt(n)
        assert abs(second - 1) < 5 * math.sqrt(2 / n)
        assert abs(third) < 5 * math.sqrt(15 / n)
        assert abs(fourth - 3) < 5 * math.sqrt(96 / n)
        # Kolmogorov-Smirnov on a thousand cells, and chi-square of their counts.
        ranks = counts.cumsum(0)[:-1].double() / n
        distance = (ranks - torch.arange(1, 1000).double() / 1000).abs().max()
        assert distance < 1.95 / math.sqrt(n)
        chi_square = float(((counts.double() - n / 1000) ** 2 / (n / 1000)).sum())
        assert 1e-4 < scipy.stats.chi2(999).sf(chi_square) < 1 - 1e-4
        for limit, count in tails.items():
            expected = 2 * n * scipy.stats.norm.sf(limit)
            assert abs(count - expected) < 5 * math.sqrt(expected) + 1, (limit, count, expected)
        for lag, total in lags.items():
            assert abs(total) < 5 * math.sqrt(n), lag
        assert abs(neighbours) < 5 * math.sqrt(n)

    def test_draws_seeds_and_ids_are_independent(self) -> None:
        base = self.chunk(0)
        others = {
            "next draw": self.chunk(0, draw=1),
            "next seed": self.chunk(0, seed=2),
            "seed with the same low half": self.chunk(0, seed=1 + 2**32),
            "next ids": self.chunk(1),
        }
        n = base.numel()
        for name, other in others.items():
            for a, b in [(base, other), (base**2 - 1, other**2 - 1)]:
                correlation = float((a * b).double().sum()) / math.sqrt(
                    float((a.double() ** 2).sum()) * float((b.double() ** 2).sum())
                )
                assert abs(correlation) < 5 / math.sqrt(n), name
