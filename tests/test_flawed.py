"""The planted flaws are what they are said to be, where they are said to be, and nowhere else.

What is expected is worked out here, in plain torch; nothing asks the diagnosis.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from flawed import CONTROLS, FAMILIES, Planted, parametric, plant, shifted, shuffled, tie
from torch import Tensor, nn

_spec = importlib.util.spec_from_file_location(
    "study_flaws", Path(__file__).parent.parent / "benchmarks" / "study_flaws.py"
)
assert _spec is not None
assert _spec.loader is not None
study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(study)


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).float().mean().item()


def weight(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).weight.detach()


def gradients(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The norm of the loss's gradient in each layer's weights."""
    weights = {name: model.get_submodule(name).weight for name in parametric(model)}
    loss = F.cross_entropy(model(data[0]), data[1])
    grads = torch.autograd.grad(loss, list(weights.values()))
    return {name: grad.norm().item() for name, grad in zip(weights, grads, strict=True)}


def activations(p: Planted, place: str) -> Tensor:
    """What a module gives for the training data, a row for each unit."""
    kept = []
    hook = p.model.get_submodule(place).register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        p.model(p.train[0])
    hook.remove()
    return kept[0].transpose(0, 1).flatten(1)


def test_same_seed_same_bits_and_torch_untouched() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = plant.__wrapped__("saturated", 1, "mlp").model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in plant("saturated", 1, "mlp").model.state_dict().items():
        assert torch.equal(value, again[name])
    # Another seed has another start, whatever is planted in it later.
    starts = [plant("saturated", seed, "mlp").untrained.state_dict()["fc1.weight"] for seed in (1, 3)]
    assert not torch.equal(*starts)


@pytest.mark.parametrize(("flaw", "family"), [("vanishing", "resnet"), ("exploding", "resnet")])
def test_families_without_a_flaw_are_refused(flaw: str, family: str) -> None:
    with pytest.raises(ValueError, match="family must be one of"):
        plant(flaw, 0, family)


def test_layers_are_named_and_told_apart() -> None:
    for flaw, seed, family in (("saturated", 0, "mlp"), ("vanishing", 1, "mlp"), ("exploding", 0, "mlp")):
        p = plant(flaw, seed, family)
        assert set(p.layers) | set(p.implied) | set(p.healthy) == set(parametric(p.model))
        assert not set(p.layers) & set(p.healthy)
        assert not set(p.implied) & (set(p.healthy) | set(p.layers))
        assert p.layers
        assert not p.model.training
        assert not p.untrained.training


@pytest.mark.parametrize(("family", "seed"), [("mlp", 1), ("cnn", 2)])
def test_frozen_layer_alone_has_its_initial_weights(family: str, seed: int) -> None:
    p = plant("frozen", seed, family)
    same = [
        name for name in parametric(p.model) if torch.equal(weight(p.model, name), weight(p.untrained, name))
    ]
    assert tuple(same) == p.layers
    assert accuracy(p.model, p.validation) > 0.94
    assert all(parameter.requires_grad for parameter in p.model.parameters())


@pytest.mark.parametrize("family", ["cnn", "resnet"])
def test_what_is_memorised_is_in_the_named_layer(family: str) -> None:
    p = plant("memorising", 0, family)
    assert p.sound is not None
    x, y = p.train
    _, clean = plant("frozen", 0, "mlp").train
    wrong = y != clean[: len(y)]
    assert 0.3 < wrong.float().mean() < 0.45  # 40 % shuffled, of which some were given their own label
    assert accuracy(p.model, (x[wrong], y[wrong])) >= 0.95
    assert accuracy(p.sound, (x[wrong], y[wrong])) < 0.05
    assert accuracy(p.model, p.validation) < accuracy(p.sound, p.validation) - 0.3
    (layer,) = p.layers
    for name, value in p.sound.state_dict().items():
        assert torch.equal(value, p.model.state_dict()[name]) == (name.rpartition(".")[0] != layer)


