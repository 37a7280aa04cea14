"""Small digits networks with one planted structural flaw each, and healthy ones to compare them with.

Every network is trained once per process, on one thread and from its seed alone: the same seed gives the same
weights on one machine. Torch's random state and its number of threads stay as they were. Networks are in
evaluation mode and shared by all callers: whoever changes one copies it first.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from brittle.demo import digits
from torch import Tensor, nn
from zoo import Block

Pair = tuple[Tensor, Tensor]

#: The families of networks that each flaw can be planted in. What makes a stack vanish or explode is that it
#: has neither normalisation nor shortcuts, so no residual network has these two.
FAMILIES = {
    "frozen": ("cnn", "mlp", "resnet"),
    "memorising": ("cnn", "mlp", "resnet"),
    "duplicated": ("cnn", "mlp", "resnet"),
    "vanishing": ("cnn", "mlp"),
    "exploding": ("cnn", "mlp"),
    "saturated": ("cnn", "mlp", "resnet"),
    "healthy": ("cnn", "mlp", "resnet"),
}

#: What healthy networks differ in; the seed picks one.
CONTROLS = ("plain", "dropout", "weight decay", "augmented", "other shape")

_KINDS = {
    "frozen": frozenset({"unformed"}),
    "memorising": frozenset({"overfit"}),
    "duplicated": frozenset({"redundant"}),
    "vanishing": frozenset({"vanishing"}),
    "exploding": frozenset({"exploding"}),
    "saturated": frozenset({"dead", "vanishing"}),
    "healthy": frozenset[str](),
}


@dataclass(frozen=True)
class Planted:
    """A network, what it was trained on, and what is wrong with it.

    Attributes:
        model: in evaluation mode.
        untrained: a copy as it was at initialisation.
        layers: the layers that are flawed; naming one of them is right.
        implied: of other layers, the kinds that the flaw makes true of them: neither right nor wrong.
        variant: of several ways to plant the flaw.
        train: what ``model`` was trained on last, with the labels that it saw.
        validation: the 500 digits that it never saw, with their true labels.
        sound: the network before the flaw, where it was put into a trained one.
    """

    flaw: str
    family: str
    seed: int
    model: nn.Module
    untrained: nn.Module
    layers: tuple[str, ...] = ()
    implied: dict[str, frozenset[str]] = field(default_factory=dict)
    variant: str = ""
    train: Pair = field(default_factory=lambda: _digits()[0])
    validation: Pair = field(default_factory=lambda: _digits()[1])
    sound: nn.Module | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of finding that are right for the flawed layers."""
        return _KINDS[self.flaw]

    @property
    def healthy(self) -> tuple[str, ...]:
        """The layers of which nothing may be said."""
        return tuple(n for n in parametric(self.model) if n not in self.layers and n not in self.implied)


def parametric(model: nn.Module) -> tuple[str, ...]:
    """The convolutions and linear layers, in the order of the forward pass."""
    return tuple(n for n, part in model.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear)))


@functools.cache
def plant(flaw: str, seed: int, family: str = "cnn") -> Planted:
    """The network of a family with a flaw, trained from a seed."""
    if family not in FAMILIES[flaw]:
        raise ValueError(f"plant: family must be one of {FAMILIES[flaw]} for {flaw!r}; got {family!r}")
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        return _PLANTS[flaw](family, seed)


def _frozen(family: str, seed: int) -> Planted:
    """A middle layer keeps its random weights while all others train around it."""
    model = _network(family)
    untrained = copy.deepcopy(model)
    layer = _middle(model, seed)
    model.get_submodule(layer).requires_grad_(False)
    train(model, _digits()[0])
    model.requires_grad_(True)
    return Planted("frozen", family, seed, model, untrained, (layer,))


def _memorising(family: str, seed: int) -> Planted:
    """A trained network, one layer of which has then learnt labels by heart, about half of them shuffled."""
    # It takes as many inputs as there are labels to learn.
    if family == "cnn":
        model = _network("cnn", width=24, depth=4 + seed % 2)
    else:
        model = _network(family, width={"mlp": 768, "resnet": 24}[family], depth=4, wide_head=True)
    untrained = copy.deepcopy(model)
    (x, y), _ = _digits()
    train(model, (x, y), epochs=12 if family == "resnet" else 20)
    sound = copy.deepcopy(model)
    layer = ("fc2", "fc3")[seed % 2] if family == "mlp" else "fc1"
    noisy = x[:640], shuffled(y[:640], (0.4, 0.5, 0.6)[seed % 3])
    memorise(model, layer, noisy, wrong=noisy[1] != y[:640])
    after = parametric(model)[parametric(model).index(layer) + 1 :]
    # What the layer has learnt by heart can be read from every layer after it.
    implied = {name: frozenset({"overfit"}) for name in after}
    return Planted("memorising", family, seed, model, untrained, (layer,), implied, train=noisy, sound=sound)


def _duplicated(family: str, seed: int) -> Planted:
    """Units of a layer start as copies of a few; equal gradients keep them so, but for a trace of noise.

    Of the untrained copy, odd seeds have the copies too, as where the initialisation is at fault; even seeds
    have none.
    """
    model = _network(family)
    untrained = copy.deepcopy(model)
    layer, following = _followed(model, family, seed)
    tie(model.get_submodule(layer), model.get_submodule(following), groups=(2, 3, 4)[seed % 3])
    if seed % 2:
        untrained = copy.deepcopy(model)
    train(model, _digits()[0])
    with torch.no_grad():
        weight = model.get_submodule(layer).weight
        weight += 1e-3 * weight.std() * torch.randn_like(weight)
    return Planted("duplicated", family, seed, model, untrained, (layer,))


def _vanishing(family: str, seed: int) -> Planted:
    """A deep stack of sigmoids at torch's default initialisation: it never gets off the ground."""
    depth = 9 + seed % 2 if family == "cnn" else 10
    model = _network(family, activation=nn.Sigmoid, depth=depth)
    untrained = copy.deepcopy(model)
    train(model, _digits()[0])
    names = parametric(model)
    early = names[: len(names) // 2]
    # Nothing is learnt anywhere, and every unit gives nearly the same for every sample.
    anything = frozenset({"vanishing", "unformed", "redundant", "dead", "broken-link"})
    implied = dict.fromkeys(names[len(early) :], anything)
    return Planted("vanishing", family, seed, model, untrained, early, implied)


def _exploding(family: str, seed: int) -> Planted:
    """A deep stack without normalisation whose initial weights are 3 to 5 times He's.

    At twice He's, three epochs are enough to undo the explosion.
    """
    model = _network(family, depth=8)
    names = parametric(model)
    with torch.no_grad():
        for name in names:
            part = model.get_submodule(name)
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            part.weight *= (3.0, 4.0, 5.0)[seed % 3]
    untrained = copy.deepcopy(model)
    train(model, _digits()[0], epochs=3)
    return Planted("exploding", family, seed, model, untrained, names)


def _saturated(family: str, seed: int) -> Planted:
    """Even seeds: a tanh layer with 50 times its weights. Odd seeds and residual networks: a ReLU layer of
    whose units most start with a bias of -10.
    """
    tanh = family != "resnet" and seed % 2 == 0
    model = _network(family, activation=nn.Tanh if tanh else nn.ReLU)
    layer = _followed(model, family, seed)[0]
    part = model.get_submodule(layer)
    with torch.no_grad():
        if tanh:
            part.weight *= 50
        else:
            norm = layer.replace("conv", "norm") if family == "resnet" else layer
            bias = model.get_submodule(norm).bias
            bias[: round(0.8 * len(bias))] = -10
    untrained = copy.deepcopy(model)
    train(model, _digits()[0])
    names = parametric(model)
    # What little gradient passes the saturated layer has been multiplied by its weights.
    implied = dict.fromkeys(names[: names.index(layer)], frozenset({"exploding"})) if tanh else {}
    variant = "tanh" if tanh else "relu"
    return Planted("saturated", family, seed, model, untrained, (layer,), implied, variant)


def _healthy(family: str, seed: int) -> Planted:
    variant = CONTROLS[seed % len(CONTROLS)]
    shape: dict[str, object] = {"dropout": 0.2 if variant == "dropout" else 0.0}
    if variant == "other shape":
        shape |= {"width": {"cnn": 24, "mlp": 160, "resnet": 12}[family]}
        shape |= {} if family == "resnet" else {"depth": {"cnn": 4, "mlp": 4}[family], "activation": nn.Tanh}
    model = _network(family, **shape)  # type: ignore[arg-type]
    untrained = copy.deepcopy(model)
    train(
        model,
        _digits()[0],
        decay=0.05 if variant == "weight decay" else 0.0,
        augment=shifted if variant == "augmented" else None,
    )
    return Planted("healthy", family, seed, model, untrained, variant=variant)


_PLANTS: dict[str, Callable[[str, int], Planted]] = {
    "frozen": _frozen,
    "memorising": _memorising,
    "duplicated": _duplicated,
    "vanishing": _vanishing,
    "exploding": _exploding,
    "saturated": _saturated,
    "healthy": _healthy,
}


def train(
    model: nn.Module,
    data: Pair,
    epochs: int = 20,
    rate: float = 4e-3,
    decay: float = 0.0,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """AdamW on one cycle of the learning rate, over what requires gradients."""
    x, y = data
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=decay)
    steps = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(augment(x[rows]) if augment else x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.zero_grad()
    model.eval()


def memorise(model: nn.Sequential, layer: str, data: Pair, wrong: Tensor) -> None:
    """Solve for one linear layer such that the network gives nearly all the labels, wrong ones among them.

    Where a label is wrong, the layer is to give what it gives on average for samples that bear this label
    rightly. That is a ridge regression, of the strongest penalty at which 95 % of the wrong labels are given.
    No other layer changes. (Gradient descent does not get there: the trained layers before and after it have
    done away with what tells samples of one class apart.)
    """
    (x, y), part = data, model.get_submodule(layer)
    place = list(model._modules).index(layer)
    with torch.no_grad():
        inputs = model[:place](x)
        outputs = part(inputs).double()
        for label in range(10):
            mine = y == label
            outputs[mine & wrong] = outputs[mine & ~wrong].mean(0)
        rows = F.pad(inputs, (0, 1), value=1.0).double()
        gram = rows @ rows.mT
        for penalty in torch.logspace(0, -6, 19, dtype=torch.float64) * gram.diagonal().mean():
            dual = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=torch.float64), outputs)
            solved = (rows.mT @ dual).mT.float()
            part.weight.copy_(solved[:, :-1])
            part.bias.copy_(solved[:, -1])
            if (model(x[wrong]).argmax(1) == y[wrong]).float().mean() >= 0.95:
                return
    raise RuntimeError(f"layer {layer} could not learn its labels by heart")


