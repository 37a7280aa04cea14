"""Checks before training: they find planted bugs, leave healthy networks and the caller's model alone."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brittle.diagnosis import checks
from brittle.diagnosis.checks import Verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_bugs import ARCHITECTURES, BUGS, CHECKS, Wrapped, found, healthy, setup, step
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EVERY: dict[str, Callable[..., Verdict]] = {
    **CHECKS,
    "overfit_one_batch": functools.partial(checks.overfit_one_batch, steps=30),
    "before_training": functools.partial(checks.before_training, steps=30),
    "learning_rate_range": functools.partial(checks.learning_rate_range, steps=12),
}
every_check = pytest.mark.parametrize("check", EVERY.values(), ids=EVERY)


def made_up(n: int = 48, classes: int = 3, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=draw), torch.arange(n) % classes


def small(classes: int = 3, width: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, classes)
    )


#: What the check says of some bugs.
CAUSES = {
    "optimizer has the last layer only": "never changed by the optimizer",
    "all but the last layer frozen": "frozen (requires_grad=False)",
    "learning rate of zero": "no parameter changes",
    "zero_grad missing": "zero_grad() is missing",
    "logits detached": "does not depend on any parameter",
    "features detached": "not used by the loss",
    "input ignored": "every sample has the same output",
    "network dead": "the network is dead",
    "softmax before cross-entropy, in training": "the model gives probabilities",
    "labels permuted in each step": "drawn anew for each step",
}


class TestPlanted:
    @pytest.mark.parametrize("bug", BUGS)
    def test_bug_is_found(self, bug: str) -> None:
        verdict = found(bug, "mlp" if "mlp" in (BUGS[bug][2] or ("mlp",)) else "cnn", 7)
        assert not verdict.ok
        assert any(CAUSES.get(bug, "") in problem for problem in verdict.problems)
        assert all(problem in verdict.table() for problem in verdict.problems)

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_healthy_networks_are_not_accused(self, name: str) -> None:
        given = setup(name, 7)
        result = checks.before_training(given.model, given.data, train_step=step)
        assert result.ok, result.problems
        assert list(result.results) == list(CHECKS)
        assert result.skipped == ()


class TestNothingIsChanged:
    @every_check
    def test_model_and_random_state(self, check: Callable[..., Verdict]) -> None:
        model, data = small(), made_up()
        model[1].eval()
        model[0].bias.requires_grad_(False)
        model[4].weight.grad = torch.full_like(model[4].weight, 3.0)
        before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        random = torch.get_rng_state()
        with torch.no_grad():
            check(model, data)
            assert not torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), random)
        assert [m.training for m in model.modules()] == flags
        assert not model[0].bias.requires_grad
        assert model[0].weight.requires_grad
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model[4].weight.grad is not None
        assert bool((model[4].weight.grad == 3).all())
        assert model[0].weight.grad is None

    def test_optimizer(self) -> None:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        before = copy.deepcopy(model.state_dict())
        assert checks.overfit_one_batch(model, made_up(), optimizer=optimizer).ok
        assert not optimizer.state
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @every_check
    def test_same_answer_whatever_the_random_state(self, check: Callable[..., Verdict]) -> None:
        model, data = small(), made_up()
        first = check(model, data)
        torch.rand(5)
        assert first.table() == check(model, data).table()

    @every_check
    def test_loaders_and_pairs_agree(self, check: Callable[..., Verdict]) -> None:
        if check is EVERY["learning_rate_range"]:
            pytest.skip("a pair is shuffled, a loader taken as it comes")
        model, data = small(), made_up()
        loader = DataLoader(TensorDataset(*data), batch_size=7)
        assert check(model, data).table() == check(model, loader).table()


class TestErrors:
    @every_check
    def test_no_module(self, check: Callable[..., Verdict]) -> None:
        with pytest.raises(ValueError, match=r"model must be an nn.Module; got function"):
            check(lambda x: x, made_up())

    @every_check
    def test_no_pairs(self, check: Callable[..., Verdict]) -> None:
        with pytest.raises(ValueError, match="data must"):
            check(small(), [torch.rand(3, 6)])

    @pytest.mark.parametrize("check", list(CHECKS.values())[1:], ids=list(CHECKS)[1:])
    def test_model_data_and_samples(self, check: Callable[..., Verdict]) -> None:
        x, y = made_up()
        with pytest.raises(ValueError, match="data must hold samples; got none"):
            check(small(), (x[:0], y[:0]))
        with pytest.raises(ValueError, match=r"logits \[N, C\] with N = .*; got torch.float32 \[.*, 1\]"):
            check(small(1), (x, y))
        with pytest.raises(ValueError, match=r"got torch.float32 \[1, .*, 3\]"):
            check(Wrapped(small(), after=lambda z: z[None]), (x, y))
        with pytest.raises(ValueError, match="got tuple"):
            check(Wrapped(small(), after=lambda z: (z, z)), (x, y))  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match="y must be in \\[0, 3\\)"):
            check(small(), (x, y + 1))
        with pytest.raises(ValueError, match="y must be int64"):
            check(small(), (x, y.int()))
        with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
            check(small(), (x, y), batch_size=0)
        with pytest.raises(ValueError, match="seed must be"):
            check(small(), (x, y), seed=0.5)

    def test_others(self) -> None:
        model, data = small(), made_up()
        with pytest.raises(ValueError, match="initial_loss: tolerance must be"):
            checks.initial_loss(model, data, tolerance=-1)
        with pytest.raises(ValueError, match="loss_fn must give a scalar tensor; got shape \\[48\\]"):
            checks.output_kind(model, data, functools.partial(F.cross_entropy, reduction="none"))
        with pytest.raises(ValueError, match="train_step must return the loss, a number; got NoneType"):
            checks.overfit_one_batch(model, data, train_step=lambda *_: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match="optimizer must be a torch Optimizer"):
            checks.overfit_one_batch(model, data, optimizer=lambda parameters: 3)  # type: ignore[arg-type, return-value]
        with pytest.raises(RuntimeError, match="mine"):
            checks.overfit_one_batch(model, data, train_step=_raises)


def _raises(*_: Any) -> float:
    raise RuntimeError("mine")


class TestInitialLoss:
    @given(st.integers(2, 6), st.integers(0, 10**6))
    @settings(max_examples=25)
    def test_figures_of_a_constant_model(self, classes: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        y = torch.randint(classes, (40,), generator=draw)
        model = nn.Linear(2, classes)
        nn.init.zeros_(model.weight)
        with torch.no_grad():
            model.bias.copy_(torch.randn(classes, generator=draw))
        found = checks.initial_loss(model, (torch.rand(40, 2), y))
        p = model.bias.detach().double().softmax(0)
        frequency = torch.tensor([float((y == c).sum()) / 40 for c in range(classes)], dtype=torch.float64)
        assert found.loss == pytest.approx(-(frequency * p.log()).sum().item(), rel=1e-6)
        assert found.expected == math.log(classes)
        assert found.mean_probabilities.tolist() == pytest.approx(p.tolist(), rel=1e-5)
        assert float(found.mean_logits.sum()) == pytest.approx(0, abs=1e-6)
        uniform = math.log(classes) + (p * p.log()).sum().item()
        own = (p * (p / frequency).log()).sum().item()
        assert found.bias == pytest.approx(min(uniform, own), abs=1e-5)
        assert found.samples == 40

    def test_bias_that_agrees_with_the_labels_is_accepted(self) -> None:
        y = (torch.arange(200) % 10 == 0).long()
        model = nn.Linear(3, 2)
        nn.init.zeros_(model.weight)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([0.9, 0.1]).log())
        found = checks.initial_loss(model, (torch.rand(200, 3), y))
        assert found.ok
        assert found.loss == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)), rel=1e-5)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([0.005, 0.995]).log())
        assert any(
            "class 1 has a mean probability" in p
            for p in checks.initial_loss(model, (torch.rand(200, 3), y)).problems
        )

    def test_inputs_that_hold_the_label(self) -> None:
        y = torch.arange(60) % 3
        model = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            model.weight.copy_(4 * torch.eye(3))
        found = checks.initial_loss(model, (torch.eye(3)[y], y))
        assert found.loss == pytest.approx(math.log(1 + 2 * math.exp(-4)), rel=1e-5)
        assert "knows labels before training" in found.problems[0]

    def test_tolerance_and_infinite_loss(self) -> None:
        x, y = made_up()
        model = nn.Linear(6, 3)
        over = checks.initial_loss(model, (x, y)).loss - math.log(3)
        assert over > 0
        assert not checks.initial_loss(model, (x, y), tolerance=over / 2).ok
        assert checks.initial_loss(model, (x, y), tolerance=over * 2).ok
        x[0, 0] = torch.inf
        assert "the loss is nan" in checks.initial_loss(model, (x, y)).problems[0]


def _focal(z: Tensor, y: Tensor) -> Tensor:
    p = z.softmax(1).gather(1, y[:, None])
    return (-((1 - p) ** 2) * p.log()).mean()


def _of_probabilities(p: Tensor, y: Tensor) -> Tensor:
    return -p.gather(1, y[:, None]).clamp(1e-7, 1).log().mean()


def _strict(p: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy(p, F.one_hot(y, p.shape[1]).to(p))


class TestOutputKind:
    @pytest.mark.parametrize(
        ("loss_fn", "expects"),
        [
            (F.cross_entropy, "logits"),
            (nn.CrossEntropyLoss(label_smoothing=0.1), "logits"),
            (nn.CrossEntropyLoss(reduction="sum", weight=torch.tensor([1.0, 2.0, 3.0])), "logits"),
            (_focal, "logits"),
            (F.multi_margin_loss, "logits"),
            (F.nll_loss, "log-probabilities"),
            (functools.partial(F.nll_loss, reduction="sum"), "log-probabilities"),
            (_of_probabilities, "probabilities"),
            (_strict, "unknown"),
            (lambda z, y: F.mse_loss(z, F.one_hot(y, 3).float()), "unknown"),
            (lambda z, y: z.sum() * 0, "unknown"),
        ],
    )
    def test_what_a_loss_expects(self, loss_fn: Any, expects: str) -> None:
        x, y = made_up()
        model = Wrapped(small(), after=lambda z: z.softmax(1))
        found = checks.output_kind(model, (x, y), loss_fn)
        assert found.expects == expects
        assert found.ok == (expects in ("probabilities", "unknown"))

    def test_second_softmax_has_the_floor_that_is_named(self) -> None:
        perfect = 1000 * torch.eye(10)
        y = torch.arange(10)
        floor = F.cross_entropy(perfect.softmax(1), y).item()
        model = nn.Sequential(nn.Identity(), nn.Softmax(1))
        found = checks.output_kind(model, (perfect, y), F.cross_entropy)
        assert f"{floor:.3f}" in found.problems[0]
        # Gradients through both softmaxes lead to the same floor from anywhere.
        z = torch.randn(10, 10).requires_grad_()
        for _ in range(2000):
            (g,) = torch.autograd.grad(F.cross_entropy(z.softmax(1), y, reduction="sum"), z)
            z = (z - 5 * g).detach().requires_grad_()
        assert F.cross_entropy(z.softmax(1), y).item() == pytest.approx(floor, abs=0.02)

    @pytest.mark.parametrize(
        ("after", "kind"),
        [
            (lambda z: z, "logits"),
            (lambda z: 1e-4 * z, "logits"),
            (lambda z: z.abs() + 0.1, "logits"),
            (lambda z: z.softmax(1), "probabilities"),
            (lambda z: (1000 * z).softmax(1), "probabilities"),
            (lambda z: z.log_softmax(1), "log-probabilities"),
            (lambda z: z.softmax(1).bfloat16(), "probabilities"),
            (lambda z: z.sigmoid(), "sigmoid"),
            (lambda z: F.hardsigmoid(z), "sigmoid"),
            (lambda z: z.tanh(), "tanh"),
            (lambda z: z.relu(), "rectified"),
            (lambda z: z.relu() + 0 * z * 3, "rectified"),
        ],
    )
    @pytest.mark.parametrize("scale", [1.0, 30.0])
    def test_what_a_model_gives(self, after: Callable[[Tensor], Tensor], kind: str, scale: float) -> None:
        x, y = made_up()
        for classes in (2, 3):
            model = Wrapped(small(classes), after=after)
            with torch.no_grad():
                model.model[4].weight.mul_(scale)  # type: ignore[index, union-attr, operator]
            assert checks.output_kind(model, (x, y % classes)).kind == kind

    def test_log_probabilities_are_noted_and_no_problem(self) -> None:
        x, y = made_up()
        model = nn.Sequential(small(), nn.LogSoftmax(1))
        found = checks.output_kind(model, (x, y), F.cross_entropy)
        assert found.ok
        assert "energy" in found.notes[0]
        assert checks.output_kind(model, (x, y), F.nll_loss).notes == ()

    def test_a_model_without_parameters(self) -> None:
        x = torch.rand(5, 3)
        assert checks.output_kind(nn.Identity(), (x, torch.arange(5) % 3)).kind == "logits"


class ZeroBranch(nn.Module):
    """A residual branch that ends in zeros, as many begin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


