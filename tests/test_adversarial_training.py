"""Adversarial training: each method's steps are those of its paper, written out here in plain torch; the
model under attack is left alone; a collapse is seen, and ends it with the best weights."""

import copy
import math
from pathlib import Path
from typing import Any

import brittle
import pytest
import torch
import torch.nn.functional as F
from brittle.demo import digits
from brittle.repair import CollapseGuard, Training, adversarial_train, train
from brittle.repair.adversarial import METHODS
from brittle.repair.ascent import Ascent
from brittle.repair.early_stopping import has_collapsed
from brittle.repair.folded import FoldedCopy
from brittle.repair.loop import undisturbed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]
EPS = 0.15


def problem(count: int = 40) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 4, 4, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0.5).long() + (x[:, 0, 0, 0] > 0.5)


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(16, 3),
        )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


class Spy:
    """Keeps the batches that training is given, and each epoch's end."""

    def __init__(self, data: Data, sizes: tuple[int, ...] = (16, 24)) -> None:
        self.parts = [
            (x, y, ids)
            for x, y, ids in zip(
                *(torch.split(t, list(sizes)) for t in (*data, torch.arange(len(data[0])))), strict=True
            )
        ]

    def __iter__(self) -> Any:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def plain_step(adv: Tensor, gradient: Tensor, x: Tensor, size: float, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return (adv + size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    length = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    moved = adv + size * gradient / length - x
    distance = moved.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return (x + moved * (eps / distance).clamp(max=1)).clamp(0, 1)


def plain_attack(
    model: nn.Module, x: Tensor, start: Tensor, loss: Any, steps: int, size: float, eps: float, norm: str
) -> Tensor:
    """On a copy in evaluation mode."""
    adv = start
    for _ in range(steps):
        leaf = adv.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(leaf)), leaf)
        adv = plain_step(adv, gradient, x, size, eps, norm)
    return adv


def starts(seed: int, x: Tensor, ids: Tensor, step: int, eps: float, norm: str) -> Tensor:
    ascent = Ascent(norm, 1, True, (0.0, 1.0), brittle.noise._state.stream(seed, b"attack"))  # type: ignore[attr-defined]
    return ascent.start(x, ids, step, eps)


# ---- the methods, against their papers ----


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("method", "steps", "size"), [("pgd", 3, 2.5 / 3), ("fgsm", 1, 1.25), ("trades", 3, 2.5 / 3)]
)
def test_training_is_the_papers(method: str, steps: int, size: float, norm: str) -> None:
    data, model, plain = problem(), network(), network()
    options: dict[str, Any] = {} if method == "fgsm" else {"steps": steps}
    adversarial_train(
        model, Spy(data), eps=EPS, method=method, norm=norm, epochs=2, ramp=0, optimizer=sgd, seed=3,
        validation=None, beta=2.0, **options,
    )  # fmt: skip
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    for number in range(2):
        for place, (x, y, ids) in enumerate(Spy(data)):
            start = starts(3, x, ids, 2 * number + place, EPS, norm)
            assert not torch.equal(start, x)
            plain.eval()
            if method == "trades":
                usual = plain(x).detach().softmax(1)
                loss = lambda z, p=usual: (p * (p.log() - z.log_softmax(1))).sum()  # noqa: E731
            else:
                loss = lambda z, labels=y: F.cross_entropy(z, labels, reduction="sum")  # noqa: E731
            adv = plain_attack(plain, x, start, loss, steps, size * EPS, EPS, norm)
            plain.train()
            optimizer.zero_grad()
            if method == "trades":
                clean, logits = plain(x), plain(adv)
                p = clean.softmax(1)
                divergence = (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
                (F.cross_entropy(clean, y) + 2.0 * divergence).backward()
            else:
                F.cross_entropy(plain(adv), y).backward()
            optimizer.step()
    assert_close(weights(model), weights(plain))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_free_training_is_the_papers(norm: str) -> None:
    """Each backward pass moves weights and perturbation; the perturbation stays from batch to batch."""
    data, model, plain = problem(), network(), network()
    training = adversarial_train(
        model, Spy(data), eps=EPS, method="free", norm=norm, epochs=2, ramp=0, optimizer=sgd, replays=3,
        validation=None,
    )  # fmt: skip
    assert training.steps == 2 * 2 * 3
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    delta = torch.zeros(24, 1, 4, 4)
    for _ in range(2):
        for x, y, _ids in Spy(data):
            for _ in range(3):
                start = plain_step(x + delta[: len(x)], torch.ones_like(x), x, 0.0, EPS, norm)
                adv = start.clone().requires_grad_()
                optimizer.zero_grad()
                F.cross_entropy(plain(adv), y).backward()
                optimizer.step()
                assert adv.grad is not None
                delta[: len(x)] = plain_step(start, adv.grad, x, EPS, EPS, norm) - x
    assert_close(weights(model), weights(plain))


def test_at_radius_zero_it_is_ordinary_training() -> None:
    data = problem()
    plain = network()
    train(plain, data, epochs=2, batch_size=16, optimizer=sgd)
    for method in ("pgd", "fgsm"):
        model = network()
        adversarial_train(
            model, data, eps=0.0, method=method, epochs=2, batch_size=16, optimizer=sgd, validation=None
        )
        assert_close(weights(model), weights(plain))


# ---- the inner attack ----


@given(
    norm=st.sampled_from(["linf", "l2"]),
    count=st.integers(1, 9),
    side=st.integers(1, 5),
    eps=st.floats(0, 2),
    lo=st.floats(-3, 1),
)
def test_the_attack_stays_in_ball_and_bounds(norm: str, count: int, side: int, eps: float, lo: float) -> None:
    x = lo + 2 * torch.rand(count, side, side)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 3))
    ascent = Ascent(norm, 3, True, (lo, lo + 2), 0)
    y = torch.zeros(count, dtype=torch.int64)
    adv = ascent(model, x, torch.arange(count), 0, lambda z: F.cross_entropy(z, y), eps, 1.5 * eps)
    moved = (adv - x).flatten(1)
    distance = moved.abs().amax(1) if norm == "linf" else moved.double().norm(dim=1)
    assert (distance <= eps * (1 + 1e-6) + 1e-7).all()
    assert adv.min() >= torch.tensor(lo)
    assert adv.max() <= torch.tensor(lo + 2)


