"""What decides whether a run may go on: the same weights, data, settings and streams, or an error that names
what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brittle.target import Model

# The model's answers to a few samples, so that code that changed under the same weights is noticed. Another
# processor or library sums in another order, and may.
_ALIKE = 1e-3


class RunMismatch(ValueError):  # noqa: N818
    """The folder holds a run of something else."""


def of_weights(model: Model) -> str:
    """SHA-256 over every parameter's and buffer's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    if isinstance(model, nn.Module):
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    else:
        digest.update(b"a callable without weights")
    return digest.hexdigest()


def differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two fingerprints disagree on, a line each: ``name: then, now``."""
    lines = []
    for name in sorted(begun.keys() | now.keys()):
        then, present = begun.get(name), now.get(name)
        if name == "answers":
            if not _alike(then, present):
                lines.append("the model's answers to the first samples")
        elif then != present:
            lines.append(f"{name} ({_short(then)} then, {_short(present)} now)")
    return lines


def check(begun: Mapping[str, Any], now: Mapping[str, Any], out: Any) -> None:
    """Raise RunMismatch if a run that was begun with one fingerprint cannot go on with another."""
    found = differences(begun, now)
    if found:
        raise RunMismatch(
            f"evaluate: the run in {out} must be resumed with what it was begun with; got another "
            f"{'; another '.join(found)}. Use --fresh (fresh=True) to begin a new run in a folder beside it"
        )


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _alike(a: Any, b: Any) -> bool:
    if a is None or b is None or len(a) != len(b):
        return a is b
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    if x.shape != y.shape:
        return False
    return bool(((x - y).abs() <= _ALIKE * x.abs().max().clamp(min=1.0)).all())


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text
