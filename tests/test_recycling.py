"""Units that start anew: fresh weights, and a network that computes what it did."""

from __future__ import annotations

import copy
from typing import Any

import brittle
import pytest
import torch
from brittle.repair.recycling import recycle
from torch import Tensor, nn


def chain(kind: str) -> tuple[nn.Sequential, str, str, Tensor]:
    """A network, a layer in it, the layer that reads that one, and inputs."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "0", "2", torch.randn(40, 6)
    if kind == "flattened":
        layers: list[nn.Module] = [nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)]
        return nn.Sequential(*layers), "0", "3", torch.randn(40, 1, 6, 6)
    layers = [nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3)]
    return nn.Sequential(*layers).eval(), "0", "3", torch.randn(40, 1, 6, 6)


@pytest.mark.parametrize("kind", ["linear", "flattened", "norm"])
def test_the_function_is_as_with_the_units_silenced(kind: str) -> None:
    model, layer, reader, x = chain(kind)
    with torch.no_grad():
        model.get_submodule(layer).bias[[1, 3]] = -1e4  # type: ignore[index]
    expected = model(x)
    recycle(model, layer, (1, 3))
    assert torch.allclose(model(x), expected, atol=1e-6)
    # They answer again, and a gradient reaches what the next layer makes of them.
    own = model.get_submodule(layer)(x).movedim(1, 0).flatten(1)
    assert (own[[1, 3]].std(1) > 0).all()
    model(x).square().sum().backward()
    weight = model.get_submodule(reader).get_parameter("weight")
    assert weight.grad is not None
    inputs = [
        k for unit in (1, 3) for k in range(unit * weight.shape[1] // 5, (unit + 1) * weight.shape[1] // 5)
    ]
    assert (weight.grad[:, inputs] != 0).flatten(1).any(0).any()
    assert (weight[:, inputs] == 0).all()


def test_weights_are_the_initialisers_and_others_stay() -> None:
    model, layer, _, _ = chain("linear")
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    recycle(model, layer, [2], seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    fresh = nn.Linear(6, 5)
    assert torch.equal(model[0].weight[2], fresh.weight[2])
    assert torch.equal(model[0].bias[2], fresh.bias[2])
    others = [0, 1, 3, 4]
    assert torch.equal(model[0].weight[others], before[0].weight[others])
    assert torch.equal(model[2].weight[:, others], before[2].weight[:, others])
    assert torch.equal(model[2].bias, before[2].bias)


def test_no_units_is_no_change() -> None:
    model, layer, _, x = chain("norm")
    expected = model(x)
    recycle(model, layer, [])
    assert torch.equal(model(x), expected)


def test_without_a_single_reader_a_norm_keeps_the_function() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.norm(self.conv(x)))

    model, x = Residual().eval(), torch.randn(20, 3, 2, 2)
    with torch.no_grad():
        model.conv.bias[1] = -1e4
    expected = model(x)
    recycle(model, "conv", [1])
    assert torch.allclose(model(x), expected)
    assert model.norm.weight[1] == 0


@pytest.mark.parametrize(
    ("layer", "units", "expected"),
    [
        ("9", [0], "layer must be"),
        ("1", [0], "layer must be a linear layer or a convolution; got '1', a ReLU"),
        ("0", [5], r"units must be integers in \[0, 5\); got 5"),
        ("0", [-1], "units must be integers"),
        ("0", [0.5], "units must be integers"),
    ],
)
def test_wrong_arguments(layer: str, units: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^recycle: {expected}"):
        recycle(chain("linear")[0], layer, units)


def test_a_masked_layer_is_refused() -> None:
    model = chain("linear")[0]
    with (
        brittle.repair.mask(model, "0", [1]),
        pytest.raises(ValueError, match="must not be parametrised"),
    ):
        recycle(model, "0", [1])
