"""Whole attacks and the verdicts they give, against the peers' own and against the model's bare passes.

No random starts on either side, and the peers' settings are ours. A note beside a ratio tells the robust
accuracy that each side found and the evaluations it spent, in forwards + backwards of the model per sample.
"""

import functools
import itertools
import math
from collections.abc import Callable

import brittle
import brittle.demo
import pytest
import torch
import zoo
from brittle.attacks import PGD
from conftest import Versus
from torch import Tensor, nn

EPS, STEP = 8 / 255, 2 / 255
BARE = "bare forward + input gradient"

Images = tuple[Tensor, Tensor]


def network() -> nn.Module:
    """Untrained, its logits centred, so that predictions hang on the input and can be changed."""
    return _centred(
        lambda: nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    )


def resnet18(width: int, channels: int = 3) -> nn.Module:
    """ResNet-18 for 32 x 32 pixels (64 is its usual width), untrained, its logits centred."""
    widths = [width << stage for stage in range(4)]

    def make() -> nn.Module:
        blocks = [zoo.Block(width, width, 1), zoo.Block(width, width, 1)]
        for narrow, wide in itertools.pairwise(widths):
            blocks += [zoo.Block(narrow, wide, 2), zoo.Block(wide, wide, 1)]
        stem = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
        return nn.Sequential(*stem, *blocks, *head)

    return _centred(make, channels)


def _centred(make: Callable[[], nn.Sequential], channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    model.train()
    with torch.no_grad():
        for _ in range(20):  # batch-norm's statistics
            model(torch.rand(32, channels, 32, 32))
        model.eval()
        model[-1].bias -= model(torch.rand(256, channels, 32, 32)).mean(0)
    return model


def images(model: nn.Module, count: int, device: torch.device) -> Images:
    """Noise, with the model's own answers as labels."""
    x = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        return x, model(x).argmax(1)


def digits(device: torch.device, count: int = 500) -> Images:
    x, y = zoo.test_digits()
    return x[:count].to(device), y[:count].to(device)


def passes(model: nn.Module, data: Images, steps: int) -> None:
    """Forward and input gradient, nothing else."""
    x, y = data
    model.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    for _ in range(steps):
        torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    model.requires_grad_(True)


def robust_accuracy(model: nn.Module, adv: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(adv).argmax(1) == y).double().mean().item()


def spent(result: brittle.AttackResult) -> str:
    forwards, backwards = (n.double().mean() for n in (result.forwards, result.backwards))
    return f"robust {result.robust_accuracy:.3f}, {forwards:.1f} + {backwards:.1f}"


# ---- every step for every sample: what the loop costs beside the model's own passes ----


@pytest.mark.parametrize("name", ["small CNN", "ResNet-18 of width 16"])
def bench_every_step(versus: Versus, device: torch.device, name: str) -> None:
    model = (network() if name == "small CNN" else resnet18(16)).to(device)
    x, y = images(model, 128 if name == "small CNN" or device.type == "cuda" else 64, device)
    settings = {"steps": 40, "step_size": STEP, "random_start": False}
    versus(
        f"PGD-40, every step, {name}",
        lambda: brittle.pgd(model, x, y, EPS, early_stop=False, **settings),
        {BARE: lambda: passes(model, (x, y), 40)},
        targets={BARE: ">= 0.971"},  # at most 1.03 of its time
        rounds=5,
        warm_up=1,
    )


def bench_as_torchattacks(versus: Versus, device: torch.device) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model = network().to(device)
    x, y = images(model, 128, device)
    peer = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=10, random_start=False)
    settings = {"steps": 10, "step_size": STEP, "random_start": False}
    versus(
        "PGD-10, every step, as torchattacks, small CNN",
        lambda: brittle.pgd(model, x, y, EPS, compat="torchattacks", **settings),
        {BARE: lambda: passes(model, (x, y), 10), "torchattacks": lambda: peer(x, y)},
        rounds=7,
        warm_up=1,
    )


