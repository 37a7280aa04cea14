"""``brittle.diagnosis.diagnose``: measurements against closed forms, each kind of flaw planted by hand."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from brittle.demo import digits
from brittle.diagnosis import Thresholds, diagnose
from brittle.diagnosis.flaws.capture import Capture
from brittle.diagnosis.flaws.formation import fresh
from brittle.diagnosis.flaws.gradients import _usual
from brittle.diagnosis.flaws.probes import probe
from brittle.diagnosis.flaws.result import KINDS, Diagnosis
from brittle.diagnosis.flaws.sketch import WIDTH, sketch
from brittle.diagnosis.flaws.units import duplicate_of, silent_region
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Attention, Residual
from models import data as images
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[Tensor, Tensor]


def sets(n: int = 300) -> tuple[Pair, Pair]:
    train, test = digits()
    return (train.x[:n], train.y[:n]), (test.x[:n], test.y[:n])


def mlp(
    widths: tuple[int, ...] = (64, 32, 32, 10), seed: int = 0, activation: type = nn.ReLU
) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), activation()]
        return nn.Sequential(*layers[:-1])


def trained(model: nn.Module, data: Pair, steps: int = 120) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    model.zero_grad()
    return model


def flaws(found: Diagnosis) -> set[tuple[str, str]]:
    return {(flaw.layer, flaw.kind) for flaw in found.flaws}


# ---------------------------------------------------------------- who feeds whom


class Functional(nn.Module):
    """No activation is a module, one layer is defined in another order than it runs, and one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 10)
        self.unused = nn.Linear(3, 3)
        self.one = nn.Linear(64, 16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.one(x.flatten(1)), inplace=True)
        return self.head(torch.sigmoid(self.left(x)) * self.right(x) + x)


def test_parents_are_those_whose_outputs_reach_the_input() -> None:
    model = Functional()
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    with Capture(model) as capture:
        capture.begin(x)
        model(x)
        assert capture.parents() == {
            "one": (),
            "left": ("one",),
            "right": ("one",),
            "head": ("one", "left", "right"),
        }


def test_parents_in_a_residual_network_and_in_attention() -> None:
    for model, expected in (
        (Residual(), {"stem": (), "conv": ("stem",), "head": ("stem", "conv")}),
        (
            Attention().eval(),
            {
                "embed": (),
                "layer.self_attn": ("embed",),
                "layer.linear1": ("embed", "layer.self_attn"),
                "layer.linear2": ("layer.linear1",),
                "head": ("embed", "layer.self_attn", "layer.linear2"),
            },
        ),
    ):
        x = images(4)[0].requires_grad_()
        with Capture(model) as capture:
            capture.begin(x)
            model(x)
            assert capture.parents() == expected


def test_capture_holds_the_output_although_an_activation_overwrites_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        expected = model[1](x.flatten(1)).clone()
    with Capture(model) as capture:
        leaf = x.clone().requires_grad_()
        capture.begin(leaf)
        logits = model(leaf)
        assert torch.equal(capture.flows["1"].output.squeeze(2), expected)
        (gradient,) = torch.autograd.grad(logits.sum(), capture.flows["1"].raw)
    assert torch.allclose(gradient, (expected > 0) * model[3].weight.sum(0))
    assert not any(part._forward_hooks for part in model.modules())


def test_layers_by_pattern_and_what_they_must_be() -> None:
    found = diagnose(mlp(), *sets(64), layers=["1", "5*"])
    assert found.layers == ("1", "5")
    with pytest.raises(ValueError, match=r"diagnose: layers must be names .*'1', '3', '5'; got 'conv'"):
        diagnose(mlp(), *sets(64), layers="conv")


# ---------------------------------------------------------------- measurements


