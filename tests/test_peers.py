"""Every peer's convention against the installed peer, and the peers' known traps.

`make test` installs the peers.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brittle
import models
import numpy as np
import peers
import pytest
import torch
from brittle.attacks.compat import _CONVENTIONS, peers_with
from brittle.attacks.rules import START_DRAW
from samples import assert_same_bits
from test_gradient_step import assert_in_ball
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Bounds = tuple[float, float]

PRESETS = sorted(_CONVENTIONS)
LINF = [(peer, attack) for peer, attack, norm in PRESETS if norm == "linf" and attack != "rfgsm"]
L2 = [peer for peer, _, norm in PRESETS if norm == "l2"]
# With brittle's own conventions, and with everyone else's.
EVERY_FORM = [
    *((None, attack, "linf") for attack in ("fgsm", "rfgsm", "bim", "mifgsm", "pgd")),
    *((None, "pgd", norm) for norm in ("l2", "l1")),
    *PRESETS,
]
FREE_BOUNDS = ("foolbox", "art", "cleverhans")


def ours(
    peer: str | None,
    attack: str,
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    norm: str = "linf",
    **options: Any,
) -> Tensor:
    """The attack with ``peer``'s conventions, PGD without its random start unless asked for."""
    if attack != "fgsm":
        options |= {"step_size": step_size, "steps": steps}
    if attack == "pgd":
        options = {"norm": norm, "random_start": False, **options}
    adv: Tensor = getattr(brittle, attack)(model, x, y, eps, compat=peer, **options)
    return adv


def theirs(
    peer: str,
    attack: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    norm: str = "linf",
    **options: Any,
) -> Tensor:
    """What the installed peer returns. None for the step size or the steps: what it chooses."""
    schedule = {} if attack == "fgsm" or steps is None else {"step_size": step_size, "steps": steps}
    name = f"{peer}_{attack}"
    if norm == "l2" and peer in ("art", "cleverhans"):
        options["norm"] = 2
    elif norm == "l2":
        name += "_l2"
    adv: Tensor = getattr(peers, name)(model, x, y, eps, **schedule, **options)
    return adv


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Rows, eps, step size, steps: a mean over any of these rows is not exact.
SETTINGS = [(23, 8 / 255, 2 / 255, 10), (7, 0.1, 0.03, 7), (37, 0.3, 0.01, 3)]
L2_SETTINGS = [(23, 1.0, 0.2, 10), (7, 0.4, 0.15, 7), (37, 3.0, 0.5, 3)]


