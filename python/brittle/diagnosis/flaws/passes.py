"""One pass over a data set: what every layer computes, what the gradient tells it, what an attack does to it.

Everything is reduced batch by batch to what the judgements need: a sketch of each layer's features for each
sample, and sums over units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from brittle import _checks as check
from brittle.attacks.pgd import pgd
from brittle.data import Data, batches
from brittle.diagnosis.flaws.capture import OP, Capture, parameters_of, units_of
from brittle.diagnosis.flaws.sketch import sketch
from brittle.diagnosis.flaws.sums import Means, Units, UnitSums
from brittle.noise import uniform
from brittle.target import Target

# Features whose variance is less than this of their square are one vector and rounding errors.
_CONSTANT = 1e-10

#: Samples that are attacked.
ATTACKED = 256
ATTACK_STEPS = 5


@dataclass
class Seen:
    """What a pass gave. N samples; everything is on the CPU.

    Attributes:
        x: ``[N, d]``, a sketch of the inputs.
        y: int64 ``[N]``.
        logits: ``[N, C]``.
        features: by layer ``[N, d]``, a sketch of what it passes on, after its norm and activation.
        untrained: the same of the untrained copy.
        parents: by layer the layers that feed it.
        units: by layer.
        signal: by layer, and "" for the inputs, the root mean square over samples of the length of the
            gradient of the model's outputs with respect to the layer's output.
        deviation: by layer the same of its output less the mean output.
        gain: by layer its outputs' deviation over its inputs', unit by unit.
        largest: by layer the largest magnitude of its output.
        updates: by layer, for each batch, the length of the training loss's gradient with respect to the
            weights over the length of the weights.
        moved: by perturbation ("attack", "noise") and layer ("" for the inputs) the root mean square
            displacement of what it passes on, over its deviation from the mean.
        cosine: likewise the mean cosine of a sample's features with its perturbed ones.
        accuracy: of the model on clean and perturbed samples.
        repeated: layers that ran more than once in a pass.
    """

    x: Tensor
    y: Tensor
    logits: Tensor
    features: dict[str, Tensor]
    untrained: dict[str, Tensor]
    parents: dict[str, tuple[str, ...]]
    units: dict[str, Units]
    signal: dict[str, float]
    deviation: dict[str, float]
    gain: dict[str, float]
    largest: dict[str, float]
    updates: dict[str, list[float]]
    moved: dict[str, dict[str, float]]
    cosine: dict[str, dict[str, float]]
    accuracy: dict[str, float]
    repeated: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """In running order."""
        return tuple(self.features)


class Pass:
    """Goes through a data set once; see :func:`look`."""

    def __init__(
        self, target: Target, untrained: nn.Module | None, layers: tuple[str, ...] | None, seed: int
    ) -> None:
        self.target = target
        self.untrained = untrained
        self.layers = layers
        self.seed = seed
        self.x: list[Tensor] = []
        self.y: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.features: dict[str, list[Tensor]] = {}
        self.before: dict[str, list[Tensor]] = {}
        self.updates: dict[str, list[float]] = {}
        self.parents: dict[str, tuple[str, ...]] = {}
        self.children: dict[str, str] = {}
        self.sums: dict[str, UnitSums] = {}
        self.signal = Means()
        self.moved: dict[str, Means] = {"attack": Means(), "noise": Means()}
        self.cosine: dict[str, Means] = {"attack": Means(), "noise": Means()}
        self.right: dict[str, list[int]] = {"clean": [], "attack": [], "noise": []}
        self.repeated: set[str] = set()
        self.attacked = 0

    def forward(self, capture: Capture, x: Tensor) -> Tensor:
        """Logits with a graph; the capture holds what flowed."""
        capture.begin(x)
        logits = self.target.model(self.target.normalized(x).clone())
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            got = f"{list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{OP}: the model must return logits [N, C] with N = {len(x)}; got {got}")
        self.repeated |= capture.repeated
        if not capture.flows:
            raise ValueError(
                f"{OP}: the model must run a layer with weights whose output has the batch first; none did"
            )
        return logits

    def add(self, x: Tensor, y: Tensor, ids: Tensor, *, learning: bool, eps: float) -> None:
        """One batch: of the training loss's gradients if ``learning``, else of the signal and the attack."""
        model = self.target.model
        assert isinstance(model, nn.Module)
        with self.target, Capture(model, self.layers) as capture:
            for module in capture.modules.values():
                for parameter in parameters_of(module):
                    parameter.requires_grad_()
            leaf = x.detach().clone().requires_grad_()
            logits = self.forward(capture, leaf)
            lowest, highest = (int(part) for part in y.aminmax())
            if lowest < 0 or highest >= logits.shape[1]:
                raise ValueError(
                    f"{OP}: y must be in [0, {logits.shape[1]}), the model's classes; "
                    f"got labels from {lowest} to {highest}"
                )
            if not self.parents:
                self.parents = capture.parents()
                for name, parents in self.parents.items():
                    for parent in parents:
                        self.children.setdefault(parent, name)
            passed = {name: self.passed_on(capture, name) for name in capture.flows}
            for name, features in passed.items():
                self.features.setdefault(name, []).append(sketch(*features))
            if learning:
                self.learn(capture, logits, y)
            else:
                self.listen(capture, logits, leaf)
            clean = {"": (leaf.detach(), True), **passed}
            self.x.append(sketch(leaf.detach(), True))
            self.y.append(y.cpu())
            self.logits.append(logits.detach().double().cpu())
        if self.untrained is not None:
            self.compare(x)
        if not learning and self.attacked < ATTACKED:
            some = min(len(x), ATTACKED - self.attacked)
            self.perturb(x[:some], y[:some], ids[:some], {k: f[:some] for k, (f, _) in clean.items()}, eps)
            self.attacked += some

    def passed_on(self, capture: Capture, name: str) -> tuple[Tensor, bool]:
        """What a layer's first consumer takes, or its own output if it has none; and whether it is a map."""
        child = self.children.get(name)
        flow = capture.flows.get(child, capture.flows[name]) if child else capture.flows[name]
        features = flow.given if child and flow is not capture.flows[name] else flow.raw
        return features.detach(), flow.axis == 1

    def learn(self, capture: Capture, logits: Tensor, y: Tensor) -> None:
        """Gradients of the training loss with respect to the weights."""
        loss = functional.cross_entropy(logits.float(), y)
        weights = {name: parameters_of(capture.modules[name]) for name in capture.flows}
        flat = [w for several in weights.values() for w in several]
        gradients = dict(zip(map(id, flat), torch.autograd.grad(loss, flat, allow_unused=True), strict=True))
        for name, several in weights.items():
            length = math.hypot(*(float(w.detach().double().norm()) for w in several))
            found = [gradients[id(w)] for w in several]
            gradient = math.hypot(*(float(g.double().norm()) for g in found if g is not None))
            if length:  # nothing is long beside weights of zero
                self.updates.setdefault(name, []).append(gradient / length)

    def listen(self, capture: Capture, logits: Tensor, leaf: Tensor) -> None:
        """How far the model's outputs depend on each unit: the gradient of their sum with random signs.

        Of the outputs, not of the loss: a model that is sure of its samples has no loss, and is not dead.
        """
        ids = torch.arange(len(logits), device=logits.device) + sum(map(len, self.y))
        zeros = torch.zeros(logits.shape, device=logits.device)
        signs = uniform(zeros, 1.0, self.seed, ids, bounds=None).sign().to(logits)
        outputs = [flow.raw for flow in capture.flows.values()]
        gradients = torch.autograd.grad((logits * signs).sum(), [*outputs, leaf], allow_unused=True)
        first = sum(map(len, self.y))
        for (name, flow), gradient in zip(capture.flows.items(), gradients[:-1], strict=True):
            told = torch.zeros_like(flow.output) if gradient is None else units_of(gradient, flow.axis)
            self.sums.setdefault(name, UnitSums(flow)).add(flow, told, first)
            self.signal.add(name, told.flatten(1).double().square().sum(1))
        inputs = torch.zeros_like(leaf) if gradients[-1] is None else gradients[-1]
        self.signal.add("", inputs.flatten(1).double().square().sum(1))

    def compare(self, x: Tensor) -> None:
        """The untrained copy on the same samples."""
        model = self.untrained
        assert model is not None
        lent = Target.of(model, OP)
        with lent, Capture(model, self.layers) as capture:
            leaf = x.detach().clone().requires_grad_()
            capture.begin(leaf)
            model(self.target.normalized(leaf).clone())
            missing = [name for name in self.features if name not in capture.flows]
            if missing:
                raise ValueError(
                    f"{OP}: untrained must have the layers of model; {missing[0]!r} is not among its own"
                )
            for name in self.features:
                kept = sketch(*self.passed_on(capture, name))
                if kept.shape != self.features[name][-1].shape:
                    raise ValueError(f"{OP}: untrained must be of model's shape; layer {name!r} differs")
                self.before.setdefault(name, []).append(kept)

    def perturb(self, x: Tensor, y: Tensor, ids: Tensor, clean: Mapping[str, Tensor], eps: float) -> None:
        """The features of attacked and of noisy samples beside the clean ones."""
        model = self.target.model
        assert isinstance(model, nn.Module)
        with self.target, torch.no_grad():
            logits = model(self.target.normalized(x).clone())
        if not bool(logits.isfinite().all()):
            return
        self.right["clean"].append(int((logits.argmax(1) == y).sum()))
        lo, hi = self.target.bounds
        # Everywhere of the size that the attack has at most.
        signs = uniform(torch.zeros_like(x), 1.0, self.seed, ids, 1, bounds=None).sign()
        perturbed = {
            "noise": (x + eps * signs).clamp(lo, hi),
            "attack": pgd(
                self.target,
                x,
                y,
                eps=eps,
                steps=ATTACK_STEPS,
                early_stop=False,
                seed=self.seed,
                sample_ids=ids,
            ),
        }
        spread = {name: _deviation(features) for name, features in clean.items()}
        for kind, points in perturbed.items():
            with self.target, Capture(model, self.layers) as capture:
                leaf = points.detach().requires_grad_()
                found = self.forward(capture, leaf)
                self.right[kind].append(int((found.argmax(1) == y).sum()))
                now = {"": leaf.detach()} | {n: self.passed_on(capture, n)[0] for n in capture.flows}
            for name, features in clean.items():
                a, b = features.flatten(1).double(), now[name].flatten(1).double()
                if spread[name] > _CONSTANT * float(a.square().sum(1).mean()):
                    self.moved[kind].add(name, ((b - a).square().sum(1) / spread[name]))
                self.cosine[kind].add(name, functional.cosine_similarity(a, b))

    def seen(self) -> Seen:
        """All of it."""
        if not self.y:
            raise ValueError(f"{OP}: data must hold samples; got none (was an iterator used up before?)")
        shares = {k: sum(v) / max(1, self.attacked) for k, v in self.right.items() if v}
        return Seen(
            x=torch.cat(self.x),
            y=torch.cat(self.y),
            logits=torch.cat(self.logits),
            features={name: torch.cat(parts) for name, parts in self.features.items()},
            untrained={name: torch.cat(parts) for name, parts in self.before.items()},
            parents=self.parents,
            units={name: sums.units() for name, sums in self.sums.items()},
            signal=self.signal.roots(),
            deviation={name: sums.deviation() for name, sums in self.sums.items()},
            gain={name: sums.gain() for name, sums in self.sums.items()},
            largest={name: sums.largest for name, sums in self.sums.items()},
            updates=self.updates,
            moved={kind: means.roots() for kind, means in self.moved.items()},
            cosine={kind: means.means() for kind, means in self.cosine.items()},
            accuracy=shares,
            repeated=tuple(sorted(self.repeated)),
        )