def test_the_attack_maximises() -> None:
    """Closed form: of a linear model's margin, the corner of the box."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    x = 0.3 + 0.4 * torch.rand(5, 6)
    y = torch.tensor([0, 1, 0, 1, 0])
    w = model[1].weight[1] - model[1].weight[0]
    ascent = Ascent("linf", 4, True, (0.0, 1.0), 0)
    adv = ascent(model, x, torch.arange(5), 0, lambda z: F.cross_entropy(z, y, reduction="sum"), 0.1, 0.06)
    corner = x + 0.1 * (1 - 2 * y).unsqueeze(1) * w.sign()
    torch.testing.assert_close(adv, corner)


def test_starts_hang_on_sample_and_step_alone() -> None:
    x, ids = torch.full((6, 3), 0.5), torch.arange(6)
    ascent = Ascent("linf", 1, True, (0.0, 1.0), 7)
    whole = ascent.start(x, ids, 4, 0.2)
    assert torch.equal(ascent.start(x[2:4], ids[2:4], 4, 0.2), whole[2:4])
    assert not torch.equal(ascent.start(x, ids, 5, 0.2), whole)
    assert 0.1 < (whole - x).abs().mean() / 0.2 * 0.2 < 0.13 or (whole - x).abs().mean() == pytest.approx(
        0.1, abs=0.03
    )
    fixed = Ascent("linf", 1, False, (0.0, 1.0), 7)
    assert torch.equal(fixed.start(x, ids, 4, 0.2), x)


class Counting(nn.Module):
    """Has a buffer that every pass writes to, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_under_attack_is_left_alone(mode: str) -> None:
    model = nn.Sequential(Counting(), *network(dropout=0.5))
    model.train()
    model[2].eval()
    model[1].bias.requires_grad_(False)  # type: ignore[union-attr]
    before, flags = weights(model), [p.requires_grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    x, y = problem()
    seen: list[list[bool]] = []
    model.register_forward_hook(lambda *_: seen.append([module.training for module in model.modules()]))
    with undisturbed(model, mode):
        assert not any(p.requires_grad for p in model.parameters())
        Ascent("linf", 2, True, (0.0, 1.0), 0)(
            model, x, torch.arange(40), 0, lambda z: F.cross_entropy(z, y), 0.1, 0.05
        )
    assert seen == [[False] * len(modes) if mode == "eval" else modes] * 2
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_batch_norm_counts_the_training_passes_alone() -> None:
    for method, passes in (("pgd", 2), ("fgsm", 2), ("trades", 4), ("free", 4)):
        model = network()
        adversarial_train(
            model, problem(), eps=EPS, method=method, epochs=1, batch_size=20, replays=2, validation=None,
            mode="train",
        )  # fmt: skip
        assert int(model[1].num_batches_tracked) == passes, method  # type: ignore[arg-type]


def test_the_mode_of_the_attack_matters() -> None:
    trained = []
    for mode in ("eval", "train"):
        model = network()
        adversarial_train(model, problem(), eps=EPS, epochs=1, mode=mode, validation=None, optimizer=sgd)
        trained.append(weights(model))
    assert not torch.equal(trained[0]["5.weight"], trained[1]["5.weight"])


# ---- radii, splits, what it tells ----


@pytest.mark.parametrize(
    ("ramp", "epochs", "shares"),
    [
        (0.0, 3, [1, 1, 1]),
        (1 / 3, 1, [1]),
        (0.5, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        (1.0, 3, [0.25, 0.5, 0.75]),
    ],
)
def test_the_radius_grows_over_the_ramp(ramp: float, epochs: int, shares: list[float]) -> None:
    training = adversarial_train(
        network(), problem(), eps=EPS, steps=1, epochs=epochs, ramp=ramp, validation=None
    )
    assert [record["eps"] for record in training.history] == pytest.approx([EPS * share for share in shares])


def test_a_share_is_held_out_and_told_of() -> None:
    x, y = problem()
    seen: set[int] = set()

    class Recorder(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            if self.training:
                seen.update((x == batch[:, None].detach()).flatten(2).all(2).nonzero()[:, 1].tolist())
            return batch

    model = nn.Sequential(Recorder(), *network())
    training = adversarial_train(model, (x, y), eps=0.0, epochs=2, validation=0.25, seed=5, optimizer=sgd)
    assert len(seen) == 30
    rest = torch.tensor(sorted(set(range(40)) - seen))
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[rest]).argmax(1) == y[rest]).double().mean().item()
    last = training.history[-1]
    assert last["validation_accuracy"] == last["robust_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_bits(method: str) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.rand(2)
        model = network(dropout=0.3)
        adversarial_train(
            model, problem(), eps=EPS, method=method, epochs=2, batch_size=16, seed=seed, mode="train"
        )
        found.append(weights(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["5.weight"], found[2]["5.weight"])


class Killed(Exception):
    pass


class Die:
    def __init__(self, after: int | None) -> None:
        self.after = after

    def on_step(self, training: Training) -> None:
        if training.steps == self.after:
            raise Killed


@pytest.mark.parametrize("method", METHODS)
def test_a_run_taken_up_again_ends_in_the_same_bits(tmp_path: Path, method: str) -> None:
    def run(path: Path | None, after: int | None) -> Training:
        return adversarial_train(
            network(dropout=0.2), problem(), eps=EPS, method=method, epochs=3, batch_size=18, replays=2,
            callbacks=[Die(after)], checkpoint=path,
        )  # fmt: skip

    whole = run(None, None)
    with pytest.raises(Killed):
        run(tmp_path / "run", whole.steps // 3 + 1)
    again = run(tmp_path / "run", None)
    assert again.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_a_checkpoint_of_other_arguments_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eps": EPS, "steps": 1, "epochs": 2, "checkpoint": tmp_path / "run"}
    adversarial_train(network(), problem(), **options)
    for name, value in {"eps": 0.1, "steps": 2, "norm": "l2", "method": "trades", "mode": "train"}.items():
        model = network(1)
        before = weights(model)
        with pytest.raises(
            ValueError, match="adversarial_train: checkpoint must be of a run with the same arg"
        ):
            adversarial_train(model, problem(), **{**options, name: value})
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# ---- collapse ----


def test_a_collapse_is_beyond_half_and_beyond_chance() -> None:
    assert has_collapsed(0.29, 0.6, 1000)
    assert not has_collapsed(0.31, 0.6, 1000)
    assert not has_collapsed(0.1, 0.3, 20)
    assert not has_collapsed(0.0, 0.0, 100)
    assert not has_collapsed(0.05, 0.2, 400, constant=0.15)
    assert has_collapsed(0.05, 0.2, 400, constant=0.1)


def test_the_guard_gives_the_best_weights_back() -> None:
    """Of a model whose one weight decides between right everywhere and wrong everywhere."""
    y = torch.arange(60) % 2
    x = 0.2 + 0.6 * y.unsqueeze(1).float()
    model = nn.Linear(1, 2)
    weights = [1.0, 9.0, 5.0, -9.0]

    class Spoil:
        def on_epoch(self, training: Training) -> None:
            w = weights[len(training.history) - 1]
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[-w], [w]]))
                model.bias.copy_(torch.tensor([w / 2, -w / 2]))

    training = train(model, (x, y), epochs=9, callbacks=[Spoil(), CollapseGuard((x, y), eps=0.05)])
    assert [record["robust_accuracy"] for record in training.history] == [1, 1, 1, 0]
    # The first of the best: later ones as good do not take its place.
    assert torch.equal(model.weight.data, torch.tensor([[-1.0], [1.0]]))
    assert training.stopped == (
        "catastrophic overfitting: robust accuracy on 60 held-out samples fell from 100.0% to 0.0% in epoch "
        "3; the weights are those after epoch 0"
    )


class Waves(nn.Module):
    """Sines and cosines of each coordinate: features sharp enough to be right at the ends of a step alone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, count + 1))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], 1)


def test_catastrophic_overfitting_is_stopped() -> None:
    """FGSM from the clean points trains this network to defeat FGSM and nothing else; PGD does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(800, 2, generator=generator)
    y = (x.mean(1) > 0.5).long()
    data, held_out = (x[:400], y[:400]), (x[400:], y[400:])

    def run(**options: Any) -> Training:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(Waves(16), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2))
        return adversarial_train(
            model, data, eps=0.1, epochs=16, ramp=0.5, batch_size=50, validation=held_out,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01), **options,
        )  # fmt: skip

    once = {"method": "fgsm", "step_size": 0.1, "random_start": False}
    stopped, steady = run(**once), run(method="pgd", steps=5)
    robust = [record["robust_accuracy"] for record in stopped.history]
    assert stopped.stopped is not None
    assert stopped.stopped.startswith("catastrophic overfitting")
    assert stopped.epochs < 16
    assert robust[-1] < max(robust) / 2
    assert stopped.history[-1]["accuracy"] > 0.95  # of FGSM's own samples
    attack = brittle.attacks.PGD(0.1, steps=10)
    assert brittle.attack(stopped.model, attack, held_out).robust_accuracy == max(robust) > 0.7
    assert steady.stopped is None
    assert steady.history[-1]["robust_accuracy"] > 0.7


