"""Networks with a bug that a check before training should find, and healthy ones of the same kinds.

    python tests/planted_bugs.py [SEEDS]

prints how often each check finds its bug, and how often any check accuses a healthy network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from brittle.diagnosis import checks
from brittle.diagnosis.checks import Verdict
from brittle.sources import digits
from torch import Tensor, nn


def mlp() -> nn.Module:
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    return nn.Sequential(nn.Flatten(), *layers)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: zoo._cnn(16),
    "resnet": zoo._resnet,
    "vit": lambda: zoo._vit(32),
    "mlp": mlp,
}


def healthy(name: str, seed: int) -> nn.Sequential:
    """Freshly initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]()
    assert isinstance(model, nn.Sequential)
    return model


@dataclass
class Setup:
    """What is handed to a check."""

    model: nn.Module
    data: tuple[Tensor, Tensor]
    options: dict[str, Any] = field(default_factory=dict)


def setup(name: str, seed: int) -> Setup:
    """A healthy network and digits in an order of their own."""
    train, _ = digits()
    order = torch.randperm(len(train.x), generator=torch.Generator().manual_seed(seed))
    return Setup(healthy(name, seed), (train.x[order], train.y[order]))


CHECKS: dict[str, Callable[..., Verdict]] = {
    "placement": checks.placement,
    "output_kind": checks.output_kind,
    "initial_loss": checks.initial_loss,
    "weights_and_gradients": checks.weights_and_gradients,
    "overfit_one_batch": checks.overfit_one_batch,
}


class Wrapped(nn.Module):
    """A model whose inputs and outputs something is done to."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """As it should be."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def step_without_zero_grad(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def step_with_permuted_labels(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    return step(model, optimizer, x, y[torch.randperm(len(y))])


def _with(s: Setup, **changes: Any) -> Setup:
    model, data = changes.pop("model", s.model), changes.pop("data", s.data)
    return Setup(model, data, {**s.options, **changes})


def _body_frozen(s: Setup) -> Setup:
    s.model[:-1].requires_grad_(False)  # type: ignore[index]
    return s


def _all_frozen(s: Setup) -> Setup:
    s.model.requires_grad_(False)
    return s


def _inserted(s: Setup, layer: nn.Module) -> Setup:
    """``layer`` before the last one."""
    return _with(s, model=nn.Sequential(*s.model[:-1], layer, s.model[-1]))  # type: ignore[index]


def _head(s: Setup, change: Callable[[nn.Linear], object]) -> Setup:
    with torch.no_grad():
        change(s.model[-1])  # type: ignore[index]
    return s


