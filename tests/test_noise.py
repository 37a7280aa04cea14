"""brittle.noise: the functions, the module, and noise on weights, gradients and labels."""

import copy
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import brittle
import models
import pytest
import torch
import torch.nn.functional as F
from brittle import noise, ops
from brittle.noise import NoiseInjection, WithIds, inject, noise_gradients, noise_labels, noise_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

# Function, kind of the kernel, name of the amount, an amount.
FUNCTIONS = [
    (noise.gaussian, "gaussian", "sigma", 0.2),
    (noise.uniform, "uniform", "width", 0.3),
    (noise.laplace, "laplace", "scale", 0.1),
    (noise.speckle, "speckle", "sigma", 0.4),
    (noise.shot, "shot", "photons", 12.0),
    (noise.salt_and_pepper, "salt_and_pepper", "amount", 0.3),
    (noise.dropout, "dropout", "rate", 0.3),
]
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach().view(BITS[a.dtype]), b.detach().view(BITS[b.dtype]))


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 5, 7, generator=torch.Generator().manual_seed(5))


class TestFunctions:
    @pytest.mark.parametrize(("function", "kind", "name", "amount"), FUNCTIONS)
    def test_each_is_the_kernel_of_its_kind(
        self, function: Callable[..., Tensor], kind: str, name: str, amount: float
    ) -> None:
        x, ids = images(), torch.tensor([5, 0, 9, 2**40, 3, 7])
        bounds = None if kind == "dropout" else (0.0, 1.0)
        expected = ops.noise(x, kind, amount, 0, None, 0, bounds)
        assert same_bits(function(x, **{name: amount}), expected)
        out = torch.empty_like(x)
        amounts = torch.full((6,), amount)
        got = function(x, amounts, seed=3, sample_ids=ids, draw=4, bounds=(0.1, 0.9), out=out)
        assert got is out
        assert same_bits(out, ops.noise(x, kind, amounts, 3, ids, 4, (0.1, 0.9)))
        assert out.min() >= torch.tensor(0.1)
        assert out.max() <= torch.tensor(0.9)

    @pytest.mark.parametrize(("function", "kind", "name", "amount"), FUNCTIONS)
    def test_a_sample_has_its_noise_wherever_it_is(
        self, function: Callable[..., Tensor], kind: str, name: str, amount: float
    ) -> None:
        x, ids = images(), torch.tensor([5, 0, 9, 2, 3, 7])
        whole = function(x, amount, sample_ids=ids, seed=1)
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        assert same_bits(function(x[order], amount, sample_ids=ids[order], seed=1), whole[order])
        assert same_bits(function(x[4:], amount, sample_ids=ids[4:], seed=1), whole[4:])

    @pytest.mark.parametrize(("function", "kind", "name", "amount"), FUNCTIONS)
    def test_bad_amounts_are_named_in_the_functions_own_words(
        self, function: Callable[..., Tensor], kind: str, name: str, amount: float
    ) -> None:
        for wrong in (-0.5, math.nan, torch.tensor([0.1, 0.2]), torch.full((6,), -1.0)):
            with pytest.raises(ValueError, match=f"^{function.__name__}: {name} must .*got "):
                function(images(), wrong)

    def test_other_errors_name_the_function(self) -> None:
        x = images()
        with pytest.raises(ValueError, match=r"^gaussian: x must be .*; got "):
            noise.gaussian((x * 255).to(torch.uint8), 0.1)
        with pytest.raises(ValueError, match=r"^uniform: sample_ids must .*got "):
            noise.uniform(x, 0.1, sample_ids=torch.arange(5))
        with pytest.raises(ValueError, match=r"^laplace: bounds must .*got "):
            noise.laplace(x, 0.1, bounds=(1.0, 0.0))
        with pytest.raises(ValueError, match=r"^shot: draw must .*got -1"):
            noise.shot(x, 3.0, draw=-1)
        with pytest.raises(ValueError, match=r"^speckle: draw must .*got 2147483648"):
            noise.speckle(x, 3.0, draw=2**31)
        with pytest.raises(ValueError, match=r"^gaussian: seed must .*got "):
            noise.gaussian(x, 0.1, seed=2**64)

    def test_errors_of_in_ball(self) -> None:
        x = images()
        with pytest.raises(ValueError, match=r"^in_ball: norm must .*got 'l3'"):
            noise.in_ball(x, 0.1, norm="l3")
        for name in ("linf", "l2", "l1"):
            with pytest.raises(ValueError, match=r"^in_ball: eps must .*got -"):
                noise.in_ball(x, -0.1, name)
            with pytest.raises(ValueError, match=r"^in_ball: x must .*got "):
                noise.in_ball((255 * x).to(torch.uint8), 0.1, name)
            with pytest.raises(ValueError, match=r"^in_ball: draw must .*got 2147483648"):
                noise.in_ball(x, 0.1, name, draw=2**31)
        with pytest.raises(ValueError, match=r"^in_ball: surface must .*got True"):
            noise.in_ball(x, 0.1, surface=True)

    def test_in_place(self) -> None:
        x = images()
        expected = noise.gaussian(x, 0.2)
        noise.gaussian(x, 0.2, out=x)
        assert same_bits(x, expected)

    def test_the_amount_of_noise(self) -> None:
        x = torch.full((4, 50_000), 0.5)
        options = {"bounds": None}
        assert (noise.gaussian(x, 0.2, **options) - x).std().item() == pytest.approx(0.2, rel=0.01)
        assert (noise.uniform(x, 0.3, **options) - x).std().item() == pytest.approx(0.3 / 3**0.5, rel=0.01)
        assert (noise.laplace(x, 0.1, **options) - x).std().item() == pytest.approx(0.1 * 2**0.5, rel=0.01)
        assert (noise.speckle(x, 0.4, **options) - x).std().item() == pytest.approx(0.2, rel=0.01)
        assert noise.shot(x, 12.0, **options).var().item() == pytest.approx(0.5 / 12, rel=0.02)
        assert (noise.salt_and_pepper(x, 0.3) == 0).float().mean().item() == pytest.approx(0.15, rel=0.03)
        assert (noise.dropout(x, 0.3) == 0).float().mean().item() == pytest.approx(0.3, rel=0.02)

    @pytest.mark.parametrize(
        ("norm", "surface", "order"),
        [("linf", False, math.inf), ("l2", False, 2), ("l2", True, 2), ("l1", False, 1), ("l1", True, 1)],
    )
    def test_in_ball(self, norm: str, surface: bool, order: float) -> None:
        x = torch.full((2000, 3), 0.5)
        radius = (noise.in_ball(x, 0.25, norm, surface, seed=2) - x).norm(order, dim=1)
        assert radius.max() <= 0.25 + 1e-6
        if surface:
            assert radius.min() >= 0.25 - 1e-6
        else:  # a ball of half the radius holds an eighth of a ball's volume
            assert (radius < 0.125).float().mean().item() == pytest.approx(1 / 8, abs=0.025)

    @pytest.mark.parametrize(("function", "kind", "name", "amount"), FUNCTIONS)
    def test_compiles_into_one_graph(
        self, function: Callable[..., Tensor], kind: str, name: str, amount: float
    ) -> None:
        def step(x: Tensor) -> Tensor:
            return function(2 * x - x, amount, seed=3, draw=5).sin()

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        x, y = images().requires_grad_(), images().requires_grad_()
        compiled(x).sum().backward()
        step(y).sum().backward()
        assert same_bits(compiled(x), step(y))
        torch.testing.assert_close(x.grad, y.grad)

    @pytest.mark.parametrize(("function", "kind", "name", "amount"), FUNCTIONS)
    def test_gradient(self, function: Callable[..., Tensor], kind: str, name: str, amount: float) -> None:
        x = images().double().requires_grad_()
        noisy = function(x, amount, seed=2, bounds=(0.0, 1.0))
        (grad,) = torch.autograd.grad(noisy.sum(), x)
        inside = (noisy > 0) & (noisy < 1)
        factor = {
            "speckle": noisy / x,  # 1 + sigma z
            "dropout": torch.full_like(x, 1 / (1 - amount)),
        }.get(kind, torch.ones_like(x))
        torch.testing.assert_close(grad[inside], factor[inside].detach(), rtol=1e-6, atol=1e-6)
        if kind != "shot":  # whose counts reach 0 and 1 without being clamped
            assert not grad[~inside].any()