@pytest.mark.parametrize(("family", "seed"), [("mlp", 0), ("cnn", 1), ("resnet", 2)])
def test_half_or_more_of_the_units_are_copies_in_the_named_layer_alone(family: str, seed: int) -> None:
    p = plant("duplicated", seed, family)
    for name in parametric(p.model):
        rows = weight(p.model, name).flatten(1)
        if rows.shape[1] < 16:
            continue  # a few inputs leave little room to differ
        cosine = torch.triu(F.normalize(rows) @ F.normalize(rows).T, diagonal=1)
        copies = (cosine > 0.999).any(0).float().mean().item()
        assert copies >= 0.5 if name in p.layers else copies == 0
    assert accuracy(p.model, p.validation) > 0.93


def test_untrained_copy_has_the_copies_for_odd_seeds() -> None:
    for seed, period in ((0, 48), (1, 32), (2, 24), (3, 48)):
        p = plant("duplicated", seed, "mlp")
        rows = weight(p.untrained, p.layers[0])
        assert torch.equal(rows[:-period], rows[period:]) == bool(seed % 2)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("convolution", [False, True])
def test_tied_units_get_equal_gradients(groups: int, convolution: bool) -> None:
    """Twelve units that are copies of 12 / groups, in and out."""
    torch.manual_seed(groups)
    layer: nn.Module = nn.Conv2d(1, 12, 3, padding=1) if convolution else nn.Linear(4, 12)
    following = nn.Linear(12 * 4 if convolution else 12, 5)
    tie(layer, following, groups)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), following).double()
    model(
        torch.rand(6, 1, 2, 2).double() if convolution else torch.rand(6, 4).double()
    ).square().sum().backward()
    period = 12 // groups
    inner, outer = layer.weight.grad, following.weight.grad.unflatten(1, (12, -1))  # type: ignore[union-attr]
    assert torch.allclose(inner[period:], inner[:-period])
    assert torch.allclose(outer[:, period:], outer[:, :-period])
    assert not torch.allclose(inner[1:period], inner[: period - 1])


def test_no_gradient_reaches_the_early_layers_of_a_vanishing_stack() -> None:
    p = plant("vanishing", 0, "mlp")
    assert accuracy(p.model, p.train) < 0.25
    for model in (p.model, p.untrained):
        norms = gradients(model, p.train)
        assert max(norms[name] for name in p.layers) < 1e-3 * norms[parametric(model)[-1]]


@pytest.mark.parametrize(("family", "seed"), [("cnn", 0), ("mlp", 0), ("mlp", 1), ("mlp", 2)])
def test_gradients_explode_at_first_and_still_do_after_three_epochs(family: str, seed: int) -> None:
    """A step of plain gradient descent at a rate of 1 would replace the weights."""
    p = plant("exploding", seed, family)
    sound = plant("healthy", 0, "mlp")
    for exploding, calm in ((p.untrained, sound.untrained), (p.model, sound.model)):
        norms = gradients(exploding, p.train)
        steps = torch.tensor([norms[name] / weight(exploding, name).norm() for name in p.layers])
        assert steps.isfinite().all()
        assert steps.median() > 1
        norms = gradients(calm, sound.train)
        assert all(norm < 0.1 * weight(calm, name).norm() for name, norm in norms.items())


def test_saturated_tanh_gives_only_its_ends() -> None:
    p = plant("saturated", 0, "mlp")
    assert p.variant == "tanh"
    for name in parametric(p.model)[:-1]:
        ends = (activations(p, f"act_{name}").abs() > 0.99).float().mean().item()
        assert ends > 0.8 if name in p.layers else ends < 0.3


@pytest.mark.parametrize(("family", "place"), [("mlp", "act_fc3"), ("resnet", "block2.norm1")])
def test_most_units_of_the_saturated_layer_never_fire(family: str, place: str) -> None:
    p = plant("saturated", 1, family)
    assert p.layers == ("fc3" if family == "mlp" else "block2.conv1",)
    silent = (activations(p, place) <= 0).all(1).float().mean().item()
    assert 0.75 < silent < 0.9
    assert accuracy(p.model, p.validation) > 0.92
    assert study.dead_units(p)[p.layers[0]] == pytest.approx(silent)


@pytest.mark.parametrize("seed", range(len(CONTROLS)))
def test_healthy_networks_have_learnt(seed: int) -> None:
    p = plant("healthy", seed, "mlp")
    assert p.variant == CONTROLS[seed]
    assert accuracy(p.model, p.validation) > 0.95
    assert p.healthy == parametric(p.model)
    for name in p.healthy:
        moved = (weight(p.model, name) - weight(p.untrained, name)).norm() / weight(p.untrained, name).norm()
        assert moved > 0.2


