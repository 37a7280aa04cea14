"""Layer features and layer similarity: definitions in float64, closed forms, and the model left alone."""

import dataclasses
import gc
import importlib.util
import itertools
import math
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import brittle
import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from brittle import reference
from brittle.similarity import (
    LayerFeatures,
    LayerSimilarity,
    layer_cosine,
    layer_similarity,
    linear_cka,
    plot_layers,
    plot_matrix,
)
from brittle.similarity import measures as implementation
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from test_target import assert_same_state, picky, state
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

METRICS = ("cka", "cosine", "correlation", "js")
EXAMPLE = Path(__file__).parent.parent / "examples" / "layer_similarity.py"

Batches = list[Tensor]


# ---- definitions ----


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """Song et al. 2012, equation 5."""
    n = len(k)
    k, m = (g.clone().fill_diagonal_(0.0) for g in (k, m))
    one = torch.ones(n, dtype=torch.float64)
    ends = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return ((k @ m).trace() + ends) / (n * (n - 3))


def gram(x: Tensor) -> Tensor:
    x = x.double().flatten(1)
    x = x - x.mean(0)  # it changes nothing but the rounding
    return x @ x.T


def cka_definition(a: Batches, b: Batches) -> float:
    def total(left: Batches, right: Batches) -> Tensor:
        return sum(len(x) * hsic(gram(x), gram(y)) for x, y in zip(left, right, strict=True))  # type: ignore

    return float(total(a, b) / (total(a, a) * total(b, b)).sqrt())


def off_diagonal(batches: Batches) -> np.ndarray:
    parts = []
    for x in batches:
        cosines = reference.pairwise_cosine(x.flatten(1))
        parts.append(cosines[~torch.eye(len(x), dtype=torch.bool)])
    return torch.cat(parts).numpy()


def cosine_definition(a: Batches, b: Batches) -> float:
    u, v = off_diagonal(a), off_diagonal(b)
    return float(u @ v / math.sqrt(float(u @ u) * float(v @ v)))


def correlation_definition(a: Batches, b: Batches) -> float:
    return float(np.corrcoef(off_diagonal(a), off_diagonal(b))[0, 1])


def js_definition(a: Batches, b: Batches) -> float:
    def shares(batches: Batches) -> dict[tuple[float, int, int], float]:
        counts: dict[tuple[float, int, int], int] = {}
        values = torch.cat([x.flatten() for x in batches]).tolist()
        for value in values:
            mantissa, exponent = math.frexp(value)
            # The mantissa is in [1/2, 1): eighths of the power of two below are its sixteenths.
            key = math.copysign(1.0, value) if value else 0.0, exponent, math.floor(abs(mantissa) * 16)
            counts[key] = counts.get(key, 0) + 1
        return {key: count / len(values) for key, count in counts.items()}

    def divergence(p: dict, q: dict) -> float:  # type: ignore[type-arg]
        return sum(v * math.log2(v / ((v + q.get(key, 0.0)) / 2)) for key, v in p.items())

    p, q = shares(a), shares(b)
    return 1 - (divergence(p, q) + divergence(q, p)) / 2


DEFINITIONS = {
    "cka": cka_definition,
    "cosine": cosine_definition,
    "correlation": correlation_definition,
    "js": js_definition,
}


# ---- linear CKA ----


def draw(n: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    n=st.integers(8, 40),
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    mean=st.sampled_from([0.0, 3.0, -1000.0]),
    seed=st.integers(0, 1000),
)
def test_linear_cka_is_its_definition(
    n: int, widths: list[int], dtype: torch.dtype, mean: float, seed: int
) -> None:
    layers = [draw(n, width, seed + i, dtype) for i, width in enumerate(widths)]
    layers[0] = layers[0] + mean
    found = linear_cka(layers)
    assert found.dtype == torch.float64
    allowed = 1e-9 if dtype == torch.float64 else 2e-5
    for (i, x), (j, y) in itertools.product(enumerate(layers), repeat=2):
        expected = cka_definition([x], [y])
        if math.isnan(expected):  # of half precision the large mean leaves nothing else
            assert math.isnan(found[i, j])
        else:
            assert found[i, j].item() == pytest.approx(expected, abs=allowed)
    torch.testing.assert_close(linear_cka(layers[:1], layers), found[:1], rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("n", [4, 5])
def test_the_smallest_batches(n: int) -> None:
    for seed in range(20):
        x, y = draw(n, 9, seed, torch.float64), draw(n, 2, seed + 100, torch.float64)
        assert linear_cka([x, y])[0, 1].item() == pytest.approx(cka_definition([x], [y]), abs=1e-8)


def test_wide_features_are_multiplied_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [draw(12, 700, 1), draw(12, 333, 2) * 1e-3, draw(12, 5, 3)]
    layers[1][:, 200:] *= 1e6  # tiles of other scales
    whole = linear_cka(layers)
    monkeypatch.setattr(implementation, "_TILE", 12 * 64)
    torch.testing.assert_close(linear_cka(layers), whole, rtol=0, atol=1e-5)
    assert whole[0, 1].item() == pytest.approx(cka_definition([layers[0]], [layers[1]]), abs=1e-5)


def test_what_all_samples_share_costs_no_digits() -> None:
    """Of wide features the Gram matrix is nearly that of the shift alone, unless the shift is the mean."""
    x, y = draw(64, 2000, 1), draw(64, 2000, 2)
    expected = cka_definition([x], [y])
    assert linear_cka([x, y])[0, 1].item() == pytest.approx(expected, abs=3e-8)
    assert linear_cka([x + 50, y - 7])[0, 1].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-60, 2.0**60, 2.0**120])
