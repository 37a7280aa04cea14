"""accuracy_vs_epsilon: the same verdicts as attacking at each epsilon alone, for less."""

import copy
import math
from collections import Counter
from dataclasses import replace

import brittle
import models
import pytest
import torch
import zoo
from brittle.attacks import BIM, FGSM, MIFGSM, PGD, RFGSM, Attack
from brittle.engine import Rows, Rule
from brittle.evaluation import accuracy_vs_epsilon
from brittle.evaluation import curve as curve_module
from test_minimal_epsilon import WIDE, linear, margins
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
    # One gradient serves all epsilons; three looks at the first 16 samples tell whether the answers waver.
    assert (curve.forwards, curve.backwards) == (3 * 16 + 150 * (1 + len(EPSILONS)), 150)


def test_a_sample_that_is_wrong_stays_wrong() -> None:
    """Far enough along the gradient this model is right again; that is no merit of the model's."""

    def model(x: Tensor) -> Tensor:
        wave = torch.sin(20 * x)
        return torch.cat([wave, -wave], 1)

    x, y = torch.full((1, 1), 0.05), torch.tensor([1])
    assert model(x).argmax() == 0
    assert model(brittle.fgsm(model, x, y, 0.15)).argmax() == 1
    assert accuracy_vs_epsilon(model, (x, y), [0.0, 0.15]).accuracy == [0.0, 0.0]


def test_what_withstood_an_epsilon_is_not_attacked_at_smaller_ones() -> None:
    """One step of 0.1 crosses the boundary of this model; one of 0.3 crosses the next one, too."""

    def model(x: Tensor) -> Tensor:
        wave = torch.sin(20 * x)
        return torch.cat([wave, -wave], 1)

    data = torch.full((1, 1), 0.05), torch.tensor([0])
    attack = PGD(steps=1, random_start=False)
    for independent in (False, True):
        curve = accuracy_vs_epsilon(
            model, data, [0.3, 0.1, 0.0], attack, bounds=(-1, 1), independent=independent
        )
        assert curve.accuracy == [1.0, float(not independent), 1.0]


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


ATTACKS = [
    PGD(steps=6),
    PGD(steps=3, restarts=3),
    PGD(steps=4, targets=2, restarts=2, loss="dlr"),
    PGD(norm="l2", steps=6, loss="margin", random_start=False),
    PGD(norm="l1", steps=6, l1_quantile=0.9),
    PGD(steps=4, step_size=0.05, targeted=True),
    BIM(steps=4),
    MIFGSM(steps=4),
    RFGSM(),
    FGSM(),
    FGSM(loss="margin"),
    FGSM(targeted=True),
]


def radii(attack: Attack) -> list[float]:
    """Epsilons at which some samples of ``exact`` fall and some do not, out of order, one of them twice."""
    scale = {"linf": 1, "l2": 8, "l1": 60}[attack.norm] * (2 if attack.targeted else 1)
    return [e * scale for e in (0.02, 0.0, 0.1, 0.005, 0.02)]


@pytest.fixture(scope="module")
def exact() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """In float64 the verdicts do not hang on how the model's sums are grouped in a batch."""
    model, (x, y) = models.make("perceptron").double().eval(), models.data(30)
    x = x.double()
    y = models.own_labels(model, x)
    y[:3] = (y[:3] + 1) % 10
    return model, x, y


def parts(
    case: tuple[torch.nn.Module, Tensor, Tensor], attack: Attack
) -> tuple[torch.nn.Module, tuple[Tensor, Tensor]]:
    """Model and data; of the labels to reach, a tenth is reached already."""
    model, x, y = case
    if attack.targeted:
        own = models.own_labels(model, x)
        y = (own + 1) % 10
        y[:3] = own[:3]
    return model, (x, y)