@pytest.mark.parametrize("width", [20, 200])
def test_probe_is_ridge_regression_with_the_best_generalised_cross_validation(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(121, width, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(121, generator=generator) > 0).long() + (x[:, 1] > 1)
    x2 = torch.randn(60, width, generator=generator)
    y2 = (x2[:, 0] > 0).long() + (x2[:, 1] > 1)
    found = probe(x, y, x2, y2)
    assert found is not None
    even = torch.arange(121) % 2 == 0
    expected = []
    for fit in (even, ~even):
        a, targets = x[fit].double().numpy(), functional.one_hot(y[fit], 3).double().numpy()
        a = (a - a.mean(0)) / np.abs(a - a.mean(0)).max()
        largest = np.linalg.eigvalsh(a.T @ a).max()
        scores = []
        for penalty in 10.0 ** np.arange(-6.0, 1.5, 0.5) * largest:
            hat = a @ np.linalg.solve(a.T @ a + penalty * np.eye(width), a.T)
            left = targets - targets.mean(0)
            scores.append((np.square(left - hat @ left).sum() / (len(a) - 1 - np.trace(hat)) ** 2, penalty))
        model = Ridge(alpha=min(scores)[1]).fit(a, targets)
        middle, scale = (
            x[fit].double().mean(0).numpy(),
            float((x[fit].double() - x[fit].double().mean(0)).abs().max()),
        )
        for other, labels in ((x[fit], y[fit]), (x[~fit], y[~fit]), (x2, y2)):
            predicted = model.predict((other.double().numpy() - middle) / scale).argmax(1)
            expected.append(float((predicted == labels.numpy()).mean()))
    means = [(expected[k] + expected[k + 3]) / 2 for k in range(3)]
    assert [found.fitted, found.train, found.validation] == pytest.approx(means, abs=1e-12)


def test_probe_tells_what_the_features_know_by_heart_from_its_own_overfitting() -> None:
    generator = torch.Generator().manual_seed(0)
    y, y2 = (torch.randint(4, (200,), generator=generator) for _ in range(2))
    noise, noise2 = (torch.randn(200, 150, generator=generator) for _ in range(2))
    # Nothing to be read: the probe fits its own samples only.
    blind = probe(noise, y, noise2, y2)
    assert blind is not None
    assert blind.gap < 0.1
    # The training samples' features hold their labels, the others' do not: nobody could know that of samples
    # the network has not seen.
    told = noise + 5 * functional.pad(functional.one_hot(y, 4), (0, 146))
    by_heart = probe(told, y, noise2, y2)
    assert by_heart is not None
    assert by_heart.train > 0.95
    assert by_heart.validation < 0.4


def test_probe_of_features_that_are_not_finite_or_constant() -> None:
    y = torch.arange(20) % 2
    x = torch.zeros(20, 3)
    assert probe(x.index_fill(0, torch.tensor([3]), math.nan), y, x, y) is None
    constant = probe(x, y, x, y)
    assert constant is not None
    assert constant.validation == 0.5


def test_signal_and_gain_of_a_linear_chain_are_the_closed_form() -> None:
    (x, y), validation = sets(64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Linear(12, 10))
    found = diagnose(model, (x, y), validation)
    # With signs for outputs, the gradient at the last layer has length sqrt(10) for every sample.
    signal = dict(zip(found.layers, found.measures["signal"], strict=True))
    assert signal["2"] == pytest.approx(math.sqrt(10))
    with torch.no_grad():
        hidden = model[1](validation[0].flatten(1)).double()
        inputs = validation[0].flatten(1).double()
        expected = math.sqrt(float(hidden.var(0, correction=0).mean() / inputs.var(0, correction=0).mean()))
    gain = dict(zip(found.layers, found.measures["gain"], strict=True))
    assert gain["1"] == pytest.approx(expected, rel=1e-6)


def test_updates_are_the_loss_gradient_over_the_weights() -> None:
    train, validation = sets(128)
    model = mlp()
    found = diagnose(model, train, validation, batch_size=128)
    functional.cross_entropy(model(train[0]), train[1]).backward()
    for layer, update in zip(found.layers, found.measures["update"], strict=True):
        weight = model.get_submodule(layer).weight
        assert update == pytest.approx(float(weight.grad.norm() / weight.detach().norm()), rel=1e-4)


def test_movement_is_that_of_the_weights() -> None:
    before = mlp()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[3].weight += 0.5 * before[3].weight
        after[5].weight.mul_(0.0)
    found = diagnose(after, *sets(64), untrained=before)
    assert dict(zip(found.layers, found.measures["movement"], strict=True)) == pytest.approx(
        {"1": 0.0, "3": 0.5, "5": 1.0}
    )


@settings(max_examples=25, deadline=None)
@given(units=st.integers(1, 12), copies=st.integers(0, 6), seed=st.integers(0, 99))
def test_duplicates_are_found_whatever_their_scale_and_shift(units: int, copies: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(units, 300, generator=generator)
    source = torch.randint(units, (copies,), generator=generator)
    scale = torch.rand(copies, 1, generator=generator) + 0.5
    values = torch.cat([own, scale * own[source] + 3, torch.full((2, 300), 7.0)])
    expected = [*range(units), *source.tolist(), units + copies, units + copies + 1]
    assert duplicate_of(values, 0.99) == expected


def test_an_opposite_unit_is_no_duplicate() -> None:
    row = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert duplicate_of(torch.cat([row, -row]), 0.99) == [0, 1]


def test_silent_regions_are_rectangles() -> None:
    places = torch.ones(4, 5)
    places[1:3, 2:] = 0
    assert silent_region(places.flatten(), (4, 5)) == ((1, 3), (2, 5))
    places[3, 0] = 0
    assert silent_region(places.flatten(), (4, 5)) is None
    assert silent_region(torch.ones(20), (4, 5)) is None
    assert silent_region(torch.zeros(0), None) is None


def test_clusters_are_the_classes_where_features_are_theirs() -> None:
    y = torch.arange(60) % 4
    noise = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    x = 0.9 * functional.one_hot(y, 4) + 0.05 * noise
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[:], model[1].weight[:] = torch.eye(4), torch.ones(4, 4) + 1e-3 * torch.eye(4)
    found = diagnose(model, (x, y), (x, y))
    agreement = dict(zip(found.layers, found.measures["cluster agreement"], strict=True))
    silhouette = dict(zip(found.layers, found.measures["cluster silhouette"], strict=True))
    assert agreement["0"] == 1.0
    assert silhouette["0"] > 0.9
    assert silhouette["0"] > 2 * silhouette["1"] or math.isnan(silhouette["1"])


def test_sketch_keeps_short_features_and_the_distances_of_long_ones() -> None:
    short = torch.rand(7, 3, 8, 8)
    assert torch.equal(sketch(short, True), short.flatten(1))
    tokens = torch.rand(30, 16, 96, generator=torch.Generator().manual_seed(0))
    kept = sketch(tokens, False)
    assert kept.shape == (30, WIDTH)
    ratio = torch.pdist(kept) / torch.pdist(tokens.flatten(1))
    assert 0.8 < float(ratio.min()) <= float(ratio.max()) < 1.2


# ---------------------------------------------------------------- flaws, planted by hand


def test_a_healthy_network_has_no_flaws() -> None:
    train, validation = sets()
    before = mlp()
    found = diagnose(trained(copy.deepcopy(before), train), train, validation, before)
    assert found.flaws == ()
    assert "No flaws found." in found.table()
    assert len(found.findings) == len(found.layers) * len(KINDS)


def test_dead_units_are_named() -> None:
    model = mlp()
    with torch.no_grad():
        model[3].bias[5:25] = -100
    train, validation = sets()
    found = diagnose(model, train, validation)
    (finding,) = found.of("3", "dead")
    with torch.no_grad():
        silent = (model[:4](validation[0]) <= 0).all(0)
    assert set(range(5, 25)) <= set(finding.channels)
    assert finding.channels == tuple(silent.nonzero().flatten().tolist())
    assert (finding.severity, finding.evidence["dead units"]) == ("mild", float(silent.double().mean()))
    assert {layer for layer, kind in flaws(found) if kind == "dead"} == {"3"}


def test_a_dead_layer_is_to_blame_and_not_those_before_it() -> None:
    model = mlp((64, 24, 24, 24, 10))
    with torch.no_grad():
        model[5].bias.fill_(-100)
    found = diagnose(model, *sets())
    assert {layer for layer, kind in flaws(found) if kind == "dead"} == {"5"}
    assert found.severity("5", "dead") == "severe"
    assert "no layer after it" in found.of("1", "dead")[0].reason


def test_a_head_of_zeros_is_no_fault_of_the_layers_before_it() -> None:
    model = mlp()
    nn.init.zeros_(model[5].weight)
    assert "dead" not in {kind for _, kind in flaws(diagnose(model, *sets()))}


def test_a_silent_corner_is_located() -> None:
    class Cropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.conv(x))
            window = torch.ones(8, 8)
            window[:, 5:] = 0
            return self.head((x * window).flatten(1))

    (finding,) = diagnose(Cropped(), *sets()).of("conv", "dead")
    assert finding.region == ((0, 8), (5, 8))


def test_copied_channels_are_redundant() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)
    )
    with torch.no_grad():
        model[2].weight[6:] = 2 * model[2].weight[:6]
        model[2].bias[6:] = 2 * model[2].bias[:6]
    found = diagnose(model, *sets())
    (finding,) = found.of("2", "redundant")
    assert (finding.severity, finding.channels) == ("severe", tuple(range(6, 12)))
    assert found.severity("0", "redundant") == "none"