def test_powers_of_two_change_nothing(scale: float) -> None:
    x, y = draw(20, 30, 1), draw(20, 9, 2)
    if scale < 2.0**-126:  # so that subnormal numbers hold them too
        x = (x * 8).round()
    expected = linear_cka([x, y])
    torch.testing.assert_close(linear_cka([x * scale, y]), expected, rtol=0, atol=1e-12)


def test_rotations_shifts_and_scales_change_nothing() -> None:
    x, y = draw(50, 20, 1), draw(50, 20, 2) + 0.5 * draw(50, 20, 1)
    turn = torch.linalg.qr(draw(20, 20, 3).double())[0].float()
    expected = linear_cka([x, y])[0, 1]
    assert 0.1 < expected < 0.5
    for changed in (x @ turn, -7.3 * x, x + 100 * draw(1, 20, 4), 0.01 * x @ turn + 5):
        assert linear_cka([changed, y])[0, 1].item() == pytest.approx(expected.item(), abs=2e-5)
        assert linear_cka([changed, x])[0, 1].item() == pytest.approx(1.0, abs=2e-5)
    # A general linear map does change it.
    assert abs(linear_cka([x * torch.linspace(0.1, 3, 20), x])[0, 1] - 1) > 0.05


def test_independent_features_have_mean_zero_where_the_biased_estimate_does_not() -> None:
    pairs = [(draw(16, 60, 2 * i), draw(16, 60, 2 * i + 1)) for i in range(300)]
    values = torch.stack([linear_cka(list(pair))[0, 1] for pair in pairs])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert values.std() < 0.2
    centred = [[gram(x) for x in pair] for pair in pairs]
    biased = torch.stack([(k * m).sum() / (k.norm() * m.norm()) for k, m in centred])
    assert biased.mean() > 0.7


def test_features_without_variation_or_not_finite_are_nan_alone() -> None:
    x, y = draw(10, 6, 1), draw(10, 3, 2)
    bad = [torch.full((10, 7), 0.1), torch.zeros(10, 2), x.clone(), x.clone()]
    bad[2][3, 1], bad[3][0, 0] = math.nan, math.inf
    found = linear_cka([x, *bad, y])
    expected = torch.full((6, 6), True)
    expected[0, 0] = expected[0, 5] = expected[5, 0] = expected[5, 5] = False
    assert torch.equal(found.isnan(), expected)
    assert found[0, 5].item() == pytest.approx(cka_definition([x], [y]), abs=1e-5)


def test_linear_cka_takes_any_shape_and_leaves_it_alone() -> None:
    x = draw(9, 24, 1).reshape(9, 2, 3, 4).requires_grad_()
    before = x.detach().clone()
    z = draw(9, 1, 2).squeeze(1)
    found = linear_cka([x, z])
    assert not found.requires_grad
    assert torch.equal(x, before)
    assert found[0, 1].item() == pytest.approx(cka_definition([before], [z.unsqueeze(1)]), abs=1e-5)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "hold at least one layer; got none"),
        ([torch.rand(3, 5)], "the same n >= 4 samples in every layer; got n of 3"),
        ([torch.rand(8, 5), torch.rand(9, 5)], "got n of 8, 9"),
        (
            [torch.ones(8, 5, dtype=torch.int64)],
            r"floating-point tensors \[n, ...\]; got torch.int64 \[8, 5\]",
        ),
        ([torch.tensor(1.0)], r"got torch.float32 \[\]"),
        ([np.ones((8, 5))], "got ndarray"),
    ],
)
def test_linear_cka_refuses(features: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^linear_cka: features must .*{message}"):
        linear_cka(features)
    with pytest.raises(ValueError, match=r"^linear_cka: features must"):
        linear_cka([torch.rand(8, 2)], features)


# ---- layer similarity ----


class Recorded(nn.Module):
    """Features that are given: row i of ``table`` for the sample whose only input is i."""

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Embedding.from_pretrained(table) for table in tables)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


TABLES = [draw(30, 12, 1), draw(30, 5, 2).relu(), draw(30, 12, 1) + draw(30, 12, 3), 2 * draw(30, 7, 4)]
ROWS = torch.arange(30)


@pytest.mark.parametrize("sizes", [[30], [10, 10, 10], [8, 13, 9]])
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_are_their_definitions_over_batches(metric: str, sizes: list[int]) -> None:
    parts = ROWS.split(sizes)
    found = layer_similarity(Recorded(*TABLES), parts_of(sizes), metric=metric)
    assert found.samples == 30
    assert found.metric == metric
    assert found.layers_a == found.layers_b == ("layers.0", "layers.1", "layers.2", "layers.3")
    for (i, a), (j, b) in itertools.product(enumerate(TABLES), repeat=2):
        expected = DEFINITIONS[metric]([a[rows] for rows in parts], [b[rows] for rows in parts])
        assert found.values[i, j].item() == pytest.approx(expected, abs=2e-5), (i, j)
    assert torch.equal(found.values, found.values.T)
    assert found.values.dtype == torch.float64


def parts_of(sizes: list[int], order: torch.Tensor = ROWS) -> Iterator[Tensor]:
    """Batches, once."""
    yield from order.split(sizes)


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_batches_is_nothing_but_rounding(metric: str) -> None:
    model = Recorded(*TABLES)
    first, second, third = ROWS.split([8, 13, 9])
    once = layer_similarity(model, [first, second, third], metric=metric).values
    again = layer_similarity(model, [third.flip(0), first, second], metric=metric).values
    torch.testing.assert_close(again, once, rtol=0, atol=1e-6 if metric == "cka" else 1e-12)
    if metric == "js":
        assert torch.equal(again, once)
        assert torch.equal(layer_similarity(model, ROWS, metric=metric, batch_size=3).values, once)