def _deviation(features: Tensor) -> float:
    """Mean square distance from the mean row; of the smallest number where there is none."""
    flat = features.flatten(1).double()
    return max(float((flat - flat.mean(0)).square().sum(1).mean()), 1e-300)


def look(
    target: Target,
    untrained: nn.Module | None,
    layers: tuple[str, ...] | None,
    data: Data,
    *,
    learning: bool,
    eps: float,
    samples: int,
    batch_size: int,
    seed: int,
    tick: Callable[[int], None],
) -> Seen:
    """Go through (at most ``samples`` of) a data set."""
    one = Pass(target, untrained, layers, seed)
    done = 0
    for x, y, ids in _some(data, samples, batch_size, target):
        check.check_images(OP, x, target.bounds)
        check.check_labels(OP, y, x)
        check.check_device(OP, x, target)
        one.add(x.to(target.dtype), y, ids, learning=learning, eps=eps)
        done += len(x)
        tick(done)
    return one.seen()


def _some(
    data: Data, samples: int, batch_size: int, target: Target
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches with samples in them: of a pair of tensors spread over its length, of a loader the first."""
    if _is_pair(data) and len(data[0]) == len(data[1]) > samples:
        x, y = data
        rows = torch.arange(samples) * len(x) // samples
        data = x[rows.to(x.device)], y[rows.to(y.device)]
    left = samples
    for x, y, ids in batches(OP, data, batch_size, target):
        if len(x):
            yield x[:left], y[:left], ids[:left]
        left -= len(x)
        if left <= 0:
            return


def _is_pair(data: Data) -> TypeGuard[tuple[Tensor, Tensor]]:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
