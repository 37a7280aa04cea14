"""minimal_epsilon: closed forms on linear models, points that prove their distance, the same in any batch."""

import copy
import math
from typing import Any

import brittle
import models
import pytest
import torch
from brittle.attacks import BIM, FGSM, MIFGSM, PGD, RFGSM, Attack
from brittle.engine import distances
from brittle.evaluation import MinimalEpsilon, accuracy_vs_epsilon, minimal_epsilon
from samples import assert_same_bits
from test_attacks import Linear
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

WIDE = (-100.0, 100.0)


def linear(features: int = 20, samples: int = 40) -> tuple[Linear, Tensor, Tensor]:
    model = Linear(features, torch.float64, 3)
    model.weight.data /= model.weight.data.abs().sum()
    model.bias.data.fill_(-0.5 * float(model.weight.detach().sum()))
    x = torch.rand(samples, features, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def margins(model: Linear, x: Tensor) -> Tensor:
    return (x @ model.weight + model.bias).detach().abs()


def smallest(reaches: Any, upper: float, rows: int) -> Tensor:
    """By bisection of what grows with the size: the size from which ``reaches(size)``, bool [N], is true."""
    low, high = torch.zeros(rows).double(), torch.full((rows,), upper).double()
    for _ in range(60):
        middle = (low + high) / 2
        enough = reaches(middle)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


class TestLinearModels:
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.parametrize("random_start", [False, True])
    @pytest.mark.parametrize("tolerance", [None, 1e-4])
    def test_margin_over_the_dual_norm_far_from_the_bounds(
        self, norm: str, random_start: bool, tolerance: float | None
    ) -> None:
        model, x, y = linear()
        dual = torch.linalg.vector_norm(model.weight.detach(), {"linf": 1, "l2": 2, "l1": torch.inf}[norm])
        exact = margins(model, x) / dual
        upper = float(1.1 * exact.max())
        attack = PGD(norm=norm, random_start=random_start)
        found = minimal_epsilon(model, (x, y), attack, upper=upper, tolerance=tolerance, bounds=WIDE)
        assert found.tolerance == (upper / 256 if tolerance is None else tolerance)
        assert (found.epsilon >= exact - 1e-12).all()
        # A random start leaves a part across the gradient that the steps only shrink.
        loose = 0.02 * exact if random_start and norm != "linf" else 0.0
        assert (found.epsilon <= exact + found.tolerance + loose).all()

    def test_linf_at_the_bounds(self) -> None:
        model, x, y = linear()
        exact = smallest(
            lambda eps: model.optimum(x, y, eps.unsqueeze(1), (0.0, 1.0)).detach() <= 0, 1.0, len(x)
        )
        assert (exact > margins(model, x) / model.weight.detach().abs().sum() + 1e-3).any()  # bounds matter
        found = minimal_epsilon(model, (x, y), PGD(steps=60), upper=0.6)
        assert (found.epsilon >= exact - 1e-12).all()
        assert (found.epsilon <= exact + found.tolerance).all()

    def test_l2_at_the_bounds(self) -> None:
        model, x, y = linear()
        weight = model.weight.detach() * torch.where(y == 0, -1.0, 1.0).unsqueeze(1)

        def nearest(size: Tensor) -> Tensor:
            return (x + size.unsqueeze(1) * weight).clamp(0, 1)

        size = smallest(lambda s: ((nearest(s) - x) * weight).sum(1) >= margins(model, x), 1e3, len(x))
        exact = (nearest(size) - x).norm(dim=1)
        found = minimal_epsilon(model, (x, y), PGD(norm="l2"), upper=3.0)
        assert (found.epsilon >= exact - 1e-9).all()
        assert (found.epsilon <= 1.02 * exact + found.tolerance).all()


ATTACKS = [
    PGD(steps=5),
    PGD(steps=3, restarts=2, loss="margin"),
    PGD(steps=3, targets=2, restarts=2),
    PGD(norm="l2", steps=5),
    PGD(norm="l1", steps=5, l1_quantile=0.9),
    PGD(steps=5, step_size=0.01, targeted=True),
    BIM(steps=4),
    MIFGSM(steps=4),
    RFGSM(),
    FGSM(),
]


def upper(attack: Attack) -> float:
    """Where some samples of ``exact`` are still not fooled, or hardly."""
    return {"linf": 0.06, "l2": 0.5, "l1": 4.0}[attack.norm] * (3 if attack.targeted else 1)


@pytest.fixture(scope="module")
def exact() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """In float64 the verdicts do not hang on how the model's sums are grouped in a batch."""
    model, (x, y) = models.make("perceptron").double().eval(), models.data(24)
    x = x.double()
    y = models.own_labels(model, x)
    y[:3] = (y[:3] + 1) % 10
    return model, x, y


def labels(model: torch.nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """Three that need no attack."""
    if not attack.targeted:
        return y
    own = models.own_labels(model, x)
    goal = (own + 1) % 10
    goal[:3] = own[:3]
    return goal


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
class TestAnyAttack:
    def test_points_prove_their_distances(
        self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]
    ) -> None:
        model, x, y = exact
        y = labels(model, x, y, attack)
        found = minimal_epsilon(model, (x, y), attack, upper=upper(attack), seed=4)
        assert found.adversarial is not None
        wrong = (model(x).argmax(1) == y) if attack.targeted else (model(x).argmax(1) != y)
        assert torch.equal(found.epsilon == 0, wrong)
        predicted = model(found.adversarial).argmax(1)
        fooled = (predicted == y) if attack.targeted else (predicted != y)
        assert torch.equal(found.epsilon.isfinite(), fooled)
        assert torch.equal(found.prediction, predicted)
        some = fooled & ~wrong
        assert some.any()
        distance = distances(found.adversarial, x, attack.norm)
        assert torch.equal(found.epsilon[some], distance[some])
        assert (distance <= found.upper).all()
        assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()

    def test_is_as_good_as_the_attack_at_upper_and_better_below(
        self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]
    ) -> None:
        """The first radius is an attack like any other, so what falls there is known."""
        model, x, y = exact
        y = labels(model, x, y, attack)
        radii = [upper(attack) * k / 4 for k in range(5)]
        found = minimal_epsilon(model, (x, y), attack, upper=radii[-1], seed=4)
        apart = accuracy_vs_epsilon(model, (x, y), radii, attack, seed=4, independent=True)
        curve = found.curve(radii)
        assert torch.equal(curve.correct[[0, -1]], apart.correct[[0, -1]])
        assert curve.norm == attack.norm
        assert curve.accuracy == sorted(curve.accuracy, reverse=True)
        # Every radius was not tried, and FGSM's verdicts do rise again; on the whole the curves agree.
        assert (curve.correct == apart.correct).double().mean() > 0.93

    def test_slots_and_order_change_nothing(
        self, attack: Attack, exact: tuple[torch.nn.Module, Tensor, Tensor]
    ) -> None:
        model, x, y = exact
        y = labels(model, x, y, attack)
        options: dict[str, Any] = {"attack": attack, "upper": upper(attack), "seed": 2, "tolerance": 0.01}
        whole = minimal_epsilon(model, (x, y), **options)
        assert whole.adversarial is not None
        for slots in (1, 7):
            other = minimal_epsilon(model, (x, y), slots=slots, **options)
            assert other.adversarial is not None
            assert_same(other.epsilon, whole.epsilon, attack)
            assert_same(other.adversarial, whole.adversarial, attack)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        loader = DataLoader(TensorDataset(x[order], y[order], order), batch_size=11)
        shuffled = minimal_epsilon(model, loader, slots=64, **options)
        assert_same(shuffled.epsilon, whole.epsilon[order], attack)
        assert torch.equal(shuffled.sample_ids, order)
        assert shuffled.adversarial is None