@pytest.mark.parametrize("metric", METRICS)
def test_two_models_in_one_pass(metric: str) -> None:
    a, b = Recorded(*TABLES), Recorded(*TABLES)
    alone = layer_similarity(a, ROWS, metric=metric, batch_size=10)
    both = layer_similarity(a, ROWS, b, metric=metric, batch_size=10)
    same = layer_similarity(a, ROWS, a, metric=metric, batch_size=10)
    some = layer_similarity(a, ROWS, metric=metric, batch_size=10, layers_b=["layers.3", "layers.1"])
    part = layer_similarity(a, ROWS, b, metric=metric, batch_size=10, layers="layers.2", layers_b="*[13]")
    torch.testing.assert_close(both.values, alone.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(same.values, alone.values, rtol=0, atol=1e-12)
    assert some.layers_b == part.layers_b == ("layers.1", "layers.3")
    torch.testing.assert_close(some.values, alone.values[:, [1, 3]], rtol=0, atol=1e-12)
    torch.testing.assert_close(part.values, alone.values[2:3, [1, 3]], rtol=0, atol=1e-12)
    other = layer_similarity(a, ROWS, Recorded(TABLES[3], TABLES[0]), metric=metric, batch_size=10)
    torch.testing.assert_close(other.values, alone.values[:, [3, 0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_samples_go_to_where_the_models_are(device: torch.device, metric: str) -> None:
    a, b = Recorded(*TABLES[:3]), Recorded(*TABLES)
    expected = layer_similarity(a, ROWS, b, metric=metric, batch_size=15).values
    cosines = layer_cosine(a, ROWS)
    found = layer_similarity(a.to(device), ROWS, b, metric=metric, batch_size=15).values
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for name, matrix in layer_cosine(a, ROWS).items():
        torch.testing.assert_close(matrix, cosines[name], rtol=0, atol=1e-5)
    on_device = linear_cka([table.to(device) for table in TABLES])
    assert on_device.device.type == device.type
    torch.testing.assert_close(on_device.cpu(), linear_cka(TABLES), rtol=0, atol=1e-5)


def test_the_same_layers_of_both_models_by_default() -> None:
    a, b = Recorded(*TABLES), Recorded(*TABLES[::-1])
    found = layer_similarity(a, ROWS, b, layers="layers.[02]")
    assert found.layers_a == found.layers_b == ("layers.0", "layers.2")
    assert found.values[0, 1].item() == pytest.approx(cka_definition([TABLES[0]], [TABLES[1]]), abs=1e-5)


def test_batches_too_small_for_an_estimate_are_left_out() -> None:
    model = Recorded(*TABLES)
    for metric, least in {"cka": 4, "cosine": 2, "correlation": 2, "js": 1}.items():
        whole = layer_similarity(model, parts_of([15, least, 15 - least]), metric=metric)
        assert whole.samples == 30
        if least > 1:
            kept = layer_similarity(model, [ROWS[:16]], metric=metric)
            left = layer_similarity(model, [ROWS[:16], ROWS[16 : 15 + least]], metric=metric)
            assert left.samples == 16
            assert torch.equal(left.values, kept.values)
            with pytest.raises(
                ValueError, match=rf"batches of >= {least} samples for metric='{metric}'; got"
            ):
                layer_similarity(model, ROWS, metric=metric, batch_size=least - 1)


def test_jensen_shannon_closed_forms() -> None:
    two, other = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])
    tables = [
        two,
        other,
        torch.tensor([[-1.0], [-2.0]]),
        torch.tensor([[0.0], [-0.0]]),
        torch.tensor([[1.0, 1.0], [2.0, 2.0]]),  # more activations of the same kind
        torch.tensor([[1.1], [2.2]]),  # the same eighths of a power of two
        torch.tensor([[1.125], [2.25]]),  # the next
        torch.zeros(2, 3),
        torch.tensor([[1.0], [math.inf]]),
        torch.tensor([[1.0], [math.nan]]),
    ]
    found = layer_similarity(Recorded(*tables), torch.arange(2), metric="js").values
    expected = torch.tensor(
        [
            [1, 0.5, 0, 0, 1, 1, 0, 0],
            [0.5, 1, 0, 0, 0.5, 0.5, 0, 0],
            [0, 0, 1, 0, 0, 0, 0, 0],
            [0, 0, 0, 1, 0, 0, 0, 1],
            [1, 0.5, 0, 0, 1, 1, 0, 0],
            [1, 0.5, 0, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 1, 0, 0, 0, 1],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(found[:8, :8], expected, rtol=0, atol=1e-12)
    assert torch.equal(found[:8, :8].diagonal(), torch.ones(8, dtype=torch.float64))
    assert found[8:].isnan().all()
    assert found[:, 8:].isnan().all()


def test_layers_that_tell_no_samples_apart_are_nan() -> None:
    constant = draw(1, 300, 1).expand(30, -1).clone()
    model = Recorded(TABLES[0], constant, torch.zeros(30, 4))
    assert torch.equal(
        layer_similarity(model, ROWS, metric="cka").values.isnan(),
        torch.tensor([[False, True, True], [True, True, True], [True, True, True]]),
    )
    correlation = layer_similarity(model, ROWS, metric="correlation").values
    assert torch.equal(correlation.isnan(), torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]]).bool())
    # Of one direction in many lengths, cosines differ by rounding alone.
    lengths = Recorded(TABLES[0], constant * torch.linspace(0.1, 9, 30).unsqueeze(1))
    for batch_size in (30, 7):
        correlation = layer_similarity(lengths, ROWS, metric="correlation", batch_size=batch_size).values
        assert torch.equal(correlation.isnan(), torch.tensor([[False, True], [True, True]]))
    cosine = layer_similarity(model, ROWS, metric="cosine").values
    assert torch.equal(cosine.isnan(), torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 1]]).bool())


