"""The caller's model comes back exactly as it was."""

from collections.abc import Callable

import brittle
import models
import pytest
import torch
from brittle.evaluation import accuracy_vs_epsilon
from samples import assert_same_bits
from torch import Tensor, nn


class Picky(nn.Module):
    """Everything that an attack could disturb: counters, dropout, random numbers, frozen parts, failures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = models.Residual()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("unwritten", torch.rand(3))
        self.forwards = 0
        self.fail_at = -1

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.calls = self.calls + 1  # replaces the buffer
        self.written.add_(1)  # writes to it
        torch.rand(1)
        if self.forwards == self.fail_at:
            raise KeyboardInterrupt
        return self.drop(self.body(x))


def picky() -> Picky:
    torch.manual_seed(3)
    model = Picky().train()
    model.body.norm.eval()  # frozen batch norm inside a training model
    model.body.stem.weight.requires_grad_(False)
    model.body.head.weight.grad = torch.ones_like(model.body.head.weight)
    return model


def state(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "buffer identities": [id(b) for b in model.buffers()],
        "rng": torch.get_rng_state(),
    }


def assert_same_state(before: object, after: object) -> None:
    if isinstance(before, Tensor):
        assert isinstance(after, Tensor)
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert isinstance(after, dict)
        assert before.keys() == after.keys()
        for key in before:
            assert_same_state(before[key], after[key])
    elif isinstance(before, list):
        assert isinstance(after, list)
        for b, a in zip(before, after, strict=True):
            assert_same_state(b, a)
    else:
        assert before == after


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "fgsm": lambda m, x, y: brittle.fgsm(m, x, y, 0.1),
    "pgd": lambda m, x, y: brittle.pgd(m, x, y, 0.1, steps=4, restarts=2),
    "pgd, every step": lambda m, x, y: brittle.pgd(m, x, y, 0.1, steps=4, early_stop=False),
    "pgd as torchattacks": lambda m, x, y: brittle.pgd(m, x, y, 0.1, steps=4, compat="torchattacks"),
    "fgsm curve": lambda m, x, y: accuracy_vs_epsilon(m, (x, y), [0, 0.1]),
    "pgd curve": lambda m, x, y: accuracy_vs_epsilon(m, (x, y), [0, 0.1], "pgd", steps=3),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
class TestTheModelIsLeftAlone:
    def test_after_success(self, attack: Callable[..., object]) -> None:
        model = picky()
        x, _ = models.data()
        y = models.own_labels(model.body, x)
        before = state(model)
        attack(model, x, y)
        assert_same_state(before, state(model))

    def test_after_an_exception(self, attack: Callable[..., object]) -> None:
        model = picky()
        x, _ = models.data()
        y = models.own_labels(model.body, x)
        attack(model, x, y)
        for fail_at in {1, model.forwards}:  # the first and the last call of an attack
            model.forwards, model.fail_at = 0, fail_at
            before = state(model)
            with pytest.raises(KeyboardInterrupt):
                attack(model, x, y)
            assert_same_state(before, state(model))

    def test_inputs_are_not_written_to(self, attack: Callable[..., object]) -> None:
        model, (x, y) = picky(), models.data()
        copies = x.clone(), y.clone()
        x.requires_grad_()
        attack(model, x, y)
        assert_same_bits(x.detach(), copies[0])
        assert torch.equal(y, copies[1])
        assert x.grad is None
        assert x.requires_grad

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_works_in_any_gradient_mode(
        self, attack: Callable[..., object], mode: Callable[[], torch.no_grad]
    ) -> None:
        model, (x, y) = models.make("residual with batch norm"), models.data()
        expected = attack(model, x, y)
        with mode():
            # Tensors made here may be inference tensors, which autograd refuses to save.
            got = attack(model, x.clone(), y.clone())
        if isinstance(expected, Tensor):
            assert isinstance(got, Tensor)
            assert_same_bits(got, expected)
        else:
            assert expected.accuracy == got.accuracy  # type: ignore[attr-defined]


def test_an_outstanding_graph_survives_an_attack() -> None:
    """Restoring buffers must not look like a write to those who saved them."""
    model, (x, y) = models.make("residual with batch norm").eval(), models.data()
    loss = nn.functional.cross_entropy(model(x), y)
    brittle.pgd(model, x, y, 0.1, steps=3)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_model_runs_in_evaluation_mode() -> None:
    seen = set()

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.add((self.training, torch.is_grad_enabled()))
            return x.flatten(1)[:, :10]

    x, y = models.data()
    brittle.pgd(Spy().train(), x, y, 0.1, steps=2)
    assert {training for training, _ in seen} == {False}


def test_no_weight_gradients_are_computed() -> None:
    calls = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)  # type: ignore[attr-defined]
            return x @ weight

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
            calls.append(ctx.needs_input_grad)  # type: ignore[attr-defined]
            _, weight = ctx.saved_tensors  # type: ignore[attr-defined]
            return grad @ weight.T, None

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return Watched.apply(x, self.weight)

    brittle.fgsm(Model(), torch.rand(5, 4), torch.zeros(5, dtype=torch.int64), 0.1)
    assert calls == [(True, False)]


def test_functions_are_attacked_as_they_are() -> None:
    model, (x, y) = models.make("convolutional").eval(), models.data()
    expected = brittle.pgd(model, x, y, 0.1, steps=3)
    assert_same_bits(brittle.pgd(lambda inputs: model(inputs), x, y, 0.1, steps=3), expected)