class TestNoiseInjection:
    def test_each_step_is_a_draw_of_the_function(self) -> None:
        injection, x = NoiseInjection("gaussian", 0.1, seed=9, bounds=(0.0, 1.0)), images()
        ids = torch.tensor([4, 8, 1, 0, 2, 11])
        for t in range(3):
            assert same_bits(injection(x, ids), noise.gaussian(x, 0.1, 9, ids, t))
        assert int(injection.step) == 3

    def test_evaluation_mode_passes_through_and_counts_nothing(self) -> None:
        injection, x = NoiseInjection("gaussian", 0.1).eval(), images()
        assert injection(x) is x
        assert int(injection.step) == 0
        always = NoiseInjection("gaussian", 0.1, always=True).eval()
        assert same_bits(always(x), noise.gaussian(x, 0.1, bounds=None))

    def test_schedule_is_a_factor(self) -> None:
        x = torch.zeros(1, 200_000)
        injection = NoiseInjection("gaussian", 0.5, schedule=lambda step: 1 / (1 + step))
        for step in range(3):
            assert injection(x).std().item() == pytest.approx(0.5 / (1 + step), rel=0.01)
        off = NoiseInjection("gaussian", 0.5, schedule=lambda step: 0.0)
        assert torch.equal(off(images()), images())

    @pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
    def test_wrong_factor(self, factor: float) -> None:
        injection = NoiseInjection("gaussian", 0.5, schedule=lambda step: factor)
        with pytest.raises(
            ValueError, match=r"NoiseInjection: schedule's factor must be finite and >= 0; got"
        ):
            injection(images())
        assert int(injection.step) == 0

    def test_resumed_run_is_the_same_run(self, tmp_path: Path) -> None:
        x, y = models.data(16)

        def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            torch.manual_seed(1)
            model = nn.Sequential(
                NoiseInjection("gaussian", 0.3, seed=seed),
                models.convolutional(),
                NoiseInjection("dropout", 0.2, lambda step: 1 / (1 + step), seed=seed + 1),
            )
            return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

        def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

        straight = fresh(2**63 + 5)
        run(*straight, 6)
        first = fresh(2**63 + 5)
        run(*first, 3)
        torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
        second = fresh(77)  # the seed comes from the file
        run(*second, 1)
        for part, state in zip(second, torch.load(tmp_path / "state.pt"), strict=True):
            part.load_state_dict(state)
        run(*second, 3)
        expected = straight[0].state_dict()
        assert {"0.step", "0.seed", "2.step", "2.seed"} <= expected.keys()
        for name, value in second[0].state_dict().items():
            assert torch.equal(value, expected[name]), name

    def test_step_follows_its_buffer_whoever_writes_it(self) -> None:
        injection, x = NoiseInjection("gaussian", 0.1), images()
        injection(x)
        twin = copy.deepcopy(injection)
        buffer = io.BytesIO()
        torch.save(injection, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        for other in (injection, twin, loaded):
            assert same_bits(other(x), noise.gaussian(x, 0.1, draw=1, bounds=None))
            other.step.fill_(7)
            assert same_bits(other(x), noise.gaussian(x, 0.1, draw=7, bounds=None))
            other.step = torch.tensor(40)
            other.seed.fill_(3)
            assert same_bits(other(x), noise.gaussian(x, 0.1, 3, draw=40, bounds=None))
            assert int(other.step) == 41

    def test_a_copy_does_not_mistake_its_buffer_for_the_original(self) -> None:
        injection, x = NoiseInjection("gaussian", 0.1), images()
        for _ in range(3):
            injection(x)
        twin = copy.deepcopy(injection)
        while twin.step._version < injection.step._version:
            twin.step.fill_(20)
        assert same_bits(twin(x), noise.gaussian(x, 0.1, draw=20, bounds=None))

    def test_evaluations_leave_the_counter_alone(self) -> None:
        x, y = models.data(8)
        model = nn.Sequential(NoiseInjection("gaussian", 0.1, always=True), models.make("convolutional"))
        model(x)
        brittle.fgsm(model, x, y, 0.1)
        assert int(model[0].step) == 1
        assert same_bits(model[0](x), noise.gaussian(x, 0.1, draw=1, bounds=None))

    def test_ids_for_a_call_that_cannot_pass_them(self) -> None:
        injection, x, ids = NoiseInjection("gaussian", 0.1), images(2), torch.tensor([31, 4])
        model = nn.Sequential(injection)
        with injection.using_ids(ids):
            assert same_bits(model(x), noise.gaussian(x, 0.1, sample_ids=ids, bounds=None))
        assert same_bits(model(x), noise.gaussian(x, 0.1, draw=1, bounds=None))

    def test_inside_a_compiled_model(self) -> None:
        injection, x = NoiseInjection("gaussian", 0.1), images()
        compiled, first = [], 0

        def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
            compiled.append(graph)
            return graph.forward

        model = torch.compile(nn.Sequential(nn.Flatten(), injection, nn.ReLU()), backend=backend)
        for t in range(12):
            got = model(x)
            first = first if t else len(compiled)
            assert len(compiled) == first  # no step compiles anew
            assert same_bits(got, noise.gaussian(x, 0.1, draw=t, bounds=None).flatten(1).relu())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kind": "pink"}, "kind must be one of .*got 'pink'"),
            ({"scale": -1.0}, "scale must be finite and >= 0; got -1"),
            ({"scale": math.nan}, "scale must be finite and >= 0; got nan"),
            ({"kind": "dropout", "scale": 1.5}, r"scale must .*got 1\.5"),
            ({"kind": "shot", "scale": 0.0}, "scale must .*got 0"),
            ({"kind": "salt_and_pepper"}, "bounds must .*got "),
            ({"bounds": (1.0, 0.0)}, "bounds must .*got "),
            ({"seed": 2**64}, "seed must be an integer of 64 bits; got 18446744073709551616"),
        ],
    )
    def test_wrong_arguments_are_refused_at_once(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=f"^NoiseInjection: {message}"):
            NoiseInjection(**{"kind": "gaussian", "scale": 0.1, **arguments})  # type: ignore[arg-type]

    def test_wrong_ids_are_refused_when_called(self) -> None:
        injection = NoiseInjection("gaussian", 0.1)
        with pytest.raises(ValueError, match=r"^NoiseInjection: sample_ids must .*got "):
            injection(images(), torch.arange(2))
        assert int(injection.step) == 0