def test_trained_models_of_every_kind_against_their_features() -> None:
    x, _ = zoo.test_digits()
    batches = [x[:30], x[30:60]]
    for name, layers in {"digits_cnn": None, "small_resnet": "4.*", "small_vit": ["1", "2", "4"]}.items():
        model = zoo.MODELS[name]()
        found = layer_similarity(model, batches, layers=layers, pool="mean")
        rows = [LayerFeatures(model, layers, "mean").of(batch) for batch in batches]
        assert found.layers_a == tuple(rows[0])
        assert found.samples == 60
        for i, j in ((0, 1), (1, -1), (0, -1)):
            a, b = found.layers_a[i], found.layers_a[j]
            expected = cka_definition([row[a] for row in rows], [row[b] for row in rows])
            assert found.values[i, j].item() == pytest.approx(expected, abs=1e-4)


def test_progress_and_table() -> None:
    seen: list[tuple[int, int | None]] = []
    model = Recorded(*TABLES[:2])
    found = layer_similarity(
        model, ROWS, batch_size=10, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(10, 30), (20, 30), (30, 30)]
    between = f"{found.values[0, 1]:.3f}"
    assert found.table().splitlines() == [
        "cka       layers.0  layers.1",
        f"layers.0     1.000{between:>10}",
        f"layers.1{between:>10}     1.000",
    ]
    long = ("a", "layer4.1.conv1")
    rows = [
        "js                     0       1",
        "0 a                1.000   0.250",
        "1 layer4.1.conv1   0.250   1.000",
    ]
    values = torch.tensor([[1.0, 0.25], [0.25, 1.0]], dtype=torch.float64)
    assert LayerSimilarity(values, long, long, "js", 10).table().splitlines() == rows
    other = LayerSimilarity(values, ("x", ""), long, "js", 10).table().splitlines()
    assert other[1:] == [
        "x         1.000   0.250",
        "(model)   0.250   1.000",
        "columns: 0 a, 1 layer4.1.conv1",
    ]


def test_layers_must_be_the_same_for_every_batch() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if len(x) == 8 else self.b(x)

    data = [torch.rand(8, 3), torch.rand(9, 3)]
    with pytest.raises(ValueError, match=r"^layer_similarity: the same layers must run for every batch"):
        layer_similarity(Moody(), data)
    for batches in (data, data[::-1]):
        with pytest.raises(ValueError, match=r"^layer_cosine: the same layers must run.*'a' did not"):
            layer_cosine(Moody(), batches)


# ---- features ----


@pytest.fixture
def cnn() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5), nn.ReLU(inplace=True)
        )


def test_features_are_what_the_layers_give(cnn: nn.Sequential) -> None:
    x, _ = models.data(6)
    with torch.no_grad():
        first = F.conv2d(x, cnn[0].weight, cnn[0].bias)
        hidden = F.linear(first.relu().flatten(1), cnn[3].weight, cnn[3].bias)
    expected = [first, first.relu(), first.relu().flatten(1), hidden, hidden.relu()]
    # The in-place ReLU has overwritten what the convolution gave.
    with LayerFeatures(cnn) as features:
        logits = cnn(x)
    assert logits.requires_grad
    assert features.names == tuple(features) == ("0", "1", "2", "3", "4")
    assert len(features) == 5
    assert "3" in features
    for (name, found), right in zip(features.items(), expected, strict=True):
        assert torch.equal(found, right.flatten(1)), name
        assert not found.requires_grad
    for name, found in LayerFeatures(cnn, pool="mean").of(x).items():
        right = expected[int(name)]
        assert torch.equal(found, right.mean((2, 3)) if right.dim() == 4 else right), name
    kept = LayerFeatures(cnn, ["0", "3"], keep=lambda rows: rows[:, 1:3]).of(x)
    assert torch.equal(kept["0"], first.flatten(1)[:, 1:3])
    assert torch.equal(kept["3"], hidden[:, 1:3])
    assert kept["0"].untyped_storage().nbytes() == 6 * 2 * 4
    sums = LayerFeatures(cnn, "3", keep=lambda rows: (rows.sum().item(), "any")).of(x)
    assert sums["3"] == (pytest.approx(hidden.sum().item()), "any")

    def largest(out: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return out.flatten(1).amax(1)

    pooled = LayerFeatures(cnn, "[03]", pool=largest).of(x.clone().requires_grad_())
    assert torch.equal(pooled["0"], first.flatten(1).amax(1, keepdim=True))


def test_tokens_are_pooled_by_mean_or_first() -> None:
    model, (x, _) = models.make("attention").eval(), models.data(5)
    with torch.no_grad():
        tokens = model.layer(model.embed(x).flatten(2).mT)
    for pool, right in {"flatten": tokens.flatten(1), "mean": tokens.mean(1), "first": tokens[:, 0]}.items():
        found = LayerFeatures(model, "layer", pool).of(x)
        torch.testing.assert_close(found["layer"], right, rtol=1e-5, atol=1e-5)
    assert "embed" not in LayerFeatures(model, pool="first").of(x)
    assert "embed" in LayerFeatures(model, pool="mean").of(x)
    with pytest.raises(
        ValueError, match=r"'embed' must give \[N, T, C\] or \[N, C\] for pool='first'; got.*\[5, 16, 2, 2\]"
    ):
        LayerFeatures(model, "embed", "first").of(x)


def test_a_callable_may_bring_the_batch_to_the_front() -> None:
    model, x = nn.LSTM(4, 6), torch.rand(5, 7, 4)  # time, batch, features

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = model

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x.transpose(0, 1))[0]

    batch = x.transpose(0, 1)
    with torch.no_grad():
        expected = model(x)[0].transpose(0, 1).flatten(1)
    found = LayerFeatures(Transposed(), "lstm", lambda out: out.transpose(0, 1)).of(batch)
    assert torch.equal(found["lstm"], expected)
    with pytest.raises(
        ValueError, match=r"layer 'lstm' must give.*with N = 7; got torch.float32 \[5, 7, 6\], "
    ):
        LayerFeatures(Transposed(), "lstm").of(batch)
    with pytest.raises(ValueError, match="model must have a layer that gives features; got none"):
        LayerFeatures(Transposed(), None, lambda out: out.transpose(0, 1)).of(batch)