@pytest.mark.parametrize("form", ["bare module", "Target", "Target in bfloat16"])
def bench_prepared(versus: Versus, device: torch.device, form: str) -> None:
    """Equal steps on the three forms of a model that an attack can be handed."""
    torchattacks = pytest.importorskip("torchattacks")
    model = resnet18(64).to(device)
    x, y = images(model, 32 if device.type == "cpu" else 256, device)
    settings = {"steps": 10, "step_size": STEP, "random_start": False}
    peer = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=10, random_start=False)
    handed = {
        "bare module": lambda: model,
        "Target": lambda: brittle.Target(model),
        "Target in bfloat16": lambda: brittle.Target(model, precision="bfloat16"),
    }[form]()
    versus(
        f"PGD-10, every step, ResNet-18, {form}",
        lambda: brittle.pgd(handed, x, y, EPS, early_stop=False, **settings),
        {"torchattacks": lambda: peer(x, y)},
        rounds=5,
        warm_up=1,
    )


# ---- verdicts ----


def pgd(steps: int, share: float) -> PGD:
    """At eps 0.2, with steps of a share of it."""
    return PGD(0.2, steps=steps, step_size=0.2 * share, random_start=False)


@pytest.mark.parametrize(
    ("name", "attack", "targets", "most"),
    [
        ("small_resnet", pgd(40, 1 / 4), {"torchattacks": ">= 3"}, math.inf),
        ("small_resnet", pgd(40, 1 / 16), {"torchattacks": ">= 3"}, math.inf),
        ("adversarial_digits_cnn", pgd(40, 1 / 4), {"torchattacks": ">= 1.5"}, math.inf),
        ("adversarial_digits_cnn", pgd(40, 1 / 16), {"torchattacks": ">= 1.5"}, math.inf),
        ("adversarial_digits_cnn", pgd(100, 1 / 4), {"torchattacks": ">= 4", "ART": ">= 10"}, 20),
        ("digits_cnn", pgd(100, 1 / 4), {"torchattacks": ">= 4", "ART": ">= 10"}, 6),
    ],
    ids=["resnet", "resnet-small", "adversarial", "adversarial-small", "adversarial-100", "standard-100"],
)
def bench_verdict(
    versus: Versus, device: torch.device, name: str, attack: PGD, targets: dict[str, str], most: float
) -> None:
    """Robust accuracy on the 500 test digits; ``most`` evaluations per sample are allowed."""
    peers = pytest.importorskip("peers")
    model = zoo.MODELS[name]().to(device)
    x, y = digits(device)
    target = brittle.Target(model)

    def ours() -> brittle.AttackResult:
        return brittle.attack(target, attack, (x, y))

    calls = {
        "torchattacks": peers.torchattacks_pgd,
        "foolbox": peers.foolbox_pgd,
        "cleverhans": peers.cleverhans_pgd,
        "ART": peers.art_pgd,
    }
    if name != "small_resnet":  # the slower runs: without the peers that no target names
        calls = {peer: call for peer, call in calls.items() if peer in targets}
    others = {
        peer: functools.partial(call, model, x, y, attack.eps, attack.step_size, attack.steps)
        for peer, call in calls.items()
    }
    found = ours()
    theirs = {peer: robust_accuracy(model, call(), y) for peer, call in others.items()}
    assert found.robust_accuracy <= min(theirs.values())
    assert found.backwards.double().mean() <= most
    count = f"{attack.steps} + {attack.steps}"
    versus(
        f"PGD-{attack.steps} verdict, step eps/{attack.eps / attack.step_size:.0f}, {name.replace('_', ' ')}",
        ours,
        others,
        targets=targets,
        rounds=5,
        notes={peer: f"{spent(found)}; theirs {robust:.3f}, {count}" for peer, robust in theirs.items()},
        warm_up=0,  # all have run once
    )