def test_features_that_all_samples_share_are_redundant() -> None:
    train, validation = sets()
    model = trained(mlp(), train)
    with torch.no_grad():
        model[3].bias += 1000
    found = diagnose(model, train, validation)
    assert found.severity("3", "redundant") == "severe"
    assert found.of("3", "redundant")[0].evidence["sample redundancy"] > 0.999


@pytest.mark.parametrize("untrained", [True, False])
def test_a_frozen_layer_is_unformed(untrained: bool) -> None:
    train, validation = sets()
    before = mlp()
    model = copy.deepcopy(before)
    model[3].requires_grad_(False)
    trained(model, train)
    found = diagnose(model, train, validation, before if untrained else None)
    assert {layer for layer, kind in flaws(found) if kind == "unformed"} == {"3"}


def test_every_layer_of_an_untrained_network_is_unformed() -> None:
    model = mlp()
    for untrained in (copy.deepcopy(model), None):
        found = diagnose(model, *sets(), untrained=untrained)
        assert {layer for layer, kind in flaws(found) if kind == "unformed"} == {"1", "3", "5"}


def test_fine_tuning_moves_every_layer_a_little_and_is_no_flaw() -> None:
    before = mlp()
    after = copy.deepcopy(before)
    with torch.no_grad():
        for part in after.parameters():
            part += 0.02 * part.std() * torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
    found = diagnose(after, *sets(), untrained=before)
    assert not {kind for _, kind in flaws(found)} & {"unformed"}