def separately(case: tuple[torch.nn.Module, Tensor, Tensor], attack: Attack, seed: int) -> Tensor:
    """bool [K, N], by a run of the attack at each epsilon."""
    model, (x, y) = parts(case, attack)
    rows = []
    for eps in radii(attack):
        result = brittle.attack(model, replace(attack, eps=eps), (x, y), seed=seed)
        rows.append(~result.success & ~result.clean_wrong)
    at_zero = (model(x).argmax(1) == y) != attack.targeted
    return torch.stack(rows) & at_zero


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
class TestAnyAttack:
    def test_independent_epsilons_are_separate_attacks(
        self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]
    ) -> None:
        curve = accuracy_vs_epsilon(*parts(exact, attack), radii(attack), attack, seed=5, independent=True)
        expected = separately(exact, attack, 5)
        assert torch.equal(curve.correct, expected)
        assert curve.accuracy[2] < curve.accuracy[0] < curve.accuracy[1] == 0.9

    def test_finds_what_separate_attacks_find_for_less(
        self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]
    ) -> None:
        curve = accuracy_vs_epsilon(*parts(exact, attack), radii(attack), attack, seed=5)
        alone = separately(exact, attack, 5)
        for k, eps in enumerate(curve.epsilons):
            smaller = [j for j, other in enumerate(curve.epsilons) if other <= eps]
            if isinstance(attack, FGSM):  # one gradient for every epsilon, and each has its own verdict
                assert torch.equal(curve.correct[k], alone[k])
                continue
            # A warm start may find more, and with steps too short to cross the ball it does.
            found = alone[smaller].all(0)
            assert (curve.correct[k] <= found).all()
            assert attack.step_length(1.0) == 0.05 or torch.equal(curve.correct[k], found)
        each = accuracy_vs_epsilon(*parts(exact, attack), radii(attack), attack, seed=5, independent=True)
        assert curve.backwards <= each.backwards
        assert isinstance(attack, FGSM) or curve.backwards < each.backwards

    def test_slots_and_order_change_nothing(
        self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]
    ) -> None:
        model, (x, y) = parts(exact, attack)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        shuffled = DataLoader(TensorDataset(x[order], y[order], order), batch_size=11)
        for independent in (False, True):
            options = {"attack": attack, "seed": 2, "independent": independent}
            whole = accuracy_vs_epsilon(model, (x, y), radii(attack), **options)
            for slots in (1, 7):
                curve = accuracy_vs_epsilon(model, (x, y), radii(attack), batch_size=slots, **options)
                assert torch.equal(curve.correct, whole.correct)
            curve = accuracy_vs_epsilon(model, shuffled, radii(attack), batch_size=64, **options)
            assert torch.equal(curve.correct, whole.correct[:, order])
            assert torch.equal(curve.sample_ids, order)

    def test_says_what_it_is(self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
        curve = accuracy_vs_epsilon(*parts(exact, attack), [0.0], attack)
        assert curve.attack == str(attack).replace(f"eps={attack.eps:.6g}, ", "").replace("eps=0.0313725", "")
        assert curve.norm == attack.norm
        assert curve.plot().get_xlabel() == f"epsilon ({attack.norm.capitalize()})"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, float]]:
    """How often each sample is attacked at each epsilon."""
    count: Counter[tuple[int, float]] = Counter()
    begin = curve_module.Bisected.begin

    def counted(self: curve_module.Bisected, rows: Rows, rule: Rule) -> None:
        begin(self, rows, rule)
        count.update(zip(rows.ids.tolist(), rows.eps.tolist(), strict=True))

    monkeypatch.setattr(curve_module.Bisected, "begin", counted)
    return count