class TestSameBits:
    """Linf and momentum, float32 on the CPU, from the clean point."""

    @pytest.mark.parametrize("name", models.MODELS)
    @pytest.mark.parametrize(("peer", "attack"), LINF)
    def test_on_every_model(self, peer: str, attack: str, name: str) -> None:
        model = models.make(name).eval()
        goals: list[dict[str, bool]] = [{}, {"targeted": True}]
        if (peer, attack) == ("foolbox", "fgsm"):
            del goals[1]  # it refuses targets
        for goal in goals:
            for rows, *setting in SETTINGS:
                x, y = models.data(rows, seed=rows)
                adv = ours(peer, attack, model, x, y, *setting, **goal)
                assert_same_bits(adv, theirs(peer, attack, model, x, y, *setting, **goal))
                assert not torch.equal(adv, x)

    @pytest.mark.parametrize(("peer", "attack"), [preset for preset in LINF if preset[0] in FREE_BOUNDS])
    def test_in_other_bounds(self, peer: str, attack: str) -> None:
        bounds = (-1.0, 1.5)
        for name in models.MODELS:
            model, (x, y) = models.make(name).eval(), models.data()
            x = x * 2.5 - 1
            for setting in [(0.1, 0.03, 7), (0.8, 0.15, 6)]:
                adv = ours(peer, attack, model, x, y, *setting, bounds=bounds)
                assert_same_bits(adv, theirs(peer, attack, model, x, y, *setting, bounds=bounds))

    @pytest.mark.parametrize(("peer", "attack"), [p for p in LINF if p != ("cleverhans", "pgd")])
    def test_default_steps_are_theirs(self, peer: str, attack: str) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        for eps in {"torchattacks": [8 / 255], "art": [0.3]}.get(peer, [8 / 255, 0.1]):
            assert_same_bits(ours(peer, attack, model, x, y, eps), theirs(peer, attack, model, x, y, eps))

    @pytest.mark.parametrize("peer", ["torchattacks", "foolbox", "art"])
    def test_momentum_that_decays(self, peer: str) -> None:
        for name in models.MODELS:
            model, (x, y) = models.make(name).eval(), models.data()
            for decay in (0.9, 0.0):
                setting = 0.3, 0.02, 12
                adv = ours(peer, "mifgsm", model, x, y, *setting, decay=decay)
                assert_same_bits(adv, theirs(peer, "mifgsm", model, x, y, *setting, decay=decay))

    @pytest.mark.parametrize("peer", ["torchattacks", "foolbox", "advlib"])
    def test_in_double_precision(self, peer: str) -> None:
        model, (x, y) = models.make("perceptron").double().eval(), models.data()
        for attack in ("pgd", "mifgsm") if peer != "advlib" else ("pgd",):
            adv = ours(peer, attack, model, x.double(), y, 0.1, 0.03, 7)
            assert_same_bits(adv, theirs(peer, attack, model, x.double(), y, 0.1, 0.03, 7))

    def test_advlib_returns_the_last_success_or_the_clean_sample(self) -> None:
        for name in models.MODELS:
            model, (x, _) = models.make(name).eval(), models.data(61)
            y = models.own_labels(model, x)
            radii = torch.linspace(0.002, 0.2, len(x))
            adv = ours("advlib", "pgd", model, x, y, radii, 0.004, 25)
            assert_same_bits(adv, theirs("advlib", "pgd", model, x, y, radii, 0.004, 25))
            clean = (adv == x).flatten(1).all(1)
            assert clean.any()
            assert not clean.all()
            assert (models.own_labels(model, adv) != y).equal(~clean)
            # One step only asks about the clean sample.
            assert_same_bits(ours("advlib", "pgd", model, x, y, 0.2, 0.2, 1), x)

    @pytest.mark.parametrize("targeted", [False, True])
    def test_rfgsm_from_the_same_start(self, targeted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            torch,
            "randn_like",
            lambda like: brittle.ops.noise(torch.zeros_like(like), "gaussian", 1.0, seed=5, draw=START_DRAW),
        )
        for name in models.MODELS:
            model, (x, y) = models.make(name).eval(), models.data()
            for setting in [(8 / 255, 2 / 255, 10), (0.1, 0.15, 3)]:
                adv = ours("torchattacks", "rfgsm", model, x, y, *setting, targeted=targeted, seed=5)
                expected = theirs("torchattacks", "rfgsm", model, x, y, *setting, targeted=targeted)
                assert_same_bits(adv, expected)
            default = ours("torchattacks", "rfgsm", model, x, y, 8 / 255, targeted=targeted, seed=5)
            assert_same_bits(
                default, theirs("torchattacks", "rfgsm", model, x, y, 8 / 255, targeted=targeted)
            )

    def test_with_several_threads(self) -> None:
        """Torch multiplies by a frozen weight in another order: the peers do not freeze, nor do we."""
        torch.set_num_threads(2)
        model, (x, y) = models.make("attention").eval(), models.data(7, seed=7)
        adv = ours("torchattacks", "pgd", model, x, y, 0.1, 0.03, 7)
        assert_same_bits(adv, theirs("torchattacks", "pgd", model, x, y, 0.1, 0.03, 7))

    @pytest.mark.parametrize(("peer", "attack"), LINF)
    def test_over_a_data_set(self, peer: str, attack: str) -> None:
        """As many samples at a time as the peer is given; the last batch is smaller."""
        model, (x, y) = models.make("convolutional").eval(), models.data(50)
        kind = getattr(
            brittle.attacks, {"pgd": "PGD", "bim": "BIM", "fgsm": "FGSM", "mifgsm": "MIFGSM"}[attack]
        )
        schedule = {} if attack == "fgsm" else {"step_size": 0.03, "steps": 5}
        if attack == "pgd":
            schedule["random_start"] = False
        result = brittle.attack(model, kind(0.1, compat=peer, **schedule), (x, y), slots=32)
        expected = torch.cat(
            [
                theirs(peer, attack, model, x[part], y[part], 0.1, 0.03, 5)
                for part in (slice(32), slice(32, 50))
            ]
        )
        assert_same_bits(result.adversarial, expected)
        assert result.success.equal(models.own_labels(model, expected) != y)