def test_modules_that_run_several_times() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)
            self.alias = self.fc

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.relu(self.fc(x))
            return x

    model, x = Shared(), torch.randn(7, 4)
    expected, y = {}, x
    with torch.no_grad():
        for run in range(3):
            end = f":{run}" if run else ""
            expected["fc" + end] = y = model.fc(y)
            expected["relu" + end] = y = y.relu()
    found = LayerFeatures(model).of(x)
    assert list(found) == list(expected)
    for name, right in expected.items():
        assert torch.equal(found[name], right), name
    assert list(LayerFeatures(model, "relu").of(x)) == ["relu", "relu:1", "relu:2"]
    assert list(LayerFeatures(model, ["relu:1", "fc:0"]).of(x)) == ["fc", "relu:1"]
    features = LayerFeatures(model, "alias")
    assert list(features.of(x)) == ["fc", "fc:1", "fc:2"]
    assert torch.equal(features["alias:2"], expected["fc:2"])
    assert list(features.of(x)) == ["fc", "fc:1", "fc:2"]  # counted anew
    with pytest.raises(ValueError, match="'fc' must run again for 'fc:3' to have features; got 3 run"):
        features["fc:3"]
    with pytest.raises(ValueError, match=r"^LayerFeatures: layer 'relu' must run again for 'relu:3' to have"):
        LayerFeatures(model, "relu:3").of(x)


@dataclasses.dataclass
class Output:
    mask: Tensor
    hidden: Tensor


class Odd(nn.Module):
    """Outputs of every kind, none a plain tensor of features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.dictionary, self.data, self.nothing = Dictionary(), Data(), Nothing()
        self.whole = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 7))
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        hidden, _ = self.attention(hidden, hidden, hidden)
        self.nothing(hidden)
        return self.whole(self.data(self.dictionary(hidden)["out"][1]).hidden).argmax(-1)


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, object]:
        return {"length": 3, "ids": torch.ones(len(x), dtype=torch.int64), "out": [None, x + 1]}


class Data(nn.Module):
    def forward(self, x: Tensor) -> Output:
        return Output(torch.ones(len(x), dtype=torch.bool), 2 * x)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nested.nested_tensor([x[0], x[1, :1]])


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        return x.new_zeros(3, len(x)), None, x.argmax(-1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_outputs_that_are_no_tensors() -> None:
    model, x = Odd().eval(), torch.rand(7, 5, 4)
    with torch.no_grad():
        hidden = model.lstm(x)[0]
        attended = model.attention(hidden, hidden, hidden)[0]
        last = model.whole(2 * (attended + 1))
    found = LayerFeatures(model).of(x)
    # Neither what reads a weight nor what gives nothing with the batch in front is a layer of features.
    assert list(found) == ["lstm", "attention", "dictionary", "data", "whole"]
    for name, right in zip(found, [hidden, attended, attended + 1, 2 * (attended + 1), last], strict=True):
        torch.testing.assert_close(found[name], right.flatten(1), rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError,
        match=r"^layer_cosine: layer 'nothing' must give a floating-point tensor \[N, ...\] with N = 7; "
        r"got torch.float32 \[3, 7\], torch.int64 \[7, 5\]$",
    ):
        layer_cosine(model, x, "nothing")
    with pytest.raises(ValueError, match=r"layer '' must give a floating-point.*got torch.int64 \[7, 5\]"):
        layer_similarity(model, x, layers=[""])
    with pytest.raises(ValueError, match=r"layer '' must give a floating-point tensor.*; got Tensor$"):
        LayerFeatures(Nested(), "").of(x[:2])
    features = LayerFeatures(model)
    features.of(x)
    with pytest.raises(ValueError, match=r"layer 'nothing' must be named in layers"):
        features["nothing"]
    with pytest.raises(
        ValueError, match=r"layer 'attention.out_proj' must run in the forward pass; it never ran"
    ):
        features["attention.out_proj"]


def test_a_module_without_children_is_its_own_layer() -> None:
    model, x = nn.Linear(4, 3), torch.rand(5, 4)
    found = LayerFeatures(model).of(x)
    assert torch.equal(found[""], model(x).detach())
    assert layer_similarity(model, x).table().splitlines()[1].startswith("(model)")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_fused_transformer_layers_are_opened() -> None:
    """Torch's fast path runs a whole layer without calling the modules in it, on nested tensors if padded."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=x[:, :, 0] > 2)

    model, x = Encoder().eval(), torch.rand(6, 5, 16)
    x[2:, 3:, 0] = 3.0
    names = ["norm1", "linear1", "linear2", "norm2", "self_attn"]
    wanted = [f"encoder.layers.{i}.{name}" for i in range(2) for name in names] + ["encoder.layers.0"]
    with torch.no_grad():
        assert torch.backends.mha.get_fastpath_enabled()
        fused = model(x)
        found = LayerFeatures(model, wanted).of(x)
        assert torch.backends.mha.get_fastpath_enabled()
    assert sorted(found) == sorted(wanted)
    live = x[:, :, 0] < 2  # the fast path writes zeros to what is padding
    last = found["encoder.layers.1.norm2"].reshape(6, 5, 16)
    torch.testing.assert_close(last[live], fused[live], rtol=1e-4, atol=1e-5)