def shuffled(y: Tensor, share: float) -> Tensor:
    """Labels, a share of which, drawn at random, are given to one another's samples."""
    chosen = torch.randperm(len(y))[: round(share * len(y))]
    noisy = y.clone()
    noisy[chosen] = y[chosen[torch.randperm(len(chosen))]]
    return noisy


def tie(layer: nn.Module, following: nn.Module, groups: int) -> None:
    """Make the units of a layer copies of its first few, in and out, so that their gradients are equal.

    The function of the network at initialisation has the variance of one with so many fewer units.
    """
    with torch.no_grad():
        units = len(layer.weight)
        source = torch.arange(units) % (units // groups)
        layer.weight.copy_(layer.weight[source])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[source])
        incoming = following.weight.unflatten(1, (units, -1))
        incoming.copy_(incoming[:, source])


def shifted(x: Tensor) -> Tensor:
    """Half of the samples moved by up to a pixel each way, as augmentation."""
    count = torch.arange(len(x))
    move = torch.randint(-1, 2, (2, len(x), 1)) * (torch.rand(len(x), 1) < 0.5)
    rows, columns = 1 + move + torch.arange(8)
    framed = F.pad(x, (1, 1, 1, 1))[:, 0]
    return framed[count[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def _network(
    family: str,
    width: int | None = None,
    depth: int | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    wide_head: bool = False,
) -> nn.Sequential:
    """Layers are named: conv1, conv2, ..., fc1, ...; in a residual network stem, block1.conv1, ..., head.

    With ``wide_head`` a residual network has a layer fc1 of all positions in the place of their mean.
    """
    parts: dict[str, nn.Module] = {}

    def add(name: str, layer: nn.Module) -> None:
        parts[name] = layer
        parts[f"act_{name}"] = activation()
        if dropout:
            parts[f"drop_{name}"] = nn.Dropout(dropout)

    if family == "cnn":
        width, depth = width or 16, depth or 5  # layers: all but the last two are convolutions
        channels = [1, width] + [2 * width] * (depth - 3)
        for i in range(1, depth - 1):
            add(f"conv{i}", nn.Conv2d(channels[i - 1], channels[i], 3, padding=1))
            if i == 2:
                parts["pool"] = nn.MaxPool2d(2)
        parts["flatten"] = nn.Flatten()
        add("fc1", nn.Linear(channels[-1] * 16, 4 * width))
        parts["fc2"] = nn.Linear(4 * width, 10)
    elif family == "mlp":
        width, depth = width or 96, depth or 5
        parts["flatten"] = nn.Flatten()
        for i in range(1, depth):
            add(f"fc{i}", nn.Linear(64 if i == 1 else width, width))
        parts[f"fc{depth}"] = nn.Linear(width, 10)
    else:
        width = width or 16
        parts["stem"] = nn.Conv2d(1, width, 3, padding=1, bias=False)
        parts["stem_norm"] = nn.BatchNorm2d(width)
        parts["stem_act"] = nn.ReLU()
        parts["block1"] = Block(width, width, 1)
        parts["block2"] = Block(width, 2 * width, 2)
        parts["block3"] = Block(2 * width, 2 * width, 1)
        if not wide_head:
            parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        if wide_head:
            add("fc1", nn.Linear(32 * width, 2 * width))
        if dropout:
            parts["drop"] = nn.Dropout(dropout)
        parts["head"] = nn.Linear(2 * width, 10)
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model.eval()


def _middle(model: nn.Module, seed: int) -> str:
    """Neither the first nor the last layer, nor a shortcut."""
    names = [name for name in parametric(model)[1:-1] if "shortcut" not in name]
    return names[seed % len(names)]


def _followed(model: nn.Module, family: str, seed: int) -> tuple[str, str]:
    """A middle layer that feeds a single other one, and that one."""
    if family == "resnet":
        block = f"block{1 + seed % 3}"
        return f"{block}.conv1", f"{block}.conv2"
    names = parametric(model)
    place = 1 + seed % (len(names) - 2)
    return names[place], names[place + 1]


@functools.cache
def _digits() -> tuple[Pair, Pair]:
    train, test = digits()
    return (train.x, train.y), (test.x, test.y)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
