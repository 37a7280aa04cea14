"""Are model and data on one device and of one dtype?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brittle.data import Data
from brittle.diagnosis.checks._trial import require_module
from brittle.diagnosis.checks.verdict import Verdict


@dataclass(frozen=True)
class Placement(Verdict):
    """Where the tensors of a model and of its data are.

    Attributes:
        model: how many parameters and buffers there are of each ``(device, dtype)``, most first.
        inputs: ``(device, dtype)`` of the first batch's inputs.
        labels: the same of its labels.
    """

    model: dict[tuple[str, str], int]
    inputs: tuple[str, str]
    labels: tuple[str, str]

    def _figures(self) -> list[str]:
        lines = [f"{'':<24}{'device':<12}dtype"]
        lines += [f"{f'{count} of the model':<24}{d:<12}{t}" for (d, t), count in self.model.items()]
        lines += [f"{name:<24}{d:<12}{t}" for name, (d, t) in (("x", self.inputs), ("y", self.labels))]
        return lines


def placement(model: nn.Module, data: Data, *, moved: bool = False) -> Placement:
    """Check that parameters, buffers and a batch are on one device, and that inputs have the model's dtype.

    Nothing is run and nothing is moved, so it works on models that cannot run.

    Args:
        model: any module.
        data: a pair of tensors ``(x, y)`` or an iterable of batches, as the model is to be fed.
        moved: your loop moves each batch to the model, so that data on the CPU are no problem.

    Returns:
        The places and the verdict.

    Raises:
        ValueError: ``model`` is no module, or data has no batch ``(x, y)``.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2, device="meta"))
        >>> print(checks.placement(model, (torch.rand(3, 4), torch.arange(3) % 2)).problems[0])
        the model is on 2 devices, cpu and meta: '1.weight' is on meta
    """
    op = "placement"
    require_module(op, model)
    x, y = _first_batch(op, data)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    problems = []
    notes = []

    devices = Counter(str(tensor.device) for tensor in tensors.values())
    home = devices.most_common(1)[0][0] if devices else None
    if len(devices) > 1:
        names = " and ".join(device for device, _ in devices.most_common())
        stray = next(name for name, tensor in tensors.items() if str(tensor.device) != home)
        problems.append(
            f"the model is on {len(devices)} devices, {names}: {stray!r} is on {tensors[stray].device}"
        )
    if home == "meta":
        problems.append("the model's tensors have no values: they are on the meta device")
    for name, tensor in (("x", x), ("y", y)):
        place = str(tensor.device)
        if place == "meta":
            problems.append(f"{name} has no values: it is on the meta device")
        elif home not in (None, place) and not (moved and place == "cpu"):
            problems.append(f"{name} is on {place}, the model on {home}: move each batch to the model")

    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    dtypes = Counter(tensor.dtype for tensor in floating.values())
    if len(dtypes) > 1:
        names = " and ".join(str(dtype) for dtype, _ in dtypes.most_common())
        notes.append(f"the model's floating-point tensors are {names}")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    embeds = any(isinstance(part, (nn.Embedding, nn.EmbeddingBag)) for part in model.modules())
    if parameter is not None and x.is_floating_point() and x.dtype not in dtypes:
        problems.append(f"x is {x.dtype}, the model {parameter.dtype}: cast one of them")
    elif not x.is_floating_point() and not x.is_complex() and not embeds:
        problems.append(f"x is {x.dtype} and the model embeds nothing: scale it first, e.g. x.float() / 255")
    if y.dtype != torch.int64:
        problems.append(f"y is {y.dtype} where class labels are int64")
    if len(x) != len(y):
        problems.append(f"the batch has {len(x)} inputs and {len(y)} labels")
    if x.is_floating_point() and x.device.type != "meta" and not bool(x.isfinite().all()):
        problems.append("x holds NaN or infinity")
    count = Counter((str(tensor.device), str(tensor.dtype)) for tensor in tensors.values())
    return Placement(
        problems=tuple(problems),
        notes=tuple(notes),
        model=dict(count.most_common()),
        inputs=(str(x.device), str(x.dtype)),
        labels=(str(y.device), str(y.dtype)),
    )


def _first_batch(op: str, data: Any) -> tuple[Tensor, Tensor]:
    batch = data if isinstance(data, tuple) else next(iter(data), None)
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        x, y = batch[:2]
        if all(isinstance(part, Tensor) and part.dim() for part in (x, y)):
            return x, y
    got = "nothing" if batch is None else type(batch).__name__
    raise ValueError(
        f"{op}: data must be a pair of tensors (x, y) or yield (x, y) or (x, y, sample_ids); got {got}"
    )
