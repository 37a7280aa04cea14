"""Drift: false alarms by simulation, what must be found, and what does not change the result."""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import brittle
import numpy as np
import pytest
import torch
from brittle.evaluation.drift import Drift, Measure, Reference, Window
from brittle.evaluation.drift.stream import fingerprint
from brittle.evaluation.shifts import apply_shift, kinds_for
from brittle.sources import as_source
from test_target import assert_same_state, state
from torch import Tensor, nn

EXAMPLE = Path(__file__).parent.parent / "examples" / "drift.py"
MEASURES = (
    "confidence",
    "energy",
    "predicted classes",
    "feature mean",
    "feature distance",
    "out-of-domain share",
)


class World(NamedTuple):
    """A model and as many samples as are asked for: images of ten kinds, brighter and darker ones."""

    model: nn.Module
    patterns: Tensor

    def draw(self, count: int, seed: int, classes: int = 10) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        kind = torch.randint(classes, (count,), generator=generator)
        strength = 0.3 + torch.rand(count, 1, 1, 1, generator=generator)
        noise = 0.15 * torch.randn(count, 1, 8, 8, generator=generator)
        return (self.patterns[kind] * strength + noise).clamp(0, 1)


@pytest.fixture(scope="module")
def world() -> World:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patterns = torch.rand(10, 1, 8, 8).round()
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
        )
        made = World(model.eval(), patterns)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        y = torch.arange(10).repeat_interleave(40)
        for _ in range(40):
            x = patterns[y] * (0.3 + torch.rand(400, 1, 1, 1)) + 0.15 * torch.randn(400, 1, 8, 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.clamp(0, 1)), y).backward()
            optimizer.step()
    return made


@pytest.fixture(scope="module")
def reference(world: World) -> Reference:
    return Reference.of(world.model, world.draw(2000, seed=1))