class TestBisection:
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 16])
    def test_linear_models_fall_at_their_margin(
        self, norm: str, count: int, attempts: Counter[tuple[int, float]]
    ) -> None:
        model, x, y = linear()
        dual = torch.linalg.vector_norm(model.weight.detach(), {"linf": 1, "l2": 2, "l1": torch.inf}[norm])
        exact = margins(model, x) / dual
        # Between the samples' distances, so that no verdict is a matter of rounding.
        ends = exact.sort().values
        gaps = torch.linspace(0, len(ends) - 2, count).long()
        radii = ((ends[gaps] + ends[gaps + 1]) / 2).tolist()
        attack = PGD(norm=norm, steps=20, random_start=False)
        curve = accuracy_vs_epsilon(model, (x, y), radii, attack, bounds=WIDE)
        withstood = exact > torch.tensor(radii).double().unsqueeze(1)
        assert torch.equal(curve.correct, withstood)
        per_sample = Counter(sample for sample, _ in attempts)
        assert set(attempts.values()) == {1}
        assert len(per_sample) == len(x)
        # Where a point settles more than its own epsilon, one less may do.
        most = math.log2(count + 1)
        assert math.floor(most) <= max(per_sample.values()) <= math.ceil(most)
        # A copy's search may miss what is near; of what it finds only the truth counts.
        copied = brittle.Target(model, bounds=WIDE, precision="bfloat16")
        by_copy = accuracy_vs_epsilon(copied, (x, y), radii, attack)
        assert (by_copy.correct >= withstood).all()
        assert (by_copy.correct & ~withstood).double().mean() < 0.05

    def test_restarts_are_attempts_at_each_epsilon(self, attempts: Counter[tuple[int, float]]) -> None:
        model, x, y = linear()
        exact = margins(model, x)  # in Linf, for the weights' magnitudes sum to 1
        radii = [float(exact.min()) * r for r in (0.3, 0.5, 0.7, 0.9)]
        curve = accuracy_vs_epsilon(model, (x, y), radii, PGD(steps=3, restarts=3), bounds=WIDE)
        assert curve.correct.all()
        # Of four epsilons the third, then the fourth: larger ones than those that failed.
        assert attempts == {(i, eps): 3 for i in range(len(x)) for eps in radii[2:]}

    def test_a_point_settles_every_epsilon_beyond_its_distance(
        self, attempts: Counter[tuple[int, float]]
    ) -> None:
        model, x, y = linear()
        exact = margins(model, x)
        step = float(exact.max()) / 20
        radii = [float(exact.max()) * r for r in (1.06, 1.1, 2.0, 3.0, 4.0, 5.0, 6.0)]
        attack = PGD(steps=40, step_size=step, random_start=False)
        curve = accuracy_vs_epsilon(model, (x, y), radii, attack, bounds=WIDE)
        assert not curve.correct.any()
        assert attempts == {(i, radii[3]): 1 for i in range(len(x))}

    def test_a_failure_is_where_the_next_attempt_starts(self) -> None:
        """Steps that come to little more than half of the way, twice."""
        model, x, y = linear()
        exact = margins(model, x)
        radii = [float(exact.max()) * r for r in (0.5, 0.55, 1.1)]
        attack = PGD(steps=6, step_size=float(exact.max()) / 10, random_start=False)
        alone = accuracy_vs_epsilon(model, (x, y), radii, attack, bounds=WIDE, independent=True)
        assert 0 < alone.accuracy[-1] < 1
        assert accuracy_vs_epsilon(model, (x, y), radii, attack, bounds=WIDE).accuracy[-1] == 0

    def test_never_fooled_without_a_gradient(self) -> None:
        """The best iterate is the clean point itself, which must not pass for a success."""

        def model(x: Tensor) -> Tensor:
            left = (x.flatten(1)[:, :1] > 0.5).to(x.dtype) + 0 * x.flatten(1)[:, :1]
            return torch.cat([left, 1 - left], 1)

        x = torch.tensor([[0.4, 0.0], [0.6, 0.0]])
        with pytest.warns(brittle.GradientMaskingWarning):
            curve = accuracy_vs_epsilon(
                model, (x, torch.tensor([1, 0])), [0.1, 0.2, 0.3], PGD(random_start=False)
            )
        assert curve.correct.all()

    @pytest.mark.parametrize("name", ["digits_cnn", "adversarial_digits_cnn", "small_resnet"])
    def test_trained_models_fall_as_to_attacks_alone_at_half_the_cost(self, name: str) -> None:
        model, data = zoo.MODELS[name](), zoo.test_digits()
        radii = [0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3]
        curve = accuracy_vs_epsilon(model, data, radii, PGD(steps=10))
        alone = accuracy_vs_epsilon(model, data, radii, PGD(steps=10), independent=True)
        assert all(a <= b + 0.005 for a, b in zip(curve.accuracy, alone.accuracy, strict=True))
        assert (curve.correct & ~alone.correct).double().mean() < 0.005
        assert curve.backwards < 0.5 * alone.backwards
        assert curve.backwards < 3 * 10 * len(data[0])