class TestInject:
    def test_layer_output_carries_the_noise_until_removed(self) -> None:
        model, x = models.perceptron().train(), torch.rand(4, 192)
        model[3].p = 0.0  # the model's own dropout
        injection = NoiseInjection("gaussian", 0.5, seed=3)
        clean, hidden = model(x), model[:3](x)
        expected = model[3:](noise.gaussian(hidden, 0.5, 3, bounds=None))
        with inject(model, "2", injection):
            assert same_bits(model(x), expected)
            model.eval()
            assert same_bits(model(x), clean)
        assert same_bits(model.train()(x), clean)
        assert "step" not in "".join(model.state_dict())
        handle = inject(model, "2", injection)
        assert not torch.equal(model(x), clean)
        handle.remove()
        assert same_bits(model(x), clean)
        assert int(injection.step) == 2

    def test_errors(self) -> None:
        model = models.perceptron()
        with pytest.raises(ValueError, match=r"inject: layer_name must be one of '0', '1', .*; got 'head'"):
            inject(model, "head", NoiseInjection("gaussian", 0.1))
        with pytest.raises(ValueError, match="inject: injection must be a NoiseInjection; got ReLU"):
            inject(model, "1", nn.ReLU())  # type: ignore[arg-type]
        lstm = nn.LSTM(3, 2)
        with (
            inject(lstm, "", NoiseInjection("gaussian", 0.1)),
            pytest.raises(ValueError, match=r"inject: layer '' must return a tensor; got tuple"),
        ):
            lstm(torch.rand(4, 3))


