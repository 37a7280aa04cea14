"""The caller's model comes back exactly as it was."""

from collections.abc import Callable

import brittle
import models
import pytest
import torch
from brittle.attacks import PGD
from brittle.evaluation import accuracy_vs_epsilon, minimal_epsilon
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
    "rfgsm": lambda m, x, y: brittle.rfgsm(m, x, y, 0.1),
    "bim": lambda m, x, y: brittle.bim(m, x, y, 0.1),
    "mifgsm": lambda m, x, y: brittle.mifgsm(m, x, y, 0.1),
    "pgd l2": lambda m, x, y: brittle.pgd(m, x, y, 0.5, norm="l2", steps=4),
    "pgd l1": lambda m, x, y: brittle.pgd(m, x, y, 5.0, norm="l1", steps=4),
    "pgd on a copy": lambda m, x, y: brittle.pgd(brittle.Target(m), x, y, 0.1, steps=4),
    "fgsm curve": lambda m, x, y: accuracy_vs_epsilon(m, (x, y), [0, 0.1]),
    "pgd curve": lambda m, x, y: accuracy_vs_epsilon(m, (x, y), [0, 0.1], "pgd", steps=3),
    "L2 curve, each epsilon alone": lambda m, x, y: accuracy_vs_epsilon(
        m, (x, y), [0, 0.1, 0.5], PGD(norm="l2", steps=3), independent=True
    ),
    "minimal epsilon": lambda m, x, y: minimal_epsilon(m, (x, y), PGD(steps=3), upper=0.1).curve([0, 0.05]),
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


class TestPreparation:
    """The copy that attacks climb on."""

    def test_normalisation_is_part_of_the_target(self) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]

        def normalised(inputs: Tensor) -> Tensor:
            columns = (torch.tensor(part).view(1, 3, 1, 1) for part in (mean, std))
            return model((inputs - next(columns)) / next(columns))

        target = brittle.Target(model, mean=mean, std=std, channels_last=False)
        expected = brittle.pgd(normalised, x, y, 0.05, steps=4, early_stop=False)
        assert_same_bits(brittle.pgd(target, x, y, 0.05, steps=4, early_stop=False), expected)

    def test_bounds_come_from_the_target(self) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        target = brittle.Target(model, bounds=(-1.0, 1.0))
        adv = brittle.pgd(target, 2 * x - 1, y, 0.5, steps=3, early_stop=False)
        assert adv.min() < -0.5
        assert adv.min() >= -1.0
        with pytest.raises(ValueError, match=r"pgd: bounds must be the target's own \(-1.0, 1.0\)"):
            brittle.pgd(target, x, y, 0.5, bounds=(0.0, 1.0))

    def test_folds_only_where_it_may(self) -> None:
        plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        with brittle.Target(plain) as target:
            assert not target.searches_on_a_copy
        folding = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)
        ).eval()
        for options, copies in (({}, True), ({"fold_batchnorm": False, "channels_last": False}, False)):
            with brittle.Target(folding, **options) as target:  # type: ignore[arg-type]
                assert target.searches_on_a_copy == copies
        with brittle.Target(folding, channels_last=False) as target:
            assert isinstance(target._search, nn.Module)
            assert not any(isinstance(m, nn.BatchNorm2d) for m in target._search.modules())
            assert any(isinstance(m, nn.BatchNorm2d) for m in folding.modules())

    def test_new_weights_make_a_new_copy(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).eval()
        x, y = models.data()
        target = brittle.Target(model)
        brittle.pgd(target, x, y, 0.1, steps=3)
        first = target._search
        brittle.pgd(target, x, y, 0.1, steps=3)
        assert target._search is first
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1.5)
        y = models.own_labels(model, x)
        adv = brittle.pgd(target, x, y, 0.2, steps=10)
        assert target._search is not first
        fresh = brittle.pgd(brittle.Target(model), x, y, 0.2, steps=10)
        assert_same_bits(adv, fresh)

    @pytest.mark.parametrize(
        "options", [{"precision": "bfloat16"}, {"channels_last": True}, {"compile": True}]
    )
    def test_gradients_are_those_of_the_model(self, options: dict[str, object]) -> None:
        model, (x, y) = models.make("residual with batch norm").eval(), models.data()

        def loss(logits: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits, y, reduction="none")

        with brittle.Target(model, **options) as target:  # type: ignore[arg-type]
            target.expect_labels(y)
            assert target.searches_on_a_copy
            copied, own = target.evaluate(x, loss), target.evaluate(x, loss, own=True)
        assert copied.logits.dtype == torch.float32
        assert copied.gradient.dtype == torch.float32
        rounding = 0.05 if "precision" in options else 1e-5
        assert (copied.logits - own.logits).abs().max() < rounding * own.logits.abs().max()
        difference = (copied.gradient - own.gradient).flatten(1).norm(dim=1)
        assert (difference < rounding * own.gradient.flatten(1).norm(dim=1)).all()

    def test_auto_takes_bfloat16_for_float32_models_alone(self) -> None:
        model = models.make("convolutional")
        with brittle.Target(model.double(), precision="auto") as target:
            assert not target._half

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "int8"}, "Target: precision must be one of float32, bfloat16, auto; got 'int8'"),
            ({"channels_last": "yes"}, "Target: channels_last must be True, False or 'auto'; got 'yes'"),
            ({"bounds": (1.0, 0.0)}, r"Target: bounds must be \(lo, hi\) with lo < hi"),
            ({"mean": [0.5]}, "Target: mean and std must be given together"),
            ({"mean": [0.5], "std": [0.0]}, "Target: mean and std must have one length, std > 0"),
            ({"mean": [0.5], "std": [0.1, 0.2]}, "Target: mean and std must have one length"),
        ],
    )
    def test_bad_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            brittle.Target(nn.Linear(2, 2), **options)  # type: ignore[arg-type]

    def test_no_model(self) -> None:
        with pytest.raises(ValueError, match="Target: model must be a module or a callable; got int"):
            brittle.Target(3)  # type: ignore[arg-type]