def test_features_are_those_of_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)).train()
    x = torch.rand(9, 4)
    found = LayerFeatures(model).of(x)
    assert torch.equal(found["1"], found["0"])
    norm = model[2].eval()
    torch.testing.assert_close(found["2"], norm(found["0"]).detach())


def test_a_target_brings_its_normalisation(cnn: nn.Sequential) -> None:
    x, _ = models.data(6)
    target = brittle.Target(cnn, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    found, expected = LayerFeatures(target).of(x), LayerFeatures(cnn).of((x - mean) / std)
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, rtol=1e-5, atol=1e-5)
    assert layer_similarity(target, x).values.shape == (5, 5)


@pytest.mark.parametrize(
    "data",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: (x, y),
        lambda x, y: DataLoader(TensorDataset(x), batch_size=4),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
        lambda x, y: DataLoader(TensorDataset(x, y, torch.arange(len(x))), batch_size=4),
        lambda x, y: iter(x.split(4)),
        lambda x, y: [x[:0], x[:7], x[7:7], x[7:]],
        lambda x, y: [(x[:7], ["labels", "of", "any", "kind"]), (x[7:], None)],
    ],
)
def test_data_of_every_form(cnn: nn.Sequential, data: Callable[[Tensor, Tensor], object]) -> None:
    x, y = models.data(10)
    batches = list(LayerFeatures(cnn, "3").stream(data(x, y), batch_size=4))  # type: ignore[arg-type]
    assert len(batches) in (2, 3)
    found = torch.cat([batch["3"] for batch in batches])
    torch.testing.assert_close(found, LayerFeatures(cnn, "3").of(x)["3"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"data must hold samples; got none"),
        (torch.rand(0, 3, 8, 8), r"data must hold samples; got none"),
        ([torch.rand(0, 3, 8, 8)], r"data must hold samples; got none"),
        (torch.tensor(1.0), r"data must be \[N, ...\]; got a tensor of shape \[\]"),
        (7, "data must be tensors or yield batches, as a DataLoader does; got int"),
        ("text", "data must be tensors or yield batches, as a DataLoader does; got str"),
        ({"x": 1}, "data must be tensors or yield batches, as a DataLoader does; got dict"),
        (TensorDataset(torch.rand(4, 3, 8, 8)), "data must be tensors or yield.*got TensorDataset"),
        (
            ["text"],
            r"data must yield x, \(x, y\) or \(x, y, sample_ids\) with a tensor x \[N, ...\]; got str",
        ),
        ([()], "data must yield x.*got tuple"),
        ((torch.rand(4, 3, 8, 8), torch.zeros(3)), "x and y must have one length; got 4 and 3"),
    ],
)
def test_data_that_is_none(cnn: nn.Sequential, data: object, message: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "LayerFeatures": lambda: list(LayerFeatures(cnn).stream(data)),  # type: ignore[arg-type]
        "layer_similarity": lambda: layer_similarity(cnn, data),  # type: ignore[arg-type]
        "layer_cosine": lambda: layer_cosine(cnn, data),  # type: ignore[arg-type]
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            call()


def test_arguments_that_are_none(cnn: nn.Sequential) -> None:
    x, _ = models.data(6)
    resnet = zoo.small_resnet()
    refused: list[tuple[str, Callable[[], object]]] = [
        (
            r"layers must be names or patterns.*\(nearest: '3.conv2', '3.conv1'.*got '3.conv3'",
            lambda: layer_cosine(resnet, x, "3.conv3"),
        ),
        (r"layers must be names.*got 'layer\*.conv'", lambda: layer_cosine(resnet, x, ["3", "layer*.conv"])),
        ("layers must name at least one layer; got none", lambda: layer_cosine(cnn, x, [])),
        (
            "pool must be 'flatten', 'mean', 'first' or a callable; got 'max'",
            lambda: layer_cosine(cnn, x, pool="max"),
        ),
        ("model must be an nn.Module; got function", lambda: layer_cosine(models.data, x)),  # type: ignore[arg-type]
        ("batch_size must be an integer >= 1; got 0", lambda: layer_cosine(cnn, x, batch_size=0)),
        ("budget must be an integer >= 1; got 0", lambda: layer_cosine(cnn, x, budget=0)),
        (
            r"pool must map the output of layer '0' to a floating-point tensor \[N, ...\] with N = 6; "
            r"got torch.float32 \[4\]",
            lambda: layer_cosine(cnn, x, "0", pool=lambda out: out.mean((0, 2, 3))),
        ),
        (
            r"pool must map the output of layer '0'.*got tuple",
            lambda: layer_cosine(cnn, x, "0", pool=lambda out: out.max(1)[:1]),  # type: ignore[arg-type,return-value]
        ),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=f"^layer_cosine: {message}"):
            call()
    with pytest.raises(
        ValueError, match="metric must be one of 'cka', 'cosine', 'correlation', 'js'; got 'cca'"
    ):
        layer_similarity(cnn, x, metric="cca")
    features = LayerFeatures(cnn, ["0"])
    with pytest.raises(ValueError, match="must run before features are asked for; layer '0' has none yet"):
        features["0"]
    features.of(x)
    with pytest.raises(ValueError, match="layer must be one of those captured, '0'; got '3'"):
        features["3"]
    with pytest.raises(ValueError, match=r"\(nearest: '0'\)|got '33'"):
        features["33"]
    with features, pytest.raises(ValueError, match="must be left before it is entered again"):
        features.__enter__()
    assert not hooks(cnn)
    with pytest.raises(ValueError, match="model must have a layer that gives features; got none"):
        LayerFeatures(Nothing()).of(torch.rand(4, 6))
    for layers in (["lstm", "unused"], ["unused"], "unuse*"):
        with pytest.raises(ValueError, match=r"layer 'unuse[d*]' must run in the forward pass; it never ran"):
            layer_similarity(Odd(), torch.rand(7, 5, 4), layers=layers)


# ---- the model is left alone ----


def hooks(model: nn.Module) -> list[object]:
    return [
        hook
        for module in model.modules()
        for table in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
        for hook in table
    ]


def loader(x: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(x), batch_size=8, shuffle=True)


RUNS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "of": lambda m, x: LayerFeatures(m).of(x),
    "stream": lambda m, x: list(LayerFeatures(m).stream(x, 8)),
    "closed early": lambda m, x: next(LayerFeatures(m).stream(x, 8)),
    "layer_cosine": lambda m, x: layer_cosine(m, loader(x), budget=40_000),
    **{metric: lambda m, x, k=metric: layer_similarity(m, loader(x), metric=k) for metric in METRICS},
    "two models": lambda m, x: layer_similarity(m, loader(x), models.make("perceptron")),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_model_comes_back_as_it_was(name: str) -> None:
    model, (x, _) = picky(), models.data(23)
    models.make("perceptron")
    before, caller = state(model), torch.nn.Module.__call__
    RUNS[name](model, x)
    assert_same_state(before, state(model))
    assert not hooks(model)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.nn.Module.__call__ is caller


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("of", "closed early")])
def test_the_model_comes_back_after_an_exception(name: str) -> None:
    model, (x, _) = picky(), models.data(23)
    model.fail_at = 2
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        RUNS[name](model, x)
    assert_same_state(before, state(model))
    assert not hooks(model)
    assert torch.backends.mha.get_fastpath_enabled()


