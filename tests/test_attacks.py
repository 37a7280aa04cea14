"""FGSM and PGD: optimal on linear models, exact in ball and bounds."""

import math
from typing import Any

import brittle
import models
import pytest
import torch
from brittle import ops
from hypothesis import given
from hypothesis import strategies as st
from samples import DTYPES, assert_same_bits, images
from test_gradient_step import assert_in_ball
from torch import Tensor, nn


class Linear(nn.Module):
    """Two classes, margin w.x + b: the optimal Linf attack moves every pixel by eps against sign(w)."""

    def __init__(self, features: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(features, generator=generator, dtype=torch.float64).to(dtype))
        self.bias = nn.Parameter(torch.randn((), generator=generator, dtype=torch.float64).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight + self.bias
        return torch.stack([margin, -margin], 1)

    def optimum(self, x: Tensor, y: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
        """The margin of label y at the worst point of ball and bounds, in closed form."""
        away = torch.where(y == 0, -1.0, 1.0).double()[:, None] * self.weight.double().sign()
        worst = (x.double() + eps * away).clamp(*bounds)
        margin = worst @ self.weight.double() + self.bias.double()
        return torch.where(y == 0, margin, -margin)


class TestLinearModels:
    @given(
        dtype=st.sampled_from([torch.float32, torch.float64]),
        features=st.integers(1, 60),
        rows=st.integers(1, 9),
        seed=st.integers(0, 2**20),
        eps=st.floats(0, 0.7),
        bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.2, 0.9)]),
        attack=st.sampled_from(["fgsm", "pgd", "pgd from random"]),
    )
    def test_reach_the_closed_form_optimum(
        self,
        dtype: torch.dtype,
        features: int,
        rows: int,
        seed: int,
        eps: float,
        bounds: tuple[float, float],
        attack: str,
    ) -> None:
        model = Linear(features, dtype, seed)
        x = images((rows, features), dtype, bounds, seed)
        y = torch.arange(rows) % 2
        # A saturated softmax has no gradient to follow; scale the margin to stay clear of that.
        model.weight.data /= model.weight.data.abs().sum()
        if attack == "fgsm":
            adv = brittle.fgsm(model, x, y, eps, bounds=bounds)
        else:
            adv = brittle.pgd(
                model,
                x,
                y,
                eps,
                steps=20,
                step_size=max(eps / 4, 1e-3),
                random_start=attack != "pgd",
                bounds=bounds,
                early_stop=False,
            )
        assert_in_ball(adv, x, eps, bounds)
        reached = model(adv)[torch.arange(rows), y].double()
        optimum = model.optimum(x, y, eps, bounds)
        assert torch.allclose(reached, optimum, atol=1e-6 if dtype == torch.float32 else 1e-12)

    def test_early_stop_finds_an_adversarial_wherever_one_exists(self) -> None:
        model = Linear(30, torch.float64, 1)
        x = images((200, 30), torch.float64, (0, 1), 1)
        y = model(x).argmax(1)
        eps = 0.05
        exists = model.optimum(x, y, eps, (0, 1)) < 0
        assert 20 < exists.sum() < 180
        adv = brittle.pgd(model, x, y, eps, steps=20)
        assert torch.equal(model(adv).argmax(1) != y, exists)

    def test_targeted_goes_to_the_target_wherever_it_can(self) -> None:
        model = Linear(30, torch.float64, 2)
        x = images((50, 30), torch.float64, (0, 1), 2)
        goal = 1 - model(x).argmax(1)
        for adv in (
            brittle.fgsm(model, x, goal, 0.3, targeted=True),
            brittle.pgd(model, x, goal, 0.3, targeted=True),
        ):
            assert ((model(adv).argmax(1) == goal) == (model.optimum(x, 1 - goal, 0.3, (0, 1)) < 0)).all()