@pytest.mark.parametrize("attack", ["pgd", "fgsm", BIM(steps=3), MIFGSM(steps=3)], ids=str)
@pytest.mark.parametrize("independent", [False, True])
def test_zero_is_the_models_own_clean_accuracy(
    attack: str | Attack, independent: bool, trained: tuple[torch.nn.Module, Tensor, Tensor]
) -> None:
    """Also where samples lie so close to the boundary that a bfloat16 copy gets them wrong."""
    model, x, _ = trained
    close, beyond = x, x.roll(1, 0)
    for _ in range(15):
        middle = (close + beyond) / 2
        same = (model(middle).argmax(1) == model(x).argmax(1)).view(-1, 1, 1, 1)
        close, beyond = middle.where(same, close), beyond.where(same, middle)
    y = models.own_labels(model, close)
    assert (copy.deepcopy(model).bfloat16()(close.bfloat16()).argmax(1) != y).any()
    y[::10] = (y[::10] + 1) % 10
    target = brittle.Target(model, precision="bfloat16")
    right = model(close).argmax(1) == y
    for epsilons in ([0.0], [0.05, 0.0]):
        curve = accuracy_vs_epsilon(target, (close, y), epsilons, attack, independent=independent)
        assert torch.equal(curve.correct[-1], right)
    assert (curve.correct[0] <= right).all()
    assert not curve.correct[0].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilons": []}, "epsilons must hold at least one value"),
        ({"epsilons": [0.1, -0.1]}, "epsilons must be finite and >= 0; got -0.1"),
        ({"epsilons": [math.nan]}, "epsilons must be finite and >= 0; got nan"),
        ({"attack": "deepfool"}, "attack must be one of 'fgsm', 'pgd'; got 'deepfool'"),
        ({"attack": PGD(), "steps": 5}, "steps, step_size, .* are the attack's own settings here; got"),
        ({"attack": PGD(early_stop=False)}, "attack must have early_stop=True; got PGD"),
        ({"attack": PGD(compat="torchattacks")}, "attack must have compat=None; got PGD"),
        ({"bounds": (0.5, 1.0)}, "x must lie inside bounds"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
        ({"steps": 0}, "steps must be an integer >= 1; got 0"),
        ({"step_size": -1.0}, "step_size must be finite and >= 0; got -1"),
        (
            {"data": (torch.rand(3, 3, 8, 8), torch.zeros(2).long())},
            "x and y must have one length; got 3 and 2",
        ),
        ({"data": (torch.rand(3, 3, 8, 8),)}, "data must be a pair .* of tensors"),
        ({"data": [torch.rand(3, 3, 8, 8)]}, r"data must yield \(x, y\) or \(x, y, sample_ids\); got Tensor"),
        ({"data": (torch.rand(3, 3, 8, 8) * 2, torch.zeros(3).long())}, "x must lie inside bounds"),
        ({"data": (torch.rand(3, 3, 8, 8), torch.full((3,), 10))}, r"y must be in \[0, 10\)"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    call = {"model": models.make("convolutional"), "data": models.data(5), "epsilons": [0.1], **arguments}
    with pytest.raises(ValueError, match=f"accuracy_vs_epsilon: .*{message}"):
        accuracy_vs_epsilon(**call)  # type: ignore[arg-type]
