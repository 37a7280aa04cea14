"""A model from the code that builds it and the file that holds its weights."""

from __future__ import annotations

import importlib.util
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from brittle import _files

_OP = "load_model"
_NAMED = 3  # unfit keys shown of each kind
_HOLDS_NAN = ("floating-point", "complex")
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
            checkpoint or an exported program, whose parameters are taken. They must be of the model's kind:
            floating-point numbers of 16 bits or more are rounded to the width that the model has, as long as
            none becomes infinite; integers, such as quantised weights, are not taken for them.
        trust_checkpoint: you trust whoever made the checkpoint or exported program: reading it can run code.
        device: where the module goes, such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        ValueError: ``spec`` gives no module, the weights are no safetensors, may not be trusted or do not
            fit, or the device is not there.

    Warns:
        UserWarning: the weights hold NaN, or parameters of theirs are infinite.

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
        if tensor.is_meta or is_lazy(tensor):
            where = "on the meta device" if tensor.is_meta else "not initialised before a first forward"
            raise ValueError(f"{_OP}: the model's tensors must have values; {name} is {where}")
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
    _require_file("model must be FILE.py:FUNCTION; ", path)
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
    from safetensors.torch import load_file

    try:
        with _files.open_regular(path) as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"{_OP}: weights must be a file; {path}: {error.strerror}") from None
    if start[8:] == b"{":
        try:
            state: dict[str, Tensor] = load_file(path)
            return state
        except Exception as error:  # of types that this torch does not have, too
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
    _require_file("", path)
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
        if name in state and not is_lazy(own[name]) and state[name].shape != own[name].shape
    ]
    unfit = {"missing": missing, "not in the model": unexpected, "of another shape": reshaped}
    unfit |= _of_another_kind(own, state)
    if any(unfit.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in unfit.items() if names)
        raise ValueError(f"{_OP}: {path} must fit the model; {listed}")
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # a module may load its own way, and a tensor may be of no dense kind
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{_OP}: {path} must fit the model; {reason}") from error
    _warn_of_nonfinite(model, path, state)


def _of_another_kind(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What torch would convert without a word, and to other values."""
    kinds, ranges = [], []
    for name in own:
        if name not in state:
            continue
        given, wanted = state[name], own[name].dtype
        pair = f"{name} {_short(given.dtype)} for {_short(wanted)}"
        if given.is_meta or given.layout != own[name].layout:
            kinds.append(f"{name} {'without values' if given.is_meta else _short(given.layout)}")
        elif given.dtype == wanted:
            continue
        elif _kind(given.dtype) != _kind(wanted):
            kinds.append(pair)
        elif given.dtype.is_floating_point or given.dtype.is_complex:
            if bool((given.isfinite() & ~given.to(wanted).isfinite()).any()):
                ranges.append(pair)
        elif not torch.equal(given.to(wanted).to(given.dtype), given):
            ranges.append(pair)
    return {"of another kind": kinds, "too large": ranges}


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        # Below 16 bits floating-point numbers are quantised too, and wait for a scale.
        return "floating-point" if dtype.itemsize > 1 else str(dtype)
    return "bool" if dtype == torch.bool else "integer"


def _warn_of_nonfinite(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    found = []
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or _kind(tensor.dtype) not in _HOLDS_NAN:
            continue
        # A buffer may well be infinite: a mask of attention is.
        wrong = ~tensor.isfinite() if name in parameters else tensor.isnan()
        if wrong.any():
            found.append(name)
    if found:
        warnings.warn(f"{_OP}: {path} holds NaN or infinite values in {_some(found)}", stacklevel=4)


def _require_file(expected: str, path: Path) -> None:
    try:
        _files.require_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{_OP}: {expected}there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"{_OP}: {expected}{path} cannot be read: {error.strerror}") from None


def _identity(tensor: Tensor) -> tuple[object, ...]:
    if is_lazy(tensor):
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.numel() or id(tensor)


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