def test_hooks_that_fail_leave_nothing(cnn: nn.Sequential) -> None:
    x, _ = models.data(6)

    def fail(rows: Tensor) -> Tensor:
        raise RuntimeError("keep")

    with pytest.raises(RuntimeError, match="keep"), LayerFeatures(cnn, keep=fail):
        cnn(x)
    assert not hooks(cnn)
    features = LayerFeatures(cnn, "3")

    def interrupt(module: nn.Module, args: object) -> None:
        raise KeyboardInterrupt

    handle = cnn[3].register_forward_pre_hook(interrupt)
    with features, pytest.raises(KeyboardInterrupt):
        cnn(x)
    handle.remove()
    assert not hooks(cnn)
    # A pass that was broken off leaves no trace in the next.
    assert list(features.of(x)) == ["3"]
    assert list(LayerFeatures(cnn).of(x)) == ["0", "1", "2", "3", "4"]


def test_between_batches_the_model_is_the_callers() -> None:
    model, (x, _) = picky(), models.data(24)
    before = state(model)
    for _ in LayerFeatures(model, "body.conv").stream(x, 8):
        assert_same_state(before, state(model))
        assert not hooks(model)
        assert torch.is_grad_enabled()
        torch.rand(3)  # the caller's own draws are not undone
        before["rng"] = torch.get_rng_state()


def test_nested_blocks(cnn: nn.Sequential) -> None:
    x, _ = models.data(6)
    with LayerFeatures(cnn, "0") as outer:
        with LayerFeatures(cnn, ["3"], keep=lambda rows: rows.sum()) as inner:
            cnn(x)
        assert inner.names == ("3",)
        first = outer["0"]
        cnn(1 - x)
        assert inner.names == ("3",)
        assert not torch.equal(outer["0"], first)
        # Its own passes go into the block that watches.
        assert list(LayerFeatures(cnn, "1").of(x)) == ["1"]
        assert torch.equal(outer["0"], first)
        batches = list(outer.stream(x, 4))
        assert [len(batch["0"]) for batch in batches] == [4, 2]
        assert hooks(cnn)
    assert not hooks(cnn)


def test_features_are_held_by_nobody_else(cnn: nn.Sequential) -> None:
    x, _ = models.data(6)
    gc.collect()
    gc.disable()
    try:
        with LayerFeatures(cnn) as features:
            cnn(x)
        held = [weakref.ref(part) for _, part in features.items()]
        assert all(ref() is not None for ref in held)
        cnn(x)
        del features
        assert all(ref() is None for ref in held)
        stream = LayerFeatures(cnn).stream(x, 4)
        first = weakref.ref(next(stream)["3"])
        next(stream)
        assert first() is None
    finally:
        gc.enable()


def test_inference_mode_of_the_caller(cnn: nn.Sequential) -> None:
    x, _ = models.data(12)
    expected = [layer_similarity(cnn, x, metric=metric).values for metric in METRICS]
    with torch.inference_mode():
        found = [layer_similarity(cnn, x, metric=metric).values for metric in METRICS]
        cka = linear_cka([x, x])
    assert all(map(torch.equal, found, expected))
    assert cka[0, 1] == pytest.approx(1.0)


# ---- cosines of samples ----


def test_layer_cosine_is_the_cosine_of_the_features() -> None:
    model, (x, _) = zoo.digits_cnn(), zoo.test_digits()
    x = x[:50]
    found = layer_cosine(model, x, batch_size=16)
    features = LayerFeatures(model).of(x)
    assert list(found) == list(features)
    for name, rows in features.items():
        torch.testing.assert_close(found[name].double(), reference.pairwise_cosine(rows), rtol=0, atol=2e-6)
        assert found[name].dtype == torch.float32
    pooled = layer_cosine(model, x, ["0"], pool="mean")["0"].double()
    rows = LayerFeatures(model, pool="mean").of(x)["0"]
    torch.testing.assert_close(pooled, reference.pairwise_cosine(rows), rtol=0, atol=2e-6)


