"""Parametrisations that silence units, and that hand a silenced unit's outgoing weights to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from brittle.repair.structure import Reader


class Change(NamedTuple):
    """A parametrisation of ours, and the tensor it is on."""

    module: nn.Module
    name: str
    parametrisation: nn.Module

    @classmethod
    def register(cls, module: nn.Module, name: str, parametrisation: nn.Module) -> Change:
        """Put it last among those that the tensor has."""
        parametrisation.train(module.training)
        parametrize.register_parametrization(module, name, parametrisation)
        return cls(module, name, parametrisation)

    @property
    def first(self) -> bool:
        """Whether the tensor's own values are what it is given."""
        chain = self._chain
        return chain is not None and chain[0] is self.parametrisation

    @torch.no_grad()
    def bake(self) -> None:
        """Give the tensor the values that it has under the parametrisation, which must be the first."""
        assert self._chain is not None
        original = self._chain.original
        original.copy_(self.parametrisation(original))

    def remove(self) -> None:
        """Take it away, wherever in the chain it is; others stay."""
        chain = self._chain
        places = [i for i, other in enumerate(chain or ()) if other is self.parametrisation]
        if chain is None or not places:
            return  # someone else has removed what parametrised this tensor
        if len(chain) > 1:
            del chain[places[0]]
            return
        parametrize.remove_parametrizations(self.module, self.name, leave_parametrized=False)
        # Optimizers' states go by the order of parameters, and torch puts the one it restores last.
        own = self.module._parameters
        for key in ("weight", "bias", *(key for key in own if key not in ("weight", "bias"))):
            if key in own:
                own[key] = own.pop(key)

    @property
    def _chain(self) -> parametrize.ParametrizationList | None:
        if not parametrize.is_parametrized(self.module, self.name):
            return None
        chains = cast(nn.ModuleDict, self.module.parametrizations)
        return cast(parametrize.ParametrizationList, chains[self.name])


class Silence(nn.Module):
    """Zero, in value and in gradient, wherever ``keep`` is not."""

    keep: Tensor

    def __init__(self, owner: nn.Module, name: str, keep: Tensor) -> None:
        """``keep`` holds a value for each unit of ``owner``; it is shaped to broadcast over the tensor."""
        super().__init__()
        tensor = cast(Tensor, getattr(owner, name))
        keep = keep.to(tensor.device)
        if name == "weight" and isinstance(owner, _ConvTransposeNd):
            # [inputs, outputs of a group, ...]: each group's inputs have outputs of their own.
            groups = keep.reshape(owner.groups, 1, -1).expand(-1, owner.in_channels // owner.groups, -1)
            keep = groups.reshape(owner.in_channels, -1, *[1] * (tensor.dim() - 2))
        else:
            keep = keep.reshape(-1, *[1] * (tensor.dim() - 1))
        self.register_buffer("keep", keep)

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor with zeros."""
        return torch.where(self.keep, tensor, 0)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        """What is assigned to the parameter becomes its own value."""
        return tensor


class Merge(nn.Module):
    """The reading layer's weights: those of masked units, times a factor, added to their survivors'."""

    factors: Tensor
    source: Tensor
    target: Tensor

    def __init__(self, reader: Reader, pairs: Sequence[tuple[int, int]], factors: Tensor) -> None:
        """Of each pair (masked, survivor) the factor turns the survivor into the masked one."""
        super().__init__()
        weight = cast(Tensor, reader.layer.weight)
        self.dim = 0 if isinstance(reader.layer, _ConvTransposeNd) else 1
        inputs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2, 1) * reader.inputs + torch.arange(
            reader.inputs
        )
        spread = factors.repeat_interleave(reader.inputs).reshape(-1, *[1] * (weight.dim() - 1 - self.dim))
        self.register_buffer("source", inputs[:, 0].flatten().to(weight.device))
        self.register_buffer("target", inputs[:, 1].flatten().to(weight.device))
        self.register_buffer("factors", spread.to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The weights with the sums."""
        moved = weight.index_select(self.dim, self.source) * self.factors
        return weight.index_add(self.dim, self.target, moved)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned to the parameter becomes its own value."""
        return weight
