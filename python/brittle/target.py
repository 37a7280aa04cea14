"""The model under test: prepared once for fast gradients, and left exactly as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brittle._folding import fold_batchnorm as folded

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]
Bounds = tuple[float, float]

_CONFIRMING = 16  # samples

PRECISIONS = ("float32", "bfloat16", "auto")


class Evaluation(NamedTuple):
    """One forward of N samples, and the gradient of its loss."""

    logits: Tensor  # [N, C]
    loss: Tensor  # [N]
    gradient: Tensor  # like the input


class Target:
    """A classifier prepared for attack, in two forms.

    *The caller's own model*, in its own precision, is what every verdict is certified with. It is lent for
    the length of a run (a ``with`` block, which the attacks open themselves): evaluation mode, parameters
    frozen. When the run ends, by success or by exception, everything is as before: each module's train or
    eval flag, each parameter's ``requires_grad``, every buffer bit for bit, and torch's global random state.
    ``.grad`` is never touched: gradients are taken with respect to the input alone, which spares the backward
    pass the weight gradients.

    *The search model* is what an attack climbs on. Where the options allow it to be faster it is a copy:
    batch-norm folded into the layer before it, channels-last, bfloat16, compiled. It is made on first use and
    again when the caller's parameters have changed. Its logits are float32 at least. Whatever it finds counts
    only if the caller's own model is fooled too.

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
        self.forwards = 0
        self.backwards = 0
        self._mean, self._std = _statistics(name, mean, std)
        module = model if isinstance(model, nn.Module) else None
        convolutional = module is not None and any(isinstance(m, nn.Conv2d) for m in module.modules())
        self.channels_last = convolutional if channels_last == "auto" else bool(channels_last)
        self._half = module is not None and in_bfloat16(precision, module, self.device)
        self._fold = fold_batchnorm
        self._compile = compile
        self._search: Model | None = None
        self._confirmed = False
        self._prepared_from: tuple[tuple[int, int], ...] | None = None
        self._labels = (0, 0)
        self._frozen: list[nn.Parameter] = []
        self._undo = ExitStack()

    @classmethod
    def of(cls, model: Model | Target, name: str, bounds: Bounds | None = None) -> Target:
        """``model`` itself if it is prepared; else lent as it is: no copy, no folding, its own bits.

        Args:
            model: a target, a module or a callable.
            name: the operator to name in error messages.
            bounds: of the inputs; None for the target's own, or (0, 1).
        """
        if isinstance(model, Target):
            if bounds is not None and tuple(bounds) != model.bounds:
                raise ValueError(f"{name}: bounds must be the target's own {model.bounds}; got {bounds}")
            model.name = name
            return model
        bounds = (0.0, 1.0) if bounds is None else bounds
        return cls(model, bounds, channels_last=False, fold_batchnorm=False, name=name)

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
                self._prepare(self.model)
                undo.callback(_Snapshot(self.model).restore)
                self.model.eval()
                self._frozen = [part for part in self.model.parameters() if part.requires_grad]
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

    def confirm_copy(self, x: Tensor) -> bool:
        """Whether the search copy computes what the model does; compared once, on a few samples of the data.

        A model may use its layers in ways that the preparation cannot see. Where the logits are not alike,
        the copy is dropped with a warning and the search runs on the model itself.
        """
        if self._search is None or self._confirmed:
            return self._search is not None
        some = x[:_CONFIRMING]
        with torch.no_grad():
            own, copied = self._forward(some, own=True), self._forward(some, own=False)
        allowed = (0.1 if self._half else 1e-3) * own.abs().max().clamp(min=1.0)
        # Where the model's own logits are NaN, its samples will be named elsewhere.
        alike = bool(((own - copied).abs() <= allowed).where(own.isfinite(), True).all())
        if not alike:
            warnings.warn(
                f"{self.name}: the prepared copy of the model gave other logits than the model itself (by up "
                f"to {(own - copied).abs().max():.3g}), so the search runs on the model; with "
                "fold_batchnorm=False the other preparations may still apply",
                RuntimeWarning,
                stacklevel=2,
            )
            self._search = None
        self._confirmed = True
        return alike

    def normalized(self, x: Tensor) -> Tensor:
        """``(x - mean) / std``, what the module itself takes; ``x`` where the target has neither."""
        if self._mean is None or self._std is None:
            return x
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, std = (part.to(x).reshape(shape) for part in (self._mean, self._std))
        return (x - mean) / std

    def refuse_nan(self, sample_ids: Tensor) -> None:
        """Raise ValueError with the ids of samples whose logits are NaN."""
        ids = sample_ids.tolist()
        shown = ", ".join(map(str, ids[:20])) + (", ..." if len(ids) > 20 else "")
        raise ValueError(f"{self.name}: the model gave NaN logits for {len(ids)} sample(s): {shown}")

    def _forward(self, x: Tensor, own: bool) -> Tensor:
        self.forwards += len(x)
        model = self.model if own or self._search is None else self._search
        x = self.normalized(x)
        if model is not self.model and self._half:
            x = x.to(torch.bfloat16)
        size = self.fixed_batch
        if size is None or len(x) == 0:
            return self._checked(model(x), len(x))
        padding = x[:1].detach().expand(-len(x) % size, *x.shape[1:])
        last = self.channels_last and model is not self.model and x.dim() == 4
        parts = torch.split(torch.cat([x, padding]), size)
        logits = [self._checked(model(_laid_out(part, last)), size) for part in parts]
        return torch.cat(logits)[: len(x)]

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
        """Make the search copy, unless one of these very parameters is at hand."""
        version = tuple((id(t), t._version) for t in (*model.parameters(), *model.buffers()))
        if version == self._prepared_from:
            return
        search = folded(model) if self._fold else None
        if search is None and (self._half or self.channels_last or self._compile):
            search = copy.deepcopy(model).eval().requires_grad_(False)
        if search is not None:
            if self._half:
                search.to(torch.bfloat16)
            if self.channels_last:
                search.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self._compile:
                search = torch.compile(search)  # type: ignore[assignment]
        self._search, self._prepared_from, self._confirmed = search, version, False


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