def test_an_untrained_copy_from_another_seed_is_noticed() -> None:
    train, validation = sets()
    found = diagnose(trained(mlp(), train), train, validation, mlp(seed=1))
    assert any("other initial weights" in note for note in found.notes)
    assert "unformed" not in {kind for _, kind in flaws(found)}


def test_fresh_weights_are_what_reset_parameters_gives_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    layer = nn.Linear(5, 3)
    after = torch.get_rng_state()
    found = fresh(layer, 7, 2)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(state, after)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = nn.Linear(5, 3).weight.double().flatten()
    assert torch.equal(found[0], expected)
    assert not torch.equal(found[0], found[1])


def test_a_layer_that_holds_the_training_labels_is_overfit_and_those_before_it_are_not() -> None:
    (x, _), validation = sets(200)
    random = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    # As many units as it takes for the next layer to give each training sample the label that it drew.
    model = mlp((64, 400, 10, 10))
    with torch.no_grad():
        hidden = functional.relu(model[1](x.flatten(1))).double()
        targets = functional.one_hot(random, 10).double()
        model[3].weight[:] = torch.linalg.lstsq(hidden, targets, driver="gelsd").solution.T
        model[3].bias.zero_()
        model[5].weight[:] = torch.eye(10)
        assert (model(x).argmax(1) == random).float().mean() > 0.95
    found = diagnose(model, (x, random), validation)
    accused = {layer for layer, kind in flaws(found) if kind == "overfit"}
    assert "3" in accused
    assert "1" not in accused
    assert found.severity("3", "overfit") == "severe"


