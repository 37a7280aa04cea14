"""Copies of models to try things on, samples to try them with, and torch's state left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from brittle import _checks as check
from brittle._folding import deep_copy
from brittle.data import Data, batches
from brittle.target import Target

LossFunction = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
#: A module, of which copies are trained, or a function that makes a new one.
Untrained = nn.Module | Callable[[], nn.Module]


@contextmanager
def trial(op: str, model: object, seed: int) -> Iterator[None]:
    """Gradients are on and torch's global random state begins at ``seed``; afterwards both are as before."""
    check.check_seed(op, seed)
    device = _device(model)
    devices = [device] if device is not None and device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        reseed(model, seed)
        yield


def reseed(model: object, seed: int) -> None:
    """Begin the random numbers anew, on the host and where the model is."""
    # torch.manual_seed would also seed devices that nobody puts back.
    torch.default_generator.manual_seed(seed % 2**63)
    device = _device(model)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed % 2**63)


def require_module(op: str, model: object) -> None:
    """``model`` is an ``nn.Module``, for only a module can be copied and trained."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{op}: model must be an nn.Module; got {type(model).__name__}")


def fresh(op: str, model: Untrained) -> nn.Module:
    """A copy in training mode, without gradients; or a new model, from a function that makes one."""
    made = deep_copy(model) if isinstance(model, nn.Module) else model() if callable(model) else model
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{op}: model must be an nn.Module or a function that makes one; got {type(made).__name__}"
        )
    made.zero_grad(set_to_none=True)
    return made.train()


def first_samples(op: str, data: Data, count: int, model: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` samples and their labels, where the model is; random numbers begin anew behind
    them, for a loader may have drawn some."""
    check.check_count(op, "batch_size", count)
    xs, ys, found = [], [], 0
    for x, y, _ in batches(op, data, count, Target.of(model, op)):
        check.check_labels(op, y, x)
        xs.append(x[: count - found])
        ys.append(y[: count - found])
        found += len(xs[-1])
        if found == count:
            break
    reseed(model, seed)
    return _joined(op, xs), _joined(op, ys)


def all_samples(op: str, data: Data, model: Callable[..., Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Every sample, label and id, where the model is."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for x, y, ids in batches(op, data, 1024, Target.of(model, op)):
        check.check_labels(op, y, x)
        kept.append((x, y, ids))
    x, y, ids = (_joined(op, [batch[k] for batch in kept]) for k in range(3))
    return x, y, ids


def logits_of(op: str, model: nn.Module, x: Tensor) -> Tensor:
    """What the model gives for ``x``: floating point ``[N, C]``, C > 1."""
    out = model(x.clone())  # it may write into its input
    fits = isinstance(out, Tensor) and out.is_floating_point() and out.dim() == 2
    if not fits or len(out) != len(x) or out.shape[1] < 2:
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"{op}: the model must return floating-point logits [N, C] with N = {len(x)}, C >= 2; got {got}"
        )
    logits: Tensor = out
    return logits


def check_classes(op: str, y: Tensor, classes: int) -> None:
    """There is a logit for every label."""
    smallest, largest = (int(value) for value in y.aminmax())
    if smallest < 0 or largest >= classes:
        raise ValueError(
            f"{op}: y must be in [0, {classes}) for logits of {classes} classes; "
            f"got labels from {smallest} to {largest}"
        )


def _device(model: object) -> torch.device | None:
    return Target(model, name="checks").device if isinstance(model, nn.Module) else None


def _joined(op: str, parts: Iterable[Tensor]) -> Tensor:
    kept = [part for part in parts if len(part)]
    if not kept:
        raise ValueError(f"{op}: data must hold samples; got none (was an iterator used up before?)")
    return torch.cat(kept)