class TestL2:
    """Within rounding of the peers, whose sums of squares are taken in another order."""

    @pytest.mark.parametrize("name", models.MODELS)
    @pytest.mark.parametrize("peer", L2)
    def test_on_every_model(self, peer: str, name: str) -> None:
        model = models.make(name).eval()
        for targeted in (False, True):
            for rows, *setting in L2_SETTINGS:
                x, y = models.data(rows, seed=rows)
                adv = ours(peer, "pgd", model, x, y, *setting, norm="l2", targeted=targeted)
                expected = theirs(peer, "pgd", model, x, y, *setting, norm="l2", targeted=targeted)
                assert (adv - expected).abs().max() <= 1e-6
                assert (adv - x).abs().max() > 0.01

    @pytest.mark.parametrize("peer", [peer for peer in L2 if peer in FREE_BOUNDS])
    def test_in_other_bounds(self, peer: str) -> None:
        bounds = (-1.0, 1.5)
        for name in models.MODELS:
            model, (x, y) = models.make(name).eval(), models.data()
            x = x * 2.5 - 1
            adv = ours(peer, "pgd", model, x, y, 3.0, 0.5, 8, norm="l2", bounds=bounds)
            expected = theirs(peer, "pgd", model, x, y, 3.0, 0.5, 8, norm="l2", bounds=bounds)
            assert (adv - expected).abs().max() <= 1e-6

    @pytest.mark.parametrize("peer", [peer for peer in L2 if peer != "cleverhans"])
    def test_default_steps_are_theirs(self, peer: str) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        eps = 0.3 if peer == "art" else 1.0
        adv = ours(peer, "pgd", model, x, y, eps, norm="l2")
        assert (adv - theirs(peer, "pgd", model, x, y, eps, norm="l2")).abs().max() <= 1e-6

    def test_a_flat_model_shortens_the_steps_of_cleverhans_alone(self) -> None:
        """Its floor is under the squared norm of a gradient that the mean has divided by the rows."""
        model, (x, y) = models.make("perceptron").eval(), models.data()
        nn.init.zeros_(model[-1].bias)
        model[-1].weight.data *= 1e-5
        lengths = {}
        for peer in L2:
            adv = ours(peer, "pgd", model, x, y, 1.0, 0.5, 1, norm="l2")
            assert (adv - theirs(peer, "pgd", model, x, y, 1.0, 0.5, 1, norm="l2")).abs().max() <= 1e-6
            lengths[peer] = (adv - x).flatten(1).norm(dim=1).max()
        assert lengths["cleverhans"] < 0.25
        assert min(lengths[peer] for peer in L2 if peer != "cleverhans") > 0.4


class TestStrength:
    """Robust accuracy by brittle's defaults is not above any peer's, settings being equal."""

    @pytest.mark.parametrize(
        ("attack", "norm", "setting"),
        [
            ("pgd", "linf", (0.02, 0.005, 20)),
            ("pgd", "l2", (0.3, 0.05, 20)),
            ("mifgsm", "linf", (0.02, 0.005, 10)),
        ],
        ids=["pgd linf", "pgd l2", "mifgsm"],
    )
    @pytest.mark.parametrize("name", models.MODELS)
    def test_robust_accuracy(
        self, name: str, attack: str, norm: str, setting: tuple[float, float, int]
    ) -> None:
        model, (x, _) = models.make(name).eval(), models.data(100)
        y = models.own_labels(model, x)

        def standing(adv: Tensor) -> int:
            return int((models.own_labels(model, adv) == y).sum())

        eps, step_size, steps = setting
        reach = 3 if name in ("residual with batch norm", "attention") else 1
        setting = eps * reach, step_size * reach, steps
        for peer in peers_with(attack, norm):
            # Foolbox's momentum adds up signs, which is another attack.
            options = {"normalize": "sign"} if (peer, attack) == ("foolbox", "mifgsm") else {}
            left = standing(ours(None, attack, model, x, y, *setting, norm=norm, **options))
            assert 0 < left < 90
            assert left <= standing(theirs(peer, attack, model, x, y, *setting, norm=norm)), peer