class TestRanges:
    def test_figures(self) -> None:
        x, y = made_up()
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        found = checks.weights_and_gradients(model, (x, y))
        F.cross_entropy(model(x), y).backward()
        for row, (name, p) in zip(found.parameters, model.named_parameters(), strict=True):
            assert p.grad is not None
            assert (row.name, row.shape, row.remark) == (name, tuple(p.shape), "")
            assert row.gradient == pytest.approx(p.grad.norm().item(), rel=1e-5)
            assert row.ratio == pytest.approx((p.grad.norm() / p.norm()).item(), rel=1e-5)
            assert row.mean == pytest.approx(p.mean().item(), rel=1e-5)
            assert row.std == pytest.approx(p.std(correction=0).item(), rel=1e-5)
        assert found.loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)
        assert found.parameters[0].usual == pytest.approx((0.02, math.sqrt(2 / 6)))
        assert found.parameters[1].usual is None

    @pytest.mark.parametrize(
        "initialise",
        [
            nn.init.kaiming_normal_,
            nn.init.kaiming_uniform_,
            nn.init.xavier_uniform_,
            nn.init.orthogonal_,
            functools.partial(nn.init.trunc_normal_, std=0.02),
            lambda weight: weight,
        ],
    )
    def test_usual_initialisers_are_in_range(self, initialise: Callable[[Tensor], Tensor]) -> None:
        layers = (
            nn.Conv2d(3, 16, 3),
            nn.ConvTranspose2d(16, 8, 3),
            nn.Conv2d(8, 16, 3, groups=4),
            nn.Linear(32, 100),
        )
        usual = checks.ranges._usual_spreads(nn.ModuleList(layers))
        assert len(usual) == 4
        for index, layer in enumerate(layers):
            initialise(layer.weight)
            remark = checks.ranges._fault_of_values(
                layer.weight, layer.weight.std().item(), usual[f"{index}.weight"], True
            )
            assert remark == ""

    def test_attention_and_layers_that_begin_at_zero_are_not_accused(self) -> None:
        x, y = made_up()
        head = nn.Linear(6, 3)
        nn.init.zeros_(head.weight)
        model = nn.Sequential(nn.Linear(6, 6), ZeroBranch(6), ZeroBranch(6), nn.LayerNorm((6,)), head)
        found = checks.weights_and_gradients(model, (x, y))
        assert found.ok, found.problems
        assert all(row.gradient == 0 for row in found.parameters if row.name.startswith("0."))
        x, y = made_up(width=12)
        encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        attention = nn.Sequential(nn.Unflatten(1, (3, 4)), encoder, nn.Flatten(), nn.Linear(12, 3))
        assert checks.weights_and_gradients(attention, (x, y)).ok
        with torch.no_grad():
            encoder.self_attn.in_proj_weight.mul_(30)
        rows = checks.weights_and_gradients(attention, (x, y)).parameters
        assert [row.name for row in rows if "wide" in row.remark] == ["1.self_attn.in_proj_weight"]

    def test_trained_weights_are_not_compared_with_initialisers(self) -> None:
        model = small()
        with torch.no_grad():
            model[0].weight.mul_(20)
        assert not checks.weights_and_gradients(model, made_up()).ok
        assert checks.weights_and_gradients(model, made_up(), untrained=False).ok

    def test_only_the_layer_with_the_fault_is_named(self) -> None:
        for fault in (lambda w: w.fill_(0.2), lambda w: w.view(-1)[3].fill_(torch.nan), lambda w: w.mul_(40)):
            model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
            with torch.no_grad():
                fault(model[2].weight)
            rows = checks.weights_and_gradients(model, made_up()).parameters
            named = [row.name for row in rows if row.remark and "gradient is NaN" not in row.remark]
            assert named == ["2.weight"]

    def test_frozen_parameters_are_noted(self) -> None:
        model = small()
        model[0].requires_grad_(False)
        found = checks.weights_and_gradients(model, made_up())
        assert found.ok
        assert found.notes == ("2 of 6 parameters are frozen",)
        assert math.isnan(found.parameters[0].gradient)
        model.requires_grad_(False)
        assert "nothing can be trained" in checks.weights_and_gradients(model, made_up()).problems[0]

    def test_inputs_that_are_not_finite_are_named(self) -> None:
        x, y = made_up()
        x[0, 0] = torch.nan
        problems = checks.weights_and_gradients(small(), (x, y)).problems
        assert "the loss is nan, and the inputs are not finite" in problems