def assert_same(a: Tensor, b: Tensor, attack: Attack) -> None:
    """To the bit where steps follow signs; a gradient's last bits hang on the model's own batch sums."""
    if attack.norm == "linf":
        assert_same_bits(a, b)
    else:
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_restarts_find_nearer_points(exact: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
    model, x, y = exact
    one, many = (minimal_epsilon(model, (x, y), PGD(steps=2, restarts=r), upper=0.06) for r in (1, 6))
    assert (many.epsilon.isfinite() >= one.epsilon.isfinite()).all()
    both = one.epsilon.isfinite()
    assert many.epsilon[both].sum() < one.epsilon[both].sum()


def test_warm_starts_cost_less_than_a_grid_of_epsilons(
    exact: tuple[torch.nn.Module, Tensor, Tensor],
) -> None:
    """256 radii for less than 16 in turn."""
    model, x, y = exact
    for attack in (PGD(steps=20), PGD(steps=20, norm="l2")):
        found = minimal_epsilon(model, (x, y), attack, upper=upper(attack))
        grid = [upper(attack) * (k + 1) / 16 for k in range(16)]
        curve = accuracy_vs_epsilon(model, (x, y), grid, attack, independent=True)
        assert found.backwards < 0.6 * curve.backwards
        assert found.forwards < 0.6 * curve.forwards


@pytest.mark.parametrize("attack", [PGD(steps=8), PGD(steps=8, norm="l2"), MIFGSM(steps=5)], ids=str)
def test_a_copys_findings_are_certified(attack: Attack) -> None:
    """Close to the boundary a bfloat16 copy is fooled where the model is not."""
    model, (x, _) = models.make("convolutional").eval(), models.data(60)
    y = models.own_labels(model, x)
    radius = {"linf": 0.1, "l2": 1.0}[attack.norm]
    target = brittle.Target(model, precision="bfloat16")
    found = minimal_epsilon(target, (x, y), attack, upper=radius, tolerance=radius / 2**12)
    own = minimal_epsilon(model, (x, y), attack, upper=radius, tolerance=radius / 2**12)
    assert found.adversarial is not None
    some = found.epsilon.isfinite()
    assert some.sum() > 40
    assert (model(found.adversarial).argmax(1) != y)[some].all()
    assert torch.equal(distances(found.adversarial, x, attack.norm)[some], found.epsilon[some])
    assert found.epsilon[some].median() < 1.05 * own.epsilon[some].median()
    # The points are nearer than the copy can tell.
    halves = copy.deepcopy(model).bfloat16()(found.adversarial[some].bfloat16()).argmax(1)
    assert (halves == y[some]).any()


def made(epsilon: list[float], upper: float = 1.0) -> MinimalEpsilon:
    values = torch.tensor(epsilon, dtype=torch.float64)
    ids = torch.arange(len(values))
    return MinimalEpsilon("PGD()", "l2", upper, 0.1, values, ids, ids, 7, 5)


class TestResult:
    def test_quantiles_are_the_radii_that_suffice(self) -> None:
        found = made([0.5, 0.0, math.inf, 0.25, 0.75])
        assert [found.quantile(q) for q in (0.2, 0.4, 0.41, 0.8, 1.0)] == [0.0, 0.25, 0.5, 0.75, math.inf]
        assert found.median == 0.5
        assert made([0.1] * 3 + [0.2] * 7).quantile(0.3) == 0.1
        assert made([math.inf, math.inf, 0.1]).median == math.inf
        assert math.isnan(made([]).median)
        with pytest.raises(ValueError, match=r"quantile: share must be in \(0, 1\]; got 0"):
            found.quantile(0)

    def test_curve_counts_points_on_the_surface_as_inside(self) -> None:
        found = made([0.5, 0.0, math.inf, 0.25])
        curve = found.curve([0.5, 0.0, 0.4999, 1.0])
        assert curve.accuracy == [0.25, 0.75, 0.5, 0.25]
        assert (curve.norm, curve.forwards, curve.backwards) == ("l2", 7, 5)
        with pytest.raises(ValueError, match=r"curve: epsilons must be at most upper = 1\.0; got 1\.5"):
            found.curve([0.5, 1.5])

    def test_table_and_plot(self) -> None:
        found = made([0.5, 0.0, math.inf, 0.25])
        lines = found.table().splitlines()
        assert lines[0] == "minimal epsilon (L2) under PGD()"
        assert "samples 4, wrong without attack 1, not fooled at 1: 1" in lines[1]
        assert [line.split() for line in lines[3:]] == [
            ["5%", "0"],
            ["10%", "0"],
            ["25%", "0"],
            ["50%", "0.25"],
            ["75%", "0.5"],
            ["90%", "inf"],
            ["95%", "inf"],
        ]
        axes = found.plot()
        (line,) = axes.get_lines()
        assert list(line.get_xdata()) == [0.0, 0.0, 0.25, 0.5, 1.0]
        assert list(line.get_ydata()) == [0.0, 25.0, 50.0, 75.0, 75.0]
        assert axes.get_xlabel() == "epsilon (L2)"

    def test_no_samples(self) -> None:
        model = models.make("convolutional")
        found = minimal_epsilon(model, (torch.empty(0, 3, 8, 8), torch.empty(0).long()), upper=0.1)
        assert len(found) == 0
        assert math.isnan(found.curve([0.0]).accuracy[0])
        assert "nan" in found.table()
        found.plot()

    def test_progress_counts_samples(self, exact: tuple[torch.nn.Module, Tensor, Tensor]) -> None:
        model, x, y = exact
        seen: list[tuple[int, int | None]] = []
        minimal_epsilon(
            model, (x, y), PGD(steps=2), upper=0.06, progress=lambda done, total: seen.append((done, total))
        )
        assert seen[-1] == (24, 24)
        assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upper": 0.0}, "upper must be finite and > 0; got 0.0"),
        ({"upper": math.inf}, "upper must be finite and > 0; got inf"),
        ({"upper": math.nan}, "upper must be finite and > 0; got nan"),
        ({"tolerance": 0.0}, "tolerance must be finite and > 0; got 0.0"),
        ({"slots": 0}, "slots must be an integer >= 1; got 0"),
        ({"attack": PGD(early_stop=False)}, "attack must have early_stop=True; got PGD"),
        ({"attack": PGD(compat="torchattacks")}, "attack must have compat=None; got PGD"),
        ({"data": (torch.rand(3, 3, 8, 8) * 2, torch.zeros(3).long())}, "x must lie inside bounds"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    call = {"model": models.make("convolutional"), "data": models.data(5), "upper": 0.1, **arguments}
    with pytest.raises(ValueError, match=f"minimal_epsilon: .*{message}"):
        minimal_epsilon(**call)
