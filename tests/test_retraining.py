"""Layers trained again: they alone change, from where they are told to begin."""

import copy
from collections.abc import Iterator

import pytest
import torch
from brittle.repair import Batch, cross_entropy, mask, retrain
from torch import Tensor, nn
from zoo import Block


def data(count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0.5).long() + (x[:, 0, 0, 0] > 0.5)


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        Block(4, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(8, affine=False),
        nn.Linear(8, 3),
    )
    model.train()
    for _ in range(3):
        model(data()[0])
    return model.eval()


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("training", [False, True])
def test_only_the_named_layers_and_their_norms_change(training: bool) -> None:
    model = network().train(training)
    model[8].weight.requires_grad_(False)
    modes = [part.training for part in model.modules()]
    before, generator = state(model), torch.get_rng_state()
    retrain(model, ["0", "4.conv2"], data(), epochs=2, batch_size=20)
    ours = {f"{norm}.{name}" for norm in ("1", "4.norm2") for name in state(nn.BatchNorm2d(1))}
    assert changed(model, before) == {"0.weight", "0.bias", "4.conv2.weight"} | ours
    assert [part.training for part in model.modules()] == modes
    assert [part.requires_grad for part in model[8].parameters()] == [False, True]
    assert all(part.grad is None for part in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_what_is_kept_runs_in_evaluation_mode() -> None:
    model, seen = network(), []

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        seen.append([name for name, part in model.named_modules() if part.training])
        return cross_entropy(batch)

    retrain(model, "4", data(), epochs=2, batch_size=30, step=step)
    block = {f"4.{name}".rstrip(".") for name, _ in Block(4, 8, 2).named_modules()}
    assert len(seen) == 4
    assert all(set(names) == block for names in seen)


@pytest.mark.parametrize("reset", ["none", "default", "unit-variance"])
def test_the_same_call_gives_the_same_bits(reset: str) -> None:
    models = []
    for noise in range(2):
        model = copy.deepcopy(network_of(7))
        torch.rand(noise)
        retrain(model, ["0", "8"], data(), reset=reset, epochs=1, batch_size=20, seed=5)
        models.append(state(model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    other = network_of(7)
    retrain(other, ["0", "8"], data(), reset=reset, epochs=1, batch_size=20, seed=6)
    assert not torch.equal(other[0].weight, models[0]["0.weight"])


@pytest.mark.parametrize("reset", ["default", "unit-variance"])
def test_the_seed_decides_what_training_begins_with(reset: str) -> None:
    models = [network_of(7) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        retrain(model, "8", data(), reset=reset, epochs=1, seed=seed, optimizer=standing_still)
    assert torch.equal(models[0][8].weight, models[1][8].weight)
    assert not torch.equal(models[0][8].weight, models[2][8].weight)


def network_of(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return network()


def test_a_default_reset_forgets_the_weights_and_the_norms_statistics() -> None:
    models = [network_of(1), network_of(2)]
    for model in models:
        retrain(model, "0", data(), reset="default", epochs=1, optimizer=standing_still)
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert torch.equal(models[0][1].weight, torch.ones(4))
    assert models[0][1].num_batches_tracked == 1
    limit = 1 / 3  # of torch's initial uniform weights: one over the root of 9 inputs
    assert models[0][0].weight.abs().max() <= limit
    assert models[0][0].weight.abs().max() > limit / 2


def standing_still(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_unit_variance_starts_orthonormal_up_to_scale_with_variance_one(shape: str) -> None:
    inner = 80 if shape == "wide" else 12
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, inner), nn.Tanh(), nn.Linear(inner, 3)
    )
    for part in model.parameters():
        nn.init.constant_(part, 0.7)
    x, y = data()
    retrain(model, ["3", "0", "5"], (x, y), reset="unit-variance", batch_size=60, optimizer=standing_still)
    for index in (0, 3, 5):
        assert model[: index + 1](x).var().item() == pytest.approx(1, abs=1e-4)
        rows = model[index].weight.flatten(1)
        rows = rows if len(rows) <= rows.shape[1] else rows.T
        gram = rows @ rows.T
        torch.testing.assert_close(gram / gram[0, 0], torch.eye(len(gram)), rtol=0, atol=1e-4)
        assert (model[index].bias == 0).all()
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.is_grad_enabled()
    assert all(part.requires_grad for part in model.parameters())


def test_unit_variance_leaves_other_layers_and_silent_outputs_alone() -> None:
    model, (x, y) = network(), data()
    before = state(model)
    retrain(model, "8", (x, y), reset="unit-variance", epochs=1, optimizer=standing_still)
    assert changed(model, before) == {"8.weight", "8.bias"}
    silent = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    retrain(silent, "1", (torch.zeros_like(x), y), reset="unit-variance", epochs=1, optimizer=standing_still)
    rows = silent[1].weight
    torch.testing.assert_close(rows @ rows.T, torch.eye(3))


def test_a_layer_that_runs_twice_is_scaled_at_its_first_run() -> None:
    layer, (x, y) = nn.Linear(64, 64), data()
    model = nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer)
    retrain(model, "1", (x, y), reset="unit-variance", epochs=1, optimizer=standing_still)
    assert layer(x.flatten(1)).std().item() == pytest.approx(1, abs=1e-4)


def test_an_attention_is_reset_as_it_was_made() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(attention, Last(), nn.Linear(8, 2))
    x, y = torch.rand(10, 4, 8), torch.arange(10) % 2
    for part in model.parameters():
        nn.init.constant_(part, 3.0)
    for reset in ("default", "unit-variance"):
        retrain(model, "0.self_attn", (x, y), reset=reset, epochs=1, optimizer=standing_still)
        assert (attention.self_attn.in_proj_bias == 0).all()
        assert (attention.self_attn.out_proj.bias == 0).all()
        assert attention.self_attn.in_proj_weight.std() > 0.1
        assert (attention.linear1.weight == 3).all()


class Last(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, -1]


def quick(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def test_a_layer_that_was_spoiled_is_mended() -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, -100.0)  # every unit dead, for good
    options = {"epochs": 20, "batch_size": 20, "validation": (x, y), "optimizer": quick}
    stuck = retrain(model, "0", (x, y), **options)
    assert stuck.history[-1]["validation_accuracy"] < 0.6
    mended = retrain(model, ["0", "2"], (x, y), reset="unit-variance", **options)
    assert mended.history[-1]["validation_accuracy"] > 0.9


def test_wrong_arguments() -> None:
    model, pair = network(), data()
    before = state(model)
    for layers, options, message in (
        ("9", {}, "layer must be a name"),
        (["0", "2"], {}, "layers must have parameters; '2' has none"),
        ([], {}, "model must have parameters to train"),
        ("0", {"reset": "lsuv"}, "reset must be one of 'none', 'default', 'unit-variance'; got 'lsuv'"),
        ("0", {"parameters": ["8"]}, "layers decide what is trained"),
        ("0", {"epochs": 0}, "epochs must be an integer"),
    ):
        with pytest.raises(ValueError, match=f"retrain: .*{message}"):
            retrain(model, layers, pair, **options)
    with pytest.raises(ValueError, match="retrain: data must hold samples"):
        retrain(model, "0", (pair[0][:0], pair[1][:0]), reset="unit-variance")
    assert not changed(model, before) - {"0.weight", "0.bias", *(f"1.{n}" for n in state(nn.BatchNorm2d(1)))}
    with mask(model, "8", [0]), pytest.raises(ValueError, match="a ParametrizedLinear has"):
        retrain(model, "8", pair, reset="default")
    with pytest.raises(ValueError, match="a Place has not"):
        retrain(nn.Sequential(Place()), "0", pair, reset="default")

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        yield pair

    with pytest.raises(ValueError, match="retrain: data must be iterable anew"):
        retrain(model, "0", loader(), reset="unit-variance", epochs=1)


class Place(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias
