"""The state of a run as a file: safetensors, whose one metadata entry is JSON. Nothing in it is ever
executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from brittle._files import refuse_foreign, require_regular, write_whole

FORMAT = 1

_ENTRY = "brittle_training"


def write(op: str, path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``; a file that is there is replaced in one step, or stays as it is.

    Args:
        op: the operator to name in error messages.
        path: of the file.
        state: dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises:
        ValueError: there is something else in ``state``.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from brittle.repair import checkpoints
        >>> path = pathlib.Path(tempfile.mkdtemp(), "run.safetensors")
        >>> checkpoints.write("train", path, {"step": 3, "betas": (0.9, 0.999), 0: torch.ones(2)})
        >>> checkpoints.read("train", path)
        {'step': 3, 'betas': (0.9, 0.999), 0: tensor([1., 1.])}
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    tree = _flat(op, "state", state, tensors)
    refuse_foreign(op, path, _ENTRY.encode())
    write_whole(path, save(tensors, {_ENTRY: json.dumps({"format": FORMAT, "state": tree})}))


def read(op: str, path: Path) -> dict[str, Any]:
    """What :func:`write` wrote, tensors on the CPU; ValueError if ``path`` holds anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if text is None:
            raise ValueError(
                f"{op}: checkpoint must be one of a training; {path} is another safetensors file"
            )
        entry = json.loads(text)  # a loss in it may be no number, which the standard does not know
        if entry["format"] != FORMAT:
            raise ValueError(f"{op}: checkpoint must be of format {FORMAT}; {path} has {entry['format']!r}")
        state: dict[str, Any] = _deep(entry["state"], tensors)
        if not isinstance(state, dict):
            raise TypeError("its state is no dictionary")
        return state
    except json.JSONDecodeError as error:
        raise ValueError(f"{op}: checkpoint must be an undamaged file; {path}: {error}") from None
    except (SafetensorError, OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{op}: checkpoint must be an undamaged file; {path}: {error}") from None


class Arguments:
    """A callback without events: a run's checkpoint is refused by a run with other arguments.

    Args:
        op: the operator to name in error messages.
        arguments: plain data.

    Example:
        >>> from brittle.repair.checkpoints import Arguments
        >>> Arguments("op", n=5).load_state_dict({"n": 4})
        Traceback (most recent call last):
        ValueError: op: checkpoint must be of a run with the same arguments; it has n=4, this run n=5
    """

    def __init__(self, op: str, **arguments: Any) -> None:
        self.op, self.arguments = op, arguments

    def state_dict(self) -> dict[str, Any]:
        """The arguments."""
        return self.arguments

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless they are the same."""
        for name, value in self.arguments.items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"{self.op}: checkpoint must be of a run with the same arguments; it has "
                    f"{name}={state.get(name)}, this run {name}={value}"
                )


def _flat(op: str, name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``value``, the tensors in it moved to ``tensors``."""
    if isinstance(value, Tensor):
        # Tied weights share memory, which safetensors refuses; a copy each also frees the run to go on.
        tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        items = [[key, _flat(op, f"{name}[{key!r}]", part, tensors)] for key, part in value.items()]
        if not all(type(key) in (str, int) for key in value):
            raise ValueError(f"{op}: {name} must have keys that are strings or integers; got {list(value)}")
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_flat(op, f"{name}[{place}]", part, tensors) for place, part in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{op}: {name} must be a tensor or plain data to be stored; got {type(value).__name__}")


def _deep(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`_flat`."""
    if isinstance(value, list):
        return [_deep(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_deep(part, tensors) for part in content)
    return {key: _deep(part, tensors) for key, part in content}