class TestPromises:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", models.MODELS)
    def test_every_output_is_in_ball_and_bounds(self, name: str, dtype: torch.dtype) -> None:
        model, (x, y) = models.make(name).to(dtype).eval(), models.data()
        x = x.to(dtype)
        eps = torch.rand(len(x), dtype=torch.float64) * 0.3
        eps[3] = 0
        for adv in (
            brittle.fgsm(model, x, y, eps),
            brittle.pgd(model, x, y, eps, steps=5, restarts=2),
            brittle.pgd(model, x, y, eps, steps=5, early_stop=False),
        ):
            assert adv.dtype == dtype
            assert_in_ball(adv, x, eps, (0, 1))
            assert torch.equal(adv[3], x[3])

    def test_random_starts_depend_on_seed_and_sample_id_alone(self) -> None:
        model = models.make("perceptron").double().eval()
        x, y = models.data(40)
        x = x.double()
        ids = torch.arange(1000, 1040)

        def attack(rows: Tensor, **options: Any) -> Tensor:
            return brittle.pgd(
                model, x[rows], y[rows], 0.05, steps=3, sample_ids=ids[rows], early_stop=False, **options
            )

        everything = torch.arange(40)
        whole = attack(everything, seed=5)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        # One by one, the linear layers may sum in another order; starts are equal to the bit regardless.
        shuffled = attack(order, seed=5)
        assert torch.allclose(shuffled, whole[order], atol=1e-12, rtol=0)
        assert not torch.allclose(attack(everything, seed=6), whole, atol=1e-3, rtol=0)
        torch.manual_seed(123)
        assert_same_bits(attack(everything, seed=5), whole)

    def test_first_success_is_returned_and_clean_mistakes_are_untouched(self) -> None:
        model, (x, y) = models.make("residual with batch norm").eval(), models.data(64)
        y[:20] = models.own_labels(model, x)[:20]
        wrong = models.own_labels(model, x) != y
        adv = brittle.pgd(model, x, y, 0.3, steps=10, step_size=0.01, random_start=False)
        assert wrong.any()
        assert_same_bits(adv[wrong], x[wrong])
        # Walk the same path by hand: the first fooled iterate is what came back.
        clean = x[~wrong]
        labels = y[~wrong]
        current, expected = clean.clone(), clean.clone()
        fooled = torch.zeros(len(clean), dtype=torch.bool)
        for _ in range(10):
            leaf = current.clone().requires_grad_()
            (grad,) = torch.autograd.grad(
                nn.functional.cross_entropy(model(leaf), labels, reduction="sum"), leaf
            )
            ops.linf_step_(current, grad, clean, 0.01, 0.3)
            now = (model(current).argmax(1) != labels) & ~fooled
            expected[now] = current[now]
            fooled |= now
        assert fooled.any()
        assert (adv[~wrong][fooled] - expected[fooled]).abs().max() < 0.011

    def test_clean_mistakes_are_untouched_by_random_starts_too(self) -> None:
        model, (x, y) = models.make("residual with batch norm").eval(), models.data(64)
        wrong = models.own_labels(model, x) != y
        adv = brittle.pgd(model, x, y, 0.3, steps=2)
        assert wrong.any()
        assert_same_bits(adv[wrong], x[wrong])

    def test_a_success_of_lower_loss_is_still_the_one_returned(self) -> None:
        def model(x: Tensor) -> Tensor:
            # Up to 0.55 class 0 leads nine others by a hair (loss 2.3); beyond, class 1 alone (0.69).
            mean = x.flatten(1).mean(1, keepdim=True)
            crowd = torch.cat([mean * 0, (mean - 0.56).expand(-1, 9)], 1)
            alone = torch.cat([mean * 0, mean - 0.5, (mean * 0 - 9).expand(-1, 8)], 1)
            return torch.where(mean < 0.55, crowd, alone)

        x, y = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
        adv = brittle.pgd(model, x, y, 0.2, steps=8, step_size=0.03, random_start=False)
        assert (model(adv).argmax(1) == 1).all()
        assert torch.allclose(adv, torch.full_like(adv, 0.56))

    def test_every_restart_starts_elsewhere(self) -> None:
        seen = []

        class Unfoolable(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x.detach().clone())
                return torch.cat([x.flatten(1).mean(1, keepdim=True) * 0 + 9, x.flatten(1)[:, :2]], 1)

        x, y = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
        brittle.pgd(Unfoolable(), x, y, 0.2, steps=1, restarts=3, seed=8)
        starts = seen[1::2]
        assert len(starts) == 3
        for attempt, start in enumerate(starts):
            assert_same_bits(start, ops.linf_start(x, 0.2, 8, draw=2**31 + attempt))
        assert not torch.equal(starts[0], starts[1])

    def test_gradients_are_summed_or_as_the_peers_averaged(self) -> None:
        gradients = []

        def model(x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :10] * 1.0
            logits.register_hook(gradients.append)
            return logits

        x, y = models.data(7)
        one_hot = nn.functional.one_hot(y, 10)
        expected = x.flatten(1)[:, :10].softmax(1) - one_hot
        brittle.fgsm(model, x, y, 0.1)
        brittle.fgsm(model, x, y, 0.1, compat="torchattacks")
        assert torch.allclose(gradients[0], expected, atol=1e-6)
        assert torch.allclose(gradients[1], expected / 7, atol=1e-6)

    def test_without_early_stop_the_highest_loss_comes_back(self) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        visited = []

        class Recorder(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                visited.append(inputs.detach().clone())
                return model(inputs)

        adv = brittle.pgd(Recorder(), x, y, 0.2, steps=6, step_size=0.1, early_stop=False)
        assert len(visited) == 7

        def loss(points: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(points), y, reduction="none")

        losses = torch.stack([loss(points) for points in visited]).detach()
        assert torch.equal(loss(adv).detach(), losses.max(0).values)

    def test_losses_are_compared_in_full_precision(self) -> None:
        """Kept in float32, a highest loss that rounds down let later, lower losses take its place."""
        bias = torch.rand(50, 1, dtype=torch.float64)
        calls = []

        def model(x: Tensor) -> Tensor:
            calls.append(len(x))
            falling = bias - 1e-12 * len(calls) + 1e-30 * x.sum(1, keepdim=True)
            return torch.cat([falling * 0, falling], 1)

        x, y = torch.full((50, 4), 0.5, dtype=torch.float64), torch.zeros(50, dtype=torch.int64)
        adv = brittle.pgd(model, x, y, 0.2, steps=4, random_start=False, early_stop=False)
        assert len(calls) == 5
        assert_same_bits(adv, x)

    def test_restarts_go_to_the_samples_still_standing(self) -> None:
        model, (x, _) = models.make("convolutional").eval(), models.data(100)
        y = models.own_labels(model, x)
        sizes = []
        model.register_forward_hook(lambda _, inputs, output: sizes.append(len(inputs[0])))
        one = brittle.pgd(model, x, y, 0.02, steps=2, seed=1)
        fooled_by_one = model(one).argmax(1) != y
        sizes.clear()
        many = brittle.pgd(model, x, y, 0.02, steps=2, seed=1, restarts=4)
        per_attempt = sizes[4:][1::3]  # the first four ask whether the answers waver
        assert per_attempt == sorted(per_attempt, reverse=True)
        assert per_attempt[1] == 100 - fooled_by_one.sum()
        assert ((model(many).argmax(1) != y) >= fooled_by_one).all()

    @pytest.mark.parametrize("attack", [brittle.fgsm, brittle.pgd])
    def test_layouts(self, attack: Any) -> None:
        model, (x, y) = models.make("residual with batch norm").eval(), models.data(7)
        expected = attack(model, x, y, 0.1)
        last = attack(model, x.contiguous(memory_format=torch.channels_last), y, 0.1)
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(last, expected, atol=1e-3)
        sliced = torch.stack([x, x], -1)[..., 0]
        assert not sliced.is_contiguous()
        assert_same_bits(attack(model, sliced, y, 0.1), expected)

    @pytest.mark.parametrize("attack", [brittle.fgsm, brittle.pgd])
    def test_empty_batch(self, attack: Any) -> None:
        adv = attack(models.make("convolutional"), torch.empty(0, 3, 8, 8), torch.empty(0).long(), 0.1)
        assert adv.shape == (0, 3, 8, 8)

    @pytest.mark.parametrize("attack", [brittle.fgsm, brittle.pgd])
    def test_rounding_errors_of_normalisation_are_let_through(self, attack: Any) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        x[0, 0, 0, :4] = torch.tensor([-3e-8, 1 + 1.2e-7, 0.0, 1.0])
        adv = attack(model, x, y, 0.1)
        assert_in_ball(adv, x, 0.1, (-3e-8, 1 + 1.2e-7))

    def test_saturated_model_has_zero_gradients_and_nothing_breaks(self) -> None:
        def confident(x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * 1e6 + torch.arange(10) * 1e7

        x, _ = models.data()
        y = torch.full((len(x),), 9)
        adv = brittle.pgd(confident, x, y, 0.1, steps=3, random_start=False)
        assert_same_bits(adv, x)

    def test_infinite_gradients_do_not_give_nan(self) -> None:
        def steep(x: Tensor) -> Tensor:
            return (x - 0.5).abs().sqrt().flatten(1)[:, :10]  # infinite slope at 0.5

        x = torch.full((3, 3, 8, 8), 0.5)
        adv = brittle.pgd(steep, x, torch.zeros(3, dtype=torch.int64), 0.1, steps=3, random_start=False)
        assert adv.isfinite().all()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_the_gpu(self) -> None:
        for name in models.MODELS:
            model, (x, y) = models.make(name).double().eval(), models.data()
            x = x.double()
            expected = brittle.pgd(model, x, y, 0.05, steps=3, early_stop=False)
            model.cuda()
            got = brittle.pgd(model, x.cuda(), y.cuda(), 0.05, steps=3, early_stop=False).cpu()
            assert_in_ball(got, x, 0.05, (0, 1))
            # Gradients differ by rounding, so a sign may differ where one is nearly zero.
            assert ((got - expected).abs() > 1e-9).double().mean() < 0.01


class TestBadInput:
    def call(self, attack: str, **changes: Any) -> Tensor:
        model, (x, y) = models.make("convolutional"), models.data(5)
        arguments = {"model": model, "x": x, "y": y, "eps": 0.1, **changes}
        return getattr(brittle, attack)(**arguments)

    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"x": torch.zeros(5, 3, 8, 8, dtype=torch.uint8)},
                r"x must be float32.*uint8.*x.float\(\) / 255",
            ),
            ({"x": torch.rand(5, 3, 8, 8) * 255}, r"x must lie inside bounds \(0.0, 1.0\); got values from"),
            ({"x": torch.rand(5, 3, 8, 8) - 0.1}, "x must lie inside bounds"),
            ({"x": torch.full((5, 3, 8, 8), math.nan)}, "x must lie inside bounds"),
            ({"x": torch.tensor(0.5)}, r"x must be \[N, ...\]; got shape \[\]"),
            ({"x": [0.5]}, "x must be a tensor; got list"),
            ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1.0, 0.0\)"),
            ({"y": torch.zeros(4, dtype=torch.int64)}, r"y must be \[N\] with N = 5; got shape \[4\]"),
            ({"y": torch.zeros(5, 1, dtype=torch.int64)}, r"got shape \[5, 1\]"),
            ({"y": torch.zeros(5, dtype=torch.int32)}, "y must be int64 class labels; got torch.int32"),
            ({"y": torch.zeros(5)}, "y must be int64 class labels; got torch.float32"),
            ({"y": torch.tensor([0, 1, 2, 3, 10])}, r"y must be in \[0, 10\).*from 0 to 10"),
            ({"y": torch.tensor([0, -1, 2, 3, 4])}, r"y must be in \[0, 10\).*from -1 to 4"),
            ({"eps": -0.1}, "eps must be finite and >= 0; got -0.1"),
            ({"eps": math.nan}, "eps must be finite and >= 0; got nan"),
            ({"eps": math.inf}, "eps must be finite and >= 0; got inf"),
            ({"eps": torch.rand(4)}, r"eps must be a scalar or \[N\]; got shape \[4\] for N = 5"),
            ({"eps": torch.tensor([0.1, 0.1, -0.5, 0.1, 0.1])}, "eps must be finite and >= 0; got -0.5"),
            ({"compat": "keras"}, "compat must be one of None, 'torchattacks', .*; got 'keras'"),
            ({"model": "resnet"}, "model must be a module or a callable; got str"),
            ({"model": lambda x: x}, r"logits \[N, C\] with N = 5; got torch.float32 \[5, 3, 8, 8\]"),
            ({"model": lambda x: x.flatten(1).argmax(1, keepdim=True)}, "got torch.int64"),
            ({"model": lambda x: x.flatten()[:10].view(1, 10)}, r"N = 5; got torch.float32 \[1, 10\]"),
            ({"model": lambda x: (x, x)}, "must return a tensor of logits; got tuple"),
            (
                {"model": lambda x: torch.eye(10)[:1].expand(len(x), 10), "y": torch.zeros(5).long()},
                "must depend on x",
            ),
        ],
    )
    def test_message(self, attack: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"^{attack}: .*{message}"):
            self.call(attack, **changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"norm": "l7"}, "norm must be one of 'linf', 'l2', 'l1'; got 'l7'"),
            ({"steps": 0}, "steps must be an integer >= 1; got 0"),
            ({"steps": 2.5}, "steps must be an integer >= 1; got 2.5"),
            ({"restarts": 0}, "restarts must be an integer >= 1; got 0"),
            ({"restarts": 2, "random_start": False}, "restarts > 1 needs random_start"),
            ({"restarts": 2, "compat": "torchattacks"}, "has no restarts"),
            ({"step_size": -0.1}, "step_size must be finite and >= 0; got -0.1"),
            ({"step_size": math.nan}, "step_size must be finite and >= 0; got nan"),
            ({"sample_ids": torch.arange(4)}, r"sample_ids must be int64 \[N\] with N = 5"),
            ({"sample_ids": torch.rand(5)}, "sample_ids must be int64"),
            ({"seed": 2**64}, "seed must be an integer of 64 bits; got 18446744073709551616"),
        ],
    )
    def test_pgd_message(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.call("pgd", **changes)

    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    def test_devices_differ(self, attack: str) -> None:
        with pytest.raises(ValueError, match=f"{attack}: y must be on x's device cpu; got meta"):
            self.call(attack, y=torch.zeros(5, dtype=torch.int64, device="meta"))
        with pytest.raises(ValueError, match=f"{attack}: x must be on the model's device meta; got cpu"):
            self.call(attack, model=nn.Linear(8, 10, device="meta"))
        with pytest.raises(ValueError, match=f"{attack}: eps must be on x's device cpu; got meta"):
            self.call(attack, eps=torch.rand(5, device="meta"))

    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    def test_nan_logits_name_the_samples(self, attack: str) -> None:
        def broken(x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :10]
            return torch.where((x[:, 0, 0, 0] > 2 / 3)[:, None], math.nan, logits)

        x = torch.full((5, 3, 8, 8), 0.1)
        x[[1, 4], 0, 0, 0] = 1.0
        with pytest.raises(ValueError, match=r"NaN logits for 2 sample\(s\): 1, 4"):
            self.call(attack, model=broken, x=x)

    def test_nothing_is_called_before_the_checks(self) -> None:
        calls = []
        with pytest.raises(ValueError):
            self.call("pgd", model=calls.append, eps=-1)
        assert not calls