def test_gradients_vanish_before_sigmoids() -> None:
    model = mlp((64, *(24,) * 7, 10), activation=nn.Sigmoid)
    found = diagnose(model, *sets())
    accused = {layer for layer, kind in flaws(found) if kind == "vanishing"}
    assert {"1", "3", "5"} <= accused
    assert not accused & {"13", "15"}
    # A sigmoid's slope is at most 1/4.
    ratio = dict(zip(found.layers, found.measures["signal ratio"], strict=True))
    assert all(ratio[layer] < 0.25 for layer in found.layers[1:-1])


def test_gradients_explode_through_large_weights_and_the_layer_to_blame_is_named() -> None:
    model = mlp((64, *(48,) * 5, 10))
    with torch.no_grad():
        for part in model:
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(
                    part.weight, generator=torch.Generator().manual_seed(len(part.weight))
                )
        assert "exploding" not in {kind for _, kind in flaws(diagnose(model, *sets()))}
        model[5].weight *= 60
    found = diagnose(model, *sets())
    assert {layer for layer, kind in flaws(found) if kind == "exploding"} == {"5"}


def test_values_that_overflow_explode_where_they_first_do() -> None:
    model = mlp((64, 24, 24, 24, 10))
    with torch.no_grad():
        model[5].weight.fill_(3e38)
    found = diagnose(model, *sets())
    assert found.severity("5", "exploding") == "severe"
    assert found.severity("1", "exploding") == "none"
    assert found.severity("5", "overfit") is None
    assert any("fragility could not be judged" in note for note in found.notes)
    assert "?" in found.table()


def test_a_layer_that_loses_what_was_known_breaks_the_link() -> None:
    train, validation = sets()
    model = trained(mlp(), train)
    with torch.no_grad():
        model[3].weight[:] = torch.outer(torch.ones(32), model[3].weight[0])
        model[3].bias.zero_()
    found = diagnose(model, train, validation)
    assert ("3", "broken-link") in flaws(found)
    assert found.of("3", "broken-link")[0].evidence["loss of reading"] > 0.4
    assert found.severity("1", "broken-link") == "none"


def test_a_layer_that_undoes_its_predecessor_is_a_flip() -> None:
    train, validation = sets()
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 10))
    # The second layer lets one direction drown the others, the third takes that back.
    direction = functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    drown = torch.eye(64) + 8 * torch.outer(direction, direction)
    with torch.no_grad():
        for layer, weight in zip((1, 2, 3), (torch.eye(64), drown, torch.linalg.inv(drown)), strict=True):
            model[layer].weight[:] = weight
            model[layer].bias.zero_()
    found = diagnose(model, train, validation)
    (finding,) = found.of("3", "broken-link")
    assert (finding.severity, "undoes" in finding.reason) == ("mild", True)
    assert finding.evidence["flip"] > 0.3
    assert {layer for layer, kind in flaws(found) if kind == "broken-link"} == {"3"}


def test_a_layer_that_enlarges_what_an_attack_moves_is_fragile() -> None:
    (x, y), validation = sets()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.Linear(64, 10))
    # Directions in which the samples hardly differ, which the attack and nobody else uses.
    _, _, directions = torch.linalg.svd((x.flatten(1) - x.flatten(1).mean(0)).double(), full_matrices=True)
    with torch.no_grad():
        strength = torch.ones(64, dtype=torch.float64)
        strength[-20:] = 300
        model[1].weight[:] = (strength.unsqueeze(1) * directions).float()
    found = diagnose(model, (x, y), validation, eps=0.05)
    assert ("1", "fragile") in flaws(found)
    assert ("2", "fragile") not in flaws(found)