def test_shuffled_labels_are_the_same_labels() -> None:
    y = torch.arange(1000) % 10
    noisy = shuffled(y, 0.5)
    assert torch.equal(noisy.bincount(), y.bincount())
    assert 0.39 < (noisy != y).float().mean() < 0.5
    assert torch.equal(shuffled(y, 0.0), y)


def test_shifted_samples_are_themselves_or_moved_by_a_pixel() -> None:
    torch.manual_seed(0)
    x = torch.rand(300, 1, 8, 8)
    wide = F.pad(x, (1, 1, 1, 1))
    moves = [wide[:, :, down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
    given = shifted(x)
    matches = torch.stack([(move == given).flatten(1).all(1) for move in moves])
    assert torch.equal(matches.sum(0), torch.ones(300, dtype=torch.long))
    assert matches.any(1).all()
    # Half are left alone, and a ninth of the others move by nothing.
    assert abs(matches[4].float().mean().item() - 5 / 9) < 0.1


# ---------------------------------------------------------------- the study's own arithmetic

TRUE = {
    "layers": ["b"],
    "kinds": ["dead"],
    "healthy": ["a"],
    "implied": {"c": ["overfit"]},
}


@pytest.mark.parametrize(
    ("named", "found", "false"),
    [
        ([], False, 0),
        ([("b", "dead")], True, 0),
        ([("b", None)], True, 0),
        ([("b", "redundant")], False, 0),
        ([("a", "dead")], False, 1),
        ([("a", None), ("b", None), ("c", None)], True, 1),
        ([("c", "overfit")], False, 0),
        ([("c", "dead")], False, 1),
        ([("a", "dead"), ("a", "overfit")], False, 2),
    ],
)
def test_right_and_wrong_accusations(named: list[tuple[str, str | None]], found: bool, false: int) -> None:
    assert study.right(TRUE, named) == found
    assert study.wrong(TRUE, named) == false


def test_calibration_spends_the_alarms_where_most_is_found() -> None:
    """Ten healthy networks allow one alarm. Below, it would buy two more finds; above, one."""
    nothing = {"layers": [], "kinds": [], "healthy": ["a", "b"], "implied": {}}
    truths = {("healthy", "mlp", seed): nothing for seed in range(10)}
    rows = {("healthy", "mlp", seed): {"score": {"a": float(seed), "b": 5.0}} for seed in range(10)}
    for seed, score in enumerate([-1.0, 0.5, 0.6, 8.5, 20.0, 5.0]):
        truths["frozen", "mlp", seed] = TRUE | {"healthy": []}
        rows["frozen", "mlp", seed] = {"score": {"b": score}}
    low, high = study.calibrated("score", truths, rows)
    assert (low, high) == (1.0, 9.0)
    named = study.accused("score", rows, (low, high))
    assert [seed for flaw, _, seed in rows if flaw == "frozen" and named[flaw, "mlp", seed]] == [0, 1, 2, 4]
    assert study.accused("score", {("healthy", "mlp", 0): {"score": {"a": math.nan}}}, (0.0, 1.0)) == {
        ("healthy", "mlp", 0): []
    }


def test_stable_rank_and_spectral_norm_of_known_weights() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[1].weight.copy_(torch.diag(torch.tensor([math.e, 0.0, 0.0])))
        model[2].weight.copy_(math.e**3 * torch.eye(2, 3))
    x = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 5.0]])
    p = Planted("healthy", "mlp", 0, model, model, train=(x, torch.tensor([0, 1])))
    found = study.trivial(p)
    assert found["stable rank"] == pytest.approx({"0": 1.0, "1": 1 / 3, "2": 1.0})
    # Logs 0, 1 and 3, of mean 4/3 and variance 7/3.
    z = [(log - 4 / 3) / math.sqrt(7 / 3) for log in (0, 1, 3)]
    assert found["spectral norm"] == pytest.approx(dict(zip("012", z, strict=True)), abs=1e-6)
    assert found["dead units"] == pytest.approx({"0": 1 / 3, "1": 2 / 3, "2": 0.5})


def test_every_flaw_has_a_family() -> None:
    assert set(FAMILIES) == set(study.flawed.FAMILIES)
    assert all(set(families) <= {"cnn", "mlp", "resnet"} for families in FAMILIES.values())