def noisy_weights(model: nn.Module, *arguments: object, **options: object) -> dict[str, Tensor]:
    with noise_weights(model, *arguments, **options):  # type: ignore[arg-type]
        return {name: p.detach().clone() for name, p in model.named_parameters()}


class TestNoiseWeights:
    def test_amount_of_noise_and_exact_bits_afterwards(self) -> None:
        model = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 5))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        identities = [id(p) for p in model.parameters()]
        for relative in (True, False):
            noisy = noisy_weights(model, 0.1, relative)
            spread = before["0.weight"].std().item() if relative else 1.0
            difference = noisy["0.weight"] - before["0.weight"]
            assert difference.std().item() == pytest.approx(0.1 * spread, rel=0.02)
            # All of batch norm's weights are 1: there is nothing to be relative to.
            assert torch.equal(noisy["1.weight"], before["1.weight"]) == relative
        for name, p in model.named_parameters():
            assert same_bits(p, before[name]), name
        assert [id(p) for p in model.parameters()] == identities
        assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def test_restored_after_an_exception_and_whatever_happens_inside(self) -> None:
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight[0, 0] = -0.0
            model.weight[0, 1] = math.inf
        before = [p.detach().clone() for p in model.parameters()]

        def interrupted() -> None:
            with noise_weights(model, 0.1, relative=False):
                model.weight.data.zero_()
                model.bias.data = torch.ones(2)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        for p, value in zip(model.parameters(), before, strict=True):
            assert same_bits(p, value)

    def test_gradients_at_the_noisy_weights(self) -> None:
        model, x = nn.Linear(3, 1), torch.rand(5, 3)
        with noise_weights(model, 0.5, seed=1):
            noisy = copy.deepcopy(model)
            model(x).square().sum().backward()
        noisy.zero_grad()
        noisy(x).square().sum().backward()
        assert torch.equal(model.weight.grad, noisy.weight.grad)
        with noise_weights(model, 0.5, seed=1):
            loss = model(x).square().sum()
            hidden = torch.nn.functional.linear(model.weight, model.weight).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (loss + hidden).backward()

    def test_a_parameters_noise_is_its_own(self) -> None:
        def build(width: int) -> nn.Module:
            torch.manual_seed(0)
            last = nn.Linear(4, 3)
            return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 4), last)

        small, large = build(5), build(50)
        assert same_bits(noisy_weights(small, 0.1)["2.weight"], noisy_weights(large, 0.1)["2.weight"])
        alone = noisy_weights(small, 0.1, parameters=["2.weight"])
        everything = noisy_weights(small, 0.1)
        assert same_bits(alone["2.weight"], everything["2.weight"])
        assert same_bits(alone["0.weight"], small.get_parameter("0.weight"))
        twins = nn.Sequential(nn.Linear(9, 9), copy.deepcopy(small[1]), nn.Linear(9, 9))
        twins[2].load_state_dict(twins[0].state_dict())
        noisy = noisy_weights(twins, 0.1)
        assert not (noisy["0.weight"] == noisy["2.weight"]).any()
        for other in ({"seed": 1}, {"draw": 1}):
            assert not torch.equal(noisy_weights(small, 0.1, **other)["2.weight"], everything["2.weight"])

    def test_no_numbers_are_shared_with_noise_on_inputs(self) -> None:
        model = nn.Linear(50, 20, bias=False)
        difference = noisy_weights(model, 1.0, relative=False)["weight"] - model.weight.detach()
        inputs = noise.gaussian(torch.zeros(1, 20, 50), 1.0, bounds=None)[0]
        assert abs(torch.corrcoef(torch.stack([difference.flatten(), inputs.flatten()]))[0, 1]) < 0.12

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sigma": -0.1}, "sigma must be finite and >= 0; got -0.1"),
            ({"sigma": math.nan}, "sigma must be finite and >= 0; got nan"),
            ({"seed": 2**64}, "seed must be an integer of 64 bits"),
            ({"draw": -1}, r"draw must be an integer in \[0, 2\*\*31\); got -1"),
            ({"parameters": ["wieght"]}, "parameters must be names of the model's parameters; got 'wieght'"),
        ],
    )
    def test_errors(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=f"noise_weights: {message}"):
            noisy_weights(nn.Linear(3, 2), **{"sigma": 0.1, **arguments})

    def test_weights_without_a_spread(self) -> None:
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.bias[0] = math.nan
        before = model.weight.detach().clone()
        with pytest.raises(ValueError, match=r"noise_weights: parameter 'bias' must be finite .*got nan"):
            noisy_weights(model, 0.1)
        assert same_bits(model.weight, before)


