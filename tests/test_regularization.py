"""Penalties: their values in closed form, their gradients, and that looking at a batch changes nothing."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brittle.repair import Batch, duplicate_units, mask, regularizer, train
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

X, Y = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double(), torch.arange(12) % 3


def network() -> nn.Sequential:
    """Conv, norm, linear: every kind of parameter; float64."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5), nn.Tanh()),
        nn.Linear(5, 3),
    )
    return model.double()


def batch_of(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Batch:
    return Batch(model, x, y, torch.arange(len(x)), 0, 0)


def plain_redundancy(rows: Tensor) -> Tensor:
    directions = rows / rows.norm(dim=1, keepdim=True)
    cosines = directions @ directions.T
    pairs = [cosines[i, j] ** 2 for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return torch.stack(pairs).mean()


def weights_of(model: nn.Sequential) -> list[Tensor]:
    return [model[0].weight, model[3][1].weight, model[4].weight]


def test_l1_l2_and_elastic_are_sums_over_weights() -> None:
    model = network()
    absolute = sum(weight.abs().sum() for weight in weights_of(model))
    squared = sum(weight.square().sum() for weight in weights_of(model))
    torch.testing.assert_close(regularizer(l1=0.3)(model), 0.3 * absolute)
    torch.testing.assert_close(regularizer(l2=0.2)(model), 0.2 * squared)
    expected = 0.5 * (0.25 * absolute + 0.75 / 2 * squared)
    torch.testing.assert_close(regularizer(elastic=(0.5, 0.25))(model), expected)
    together = regularizer(0.3, 0.2, (0.5, 0.25))(model)
    torch.testing.assert_close(together, 0.3 * absolute + 0.2 * squared + expected)
    assert regularizer()(model) == 0
    everything = sum(part.abs().sum() for part in model.parameters())
    torch.testing.assert_close(regularizer(l1=1.0, norms_and_biases=True)(model), everything)


def test_gradients_are_the_closed_form_ones() -> None:
    model = network()
    regularizer(l1=0.3, l2=0.2, elastic=(0.5, 0.25))(model).backward()
    for weight in weights_of(model):
        expected = (0.3 + 0.125) * weight.sign() + (0.4 + 0.375) * weight
        torch.testing.assert_close(weight.grad, expected.detach())
    assert all(part.grad is None for part in (*model[1].parameters(), model[0].bias, model[4].bias))


def test_layers_have_their_own_strengths_and_the_nearest_name_counts() -> None:
    model = network()
    absolute = [weight.abs().sum() for weight in weights_of(model)]
    squared = [weight.square().sum() for weight in weights_of(model)]
    found = regularizer(l1=1.0, layers={"3": {"l1": 3.0, "l2": 0.5}, "4": {"l1": 0}})(model)
    torch.testing.assert_close(found, absolute[0] + 3 * absolute[1] + 0.5 * squared[1])
    found = regularizer(layers={"3": {"l1": 3.0}, "3.1": {"l2": 2.0}, "": {"l1": 0.1}})(model)
    torch.testing.assert_close(found, 0.1 * (absolute[0] + absolute[2]) + 2 * squared[1])
    found = regularizer(l2=1.0, layers={"0": {"l1": 3.0}, "3": {"l2": 0}, "4": {"l2": 0}})(model)
    torch.testing.assert_close(found, 3 * absolute[0] + squared[0])  # what is not named stays
    with pytest.raises(ValueError, match=r"layers must be names .* got 'head'"):
        regularizer(layers={"head": {"l1": 1.0}})(model)


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped", "transposed"])
def test_redundancy_of_weights(kind: str) -> None:
    layer: Any = {
        "linear": nn.Linear(6, 4),
        "conv": nn.Conv1d(3, 4, 3),
        "grouped": nn.Conv2d(4, 4, 3, groups=2),
        "transposed": nn.ConvTranspose1d(6, 4, 3, groups=2),
    }[kind].double()
    rows = layer.weight.flatten(1)
    if kind == "transposed":
        rows = torch.stack([layer.weight[3 * (i // 2) : 3 * (i // 2) + 3, i % 2].flatten() for i in range(4)])
    penalty = regularizer(redundancy=0.7)
    torch.testing.assert_close(penalty(layer), 0.7 * plain_redundancy(rows))
    (found,) = torch.autograd.grad(penalty(layer), layer.weight)
    (expected,) = torch.autograd.grad(0.7 * plain_redundancy(rows), layer.weight)
    torch.testing.assert_close(found, expected)


def test_redundancy_is_one_for_copies_and_zero_for_orthogonal_or_silent_units() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]).outer(torch.rand(4)))
    torch.testing.assert_close(regularizer(redundancy=1.0)(layer), torch.tensor(1.0))
    with mask(layer, "", [0, 1, 2]):
        assert regularizer(redundancy=1.0)(layer) == 0
    nn.init.eye_(layer.weight)
    assert regularizer(redundancy=1.0)(layer) == 0
    assert regularizer(redundancy=1.0)(nn.Linear(4, 1)) == 0


def test_masked_weights_are_not_paid_for() -> None:
    model = network()
    with mask(model, "4", [0, 2]):
        value = regularizer(l1=1.0, norms_and_biases=True, layers={"0": {"l1": 0}, "1": {"l1": 0}})(model)
    expected = sum(part.abs().sum() for part in model[3].parameters())
    expected = expected + model[4].weight[1].abs().sum() + model[4].bias[1].abs()
    torch.testing.assert_close(value, expected)


def test_shared_parameters_are_paid_for_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    torch.testing.assert_close(regularizer(l1=1.0)(model), model[0].weight.abs().sum())


def test_gradient_penalty_of_a_linear_model_in_closed_form() -> None:
    model, x, y = nn.Linear(6, 3).double(), torch.rand(5, 6).double(), torch.tensor([0, 1, 2, 0, 1])
    errors = model(x).softmax(1) - F.one_hot(y, 3)  # d CE / d logits
    expected = (errors @ model.weight).square().sum(1).mean()
    found = regularizer(gradient_penalty=2.0, l1=0.1).on_batch(batch_of(model, x, y))
    torch.testing.assert_close(found, 2 * expected + 0.1 * model.weight.abs().sum())


def test_gradient_penalty_is_differentiated_twice_rightly() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    penalty = regularizer(gradient_penalty=1.0, redundancy=0.3, redundancy_of="activations")

    def value(*tensors: Tensor) -> Tensor:
        copied = copy.deepcopy(model)
        for name, tensor in zip(parameters, tensors, strict=True):
            owner, _, key = name.rpartition(".")
            module = copied.get_submodule(owner)
            del module._parameters[key]
            setattr(module, key, tensor)
        return penalty.on_batch(batch_of(copied, X[:4], Y[:4]))

    # Where some tensors are plain attributes, so that they may be leaves of another graph.
    tensors = tuple(part.detach().requires_grad_() for part in parameters.values())
    found = torch.autograd.grad(value(*tensors), tensors, allow_unused=True)
    for i, tensor in enumerate(tensors):
        direction = torch.randn_like(tensor)
        ends = []
        for sign in (1, -1):
            moved = list(tensors)
            moved[i] = tensor + sign * 1e-6 * direction
            ends.append(value(*moved).item())
        gradient = torch.zeros_like(tensor) if found[i] is None else found[i]
        assert (gradient * direction).sum().item() == pytest.approx(
            (ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7
        )


def test_redundancy_of_activations_is_that_of_what_duplicates_are_told_by() -> None:
    model = network()
    penalty = regularizer(redundancy_of="activations", layers={"0": {"redundancy": 1.0}})
    nn.init.constant_(model[1].bias, 0.5)
    outputs = model[:2](X).transpose(0, 1).flatten(1)  # behind the norm, in training mode
    outputs = outputs - outputs.mean(1, keepdim=True)
    torch.testing.assert_close(penalty.on_batch(batch_of(model)), plain_redundancy(outputs))
    model[0].weight.data[:] = model[0].weight.data[:1]
    torch.testing.assert_close(
        penalty.on_batch(batch_of(model)), torch.tensor(1.0).double(), rtol=1e-9, atol=0
    )
    nn.init.ones_(model[0].bias)
    model[1].reset_running_stats()
    assert duplicate_units(model, "0", X, 0.999).groups == ((0, 1, 2, 3),)


def test_a_look_at_a_batch_leaves_buffers_and_gradients_alone() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    value = regularizer(gradient_penalty=1.0, redundancy=1.0, redundancy_of="activations").on_batch(
        batch_of(model)
    )
    assert value > 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(part.grad is None for part in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert X.grad is None
    assert not X.requires_grad


def test_training_pays_the_penalty_and_gets_smaller_gradients() -> None:
    x, y = X.float(), Y
    results = {}
    for strength in (0.0, 5.0):
        torch.manual_seed(0)
        model = network().float()
        penalty = regularizer(gradient_penalty=strength)
        training = train(model, (x, y), epochs=15, batch_size=6, regularizer=penalty)
        measured = regularizer(gradient_penalty=1.0).on_batch(batch_of(model.eval(), x, y)).item()
        results[strength] = measured, training.history[-1]["penalty"]
    assert results[0.0][1] == 0
    assert results[5.0][1] > 0
    assert results[5.0][0] < 0.5 * results[0.0][0]
    with pytest.raises(ValueError, match="Penalty: on_batch must be called"):
        penalty(model)


def test_training_with_a_plain_function_is_as_before() -> None:
    model = nn.Linear(4, 2)
    training = train(
        model,
        (torch.rand(8, 4), torch.arange(8) % 2),
        epochs=1,
        regularizer=lambda module: module.weight.square().sum() * 0 + 3.0,
    )
    assert training.history[0]["penalty"] == 3.0


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(0, 1), st.integers(1, 4))
def test_penalties_add_up(l1: float, l2: float, strength: float, ratio: float, units: int) -> None:
    model = nn.Linear(3, units).double()
    parts = [regularizer(l1=l1), regularizer(l2=l2), regularizer(elastic=(strength, ratio))]
    whole = regularizer(l1, l2, (strength, ratio))(model)
    torch.testing.assert_close(whole, sum(part(model) for part in parts))
    assert whole >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l1": -1.0}, "l1 must be finite and >= 0; got -1.0"),
        ({"l2": float("nan")}, "l2 must be finite"),
        ({"redundancy": float("inf")}, "redundancy must be finite"),
        ({"gradient_penalty": -1.0}, "gradient_penalty must be finite"),
        ({"elastic": 0.5}, r"elastic must be \(strength, ratio\)"),
        ({"elastic": (1.0, 1.5)}, r"elastic's ratio must be in \[0, 1\]; got 1.5"),
        ({"elastic": (-1.0, 0.5)}, "elastic's strength must be finite"),
        ({"redundancy_of": "units"}, "redundancy_of must be one of"),
        ({"layers": {"0": {"l3": 1.0}}}, "layers' terms must be one of 'l1', .* got 'l3'"),
        ({"layers": {"0": {"l1": -1.0}}}, "l1 must be finite"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"regularizer: .*{message}"):
        regularizer(**arguments)


def test_a_model_without_weights_costs_nothing() -> None:
    assert regularizer(l1=1.0)(nn.ReLU()) == 0