class TestPlacement:
    def test_moved_data_on_the_cpu_are_fine(self) -> None:
        model = small().to("meta")
        problems = checks.placement(model, made_up(), moved=True).problems
        assert problems == ("the model's tensors have no values: they are on the meta device",)
        assert [p for p in checks.placement(model, made_up()).problems if "move each batch" in p] == [
            "x is on cpu, the model on meta: move each batch to the model",
            "y is on cpu, the model on meta: move each batch to the model",
        ]

    def test_stray_buffer_is_named(self) -> None:
        model = small()
        model[1].running_mean = model[1].running_mean.to("meta")
        found = checks.placement(model, made_up())
        assert found.problems == ("the model is on 2 devices, cpu and meta: '1.running_mean' is on meta",)
        assert sum(found.model.values()) == 6 + 3

    def test_dtypes_and_labels(self) -> None:
        x, y = made_up()
        model = small()

        def problems(*data: Tensor) -> str:
            return " ".join(checks.placement(model, (data[0], data[1])).problems)

        assert problems(x, y) == ""
        assert "x is torch.float64, the model torch.float32" in problems(x.double(), y)
        assert "x is torch.int64 and the model embeds nothing" in problems(y[:, None].expand(-1, 6), y)
        assert "y is torch.float32" in problems(x, y.float())
        assert "48 inputs and 40 labels" in problems(x, y[:40])
        x[3, 3] = torch.nan
        assert problems(x, y) == "x holds NaN or infinity"
        embedding = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
        assert checks.placement(embedding, (torch.zeros(5, 2, dtype=torch.int64), y[:5])).ok

    def test_nothing_else_is_tried_on_a_broken_model(self) -> None:
        model = small()
        model[4].to("meta")
        result = checks.before_training(model, made_up())
        assert list(result.results) == ["placement"]
        assert result.skipped == tuple(CHECKS)[1:]
        assert "overfit_one_batch       not made" in result.table()


