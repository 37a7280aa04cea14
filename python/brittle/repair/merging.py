"""Which of a layer's silent units repeat others, and by what factor, as the next layer sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brittle import _checks as check
from brittle.repair.structure import Reader
from brittle.similarity.features import Inputs, inputs
from brittle.target import Target


class Repeats(NamedTuple):
    """Pairs of a silent unit and one that is left, and the factors from the second to the first."""

    pairs: tuple[tuple[int, int], ...]
    factors: Tensor  # [pairs], float64


def repeats(
    model: nn.Module, reader: Reader, silent: Sequence[int], data: Inputs, threshold: float, batch_size: int
) -> Repeats:
    """Each silent unit whose cosine with one that is left is at least ``threshold``, in what is read."""
    check.check_scalar("mask", "threshold", threshold)
    products = _products(model, reader, data, batch_size)
    left = [unit for unit in range(len(products)) if unit not in silent]
    squares = products.diagonal()
    lengths = squares.sqrt()
    found = []
    for unit in silent:
        cosines = products[unit, left] / (lengths[unit] * lengths[left])
        best = int(cosines.nan_to_num(-1.0).argmax()) if left else 0  # NaN: one of the two is never heard
        # Equal units may have a cosine one rounding below 1.
        if left and cosines[best] >= threshold - 1e-12:
            found.append((unit, left[best]))
    factors = [products[pair] / squares[pair[1]] for pair in found]
    return Repeats(tuple(found), torch.tensor(factors, dtype=torch.float64))


def _products(model: nn.Module, reader: Reader, data: Inputs, batch_size: int) -> Tensor:
    """Inner products ``[units, units]`` of what ``reader`` is given of each unit, over all of the data."""
    total: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read = args[0].detach()
        if isinstance(module, nn.Linear):
            read = read.reshape(-1, module.in_features // reader.inputs, reader.inputs)
        rows = read.transpose(0, 1).flatten(1).to("cpu", torch.float64)
        total[:] = [sum(total, rows @ rows.T)]

    target = Target.of(model, "mask")
    handle = reader.layer.register_forward_pre_hook(watch)
    try:
        for x in inputs("mask", data, batch_size, target):
            with target, torch.no_grad():
                model(x)
    finally:
        handle.remove()
    return total[0]
