"""Noise on a network's inputs or hidden features while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brittle import _checks as check
from brittle.noise._state import HostValue, signed
from brittle.noise.functional import apply

Bounds = tuple[float, float]


class NoiseInjection(nn.Module):
    """Adds noise to what passes through it in training mode, and nothing in evaluation mode.

    Each call in training mode is one step and draws anew: step t gives sample i the noise of the function
    in :mod:`brittle.noise` for ``kind`` with the same seed, ``sample_ids`` i and ``draw=t``. ``step`` and
    ``seed`` are buffers, so they are in ``state_dict``: a run resumed from a checkpoint draws what it would
    have drawn. Give every injection of a model a seed of its own, or two layers get the same noise.

    Without sample ids a sample is known by its place in the batch, and the ranks of a distributed run draw
    the same noise. A forward pass that is repeated, as activation checkpointing does, is another step with
    other noise: keep injections out of such segments.
    ``torch.compile`` runs it between two graphs (no ``fullgraph``), and never compiles anew for a step.

    Args:
        kind: ``"gaussian"``, ``"uniform"``, ``"laplace"``, ``"speckle"``, ``"shot"``, ``"salt_and_pepper"``
            or ``"dropout"``.
        scale: sigma, width, scale, sigma, photons, amount or rate of the function of that name.
        schedule: maps the step to a factor on ``scale``, finite and >= 0; by default 1. For ``"shot"`` a
            smaller factor is more noise.
        seed: 64 bits.
        bounds: the result is clamped to them; ``None`` for no bounds. ``"salt_and_pepper"`` needs them.
        always: inject in evaluation mode too.

    Shape:
        ``[N, ...]`` floating point, and the same out. Gradients flow as through the functions.

    Raises:
        ValueError: at once for a wrong kind, scale, seed or bounds; when called, for a wrong ``x``,
            ``sample_ids`` or factor.

    References:
        Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 1995.
        Poole, Sohl-Dickstein and Ganguli, "Analyzing noise in autoencoders and deep networks", 2014.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Sequential(brittle.noise.NoiseInjection("gaussian", 0.1), torch.nn.Linear(4, 2))
        >>> x = torch.rand(8, 4)
        >>> torch.equal(model(x), model(x)), torch.equal(model.eval()(x), model(x))
        (False, True)
        >>> int(model.state_dict()["0.step"])
        2
    """

    step: Tensor
    seed: Tensor

    def __init__(
        self,
        kind: str,
        scale: float,
        schedule: Callable[[int], float] | None = None,
        seed: int = 0,
        bounds: Bounds | None = None,
        *,
        always: bool = False,
    ) -> None:
        super().__init__()
        check.check_scalar("NoiseInjection", "scale", scale)
        check.check_seed("NoiseInjection", seed)
        # The kernel's own checks, on a sample that nobody sees.
        apply("NoiseInjection", "scale", torch.zeros(1, 1), kind, scale, seed, bounds=bounds)
        self.kind, self.scale, self.schedule, self.bounds, self.always = kind, scale, schedule, bounds, always
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(signed(seed), dtype=torch.int64))
        self._step_value, self._seed_value = HostValue(), HostValue()
        self._ids: Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """``x`` with this step's noise; ``x`` itself if inactive."""
        if not (self.training or self.always):
            return x
        step, scale = self._step_value.of(self.step), self.scale
        if self.schedule is not None:
            scale *= check.check_scalar("NoiseInjection", "schedule's factor", float(self.schedule(step)))
        ids = self._ids if sample_ids is None else sample_ids
        seed = self._seed_value.of(self.seed)
        noisy = apply("NoiseInjection", "scale", x, self.kind, scale, seed, ids, step, self.bounds)
        self._step_value.add_(self.step, 1)
        return noisy

    @contextlib.contextmanager
    def using_ids(self, sample_ids: Tensor) -> Iterator[None]:
        """Inside the ``with`` block calls without ids take these: for where no argument can be passed.

        Example:
            >>> import torch, brittle
            >>> injection = brittle.noise.NoiseInjection("gaussian", 0.1)
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), injection, torch.nn.Linear(8, 2))
            >>> with injection.using_ids(torch.tensor([17, 4])):
            ...     logits = model(torch.rand(2, 4))
        """
        before, self._ids = self._ids, sample_ids
        try:
            yield
        finally:
            self._ids = before

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.kind!r}, scale={self.scale:g}, seed={int(self.seed)}, bounds={self.bounds}"


def inject(model: nn.Module, layer_name: str, injection: NoiseInjection) -> RemovableHandle:
    """Send the output of one of the model's layers through ``injection``, until the handle is removed.

    The layer's mode counts as well as the injection's own: nothing is injected while either is in evaluation
    mode (unless ``injection.always``). ``injection`` does not become part of the model: save its state beside
    the model's.

    Args:
        model: the module to inject into.
        layer_name: as in ``model.named_modules()``. The layer must return a tensor ``[N, ...]``.
        injection: what its output goes through.

    Returns:
        A handle with ``remove()`` that is also a context manager, removing on leaving.

    Raises:
        ValueError: there is no such layer; when called, it returns something else than a tensor.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, injection = torch.rand(3, 4), brittle.noise.NoiseInjection("dropout", 0.5)
        >>> clean = model(x)
        >>> with brittle.noise.inject(model, "1", injection):
        ...     torch.equal(model(x), clean)
        False
        >>> torch.equal(model(x), clean)
        True
    """
    if not isinstance(injection, NoiseInjection):
        raise ValueError(f"inject: injection must be a NoiseInjection; got {type(injection).__name__}")
    layers = dict(model.named_modules(remove_duplicate=False))
    if layer_name not in layers:
        names = ", ".join(repr(name) for name in layers if name)
        raise ValueError(f"inject: layer_name must be one of {names}; got {layer_name!r}")

    def hook(layer: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"inject: layer {layer_name!r} must return a tensor; got {type(output).__name__}"
            )
        return injection(output) if layer.training or injection.always else output

    handle: RemovableHandle = layers[layer_name].register_forward_hook(hook)
    return handle
