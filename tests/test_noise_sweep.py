"""noise_sweep and the two-by-two table: figures recomputed by hand, and the example that prints them."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import brittle
import models
import pytest
import torch
import torch.nn.functional as F
from brittle.evaluation import SEVERITIES, noise_sweep, noise_training_table
from brittle.evaluation.scores import expected_calibration_error
from sklearn.metrics import confusion_matrix, log_loss
from test_target import assert_same_state, picky, state
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

KINDS = tuple(SEVERITIES)
EXAMPLE = Path(__file__).parent.parent / "examples" / "noise_injection.py"


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    model, (x, y) = models.make("convolutional").eval(), models.data(150)
    y = models.own_labels(model, x)
    y[:15] = (y[:15] + 1) % 10  # some that the model gets wrong
    return model, x, y


def test_default_severities_are_the_benchmarks() -> None:
    assert SEVERITIES["gaussian"] == (0.08, 0.12, 0.18, 0.26, 0.38)
    assert SEVERITIES["shot"] == (60, 25, 12, 5, 3)
    assert SEVERITIES["salt_and_pepper"] == (0.03, 0.06, 0.09, 0.17, 0.27)
    assert SEVERITIES["speckle"] == (0.15, 0.2, 0.35, 0.45, 0.6)
    zeros = torch.zeros(1, 400_000)
    for kind in ("uniform", "laplace"):
        for scale, sigma in zip(SEVERITIES[kind], SEVERITIES["gaussian"], strict=True):
            noise = getattr(brittle.noise, kind)(zeros, scale, bounds=None)
            assert noise.std().item() == pytest.approx(sigma, rel=0.01)


def test_every_level_is_an_evaluation_on_noisy_inputs(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    sweep = noise_sweep(model, (x, y), seed=4, batch_size=64)
    assert sweep.kinds == KINDS
    assert len(sweep.levels) == 31
    assert sweep.clean.kind == "clean"
    assert sweep.clean.scores.accuracy == 0.9
    for level, correct in zip(sweep.levels, sweep.correct, strict=True):
        noisy = x
        if level.severity:
            assert level.scale == SEVERITIES[level.kind][level.severity - 1]
            noisy = getattr(brittle.noise, level.kind)(x, level.scale, seed=4)
        probabilities = model(noisy).softmax(1).detach().double()
        confidence, predicted = probabilities.max(1)
        assert torch.equal(correct, predicted == y)
        scores = level.scores
        assert scores.samples == 150
        assert scores.accuracy == pytest.approx((predicted == y).double().mean().item())
        assert scores.confidence == pytest.approx(confidence.mean().item(), rel=1e-5)
        expected = log_loss(y, probabilities / probabilities.sum(1, keepdim=True), labels=list(range(10)))
        assert scores.log_loss == pytest.approx(expected, rel=1e-5)
    assert sweep.of("gaussian")[-1].scores.accuracy < 0.9


def test_expected_calibration_error_by_hand() -> None:
    # In (8/15, 9/15] are 0.55 and 0.6, which is 9/15; 0.62 is in the next bin, 1 in the last.
    confidence = torch.tensor([0.55, 0.6, 0.62, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, True, False, True])
    expected = (2 * abs(1 - (0.55 + 0.6) / 2) + abs(0 - 0.62) + abs(1 - 1.0)) / 4
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(expected_calibration_error(confidence[:0], correct[:0]))


def test_scores_of_a_model_that_is_always_as_sure() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.tensor([0.7, 0.2, 0.1]).log().expand(len(x), 3)

    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    scores = noise_sweep(model, (torch.rand(10, 4), y), kinds=()).clean.scores
    assert scores.accuracy == 0.5
    assert scores.confidence == pytest.approx(0.7)
    assert scores.ece == pytest.approx(0.2)
    expected = -(5 * math.log(0.7) + 3 * math.log(0.2) + 2 * math.log(0.1)) / 10
    assert scores.log_loss == pytest.approx(expected)


def test_loader_pairs_and_ids_agree(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    model, x = model.double(), x.double()
    try:
        whole = noise_sweep(model, (x, y), seed=1, batch_size=150)
        by_loader = noise_sweep(model, DataLoader(TensorDataset(x, y), batch_size=17), seed=1)
        assert torch.equal(by_loader.correct, whole.correct)
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
        shuffled = noise_sweep(
            model, DataLoader(TensorDataset(x[order], y[order], order), batch_size=31), seed=1
        )
        assert torch.equal(shuffled.correct, whole.correct[:, order])
        assert torch.equal(shuffled.sample_ids, order)
        for a, b in zip(shuffled.levels, whole.levels, strict=True):
            assert a.scores.log_loss == pytest.approx(b.scores.log_loss, rel=1e-9)
    finally:
        model.float()


def test_own_kinds_severities_and_bounds(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    severities = {"dropout": [0.1, 0.5], "gaussian": [0.0]}
    sweep = noise_sweep(
        model, (2 * x - 1, y), ("dropout", "gaussian"), severities, bounds=(-1.0, 1.0), seed=2
    )
    assert [(level.kind, level.severity, level.scale) for level in sweep.levels] == [
        ("clean", 0, 0.0),
        ("dropout", 1, 0.1),
        ("dropout", 2, 0.5),
        ("gaussian", 1, 0.0),
    ]
    assert sweep.levels[3].scores == sweep.clean.scores
    noisy = brittle.noise.dropout(2 * x - 1, 0.5, seed=2, bounds=(-1.0, 1.0))
    assert torch.equal(sweep.correct[2], model(noisy).argmax(1) == y)


def test_progress_table_and_plot(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    seen: list[tuple[int, int | None]] = []
    sweep = noise_sweep(
        model,
        (x, y),
        ("gaussian", "shot"),
        batch_size=60,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(60, 150), (120, 150), (150, 150)]
    lines = sweep.table().splitlines()
    assert len(lines) == 12
    assert lines[1].split()[:4] == ["clean", "0", "0", "90.00%"]
    assert lines[7].split()[:3] == ["shot", "1", "60"]
    axes = sweep.plot()
    assert [line.get_label() for line in axes.get_lines()] == ["gaussian", "shot"]
    for line, kind in zip(axes.get_lines(), sweep.kinds, strict=True):
        assert list(line.get_xdata()) == [0, 1, 2, 3, 4, 5]
        expected = [90.0, *(100 * level.scores.accuracy for level in sweep.of(kind))]
        assert list(line.get_ydata()) == expected


def test_no_samples() -> None:
    empty = (torch.empty(0, 3, 8, 8), torch.empty(0).long())
    sweep = noise_sweep(models.make("convolutional"), empty)
    assert sweep.correct.shape == (31, 0)
    assert all(math.isnan(level.scores.accuracy) for level in sweep.levels)


def test_the_model_is_left_alone() -> None:
    model, (x, y) = picky(), models.data()
    before, copies = state(model), (x.clone(), y.clone())
    noise_sweep(model, (x, y), ("gaussian", "shot"))
    noise_training_table(model, model, (x, y), (1 - x, y))
    assert_same_state(before, state(model))
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    model.forwards, model.fail_at = 0, 7
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        noise_sweep(model, (x, y))
    assert_same_state(before, state(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("pink",)}, "kinds must be one of 'gaussian', .*; got 'pink'"),
        ({"kinds": "gaussian"}, "kinds must be a sequence of different names; got 'gaussian'"),
        ({"kinds": ("shot", "shot")}, "kinds must be a sequence of different names; got"),
        ({"kinds": ("dropout",)}, "severities must hold 'dropout': there are no defaults"),
        ({"bounds": (-1.0, 1.0)}, r"severities must hold 'gaussian': .* bounds \(-1.0, 1.0\)"),
        ({"severities": {"blur": [1]}}, "severities must be of the kinds .*; got 'blur'"),
        ({"severities": {"shot": []}}, "severities of 'shot' must hold at least one value; got none"),
        ({"severities": {"shot": [3, 0]}}, "severities of 'shot' must .*got 0"),
        ({"severities": {"gaussian": [-0.1]}}, r"severities of 'gaussian' must .*got -0\.1"),
        ({"severities": {"gaussian": [math.nan]}}, "severities of 'gaussian' must .*got nan"),
        ({"severities": {"salt_and_pepper": [1.2]}}, r"severities of 'salt_and_pepper' must .*got 1\.2"),
        ({"seed": 2**64}, "seed must be an integer of 64 bits"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
        ({"data": (torch.rand(3, 3, 8, 8) * 2, torch.zeros(3).long())}, "x must lie inside bounds"),
        ({"data": (torch.rand(3, 3, 8, 8), torch.full((3,), 10))}, r"y must be in \[0, 10\)"),
        ({"data": (torch.rand(3, 3, 8, 8),)}, "data must be a pair .* of tensors"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    call = {"model": models.make("convolutional"), "data": models.data(5), **arguments}
    with pytest.raises(ValueError, match=f"^noise_sweep: {message}"):
        noise_sweep(**call)  # type: ignore[arg-type]


class TestNoiseTrainingTable:
    def test_cells(self, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
        original, x, y = trained
        other = models.make("perceptron", seed=3).eval()
        sets = {"in": (x, y), "out": (1 - x, (y + 1) % 10)}
        loader = DataLoader(TensorDataset(*sets["out"]), batch_size=37)
        result = noise_training_table(original, other, sets["in"], loader, batch_size=64)
        for model, where in ((original, "in"), (original, "out"), (other, "in"), (other, "out")):
            cell = getattr(result, f"{'original' if model is original else 'noise_trained'}_{where}")
            inputs, labels = sets[where]
            logits = model(inputs).detach()
            assert cell.scores.log_loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert cell.scores.accuracy == (logits.argmax(1) == labels).double().mean()
            expected = confusion_matrix(labels, logits.argmax(1), labels=list(range(10)))
            assert cell.confusion.tolist() == expected.tolist()
        text = result.table().splitlines()
        assert text[1].split() == [
            "in-distribution",
            "loss",
            f"{result.original_in.scores.log_loss:.4f}",
            f"{result.noise_trained_in.scores.log_loss:.4f}",
        ]
        row = [*result.original_in.confusion[0].tolist(), *result.noise_trained_in.confusion[0].tolist()]
        start = text.index("confusion, in-distribution: original, noise-trained")
        assert [int(count) for count in text[start + 1].split()] == row

    def test_errors(self, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
        model, x, y = trained
        op = "noise_training_table"
        with pytest.raises(ValueError, match=f"{op}: out_of_distribution must hold samples; got none"):
            noise_training_table(model, model, (x, y), (x[:0], y[:0]))
        with pytest.raises(ValueError, match=f"{op}: x and y must have one length; got 150 and 3"):
            noise_training_table(model, model, (x, y[:3]), (x, y))
        with pytest.raises(ValueError, match=rf"{op}: y must be in \[0, 10\)"):
            noise_training_table(model, model, (x, y + 1), (x, y))
        with pytest.raises(ValueError, match=f"{op}: batch_size must be an integer >= 1; got 0"):
            noise_training_table(model, model, (x, y), (x, y), batch_size=0)


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noise_injection_example", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_in_short() -> None:
    module = example()
    table, confidence, sweeps = module.experiment(sigma=0.2, epochs=4, seed=0)
    assert table.original_in.scores.accuracy > 0.85
    assert table.noise_trained_in.scores.accuracy > 0.85
    assert table.original_in.scores.samples == 500
    assert table.original_out.scores.samples == 1000
    assert table.original_out.scores.log_loss > 5 * table.original_in.scores.log_loss
    assert all(0.1 < value < 1 for value in confidence.values())
    # Trained on Gaussian noise, a network withstands Gaussian noise better.
    strongest = {name: sweep.of("gaussian")[-1].scores.log_loss for name, sweep in sweeps.items()}
    assert strongest["noise-trained"] < strongest["original"]


def test_example_data() -> None:
    module = example()
    patches = module.photograph_patches(100)
    assert patches.shape == (100, 1, 8, 8)
    assert patches.min() >= 0
    assert patches.max() <= 1
    assert patches.flatten(1).std(1).max() > 0.05  # photographs, not grey squares
    rows, (x, y) = module.split(module.digits())
    assert len(rows) == 1297
    unlike, labels = module.unlike_digits((x, y))
    assert torch.equal(unlike[0, 0], x[0, 0].rot90())
    assert torch.equal(unlike[500:], 1 - x)
    assert torch.equal(labels, torch.cat([y, y]))