def test_the_guard_looks_at_no_more_samples_than_it_says() -> None:
    x, y = torch.rand(700, 2), torch.zeros(700, dtype=torch.int64)
    x[512:] = 0
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    for data in ((x, y), [(x[:300], y[:300]), (x[300:], y[300:])]):
        guard = CollapseGuard(data, eps=0.0)
        training = Training(model, torch.optim.SGD(model.parameters()), history=[{}])
        guard.on_epoch(training)
        assert training.history[-1]["robust_accuracy"] == 1
    with pytest.raises(ValueError, match="CollapseGuard: validation must hold samples"):
        CollapseGuard((x[:0], y[:0]), eps=0.1).on_epoch(training)


# ---- wrong arguments ----


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "pdg"}, "method must be one of 'pgd', 'fgsm', 'free', 'trades'; got 'pdg'"),
        ({"norm": "l1"}, "norm must be one of 'linf', 'l2'; got 'l1'"),
        ({"mode": "test"}, "mode must be one of"),
        ({"eps": -0.1}, "eps must be finite and >= 0"),
        ({"eps": float("nan")}, "eps must be finite"),
        ({"beta": float("inf")}, "beta must be finite"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"steps": 3, "method": "fgsm"}, "steps is for the methods"),
        ({"step_size": -1.0}, "step_size must be"),
        ({"ramp": 1.5}, r"ramp must be in \[0, 1\]; got 1.5"),
        ({"replays": 0}, "replays must be"),
        ({"method": "trades", "random_start": False}, "needs random_start"),
        ({"validation": 1.0}, "validation must be data, a share"),
        ({"validation": 0.001}, "must have samples to hold out"),
        ({"epochs": 0}, "epochs must be"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"bounds": (0.5, 1.0), "validation": None}, "x must lie inside bounds"),
        ({"seed": 2**64}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^(adversarial_train|pgd): .*{text}"):
        adversarial_train(network(), problem(), **{"eps": EPS, **options})


def test_wrong_data_is_named() -> None:
    x, y = problem()
    with pytest.raises(ValueError, match="for other data give validation"):
        adversarial_train(network(), [(x, y)], eps=EPS)
    with pytest.raises(ValueError, match="y must be int64"):
        adversarial_train(network(), (x, y.float()), eps=EPS, validation=None)
    with pytest.raises(ValueError, match="x must be float32"):
        adversarial_train(network(), ((255 * x).byte(), y), eps=EPS, validation=None)


# ---- on digits ----


@pytest.fixture(scope="module")
def some_digits() -> tuple[Data, Data]:
    train_set, test_set = digits()
    return (train_set.x, train_set.y), (test_set.x[:200], test_set.y[:200])


def small_cnn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)


