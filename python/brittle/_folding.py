"""Batch-norm folded into the layer before it: a cheaper copy of a model that computes the same function.

In evaluation mode batch-norm is a fixed scale and shift per channel, which the weights and the bias of a
preceding convolution or linear layer can take over. That spares a forward and a backward one read and one
write of the activations each, at every batch-norm.

The module keeps its own ``forward``. torch.fx only tells which layer feeds which batch-norm; then the two are
replaced, wherever the copy refers to them, by the folded layer and an identity.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Exact types: a subclass may compute anything, and a parametrised module is an instance of a subclass.
_NORM_AFTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# BatchNorm1d takes [N, C] and [N, C, L]. Its channels are those of the layer before it only on the layer's
# batched layout: a linear layer's channels come last, and an unbatched convolution's come first.
_DIMS_BEFORE_NORM_1D: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.ConvTranspose1d: 3}

_Replacements = dict[nn.Module, nn.Module]


def fold_batchnorm(model: nn.Module) -> nn.Module | None:
    """A frozen copy of ``model`` in evaluation mode, each batch-norm folded into the layer before it.

    A ``BatchNorm1d``, ``2d`` or ``3d`` is folded where that is exact: it has running statistics, its input
    is the output of a convolution, a transposed convolution or a linear layer that nothing else uses, both
    are called once in a forward and registered once, and both have the same dtype and device. The new
    weights are computed in float64 and rounded once, so that outputs and input gradients agree with the
    model's to the rounding of its dtype. Layers that are subclassed, parametrised, hooked or inside a hooked
    module, or that have their parameters read by another, stay as they are.

    A module that torch.fx cannot follow, for instance because its control flow depends on the data, keeps
    its own layers; the modules inside it are tried one by one, taken to be called as a whole and not layer
    by layer. Forward is further taken to run through the same layers at every call.

    The statistics are those of now: training ``model`` further does not reach the copy. Tracing patches
    ``nn.Module`` for its duration, so no other thread may run a module meanwhile.

    Args:
        model: called with one tensor. It is left untouched, as is torch's global random state.

    Returns:
        The copy, no parameter of which requires a gradient; or None where nothing can be folded or the
        model cannot be copied.

    Example:
        >>> import torch
        >>> from brittle._folding import fold_batchnorm
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> folded = fold_batchnorm(model)
        >>> folded[1]
        Identity()
        >>> x = torch.rand(2, 3, 8, 8)
        >>> torch.allclose(folded(x), model.eval()(x), atol=1e-6)
        True
    """
    # A hook on every module would see the proxies of the trace.
    if not isinstance(model, nn.Module) or not _has_norm(model) or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    devices = {tensor.device for tensor in _tensors(model) if tensor.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.inference_mode(False), torch.no_grad():
        # Modules may refuse to be copied, and user code run on proxies may raise anything: neither is an
        # error of a model that need not be folded.
        try:
            copied = frozen_copy(model)
        except Exception:
            return None
        registered = Counter(child for module in copied.modules() for child in module._modules.values())
        shared = {module for module, count in registered.items() if count > 1 and module is not None}
        replacements = _replacements(copied, shared)
        if not replacements:
            return None
        return _copy(copied, replacements, {tensor: tensor for tensor in _tensors(copied)})


def frozen_copy(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, no parameter of which requires a gradient.

    Pruning, weight norm and spectral norm of ``torch.nn.utils`` keep the weight that they have computed as an
    attribute with a graph behind it, which ``copy.deepcopy`` refuses to copy; here it is copied without.

    Raises:
        Exception: whatever the model's own parts raise that cannot be copied, such as locks and open files.

    Example:
        >>> import torch
        >>> from torch.nn.utils import prune
        >>> from brittle._folding import frozen_copy
        >>> layer = prune.l1_unstructured(torch.nn.Linear(4, 4), "weight", 0.5)
        >>> torch.equal(frozen_copy(layer).weight, layer.weight)
        True
    """
    return deep_copy(model).eval().requires_grad_(False)


_Module = TypeVar("_Module", bound=nn.Module)


