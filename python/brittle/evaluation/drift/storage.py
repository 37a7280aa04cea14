"""A reference as a file: safetensors, whose one metadata entry is JSON. Nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brittle._files import write_whole

FORMAT = 1

_ENTRY = "brittle_drift_reference"


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write both to ``path``; a file that is there is replaced in one step, or stays as it is."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    facts = {"format": FORMAT, **facts}
    text = json.dumps({"facts": facts, "digest": _digest(tensors, facts)}, sort_keys=True)
    write_whole(path, save(tensors, {_ENTRY: text}))


def read(op: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write` wrote; ValueError if ``path`` holds anything else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{op}: path must be an existing file; got {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{op}: path must be an undamaged drift reference; {path}: {error}") from None
    if text is None:
        raise ValueError(f"{op}: path must be a drift reference; {path} is another safetensors file")
    try:
        entry = json.loads(text)
        facts, digest = dict(entry["facts"]), entry["digest"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{op}: path must be an undamaged drift reference; {path} has no facts") from None
    if facts.get("format") != FORMAT:
        raise ValueError(f"{op}: path must hold format {FORMAT}; {path} has format {facts.get('format')!r}")
    if digest != _digest(tensors, facts):
        raise ValueError(
            f"{op}: path must be an undamaged drift reference; the contents of {path} do not match its digest"
        )
    return tensors, facts


def _digest(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
