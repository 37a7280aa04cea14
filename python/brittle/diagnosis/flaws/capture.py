"""What flows through the layers with weights in one pass: outputs, inputs, and who feeds whom."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

OP = "diagnose"

# Layers with weights that only scale and shift what another layer gives.
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass
class Flow:
    """One layer in the last pass.

    Attributes:
        output: what it gave, ``[N, U, S]``: U units (channels, features), S places (pixels, tokens).
        given: what it took, ``[N, ...]``.
        axis: the dimension of the units in the module's own output.
        raw: the module's own output, of which ``output`` is a view where strides allow.
    """

    output: Tensor
    given: Tensor
    axis: int
    raw: Tensor


class Capture:
    """Watches a model's layers with weights inside a ``with`` block. Its hooks leave nothing behind.

    Only a layer's first run in a pass counts. Layers whose output has not the batch first are left out.

    Attributes:
        flows: by layer, in the order in which they first ran in the last pass.
        repeated: layers that ran more than once in a pass.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None) -> None:
        self.model = model
        self.modules = with_weights(model, layers)
        self.flows: dict[str, Flow] = {}
        self.repeated: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._samples = 0
        self._fast = True
        self._marks: dict[Any, str] = {}  # graph nodes of the layers' outputs

    def __enter__(self) -> Capture:
        self._fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        for name, module in self.modules.items():
            hook = module.register_forward_hook(self._hook(name), with_kwargs=True)
            self._handles.append(hook)
        return self

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def begin(self, x: Tensor) -> None:
        """Forget the last pass; the next is of ``x``."""
        self.clear()
        self._samples = len(x)

    def clear(self) -> None:
        """Let go of what is held of the last pass."""
        self.flows, self._marks = {}, {}

    def parents(self) -> dict[str, tuple[str, ...]]:
        """Of each layer the layers whose outputs reach its input with none between, in running order.

        Read off the graph of the last pass, so that it holds for functions, skips and branches.
        """
        found = {}
        for name, flow in self.flows.items():
            seen, todo, reached = set(), [flow.given.grad_fn], set()
            while todo:
                node = todo.pop()
                if node is None or node in seen:
                    continue
                seen.add(node)
                if node in self._marks:
                    reached.add(self._marks[node])
                else:
                    todo += [parent for parent, _ in node.next_functions]
            found[name] = tuple(other for other in self.flows if other in reached and other != name)
        return found

    def _hook(self, name: str) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            result = output[0] if isinstance(output, tuple) and output else output
            given = next((part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)), None)
            if not isinstance(result, Tensor) or given is None or not result.is_floating_point():
                return None
            if result.dim() < 2 or not len(result) == len(given) == self._samples:
                return None
            if name in self.flows:
                self.repeated.add(name)
                return None
            axis = 1 if _is_convolution(module) else -1
            # What follows may write to its input; the original stays as it is, for its gradient.
            passed = result.clone()
            if passed.grad_fn is not None:
                self._marks[passed.grad_fn] = name
            self.flows[name] = Flow(units_of(result.detach(), axis), given, axis, result)
            return (passed, *output[1:]) if isinstance(output, tuple) else passed

        return after


def units_of(output: Tensor, axis: int) -> Tensor:
    """``[N, U, S]`` of a layer's output, whose units are in dimension ``axis``."""
    return output.movedim(axis, 1).flatten(2) if output.dim() > 2 else output.unsqueeze(2)


def weight_of(module: nn.Module) -> Tensor:
    """A layer's weights as a matrix, a row for each unit (of attention, the projections that enter it)."""
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        weight = getattr(module, "in_proj_weight", None)
    if weight is None:
        weight = module.q_proj_weight
    matrix: Tensor = weight.detach()
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        matrix = matrix.transpose(0, 1)
    return matrix.flatten(1)


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """The trained tensors behind a layer's weights, also where they are parametrised; biases left out."""
    return [p for name, p in module.named_parameters() if p.dim() >= 2 or "parametrizations" in name]


def described(module: nn.Module) -> str:
    """A layer in a few words."""
    kind = type(module).__name__.removeprefix("Parametrized")
    for into, out in (("in_channels", "out_channels"), ("in_features", "out_features")):
        if hasattr(module, into) and hasattr(module, out):
            return f"{kind} {getattr(module, into)} -> {getattr(module, out)}"
    width = getattr(module, "embed_dim", None)
    return kind if width is None else f"{kind} {width}"


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def with_weights(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers to watch by name; all, or those that match a name or pattern."""
    every = {name: part for name, part in model.named_modules() if _has_weights(part)}
    if not every:
        raise ValueError(f"{OP}: model must have layers with weights (convolutions, linear layers); got none")
    if layers is None:
        return every
    wanted = [layers] if isinstance(layers, str) else list(layers)
    found = {}
    for pattern in wanted:
        matches = [name for name in every if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(
                f"{OP}: layers must be names or patterns of layers with weights, "
                f"{', '.join(map(repr, every))}; got {pattern!r}"
            )
        found.update({name: every[name] for name in matches})
    return {name: part for name, part in every.items() if name in found}


def _has_weights(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    if isinstance(module, (*_NORMS, nn.Embedding, nn.EmbeddingBag, nn.RNNBase)):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2 and weight.is_floating_point()
