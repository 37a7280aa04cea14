"""Checks of labels: margins and thresholds as they are defined, flipped labels found, shuffled ones not."""

from __future__ import annotations

import builtins
import copy
import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brittle.diagnosis import checks
from brittle.diagnosis.checks import _training, suspects
from brittle.noise import noise_labels
from brittle.sources import digits
from hypothesis import given
from hypothesis import strategies as st
from planted_bugs import healthy
from scipy.stats import binomtest, fisher_exact
from torch import Tensor, nn

EXAMPLE = Path(__file__).parent.parent / "examples" / "training_checks.py"


def made_up(n: int = 120, classes: int = 3, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Classes about the corners of a simplex."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return 3 * torch.eye(classes)[y] + noise * torch.randn(n, classes, generator=draw), y


def small(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(classes, 16), nn.ReLU(), nn.Linear(16, classes))


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return functools.partial(torch.optim.SGD, lr=rate)


class TestAreaUnderMargin:
    @given(st.integers(1, 12), st.integers(2, 4), st.integers(1, 4), st.integers(0, 10**6))
    def test_areas_are_mean_margins(self, n: int, classes: int, epochs: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        margins = checks.AreaUnderMargin()
        names = torch.randperm(50, generator=draw)[:n]
        y = torch.randint(classes, (n,), generator=draw)
        seen: dict[int, list[float]] = {}
        last: dict[int, int] = {}
        for _ in range(epochs):
            for rows in torch.randint(n, (2 * n,), generator=draw).split(5):
                z = torch.randn(len(rows), classes, generator=draw)
                margins.update(z, y[rows], names[rows])
                for logits, row in zip(z.tolist(), rows.tolist(), strict=True):
                    own = logits.pop(int(y[row]))
                    seen.setdefault(int(names[row]), []).append(own - max(logits))
                    best = logits.index(max(logits))
                    last[int(names[row])] = best + (best >= int(y[row]))
        ids, areas = margins.areas()
        assert len(margins) == len(seen)
        assert ids.tolist() == sorted(seen)
        expected = [sum(seen[name]) / len(seen[name]) for name in sorted(seen)]
        assert areas.tolist() == pytest.approx(expected, abs=1e-6)
        ranking = margins.ranking()
        assert ranking.scores.tolist() == sorted(areas.tolist())
        assert ranking.suggested.tolist() == [last[name] for name in ranking.ids.tolist()]
        assert math.isnan(ranking.threshold)
        assert len(ranking.suspects) == 0

    def test_threshold_is_the_99th_percentile_of_the_samples_with_a_false_class(self) -> None:
        margins = checks.AreaUnderMargin()
        z = torch.randn(300, 4)
        y, ids = torch.randint(3, (300,)), torch.arange(1000, 1300)
        y[:40] = 3
        margins.update(z, y, ids)
        ranking = margins.ranking(ids[:40])
        areas = dict(zip(*(part.tolist() for part in margins.areas()), strict=True))
        expected = np.percentile([areas[name] for name in range(1000, 1040)], 99)
        assert ranking.threshold == pytest.approx(expected)
        assert len(ranking.ids) == 260
        assert set(ranking.suspects.tolist()) == {
            name for name in range(1040, 1300) if areas[name] <= expected
        }
        assert not ranking.ok
        with pytest.raises(ValueError, match="threshold_ids must have been seen"):
            margins.ranking(torch.tensor([5]))

    def test_a_resumed_run_ends_where_the_other_does(self) -> None:
        batches = [(torch.randn(6, 3), torch.arange(6) % 3, torch.randperm(9)[:6]) for _ in range(4)]
        whole, half = checks.AreaUnderMargin(), checks.AreaUnderMargin()
        for number, batch in enumerate(batches):
            whole.update(*batch)
            if number == 2:
                state = half.state_dict()
                half = checks.AreaUnderMargin()
                half.load_state_dict(state)
            half.update(*batch)
        assert all(torch.equal(a, b) for a, b in zip(whole.areas(), half.areas(), strict=True))
        assert torch.equal(whole.ranking().suggested, half.ranking().suggested)

    def test_half_precision_and_empty_batches(self) -> None:
        margins = checks.AreaUnderMargin()
        margins.update(torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([4]))
        margins.update(
            torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        )
        assert [part.tolist() for part in margins.areas()] == [[4], [-2.0]]

    def test_errors(self) -> None:
        margins, y = checks.AreaUnderMargin(), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"logits must be \[N, C\] with C >= 2; got \[3, 1\]"):
            margins.update(torch.zeros(3, 1), y, y)
        with pytest.raises(ValueError, match="y must be int64 class labels"):
            margins.update(torch.zeros(3, 2), y.float(), y)
        with pytest.raises(ValueError, match="sample_ids must be int64"):
            margins.update(torch.zeros(3, 2), y, y[:2])
        with pytest.raises(ValueError, match=r"y must be in \[0, 2\)"):
            margins.update(torch.zeros(3, 2), y + 2, y)


class TestAreaUnderMarginOfAModel:
    @pytest.mark.parametrize(("name", "seeds"), [("mlp", 5), ("cnn", 1)])
    def test_flipped_digits_are_found(self, name: str, seeds: int) -> None:
        train, _ = digits()
        for seed in range(seeds):
            y = noise_labels(train.y, 10, 0.05, seed=seed)
            wrong = (y != train.y).nonzero().squeeze(1)
            found = checks.area_under_margin(healthy(name, seed), (train.x, y), seed=seed)
            precision, recall = found.precision_recall(wrong)
            assert recall >= 0.8
            assert precision >= 0.5
            assert found.notes == ()
            taken = found.suggested[torch.isin(found.ids, wrong)]
            right = train.y[found.ids[torch.isin(found.ids, wrong)]]
            assert (taken == right).double().mean() > 0.8
            assert found.suggested.max() < 10

    def test_every_sample_is_screened_and_named_by_its_id(self) -> None:
        x, y = made_up(99)
        ids = torch.arange(99) * 7 + 3
        model = small()
        before = copy.deepcopy(model.state_dict())
        random = torch.get_rng_state()
        found = checks.area_under_margin(model, [(x[:50], y[:50], ids[:50]), (x[50:], y[50:], ids[50:])])
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert sorted(found.ids.tolist()) == ids.tolist()
        assert bool(found.scores.isfinite().all())
        assert torch.equal(found.labels, y[(found.ids - 3) // 7])
        assert torch.equal(found.suspects, found.ids[found.scores <= 0])
        again = checks.area_under_margin(model, (x, y))
        assert torch.equal(again.scores, found.scores)

    def test_scores_are_mean_distances_from_the_thresholds(self) -> None:
        x, y = made_up(60)
        found = checks.area_under_margin(lambda outputs: nn.Linear(3, outputs), (x, y), epochs=2, seed=3)
        order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
        paper = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
        distances: dict[int, list[float]] = {}
        for number in range(2):
            fake = order[15 * number : 15 * (number + 1)]
            given, margins = y.clone(), checks.AreaUnderMargin()
            given[fake] = 3

            def record(rows: Tensor, z: Tensor, given: Tensor = given, margins: Any = margins) -> None:
                margins.update(z, given[rows], rows)

            torch.manual_seed(3 + number)
            options = {"epochs": 2, "batch_size": 64, "seed": 3 + number}
            _training.fit("test", nn.Linear(3, 4), x, given, optimizer=paper, record=record, **options)  # type: ignore[arg-type]
            _, areas = margins.areas()
            threshold = np.percentile(areas[fake].numpy(), 99)
            for row in set(range(60)) - set(fake.tolist()):
                distances.setdefault(row, []).append(float(areas[row]) - threshold)
        expected = [sum(distances[row]) / len(distances[row]) for row in found.ids.tolist()]
        assert found.scores.tolist() == pytest.approx(expected, abs=1e-9)
        assert {len(each) for each in distances.values()} == {1, 2}

    def test_a_head_anywhere_in_the_model_is_widened(self) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.ModuleDict({"last": nn.Linear(3, 3, bias=False)})

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.head["last"](x)
                return logits

        for model in (Named(), nn.Linear(3, 3), nn.Sequential(nn.Sequential(small()))):
            found = checks.area_under_margin(model, made_up())
            assert len(found.ids) == 120

    def test_a_function_that_makes_models(self) -> None:
        asked = []

        def make(outputs: int) -> nn.Module:
            asked.append(outputs)
            return nn.Sequential(nn.Linear(3, outputs), nn.LogSoftmax(1))

        found = checks.area_under_margin(make, made_up())
        assert asked == [4, 4]
        assert torch.equal(found.scores, checks.area_under_margin(make, made_up()).scores)

    def test_a_network_that_learns_nothing_is_noted(self) -> None:
        x, y = made_up()
        found = checks.area_under_margin(small(), (x, y), optimizer=sgd(1e-6), epochs=1)
        assert "before this is believed" in found.notes[0]

    def test_errors(self) -> None:
        x, y = made_up()
        with pytest.raises(ValueError, match=r"must end in an nn.Linear of 3 outputs"):
            checks.area_under_margin(nn.Sequential(small(), nn.Softmax(1)), (x, y))
        with pytest.raises(ValueError, match=r"at least 2 \(C \+ 1\) = 8 samples; got 7"):
            checks.area_under_margin(small(), (x[:7], y[:7]))
        with pytest.raises(ValueError, match="sample ids must differ"):
            checks.area_under_margin(small(), [(x, y, y)])
        with pytest.raises(ValueError, match=r"model must be an nn\.Module; got int"):
            checks.area_under_margin(lambda outputs: outputs, (x, y))  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match="the model must give 4 outputs; got 3"):
            checks.area_under_margin(lambda outputs: small(), (x, y))
        with pytest.raises(ValueError, match="epochs must be"):
            checks.area_under_margin(small(), (x, y), epochs=0)
        with pytest.raises(ValueError, match=r"y must be in \[0, 2\)"):
            checks.area_under_margin(small(), (x, y), classes=2)


class TestConfidentLearning:
    def test_is_cleanlabs_own(self) -> None:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        x, y = made_up(150, noise=1.0)
        flipped = noise_labels(y, 3, 0.1, seed=1)
        p = checks.cross_validated_probabilities(small(), (x, flipped), optimizer=sgd(0.3))
        ids = torch.arange(150) + 1000
        found = checks.confident_learning(flipped, p, ids=ids)
        issues = find_label_issues(flipped.numpy(), p.numpy(), return_indices_ranked_by="self_confidence")
        assert found.suspects.tolist() == [1000 + place for place in issues]
        quality = get_label_quality_scores(flipped.numpy(), p.numpy())
        assert found.scores.tolist() == sorted(quality.tolist())
        precision, recall = found.precision_recall(ids[flipped != y])
        assert precision > 0.8
        assert recall > 0.7
        both = checks.confident_learning(flipped, p, filter_by="confident_learning")
        other = find_label_issues(flipped.numpy(), p.numpy(), filter_by="confident_learning")
        assert sorted(both.suspects.tolist()) == other.nonzero()[0].tolist()

    def test_probabilities_are_of_models_that_did_not_see_the_sample(self) -> None:
        x, y = made_up(30)
        fold = checks.labels._folds(y, 3, 4)
        assert all(int(((fold == k) & (y == c)).sum()) in (3, 4) for k in range(3) for c in range(3))
        given = small()
        expected = torch.zeros(30, 3, dtype=torch.float64)
        for k in range(3):
            model = copy.deepcopy(given)
            _training.fit("test", model, x[fold != k], y[fold != k], epochs=2, batch_size=64, seed=4 + k)
            with torch.no_grad():
                expected[fold == k] = model(x[fold == k]).double().softmax(1)
        p = checks.cross_validated_probabilities(given, (x, y), folds=3, epochs=2, seed=4)
        assert torch.allclose(p, expected, atol=1e-6)

    def test_without_cleanlab(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def refuse(name: str, *rest: Any) -> Any:
            if name.startswith("cleanlab"):
                raise ModuleNotFoundError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ImportError, match=r"pip install brittle\[labels\]"):
            checks.confident_learning(torch.tensor([0, 1]), torch.eye(2))

    def test_errors(self) -> None:
        y = torch.tensor([0, 1, 1])
        with pytest.raises(ValueError, match=r"probabilities must be \[N, C\]"):
            checks.confident_learning(y, torch.rand(3))
        with pytest.raises(ValueError, match="sum to 1"):
            checks.confident_learning(y, torch.randn(3, 2))
        with pytest.raises(ValueError, match=r"y must be \[N\] with N = 2"):
            checks.confident_learning(y, torch.eye(2))
        with pytest.raises(ValueError, match="a sample for each of 5 folds; got 3"):
            checks.cross_validated_probabilities(small(), (torch.rand(3, 3), y))
        with pytest.raises(ValueError, match="folds must be an integer >= 2"):
            checks.cross_validated_probabilities(small(), (torch.rand(3, 3), y), folds=1)


class TestHighestLosses:
    def test_ranks_by_cross_entropy_in_evaluation_mode(self) -> None:
        x, y = made_up()
        model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
        before = copy.deepcopy(model.state_dict())
        found = checks.highest_losses(model, (x, y), batch_size=7)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        with torch.no_grad():
            logits = copy.deepcopy(model).eval()(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        assert found.scores.tolist() == pytest.approx((-losses).sort().values.tolist(), abs=1e-6)
        assert torch.equal(found.suggested, logits.argmax(1)[found.ids])
        assert found.ok
        assert len(found.suspects) == 0


class TestShuffledLabels:
    def test_healthy(self) -> None:
        x, y = made_up(240)
        found = checks.shuffled_labels(small(), (x[:120], y[:120]), (x[120:], y[120:]), optimizer=sgd(0.3))
        assert found.ok, found.problems
        assert found.true_accuracy > 0.9
        assert abs(found.shuffled_accuracy - found.chance) < 0.12
        assert found.samples == 120
        # The statistics, from the figures.
        right = round(found.shuffled_accuracy * 240)
        assert found.p_leak == pytest.approx(
            binomtest(right, 240, found.chance, alternative="greater").pvalue
        )
        true = round(found.true_accuracy * 120)
        table = [[true, 120 - true], [right, 240 - right]]
        assert found.p_learns == pytest.approx(fisher_exact(table, alternative="greater").pvalue)

    def test_validation_samples_in_the_training_set(self) -> None:
        x, y = made_up(160, noise=2.0)
        wide = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 3))
        adam = functools.partial(torch.optim.Adam, lr=0.03)
        data = (x[:80], y[:80]), (x[:80].clone(), y[:80].clone())
        found = checks.shuffled_labels(wide, *data, optimizer=adam, epochs=150, shuffles=1)
        assert "samples of it are in the training set" in found.problems[0]
        assert found.shuffled_accuracy == found.shuffled_training_accuracy > 0.5

    def test_a_training_that_uses_the_validation_labels(self) -> None:
        x, y = made_up(200)

        def fit(model: nn.Module, train: Any, validation: Any) -> None:
            # A constant answer: the commonest validation label is above chance by being chosen there.
            assert len(train[0]) == 100
            commonest = torch.bincount(validation[1]).argmax()
            with torch.no_grad():
                model[0].weight.zero_()  # type: ignore[index, union-attr, operator]
                model[0].bias.copy_(F.one_hot(commonest, 3).float())  # type: ignore[index, union-attr, operator, arg-type]

        # One class only is right of a constant: its frequency is chance, so nothing is found there ...
        train, validation = (x[:100], y[:100]), (x[100:], y[100:])
        constant = checks.shuffled_labels(nn.Sequential(nn.Linear(3, 3)), train, validation, fit=fit)
        assert constant.chance == pytest.approx(constant.shuffled_accuracy)
        assert [problem for problem in constant.problems if "nothing is learnt" in problem]
        assert constant.p_leak > 0.3

        def cheat(model: nn.Module, train: Any, validation: Any) -> None:
            _training.fit(
                "cheat", model, *validation, epochs=150, batch_size=100, seed=0,
                optimizer=functools.partial(torch.optim.Adam, lr=0.03),
            )  # fmt: skip

        # ... but whoever trains on them is.
        wide = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 3))
        found = checks.shuffled_labels(wide, train, validation, fit=cheat, shuffles=1)
        assert found.p_leak < 0.001

    def test_groups_across_the_splits(self) -> None:
        # Ten patients, recognisable by their inputs, in both splits: labels shuffled by patient are learnt.
        draw = torch.Generator().manual_seed(0)
        patient = torch.arange(200) % 20
        x = 3 * torch.randn(20, 8, generator=draw)[patient] + 0.1 * torch.randn(200, 8, generator=draw)
        y = patient % 2
        model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        data = (x[:100], y[:100]), (x[100:], y[100:])
        adam = functools.partial(torch.optim.Adam, lr=0.01)
        plain = checks.shuffled_labels(model, *data, optimizer=adam, epochs=30, shuffles=4)
        assert plain.ok
        grouped = checks.shuffled_labels(
            model, *data, groups=(patient[:100], patient[100:]), optimizer=adam, epochs=30, shuffles=4
        )
        assert grouped.samples == 20
        assert grouped.p_leak < 0.01

    def test_labels_that_mean_nothing(self) -> None:
        x, _ = made_up(200)
        y = torch.randint(3, (200,), generator=torch.Generator().manual_seed(3))
        found = checks.shuffled_labels(small(), (x[:100], y[:100]), (x[100:], y[100:]))
        assert "nothing is learnt" in found.problems[0]
        assert found.p_leak > 0.01

    def test_false_alarms_are_as_rare_as_promised(self) -> None:
        alarms = 0
        for seed in range(60):
            x, y = made_up(80, seed=seed, noise=2.0)
            data = (x[:40], y[:40]), (x[40:], y[40:])
            found = checks.shuffled_labels(
                nn.Linear(3, 3), *data, level=0.05, optimizer=sgd(1.0), epochs=2, shuffles=1, seed=seed
            )
            alarms += found.p_leak <= 0.05
        assert alarms <= 8  # exceeded once in a thousand at a rate of 0.05

    def test_the_model_and_the_random_state_are_left_alone(self) -> None:
        x, y = made_up(60)
        model = small()
        before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        data = (x[:30], y[:30]), [(x[30:45], y[30:45]), (x[45:], y[45:])]
        first = checks.shuffled_labels(model, *data, epochs=1)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        torch.rand(3)
        assert checks.shuffled_labels(model, *data, epochs=1) == first
        assert checks.shuffled_labels(lambda: copy.deepcopy(model), *data, epochs=1) == first

    def test_errors(self) -> None:
        x, y = made_up(60)
        data = (x[:30], y[:30]), (x[30:], y[30:])
        with pytest.raises(ValueError, match="level must be between 0 and 1; got 1"):
            checks.shuffled_labels(small(), *data, level=1)
        with pytest.raises(ValueError, match=r"samples of train's shape \[3\]; got \[2\]"):
            checks.shuffled_labels(small(), data[0], (x[30:, :2], y[30:]))
        with pytest.raises(ValueError, match=r"groups of validation must be integers \[N\] with N = 30"):
            checks.shuffled_labels(small(), *data, groups=(y[:30], y[:20]))
        with pytest.raises(ValueError, match="shuffles must be"):
            checks.shuffled_labels(small(), *data, shuffles=0)
        with pytest.raises(ValueError, match="a function that makes one; got int"):
            checks.shuffled_labels(lambda: 3, *data)  # type: ignore[arg-type, return-value]