def deep_copy(model: _Module) -> _Module:
    """A deep copy, as :func:`frozen_copy` makes it, with modes and ``requires_grad`` as they are."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in (*vars(module).values(), *module._buffers.values())
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


class _OnDims(nn.Module):
    """``folded`` for inputs of ``dims`` dimensions, else ``original``."""

    def __init__(self, dims: int, folded: nn.Module, original: nn.Module) -> None:
        super().__init__()
        self.dims = dims
        self.folded = folded
        self.original = original
        self.eval()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (self.folded if x.dim() == self.dims else self.original)(x, *args, **kwargs)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A hook may change what it sees, and must not see proxies.
        if isinstance(m, _OnDims) or _has_hooks(m):
            return True
        wrapper = isinstance(m, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        return not wrapper and super().is_leaf_module(m, module_qualified_name)


def _replacements(root: nn.Module, shared: set[nn.Module]) -> _Replacements:
    """What takes the place of which module inside ``root``."""
    if not _has_norm(root):
        return {}
    graph = _trace(root, {})
    if graph is None:
        inside: _Replacements = {}
        for child in root.children():
            inside |= _replacements(child, shared)
        return inside
    replacements: _Replacements = {}
    for layer, norm in _pairs(graph, root):
        if not {layer, norm} & shared and _matching(layer, norm):
            replacements |= _fold(layer, norm)
    # Python code that asks a layer for its class or its attributes may go another way with the new ones.
    return replacements if str(_trace(root, replacements)) == str(graph) else {}


def _trace(root: nn.Module, replacements: _Replacements) -> fx.Graph | None:
    """The calls of ``root(x)``, or None if torch.fx cannot follow them. ``root`` is module ``0`` in it."""
    try:
        # Tracing leaves proxies and constants behind, so it gets a copy. It reads no parameter's values, but
        # forward may branch on a buffer's.
        meta = {p: nn.Parameter(p.to("meta"), requires_grad=False) for p in root.parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Inside a container root is called as everyone calls it: __call__, default arguments and all.
            return _Tracer().trace(nn.Sequential(_copy(root, replacements, meta)))
    except Exception:
        return None


def _pairs(graph: fx.Graph, root: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """A layer and the only user of its output, a batch-norm; each called once and read by no other."""
    modules = {f"0.{name}": module for name, module in root.named_modules()} | {"0": root}
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    # Parameters and not their names, of which a tied one has several.
    read = {p for name, p in root.named_parameters() if f"0.{name}" in names}

    def called_once(name: str) -> bool:
        parts = name.split(".")
        inside_leaf = any(".".join(parts[:k]) in calls for k in range(1, len(parts)))
        return calls[name] == 1 and not inside_leaf

    for node in graph.nodes:
        if node.op != "call_module" or node.kwargs or len(node.args) != 1:
            continue
        (before,) = node.args
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, norm = modules[str(before.target)], modules[str(node.target)]
        if not called_once(str(before.target)) or not called_once(str(node.target)):
            continue
        if read.isdisjoint(layer.parameters()) and read.isdisjoint(norm.parameters()):
            yield layer, norm


def _matching(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm(layer(x))`` is the layer with other weights."""
    if _NORM_AFTER.get(type(layer)) is not type(norm):
        return False
    for module in (layer, norm):
        if module.training or _has_hooks(module) or "forward" in vars(module):
            return False
    norm = cast(nn.BatchNorm2d, norm)
    if norm.running_mean is None or norm.running_var is None:
        return False
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    tensors = (weight, bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
            return False
        if tensor.dtype != weight.dtype or tensor.device != weight.device:
            return False
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return bool(channels == norm.num_features)


def _fold(layer: nn.Module, norm: nn.Module) -> _Replacements:
    """The folded layer and an identity; nothing if the weights leave the range of their dtype."""
    layer, norm = cast(nn.Conv2d, layer), cast(nn.BatchNorm2d, norm)

    def exact(tensor: Any) -> Any:
        # On the CPU, because not every accelerator has float64.
        return None if tensor is None else tensor.to("cpu", torch.float64)

    def swapped(weight: Tensor) -> Tensor:
        # A transposed convolution has [C_in, C_out / groups, ...] where the scaling wants output channels
        # first. The swap is its own inverse.
        if not isinstance(layer, _TRANSPOSED):
            return weight
        return weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)

    weight, bias = fuse_conv_bn_weights(
        swapped(exact(layer.weight)),
        exact(layer.bias),
        exact(norm.running_mean),
        exact(norm.running_var),
        norm.eps,
        exact(norm.weight),
        exact(norm.bias),
    )
    empty_weight, empty_bias = torch.empty_like(layer.weight), layer.weight.new_empty(norm.num_features)
    folded = _copy(layer, {}, {p: p for p in layer.parameters()})
    folded.weight = nn.Parameter(empty_weight.copy_(swapped(weight)), requires_grad=False)
    folded.bias = nn.Parameter(empty_bias.copy_(bias), requires_grad=False)
    if not (folded.weight.isfinite().all() and folded.bias.isfinite().all()):
        return {}
    identity = nn.Identity().eval()
    # Not as a submodule, which it is elsewhere.
    object.__setattr__(identity, "folded_into", folded)
    dims = _DIMS_BEFORE_NORM_1D.get(type(layer))
    if dims is None:
        return {layer: folded, norm: identity}
    return {layer: _OnDims(dims, folded, layer), norm: _OnDims(dims, identity, norm)}


def _copy(root: nn.Module, replacements: _Replacements, tensors: Mapping[Any, Tensor]) -> nn.Module:
    """A deep copy with other modules and tensors in place of some, however they are referred to."""
    return copy.deepcopy(root, {id(old): new for old, new in (*replacements.items(), *tensors.items())})


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _has_norm(module: nn.Module) -> bool:
    return any(type(m) in _NORM_AFTER.values() for m in module.modules())


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
