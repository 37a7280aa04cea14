"""Near-duplicates across splits: planted copies found, clean splits accused no more often than promised."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from brittle.diagnosis import near_duplicates
from brittle.diagnosis.leakage import _Tail
from brittle.sources import digits
from scipy.ndimage import gaussian_filter, rotate
from scipy.ndimage import shift as moved
from scipy.stats import binom
from torch import Tensor

SHIFTS = [lambda x, d=d, axis=axis: x.roll(d, axis) for d in (1, -1) for axis in (2, 3)]


def noisy(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def textures(count: int, seed: int) -> Tensor:
    """Smooth random images ``[N, 1, 24, 24]`` in [0, 1], a few hundred degrees of freedom each."""
    fields = np.random.default_rng(seed).standard_normal((count, 1, 24, 24))
    fields = gaussian_filter(fields, (0, 0, 1.0, 1.0), mode="wrap")
    return torch.tensor((0.5 + fields).clip(0, 1), dtype=torch.float32)


def altered(x: Tensor, how: str) -> Tensor:
    """Copies as they get into a test set."""
    a = x.numpy()
    changes: dict[str, Callable[[], np.ndarray]] = {
        "copy": lambda: a,
        "noise 0.02": lambda: a + 0.02 * np.random.default_rng(1).standard_normal(a.shape),
        "noise 0.1": lambda: a + 0.1 * np.random.default_rng(1).standard_normal(a.shape),
        "brightness": lambda: 0.9 * a + 0.1,
        "contrast": lambda: 0.5 + 0.7 * (a - 0.5),
        "blur": lambda: gaussian_filter(a, (0, 0, 0.5, 0.5)),
        "rotation": lambda: rotate(a, 3.0, axes=(2, 3), reshape=False, order=1, mode="nearest"),
        "half a pixel": lambda: moved(a, (0, 0, 0, 0.5), order=1, mode="nearest"),
        "a pixel": lambda: np.roll(a, 1, 3),
    }
    return torch.tensor(changes[how]().clip(0, 1), dtype=torch.float32)


class TestPlanted:
    @pytest.mark.parametrize(
        "how",
        [
            "copy", "noise 0.02", "noise 0.1", "brightness", "contrast", "blur", "rotation", "half a pixel",
            "a pixel",
        ],
    )  # fmt: skip
    def test_altered_copies_of_images_of_many_dimensions(self, how: str) -> None:
        train, test = textures(400, 0), textures(150, 1)
        test[:30] = altered(train[100:130], how)
        found = near_duplicates(train, test)
        right = (found.test_index < 30) & (found.train_index == found.test_index + 100)
        assert right.all()  # precision 1
        assert right.sum() == 30  # recall 1
        assert (found.cosines >= found.threshold).all()
        assert (found.p_values <= 0.01 / 150 * (1 + 1e-6)).all()
        assert found.share == 30 / 150
        assert torch.equal(found.suspects, torch.arange(30))

    @pytest.mark.parametrize("how", ["copy", "brightness", "contrast"])
    def test_copies_of_digits(self, how: str) -> None:
        train, test = digits()
        x = test.x.clone()
        x[:50] = altered(train.x[:50], how)
        found = near_duplicates(train.x, x)
        assert torch.equal(found.suspects, torch.arange(50))
        assert (found.train_index == found.test_index).all()

    def test_in_few_dimensions_only_close_copies_can_be_told(self) -> None:
        # 8 x 8 pixels: other people's digits come as near as a rotated copy does.
        train, test = digits()
        x = test.x.clone()
        x[:50] = altered(train.x[:50], "noise 0.02")
        found = near_duplicates(train.x, x)
        assert 35 <= len(found.suspects) < 50
        assert (found.suspects < 50).all()

    def test_views_find_what_was_shifted(self) -> None:
        train, test = digits()
        x = test.x.clone()
        x[:50] = altered(train.x[:50], "a pixel")
        assert len(near_duplicates(train.x, x)) == 0
        found = near_duplicates(train.x, x, views=SHIFTS)
        assert torch.equal(found.suspects, torch.arange(50))
        assert (found.train_index == found.test_index).all()

    def test_within_one_set_each_pair_comes_once(self) -> None:
        x = noisy((400, 50), 0)
        x[50] = x[3] + 0.05 * noisy((50,), 1)
        x[7] = x[300] + 0.1 * noisy((50,), 2)
        found = near_duplicates(x)
        assert found.test_index.tolist() == [3, 7]
        assert found.train_index.tolist() == [50, 300]
        expected = torch.nn.functional.cosine_similarity(x[[3, 7]] - x.mean(0), x[[50, 300]] - x.mean(0))
        torch.testing.assert_close(found.cosines, expected.double(), atol=1e-6, rtol=0)

    def test_all_copies_of_a_sample_up_to_k(self) -> None:
        train, test = noisy((300, 50), 0), noisy((40, 50), 1)
        train[[5, 6, 7]] = test[0] + 0.05 * noisy((3, 50), 2)
        assert sorted(near_duplicates(train, test).train_index.tolist()) == [5, 6, 7]
        assert len(near_duplicates(train, test, k=2)) == 2

    def test_duplicates_inside_the_training_set_do_not_hide_leaks(self) -> None:
        train, test = noisy((600, 50), 0), noisy((100, 50), 1)
        clean = near_duplicates(train, test).threshold
        train[:2] = train[100:102] + 0.01 * noisy((2, 50), 2)  # 4 of 600 have a near-duplicate
        test[0] = train[200] + 0.3 * noisy((50,), 3)
        found = near_duplicates(train, test)
        assert found.threshold == pytest.approx(clean, abs=0.03)
        assert found.test_index.tolist() == [0]
        # Many more make it stricter, not looser.
        train[:60] = train[100:160] + 0.01 * noisy((60, 50), 2)
        assert near_duplicates(train, test).threshold > clean


class TestCleanData:
    @pytest.mark.parametrize("dimensions", [5, 20, 200])
    def test_alarms_as_often_as_promised(self, dimensions: int) -> None:
        alarms = sum(
            len(near_duplicates(x[:300], x[300:], false_alarm_rate=0.05)) > 0
            for x in (noisy((400, dimensions), seed) for seed in range(60))
        )
        assert alarms <= int(binom.ppf(0.999, 60, 0.05))

    @pytest.mark.parametrize("views", [(), SHIFTS], ids=["plain", "shifted"])
    def test_random_splits_of_the_digits(self, views: list[Callable[[Tensor], Tensor]]) -> None:
        x = torch.cat([part.x for part in digits()])
        for seed in range(5):
            mixed = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
            assert len(near_duplicates(mixed[:1297], mixed[1297:], views=views)) == 0

    def test_a_lax_promise_is_used(self) -> None:
        # The threshold is not merely out of reach: at a rate of 0.9 clean data gives alarms.
        alarms = sum(
            len(near_duplicates(x[:300], x[300:], false_alarm_rate=0.9)) > 0
            for x in (noisy((400, 20), seed) for seed in range(20))
        )
        assert alarms >= 3


class TestTail:
    def test_recovers_a_power_law(self) -> None:
        # P(d < x) = x ** 6 exactly, by quantiles.
        d = (torch.arange(1, 5001).double() / 5001) ** (1 / 6)
        tail = _Tail.of("op", d[torch.randperm(5000, generator=torch.Generator().manual_seed(0))], 1.0)
        assert tail.exponent == pytest.approx(6 * (1 - 1.645 / math.sqrt(900)), rel=0.01)
        assert tail.reach == pytest.approx(0.2 ** (1 / 6), rel=1e-3)
        assert tail.p_value(torch.tensor([0.0, 0.9, 1.0], dtype=torch.float64)).tolist() == pytest.approx(
            [0.0, 0.9**6, 1.0], abs=1e-3
        )

    def test_threshold_and_p_value_are_inverse(self) -> None:
        tail = _Tail.of("op", noisy((500,), 0).abs().double(), 1.1)
        for chance in (1e-8, 1e-3, 0.1):
            at = torch.tensor([tail.distance(chance)], dtype=torch.float64)
            assert tail.p_value(at).item() == pytest.approx(chance, rel=1e-9)


class TestConventions:
    def test_a_given_threshold_is_used(self) -> None:
        train = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        test = torch.tensor([[2.0, 2.0], [3.0, 0.1]])
        found = near_duplicates(train, test, threshold=0.7)
        assert list(zip(found.test_index.tolist(), found.train_index.tolist(), strict=True)) == [
            (1, 0),
            (0, 0),
            (0, 2),
        ]
        assert found.cosines[1].item() == pytest.approx(math.sqrt(0.5))
        assert found.p_values.isnan().all()
        assert (found.threshold, found.false_alarm_rate, found.exponent) == (0.7, None, None)

    def test_ignore_contrast(self) -> None:
        train, test = textures(100, 0), textures(10, 1)
        test[0] = 0.2 * train[0] + 0.7
        assert near_duplicates(train, test, threshold=0.999).suspects.tolist() == [0]
        assert len(near_duplicates(train, test, threshold=0.999, ignore_contrast=False)) == 0

    def test_a_neighbour_seen_in_several_views_counts_once_at_its_best(self) -> None:
        train, test = textures(100, 0), textures(10, 1)
        test[0] = train[0].roll(1, 2)
        found = near_duplicates(train, test, threshold=0.2, k=5, views=SHIFTS)
        mine = found.train_index[found.test_index == 0]
        assert len(mine.unique()) == len(mine) <= 5
        assert (mine[0].item(), found.cosines[0].item()) == (0, pytest.approx(1, abs=1e-6))

    def test_a_view_that_changes_nothing_changes_nothing(self) -> None:
        train, test = noisy((200, 30), 0), noisy((20, 30), 1)
        train[7], test[3] = train[50] + 0.1 * test[0], train[9]
        for other in (None, test):
            plain, viewed = near_duplicates(train, other), near_duplicates(train, other, views=torch.clone)
            assert viewed.threshold == pytest.approx(plain.threshold, abs=1e-6)
            assert viewed.test_index.tolist() == plain.test_index.tolist() == [7 if other is None else 3]
            assert viewed.train_index.tolist() == plain.train_index.tolist()

    def test_dtypes_and_no_test_samples(self) -> None:
        train, test = noisy((200, 30), 0), noisy((20, 30), 1)
        test[3] = train[9]
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            assert near_duplicates(train.to(dtype), test.to(dtype)).suspects.tolist() == [3]
        empty = near_duplicates(train, test[:0])
        assert len(empty) == 0
        assert math.isnan(empty.share)

    def test_table(self) -> None:
        train, test = noisy((200, 30), 0), noisy((20, 30), 1)
        test[:4] = train[50:54]
        lines = near_duplicates(train, test).table(most=2).splitlines()
        for line in lines[1:3]:
            test_place, train_place, cosine = line.split()[:3]
            assert (int(train_place) - int(test_place), cosine) == (50, "1.0000")
        assert lines[3] == "... and 2 more"
        assert lines[4].startswith("4 of 20 samples have a near-duplicate: cosine >= 0.")


X = noisy((60, 4), 0)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((X.int(),), {}, "train must be floating point, e.g. .*; got torch.int32"),
        ((X[:, 0],), {}, r"train must be \[N, ...\]"),
        ((X, X[:, :3]), {}, r"test must be \[M, 4\], torch.float32 on cpu; got \[60, 3\]"),
        ((X, X.double()), {}, "test must be .* got .*torch.float64"),
        ((X[:1],), {}, "train must hold at least 2 samples; got 1"),
        ((X[:49],), {}, "train must hold at least 50 samples to calibrate a threshold; got 49"),
        ((X[:2].repeat(30, 1),), {}, "60 of 60 training samples have an exact duplicate in train"),
        ((X,), {"k": 0}, "k must be an integer >= 1; got 0"),
        ((X,), {"threshold": 1.5}, r"threshold must be a cosine in \[-1, 1\]; got 1.5"),
        ((X,), {"false_alarm_rate": 1.0}, "false_alarm_rate must be between 0 and 1; got 1.0"),
        ((X,), {"views": lambda x: x[:5]}, r"view 0 must return torch.float32 \[60, 4\]; got .*\[5, 4\]"),
        ((X / 0,), {}, "train must be finite; got NaN or infinity in sample 0"),
    ],
)
def test_errors(arguments: tuple[Tensor, ...], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"near_duplicates: {message}"):
        near_duplicates(*arguments, **settings)  # type: ignore[arg-type]