def test_it_makes_a_network_robust(some_digits: tuple[Data, Data]) -> None:
    data, test = some_digits
    usual, robust = small_cnn(), small_cnn()
    train(usual, data, epochs=4, batch_size=64, optimizer=adam)
    training = adversarial_train(robust, data, eps=0.15, steps=3, epochs=7, batch_size=64, optimizer=adam)
    before, after = (brittle.attack(model, brittle.attacks.PGD(0.15), test) for model in (usual, robust))
    assert training.stopped is None
    assert before.robust_accuracy < 0.2
    assert after.robust_accuracy > 0.4
    assert after.clean_accuracy > 0.9


# ---- the attack's precision ----


@pytest.mark.parametrize("method", ["pgd", "fgsm", "trades"])
def test_an_attack_in_bfloat16_is_one_under_autocast_and_training_stays_as_it_is(method: str) -> None:
    x, y = problem()
    seen: list[torch.dtype] = []
    model = network()
    hook = model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with hook:
        training = adversarial_train(
            model, (x, y), eps=EPS, method=method, epochs=1, ramp=0, optimizer=sgd, validation=None,
            precision="bfloat16", batch_size=len(x),
        )  # fmt: skip
    assert set(seen) == {torch.bfloat16, torch.float32}
    assert seen[-1] == torch.float32
    assert all(part.dtype == torch.float32 for part in training.model.parameters())