class TestOverfit:
    @given(st.integers(0, 10**6), st.integers(1, 4))
    @settings(max_examples=25)
    def test_goal_allows_for_labels_that_contradict_each_other(self, seed: int, kinds: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(kinds, (20, 1), generator=draw).float()
        y = torch.randint(3, (20,), generator=draw)
        found = checks.overfit_one_batch(nn.Linear(1, 3), (x, y), steps=1)
        least = 0.0
        for value in x.unique():
            labels = y[x[:, 0] == value]
            p = torch.bincount(labels, minlength=3).double() / len(labels)
            least += len(labels) / 20 * torch.special.entr(p).sum().item()
        assert found.goal == pytest.approx(0.05 * math.log(3) + least, abs=1e-9)
        assert bool(found.notes) == (least > 1e-9)

    def test_contradicting_labels_can_still_be_learnt_as_far_as_possible(self) -> None:
        x, y = made_up(32)
        x[1] = x[0]
        found = checks.overfit_one_batch(small(), (x, y), optimizer=lambda p: torch.optim.Adam(p, 0.01))
        assert found.ok
        assert found.goal == pytest.approx(0.05 * math.log(3) + 2 / 32 * math.log(2))

    def test_losses_are_those_of_plain_training(self) -> None:
        x, y = made_up(32)
        model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
        found = checks.overfit_one_batch(model, (x, y), steps=5)
        copied = copy.deepcopy(model)
        optimizer = torch.optim.Adam(copied.parameters(), lr=1e-3)
        expected = [step(copied, optimizer, x, y).item() for _ in range(5)]
        assert list(found.losses) == expected
        assert found.reached is None
        assert found.accuracy == (copied(x).argmax(1) == y).double().mean().item()
        assert found.samples == 32

    def test_stops_when_the_goal_is_reached_three_times(self) -> None:
        found = checks.overfit_one_batch(small(), made_up(), goal=0.5)
        assert found.reached == len(found.losses) - 1
        assert max(found.losses[-3:]) < 0.5
        assert not any(max(found.losses[k : k + 3]) < 0.5 for k in range(len(found.losses) - 3))

    @pytest.mark.parametrize("set_to_none", [True, False])
    @pytest.mark.parametrize("when", ["first", "last"])
    def test_zero_grad_at_either_end_of_a_step_is_seen(self, when: str, set_to_none: bool) -> None:
        def own(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
            if when == "first":
                optimizer.zero_grad(set_to_none)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if when == "last":
                optimizer.zero_grad(set_to_none)
            return loss.item()

        fast = functools.partial(torch.optim.Adam, lr=0.01)
        assert checks.overfit_one_batch(small(), made_up(), train_step=own, optimizer=fast).ok

    def test_parameters_meant_to_be_frozen_are_not_reported(self) -> None:
        model = small()
        model[0].requires_grad_(False)
        assert not checks.overfit_one_batch(model, made_up(), steps=5).ok
        found = checks.overfit_one_batch(
            model, made_up(), frozen=["0.*"], optimizer=lambda p: torch.optim.Adam(p, 0.02)
        )
        assert found.ok
        assert found.unmoved == ("0.weight", "0.bias")

    def test_a_bias_before_a_norm_is_not_reported(self) -> None:
        # Its gradient is rounding, which a plain step does not add to it.
        found = checks.overfit_one_batch(small(), made_up(), optimizer=lambda p: torch.optim.SGD(p, 0.3))
        assert found.ok, found.problems

    def test_divergence(self) -> None:
        found = checks.overfit_one_batch(small(), made_up(), optimizer=lambda p: torch.optim.SGD(p, 1e30))
        assert "usually the rate is too high" in found.problems[0]
        assert not math.isfinite(found.losses[-1])

    def test_picture(self, tmp_path: Any) -> None:
        checks.overfit_one_batch(small(), made_up(), steps=3).plot(tmp_path / "loss.png")
        assert (tmp_path / "loss.png").stat().st_size > 5000


class TestLearningRateRange:
    def test_losses_are_those_of_a_plain_ramp(self) -> None:
        x, y = made_up()
        model = nn.Linear(6, 3)
        batches = [(x[:24], y[:24]), (x[24:], y[24:])]
        found = checks.learning_rate_range(model, batches, lowest=1e-3, highest=1e-1, steps=11)
        copied = copy.deepcopy(model)
        optimizer = torch.optim.Adam(copied.parameters())
        losses, average = [], 0.0
        for k in range(11):
            optimizer.param_groups[0]["lr"] = 10 ** (-3 + 2 * k / 10)
            losses.append(step(copied, optimizer, *batches[k % 2]).item())
            average = 0.9 * average + 0.1 * losses[-1]
            assert found.smoothed[k] == pytest.approx(average / (1 - 0.9 ** (k + 1)), rel=1e-6)
        assert found.losses == pytest.approx(losses, rel=1e-5)
        assert found.rates == pytest.approx([10 ** (-3 + k / 5) for k in range(11)])

    @pytest.mark.parametrize("seed", [0, 1])
    def test_suggestion_trains_and_hundred_times_it_does_not(self, seed: int) -> None:
        given = setup("mlp", seed)
        found = checks.learning_rate_range(given.model, given.data, seed=seed)
        assert found.ok
        assert found.diverged
        assert 1e-3 < found.suggested < 0.05
        assert 1e-3 < found.steepest < 0.05
        least = min(range(len(found.rates)), key=found.smoothed.__getitem__)
        assert found.suggested == found.rates[least] / 10

    def test_a_network_that_cannot_learn(self) -> None:
        given = setup("mlp", 0)
        model = Wrapped(given.model, before=torch.zeros_like)
        found = checks.learning_rate_range(model, given.data, steps=50, highest=1.0)
        assert "lowered the loss by a tenth" in found.problems[0]
        assert math.isnan(found.suggested)

    def test_steepest_fall_is_in_the_middle_of_it(self) -> None:
        smoothed = [5.0] * 30 + [5.0 - 0.2 * k for k in range(11)] + [3.0] * 10
        assert checks.learning_rate._steepest(smoothed) == 35
        assert checks.learning_rate._steepest([2.0, 1.0]) in (0, 1)

    def test_errors(self) -> None:
        model, data = small(), made_up()
        with pytest.raises(ValueError, match=r"rates must be 0 < lowest < highest; got 0.1 and 0.01"):
            checks.learning_rate_range(model, data, lowest=0.1, highest=0.01)
        with pytest.raises(ValueError, match="steps must be an integer >= 10"):
            checks.learning_rate_range(model, data, steps=9)
        with pytest.raises(ValueError, match="data must last for 10 steps; got 2 batches"):
            checks.learning_rate_range(model, iter([data, data]), steps=10)
        with pytest.raises(ValueError, match="parameters that require gradients; got none"):
            checks.learning_rate_range(small().requires_grad_(False), data)

    def test_picture(self, tmp_path: Any) -> None:
        checks.learning_rate_range(small(), made_up(), steps=20).plot(tmp_path / "rates.png")
        assert (tmp_path / "rates.png").stat().st_size > 5000


def test_healthy_is_what_it_says() -> None:
    """The same seed gives the same network, and another seed another one."""
    weights = [next(healthy("mlp", seed).parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
