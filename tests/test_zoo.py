import pytest
import torch
import zoo
from torch import Tensor, nn


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("name", zoo.MODELS)
def test_clean_accuracy(name: str) -> None:
    model = zoo.MODELS[name]()
    x, y = zoo.test_digits()
    assert x.shape == (500, 1, 8, 8)
    assert not any(module.training for module in model.modules())
    assert accuracy(model, x, y) >= 0.94


def test_adversarial_training_pays() -> None:
    x, y = zoo.test_digits()
    robust = {}
    for name in ("digits_cnn", "adversarial_digits_cnn"):
        model = zoo.MODELS[name]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adversarial = zoo.plain_pgd(model, x, y, 0.2, 20)
        assert (adversarial - x).abs().max() <= 0.2 + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        robust[name] = accuracy(model, adversarial, y)
    assert robust["digits_cnn"] < 0.2
    assert robust["adversarial_digits_cnn"] > 0.5


def test_training_is_deterministic_and_leaves_no_trace() -> None:
    first = zoo.small_resnet()
    zoo._small_resnet.cache_clear()
    torch.manual_seed(3)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    again = zoo.small_resnet()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_callers_do_not_share_a_model() -> None:
    spoilt = zoo.small_resnet()
    nn.init.zeros_(spoilt[0].weight)
    assert zoo.small_resnet()[0].weight.abs().min() > 0