def _second_matrix(s: Setup, change: Callable[[Tensor], object]) -> Setup:
    """A change of the second weight of a linear or convolutional layer."""
    weights = [m.weight for m in s.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        change(weights[1])
    return s


def _with_unused_layer(s: Setup) -> Setup:
    model = Wrapped(s.model)
    model.unused = nn.Linear(4, 4)
    return _with(s, model=model)


def _with_broken_buffer(s: Setup) -> Setup:
    s.model.register_buffer("scale", torch.tensor([1.0, torch.inf]))
    return s


def _trained_before(s: Setup) -> Setup:
    optimizer = torch.optim.Adam(s.model.parameters(), 3e-3)
    for rows in torch.arange(1280).repeat(3).split(64):
        step(s.model, optimizer, s.data[0][rows], s.data[1][rows])
    s.model.zero_grad()
    return s


#: Of each bug: the check that is to find it, how it is planted, and in which kinds of network it is one.
BUGS: dict[str, tuple[str, Callable[[Setup], Setup], tuple[str, ...]]] = {
    "all parameters frozen": ("overfit_one_batch", _all_frozen, ()),
    "all but the last layer frozen": ("overfit_one_batch", _body_frozen, ()),
    "optimizer has the last layer only": (
        "overfit_one_batch",
        lambda s: _with(s, optimizer=torch.optim.Adam(s.model[-1].parameters())),  # type: ignore[index]
        (),
    ),
    "optimizer of another model": (
        "overfit_one_batch",
        lambda s: _with(s, optimizer=torch.optim.Adam(healthy("cnn", 99).parameters())),
        (),
    ),
    "learning rate of zero": (
        "overfit_one_batch",
        lambda s: _with(s, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)),
        (),
    ),
    "labels permuted in each step": (
        "overfit_one_batch",
        lambda s: _with(s, train_step=step_with_permuted_labels),
        (),
    ),
    "zero_grad missing": (
        "overfit_one_batch",
        lambda s: _with(s, train_step=step_without_zero_grad),
        (),
    ),
    "logits detached": (
        "overfit_one_batch",
        lambda s: _with(s, model=Wrapped(s.model, after=torch.Tensor.detach)),
        (),
    ),
    "features detached": ("overfit_one_batch", lambda s: _inserted(s, Detached()), ()),
    "network dead": ("overfit_one_batch", lambda s: _inserted(s, Nothing()), ()),
    "input ignored": (
        "overfit_one_batch",
        lambda s: _with(s, model=Wrapped(s.model, before=torch.zeros_like)),
        (),
    ),
    "softmax before cross-entropy, in training": (
        "overfit_one_batch",
        lambda s: _with(s, model=nn.Sequential(s.model, nn.Softmax(1))),
        (),
    ),
    "softmax before cross-entropy": (
        "output_kind",
        lambda s: _with(s, model=nn.Sequential(s.model, nn.Softmax(1)), loss_fn=F.cross_entropy),
        (),
    ),
    "sigmoid behind the logits": (
        "output_kind",
        lambda s: _with(s, model=nn.Sequential(s.model, nn.Sigmoid())),
        (),
    ),
    "tanh behind the logits": (
        "output_kind",
        lambda s: _with(s, model=nn.Sequential(s.model, nn.Tanh())),
        (),
    ),
    "ReLU behind the logits": (
        "output_kind",
        lambda s: _with(s, model=nn.Sequential(s.model, nn.ReLU())),
        (),
    ),
    "NLLLoss of logits": ("output_kind", lambda s: _with(s, loss_fn=F.nll_loss), ()),
    "last layer's weights x 100": (
        "initial_loss",
        lambda s: _head(s, lambda layer: layer.weight.mul_(100)),
        (),
    ),
    "last layer's bias off": ("initial_loss", lambda s: _head(s, lambda layer: layer.bias[3].add_(6)), ()),
    "inputs from 0 to 255": (
        "initial_loss",
        lambda s: _with(s, data=(255 * s.data[0], s.data[1])),
        ("cnn", "mlp"),
    ),
    "trained before": ("initial_loss", _trained_before, ()),
    "a weight matrix x 10": (
        "weights_and_gradients",
        lambda s: _second_matrix(s, lambda weight: weight.mul_(10)),
        (),
    ),
    "a weight matrix x 0.01": (
        "weights_and_gradients",
        lambda s: _second_matrix(s, lambda weight: weight.mul_(0.01)),
        (),
    ),
    "a weight matrix constant": (
        "weights_and_gradients",
        lambda s: _second_matrix(s, lambda weight: weight.fill_(0.1)),
        (),
    ),
    "a weight NaN": (
        "weights_and_gradients",
        lambda s: _second_matrix(s, lambda weight: weight.view(-1)[0].fill_(torch.nan)),
        (),
    ),
    "a buffer infinite": ("weights_and_gradients", _with_broken_buffer, ()),
    "features zero, gradients too": ("weights_and_gradients", lambda s: _inserted(s, Nothing()), ()),
    "features scaled by 1e-6": (
        "weights_and_gradients",
        lambda s: _with(
            s,
            model=nn.Sequential(s.model[0], Wrapped(nn.Identity(), after=_whisper), *s.model[1:]),  # type: ignore[index]
        ),
        ("cnn", "vit"),
    ),
    "a layer unused": ("weights_and_gradients", _with_unused_layer, ()),
    "a layer elsewhere": ("placement", lambda s: (s.model[-1].to("meta"), s)[1], ()),  # type: ignore[index]
    "data elsewhere": (
        "placement",
        lambda s: _with(s, data=(s.data[0].to("meta"), s.data[1].to("meta"))),
        (),
    ),
    "inputs float64": ("placement", lambda s: _with(s, data=(s.data[0].double(), s.data[1])), ()),
    "inputs uint8": (
        "placement",
        lambda s: _with(s, data=((16 * s.data[0]).to(torch.uint8), s.data[1])),
        (),
    ),
}


def _whisper(x: Tensor) -> Tensor:
    """The same values, with a millionth of the gradient."""
    return x.detach() + 1e-6 * (x - x.detach())


def found(bug: str, name: str, seed: int) -> Verdict:
    """What the check that is to find the bug says."""
    check, plant, _ = BUGS[bug]
    planted = plant(setup(name, seed))
    return CHECKS[check](planted.model, planted.data, **planted.options)


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    print(f"{'healthy, accused':<24}" + "".join(f"{name:>10}" for name in ARCHITECTURES))
    for check, call in CHECKS.items():
        alarms = []
        for name in ARCHITECTURES:
            setups = [setup(name, seed) for seed in range(seeds)]
            alarms.append(sum(not call(s.model, s.data).ok for s in setups))
        print(f"{check:<24}" + "".join(f"{count:>10}" for count in alarms), flush=True)
    print(f"\n{'bug':<44}{'check':<24}found")
    for bug, (check, _, kinds) in sorted(BUGS.items(), key=lambda bug: bug[1][0] == "overfit_one_batch"):
        runs = [(name, seed) for name in kinds or ARCHITECTURES for seed in range(seeds)]
        missed = [name for name, seed in runs if found(bug, name, seed).ok]
        shown = f"  missed: {', '.join(missed)}" if missed else ""
        print(f"{bug:<44}{check:<24}{len(runs) - len(missed)} of {len(runs)}{shown}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