def gradient_noise(steps: int, sizes: tuple[int, ...] = (100_000, 3), **options: float) -> list[list[Tensor]]:
    """What noise_gradients adds to zero gradients, step by step and parameter by parameter."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=1.0)
    noise_gradients(optimizer, **options)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        found.append([p.grad.clone() for p in parameters])
    return found


class TestNoiseGradients:
    def test_variance_and_its_decay(self) -> None:
        found = gradient_noise(4, sigma=0.5, decay=0.55)
        for t, (first, _) in enumerate(found):
            assert first.mean().item() == pytest.approx(0, abs=0.01)
            assert first.var().item() == pytest.approx(0.25 / (1 + t) ** 0.55, rel=0.02)
        assert gradient_noise(3, sigma=0.5)[2][0].std().item() == pytest.approx(0.5, rel=0.01)

    def test_steps_and_parameters_are_independent(self) -> None:
        found = gradient_noise(2, (50_000, 50_000), sigma=1.0)
        (a, b), (c, d) = found
        assert (torch.corrcoef(torch.stack([a, b, c, d])) - torch.eye(4)).abs().max() < 0.02

    def test_a_parameters_noise_does_not_depend_on_the_others(self) -> None:
        small, large = gradient_noise(2, (4, 30), sigma=1.0), gradient_noise(2, (90, 30), sigma=1.0)
        assert all(same_bits(s[1], g[1]) for s, g in zip(small, large, strict=True))

    def test_optimizer_steps_along_the_noisy_gradient_and_alone_after_remove(self) -> None:
        p = nn.Parameter(torch.zeros(1000))
        unused = nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([p, unused], lr=1.0)
        with noise_gradients(optimizer, 0.5) as added:
            p.grad = torch.full_like(p, 2.0)
            optimizer.step()
            assert torch.equal(p.detach(), -p.grad)
            assert p.grad.std().item() == pytest.approx(0.5, rel=0.1)
            assert unused.grad is None
        before = p.detach().clone()
        p.grad = torch.full_like(p, 2.0)
        optimizer.step()
        assert torch.equal(p.detach(), before - 2.0)
        assert added.step == 1

    def test_resumed_run_is_the_same_run(self) -> None:
        x, y = models.data(16)

        def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, noise.GradientNoise]:
            torch.manual_seed(1)
            model = models.convolutional()
            optimizer = torch.optim.Adam(model.parameters())
            return model, optimizer, noise_gradients(optimizer, 0.1, seed, decay=0.55)

        def run(model: nn.Module, optimizer: torch.optim.Optimizer, _: object, steps: int) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

        straight = fresh(4)
        run(*straight, steps=6)
        first = fresh(4)
        run(*first, steps=3)
        second = fresh(5)
        for part, saved in zip(second, first, strict=True):
            part.load_state_dict(copy.deepcopy(saved.state_dict()))
        run(*second, steps=3)
        assert second[2].state_dict() == straight[2].state_dict()
        assert straight[2].state_dict() == {"step": 6, "seed": 4, "sigma": 0.1, "decay": 0.55}
        for a, b in zip(second[0].parameters(), straight[0].parameters(), strict=True):
            assert same_bits(a, b)

    def test_errors(self) -> None:
        p = nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([p], lr=1.0)
        for name, wrong in (("sigma", -1.0), ("sigma", math.nan), ("decay", -0.1)):
            with pytest.raises(ValueError, match=f"noise_gradients: {name} must be finite and >= 0; got"):
                noise_gradients(optimizer, **{"sigma": 0.1, name: wrong})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="noise_gradients: seed must be an integer of 64 bits"):
            noise_gradients(optimizer, 0.1, seed=-(2**63) - 1)
        with pytest.raises(
            ValueError, match="noise_gradients: optimizer must be a torch Optimizer; got Linear"
        ):
            noise_gradients(nn.Linear(2, 2), 0.1)  # type: ignore[arg-type]
        with noise_gradients(optimizer, 0.1) as added:
            for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
                with pytest.raises(
                    ValueError, match="noise_gradients: optimizer must step without a closure"
                ):
                    step()
            p.grad = torch.zeros(3).to_sparse()
            with pytest.raises(ValueError, match="noise_gradients: gradients must be dense"):
                optimizer.step()
            assert added.step == 0


class TestNoiseLabels:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_rate_and_where_the_labels_go(self, classes: int) -> None:
        n, rate = 60_000, 0.3
        y = torch.arange(n) % classes
        noisy = noise_labels(y, classes, rate, seed=1)
        changed = noisy != y
        assert noisy.min() >= 0
        assert noisy.max() < classes
        sigma = math.sqrt(rate * (1 - rate) / n)
        assert abs(changed.double().mean().item() - rate) < 4 * sigma
        # Every other class equally often, whatever the true one: 4 sigma, cell by cell.
        counts = torch.bincount((y * classes + noisy)[changed], minlength=classes**2).reshape(classes, -1)
        assert not counts.diagonal().any()
        expected = n / classes * rate / (classes - 1)
        away = counts[~torch.eye(classes, dtype=torch.bool)]
        assert (away - expected).abs().max() < 4 * math.sqrt(expected)

    def test_extreme_rates(self) -> None:
        y = torch.arange(10_000) % 7
        assert torch.equal(noise_labels(y, 7, 0.0), y)
        assert (noise_labels(y, 7, 1.0) != y).all()

    def test_a_label_depends_on_its_id_alone(self) -> None:
        y = torch.randint(10, (500,))
        whole = noise_labels(y, 10, 0.4, seed=5)
        order = torch.randperm(500)
        assert torch.equal(noise_labels(y[order], 10, 0.4, 5, order), whole[order])
        assert torch.equal(noise_labels(y[100:107], 10, 0.4, 5, torch.arange(100, 107)), whole[100:107])
        assert not torch.equal(noise_labels(y, 10, 0.4, seed=6), whole)
        assert not torch.equal(noise_labels(y, 10, 0.4, seed=5, draw=1), whole)

    def test_a_higher_rate_changes_all_that_a_lower_one_does(self) -> None:
        y = torch.randint(10, (2000,))
        low, high = noise_labels(y, 10, 0.1), noise_labels(y, 10, 0.5)
        assert torch.equal(high[low != y], low[low != y])

    def test_labels_and_pixels_are_independent(self) -> None:
        y = torch.zeros(20_000, dtype=torch.int64)
        changed = (noise_labels(y, 2, 0.5) != y).float()
        pixels = noise.uniform(torch.zeros(20_000, 2), 1.0, bounds=None)
        assert torch.corrcoef(torch.stack([changed, *pixels.T]))[0, 1:].abs().max() < 0.03

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"rate": -0.1}, r"rate must be in \[0, 1\]; got -0.1"),
            ({"rate": 1.1}, r"rate must be in \[0, 1\]; got 1.1"),
            ({"rate": math.nan}, r"rate must be in \[0, 1\]; got nan"),
            ({"num_classes": 1}, "num_classes must be an integer >= 2; got 1"),
            ({"num_classes": 2}, r"y must be in \[0, 2\); got labels from 0 to 2"),
            ({"y": torch.tensor([0, -1])}, r"y must be in \[0, 3\); got labels from -1 to 0"),
            ({"y": torch.tensor([0.0, 1.0])}, "y must be int64 class labels; got torch.float32"),
            ({"y": torch.zeros(2, 2).long()}, r"y must be a tensor \[N\]; got \[2, 2\]"),
            ({"y": [0, 1]}, r"y must be a tensor \[N\]; got list"),
            ({"sample_ids": torch.arange(2)}, "sample_ids must"),
            ({"seed": 2**64}, "seed must be an integer of 64 bits"),
            ({"draw": 2**31}, "draw must"),
        ],
    )
    def test_errors(self, arguments: dict[str, object], message: str) -> None:
        call = {"y": torch.tensor([0, 1, 2]), "num_classes": 3, "rate": 0.1, **arguments}
        with pytest.raises(ValueError, match=f"^noise_labels: {message}"):
            noise_labels(**call)  # type: ignore[arg-type]


class TestWithIds:
    def test_shuffled_batches_carry_their_ids(self) -> None:
        data = TensorDataset(torch.rand(20, 4), torch.arange(20))
        expected = noise.gaussian(data.tensors[0], 0.1)
        loader = DataLoader(
            WithIds(data), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0)
        )
        seen = []
        for x, y, ids in loader:
            assert ids.dtype == torch.int64
            assert torch.equal(y, ids)
            assert same_bits(noise.gaussian(x, 0.1, sample_ids=ids), expected[ids])
            seen += ids.tolist()
        assert seen != sorted(seen)
        assert sorted(seen) == list(range(20))
        assert [i for _, _, i in Subset(WithIds(data), [7, 3])] == [7, 3]

    def test_indexing(self) -> None:
        data = WithIds(TensorDataset(torch.rand(5, 2), torch.arange(5)))
        assert len(data) == 5
        assert data[-1][2] == 4
        with pytest.raises(IndexError, match=r"WithIds: index must be in \[0, 5\); got 5"):
            data[5]

    def test_errors(self) -> None:
        class Stream(IterableDataset[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                return iter(())

            def __len__(self) -> int:
                return 0

        with pytest.raises(ValueError, match=r"WithIds: dataset must be map-style, .*got Stream"):
            WithIds(Stream())
        with pytest.raises(ValueError, match=r"WithIds: dataset must yield \(x, y\); got tuple of 1"):
            WithIds(TensorDataset(torch.rand(3, 2)))[0]