def test_layers_beyond_the_budget_wait_for_another_pass() -> None:
    class Counted(Recorded):
        passes = 0

        def forward(self, x: Tensor) -> list[Tensor]:
            self.passes += 1
            return super().forward(x)

    def order() -> DataLoader[Tensor]:
        return DataLoader(ROWS, batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(5))

    expected = layer_cosine(Recorded(*TABLES), torch.cat(list(order())))
    # Features of 12, 5, 12 and 7 float32 for each of the 30 samples.
    for budget, passes in {
        1 << 30: 1,
        4 * 30 * 36: 1,
        4 * 30 * 36 - 1: 2,
        4 * 30 * 19: 2,
        4 * 30 * 19 - 1: 3,
        1: 4,
    }.items():
        model = Counted(*TABLES)
        # A loader that shuffles: every pass must see the order of the first.
        found = layer_cosine(model, order(), budget=budget)
        assert list(found) == list(expected)
        for name, right in expected.items():
            torch.testing.assert_close(found[name], right, rtol=0, atol=1e-6)
        assert model.passes == 3 * passes, budget
    once = layer_cosine(Recorded(*TABLES), iter(order()), budget=1)
    assert all(torch.allclose(once[name], expected[name], atol=1e-6) for name in expected)


def test_features_must_be_as_many_for_every_sample() -> None:
    data = [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 9, 9)]
    with pytest.raises(
        ValueError, match=r"^layer_cosine: layer '' must give as many features.*got 49 after 36"
    ):
        layer_cosine(nn.Conv2d(1, 1, 3), data)
    assert layer_similarity(nn.Conv2d(1, 1, 3), data).samples == 8


# ---- pictures ----


def test_picture_of_a_matrix_is_ordered_by_cluster() -> None:
    cosines = draw(6, 6, 1).clamp(-1, 1)
    cosines[2, 3] = math.nan
    labels = torch.tensor([2, 0, 2, 1, 0, 2])
    order = [1, 4, 3, 0, 2, 5]
    ax = plot_matrix(cosines, labels, ax=Figure().subplots())
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(drawn.filled(math.nan), cosines[order][:, order].double().numpy())
    assert sorted({float(line.get_ydata()[0]) for line in ax.lines} & {1.5, 2.5}) == [1.5, 2.5]
    assert len(ax.lines) == 4
    assert ax.get_xlabel() == ax.get_ylabel() == "sample, ordered by cluster"
    assert ax.child_axes[0].get_ylabel() == "cosine similarity"
    assert ax.images[0].get_clim() == (-1.0, 1.0)

    given_order = torch.tensor([5, 4, 3, 2, 1, 0])
    ax = plot_matrix(cosines.abs(), order=given_order, ax=Figure().subplots())
    np.testing.assert_array_equal(
        ax.images[0].get_array().filled(math.nan), cosines.abs().double().flip(0, 1).numpy()
    )
    assert not ax.lines
    assert ax.images[0].get_clim() == (pytest.approx(float(cosines.abs().nan_to_num(1).min())), 1.0)
    ax = plot_matrix(cosines, labels, given_order, ax=Figure().subplots())
    both = [4, 1, 3, 5, 2, 0]
    np.testing.assert_array_equal(
        ax.images[0].get_array().filled(math.nan), cosines[both][:, both].double().numpy()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(3, 4),), r"cosines must be \[N, N\] with N >= 1; got shape \[3, 4\]"),
        (
            (torch.rand(3, 3), torch.zeros(4, dtype=torch.int64)),
            "labels must be integers.*with N = 3; got torch.int64",
        ),
        ((torch.rand(3, 3), torch.zeros(3)), "labels must be integers.*got torch.float32"),
        (
            (torch.rand(3, 3), None, torch.tensor([0, 1, 1])),
            "order must hold each of 0 .. 2 once; got torch.int64",
        ),
    ],
)
def test_pictures_of_a_matrix_refuse(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^plot_matrix: {message}"):
        plot_matrix(*arguments)


def test_picture_of_layers_names_them() -> None:
    values = torch.tensor([[1.0, 0.25, math.nan], [0.25, 1.0, -0.05]], dtype=torch.float64)
    result = LayerSimilarity(values, ("a", "b"), ("x", "y", ""), "cka", 10)
    ax = result.plot(Figure().subplots())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y", "(model)"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.texts] == ["1.00", "0.25", "nan", "0.25", "1.00", "-0.05"]
    colours = [
        "black",
        "white",
        "black",
        "white",
        "black",
        "white",
    ]  # on yellow, blue, grey, blue, yellow, violet
    assert [text.get_color() for text in ax.texts] == colours
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert ax.child_axes[0].get_ylabel() == "linear CKA"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "layer")

    many = tuple(f"layer{i}" for i in range(100))
    ax = plot_layers(LayerSimilarity(torch.rand(100, 100), many, many, "js", 10), Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == list(many[::5])
    assert list(ax.get_xticks()) == list(range(0, 100, 5))
    assert not ax.texts


# ---- the example ----


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layer_similarity_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_and_finds_the_classes(tmp_path: Path) -> None:
    example = load_example()
    result = example.experiment(tmp_path, epochs=12, samples=300)
    assert result.within_trained.values.shape == (9, 9)
    assert result.within_trained.layers_a == result.between.layers_a
    agreement = result.agreement
    # The last hidden layer knows the classes only when it has been trained.
    assert agreement["trained"][7] > 0.75
    assert agreement["trained"][7] > agreement["untrained"][7] + 0.25
    assert result.within_trained.values[7, 8] > result.within_untrained.values[7, 8]
    assert result.redundancy["untrained"][8] > 0.9 > result.redundancy["trained"][8]
    lines = result.table().splitlines()
    assert len(lines) == 11
    assert lines[2 + 7].split()[1] == f"{agreement['trained'][7]:.2f}"
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == ["cka.png", "clusters.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in pictures)