# ---------------------------------------------------------------- a guest in the caller's model


def test_the_model_is_left_as_it_was_and_the_result_is_the_same_bits() -> None:
    model, (x, y) = Residual(), images(64)
    model.train()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    one, other = (diagnose(model, (x, y), (x, y), batch_size=32).summary() for _ in range(2))
    assert one == other
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert all(part.training for part in model.modules())
    assert not model.stem.weight.requires_grad
    assert model.conv.weight.requires_grad
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.conv.weight.grad is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


def test_layers_that_begin_with_zeros_do_not_explode() -> None:
    class Gated(nn.Module):
        """Two residual branches that a fresh network leaves out."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(64, 24), nn.Linear(24, 10)
            self.branches = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
            for branch in self.branches:
                nn.init.zeros_(branch.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x.flatten(1)))
            for branch in self.branches:
                x = x + torch.tanh(branch(x))
            return self.head(x)

    found = diagnose(Gated(), *sets())
    assert "exploding" not in {kind for _, kind in flaws(found)}
    assert math.isnan(dict(zip(found.layers, found.measures["update"], strict=True))["branches.0"])


def test_transformers_and_loaders_are_judged() -> None:
    x, y = images(48)
    loader = [(x[:20], y[:20]), (x[:0], y[:0]), (x[20:], y[20:])]
    found = diagnose(Attention(), loader, loader, samples=40)
    assert found.layers == ("embed", "layer.self_attn", "layer.linear1", "layer.linear2", "head")
    assert found.samples == {"train": 40, "validation": 40}
    assert any("'layer.self_attn.out_proj'" in note for note in found.notes)


def test_layers_that_run_twice_are_judged_by_their_first_run() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.layer(torch.relu(self.layer(x.flatten(1))))))

    found = diagnose(Twice(), *sets(64))
    assert any("first run was judged: 'layer'" in note for note in found.notes)


def test_a_mean_and_std_are_the_targets() -> None:
    import brittle

    (x, y), validation = sets(64)
    model = mlp()
    target = brittle.Target(model, mean=[0.3], std=[0.5])
    scaled, scaled_validation = (x - 0.3) / 0.5, (validation[0] - 0.3) / 0.5
    plain = diagnose(model, (scaled, y), (scaled_validation, validation[1]), bounds=(-0.6, 1.4), eps=0.1)
    through = diagnose(target, (x, y), validation, eps=0.05)
    for name in ("update", "signal", "gain", "moved by noise", "moved by attack"):
        assert through.measures[name] == pytest.approx(plain.measures[name], rel=1e-3), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    found = diagnose(mlp().to(dtype), *sets(64))
    single = diagnose(mlp(), *sets(64))
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    assert found.measures["gain"] == pytest.approx(single.measures["gain"], rel=tolerance)


def test_measurements_hardly_depend_on_the_batches() -> None:
    train, validation = sets()
    one, other = (diagnose(mlp(), train, validation, batch_size=size) for size in (300, 37))
    for name in ("dead units", "duplicate units", "probe, train", "probe, validation", "signal", "gain"):
        assert other.measures[name] == pytest.approx(one.measures[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lambda x: x}, "model must be an nn.Module; got function"),
        ({"model": nn.Flatten()}, r"model must have layers with weights .*; got none"),
        ({"model": nn.Conv2d(1, 4, 3)}, r"the model must return logits \[N, C\] with N = 64"),
        ({"train": (torch.rand(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))}, "data must hold samples"),
        ({"train": (torch.rand(64, 1, 8, 8), torch.full((64,), 10))}, r"y must be in \[0, 10\).*10 to 10"),
        ({"validation": (2 * torch.ones(64, 1, 8, 8), torch.zeros(64).long())}, "x must lie inside bounds"),
        ({"untrained": mlp((64, 16, 10))}, "untrained must"),
        ({"untrained": mlp((64, 32, 31, 10))}, "untrained must be of model's shape; layer '3' differs"),
        ({"samples": 7}, "samples must be an integer >= 8; got 7"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
        ({"eps": -0.1}, "eps must be"),
        ({"seed": 2**64}, "seed must be"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, object], message: str) -> None:
    train, validation = sets(64)
    given = {"model": mlp(), "train": train, "validation": validation} | change
    with pytest.raises(ValueError, match=rf"^diagnose: .*{message}"):
        diagnose(**given)  # type: ignore[arg-type]


def test_thresholds_are_checked_and_obeyed() -> None:
    with pytest.raises(ValueError, match=r"thresholds\.dead must be two numbers >= 0; got 0\.3"):
        Thresholds(dead=0.3)  # type: ignore[arg-type]
    model = mlp()
    with torch.no_grad():
        model[3].bias[:4] = -100
    strict = Thresholds(dead=(0.1, 0.12))
    assert diagnose(model, *sets(64)).severity("3", "dead") == "none"
    assert diagnose(model, *sets(64), thresholds=strict).severity("3", "dead") == "severe"


def test_summary_is_json_and_of_names_what_they_must_be() -> None:
    import json

    found = diagnose(mlp(), *sets(64))
    assert json.loads(json.dumps(found.summary(), allow_nan=False)) == found.summary()
    with pytest.raises(ValueError, match=r"layer must be one of '1', '3', '5'; got '2'"):
        found.of("2")
    with pytest.raises(ValueError, match=r"kind must be one of dead, .*; got 'slow'"):
        found.of("1", "slow")


def test_gradients_that_overflow_explode_although_the_outputs_do_not() -> None:
    model = mlp((64, 24, 24, 24, 10))
    with torch.no_grad():
        model[7].weight.mul_(3e30)
        model[5].weight.mul_(1e6)
    found = diagnose(model, *sets())
    assert found.severity("7", "exploding") == "severe"


@pytest.mark.parametrize("copied", [True, False])
def test_an_untrained_network_has_no_other_flaw_than_that(copied: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
    found = diagnose(model, *sets(500), untrained=copy.deepcopy(model) if copied else None)
    assert {kind for _, kind in flaws(found)} == {"unformed"}
    assert {layer for layer, _ in flaws(found)} >= {"2", "6", "8"}


def test_what_few_samples_show_by_chance_is_no_flaw() -> None:
    eager = Thresholds(memory=(0.1, 0.4), loss_of_reading=(0.1, 0.4))
    accused, gaps, losses = set(), [], []
    for seed in range(14):
        generator = torch.Generator().manual_seed(seed)
        pairs = [
            (torch.rand(24, 1, 8, 8, generator=generator), torch.randint(2, (24,), generator=generator))
            for _ in range(2)
        ]
        before = mlp((64, 32, 32, 2), seed)
        model = copy.deepcopy(before)
        with torch.no_grad():
            for part in model.parameters():
                part *= 2  # moved, so that nothing is excused as unformed
        found = diagnose(model, *pairs, untrained=before, thresholds=eager)
        # Similarity has a threshold of its own, and of 24 samples little of it.
        accused |= {
            f.kind for f in found.flaws if f.evidence.get("link", 1.0) > 0.25 and "undoes" not in f.reason
        }
        gaps += found.measures["probe gap added"]
        losses += found.measures["loss of reading"]
    assert max(gaps) > 0.1 < max(losses)
    assert not accused & {"overfit", "broken-link"}


def test_one_layer_with_a_large_gradient_is_not_the_network() -> None:
    assert _usual([0.1, 7.0, 0.2]) == 0.2
    assert _usual([0.1, math.nan, 7.0, 0.2]) == 0.2
    assert _usual([0.1, 7.0]) == 7.0
    assert math.isnan(_usual([]))


def test_features_that_an_untrained_layer_makes_alike_are_not_called_redundant() -> None:
    model = mlp()
    with torch.no_grad():
        model[3].bias += 1000
    found = diagnose(model, *sets(), untrained=copy.deepcopy(model))
    assert found.of("3", "redundant")[0].evidence["sample redundancy"] > 0.999
    assert (found.severity("3", "redundant"), found.severity("3", "unformed")) == ("none", "severe")
