"""A model from the code that builds it and the file that holds its weights."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_OP = "load_model"
_NAMED = 3  # unfit keys shown of each kind
_NESTED = ("state_dict", "model_state_dict", "model")

_NO_BOUNDARY = (
    "reading it can run code that whoever made it put there: neither a torch checkpoint nor an exported "
    "program is a security boundary; pass trust_checkpoint=True (--trust-checkpoint) if you trust its maker, "
    "or convert it once, where it can do no harm:"
)


def load_model(
    spec: str, weights: Path | None = None, trust_checkpoint: bool = False, device: str = "cpu"
) -> nn.Module:
    """The module that ``spec`` names, with its weights, on a device and in evaluation mode.

    Args:
        spec: ``FILE.py:FUNCTION``: the file is run, as it is your own code, and FUNCTION, called without
            arguments, returns the module. torch's generator is seeded with 0 meanwhile, so that every process
            starts from the same parameters. With ``trust_checkpoint`` also an exported program, ``NET.pt2``.
        weights: a safetensors file with the module's ``state_dict``; with ``trust_checkpoint`` also a torch
            checkpoint or an exported program, whose parameters are taken.
        trust_checkpoint: you trust whoever made the checkpoint or exported program: reading it can run code.
        device: where the module goes, such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        ValueError: ``spec`` gives no module, the weights are no safetensors, may not be trusted or do not
            fit, or the device is not there.

    Example:
        >>> import pathlib, tempfile
        >>> from brittle.loading import load_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "net.py")
        ...     _ = path.write_text("import torch\\ndef build():\\n    return torch.nn.Linear(4, 2)")
        ...     load_model(f"{path}:build")
        Linear(in_features=4, out_features=2, bias=True)
    """
    place = _device(device)
    if spec.endswith(".pt2"):
        model: nn.Module = _Exported(_exported(Path(spec), trust_checkpoint))
    else:
        model = _built(spec)
    if weights is not None:
        _fill(model, weights, _state(weights, trust_checkpoint))
    for name, tensor in _tensors(model).items():
        if tensor.is_meta:
            raise ValueError(f"{_OP}: the model's tensors must have values; {name} is on the meta device")
    model = model.to(place).eval()
    for name, tensor in _tensors(model).items():
        if tensor.device.type != place.type:
            raise ValueError(f"{_OP}: the model must go to {device}; {name} stays on {tensor.device}")
    return model


class _Exported(nn.Module):
    """An exported program as a module; it has no modes to switch between."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()

    def forward(self, x: Tensor) -> Any:
        return self.program(x)

    def train(self, mode: bool = True) -> _Exported:
        self.training = mode
        return self


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{_OP}: device must be one of this machine; got {name!r}: {_line(error)}") from None
    if device.type == "meta":
        raise ValueError(f"{_OP}: device must be one that computes; got {name!r}")
    return device


def _built(spec: str) -> nn.Module:
    """What FUNCTION of FILE.py returns."""
    file, colon, function = spec.rpartition(":")
    path = Path(file)
    if not colon or not function.isidentifier() or path.suffix != ".py":
        raise ValueError(f"{_OP}: model must be FILE.py:FUNCTION or an exported NET.pt2; got {spec!r}")
    if not path.is_file():
        raise ValueError(f"{_OP}: model must be FILE.py:FUNCTION; there is no file {file}")
    folder = str(path.resolve().parent)
    # As `python FILE.py` would, so that the file can import its neighbours.
    sys.path.insert(0, folder)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = _run(path)
            build = getattr(module, function, None)
            model = build() if callable(build) and not isinstance(build, nn.Module) else build
    except (Exception, SystemExit) as error:
        raise ValueError(f"{_OP}: {_where(error, path)}: {type(error).__name__}: {_line(error)}") from error
    finally:
        sys.path.remove(folder)
    if build is None:
        raise ValueError(f"{_OP}: {file} must define {function}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{_OP}: {spec} must return a torch.nn.Module; got {type(model).__name__}")
    return model


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_brittle_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Classes look up their module while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException, path: Path) -> str:
    """The last line of the user's file that the error came through."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _state(path: Path, trusted: bool) -> Mapping[str, Tensor]:
    """Parameters and buffers by name; the file's content, not its name, decides how it is read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"{_OP}: weights must be a file; {path}: {error.strerror}") from None
    if start[8:] == b"{":
        try:
            state: dict[str, Tensor] = load_file(path)
            return state
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{_OP}: {path} must be a whole safetensors file; {_line(error)}") from None
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"{_OP}: weights must be a safetensors file; {path} is none")
    if path.suffix == ".pt2":
        return dict(_exported(path, trusted).state_dict)
    if not trusted:
        raise ValueError(
            f"{_OP}: {path} is no safetensors file but a torch checkpoint, and {_NO_BOUNDARY}\n"
            f"    state = torch.load({path.name!r}, weights_only=True)\n"
            f"    safetensors.torch.save_file(state, {path.stem + '.safetensors'!r})"
        )
    return _checkpoint(path)


def _checkpoint(path: Path) -> Mapping[str, Tensor]:
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # classes of the user's own; they are trusted
            content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ValueError(f"{_OP}: {path} cannot be read as a torch checkpoint; {_line(error)}") from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), (Mapping, nn.Module)):
            content = content[key]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{_OP}: {path} must hold a state_dict, alone or as {', '.join(map(repr, _NESTED))}; "
            f"got {type(content).__name__}"
        )
    return dict(content)


def _exported(path: Path, trusted: bool) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise ValueError(f"{_OP}: there is no file {path}")
    if not trusted:
        raise ValueError(
            f"{_OP}: {path} is an exported program, and {_NO_BOUNDARY}\n"
            f"    state = dict(torch.export.load({path.name!r}).state_dict)\n"
            f"    safetensors.torch.save_file(state, {path.stem + '.safetensors'!r})"
        )
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ValueError(f"{_OP}: {path} cannot be read as an exported program; {_line(error)}") from error


def _fill(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> None:
    """Load ``state`` into the model, key by key, or say which keys do not fit."""
    own = model.state_dict()
    if isinstance(model, _Exported):
        state = {f"program.{name}": tensor for name, tensor in state.items()}
    if state and all(name.startswith("module.") for name in state) and not state.keys() & own.keys():
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's
    # Of tensors that are one, safetensors keeps one name.
    filled = {_identity(own[name]) for name in state.keys() & own.keys()}
    missing = [name for name in own if name not in state and _identity(own[name]) not in filled]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    unfit = {"missing": missing, "not in the model": unexpected, "of another shape": reshaped}
    if any(unfit.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in unfit.items() if names)
        raise ValueError(f"{_OP}: {path} must fit the model; {listed}")
    model.load_state_dict(state, strict=False)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.numel() or id(tensor)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
