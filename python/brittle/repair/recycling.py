"""Units given a fresh start, without a change of what the network computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from brittle import _checks as check
from brittle._folding import deep_copy
from brittle.repair.structure import layer_named, norm_after, reader_of

_OP = "recycle"


def recycle(model: nn.Module, layer: str, units: Iterable[int], *, seed: int = 0) -> None:
    """Let units of a layer begin anew: fresh incoming weights, and no say until training gives them one.

    The units' weights and biases are drawn again by the layer's own ``reset_parameters``. Where one plain
    linear layer or convolution alone reads the layer, its weights for these units become zero, so that the
    network computes what it would with the units silenced, and their first gradient step connects them again.
    Elsewhere a norm that follows gets the weight zero for them. Without either, the fresh units are heard at
    once.

    Args:
        model: changed in place.
        layer: the name of a linear layer or a convolution, as in ``model.named_modules()``.
        units: those that begin anew, in ``[0, outputs)``.
        seed: of the fresh weights, 64 bits; torch's global random state stays as it is.

    Raises:
        ValueError: no such layer, unit or kind of layer, or the layer is parametrised.

    References:
        Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", ICML 2023.

    Example:
        >>> import torch
        >>> from brittle.repair import recycle
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     model[0].bias[1] = -100.0  # never answers
        >>> x = torch.randn(50, 4)
        >>> before = model(x)
        >>> recycle(model, "0", [1])
        >>> bool((model[0](x)[:, 1] > 0).any()), torch.equal(model(x), before)
        (True, True)
    """
    check.check_seed(_OP, seed)
    module = layer_named(_OP, model, layer)
    if not isinstance(module, (nn.Linear, _ConvNd)) or isinstance(module, _ConvTransposeNd):
        raise ValueError(
            f"{_OP}: layer must be a linear layer or a convolution; got {layer!r}, a {type(module).__name__}"
        )
    if nn.utils.parametrize.is_parametrized(module):
        raise ValueError(f"{_OP}: layer must not be parametrised (bake or remove masks first); got {layer!r}")
    count = len(module.weight)
    chosen = sorted(set(units))
    for unit in chosen:
        if not (isinstance(unit, int) and 0 <= unit < count):
            raise ValueError(f"{_OP}: units must be integers in [0, {count}); got {unit!r}")
    fresh = deep_copy(module)
    with torch.random.fork_rng(devices=[module.weight.device] if module.weight.is_cuda else []):
        torch.manual_seed(seed)
        fresh.reset_parameters()
    reader, norm = reader_of(model, layer), norm_after(model, layer)
    with torch.no_grad():
        module.weight[chosen] = fresh.weight[chosen]
        if module.bias is not None and fresh.bias is not None:
            module.bias[chosen] = fresh.bias[chosen]
        if norm is not None:
            _fresh_channels(model.get_submodule(norm), chosen, heard=reader is not None)
        if reader is not None:
            inputs = [unit * reader.inputs + k for unit in chosen for k in range(reader.inputs)]
            _incoming(reader.layer)[:, inputs] = 0


def _incoming(layer: nn.Module) -> Tensor:
    """A layer's weights with its inputs in dimension 1."""
    weight = layer.get_parameter("weight")
    return weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight


def _fresh_channels(norm: nn.Module, channels: list[int], heard: bool) -> None:
    starts = {"weight": float(heard), "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in starts.items():
        tensor = getattr(norm, name, None)
        if isinstance(tensor, Tensor):
            tensor[channels] = value
