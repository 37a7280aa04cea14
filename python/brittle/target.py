"""The model under test: prepared once for fast gradients, and left exactly as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from brittle._folding import fold_batchnorm as folded
from brittle._folding import frozen_copy

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]
Bounds = tuple[float, float]

_CONFIRMING = 16  # samples

#: How often a model whose answers waver is asked about a success, and in what share of the answers it must
#: hold: a search asks at every step, and half of them would come about by luck. The first few answers, of
#: which more than half must hold, spare the others most of the time.
ANSWERS, SHARE, FIRST_ANSWERS = 100, 0.6, 15

# By how much logits may move where the batch does, relative to the largest: rounding, in the model's dtype.
_REGROUPED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
_REPEATED_ON_DEVICE = 1e-4  # in two forwards of one batch, of kernels that add in any order


class RandomisedModelWarning(UserWarning):
    """What the model answers about a sample does not depend on that sample alone."""


PRECISIONS = ("float32", "bfloat16", "auto")


class Evaluation(NamedTuple):
    """One forward of N samples, and the gradient of its loss."""

    logits: Tensor  # [N, C]
    loss: Tensor  # [N]
    gradient: Tensor  # like the input


@dataclass
class _Shared:
    """What a target keeps between runs, and those that were lent under another name with it.

    Attributes:
        search: the copy to search on; None where the search runs on the model itself.
        prepared_from: the state of the model that ``search`` was made from; None before there was one.
        writes: whether the model writes into its input; None before it was asked.
        forwards, backwards: evaluations, in samples.
        runs: how many runs are under way.
    """

    search: Model | None = None
    prepared_from: _State | None = None
    writes: bool | None = None
    forwards: int = 0
    backwards: int = 0
    runs: int = 0


class Target:
    """A classifier prepared for attack, in two forms.

    *The caller's own model*, in its own precision, is what every verdict is certified with. It is lent for
    the length of a run (a ``with`` block, which the attacks open themselves): evaluation mode, parameters
    frozen. When the run ends, by success or by exception, everything is as before: each module's train or
    eval flag, each parameter's ``requires_grad``, every buffer bit for bit, and torch's global random state.
    ``.grad`` is never touched: gradients are taken with respect to the input alone, which spares the backward
    pass the weight gradients. What a forward writes into the model's *parameters* stays. A model that writes
    into its input, as some do that normalise in place, is handed copies, so that neither the data nor the
    iterates change.

    *The search model* is what an attack climbs on. Where the options allow it to be faster it is a copy:
    batch-norm folded into the layer before it, channels-last, bfloat16, compiled. It is made on first use and
    again when the bits of the model's parameters or buffers have changed, however they were; and at the start
    of every run its logits are compared with the model's on a few samples, so that whatever else has changed
    is noticed, too. Its logits are float32 at least. Whatever it finds counts only if the caller's own model
    is fooled too. A model that cannot be copied is searched itself, with a warning.

    A target can be copied and pickled as its model can, between runs; the copy prepares itself anew.

    Args:
        model: an ``nn.Module`` or a callable that maps ``[N, ...]`` to logits ``[N, C]``. A callable that is
            no module is called as it is, without a copy.
        bounds: the smallest and the largest value of the inputs.
        mean, std: per channel (dimension 1), if the model expects ``(x - mean) / std``; attacks, eps and
            bounds then stay in the units of ``x``.
        precision: of the search: ``"float32"`` is the model's own dtype; ``"bfloat16"`` searches in bfloat16;
            ``"auto"`` does so where the device multiplies it natively and the model is float32.
        channels_last: memory format of the search copy's convolutions and of the iterates; ``"auto"`` for
            models with ``nn.Conv2d`` layers.
        fold_batchnorm: fold batch-norm layers where that is exact.
        compile: run the search copy through ``torch.compile``.
        fixed_batch: call the model with exactly so many samples each time, the last ones padded. Libraries
            choose their kernels, and with them the order of their sums, by the shape of the whole batch; at
            one shape a sample's logits and gradient have the same bits whatever batch it comes in.

    Attributes:
        forwards, backwards: evaluations spent so far, in samples, on either form.

    Raises:
        ValueError: the model is not callable, or an option is none of those above.

    Example:
        >>> import torch, brittle
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(),
        ...                           torch.nn.Linear(8 * 36, 10))
        >>> target = brittle.Target(net, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
        >>> x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
        >>> brittle.pgd(target, x, y, eps=8 / 255, steps=5).shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(
        self,
        model: Model,
        bounds: Bounds = (0.0, 1.0),
        mean: Tensor | list[float] | tuple[float, ...] | None = None,
        std: Tensor | list[float] | tuple[float, ...] | None = None,
        *,
        precision: str = "float32",
        channels_last: bool | str = "auto",
        fold_batchnorm: bool = True,
        compile: bool = False,
        fixed_batch: int | None = None,
        name: str = "Target",
    ) -> None:
        if not callable(model):
            raise ValueError(f"{name}: model must be a module or a callable; got {type(model).__name__}")
        if precision not in PRECISIONS:
            raise ValueError(f"{name}: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        if channels_last not in (True, False, "auto"):
            raise ValueError(f"{name}: channels_last must be True, False or 'auto'; got {channels_last!r}")
        if not bounds[0] < bounds[1]:
            raise ValueError(f"{name}: bounds must be (lo, hi) with lo < hi; got ({bounds[0]}, {bounds[1]})")
        if fixed_batch is not None and not (isinstance(fixed_batch, int) and fixed_batch >= 1):
            raise ValueError(f"{name}: fixed_batch must be an integer >= 1 or None; got {fixed_batch!r}")
        self.model = model
        self.fixed_batch = fixed_batch
        self.bounds = float(bounds[0]), float(bounds[1])
        self.name = name
        self._shared = _Shared()
        self._mean, self._std = _statistics(name, mean, std)
        module = model if isinstance(model, nn.Module) else None
        convolutional = module is not None and any(isinstance(m, nn.Conv2d) for m in module.modules())
        self.channels_last = convolutional if channels_last == "auto" else bool(channels_last)
        self._half = module is not None and in_bfloat16(precision, module, self.device)
        self._fold = fold_batchnorm
        self._compile = compile
        self._labels = (0, 0)
        self._confirmed = self._fresh = False  # the search copy, in this run
        self._wavers: bool | None = None  # the model's answers, in this run
        self._company = torch.empty(0)  # samples to ask it among, where its batches mix
        self._frozen: list[nn.Parameter] = []
        self._undo = ExitStack()

    @classmethod
    def of(
        cls, model: Model | Target, name: str, bounds: Bounds | None = None, precision: str | None = None
    ) -> Target:
        """``model`` under the name of an operator: prepared if it is a target or ``precision`` is given; else
        as it is: no copy, no folding, its own bits.

        Args:
            model: a target, which is left as it is but for its counters; a module or a callable.
            name: the operator to name in error messages.
            bounds: of the inputs; None for the target's own, or (0, 1).
            precision: of the search, for a model that is no target.
        """
        if isinstance(model, Target):
            if bounds is not None and tuple(bounds) != model.bounds:
                raise ValueError(f"{name}: bounds must be the target's own {model.bounds}; got {bounds}")
            if precision is not None:
                raise ValueError(
                    f"{name}: precision must be None for a Target, which has its own; got {precision!r}"
                )
            lent = cls.__new__(cls)
            vars(lent).update(vars(model), name=name, _undo=ExitStack())
            return lent
        bounds = (0.0, 1.0) if bounds is None else bounds
        if precision is not None:
            return cls(model, bounds, precision=precision, name=name)
        return cls(model, bounds, channels_last=False, fold_batchnorm=False, name=name)

    @property
    def forwards(self) -> int:
        """Forwards so far, in samples, of either form."""
        return self._shared.forwards

    @forwards.setter
    def forwards(self, count: int) -> None:
        self._shared.forwards = count

    @property
    def backwards(self) -> int:
        """Backwards so far, in samples, of either form."""
        return self._shared.backwards

    @backwards.setter
    def backwards(self, count: int) -> None:
        self._shared.backwards = count

    @property
    def _search(self) -> Model | None:
        return self._shared.search

    def __getstate__(self) -> dict[str, Any]:
        if self._shared.runs:
            raise TypeError(
                f"{self.name}: a Target cannot be copied or pickled during a run, while its model is frozen "
                "and in evaluation mode; do so before or after"
            )
        spent = _Shared(forwards=self.forwards, backwards=self.backwards)
        return {**vars(self), "_shared": spent, "_frozen": [], "_undo": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _undo=ExitStack())

    @property
    def device(self) -> torch.device | None:
        """Where the model's parameters or buffers are; None for a callable or a model without either."""
        if isinstance(self.model, nn.Module):
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                return tensor.device
        return None

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's first floating-point parameter; float32 for a model without any."""
        if isinstance(self.model, nn.Module):
            for tensor in self.model.parameters():
                if tensor.is_floating_point():
                    return tensor.dtype
        return torch.float32

    @property
    def searches_on_a_copy(self) -> bool:
        """Whether the search model is another than the caller's own."""
        return self._search is not None

    def __enter__(self) -> Target:
        with ExitStack() as undo:
            devices = [self.device] if self.device is not None and self.device.type == "cuda" else []
            undo.enter_context(torch.random.fork_rng(devices=devices))
            # Attacks need gradients whatever mode the caller is in.
            undo.enter_context(torch.inference_mode(False))
            undo.enter_context(torch.enable_grad())
            if isinstance(self.model, nn.Module):
                _refuse_unready(self.name, self.model)
                self._prepare(self.model)
                undo.callback(_Snapshot(self.model).restore)
                with suppress(NotImplementedError):  # an exported program has no modes
                    self.model.eval()
                self._frozen = [part for part in self.model.parameters() if part.requires_grad]
                for part in self._frozen:
                    part.requires_grad_(False)
            self._wavers, self._company = None, torch.empty(0)
            self._shared.runs += 1
            undo.callback(self._end)
            self._undo = undo.pop_all()
        return self

    def _end(self) -> None:
        self._shared.runs -= 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def thaw(self) -> None:
        """Let the caller's parameters require gradients, as they did, until the run ends.

        Torch multiplies a batch of matrices by a weight in another order where the weight is frozen, so the
        peers' bits need theirs. Gradients are still taken with respect to the input alone.
        """
        for parameter in self._frozen:
            parameter.requires_grad_()

    def expect_labels(self, y: Tensor) -> None:
        """From here on logits must have a class for every label in ``y``."""
        # Read back from the device once, rather than at each step.
        if y.numel():
            smallest, largest = y.aminmax()
            self._labels = (int(smallest), int(largest))

    def logits(self, x: Tensor, sample_ids: Tensor, *, own: bool = True) -> Tensor:
        """Logits ``[N, C]`` without a graph; ValueError names the samples that give NaN."""
        with torch.no_grad():
            logits = self._forward(x, own)
        nan = logits.isnan().any(1)
        if nan.any():
            self.refuse_nan(sample_ids[nan])
        return logits

    @torch.enable_grad()  # whatever the code that yields the data has left switched off
    def evaluate(self, x: Tensor, loss: Loss, *, own: bool = False, reduction: str = "sum") -> Evaluation:
        """Logits, the loss to ascend, and its gradient with respect to ``x``.

        Args:
            x: ``[N, ...]``.
            loss: maps logits to ``[N]``, for example :func:`brittle.losses.attack_loss`.
            own: use the caller's own model rather than the search model.
            reduction: of the loss before the backward pass. With ``"sum"`` a sample's gradient does not
                depend on the others in its batch; ``"mean"`` scales it by 1 / N as the peers do.
        """
        leaf = x.detach().requires_grad_()
        logits = self._forward(leaf, own)
        if not logits.requires_grad:
            raise ValueError(
                f"{self.name}: the model's logits must depend on x through differentiable operations; "
                "got logits without a graph"
            )
        losses = loss(logits)
        self.backwards += len(x)
        (grad,) = torch.autograd.grad(losses.sum() if reduction == "sum" else losses.mean(), leaf)
        return Evaluation(logits.detach(), losses.detach(), grad)

    def probe(self, x: Tensor) -> bool:
        """Whether what the model answers about a sample depends on more than that sample: it wavers. Asked
        once a run, with its first samples, and answered with a warning.

        The same samples are given to the model twice, which tells of numbers drawn in its forward and of
        state that moves, and then in two halves, which tells of batches whose samples mix.
        """
        if self._wavers is not None or len(x) == 0:
            return bool(self._wavers)
        some = x[:_CONFIRMING]
        with torch.no_grad():
            try:
                once, again = self._forward(some, own=True), self._forward(some, own=True)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                return self.probe(some[: len(some) // 2])  # of none, nothing is known; who attacks will tell
            halves = torch.cat([self._forward(half, own=True) for half in some.chunk(2)])
        largest = once.abs().where(once.isfinite(), 0).max()
        exact = 0.0 if x.device.type == "cpu" else _REPEATED_ON_DEVICE * largest
        drawn, mixed = _largest(once - again), _largest(once - halves)
        self._wavers = True
        consequence = (
            f"A point counts as adversarial only if it is so in {SHARE:.0%} of {ANSWERS} repeated forwards"
        )
        if drawn > exact:
            warnings.warn(
                f"{self.name}: the model gave other logits for the same samples the second time (by up to "
                f"{drawn:.3g}): it draws random numbers, or keeps state, in evaluation mode. {consequence}; "
                "fix what is random in it, or average over it, for a verdict that can be repeated",
                RandomisedModelWarning,
                stacklevel=3,
            )
        elif mixed > _REGROUPED.get(self.dtype, 1e-4) * largest:
            warnings.warn(
                f"{self.name}: the model gave other logits for the same samples among fewer others (by up "
                f"to {mixed:.3g}): what it answers depends on the whole batch, as batch-norm in training "
                f"mode does. {consequence}, each in other company",
                RandomisedModelWarning,
                stacklevel=3,
            )
            self._company = some.clone()
        else:
            self._wavers = False
        return self._wavers

    def holds(
        self, x: Tensor, sample_ids: Tensor, succeeded: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Of a model that wavers: whether successes at ``x`` hold when it is asked again.

        Args:
            x: the points.
            sample_ids: int64 ``[N]``.
            succeeded: of predictions int64 ``[n]`` and the places in ``x`` that they are for, bool ``[n]``.

        Returns:
            bool ``[N]``, and int64 ``[N]``, how often each point was asked about.
        """
        places, asked = torch.arange(len(x), device=x.device), torch.zeros_like(sample_ids)
        for count, share in ((FIRST_ANSWERS, 0.5), (ANSWERS, SHARE)):
            successes = torch.zeros(len(x), device=x.device, dtype=torch.int64)
            for _ in range(count if len(places) else 0):
                # In another order, in two parts, among the run's first samples: none keeps its company.
                order = places[torch.randperm(len(places), device=x.device)]
                for part in order.chunk(2):
                    points = torch.cat([x[part], self._company]) if len(self._company) else x[part]
                    ids = torch.cat([sample_ids[part], sample_ids.new_full((len(self._company),), -1)])
                    shuffled = torch.randperm(len(points), device=x.device)
                    predicted = torch.empty_like(ids)
                    predicted[shuffled] = self.logits(points[shuffled], ids[shuffled]).argmax(1)
                    successes[part] += succeeded(predicted[: len(part)], part)
            asked[places] += count
            places = places[successes[places] > share * count - 0.5]
        return torch.zeros_like(asked, dtype=torch.bool).index_fill(0, places, True), asked

    def confirm_copy(self, x: Tensor) -> bool:
        """Whether the search copy computes what the model does; compared once a run, on its first samples.

        What the model computes may have changed since the copy was made without a change of its parameters:
        an activation or a number in it was replaced. Then the copy is made anew. And a model may use its
        layers in ways that the preparation cannot see: where the logits of a new copy are not alike either,
        it is dropped with a warning and the search runs on the model itself.
        """
        if self._search is None or self._confirmed or len(x) == 0:
            return self._search is not None
        self._confirmed = True
        apart = self._apart(x[:_CONFIRMING])
        if apart and not self._fresh and isinstance(self.model, nn.Module):
            self._shared.prepared_from = None
            self._prepare(self.model)
            apart = self._apart(x[:_CONFIRMING])
        if apart:
            warnings.warn(
                f"{self.name}: the prepared copy of the model gave other logits than the model itself (by up "
                f"to {apart:.3g}), so the search runs on the model; with "
                "fold_batchnorm=False the other preparations may still apply",
                RuntimeWarning,
                stacklevel=2,
            )
            self._shared.search = None
        return not apart

    def _apart(self, x: Tensor) -> float:
        """By how much the two forms' logits differ; 0 where that is within rounding."""
        if self._search is None:
            return 0.0
        with torch.no_grad():
            own, copied = self._forward(x, own=True), self._forward(x, own=False)
        if own.shape != copied.shape:
            return torch.inf
        allowed = (0.1 if self._half else 1e-3) * own.abs().max()
        difference = (own - copied).abs()
        # Where the model's own logits are NaN, its samples will be named elsewhere.
        alike = (difference <= allowed).where(own.isfinite(), True)
        return 0.0 if bool(alike.all()) else float(difference.max())

    def normalized(self, x: Tensor) -> Tensor:
        """``(x - mean) / std``, what the module itself takes; ``x`` where the target has neither."""
        if self._mean is None or self._std is None:
            return x
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, std = (part.to(x).reshape(shape) for part in (self._mean, self._std))
        return (x - mean) / std

    def refuse_nan(self, sample_ids: Tensor) -> None:
        """Raise ValueError with the ids of samples whose logits are NaN."""
        count, shown = len(sample_ids), some(sample_ids)
        raise ValueError(f"{self.name}: the model gave NaN logits for {count} sample(s): {shown}")

    def _forward(self, x: Tensor, own: bool) -> Tensor:
        self.forwards += len(x)
        model = self.model if own or self._search is None else self._search
        x = self.normalized(x)
        if model is not self.model and self._half:
            x = x.to(torch.bfloat16)
        size = self.fixed_batch
        if size is None or len(x) == 0:
            return self._checked(self._call(model, x), len(x))
        padding = x[:1].detach().expand(-len(x) % size, *x.shape[1:])
        last = self.channels_last and model is not self.model and x.dim() == 4
        parts = torch.split(torch.cat([x, padding]), size)
        logits = [self._checked(self._call(model, _laid_out(part, last)), size) for part in parts]
        return torch.cat(logits)[: len(x)]

    def _call(self, model: Model, x: Tensor) -> Any:
        """``model(x)``, after which ``x`` holds what it did.

        The first call is handed a copy, and tells whether the model writes into its input. One that does is
        handed copies from then on; one that did not, and does it later, is refused: its iterate is lost.
        """
        copies = self._shared.writes is not False
        given = x.clone() if copies else x
        before = given._version
        try:
            logits = model(given)
        except AssertionError as error:
            if isinstance(model, torch.fx.GraphModule) and "Guard failed" in str(error):
                raise ValueError(
                    f"{self.name}: the model must take {len(x)} samples; got an exported program that says: "
                    f"{_line(error)}. Export it with a dynamic first dimension, or hand over Target(model, "
                    "fixed_batch=N) with the N that it was exported for"
                ) from None
            raise
        except RuntimeError as error:
            if x.dtype == self.dtype or not isinstance(self.model, nn.Module) or model is not self.model:
                raise
            # Some models take other dtypes, and for those that do not this is why.
            raise ValueError(
                f"{self.name}: x must be {str(self.dtype)[6:]}, as the model's parameters are; got "
                f"{str(x.dtype)[6:]}, at which it says: {_line(error)}"
            ) from error
        writes = given._version != before
        if writes and not copies:
            raise ValueError(
                f"{self.name}: the model must not write into its input; it did so, although not at its first "
                "call: let it begin with x = x.clone()"
            )
        self._shared.writes = writes or bool(self._shared.writes)
        return logits

    def _checked(self, logits: Any, count: int) -> Tensor:
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"{self.name}: the model must return a tensor of logits; got {type(logits).__name__}"
            )
        if logits.dim() != 2 or len(logits) != count or not logits.is_floating_point():
            raise ValueError(
                f"{self.name}: the model must return floating-point logits [N, C] with N = {count}; "
                f"got {logits.dtype} {list(logits.shape)}"
            )
        smallest, largest = self._labels
        if smallest < 0 or largest >= logits.shape[1]:
            raise ValueError(
                f"{self.name}: y must be in [0, {logits.shape[1]}) for logits of {logits.shape[1]} classes; "
                f"got labels from {smallest} to {largest}"
            )
        # Half-type logits would round the loss to a few values.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def _prepare(self, model: nn.Module) -> None:
        """Make the search copy, unless one of the model as it is now is at hand."""
        self._confirmed = self._fresh = False
        shared, wanted = self._shared, self._half or self.channels_last or self._compile
        if not (wanted or self._fold):
            return
        state = _State.of(model)
        if state == shared.prepared_from:
            return
        self._fresh = True
        search = folded(model) if self._fold else None
        if search is None and wanted:
            try:
                search = frozen_copy(model)
            except Exception as error:
                warnings.warn(
                    f"{self.name}: the model cannot be copied ({type(error).__name__}: {_line(error)}), so "
                    "the search runs on the model itself, in its own precision",
                    RuntimeWarning,
                    stacklevel=4,
                )
        if search is not None:
            if self._half:
                search.to(torch.bfloat16)
            if self.channels_last:
                search.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self._compile:
                search = torch.compile(search)  # type: ignore[assignment]
        shared.search, shared.prepared_from = search, state


def _laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """``x`` in strides that its shape alone decides: a dimension of length 1 leaves torch a choice of them,
    and kernels are chosen by strides, too."""
    if not channels_last:
        return x.reshape(-1).view(x.shape)
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1).view(n, h, w, c).permute(0, 3, 1, 2)


def _statistics(name: str, mean: Any, std: Any) -> tuple[Tensor | None, Tensor | None]:
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ValueError(f"{name}: mean and std must be given together; got mean={mean}, std={std}")
    mean, std = (torch.as_tensor(part, dtype=torch.float64).flatten() for part in (mean, std))
    if mean.shape != std.shape or not bool((std > 0).all()):
        raise ValueError(f"{name}: mean and std must have one length, std > 0; got {mean} and {std}")
    return mean, std


def in_bfloat16(precision: str, model: nn.Module, device: torch.device | None) -> bool:
    """Whether a search of this precision, one of :data:`PRECISIONS`, is made in bfloat16."""
    if precision != "auto":
        return precision == "bfloat16"
    if not all(p.dtype == torch.float32 for p in model.parameters()) or device is None:
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _State(NamedTuple):
    """What a model is, as far as its modules and the bits of its tensors tell."""

    modules: tuple[tuple[Any, ...], ...]  # names, identities, forwards of their own, settings
    tensors: tuple[tuple[Any, ...], ...]
    sums: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module) -> _State:
        """One read of the weights. Versions are not enough: writing through ``.data``, a NumPy view or
        another library leaves them as they were."""
        modules = tuple(
            (name, id(module), id(vars(module).get("forward")), *_settings(module))
            for name, module in model.named_modules()
        )
        tensors = [tensor for tensor in _tensors(model) if not tensor.is_meta]
        facts = tuple((id(t), t._version, t.dtype, t.shape, t.device) for t in tensors)
        parts = [_sums(t) for t in tensors]
        # One wait for each device, not for each tensor.
        by_device: dict[torch.device, list[Tensor]] = {}
        for part in parts:
            by_device.setdefault(part.device, []).append(part)
        sums = tuple(value for some in by_device.values() for value in torch.cat(some).tolist())
        return cls(modules, facts, sums)


def _settings(module: nn.Module) -> Iterator[Any]:
    """Such as a slope or an epsilon. Not integers, which may count the calls, and not the modes."""
    for name, value in vars(module).items():
        if isinstance(value, (float, str)) or (isinstance(value, bool) and name != "training"):
            yield value


_CHUNKS = 64


def _sums(tensor: Tensor) -> Tensor:
    """int64 sums over the bits of a tensor, a chunk each, so that what moves from one to another is seen."""
    bits = _bits(tensor.detach()).reshape(-1)
    if len(bits) % (2 * _CHUNKS) == 0 and bits.element_size() == 4:
        bits = bits.view(torch.int64)  # twice as fast
    whole = len(bits) // _CHUNKS * _CHUNKS
    chunks = bits[:whole].view(_CHUNKS, -1).sum(1, dtype=torch.int64)
    return torch.cat([chunks, bits[whole:].sum(dtype=torch.int64).unsqueeze(0)])


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, without a copy."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _refuse_unready(name: str, model: nn.Module) -> None:
    """Raise ValueError for a model whose parameters cannot take part in a gradient."""
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name}: the model must have its parameters; got {key}, which is made by the first forward: "
                "call the model once before"
            )
        if tensor.is_inference():
            raise ValueError(
                f"{name}: the model must be made outside torch.inference_mode(), whose tensors take part in "
                f"no gradient; got {key}, which was made in it"
            )


