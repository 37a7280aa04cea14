"""accuracy_vs_epsilon: the same verdicts as attacking at each epsilon alone, for less."""

import math

import brittle
import models
import pytest
import torch
from brittle.evaluation import accuracy_vs_epsilon
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

EPSILONS = [0.0, 0.005, 0.02, 0.08]


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, Tensor, Tensor]:
    model, (x, y) = models.make("convolutional").eval(), models.data(150)
    y = models.own_labels(model, x)
    y[:15] = (y[:15] + 1) % 10  # some that the model gets wrong
    return model, x, y


def test_fgsm_is_one_attack_for_each_epsilon(trained: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    curve = accuracy_vs_epsilon(model, (x, y), EPSILONS, batch_size=64)
    right = model(x).argmax(1) == y
    for k, eps in enumerate(EPSILONS):
        adv = brittle.fgsm(model, x, y, eps)
        expected = right & (model(adv).argmax(1) == y)
        assert torch.equal(curve.correct[k], expected)
        assert curve.accuracy[k] == expected.double().mean()
    assert curve.accuracy[0] == 0.9
    assert curve.accuracy[-1] < 0.5
    # One gradient serves all epsilons.
    assert (curve.forwards, curve.backwards) == (150 * (1 + len(EPSILONS)), 150)


def test_a_sample_that_is_wrong_stays_wrong() -> None:
    """Far enough along the gradient this model is right again; that is no merit of the model's."""

    def model(x: Tensor) -> Tensor:
        wave = torch.sin(20 * x)
        return torch.cat([wave, -wave], 1)

    x, y = torch.full((1, 1), 0.05), torch.tensor([1])
    assert model(x).argmax() == 0
    assert model(brittle.fgsm(model, x, y, 0.15)).argmax() == 1
    assert accuracy_vs_epsilon(model, (x, y), [0.0, 0.15]).accuracy == [0.0, 0.0]


def test_pgd_curve_never_rises_and_is_no_higher_than_attacks_apart(
    trained: tuple[torch.nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = trained
    curve = accuracy_vs_epsilon(model, (x, y), EPSILONS, "pgd", steps=5, seed=3)
    assert curve.accuracy == sorted(curve.accuracy, reverse=True)
    assert curve.accuracy[0] == 0.9
    standing = torch.ones(150, dtype=torch.bool)
    for k, eps in enumerate(EPSILONS):
        adv = brittle.pgd(model, x, y, eps, steps=5, seed=3)
        standing &= model(adv).argmax(1) == y
        assert (curve.correct[k] == standing).double().mean() > 0.98
    everything = 150 * len(EPSILONS) * 5
    assert curve.backwards < everything


def test_order_of_epsilons_is_the_callers(trained: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    forward = accuracy_vs_epsilon(model, (x, y), EPSILONS, "pgd", steps=3)
    backward = accuracy_vs_epsilon(model, (x, y), EPSILONS[::-1], "pgd", steps=3)
    assert backward.epsilons == tuple(EPSILONS[::-1])
    assert torch.equal(forward.correct, backward.correct.flip(0))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_loader_pairs_and_ids_agree(attack: str, trained: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    model, x = model.double(), x.double()
    try:
        options = {"attack": attack, "steps": 3, "seed": 1}
        whole = accuracy_vs_epsilon(model, (x, y), EPSILONS, batch_size=150, **options)
        loader = DataLoader(TensorDataset(x, y), batch_size=17)
        by_loader = accuracy_vs_epsilon(model, loader, EPSILONS, **options)
        assert torch.equal(by_loader.correct, whole.correct)
        assert by_loader.sample_ids.tolist() == list(range(150))
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
        shuffled = accuracy_vs_epsilon(
            model, DataLoader(TensorDataset(x[order], y[order], order), batch_size=31), EPSILONS, **options
        )
        assert torch.equal(shuffled.correct, whole.correct[:, order])
        assert torch.equal(shuffled.sample_ids, order)
    finally:
        model.float()


def test_progress_and_table(trained: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    seen: list[tuple[int, int | None]] = []
    curve = accuracy_vs_epsilon(
        model, (x, y), EPSILONS, batch_size=60, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(60, 150), (120, 150), (150, 150)]
    lines = curve.table().splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["0.0000", "90.00%"]


def test_plot_draws_the_curve(trained: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    curve = accuracy_vs_epsilon(model, (x, y), EPSILONS[::-1])
    axes = curve.plot()
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == EPSILONS
    assert list(line.get_ydata()) == [100 * a for a in curve.accuracy[::-1]]


def test_no_samples() -> None:
    model = models.make("convolutional")
    curve = accuracy_vs_epsilon(model, (torch.empty(0, 3, 8, 8), torch.empty(0).long()), [0.0, 0.1])
    assert curve.samples == 0
    assert all(math.isnan(a) for a in curve.accuracy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilons": []}, "epsilons must hold at least one value"),
        ({"epsilons": [0.1, -0.1]}, "epsilons must be finite and >= 0; got -0.1"),
        ({"epsilons": [math.nan]}, "epsilons must be finite and >= 0; got nan"),
        ({"attack": "deepfool"}, "attack must be one of 'fgsm', 'pgd'; got 'deepfool'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
        ({"steps": 0}, "steps must be an integer >= 1; got 0"),
        ({"step_size": -1.0}, "step_size must be finite and >= 0; got -1"),
        (
            {"data": (torch.rand(3, 3, 8, 8), torch.zeros(2).long())},
            "x and y must have one length; got 3 and 2",
        ),
        ({"data": (torch.rand(3, 3, 8, 8),)}, "data must be a pair of tensors"),
        ({"data": [torch.rand(3, 3, 8, 8)]}, r"data must yield \(x, y\) or \(x, y, sample_ids\); got Tensor"),
        ({"data": (torch.rand(3, 3, 8, 8) * 2, torch.zeros(3).long())}, "x must lie inside bounds"),
        ({"data": (torch.rand(3, 3, 8, 8), torch.full((3,), 10))}, r"y must be in \[0, 10\)"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    call = {"model": models.make("convolutional"), "data": models.data(5), "epsilons": [0.1], **arguments}
    with pytest.raises(ValueError, match=f"accuracy_vs_epsilon: .*{message}"):
        accuracy_vs_epsilon(**call)  # type: ignore[arg-type]
