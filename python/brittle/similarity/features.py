"""What the layers of a model compute: caught by forward hooks, one batch at a time."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from torch.utils.hooks import RemovableHandle

from brittle import _checks as check
from brittle.data import batches
from brittle.target import Target

Pool = str | Callable[[Tensor], Tensor]

#: A tensor, a pair of tensors ``(x, y)``, or an iterable of batches that are ``x`` or begin with it.
Inputs = Tensor | tuple[Tensor, ...] | Iterable[Any]


class LayerFeatures:
    """The outputs of a model's layers as features ``[N, D]``, from the last forward pass of the whole model.

    Inside a ``with`` block every call of the model is watched; :meth:`of` and :meth:`stream` run the model
    themselves and need no block. A layer that runs several times in one pass gives several entries:
    ``"relu"``, ``"relu:1"``, ``"relu:2"``. Entries are in the order in which the layers finish.

    Of an output that is a tuple, list, mapping or dataclass, the first floating-point tensor counts whose
    first dimension is the batch (that of the first tensor the model is called with). Features are detached
    and are what the layer gave, even if a later layer overwrites its output in place.

    Everything is held until the next pass, so memory is that of all features of a batch; ``keep`` reduces it
    to what is needed. Torch's fused transformer layers, which bypass the modules inside them, are switched
    off while the model is watched. Hooks go when the block ends, by success or by exception, and leave
    nothing behind.

    Args:
        model: an ``nn.Module``, or a :class:`brittle.Target` of one, whose ``mean`` and ``std`` then apply.
        layers: names as in ``model.named_modules()``, or patterns such as ``"layer*.conv1"``; ``"relu:1"`` is
            the second run of ``"relu"`` alone. None for every layer that runs no other layer inside it and
            gives features.
        pool: ``"flatten"`` takes ``[N, ...]`` as it is; ``"mean"`` averages over space (``[N, C, H, W]`` to
            ``[N, C]``) or tokens (``[N, T, C]`` to ``[N, C]``); ``"first"`` takes the first of the tokens.
            Both leave ``[N, C]`` alone. A callable maps the output to any ``[N, ...]``; of layers that were
            asked for, that output need not have the batch first: ``lambda out: out.transpose(0, 1)``.
        keep: maps features ``[N, D]`` to what is to be held in their place; called in the hook. A tensor
            that it returns may be a view of them, and is then copied; nothing else it returns may hold one.
        name: the operator to name in error messages.

    Raises:
        ValueError: no such layer, with the nearest names; an unknown ``pool``. In the forward pass, where a
            layer was asked for by name or pattern: its output has no floating-point tensor ``[N, ...]``.
            (With ``layers=None`` such layers are left out.)

    Example:
        >>> import torch
        >>> from brittle.similarity import LayerFeatures
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> with LayerFeatures(model, ["0", "1"], pool="mean") as features:
        ...     out = model(torch.rand(5, 1, 8, 8))
        >>> features["1"].shape
        torch.Size([5, 4])
        >>> norms = LayerFeatures(model, keep=lambda rows: rows.norm(dim=1))
        >>> list(norms.of(torch.rand(5, 1, 8, 8)))
        ['0', '1', '2']
    """

    def __init__(
        self,
        model: nn.Module | Target,
        layers: str | Sequence[str] | None = None,
        pool: Pool = "flatten",
        keep: Callable[[Tensor], Any] | None = None,
        *,
        name: str = "LayerFeatures",
    ) -> None:
        module = model.model if isinstance(model, Target) else model
        if not isinstance(module, nn.Module):
            raise ValueError(f"{name}: model must be an nn.Module; got {type(module).__name__}")
        if not callable(pool) and pool not in _POOLS:
            names = ", ".join(map(repr, _POOLS))
            raise ValueError(f"{name}: pool must be {names} or a callable; got {pool!r}")
        self.name = name
        self.model = module
        self.target = Target.of(model, name)
        self._prepared = isinstance(model, Target)
        self._pool = pool
        self._keep = keep
        # Every name that a module goes by, and the one of them that its entries have.
        first = {id(part): path for path, part in module.named_modules()}
        self._modules = {path: first[id(part)] for path, part in module.named_modules(remove_duplicate=False)}
        if isinstance(layers, str):
            layers = [layers]
        self._asked = None if layers is None else self._resolve(layers)
        self._chosen = {runs for several in (self._asked or {}).values() for runs in several}
        self._handles: list[RemovableHandle] = []
        self._fast = True
        self._samples: int | None = None
        self._inside: list[int] = []  # of every layer that is running, how many have run in it
        self._ran = False
        self._finished: dict[str, int] = {}  # runs of every layer
        self._entries: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The entries of the last forward pass."""
        return tuple(self._entries)

    def __getitem__(self, layer: str) -> Any:
        runs = self._runs_of(layer)
        if runs is None:
            raise ValueError(f"{self.name}: {self._no_such_layer(layer)}")
        entry = _entry(runs[0], runs[1] or 0)
        if entry not in self._entries:
            raise ValueError(f"{self.name}: {self._nothing_from(layer, *runs)}")
        return self._entries[entry]

    def __contains__(self, layer: object) -> bool:
        return layer in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> ItemsView[str, Any]:
        """Entries and what is held of each."""
        return self._entries.items()

    def __enter__(self) -> LayerFeatures:
        if self._handles:
            raise ValueError(f"{self.name}: the block must be left before it is entered again")
        chosen = None if self._asked is None else {path for path, _ in self._chosen}
        self._fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        start = self.model.register_forward_pre_hook(self._begin(), with_kwargs=True)
        self._handles.append(start)
        for path, module in self.model.named_modules():
            # Reparametrisations run whenever a weight is read; they are no layers.
            if path in chosen if chosen is not None else "parametrizations" not in path.split("."):
                self._handles.append(module.register_forward_pre_hook(self._before()))
                self._handles.append(module.register_forward_hook(self._after(path)))
        return self

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def of(self, x: Tensor) -> dict[str, Any]:
        """Run the model on ``x [N, ...]``, in evaluation mode and without gradients.

        The model is given back as it was (see :func:`brittle.fgsm`), also after an exception.

        Returns:
            Entries and what is held of each.

        Raises:
            ValueError: a layer that was asked for did not run, or gave no features.
        """
        with ExitStack() as undo:
            undo.enter_context(self.target)
            undo.enter_context(torch.no_grad())
            if not self._handles:
                undo.enter_context(self)
            x = x if self.target.device is None else x.to(self.target.device)
            if self._prepared:
                self.target.logits(x, torch.arange(len(x)))
            else:
                self.model(x.clone())  # it may write into its input
        for layer, runs in (self._asked or {}).items():
            if not any(_entry(path, run or 0) in self._entries for path, run in runs):
                raise ValueError(f"{self.name}: {self._nothing_from(layer, *runs[0])}")
        if not self._entries:
            raise ValueError(f"{self.name}: model must have a layer that gives features; got none")
        return dict(self._entries)

    def stream(self, data: Inputs, batch_size: int = 256) -> Iterator[dict[str, Any]]:
        """Run the model over a data set and yield what :meth:`of` returns, batch by batch.

        The model is lent for the length of each forward pass only: between two batches, and whenever the
        generator is closed, it is as the caller left it.

        Args:
            data: a tensor ``x``, a pair of tensors ``(x, y)``, or an iterable of batches ``x``, ``(x,)``,
                ``(x, y)`` or ``(x, y, sample_ids)``, such as a DataLoader. Only ``x`` is used; it is moved to
                the model's device.
            batch_size: for tensors.

        Raises:
            ValueError: there are no samples; a batch is none of these; as for :meth:`of`.

        Example:
            >>> import torch
            >>> from brittle.similarity import LayerFeatures
            >>> features = LayerFeatures(torch.nn.Linear(4, 2), keep=lambda rows: rows.mean(0))
            >>> len(list(features.stream(torch.rand(100, 4), batch_size=32)))
            4
        """
        check.check_count(self.name, "batch_size", batch_size)
        return (self.of(x) for x in inputs(self.name, data, batch_size, self.target))

    def _runs_of(self, layer: str) -> tuple[str, int | None] | None:
        """A layer by name, and which of its runs (None: every); None if there is no such layer."""
        if layer in self._modules:
            return self._modules[layer], None
        base, _, run = layer.rpartition(":")
        return (self._modules[base], int(run)) if base in self._modules and run.isdigit() else None

    def _resolve(self, layers: Sequence[str]) -> dict[str, list[tuple[str, int | None]]]:
        """What each name or pattern stands for."""
        found: dict[str, list[tuple[str, int | None]]] = {}
        for layer in layers:
            runs = self._runs_of(layer)
            if runs is not None:
                found[layer] = [runs]
                continue
            matches = (self._modules[path] for path in self._modules if fnmatch.fnmatchcase(path, layer))
            found[layer] = [(path, None) for path in dict.fromkeys(matches)]
            if not found[layer]:
                raise ValueError(f"{self.name}: {self._no_such_layer(layer)}")
        if not found:
            raise ValueError(f"{self.name}: layers must name at least one layer; got none")
        return found

    def _no_such_layer(self, layer: str) -> str:
        near = difflib.get_close_matches(layer, filter(None, self._modules), n=3, cutoff=0.5)
        hint = f" (nearest: {', '.join(map(repr, near))})" if near else ""
        return f"layers must be names or patterns of model.named_modules(){hint}; got {layer!r}"

    def _nothing_from(self, layer: str, path: str, run: int | None) -> str:
        if not self._ran:
            return f"the model must run before features are asked for; layer {layer!r} has none yet"
        if self._asked is not None and path not in {path for path, _ in self._chosen}:
            return f"layer must be one of those captured, {', '.join(map(repr, self._asked))}; got {layer!r}"
        times = self._finished.get(path, 0)
        if 0 < times <= (run or 0):
            return f"layer {path!r} must run again for {layer!r} to have features; got {times} run(s)"
        if times:
            return (
                f"layer {layer!r} must be named in layers, as it runs others inside it or gives no features "
                "[N, ...]"
            )
        return (
            f"layer {layer!r} must run in the forward pass; it never ran (the module around it may use its "
            "parameters without calling it)"
        )

    # Hooks are plain functions: a model that is copied while it is watched copies them by reference.

    def _begin(self) -> Callable[..., None]:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((part for part in _tensors((args, kwargs)) if part.dim()), None)
            self._samples = None if given is None else len(given)
            self._ran = True
            self._inside, self._finished, self._entries = [], {}, {}

        return begin

    def _before(self) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inside.append(0)

        return before

    def _after(self, path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            inner = self._inside.pop()
            if self._inside:
                self._inside[-1] += 1
            run = self._finished.get(path, 0)
            self._finished[path] = run + 1
            wanted = not inner if self._asked is None else bool({(path, None), (path, run)} & self._chosen)
            if not wanted:
                return
            entry = _entry(path, run)
            features = self._features(entry, output)
            if features is not None:
                self._entries[entry] = self._held(features, output)

        return after

    def _features(self, entry: str, output: Any) -> Tensor | None:
        """``[N, D]``; None where there are none and nobody asked for them."""
        given = list(_tensors(output))
        found = [part for part in given if part.is_floating_point() and part.dim()]
        fitting = [part for part in found if self._samples in (None, len(part))]
        if callable(self._pool) and self._asked is not None:
            fitting = fitting or found
        if not fitting:
            if self._asked is None:
                return None
            got = _described(given) or type(output).__name__
            raise ValueError(
                f"{self.name}: layer {entry!r} must give a floating-point tensor [N, ...] with N = "
                f"{self._samples}; got {got}"
            )
        features = self._pooled(entry, fitting[0].detach())
        if features is None:
            return None
        return features.unsqueeze(1) if features.dim() == 1 else features.flatten(1)

    def _pooled(self, entry: str, output: Tensor) -> Tensor | None:
        if not callable(self._pool):
            pooled = _POOLS[self._pool](output)
            if pooled is None and self._asked is not None:
                raise ValueError(
                    f"{self.name}: layer {entry!r} must give [N, T, C] or [N, C] for pool={self._pool!r}; "
                    f"got {_described([output])}"
                )
            return pooled
        pooled = self._pool(output)
        samples = len(output) if self._samples is None else self._samples
        right = isinstance(pooled, Tensor) and pooled.is_floating_point() and pooled.shape[:1] == (samples,)
        if not right:
            got = _described([pooled]) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise ValueError(
                f"{self.name}: pool must map the output of layer {entry!r} to a floating-point tensor "
                f"[N, ...] with N = {samples}; got {got}"
            )
        return pooled

    def _held(self, features: Tensor, output: Any) -> Any:
        kept = features if self._keep is None else self._keep(features)
        # What comes next may write to the layer's own memory.
        own = {part.untyped_storage().data_ptr() for part in _tensors(output)}
        if isinstance(kept, Tensor) and kept.untyped_storage().data_ptr() in own:
            return kept.clone()
        return kept


def _entry(path: str, run: int) -> str:
    return f"{path}:{run}" if run else path


def inputs(op: str, data: Inputs, batch_size: int, target: Target) -> Iterator[Tensor]:
    """``x`` of every batch that has samples, on the model's device; ValueError if there is none."""
    if isinstance(data, tuple) and len(data) == 1:
        data = data[0]
    if isinstance(data, Tensor):
        if not data.dim():
            raise ValueError(f"{op}: data must be [N, ...]; got a tensor of shape []")
        data = data, torch.arange(len(data))
    known: Any = data if isinstance(data, tuple) else _unlabelled(op, data)
    some = False
    for x, _, _ in batches(op, known, batch_size, target):
        if len(x):
            some = True
            yield x
    if not some:
        raise ValueError(f"{op}: data must hold samples; got none (was an iterator used up before?)")


def _unlabelled(op: str, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    single = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if single or not isinstance(loader, Iterable) or isinstance(loader, (str, Mapping)):
        raise ValueError(
            f"{op}: data must be tensors or yield batches, as a DataLoader does; got {type(loader).__name__}"
        )
    for batch in loader:
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(x, Tensor) or not x.dim():
            raise ValueError(
                f"{op}: data must yield x, (x, y) or (x, y, sample_ids) with a tensor x [N, ...]; "
                f"got {type(batch).__name__}"
            )
        yield x, torch.arange(len(x))


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every dense tensor in what a module takes or gives, in order."""
    if isinstance(output, Tensor):
        if not output.is_nested and output.layout == torch.strided:
            yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))


def _described(tensors: Iterable[Tensor]) -> str:
    return ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


def _mean(output: Tensor) -> Tensor:
    if output.dim() <= 2:
        return output
    return output.mean(1) if output.dim() == 3 else output.flatten(2).mean(2)


def _first(output: Tensor) -> Tensor | None:
    if output.dim() <= 2:
        return output
    return output[:, 0] if output.dim() == 3 else None


_POOLS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "flatten": lambda output: output,
    "mean": _mean,
    "first": _first,
}
