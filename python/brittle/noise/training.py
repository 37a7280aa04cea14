"""Noise on a network's weights and on its gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from brittle import _checks as check
from brittle import ops
from brittle.noise._state import stream
from brittle.noise.functional import check_draw


@contextlib.contextmanager
def noise_weights(
    model: nn.Module,
    sigma: float,
    relative: bool = True,
    seed: int = 0,
    draw: int = 0,
    parameters: Iterable[str] | None = None,
) -> Iterator[None]:
    """Inside the ``with`` block the model's parameters carry Gaussian noise; after it they are as before.

    On leaving, by success or by exception, every parameter has its old bits again; what was done to them
    inside, by an optimizer for instance, is undone too. Values change in place, so a backward pass belongs
    on the same side of the block's edge as its forward pass (autograd refuses anything else).

    A parameter's noise depends on seed, draw and its place among ``model.named_parameters()``, not on the
    other parameters' sizes nor on which of them are chosen.

    Args:
        model: parameters that are not floating point are left alone, and so are buffers.
        sigma: finite and >= 0: of the noise, or with ``relative`` times each tensor's own standard deviation
            (so a tensor of equal values, a fresh bias or batch-norm weight, gets none).
        relative: see ``sigma``.
        seed: 64 bits.
        draw: in ``[0, 2**31)``; another draw is other noise.
        parameters: the names of those to change; by default all.

    Raises:
        ValueError: sigma, seed or draw out of range; a name that the model does not have.

    References:
        An, "The effects of adding noise during backpropagation training on a generalization performance",
        Neural Computation 1996.

    Example:
        >>> import torch, brittle
        >>> model, x = torch.nn.Linear(4, 2), torch.rand(3, 4)
        >>> before = model(x)
        >>> with brittle.noise.noise_weights(model, sigma=0.1):
        ...     torch.equal(model(x), before)
        False
        >>> torch.equal(model(x), before)
        True
    """
    op = "noise_weights"
    check.check_scalar(op, "sigma", sigma)
    check.check_seed(op, seed)
    check_draw(op, draw)
    named = dict(model.named_parameters())
    chosen = set(named if parameters is None else parameters)
    if unknown := sorted(chosen - named.keys()):
        raise ValueError(f"{op}: parameters must be names of the model's parameters; got {unknown[0]!r}")
    saved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for index, (name, parameter) in enumerate(named.items()):
            weight = parameter.detach()
            if name not in chosen or not weight.is_floating_point() or weight.numel() == 0:
                continue
            spread = weight.double().std(correction=0).item() if relative else 1.0
            if not math.isfinite(spread):
                raise ValueError(
                    f"{op}: parameter {name!r} must be finite for noise relative to it; got {spread}"
                )
            saved.append((parameter, weight.clone()))
            _add_(weight, sigma * spread, stream(seed, b"weights"), index, draw)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)


class GradientNoise:
    """What :func:`noise_gradients` returns: the noise on an optimizer's gradients, its state and its end."""

    def __init__(self, optimizer: torch.optim.Optimizer, sigma: float, seed: int, decay: float) -> None:
        op = "noise_gradients"
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"{op}: optimizer must be a torch Optimizer; got {type(optimizer).__name__}")
        self.sigma = check.check_scalar(op, "sigma", sigma)
        self.decay = check.check_scalar(op, "decay", decay)
        check.check_seed(op, seed)
        self.seed = seed
        self.step = 0
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    @property
    def current_sigma(self) -> float:
        """The standard deviation of the next step's noise."""
        return float(self.sigma * (1 + self.step) ** (-self.decay / 2))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the noise that this one would have drawn."""
        return {"step": self.step, "seed": self.seed, "sigma": self.sigma, "decay": self.decay}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.step, self.seed = state["step"], state["seed"]
        self.sigma, self.decay = state["sigma"], state["decay"]

    def remove(self) -> None:
        """Add no more noise."""
        self._handle.remove()

    def __enter__(self) -> GradientNoise:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # The hook is called with the optimizer itself as the first argument.
        if any(callable(value) for value in (*args[1:], kwargs.get("closure"))):
            raise ValueError(
                "noise_gradients: optimizer must step without a closure, which would compute "
                "other gradients after the noise; got one"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            grad = parameter.grad
            if grad is None or grad.numel() == 0:
                continue
            if grad.is_sparse:
                raise ValueError(
                    f"noise_gradients: gradients must be dense; got a sparse one, number {index}"
                )
            _add_(grad.detach(), self.current_sigma, stream(self.seed, b"gradient"), index, self.step)
        self.step += 1


def noise_gradients(
    optimizer: torch.optim.Optimizer, sigma: float, seed: int = 0, *, decay: float = 0.0
) -> GradientNoise:
    """Add Gaussian noise to every gradient right before each ``optimizer.step()``.

    At step t (from 0) the standard deviation is ``sigma / (1 + t) ** (decay / 2)``, the paper's
    ``sigma_t**2 = eta / (1 + t) ** gamma`` with ``sigma = sqrt(eta)`` and ``decay = gamma``; it uses gamma
    0.55 and eta 0.01, 0.3 or 1. A gradient's noise depends on seed, step and its parameter's place in the
    optimizer alone. Parameters without a gradient have none added. Gradient clipping, being called before the
    step, sees the gradients without noise.

    Args:
        optimizer: any that steps without a closure.
        sigma: standard deviation at step 0, in units of the gradients, finite and >= 0.
        seed: 64 bits.
        decay: finite and >= 0; 0 keeps sigma.

    Returns:
        An object with ``remove()`` (also a context manager), and with ``state_dict()`` and
        ``load_state_dict()`` to save beside the optimizer's.

    Raises:
        ValueError: sigma, decay or seed out of range; at the step, a closure or a sparse gradient.

    References:
        Neelakantan et al., "Adding gradient noise improves learning for very deep networks", 2015.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> noise = brittle.noise.noise_gradients(optimizer, sigma=0.3, decay=0.55)
        >>> model(torch.rand(3, 4)).sum().backward()
        >>> optimizer.step()
        >>> noise.state_dict()["step"]
        1
        >>> noise.remove()
    """
    return GradientNoise(optimizer, sigma, seed, decay)


def _add_(tensor: Tensor, sigma: float, seed: int, index: int, draw: int) -> None:
    """Gaussian noise in place on one tensor, taken as one sample whose id is ``index``."""
    rows = tensor.unsqueeze(0)
    ops.noise(rows, "gaussian", sigma, seed, torch.tensor([index], device=tensor.device), draw, out=rows)