def test_a_step_in_bfloat16_is_the_sign_of_that_gradient() -> None:
    x, y = problem()
    model = network().eval().requires_grad_(False)
    ascent = Ascent("linf", 1, False, (-9.0, 9.0), 0, half=True)
    adv = ascent(
        model, x, torch.arange(len(x)), 0, lambda z: F.cross_entropy(z, y, reduction="sum"), 0.2, 0.2
    )
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(leaf)
    assert logits.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), y, reduction="sum"), leaf)
    assert adv.dtype == torch.float32
    torch.testing.assert_close(adv, x + 0.2 * gradient.sign())


def test_free_has_no_passes_of_the_attack_alone() -> None:
    with pytest.raises(ValueError, match="precision must be 'float32' for method 'free'"):
        adversarial_train(network(), problem(), eps=EPS, method="free", precision="bfloat16")
    with pytest.raises(ValueError, match="precision must be"):
        adversarial_train(network(), problem(), eps=EPS, precision="float8")


# ---- batch-norms folded for the attack ----


class Normed(nn.Module):
    """Norms behind a convolution with a bias and one without, of which one has no parameters; one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.plain = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False)
        self.alone, self.head = nn.BatchNorm2d(6), nn.Linear(6 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.alone(torch.relu(self.plain(self.second(x))))
        return self.head(x.flatten(1))


def normed() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Normed()


def pictures(n: int) -> Data:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10


@pytest.mark.parametrize("last", [True, False])
def test_a_folded_copy_follows_the_model_through_training(last: bool) -> None:
    model = normed()
    x, y = pictures(32)
    folded = FoldedCopy.of(model)
    assert folded is not None
    assert all(part.training for part in model.modules())
    if last:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        copied: Any = folded.refreshed()
        with torch.no_grad():
            torch.testing.assert_close(copied(x), copy.deepcopy(model).eval()(x), rtol=1e-4, atol=1e-4)
        assert copied.first.weight.stride() == model.first.weight.stride()
    assert not any(part.requires_grad for part in copied.parameters())


def test_folding_changes_the_time_and_not_the_training() -> None:
    models = normed(), normed()
    for model, fold in zip(models, (True, False), strict=True):
        adversarial_train(
            model, pictures(96), eps=0.1, steps=2, epochs=2, validation=None, optimizer=sgd,
            fold_batchnorm=fold,
        )  # fmt: skip
    states = [model.state_dict() for model in models]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-3)


def test_nothing_is_folded_where_there_is_no_norm_or_a_hook_looks_on() -> None:
    assert FoldedCopy.of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())) is None
    model = normed()
    hook = model.norm.register_forward_hook(lambda *_: None)
    folded: Any = FoldedCopy.of(model)
    hook.remove()
    assert isinstance(folded.copy.norm, nn.BatchNorm2d)
    assert isinstance(folded.copy.plain, nn.Identity)
