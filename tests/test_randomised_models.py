"""Models whose answer for a sample is not a function of that sample alone: said by name, and asked again."""

import random
import warnings
from collections.abc import Callable

import brittle
import models
import numpy as np
import pytest
import torch
from brittle.attacks import PGD
from brittle.evaluation import accuracy_vs_epsilon, minimal_epsilon
from torch import Tensor, nn

X = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A linear model, and what it does to its input first."""

    def __init__(self, change: Callable[["Model", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 10)
        self.change = change
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(self.change(self, x).flatten(1))

    def plain(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layer(x.flatten(1)).argmax(1)


def torch_noise(model: Model, x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x)


def numpy_noise(model: Model, x: Tensor) -> Tensor:
    return x + torch.from_numpy(np.random.standard_normal(x.shape).astype(np.float32)) * 0.3  # noqa: NPY002


def python_noise(model: Model, x: Tensor) -> Tensor:
    return x * random.uniform(0.5, 1.5)


def dropout_that_stays_on(model: Model, x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.3, training=True)


def a_counter(model: Model, x: Tensor) -> Tensor:
    return x + 0.05 * (model.calls % 3)


RANDOM = [torch_noise, numpy_noise, python_noise, dropout_that_stays_on, a_counter]


def batch_statistics(model: Model, x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1)


def a_maximum_over_the_batch(model: Model, x: Tensor) -> Tensor:
    return x * x.flatten(1).sum(1).max() / 30


def the_next_sample(model: Model, x: Tensor) -> Tensor:
    return x + 0.2 * x.roll(1, 0)


MIXING = [batch_statistics, a_maximum_over_the_batch, the_next_sample]


def wrong_share(model: Model, x: Tensor, y: Tensor, answers: int = 200) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(x).argmax(1) != y for _ in range(answers)]).double().mean(0)


class TestWarning:
    @pytest.mark.parametrize("change", [*RANDOM, *MIXING], ids=lambda change: change.__name__)
    @pytest.mark.parametrize(
        "call",
        [
            lambda m, x, y: brittle.attack(m, PGD(0.02, steps=3), (x, y)),
            lambda m, x, y: brittle.attack(brittle.Target(m), PGD(0.02, steps=3), (x, y)),
            lambda m, x, y: brittle.pgd(m, x, y, 0.02, steps=3),
            lambda m, x, y: accuracy_vs_epsilon(m, (x, y), [0.0, 0.02]),
            lambda m, x, y: accuracy_vs_epsilon(m, (x, y), [0.0, 0.02], "pgd", steps=3),
            lambda m, x, y: minimal_epsilon(m, (x, y), PGD(steps=2), upper=0.02, tolerance=0.01),
        ],
        ids=["attack", "target", "pgd", "fgsm curve", "curve", "minimal epsilon"],
    )
    def test_is_given_once_and_names_what_was_seen(
        self, change: Callable[[Model, Tensor], Tensor], call: Callable[..., object]
    ) -> None:
        model, x = Model(change), X[:24]
        seen = "the second time" if change in RANDOM else "among fewer others"
        with pytest.warns(brittle.RandomisedModelWarning) as caught:
            call(model, x, model.plain(x))
        messages = [str(w.message) for w in caught if w.category is brittle.RandomisedModelWarning]
        assert len(messages) == 1
        assert seen in messages[0]
        assert "60% of 100 repeated forwards" in messages[0]

    @pytest.mark.parametrize("name", ["convolutional", "residual with batch norm"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_is_not_given_to_ordinary_models(self, name: str, dtype: torch.dtype) -> None:
        model = models.make(name).to(dtype).train()  # attacks switch to evaluation mode themselves
        x, _ = models.data(40)
        x = x.to(dtype)
        y = model.eval()(x).argmax(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", brittle.RandomisedModelWarning)
            brittle.pgd(model.train(), x, y, 0.02, steps=3)
            brittle.attack(model.train(), PGD(0.02, steps=3), (x, y))

    def test_single_steps_and_training_are_not_asked(self) -> None:
        """They give no verdict, and would pay for the question at each batch."""
        model, y = Model(torch_noise), torch.zeros(120, dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("error", brittle.RandomisedModelWarning)
            brittle.fgsm(model, X, y, 0.02)
            assert model.calls == 1
            brittle.pgd(model, X, y, 0.02, steps=3, early_stop=False)

    def test_what_the_question_costs(self) -> None:
        model = Model(lambda model, x: x)
        target = brittle.Target(model)
        y = model.plain(X)
        result = brittle.attack(target, PGD(0.001, steps=2, random_start=False), (X, y), slots=120)
        assert target.forwards == 3 * 16 + int(result.forwards.sum())


@pytest.mark.filterwarnings("ignore::brittle.RandomisedModelWarning")
class TestVerdict:
    def test_successes_hold_when_they_are_asked_again(self) -> None:
        model = Model(torch_noise)
        y = model.plain(X)
        torch.manual_seed(1)
        result = brittle.attack(model, PGD(0.02), (X, y))
        assert result.adversarial is not None
        again = wrong_share(model, result.adversarial, y)
        assert torch.equal(result.success, result.certified)
        assert result.success.any()
        assert (again[result.success] > 0.5).double().mean() > 0.8
        majority = 1 - (again > 0.5).double().mean()
        assert abs(result.robust_accuracy - majority) < 0.06

    def test_samples_count_as_wrong_only_if_they_mostly_are(self) -> None:
        model = Model(torch_noise)
        y = model.plain(X)
        torch.manual_seed(2)
        result = brittle.attack(model, PGD(0.02, steps=2), (X, y))
        often = wrong_share(model, X, y)
        assert (often > 0.2).any(), "one answer would have condemned some of these"
        assert (often[result.clean_wrong] > 0.45).all()

    def test_the_search_goes_on_after_a_lucky_answer(self) -> None:
        """A model that is wrong now and then near the clean point, and always a little further."""

        def far(model: Model, x: Tensor) -> Tensor:
            moved = (x - model.origin).abs().flatten(1).amax(1) > 0.015
            lucky = (torch.rand(len(x)) < 0.3) | moved
            flip = torch.where(lucky, -20.0, 1.0).view(-1, 1, 1, 1)
            return x * flip

        model = Model(far)
        model.origin = X[:1].clone()
        y = model.plain(model.origin)
        torch.manual_seed(0)
        result = brittle.attack(
            model, PGD(0.02, steps=10, step_size=0.004, random_start=False), (model.origin, y)
        )
        if result.success.any():  # the flipped input may have the same answer
            assert (result.adversarial - model.origin).abs().max() > 0.015  # type: ignore[operator]
        assert result.steps.item() >= 4

    def test_no_cycle_is_concluded(self) -> None:
        """A point that comes back proves nothing where the gradient is another one the next time."""
        model = Model(torch_noise)
        result = brittle.attack(model, PGD(0.001, steps=40), (X, model.plain(X)))
        assert not result.cycled.any()
        assert (result.steps[~result.success] == 40).all()

    def test_every_step_is_asked_at_its_end(self) -> None:
        model = Model(torch_noise)
        y = model.plain(X)
        torch.manual_seed(3)
        result = brittle.attack(model, PGD(0.03, steps=10, early_stop=False), (X, y))
        again = wrong_share(model, result.adversarial, y)  # type: ignore[arg-type]
        assert (again[result.success] > 0.5).double().mean() > 0.8

    def test_curve_of_single_steps(self) -> None:
        model = Model(torch_noise)
        y = model.plain(X)
        curve = accuracy_vs_epsilon(model, (X, y), [0.0, 0.02])
        adv = brittle.fgsm(lambda x: model.layer(x.flatten(1)), X, y, 0.02)
        for points, accuracy in ((X, curve.accuracy[0]), (adv, curve.accuracy[1])):
            assert accuracy >= 1 - (wrong_share(model, points, y) > 0.4).double().mean() - 0.05

    def test_batches_that_mix(self) -> None:
        model = Model(the_next_sample)
        y = model.plain(X)
        result = brittle.attack(model, PGD(0.02, steps=10), (X, y), slots=32)
        held = []
        for _ in range(50):
            order = torch.randperm(len(X))
            wrong = torch.empty(len(X), dtype=torch.bool)
            wrong[order] = model(result.adversarial[order]).argmax(1) != y[order]  # type: ignore[index]
            held.append(wrong)
        again = torch.stack(held).double().mean(0)
        assert result.success.any()
        assert (again[result.success] > 0.5).double().mean() > 0.6

    def test_peers_conventions_are_kept_and_not_certified_by_luck(self) -> None:
        model = Model(torch_noise)
        y = model.plain(X)
        torch.manual_seed(4)
        result = brittle.attack(model, PGD(0.1, steps=8, compat="torchattacks", random_start=False), (X, y))
        assert 0 < int(result.certified.sum()) < int(result.success.sum())
        again = wrong_share(model, result.adversarial, y)  # type: ignore[arg-type]
        assert (again[result.certified] > 0.5).double().mean() > 0.8