class TestPictures:
    def test_ranking(self, tmp_path: Path) -> None:
        labels = torch.zeros(30, dtype=torch.int64)
        scores = torch.randn(30)
        found = suspects.ranked("method", "score", torch.arange(30), scores, labels, labels, threshold=0.0)
        found.plot(tmp_path / "scores.png")
        assert (tmp_path / "scores.png").stat().st_size > 5000
        assert "... and 10 more" in found.table()
        assert found.precision_recall(torch.tensor([99])) == (0.0, 0.0)

    @pytest.mark.parametrize("shape", [(1, 1, 4, 6), (9, 3, 5, 5), (3, 8, 8)])
    def test_contact_sheet(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        images = torch.randn(shape)
        images.view(-1)[0] = torch.nan
        checks.contact_sheet(images, tmp_path / "sheet.png", title="sheet")
        assert (tmp_path / "sheet.png").stat().st_size > 1000

    def test_a_sheet_shows_the_pixels(self, tmp_path: Path) -> None:
        from matplotlib import image

        checks.contact_sheet(torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]), tmp_path / "sheet.png")
        page = image.imread(tmp_path / "sheet.png")
        height, width = page.shape[:2]
        assert page[height // 2, width // 4, :3].max() == 0
        assert page[height // 2, 3 * width // 4, :3].min() == 1

    def test_errors(self, tmp_path: Path) -> None:
        page = tmp_path / "sheet.png"
        with pytest.raises(ValueError, match="images must be floating point"):
            checks.contact_sheet(torch.zeros(2, 4, 4, dtype=torch.uint8), page)
        with pytest.raises(ValueError, match="images must have 1 or 3 channels; got 2"):
            checks.contact_sheet(torch.zeros(2, 2, 4, 4), page)
        with pytest.raises(ValueError, match="captions must be one for each of 2 images; got 1"):
            checks.contact_sheet(torch.zeros(2, 4, 4), page, captions=["a"])
        with pytest.raises(ValueError, match="images must hold some"):
            checks.contact_sheet(torch.zeros(0, 4, 4), page)


def test_example(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("training_checks_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    train, _ = digits()
    broken, mended = example.before(train)
    assert [name for name, result in broken.results.items() if not result.ok] == [
        "output_kind",
        "overfit_one_batch",
    ]
    assert mended.ok
    # So few digits are hardly learnt, which makes suspects of many.
    found = example.search(train.take(torch.arange(300)), tmp_path)
    assert list(found) == ["area under the margin", "confident learning", "highest losses"]
    assert found["area under the margin"][1] >= 0.8
    for picture in ("suspects.png", "margins.png"):
        assert (tmp_path / picture).stat().st_size > 20_000