def equal(a: object, b: object) -> bool:
    """Of two references or parts of them, to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(equal(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    return a == b


# -- the promise


@pytest.mark.parametrize("size", [25, 100])
def test_false_alarms_are_as_rare_as_asked_for(world: World, size: int) -> None:
    alarms, whole, batches = 0, 0, 0
    for seed in range(8):
        reference = Reference.of(world.model, world.draw(1000, seed=10 + seed), fixed_batch=250)
        drift = reference.score(world.model, world.draw(50 * size, seed=50 + seed), batch_size=size)
        assert len(drift.batches) == 50
        alarms += sum(batch.drifted for batch in drift.batches)
        whole += drift.drifted
        batches += len(drift.batches)
    # 400 batches at 0.01: more than 10 would happen once in 370 times.
    assert batches == 400
    assert alarms <= 10
    assert whole <= 1


def test_a_higher_rate_is_used(world: World, reference: Reference) -> None:
    drift = reference.score(world.model, world.draw(10_000, seed=3), batch_size=50, false_alarm_rate=0.5)
    share = sum(batch.drifted for batch in drift.batches) / 200
    assert 0.25 < share <= 0.5


def shifted(world: World) -> dict[str, Tensor]:
    x = world.draw(400, seed=4)
    scales = kinds_for(x.shape)
    return {
        **{
            kind: apply_shift(kind, scales[kind][2], x)
            for kind in ("gaussian", "blur", "brightness", "contrast")
        },
        "five of the classes": world.draw(400, seed=4, classes=5),
        "uniform noise": torch.rand(400, 1, 8, 8),
        "turned": x.rot90(1, (2, 3)),
    }


@pytest.mark.parametrize(
    "name", ["gaussian", "blur", "brightness", "contrast", "five of the classes", "uniform noise", "turned"]
)
def test_drift_is_found(world: World, reference: Reference, name: str) -> None:
    drift = reference.score(world.model, shifted(world)[name], batch_size=100)
    assert drift.drifted
    assert drift.score > 4
    assert all(batch.drifted for batch in drift.batches)


def test_which_measure_finds_what(world: World, reference: Reference) -> None:
    mixed = reference.score(world.model, shifted(world)["five of the classes"])
    assert mixed.whole.of("predicted classes").p_value < 1e-30
    assert not mixed.whole.of("out-of-domain share").drifted
    assert mixed.out_of_domain is not None
    assert mixed.out_of_domain.double().mean() < 0.03
    foreign = reference.score(world.model, shifted(world)["turned"])
    assert foreign.whole.of("out-of-domain share").value > 0.2
    assert foreign.out_of_domain is not None
    assert foreign.out_of_domain.double().mean().item() == foreign.whole.of("out-of-domain share").value


def test_one_bad_batch_among_many(world: World, reference: Reference) -> None:
    x = world.draw(4000, seed=6)
    x[2000:2100] = apply_shift("gaussian", 0.38, x[2000:2100])
    drift = reference.score(world.model, x, batch_size=100)
    assert [batch.first for batch in drift.batches if batch.score > 3] == [2000]
    assert drift.drifted
    assert "samples 2000 to 2099: " in drift.table()


# -- what the result says


def test_values_by_hand(world: World, reference: Reference) -> None:
    x = world.draw(300, seed=5)
    drift = reference.score(world.model, x, batch_size=128)
    with torch.no_grad():
        logits = world.model(x).double()
        features = world.model[:-1](x)
    confidence, predicted = logits.softmax(1).max(1)
    assert torch.equal(drift.predicted, predicted)
    assert torch.allclose(drift.confidence, confidence, atol=1e-6)
    assert torch.allclose(drift.energy, -logits.exp().sum(1).log(), atol=1e-5)
    assert reference.space is not None
    assert drift.distance is not None
    coordinates, distance = reference.space.place(features)
    assert torch.allclose(drift.distance, distance, atol=1e-4)
    assert torch.equal(drift.out_of_domain, drift.distance > reference.space.limit)
    assert [(batch.first, batch.samples) for batch in drift.batches] == [(0, 128), (128, 128), (256, 44)]
    for window, rows in ((drift.whole, slice(0, 300)), (drift.batches[1], slice(128, 256))):
        assert tuple(measure.name for measure in window.measures) == MEASURES
        mean = coordinates[rows].mean(0) - reference.space.mean
        assert window.of("feature mean").value == pytest.approx(mean.square().sum().item(), rel=1e-4)
        assert window.of("energy").value == reference.energy.distance(drift.energy[rows])
        assert window.p_value == pytest.approx(min(1, 6 * min(m.p_value for m in window.measures)))
        assert all(m.rate == pytest.approx(0.01 / 6) for m in window.measures)
    assert drift.score == pytest.approx(-np.log10(drift.p_value))


def test_the_verdict_is_over_all_batches_and_the_whole() -> None:
    def window(*p_values: float) -> Window:
        return Window(0, 10, tuple(Measure("m", 1.0, 1.0, p, 0.01 / len(p_values)) for p in p_values), 0.01)

    def drift(whole: Window, *batches: Window) -> Drift:
        none = torch.zeros(0)
        return Drift(whole, batches, 0.01, none, none, none, None, None)

    assert window(0.004, 0.5).p_value == 0.008
    assert window(0.004, 0.5).drifted
    assert not window(0.006, 0.5).drifted
    assert window(0.6, 0.5).p_value == 1
    assert drift(window(0.008), window(0.008)).p_value == 0.008
    several = [window(0.001), window(0.9), window(0.3), window(0.4)]
    assert drift(window(0.5), *several).p_value == pytest.approx(8 * 0.001)
    assert drift(window(0.5), *several).drifted
    assert drift(window(0.5), *several).score == pytest.approx(-np.log10(0.008))
    assert not drift(window(0.5), *several, window(0.7), window(0.8)).drifted
    assert drift(window(0.003), window(0.2), window(0.9)).p_value == pytest.approx(0.006)


def test_table_summary_and_plot(world: World, reference: Reference) -> None:
    drift = reference.score(world.model, shifted(world)["uniform noise"], batch_size=100)
    table = drift.table()
    for measure in drift.whole.measures:
        assert f"{measure.name:<22}{measure.value:>10.4g}" in table
    assert table.endswith("alarm at 2.0 (at most 1.00% false alarms)")
    assert "batches that drifted: 4 of 4" in table
    summary = json.loads(json.dumps(drift.summary(), allow_nan=False))
    assert summary["drifted"] is True
    assert len(summary["out_of_domain"]) == int(drift.out_of_domain.sum())  # type: ignore[union-attr]
    assert summary["batches"][3]["first"] == 300
    assert summary["whole"]["measures"][0]["value"] == drift.whole.of("confidence").value
    axes = drift.plot()
    assert axes.lines[0].get_xdata().tolist() == [50, 150, 250, 350]
    assert axes.lines[0].get_ydata().tolist() == [batch.score for batch in drift.batches]
    assert axes.get_ylabel() == "drift score (-log10 p)"


# -- how it is made


def test_no_bit_depends_on_the_batches(world: World, reference: Reference) -> None:
    x = world.draw(2000, seed=1)
    ragged = list(x.split([1, 31, 500, 7, 1461]))
    source = as_source((x, torch.zeros(2000, dtype=torch.int64)))
    for data, size in (
        (source, 300),
        (x, 7),
        ((x, torch.zeros(2000)), 1000),
        (ragged, 1),
        ([(part,) for part in ragged], 1),
    ):
        assert equal(Reference.of(world.model, data, batch_size=size), reference)  # type: ignore[arg-type]
    new = world.draw(333, seed=9)
    whole = reference.score(world.model, new, batch_size=50)
    parts = reference.score(world.model, list(new.split(13)), batch_size=50)
    assert parts.summary() == whole.summary()
    few = reference.score(world.model, new[:5])
    assert torch.equal(few.energy, whole.energy[:5])
    assert torch.equal(parts.distance, whole.distance)  # type: ignore[arg-type]


def test_the_model_runs_on_batches_of_one_size(world: World) -> None:
    sizes = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return world.model(x)

    reference = Reference.of(model, list(world.draw(83, seed=1).split(9)), fixed_batch=20)
    reference.score(model, world.draw(3, seed=2))
    assert sizes == [20] * 6


def test_the_model_is_left_alone(world: World) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), *world.model).train()
    before = state(model)
    reference = Reference.of(model, world.draw(60, seed=1))
    reference.score(model, world.draw(60, seed=2))
    assert_same_state(state(model), before)


def test_a_named_layer_and_models_without_features(world: World) -> None:
    x = world.draw(200, seed=1)
    named = Reference.of(world.model, x, features="2")
    assert named.layer == "2"
    assert named.space is not None
    assert len(named.space.centre) == 48
    assert torch.allclose(
        named.space.place(world.model[:3](x).detach())[0].mean(0), named.space.mean, atol=1e-5
    )
    for model in (world.model.forward, nn.Sequential(nn.Flatten(), nn.ReLU())):
        plain = Reference.of(model, x)
        assert plain.space is None
        drift = plain.score(model, 1 - x)
        assert [measure.name for measure in drift.whole.measures] == list(MEASURES[:3])
        assert drift.distance is None
        assert drift.drifted
        assert "out of domain" not in drift.table()
        assert drift.summary()["out_of_domain"] is None
    constant = nn.Sequential(nn.Flatten(), nn.Threshold(2, 0), nn.Linear(64, 3))
    assert Reference.of(constant, x).space is None


def test_normalisation_belongs_to_the_model(world: World) -> None:
    x = world.draw(100, seed=1)
    target = brittle.Target(world.model, mean=[0.2], std=[0.5])
    reference = Reference.of(target, x)
    other = Reference.of(world.model, (x - 0.2) / 0.5)
    assert torch.allclose(reference.energy.values, other.energy.values, atol=1e-5)
    with pytest.raises(ValueError, match=r"Reference.score: model must be the one of the reference"):
        reference.score(world.model, x)


def test_errors(world: World, reference: Reference) -> None:
    x = world.draw(60, seed=1)
    with pytest.raises(ValueError, match=r"Reference.of: data must hold at least 50 samples; got 49"):
        Reference.of(world.model, x[:49])
    assert Reference.of(world.model, x[:50]).samples == 50
    with pytest.raises(ValueError, match=r"Reference.of: layers must be names .*; got 'head'"):
        Reference.of(world.model, x, features="head")
    with pytest.raises(ValueError, match=r"Reference.of: the model gave NaN logits for 1 sample\(s\): 33"):
        Reference.of(world.model, x.index_fill(0, torch.tensor([33]), float("nan")))
    with pytest.raises(
        ValueError, match=r"Reference.of: data must have samples of one shape; got \[1, 8, 8\]"
    ):
        Reference.of(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), [x, x[..., 1:]])
    with pytest.raises(ValueError, match=r"Reference.score: data must hold samples; got none"):
        reference.score(world.model, x[:0])
    with pytest.raises(
        ValueError, match=r"Reference.score: the model must take samples of shape \[4\]; got ."
    ):
        reference.score(world.model, torch.rand(60, 4))
    with pytest.raises(ValueError, match=r"false_alarm_rate must be in \(0, 1\); got 1"):
        reference.score(world.model, x, false_alarm_rate=1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(
        ValueError, match=r"Reference.score: model must be the one of the reference; got other"
    ):
        reference.score(other, x)


def test_the_smallest_change_of_a_weight_changes_the_fingerprint(world: World) -> None:
    before = fingerprint(world.model)
    weight = world.model[1].weight.data
    kept = weight[3, 4].clone()
    weight[3, 4] = torch.nextafter(kept, torch.tensor(9.0))
    assert fingerprint(world.model) != before
    weight[3, 4] = kept
    assert fingerprint(world.model) == before


def test_result_without_drift(world: World, reference: Reference) -> None:
    drift: Drift = reference.score(world.model, world.draw(256, seed=12))
    assert not drift.drifted
    assert drift.p_value == drift.whole.p_value == drift.batches[0].p_value
    assert "\nno drift: score " in drift.table()


def test_example(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("drift_example", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.experiment(tmp_path)
    assert not found.pop("as they are").drifted
    for name in ("gaussian, severity 5", "blur, severity 5", "contrast, severity 1", "turned by 90 degrees"):
        assert all(batch.drifted for batch in found[name].batches), name
    outside = found["turned by 90 degrees"].out_of_domain
    assert outside.double().mean() > 0.5
