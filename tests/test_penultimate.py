"""The features before the last linear layer: those that give the logits, of every pass anew."""

import copy

import brittle
import pytest
import torch
from brittle.evaluation.penultimate import capture_penultimate
from models import MODELS, make
from torch import Tensor, nn


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_penultimate_features_give_the_logits(name: str) -> None:
    model, x = make(name).eval(), images(6, 3, 8, 8)
    last_layer = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad(), capture_penultimate(brittle.Target.of(model, "test")) as last:
        assert last.features is None
        logits = model(x)
        assert last.layer == last_layer
        assert last.features is not None
        assert torch.equal(model.get_submodule(last_layer)(last.features), logits)
        model(x[:2])
        assert last.features.shape[0] == 2
        copied = copy.deepcopy(model)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert torch.allclose(copied(x), logits, atol=1e-6)


def test_penultimate_where_there_is_none() -> None:
    class Turned(nn.Module):
        """A linear layer over the batch: its input has not the samples in rows."""

        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x.T).T

    for model in (nn.Sequential(nn.Flatten(), nn.ReLU()), lambda x: x, Turned()):
        with capture_penultimate(model) as last:
            model(images(4, 7))
            assert last.features is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_penultimate_is_what_the_layer_was_given(dtype: torch.dtype) -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x * 2
            logits = self.head(input=hidden)
            hidden.zero_()
            return logits

    model, x = Overwriting().to(dtype), images(3, 5).to(dtype)
    with torch.no_grad(), capture_penultimate(model) as last:
        model(x)
    assert last.features is not None
    assert last.features.dtype == torch.float32
    assert torch.equal(last.features, (2 * x).float())


def test_penultimate_of_one_pass_is_not_left_for_the_next() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) if len(x) > 1 else x[:, :2]

    model = Sometimes()
    with capture_penultimate(model) as last:
        model(images(3, 5))
        assert last.layer == "head"
        model(images(1, 5))
        assert last.layer is None
        assert last.features is None
