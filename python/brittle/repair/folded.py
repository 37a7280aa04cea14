"""A model in training, with its batch-norms folded away for the attack's passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brittle._folding import fold_batchnorm

# Whose weights are [C_out, ...] and whose norm was folded whatever the input's shape.
_SIMPLE = (nn.Conv2d, nn.Conv3d)


class FoldedCopy:
    """A frozen copy in evaluation mode, folded once and given the model's present weights before each use.

    Folding anew would trace the model each time. A fold is a scale of the layer's weights and a bias, so that
    what an optimizer's step changed reaches the copy by one pass over the parameters.
    """

    def __init__(self, model: nn.Module, copy: nn.Module) -> None:
        self.copy = copy
        folded_into = {
            name: vars(part)["folded_into"]
            for name, part in copy.named_modules()
            if "folded_into" in vars(part)
        }
        own, names = dict(model.named_modules()), {part: name for name, part in copy.named_modules()}
        self._folds: list[tuple[Any, Any, Any]] = [
            (part, own[names[part]], own[norm]) for norm, part in folded_into.items()
        ]
        replaced = {id(p) for part, _, _ in self._folds for p in part.parameters()}
        theirs = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
        mine = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        kept = [(t, mine[name]) for name, t in theirs.items() if id(t) not in replaced]
        self._kept = [(theirs, mine.detach()) for theirs, mine in kept]

    @classmethod
    def of(cls, model: nn.Module) -> FoldedCopy | None:
        """None where nothing can be folded, or not by scaling alone."""
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            copy = fold_batchnorm(model)
        finally:
            for module in training:
                module.training = True
        if copy is None or [n for n, _ in copy.named_modules()] != [n for n, _ in model.named_modules()]:
            return None
        into = [vars(part)["folded_into"] for part in copy.modules() if "folded_into" in vars(part)]
        return cls(model, copy) if into and all(type(part) in _SIMPLE for part in into) else None

    @torch.no_grad()
    def refreshed(self) -> nn.Module:
        """The copy with the model's present weights."""
        part, layer, _ = self._folds[0]
        if part.weight.stride() != layer.weight.stride():  # the training has laid its weights out anew
            self.copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for theirs, mine in self._kept:
            theirs.copy_(mine)
        for part, layer, norm in self._folds:
            scale = torch.rsqrt(norm.running_var + norm.eps)
            if norm.weight is not None:
                scale = norm.weight * scale
            torch.mul(layer.weight, _column(scale, layer.weight), out=part.weight)
            bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
            torch.mul(bias, scale, out=part.bias)
            if norm.bias is not None:
                part.bias.add_(norm.bias)
        return self.copy


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
