"""Some layers trained again, the others held fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from brittle import _checks as check
from brittle.data import Data, batches
from brittle.repair.loop import derived_seed
from brittle.repair.state import AllTrainingOptions, Batch, Step, Training
from brittle.repair.structure import layer_named, norm_after
from brittle.repair.training import cross_entropy, train
from brittle.target import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

RESETS = ("none", "default", "unit-variance")


def retrain(
    model: nn.Module,
    layers: str | Iterable[str],
    data: Data,
    *,
    reset: str = "none",
    step: Step | None = None,
    **options: Unpack[AllTrainingOptions],
) -> Training:
    """Train some layers of a model in place, each with the norm that follows it; everything else stays.

    The other layers are frozen and in evaluation mode meanwhile: no dropout, and batch-norm keeps and uses
    its running statistics.

    Args:
        model: changed in place.
        layers: names in ``model.named_modules()``; of a block, all that is in it.
        data: as for :func:`brittle.repair.train`.
        reset: what to begin with. ``"none"``: the weights as they are. ``"default"``: the layers' own
            ``reset_parameters()``. ``"unit-variance"``: orthonormal weights, zero biases, then layer by layer
            the weights scaled so that the layer's output has variance 1 on the first batch of ``data``; norms
            and layers other than linear ones and convolutions are reset by default. A function of ``seed``.
        step: as for :func:`brittle.repair.train`.
        options: the other arguments of :func:`brittle.repair.train`, without ``parameters``.

    Returns:
        The training.

    Raises:
        ValueError: an unknown layer or ``reset``; layers without parameters, or to be reset under a
            parametrisation such as a mask; as for :func:`brittle.repair.train`.

    References:
        Mishkin and Matas, "All you need is a good init", ICLR 2016 (unit variance).
        Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        ICLR 2014 (orthonormal).

    Example:
        >>> import torch, brittle
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > x[:, 1]).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> before = model[0].weight.clone()
        >>> training = brittle.repair.retrain(model, "2", (x, y), reset="unit-variance", batch_size=20)
        >>> torch.equal(model[0].weight, before), training.history[-1]["loss"] < training.history[0]["loss"]
        (True, True)
    """
    op = "retrain"
    if "parameters" in options:
        raise ValueError(f"{op}: layers decide what is trained; got parameters beside them")
    batch_size, seed = options.get("batch_size", 128), options.get("seed", 0)
    names = reinitialize(model, layers, data, reset, batch_size=batch_size, seed=seed, name=op)
    inside = {part for name in names for part in model.get_submodule(name).modules()}
    kept = [part for part in model.modules() if part not in inside]
    taken = step or cross_entropy

    def quietly(batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        for module in kept:
            module.training = False
        return taken(batch)

    options["parameters"] = names
    return train(model, data, step=quietly, name=op, **options)


def reinitialize(
    model: nn.Module,
    layers: str | Iterable[str],
    data: Data,
    reset: str,
    *,
    batch_size: int = 128,
    seed: int = 0,
    name: str = "reinitialize",
) -> list[str]:
    """Give layers and the norms that follow them the weights that :func:`retrain` begins with.

    Args:
        model: changed in place.
        layers, data, reset, batch_size, seed: as for :func:`retrain`.
        name: the operator to name in error messages.

    Returns:
        The names of the layers and of their norms.

    Raises:
        ValueError: as for :func:`retrain`.

    Example:
        >>> import torch
        >>> from brittle.repair.retraining import reinitialize
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        >>> x, y = torch.randn(64, 4), torch.zeros(64, dtype=torch.long)
        >>> reinitialize(model, "0", (x, y), "unit-variance")
        ['0', '1']
        >>> round(model[0](x).std().item(), 4)
        1.0
    """
    check.check_choice(name, "reset", reset, RESETS)
    names = [layers] if isinstance(layers, str) else list(layers)
    for layer in names:
        if next(layer_named(name, model, layer).parameters(), None) is None:
            raise ValueError(f"{name}: layers must have parameters; {layer!r} has none")
    norms = [norm_after(model, layer) for layer in names]
    names = list(dict.fromkeys([*names, *(norm for norm in norms if norm is not None)]))
    inside = {part for layer in names for part in model.get_submodule(layer).modules()}
    chosen = [part for part in model.modules() if part in inside]
    if reset != "none":
        _reset(name, chosen, seed)
    if reset == "unit-variance":
        _orthonormal(name, model, chosen, data, batch_size, seed)
    return names


def _reset(op: str, modules: Sequence[nn.Module], seed: int) -> None:
    for module in modules:
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{op}: layers to be reset must have no parametrisation (bake or remove masks); "
                f"a {type(module).__name__} has"
            )
    owners = [module for module in modules if next(module.parameters(recurse=False), None) is not None]
    resets = []
    # What is inside first: an attention has the last word on the bias of its projection.
    for module in reversed(owners):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if not callable(reset):
            raise ValueError(
                f"{op}: layers to be reset must have reset_parameters(); a {type(module).__name__} has not"
            )
        resets.append(reset)
    with _seeded(owners[0], derived_seed(seed, "reset", 0)):
        for reset in resets:
            reset()


def _orthonormal(
    op: str, model: nn.Module, modules: Sequence[nn.Module], data: Data, batch_size: int, seed: int
) -> None:
    """Orthonormal weights without biases, scaled so that outputs have variance 1."""
    if isinstance(data, Iterator):
        raise ValueError(f"{op}: data must be iterable anew, to scale layers on it first; got an iterator")
    target = Target.of(model, op)
    x = next((x for x, _, _ in batches(op, data, batch_size, target) if len(x)), None)
    if x is None:
        raise ValueError(f"{op}: data must hold samples; got none")
    ready: set[nn.Module] = set()

    def scale(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # The output is proportional to the weights: once is exact. Later layers see what it has become.
        deviation = output.std()
        if layer in ready or not (deviation > 0 and deviation.isfinite()):
            return output
        ready.add(layer)
        cast(Tensor, layer.weight).div_(deviation)
        return output / deviation

    with ExitStack() as undo:
        for number, layer in enumerate(modules):
            if isinstance(layer, (nn.Linear, _ConvNd)):
                with _seeded(layer, derived_seed(seed, "orthonormal", number)):
                    nn.init.orthogonal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
                undo.callback(layer.register_forward_hook(scale).remove)
        undo.enter_context(target)
        undo.enter_context(torch.no_grad())
        model(x)


@contextmanager
def _seeded(module: nn.Module, seed: int) -> Iterator[None]:
    """Inside the block torch's random numbers are those of ``seed``, where ``module`` is too."""
    device = next(module.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