class _Snapshot:
    """What an attack could change of a module, and how to put it back."""

    def __init__(self, model: nn.Module) -> None:
        # A frozen script has no modes.
        self.modes = [(m, m.training) for m in model.modules() if hasattr(m, "training")]
        self.parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        # Scripts keep their buffers where Python cannot exchange them, but these can be written to.
        self.registers = [
            (module._buffers, dict(module._buffers))
            for module in model.modules()
            if isinstance(module._buffers, dict)
        ]
        self.buffers = [(b, b._version, b.detach().clone()) for b in model.buffers()]

    def restore(self) -> None:
        for module, training in self.modes:
            module.training = training
        for parameter, requires_grad in self.parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for register, buffers in self.registers:
            # A buffer may have been replaced, added or taken away.
            register.clear()
            register.update(buffers)
        with torch.no_grad():
            # Unwritten buffers are left alone: copying would invalidate graphs that saved them. Their version
            # does not tell: batch-norm's kernels do not count what they write.
            for (buffer, _, value), written in zip(self.buffers, self._written(), strict=True):
                if buffer.shape != value.shape:
                    buffer.resize_(value.shape)
                if written:
                    buffer.copy_(value)

    def _written(self) -> list[bool]:
        """Which buffers do not hold the bits that they did."""
        found = [
            buffer._version != version or buffer.shape != value.shape
            for buffer, version, value in self.buffers
        ]
        unsure = [k for k, written in enumerate(found) if not (written or self.buffers[k][0].is_meta)]
        by_device: dict[torch.device, list[int]] = {}
        for place in unsure:
            by_device.setdefault(self.buffers[place][0].device, []).append(place)
        for places in by_device.values():
            pairs = (self.buffers[place] for place in places)
            differ = torch.stack([(_bits(b.detach()) != _bits(value)).any() for b, _, value in pairs])
            for place, written in zip(places, differ.tolist(), strict=True):
                found[place] = written
        return found


def _largest(difference: Tensor) -> float:
    return float(difference.abs().nan_to_num(0.0).max()) if difference.numel() else 0.0


def some(ids: Tensor) -> str:
    """The first of some samples' ids."""
    shown = ids[:20].tolist()
    return ", ".join(map(str, shown)) + (", ..." if len(ids) > 20 else "")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
