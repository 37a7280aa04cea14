"""The model under test: borrowed for an attack, and given back exactly as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]


class Evaluation(NamedTuple):
    """One forward of N samples, and the gradient of its loss where one was asked for."""

    logits: Tensor  # [N, C]
    loss: Tensor  # [N]
    gradient: Tensor | None  # like the input


class Target:
    """A model in evaluation mode with frozen parameters, for as long as the ``with`` block lasts.

    On leaving, by success or by exception, everything is as before: each module's train or eval flag, each
    parameter's ``requires_grad``, every buffer bit for bit, and torch's global random state. ``.grad`` is
    never touched: gradients are taken with respect to the input alone, which also spares the backward
    pass the weight gradients. A callable that is no ``nn.Module`` is called as it is.

    Args:
        model: maps ``[N, ...]`` to logits ``[N, C]``.
        name: the operator to name in error messages.

    Attributes:
        forwards, backwards: evaluations spent so far, in samples.
    """

    def __init__(self, model: Model, name: str = "target") -> None:
        if not callable(model):
            raise ValueError(f"{name}: model must be a module or a callable; got {type(model).__name__}")
        self.model = model
        self.name = name
        self.forwards = 0
        self.backwards = 0
        self._labels = (0, 0)
        self._undo = ExitStack()

    @property
    def device(self) -> torch.device | None:
        """Where the model's parameters or buffers are; None for a callable or a model without either."""
        if isinstance(self.model, nn.Module):
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                return tensor.device
        return None

    def __enter__(self) -> Target:
        with ExitStack() as undo:
            devices = [self.device] if self.device is not None and self.device.type == "cuda" else []
            undo.enter_context(torch.random.fork_rng(devices=devices))
            # Attacks need gradients whatever mode the caller is in.
            undo.enter_context(torch.inference_mode(False))
            undo.enter_context(torch.enable_grad())
            if isinstance(self.model, nn.Module):
                undo.callback(_Snapshot(self.model).restore)
                self.model.eval()
                self.model.requires_grad_(False)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def expect_labels(self, y: Tensor) -> None:
        """From here on logits must have a class for every label in ``y``."""
        # Read back from the device once, rather than at each step.
        if y.numel():
            smallest, largest = y.aminmax()
            self._labels = (int(smallest), int(largest))

    def logits(self, x: Tensor, sample_ids: Tensor) -> Tensor:
        """The model's logits ``[N, C]`` without a graph, checked."""
        with torch.no_grad():
            return self._forward(x, sample_ids)

    def evaluate(
        self,
        x: Tensor,
        y: Tensor,
        sample_ids: Tensor,
        *,
        targeted: bool = False,
        gradient: bool = True,
        reduction: str = "sum",
    ) -> Evaluation:
        """Logits, the loss to ascend, and its gradient with respect to ``x``.

        The loss is cross-entropy towards ``y``, negated if targeted. With the sum reduction a sample's
        gradient does not depend on the others in its batch; ``"mean"`` scales it by 1 / N as the peers do.
        """
        sign = -1 if targeted else 1
        if not gradient:
            logits = self.logits(x, sample_ids)
            return Evaluation(logits, sign * self._cross_entropy(logits, y, "none"), None)
        leaf = x.detach().requires_grad_()
        logits = self._forward(leaf, sample_ids)
        if not logits.requires_grad:
            raise ValueError(
                f"{self.name}: the model's logits must depend on x through differentiable operations; "
                "got logits without a graph"
            )
        loss = sign * self._cross_entropy(logits, y, "none" if reduction == "sum" else "mean")
        self.backwards += len(x)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        if loss.dim() == 0:
            loss = sign * self._cross_entropy(logits.detach(), y, "none")
        return Evaluation(logits.detach(), loss.detach(), grad)

    def _forward(self, x: Tensor, sample_ids: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Any = self.model(x)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"{self.name}: the model must return a tensor of logits; got {type(logits).__name__}"
            )
        if logits.dim() != 2 or len(logits) != len(x) or not logits.is_floating_point():
            raise ValueError(
                f"{self.name}: the model must return floating-point logits [N, C] with N = {len(x)}; "
                f"got {logits.dtype} {list(logits.shape)}"
            )
        smallest, largest = self._labels
        if smallest < 0 or largest >= logits.shape[1]:
            raise ValueError(
                f"{self.name}: y must be in [0, {logits.shape[1]}) for logits of {logits.shape[1]} classes; "
                f"got labels from {smallest} to {largest}"
            )
        nan = logits.detach().isnan().any(1)
        if nan.any():
            ids = sample_ids[nan].tolist()
            shown = ", ".join(map(str, ids[:20])) + (", ..." if len(ids) > 20 else "")
            raise ValueError(f"{self.name}: the model gave NaN logits for {len(ids)} sample(s): {shown}")
        return logits

    def _cross_entropy(self, logits: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(logits, y, reduction=reduction)


class _Snapshot:
    """What an attack could change of a module, and how to put it back."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, module.training) for module in model.modules()]
        self.parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        # A buffer may be written to, or be replaced by another tensor under the same name.
        self.buffers = [
            (module, name, buffer, buffer._version, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        for module, training in self.modes:
            module.training = training
        for parameter, requires_grad in self.parameters:
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for module, name, buffer, version, value in self.buffers:
                module._buffers[name] = buffer
                # Unwritten buffers are left alone: copying would invalidate graphs that saved them.
                if buffer._version != version:
                    buffer.copy_(value)
