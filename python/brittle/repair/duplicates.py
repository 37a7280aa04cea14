"""Units of a layer that repeat one another, found by the cosines of what they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from brittle import _checks as check
from brittle import ops
from brittle.repair.structure import CHANNEL_NORMS, layer_with_units, norm_after
from brittle.similarity import LayerFeatures
from brittle.similarity.features import Inputs

# Of a sample's map: more tell no more duplicates apart.
_POSITIONS = 64

# Equal rows may have a cosine this much below 1; a row that varies by no more of its length is constant.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class DuplicateUnits:
    """The units of a layer that compute the same, up to scale and shift.

    Attributes:
        layer: its name.
        groups: of each group the unit whose output varies most first, then those that repeat it.
        threshold: the least cosine of a unit with the first of its group.
        kind: ``"redundant"``, as the kind of a :class:`brittle.diagnosis.Finding`.
    """

    layer: str
    groups: tuple[tuple[int, ...], ...]
    threshold: float
    kind: str = "redundant"

    @property
    def channels(self) -> tuple[int, ...]:
        """The units that could go: all but the first of each group."""
        return tuple(sorted(unit for group in self.groups for unit in group[1:]))


def duplicate_units(
    model: nn.Module,
    layer: str,
    data: Inputs,
    threshold: float = 0.95,
    *,
    batch_size: int = 256,
) -> DuplicateUnits:
    """Find the units of a layer that repeat one another on ``data``.

    A unit's output over all samples and positions (at most 64 a sample, evenly spread), after the norm that
    follows the layer and before the activation, less its mean, is a vector. The longest takes all those whose
    cosine with it is at least ``threshold``, then the longest that is left, and so on. Unlike linked pairs,
    every member of a group is thus like the one that stands for it. Units that do not vary repeat nothing.

    Args:
        model: given back as it was (see :func:`brittle.fgsm`).
        layer: as for :func:`brittle.repair.mask`.
        data: a tensor, a pair ``(x, y)``, or an iterable of batches; a few hundred samples do. All the
            layer's outputs are held at once.
        threshold: in (0, 1].
        batch_size: for tensors.

    Returns:
        The groups of two and more.

    Raises:
        ValueError: no such layer, or one without units; the threshold is out of range; no samples.

    References:
        RoyChowdhury et al., "Reducing duplicate filters in deep neural networks", NeurIPS workshop 2017.

    Example:
        >>> import torch
        >>> from brittle.repair import duplicate_units
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
        >>> with torch.no_grad():
        ...     for tensor in model[0].parameters():
        ...         tensor[2] = 0.5 * tensor[1]
        >>> duplicate_units(model, "0", torch.randn(64, 8), threshold=0.999).groups
        ((1, 2),)
    """
    op = "duplicate_units"
    if not 0 < threshold <= 1:
        raise ValueError(f"{op}: threshold must be in (0, 1]; got {threshold}")
    outputs = centred(unit_outputs(op, model, layer, data, batch_size))
    cosines = ops.pairwise_cosine(outputs)
    left = outputs.norm(dim=1).argsort(descending=True, stable=True).tolist()
    groups = []
    while left:
        first, *others = left
        alike = sorted(unit for unit in others if cosines[first, unit] >= threshold - _ROUNDING)
        left = [unit for unit in others if unit not in alike]
        if alike:
            groups.append((first, *alike))
    return DuplicateUnits(layer, tuple(groups), threshold)


def unit_outputs(op: str, model: nn.Module, layer: str, data: Inputs, batch_size: int = 256) -> Tensor:
    """What each unit of a layer gives, after the norm that follows it: ``[units, samples * positions]``."""
    check.check_count(op, "batch_size", batch_size)
    chosen, count = layer_with_units(op, model, layer)

    def samples_first(output: Tensor) -> Tensor:
        return unit_rows(chosen, output).reshape(count, len(output), -1).transpose(0, 1)

    features = LayerFeatures(model, [norm_after(model, layer) or layer], samples_first, name=op)
    return torch.cat(
        [
            rows.reshape(len(rows), count, -1).transpose(0, 1).flatten(1)
            for batch in features.stream(data, batch_size)
            for rows in batch.values()
        ],
        dim=1,
    )


def unit_rows(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output ``[N, ...]`` as a row for each of its units: ``[units, N * positions]``."""
    channels_first = isinstance(layer, (_ConvNd, *CHANNEL_NORMS, nn.GroupNorm))
    units_second = output if channels_first or output.dim() < 3 else output.flatten(1, -2).mT
    positions = units_second.flatten(2) if units_second.dim() > 2 else units_second.unsqueeze(2)
    return positions[:, :, :: -(-positions.shape[2] // _POSITIONS)].transpose(0, 1).flatten(1)


def centred(rows: Tensor) -> Tensor:
    """Rows less their means; zeros for one that does not vary."""
    deviations = rows - rows.mean(1, keepdim=True)
    varies = deviations.norm(dim=1, keepdim=True) > _ROUNDING * rows.norm(dim=1, keepdim=True)
    return torch.where(varies, deviations, 0)
