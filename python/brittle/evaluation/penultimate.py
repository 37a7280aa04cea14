"""What a classifier makes of its inputs just before its last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brittle.target import Model, Target


class Penultimate:
    """The features of the last forward pass of a watched model.

    Attributes:
        features: float32 ``[N, D]`` on the model's device: the input of the ``nn.Linear`` that ran last, a
            row for each sample. None before the first pass, if no such layer ran, or if its input has not
            the batch first.
        layer: that layer's name in ``model.named_modules()`` (``""`` for the model itself), or None.
    """

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.layer: str | None = None
        self._samples: int | None = None

    # Hooks are plain functions: a model that is copied while it is watched copies them by reference.

    def _begin(self) -> Callable[..., None]:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor) and part.dim()]
            self._samples = len(given[0]) if given else None
            self.features = self.layer = None

        return begin

    def _before(self, name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs["input"]
            self.layer = name
            if given.dim() < 2 or self._samples not in (None, len(given)):
                self.features = None
                return
            # A copy: what comes next may write to the input.
            self.features = given.detach().reshape(len(given), -1).to(torch.float32, copy=True)

        return before


@contextmanager
def capture_penultimate(model: Model | Target) -> Iterator[Penultimate]:
    """Watch ``model`` inside the block: after each forward pass, the input of its last linear layer.

    The layer is found anew in each pass: it is the last ``nn.Linear`` that is called, wherever it is defined.
    The hooks go when the block ends, by success or by exception.

    Args:
        model: a module, or a target of one. Any other callable has no layers to watch, and gives None.

    Yields:
        Where the features of the last forward pass are.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from brittle.evaluation.penultimate import capture_penultimate
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> with capture_penultimate(model) as last:
        ...     logits = model(torch.rand(5, 1, 8, 8))
        >>> last.layer, last.features.shape
        ('3', torch.Size([5, 16]))
        >>> torch.equal(model[3](last.features), logits)
        True
    """
    module = model.model if isinstance(model, Target) else model
    last = Penultimate()
    handles: list[RemovableHandle] = []
    try:
        if isinstance(module, nn.Module):
            handles.append(module.register_forward_pre_hook(last._begin(), with_kwargs=True))
            for name, part in module.named_modules():
                if isinstance(part, nn.Linear):
                    handles.append(part.register_forward_pre_hook(last._before(name), with_kwargs=True))
        yield last
    finally:
        for handle in handles:
            handle.remove()
