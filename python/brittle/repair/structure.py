"""What follows what in a network: a layer's norm, and the layer that reads its units."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
CHANNEL_NORMS = NORMS[:6]  # each channel by itself

# They map each unit by itself, so that equal units stay equal.
_UNITWISE_MODULES: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity, nn.Flatten, nn.Dropout),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Dropout2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
)
_UNITWISE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.tanh),
        *(F.sigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.dropout, F.dropout2d),
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d),
        *(torch.relu, torch.tanh, torch.sigmoid),
    }
)
_UNITWISE_METHODS = frozenset({"relu", "tanh", "sigmoid"})


class Reader(NamedTuple):
    """The layer that alone reads another's units, and how many of its inputs each of them is."""

    name: str
    layer: nn.Module
    inputs: int


def layer_named(op: str, model: nn.Module, name: str) -> nn.Module:
    """``model.get_submodule(name)``; ValueError with the nearest names if there is none."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{op}: model must be an nn.Module; got {type(model).__name__}")
    # A layer that is used twice goes by any of its names.
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in names:
        near = difflib.get_close_matches(str(name), filter(None, names), n=3, cutoff=0.5)
        hint = f" (nearest: {', '.join(map(repr, near))})" if near else ""
        raise ValueError(f"{op}: layer must be a name of model.named_modules(){hint}; got {name!r}")
    return names[name]


def layer_with_units(op: str, model: nn.Module, name: str) -> tuple[nn.Module, int]:
    """The layer and how many units it has; ValueError for one that has none."""
    layer = layer_named(op, model, name)
    count = units_of(layer)
    if count is None:
        raise ValueError(
            f"{op}: layer must be a linear layer, convolution, attention or norm; "
            f"{name!r} is a {type(layer).__name__}"
        )
    return layer, count


def units_of(layer: nn.Module) -> int | None:
    """How many output units or channels a layer with weights has; None if it is of another kind."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, _ConvNd):
        return layer.out_channels
    if isinstance(layer, nn.MultiheadAttention):
        return int(layer.embed_dim)
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[0]) if len(layer.normalized_shape) == 1 else None
    if isinstance(layer, nn.GroupNorm):
        return int(layer.num_channels)
    return int(layer.num_features) if isinstance(layer, CHANNEL_NORMS) else None


def norm_after(model: nn.Module, name: str) -> str | None:
    """The name of the norm that alone reads a layer's output, one channel of it for each of its units.

    Where torch.fx cannot follow the model, the batch-norm registered right after the layer is taken for it.
    """
    units = units_of(model.get_submodule(name))
    if units is None:
        return None
    users = _users(model, name)
    if users is not None:
        for node, path in users:
            # Any further one reads what the first has given.
            module = _called(model, node, path)
            return path if isinstance(module, NORMS) and units_of(module) == units else None
        return None
    if not name:
        return None
    parent, _, own = name.rpartition(".")
    siblings = list(model.get_submodule(parent)._modules.items())
    place = [key for key, _ in siblings].index(own)
    key, follower = siblings[place + 1] if place + 1 < len(siblings) else ("", None)
    if isinstance(follower, BATCH_NORMS) and units_of(follower) == units:
        return f"{parent}.{key}" if parent else key
    return None


def reader_of(model: nn.Module, name: str) -> Reader | None:
    """The linear layer or convolution that alone reads a layer's units, through nothing that mixes them."""
    layer = model.get_submodule(name)
    units = units_of(layer)
    flattened, first = False, True
    for node, path in _users(model, name) or ():
        module = _called(model, node, path)
        if isinstance(module, nn.Linear):
            each = module.in_features // (units or 1)
            aligned = flattened if isinstance(layer, _ConvNd) else each == 1
            fits = aligned and units is not None and each * units == module.in_features
            return Reader(path, module, each) if fits else None
        if isinstance(module, _ConvNd):
            fits = isinstance(layer, _ConvNd) and not flattened and module.groups == 1
            return Reader(path, module, 1) if fits and module.in_channels == units else None
        own_norm = first and isinstance(module, CHANNEL_NORMS) and units_of(module) == units
        if not own_norm and not _unitwise(node, module):
            return None
        flattened = flattened or _flattens(node, module)
        first = False
    return None


def _called(model: nn.Module, node: fx.Node, path: str) -> nn.Module | None:
    return model.get_submodule(path) if node.op == "call_module" else None


def _unitwise(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        into_batch = isinstance(module, nn.Flatten) and bool(module.start_dim != 1)
        return isinstance(module, _UNITWISE_MODULES) and not into_batch
    if node.target in ("flatten", torch.flatten):
        return 1 in (node.kwargs.get("start_dim"), *node.args[1:2])
    return node.target in (_UNITWISE_METHODS if node.op == "call_method" else _UNITWISE_FUNCTIONS)


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, nn.Flatten) or node.target in ("flatten", torch.flatten)


def _users(model: nn.Module, name: str) -> Iterator[tuple[fx.Node, str]] | None:
    """What reads the layer's output, what alone reads that, and so on, each with its module's full name.

    Nothing if the layer is called several times; None where torch.fx can follow no module around it.
    """
    parts = name.split(".") if name else []
    for depth in range(len(parts)):
        prefix, inner = ".".join(parts[:depth]), ".".join(parts[depth:])
        graph = _traced(model.get_submodule(prefix))
        if graph is None:
            continue
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == inner]
        if len(calls) == 1:
            return _chain(calls[0], f"{prefix}." if prefix else "")
        if calls:
            return iter(())
    return None


def _chain(node: fx.Node, prefix: str) -> Iterator[tuple[fx.Node, str]]:
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "output":
            return
        yield node, prefix + str(node.target)


def _traced(root: nn.Module) -> fx.Graph | None:
    """The calls of ``root(x)``, or None if torch.fx cannot follow them."""
    tensors: dict[int, Tensor] = {}
    for parameter in root.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    try:
        # Tracing leaves proxies behind, so it gets a copy, without the weights.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return fx.Tracer().trace(copy.deepcopy(root, tensors))
    except Exception:  # the user's own code, run on proxies, may raise anything
        return None