@functools.cache
def wide_resnet() -> nn.Module:
    """ResNet-18 of its usual width, trained for one epoch on the digits at 16 x 16 pixels."""
    model = resnet18(64, channels=1).train()
    train, _ = brittle.demo.digits()
    optimizer = torch.optim.Adam(model.parameters(), 5e-4)
    for rows in torch.randperm(len(train.x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(enlarged(train.x[rows])), train.y[rows]).backward()
        optimizer.step()
    return model.eval()


def enlarged(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2)


def bench_bfloat16_search(versus: Versus, device: torch.device) -> None:
    """The search in bfloat16, every success certified in float32."""
    peers = pytest.importorskip("peers")
    model = wide_resnet().to(device)
    x, y = digits(device, 96 if device.type == "cpu" else 500)
    x = enlarged(x)
    attack = PGD(0.05, steps=10, step_size=0.0125, random_start=False)
    single, half = brittle.Target(model), brittle.Target(model, precision="bfloat16")

    def ours() -> brittle.AttackResult:
        return brittle.attack(half, attack, (x, y))

    def full() -> brittle.AttackResult:
        return brittle.attack(single, attack, (x, y))

    def theirs() -> Tensor:
        return peers.torchattacks_pgd(model, x, y, attack.eps, attack.step_size, attack.steps)

    mine, with_single = ours(), full()
    robust = robust_accuracy(model, theirs(), y)
    versus(
        "PGD-10 verdict, bfloat16 search, ResNet-18",
        ours,
        {"float32 search": full, "torchattacks": theirs},
        targets={"float32 search": ">= 1.7"},
        rounds=5,
        notes={
            "float32 search": f"{spent(mine)}; theirs {spent(with_single)}",
            "torchattacks": f"{spent(mine)}; theirs {robust:.3f}, 10 + 10",
        },
        warm_up=0,
    )


# ---- curves ----


def bench_fgsm_curve(versus: Versus, device: torch.device) -> None:
    """1 forward-backward and 8 forwards, against 8 of each and 8 forwards."""
    torchattacks = pytest.importorskip("torchattacks")
    model = network().to(device)
    x, y = images(model, 256, device)
    epsilons = [k / 2550 for k in (1, 2, 4, 6, 8, 12, 16, 32)]

    def ours() -> list[float]:
        return brittle.evaluation.accuracy_vs_epsilon(model, (x, y), epsilons).accuracy

    def theirs() -> list[float]:
        return [robust_accuracy(model, torchattacks.FGSM(model, eps=eps)(x, y), y) for eps in epsilons]

    note = f"accuracy in the middle: ours {ours()[4]:.3f}, theirs {theirs()[4]:.3f}"
    versus(
        "FGSM curve, 8 epsilons, small CNN",
        ours,
        {"torchattacks": theirs},
        targets={"torchattacks": ">= 2"},
        rounds=7,
        notes={"torchattacks": note},
        warm_up=1,
    )


@pytest.mark.parametrize("name", ["digits_cnn", "adversarial_digits_cnn"])
def bench_pgd_curve(versus: Versus, device: torch.device, name: str) -> None:
    """A curve goes on at the next epsilon with those that withstood the last."""
    peers = pytest.importorskip("peers")
    model = zoo.MODELS[name]().to(device)
    x, y = digits(device, 250)
    target = brittle.Target(model)
    epsilons = [round(0.05 * k, 2) for k in range(1, 9)]
    attack = PGD(steps=20, random_start=False)

    def ours() -> brittle.evaluation.Curve:
        return brittle.evaluation.accuracy_vs_epsilon(target, (x, y), epsilons, attack)

    def once(eps: float) -> brittle.AttackResult:
        return brittle.attack(target, PGD(eps, steps=20, random_start=False), (x, y))

    def theirs() -> list[float]:
        step = attack.step_length
        advs = (peers.torchattacks_pgd(model, x, y, eps, step(eps), 20) for eps in epsilons)
        return [robust_accuracy(model, adv, y) for adv in advs]

    curve, robust = ours(), theirs()
    mine = f"{curve.forwards / len(x):.1f} + {curve.backwards / len(x):.1f}"
    middle, largest = f"attack at {epsilons[3]:.2f}", f"attack at {epsilons[-1]:.2f}"
    once_by_torchattacks = f"torchattacks at {epsilons[3]:.2f}"
    notes = {
        middle: f"{mine}; theirs {spent(once(epsilons[3]))}",
        largest: f"{mine}; theirs {spent(once(epsilons[-1]))}",
        "torchattacks at each": f"robust {curve.accuracy[3]:.3f} in the middle; theirs {robust[3]:.3f}",
    }
    versus(
        f"PGD-20 curve, 8 epsilons, {name.replace('_', ' ')}",
        ours,
        {
            middle: lambda: once(epsilons[3]),
            largest: lambda: once(epsilons[-1]),
            once_by_torchattacks: lambda: peers.torchattacks_pgd(
                model, x, y, epsilons[3], attack.step_length(epsilons[3]), 20
            ),
            "torchattacks at each": theirs,
        },
        # At most three times the time of one.
        targets={middle: ">= 0.333", once_by_torchattacks: ">= 0.333"},
        rounds=5,
        notes=notes,
        warm_up=0,
    )
