"""Training with noise on the inputs, or on the features inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from brittle.data import Data
from brittle.noise import NoiseInjection, inject
from brittle.repair.checkpoints import Arguments
from brittle.repair.loop import derived_seed
from brittle.repair.state import Batch, Step, Training, TrainingOptions
from brittle.repair.training import cross_entropy, train

if TYPE_CHECKING:
    from typing_extensions import Unpack

Bounds = tuple[float, float]

_NAME = "noise_train"


def noise_train(
    model: nn.Module,
    data: Data,
    *,
    scale: float,
    kind: str = "gaussian",
    layers: Iterable[str] | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    growth: Callable[[int], float] | None = None,
    step: Step | None = None,
    validation: Data | None = None,
    epochs: int = 40,
    seed: int = 0,
    callbacks: Iterable[Any] = (),
    **options: Unpack[TrainingOptions],
) -> Training:
    """Train a model in place on samples with noise, drawn anew at every step.

    The noise is that of :class:`brittle.noise.NoiseInjection`: a sample's at a step depends on seed, the
    sample's id and the step, not on the batch it is in. The model has none of it afterwards.

    Args:
        model: changed in place.
        data: as :func:`brittle.repair.train` takes it.
        scale: of the noise, in the inputs' (or the features') units; its meaning is the kind's.
        kind: ``"gaussian"``, ``"uniform"``, ``"laplace"``, ``"speckle"``, ``"shot"``, ``"salt_and_pepper"``
            or ``"dropout"``.
        layers: names of modules whose outputs get the noise, each its own; by default the inputs do. Modules
            that are not trained (see ``parameters``) run in evaluation mode, where none is injected.
        bounds: what noisy inputs are clamped to, None for no bounds. Features are not clamped; noise that
            needs bounds (``"salt_and_pepper"``) takes these.
        growth: maps the step to a factor on ``scale``; by default 1.
        step: of the training, given noisy inputs; by default :func:`~brittle.repair.cross_entropy`.
        validation, epochs, seed, callbacks, options: of :func:`brittle.repair.train`. Validation is without
            noise. ``seed`` is also that of the noise.

    Returns:
        The training.

    Raises:
        ValueError: an argument is out of range, or there is no such layer.

    References:
        Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 1995.
        Poole, Sohl-Dickstein and Ganguli, "Analyzing noise in autoencoders and deep networks", 2014 (layers).

    Example:
        >>> import torch, brittle
        >>> x = torch.rand(64, 4)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> training = brittle.repair.noise_train(model, (x, (x.mean(1) > 0.5).long()), scale=0.1, epochs=2)
        >>> training.epochs, len(training.history)
        (2, 2)
    """
    named = [None] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if not named:
        raise ValueError(f"{_NAME}: layers must name at least one module; got none")
    injections = {}
    for number, layer in enumerate(named):
        within = bounds if layer is None or kind == "salt_and_pepper" else None
        own_seed = derived_seed(seed, "noise", number)
        injections[layer] = NoiseInjection(kind, scale, growth, own_seed, within)

    def noisy_step(batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        with ExitStack() as stack:
            for injection in injections.values():
                stack.enter_context(injection.using_ids(batch.ids))
            if None in injections:
                batch = batch._replace(x=injections[None](batch.x))
            return (step or cross_entropy)(batch)

    with ExitStack() as hooks:
        for layer, injection in injections.items():
            if layer is not None:
                hooks.enter_context(inject(model, layer, injection))
        arguments = Arguments(_NAME, kind=kind, scale=scale, layers=named, bounds=bounds and tuple(bounds))
        return train(
            model,
            data,
            step=noisy_step,
            epochs=epochs,
            validation=validation,
            seed=seed,
            callbacks=[arguments, *injections.values(), *callbacks],
            name=_NAME,
            **options,
        )
