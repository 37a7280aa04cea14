"""Which of a layer's units repeat others, and by what factor, as the next layer sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brittle import _checks as check
from brittle.ops import pairwise_cosine
from brittle.repair.duplicates import ROUNDING, unit_outputs
from brittle.repair.structure import Reader
from brittle.similarity.features import Inputs, inputs
from brittle.target import Target

Pairs = tuple[tuple[int, int], ...]


def repeated(
    model: nn.Module, layer: str, silent: Sequence[int], data: Inputs, threshold: float, batch_size: int
) -> Pairs:
    """Each silent unit whose cosine with one that is left is at least ``threshold``, and that one."""
    check.check_scalar("mask", "threshold", threshold)
    outputs = unit_outputs("mask", model, layer, data, batch_size)
    left = [unit for unit in range(len(outputs)) if unit not in silent]
    if not left or not silent:
        return ()
    cosines, nearest = pairwise_cosine(outputs[list(silent)], outputs[left]).max(1)
    found = zip(silent, cosines.tolist(), nearest.tolist(), strict=True)
    return tuple((unit, left[near]) for unit, cosine, near in found if cosine >= threshold - ROUNDING)


def factors(model: nn.Module, reader: Reader, pairs: Pairs, data: Inputs, batch_size: int) -> Tensor:
    """The factor that best turns the second of each pair into the first, in what ``reader`` is given."""
    silent, left = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    cross, square = torch.zeros(2, len(pairs), dtype=torch.float64)

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read = args[0].detach()
        if isinstance(module, nn.Linear):
            read = read.reshape(-1, module.in_features // reader.inputs, reader.inputs)
        rows = read.transpose(0, 1).flatten(1).to("cpu", torch.float64)
        cross.add_((rows[silent] * rows[left]).sum(1))
        square.add_(rows[left].square().sum(1))

    target = Target.of(model, "mask")
    handle = reader.layer.register_forward_pre_hook(watch)
    try:
        for x in inputs("mask", data, batch_size, target):
            with target, torch.no_grad():
                model(x)
    finally:
        handle.remove()
    return torch.where(square > 0, cross / square, 0)
