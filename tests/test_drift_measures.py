"""What drift is measured with: each measure against its definition, and its chances against simulation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from brittle.evaluation.drift import nulls, statistics
from scipy import stats
from sklearn.covariance import empirical_covariance
from torch import Tensor


def test_sketch_of_few_values_is_exact() -> None:
    values, others = torch.rand(150).double(), torch.rand(70).double().square()
    sketch = statistics.Sketch.of(values)
    assert sketch.distance(others) == pytest.approx(stats.ks_2samp(values, others).statistic, abs=1e-12)
    assert sketch.distance(values) == 0


def test_sketch_of_many_values_is_a_lower_bound() -> None:
    values, others = torch.randn(20_000).double(), torch.randn(3000).double() * 1.1 + 0.05
    sketch, exact = statistics.Sketch.of(values), stats.ks_2samp(values, others).statistic
    assert len(sketch.values) == 201
    assert exact - 0.005 <= sketch.distance(others) <= exact


def test_sketch_with_ties() -> None:
    values = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] * 50).double()
    sketch = statistics.Sketch.of(values)
    assert sketch.values.tolist() == [0.5, 1.0]
    assert sketch.distance(torch.ones(40).double()) == pytest.approx(0.1)
    assert sketch.distance(torch.full((40,), 0.7).double()) == pytest.approx(0.9)
    assert sketch.distance(torch.full((40,), 1.1).double()) == 1
    assert sketch.distance(torch.full((40,), 0.4).double()) == 1


def test_same_distribution() -> None:
    values, others = torch.randn(3000).double(), torch.randn(60).double() + 0.3
    measure = nulls.same_distribution("energy", statistics.Sketch.of(values), others, 0.01)
    exact = stats.ks_2samp(values, others, method="exact")
    assert measure.value == pytest.approx(exact.statistic, abs=0.005)
    assert measure.p_value == pytest.approx(exact.pvalue, rel=0.25)
    assert stats.kstwo.sf(measure.threshold, 3000 * 60 // 3060) == pytest.approx(0.01)
    assert measure.drifted == (measure.value > measure.threshold)


def test_same_classes() -> None:
    reference, seen = torch.tensor([300, 500, 200]), torch.tensor([0] * 40 + [1] * 35 + [2] * 25)
    measure = nulls.same_classes("classes", reference, seen, 0.01)
    table = np.array([[300, 500, 200], [40, 35, 25]])
    expected = stats.chi2_contingency(table, correction=False)
    assert measure.value == pytest.approx(expected.statistic)
    assert measure.p_value == pytest.approx(expected.pvalue)
    assert measure.threshold == pytest.approx(9.2103, abs=1e-4)
    # Of 100, class 1 alone is expected five times or more; 0, 2 and 3 are counted as one.
    rare = torch.tensor([45, 900, 30, 25])
    group = nulls._groups(rare, 100)
    assert group.tolist() == [1, 0, 1, 1]
    # Two of 100 are too few for a count of their own, and join the next.
    assert nulls._groups(torch.tensor([500, 20, 480]), 100).tolist() == [0, 1, 1]
    # Nothing can be said about the classes of two samples.
    measure = nulls.same_classes("classes", reference, seen[:2], 0.01)
    assert (measure.p_value, measure.threshold, measure.drifted) == (1.0, None, False)


@pytest.mark.parametrize("features", [3, 12, 200])
def test_features_are_placed_by_mahalanobis_distance(features: int) -> None:
    mix = torch.randn(features, features) / features**0.5 + 0.3 * torch.eye(features)
    fitted, held_out = (torch.randn(1000, features) @ mix + 2 for _ in range(2))
    space = statistics.FeatureSpace.of(fitted, held_out, held_out.double().mean(0))
    assert space is not None
    kept = min(features, 64)
    directions = space.directions.double()
    assert torch.allclose(directions @ directions.T, torch.eye(kept).double(), atol=1e-5)
    coordinates, distances = space.place(held_out)
    if features <= 64:
        inverse = np.linalg.inv(empirical_covariance(fitted.double().numpy()) * 1000 / 999)
        apart = (held_out.double() - fitted.double().mean(0)).numpy()
        expected = np.sqrt(np.einsum("ni,ij,nj->n", apart, inverse, apart))
        np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-4)
    else:
        exact = np.linalg.eigvalsh(np.cov(fitted.double().numpy().T))[::-1][:64]
        np.testing.assert_allclose(space.spread.numpy()[:32] ** 2, exact[:32], rtol=0.02)
        assert space.place(fitted)[1].square().mean().item() == pytest.approx(features, rel=0.02)
    assert torch.allclose(coordinates.mean(0), space.mean, atol=1e-9)
    covariance = np.atleast_2d(np.cov(coordinates.numpy().T))
    assert space.variance == pytest.approx(np.trace(covariance))
    assert space.variance_squared == pytest.approx(np.trace(covariance @ covariance))
    apart = coordinates - coordinates.mean(0)
    assert space.fourth == pytest.approx(apart.square().sum(1).square().mean().item())
    assert int((distances > space.limit).sum()) == 1000 - 991 == 1000 - space.rank


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize(
    ("power", "often"), [(1.0, (0.17, 0.23)), (4.0, (0.05, 0.23))], ids=["normal", "heavy"]
)
def test_the_null_of_the_feature_mean(n: int, power: float, often: tuple[float, float]) -> None:
    # Powers of normal variables: the fourth's mean is far from normal, even of many samples.
    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> Tensor:
        return torch.randn(count, 6, generator=generator).double() ** power

    held_out = features(20_000)
    space = statistics.FeatureSpace.of(features(20_000), held_out, held_out.mean(0))
    assert space is not None
    means = space.place(features(4000 * n))[0].reshape(4000, n, -1).mean(1)
    p_values = [nulls.same_mean("mean", space, 20_000, mean, n, 0.01).p_value for mean in means]
    assert often[0] < sum(p <= 0.2 for p in p_values) / 4000 < often[1]
    assert sum(p <= 0.01 for p in p_values) / 4000 < 0.025


def test_few_outside() -> None:
    held_out = torch.randn(500, 2)
    space = statistics.FeatureSpace.of(torch.randn(500, 2), held_out, held_out.double().mean(0))
    assert space is not None
    assert space.rank == 496
    measure = nulls.few_outside("share", space, 4, 50, 0.01)
    law = stats.betabinom(50, 5, 496)
    assert measure.value == 0.08
    assert measure.p_value == pytest.approx(law.sf(3))
    allowed = round(measure.threshold * 50)
    assert law.sf(allowed) <= 0.01 < law.sf(allowed - 1)
    assert nulls.few_outside("share", space, 0, 50, 0.01).p_value == 1
    assert nulls.few_outside("share", space, 1, 1, 1e-6).threshold is None


def test_reservoir_is_a_bounded_random_part() -> None:
    rows = torch.arange(50_000.0)[:, None].expand(-1, 100)
    chosen = []
    for size in (33, 5000):
        reservoir = statistics.Reservoir(elements=100_000)
        for part in rows.split(size):
            reservoir.add(part)
            assert reservoir._held <= 2000 + size
        chosen.append(torch.cat(reservoir.halves())[:, 0])
    assert torch.equal(*chosen)
    assert len(chosen[0].unique()) == 1000
    assert chosen[0].mean().item() == pytest.approx(25_000, abs=2500)
    assert chosen[0][:500].mean().item() == pytest.approx(25_000, abs=3500)


@pytest.mark.parametrize("variance", [0.0, 1e-170])
def test_a_mean_without_spread_accuses_nobody(variance: float) -> None:
    """Where the only spread was an outlier's; squares of what is left may be no numbers above 0."""
    held_out = torch.randn(200, 2).double()
    space = statistics.FeatureSpace.of(torch.randn(500, 2), held_out, held_out.mean(0))
    space = replace(space, variance=variance, variance_squared=variance**2, fourth=variance**2)
    found = nulls.same_mean("mean", space, 500, torch.ones(2).double(), 50, 0.01)
    assert (found.p_value, found.threshold, found.drifted) == (1.0, None, False)
