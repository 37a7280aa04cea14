"""Units of a layer, or a region of its map, silenced: for as long as one likes or for good."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from brittle import _checks as check
from brittle.repair.merging import repeats
from brittle.repair.silencing import Change, Merge, Silence
from brittle.repair.structure import layer_named, layer_with_units, norm_after, reader_of, units_of
from brittle.similarity.features import Inputs

Span = slice | tuple[int, int]
Region = tuple[Span, Span]


class Accusation(Protocol):
    """Of units: a :class:`brittle.diagnosis.Finding`, or :class:`DuplicateUnits`."""

    @property
    def layer(self) -> str:
        """The name of the layer."""

    @property
    def kind(self) -> str:
        """The kind of flaw."""

    @property
    def channels(self) -> Sequence[int]:
        """The units."""


class Accusations(Protocol):
    """Several: a :class:`brittle.diagnosis.Diagnosis`."""

    @property
    def flaws(self) -> Sequence[Accusation]:
        """All that was found."""


class Mask:
    """What :func:`mask` returns: which units are silent, and the way back.

    In a ``with`` block the mask ends with the block.

    Attributes:
        layer: its name.
        units: the silent units, ascending; of a mask of a region, none.
        norm: the name of the norm that is masked with the layer, or None.
        region: rows and columns as they were given, or None.
        merged: (masked unit, survivor) where the weights that read the first were handed on to the second.
        active: whether the mask is in place.
    """

    def __init__(self, layer: str, units: tuple[int, ...], norm: str | None, region: Region | None) -> None:
        self.layer = layer
        self.units = units
        self.norm = norm
        self.region = region
        self.merged: tuple[tuple[int, int], ...] = ()
        self.active = True
        self._changes: list[Change] = []
        self._hook: RemovableHandle | None = None

    def remove(self) -> None:
        """Give the layer its old function back: the very tensors, bit for bit unless they were trained."""
        while self._changes:
            self._changes.pop().remove()
        if self._hook is not None:
            self._hook.remove()
        self.active = False

    def bake(self) -> None:
        """Make the mask permanent: the weights become what they are under it, and are plain again.

        Parameters stay the same objects, so an optimizer keeps them.

        Raises:
            ValueError: the mask is over; it is of a region, which no weight can hold; an earlier mask, or
                another parametrisation, comes before it and must be made permanent first.
        """
        if not self.active:
            raise ValueError("Mask.bake: the mask must be in place; it was removed or baked before")
        if self._hook is not None:
            raise ValueError("Mask.bake: the mask must be of units, which weights hold; it is of a region")
        for change in self._changes:
            if not change.first:
                raise ValueError(
                    f"Mask.bake: the mask must be the first parametrisation of {change.name!r} in layer "
                    f"{self.layer!r}; bake or remove those before it first"
                )
        for change in self._changes:
            change.bake()
        self.remove()

    def __enter__(self) -> Mask:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def mask(
    model: nn.Module,
    layer: str,
    units: Iterable[int] | None = None,
    *,
    fraction: float | None = None,
    region: Region | None = None,
    found: Accusation | Accusations | None = None,
    data: Inputs | None = None,
    merge: bool = False,
    norm: str | None = "auto",
    threshold: float = 0.95,
    batch_size: int = 256,
    seed: int = 0,
) -> Mask:
    """Silence some of a layer's output units: their weights and bias count as zero until the mask is removed.

    The mask is a parametrisation (``torch.nn.utils.parametrize``): the parameters stay what they are, an
    optimizer made before keeps them, and training moves no masked weight except by weight decay. Masks may
    lie one over another and be removed in any order. While one is in place, the entries of ``state_dict()``
    carry the names that torch gives parametrised tensors, and fit a model with the same mask; after
    ``remove()`` and ``bake()`` they are the plain ones.

    A norm that alone reads the layer would turn the zeros into ``(0 - mean) / std * weight + bias``, so its
    affine parameters are masked with it. What is silenced is the output before the activation: a sigmoid
    makes 0.5 of it.

    Args:
        model: changed in place.
        layer: a name in ``model.named_modules()``: a linear layer, a convolution, an attention (the features
            it gives) or a norm with weights.
        units: the units to silence.
        fraction: in [0, 1]; silence so large a part of the units, chosen at random by ``seed``.
        region: ``(rows, columns)``, slices or pairs (start, stop): silence a part of the map that a
            convolution gives, in all channels. No parameter can do that, so this mask is a forward hook; it
            is not in ``state_dict()`` and cannot be baked.
        found: a :class:`brittle.diagnosis.Finding` or :class:`DuplicateUnits` of this layer, whose
            ``channels`` are silenced, or where it has none its ``region``; or a
            :class:`brittle.diagnosis.Diagnosis`, of which the dead and redundant units of this layer are
            taken.
        data: inputs to merge by: a tensor, a pair ``(x, y)``, or an iterable of batches.
        merge: where a masked unit repeats one that is left, hand the weights that read it on to that one,
            times the factor that best turns the one into the other on ``data``. For units that are equal up
            to a factor where they are read, the model's function stays as it was. Part of the mask, and goes
            with it.
        norm: the name of the norm to mask with the layer, None for none. By default it is found by torch.fx,
            or where that fails by the order in which modules are registered.
        threshold: the least cosine on ``data``, where they are read, of units that are merged.
        batch_size: for tensors.
        seed: 64 bits.

    Returns:
        The mask, with ``remove()`` and ``bake()``; also a context manager.

    Raises:
        ValueError: not exactly one of ``units``, ``fraction``, ``region`` and ``found``; a layer or a unit
            that does not exist; ``found`` accuses no unit of this layer; a norm without weights; ``merge``
            without data, of a region, or where no plain linear layer or convolution alone reads the units.

    References:
        Li et al., "Pruning filters for efficient ConvNets", ICLR 2017 (masking whole units).
        Srinivas and Babu, "Data-free parameter pruning for deep neural networks", BMVC 2015 (merging).

    Example:
        >>> import torch
        >>> from brittle.repair import mask
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> with mask(model, "0", units=[1, 3]):
        ...     model[0](torch.rand(1, 8))[0, [1, 3]].tolist()
        [0.0, 0.0]
        >>> masked = mask(model, "0", fraction=0.5, seed=1)
        >>> masked.units
        (1, 3)
        >>> masked.bake()
        >>> int((model[0].weight == 0).all(1).sum())
        2
    """
    op = "mask"
    chosen, count = layer_with_units(op, model, layer)
    choices = {"units": units, "fraction": fraction, "region": region, "found": found}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"{op}: give exactly one of {', '.join(choices)}; got {got}")
    if fraction is not None:
        units = _at_random(fraction, count, seed)
    elif found is not None:
        units, region = _accused(layer, found)
    if merge and (data is None or region is not None):
        raise ValueError(f"{op}: merge needs units and data; got {'no data' if data is None else 'a region'}")
    path = norm_after(model, layer) if norm == "auto" else norm
    if path is not None and units_of(layer_named(op, model, path)) != count:
        raise ValueError(f"{op}: norm must be the name of a norm of {count} channels; got {norm!r}")
    if region is not None:
        return _region_mask(model, layer, region, path)
    silent = _checked(units or (), count)
    owners = [chosen.out_proj if isinstance(chosen, nn.MultiheadAttention) else chosen]
    owners += [] if path is None else [model.get_submodule(path)]
    if getattr(owners[-1], "weight", None) is None:
        raise ValueError(f"{op}: norm must have weights (norm=None masks none); {path or layer!r} has not")
    made = Mask(layer, silent, path, None)
    keep = torch.ones(count, dtype=torch.bool)
    keep[list(silent)] = False
    wanted: list[tuple[nn.Module, str, nn.Module]] = [
        (owner, name, Silence(owner, name, keep))
        for owner in owners
        for name in ("weight", "bias")
        if getattr(owner, name, None) is not None
    ]
    if merge and data is not None:
        reader = reader_of(model, layer)
        if reader is None:
            raise ValueError(
                f"{op}: merge needs a plain linear layer or convolution that alone reads {layer!r}"
            )
        repeated = repeats(model, reader, silent, data, threshold, batch_size)
        made.merged = repeated.pairs
        wanted.append((reader.layer, "weight", Merge(reader, *repeated)))
    made._changes = [Change.register(*each) for each in wanted]
    return made


def _at_random(fraction: float, count: int, seed: int) -> list[int]:
    if not 0 <= fraction <= 1:
        raise ValueError(f"mask: fraction must be in [0, 1]; got {fraction}")
    check.check_seed("mask", seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return cast("list[int]", order[: round(fraction * count)].tolist())


def _checked(units: Iterable[int], count: int) -> tuple[int, ...]:
    try:
        silent = sorted({operator.index(unit) for unit in units})
    except TypeError:
        raise ValueError(f"mask: units must be integers; got {units!r}") from None
    for unit in silent:
        if not 0 <= unit < count:
            raise ValueError(f"mask: units must be in [0, {count}); got {unit}")
    return tuple(silent)


def _accused(layer: str, found: Accusation | Accusations) -> tuple[tuple[int, ...], Region | None]:
    """The units, or else the region."""
    flaws: list[Any] = [found]
    if hasattr(found, "flaws"):
        flaws = [flaw for flaw in found.flaws if flaw.kind in ("dead", "redundant")]
    flaws = [flaw for flaw in flaws if flaw.layer == layer]
    units = tuple(unit for flaw in flaws for unit in flaw.channels)
    regions = [flaw.region for flaw in flaws if getattr(flaw, "region", None) is not None]
    if not units and not regions:
        raise ValueError(f"mask: found must accuse units or a region of layer {layer!r}; got none")
    return units, None if units else regions[0]


def _region_mask(model: nn.Module, layer: str, region: Region, norm: str | None) -> Mask:
    if not isinstance(model.get_submodule(layer), _ConvNd):
        raise ValueError(f"mask: region needs a convolution; {layer!r} is none")
    try:
        rows, columns = (part if isinstance(part, slice) else slice(*part) for part in region)
    except (TypeError, ValueError):
        raise ValueError(f"mask: region must be (rows, columns), slices or pairs; got {region!r}") from None

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        silent = torch.zeros(output.shape[-2:], dtype=torch.bool, device=output.device)
        silent[rows, columns] = True
        return output.masked_fill(silent, 0)

    made = Mask(layer, (), norm, region)
    made._hook = model.get_submodule(norm or layer).register_forward_hook(hook)
    return made