class Everywhere(nn.Module):
    """Ten logits for samples of any shape, the last of which is never the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 10))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1).mean(1, keepdim=True) * self.scale + 1
        return logits - 9.0 * (torch.arange(10) == 9)


@contextmanager
def seeded() -> Iterator[None]:
    """Both global generators, as they were afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _foolbox_start(attack: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    criterion = peers.foolbox.criteria.Misclassification(y)
    peer = peers.foolbox.PyTorchModel(model, bounds=(0.0, 1.0), device="cpu")
    start: Tensor = attack(abs_stepsize=0.0, steps=1, random_start=True)(peer, x, criterion, epsilons=eps)[0]
    return start


def _art_start(norm: float, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    # It has no step of length 0; this one is lost in rounding.
    return peers._art(
        peers.art_attacks.ProjectedGradientDescent,
        *(model, x, y, None, (0.0, 1.0)),
        **{
            "norm": norm,
            "eps": eps,
            "eps_step": 1e-15,
            "max_iter": 1,
            "num_random_init": 1,
            "verbose": False,
        },
    )


def _cleverhans_start(norm: float, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    pgd = peers.cleverhans_pgd_module.projected_gradient_descent
    start: Tensor = pgd(model, x, eps, eps, 0, norm, 0.0, 1.0, y=y, rand_init=True, rand_minmax=eps)
    return start


STARTS: dict[tuple[str, str, str], Callable[[nn.Module, Tensor, Tensor, float], Tensor]] = {
    ("torchattacks", "pgd", "linf"): lambda m, x, y, eps: peers.torchattacks.PGD(m, eps, 0.1, 0)(x, y),
    ("torchattacks", "pgd", "l2"): lambda m, x, y, eps: peers.torchattacks.PGDL2(m, eps, 0.1, 0)(x, y),
    ("torchattacks", "rfgsm", "linf"): lambda m, x, y, eps: peers.torchattacks.RFGSM(m, eps, eps, 0)(x, y),
    ("foolbox", "pgd", "linf"): lambda *a: _foolbox_start(peers.foolbox.attacks.LinfPGD, *a),
    ("foolbox", "pgd", "l2"): lambda *a: _foolbox_start(peers.foolbox.attacks.L2PGD, *a),
    ("art", "pgd", "linf"): lambda *a: _art_start(math.inf, *a),
    ("art", "pgd", "l2"): lambda *a: _art_start(2, *a),
    ("cleverhans", "pgd", "linf"): lambda *a: _cleverhans_start(math.inf, *a),
    ("cleverhans", "pgd", "l2"): lambda *a: _cleverhans_start(2, *a),
    # The start is the only iterate that is tried, and a success.
    ("advlib", "pgd", "linf"): lambda m, x, y, eps: peers.advlib.pgd_linf(m, x, y, eps, steps=1),
}


def measured(start: Tensor, x: Tensor) -> list[Tensor]:
    """What tells the distributions apart; rounded, so that an ulp is not a difference."""
    offset = (start - x).detach().double().flatten(1)
    numbers = offset.norm(dim=1), offset.abs().amax(1), offset[:, 0], offset[:, -1]
    return [number.mul(1e4).round() for number in numbers]


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest distance of Kolmogorov and Smirnov."""

    def distance(a: Tensor, b: Tensor) -> float:
        pooled = torch.cat([a, b])
        shares = [torch.searchsorted(s.sort().values, pooled, right=True) / len(s) for s in (a, b)]
        return float((shares[0] - shares[1]).abs().max())

    return max(distance(a, b) for a, b in zip(first, second, strict=True))


class TestRandomStarts:
    ROWS = 2000
    # Exceeded by one in 10^4 pairs of samples of one distribution.
    SAME = 2.23 * math.sqrt(2 / ROWS)

    def start(self, peer: str, attack: str, norm: str, x: Tensor, eps: float) -> Tensor:
        """Where the model is first asked."""
        asked = []
        model = Everywhere()
        model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
        y = torch.full((len(x),), 9)
        if attack == "rfgsm":
            ours(peer, attack, model, x, y, eps, eps, 1)
        else:
            ours(peer, attack, model, x, y, eps, 0.0, 2, norm=norm, random_start=True)
            # A step of length 0 does not leave the start.
            assert (asked[1] - asked[0]).abs().max() < 1e-6
        return asked[0]

    @pytest.mark.parametrize("clean", [0.5, 0.1], ids=["inside", "clipped"])
    @pytest.mark.parametrize("preset", STARTS)
    def test_are_distributed_as_theirs(self, preset: tuple[str, str, str], clean: float) -> None:
        x, y = torch.full((self.ROWS, 3, 2, 2), clean), torch.full((self.ROWS,), 9)
        with seeded():
            expected = STARTS[preset](Everywhere(), x, y, 0.3)
        got = self.start(*preset, x, 0.3)
        assert got.min() >= 0
        assert got.max() <= 1
        assert apart(measured(got, x), measured(expected, x)) < self.SAME

    def test_of_different_kinds_are_told_apart(self) -> None:
        x = torch.full((self.ROWS, 3, 2, 2), 0.5)
        found = {}
        for preset in STARTS:
            kind = _CONVENTIONS[preset].start
            found.setdefault(kind, measured(self.start(*preset, x, 0.3), x))
        assert set(found) == {convention.start for convention in _CONVENTIONS.values()}
        for kind, first in found.items():
            for other, second in found.items():
                assert kind == other or apart(first, second) > 3 * self.SAME


class Plateau(nn.Module):
    """Two classes; the second rises with the mean of ``x``, but not from 0.515 to 0.545, and never wins."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([mean * 0 + 5, mean.clamp(max=0.515) + mean.clamp(min=0.545)], 1)


class RowByRow(nn.Module):
    """Bit for bit the same logits for a sample in any batch: sums along the last dimension alone.

    The gradient is zero for a sample whose first element is 0, and partly infinite where it is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 192, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        fixed = flat.detach()
        steep = (fixed[:, :1] == 1) & (torch.arange(192) % 7 == 0)
        flat = flat + torch.where(steep, flat - fixed, 1).sqrt() - torch.where(steep, 0.0, 1.0)
        flat = torch.where(fixed[:, :1] == 0, fixed, flat)
        return (flat.unsqueeze(1) * self.weight).sum(2)


def form(peer: str | None, attack: str, norm: str, *arguments: Any, **options: Any) -> Tensor:
    """Any form of any attack, two steps or more, with brittle's own ones going on after a success."""
    if peer is None and attack != "fgsm":
        options["early_stop"] = False
    return ours(peer, attack, *arguments, norm=norm, **options)


every_form = pytest.mark.parametrize(("peer", "attack", "norm"), EVERY_FORM)


class TestTraps:
    """What goes wrong in one library or another."""

    def test_a_zero_gradient_does_not_end_the_momentum(self) -> None:
        model, x = Plateau(), torch.full((2, 3, 4, 4), 0.5)
        x[1] = 0.6
        y = torch.zeros(2, dtype=torch.int64)
        setting = 0.2, 0.01, 10
        expected = torch.tensor([0.6, 0.7]).reshape(2, 1, 1, 1).expand_as(x)
        for normalize in ("mean", "l1", "sign"):
            for early_stop in (True, False):
                options = {"normalize": normalize, "early_stop": early_stop}
                adv = ours(None, "mifgsm", model, x, y, *setting, **options)
                assert torch.allclose(adv, expected)
        for peer in ("foolbox", "art"):
            adv = ours(peer, "mifgsm", model, x, y, *setting)
            assert_same_bits(adv, theirs(peer, "mifgsm", model, x, y, *setting))
            assert torch.allclose(adv, expected)
        # There it divides by zero, and the sample is stuck; so it is with its conventions.
        stuck = ours("torchattacks", "mifgsm", model, x, y, *setting)
        assert_same_bits(stuck, theirs("torchattacks", "mifgsm", model, x, y, *setting))
        assert torch.allclose(stuck[0], torch.full_like(x[0], 0.52))
        assert torch.allclose(stuck[1], expected[1])

    @every_form
    def test_modes_statistics_and_gradients_are_left_alone(
        self, peer: str | None, attack: str, norm: str
    ) -> None:
        """Batch norm that is frozen stays so, in a model that is being trained."""
        model, (x, y) = models.make("residual with batch norm").train(), models.data(6)
        model.norm.eval()
        model.head.bias.requires_grad_(False)
        model.stem.weight.grad = torch.full_like(model.stem.weight, 3)
        modes = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        form(peer, attack, norm, model, x, y, 0.1)
        assert [module.training for module in model.modules()] == modes
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (name != "head.bias")
            if name == "stem.weight":
                assert_same_bits(parameter.grad, torch.full_like(parameter, 3))
            else:
                assert parameter.grad is None

    @every_form
    def test_weight_gradients_are_not_even_computed(self, peer: str | None, attack: str, norm: str) -> None:
        products = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                result = function(*args, **(kwargs or {}))
                if function is torch.ops.aten.mm.default:
                    products.append(set(result.shape))
                return result

        model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), models.data(7)
        with Watch():
            form(peer, attack, norm, model, x, y, 0.1)
        assert {7, 192} in products  # the input's gradient
        assert {10, 192} not in products

    @every_form
    def test_a_result_does_not_depend_on_batch_mates(self, peer: str | None, attack: str, norm: str) -> None:
        model, (x, y) = RowByRow(), models.data(9)
        x[3, 0, 0, 0], x[5, 0, 0, 0] = 0, 1
        ids = torch.arange(100, 109)
        schedule = () if attack == "fgsm" else (0.03, 6)

        def run(rows: list[int], **start: bool) -> Tensor:
            arguments = (model, x[rows], y[rows], 0.2, *schedule)
            return form(peer, attack, norm, *arguments, seed=3, sample_ids=ids[rows], **start)

        for start in [{"random_start": False}, {"random_start": True}] if attack == "pgd" else [{}]:
            together = run(list(range(9)), **start)
            assert not torch.equal(together, x)
            # A mean divides the gradient by the rows, but who the others are does not matter.
            batches = [[0, 5, 5, 3, 8, 8, 7, 3, 5]]
            if peer is None or _CONVENTIONS[peer, attack, norm].reduction == "sum":
                batches += [[0], [3], [5], [8, 2, 7], [4, 5, 3, 6]]
            for rows in batches:
                assert_same_bits(run(rows, **start), together[rows])

    @every_form
    def test_rows_without_a_gradient_stay_finite(self, peer: str | None, attack: str, norm: str) -> None:
        model, (x, y) = RowByRow(), models.data(5)
        x[2] = 0  # zeros all over, in x and in the gradient
        x[4, 0, 0, 0] = 0
        schedule = () if attack == "fgsm" else (0.03, 4)
        if attack == "rfgsm":
            assert form(peer, attack, norm, model, x, y, 0.2, *schedule).isfinite().all()
            return
        adv = form(peer, attack, norm, model, x, y, 0.2, *schedule)
        assert_same_bits(adv[[2, 4]], x[[2, 4]])
        assert adv.isfinite().all()
        assert not torch.equal(adv, x)
        if peer is not None:
            expected = theirs(peer, attack, model, x, y, 0.2, *schedule, norm=norm)
            assert (adv - expected).abs().max() <= (0 if norm == "linf" else 1e-6)

    @every_form
    def test_nan_logits_are_refused_and_named(self, peer: str | None, attack: str, norm: str) -> None:
        def model(x: Tensor) -> Tensor:
            broken = torch.where(torch.arange(len(x)) == 2, torch.nan, 1.0).reshape(-1, 1)
            return x.flatten(1)[:, :10] * broken

        x, y = models.data(5)
        with pytest.raises(ValueError, match=rf"{attack}: .*NaN logits for 1 sample\(s\): 702$"):
            form(peer, attack, norm, model, x, y, 0.1, sample_ids=torch.arange(700, 705))

    @every_form
    def test_rounding_errors_of_denormalisation_are_accepted(
        self, peer: str | None, attack: str, norm: str
    ) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        x[:, :, 0], x[:, :, 1] = 0, 1
        mean, std = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]]).reshape(2, 3, 1, 1)
        x = (x - mean) / std * std + mean
        assert -1e-7 < x.min() < 0
        adv = form(peer, attack, norm, model, x, y, 0.1)
        assert adv.min() >= x.min()
        assert adv.max() <= 1
        assert not torch.equal(adv, x)
        if norm == "linf":
            # The peers' rounding leaves the ball by an ulp of 1, of the clean point below 0 by a little more.
            assert_in_ball(adv, x, 0.1 + 1.5e-7 * (peer is not None), (float(x.min()), 1.0))
