"""Noise on labels, and sample ids from a data loader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from brittle import _checks as check
from brittle.noise._state import stream
from brittle.noise.functional import apply


def noise_labels(
    y: Tensor,
    num_classes: int,
    rate: float,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
) -> Tensor:
    """Symmetric label noise: with probability ``rate`` a label becomes one of the other classes at random.

    Whether and by how many classes a label moves is a function of seed, sample id and draw alone; the sample
    keeps its wrong label in every epoch and at every place. Of two rates the higher one changes all that the
    lower one changes, in the same way.

    Args:
        y: int64 ``[N]``, in ``[0, num_classes)``.
        num_classes: >= 2.
        rate: in [0, 1]; the other classes are equally likely, and the true one is not among them.
        seed: 64 bits.
        sample_ids: int64 ``[N]``, each sample's identity in its data set; by default ``0 .. N - 1``.
        draw: in ``[0, 2**31)``; another draw is other noise.

    Returns:
        The labels, a new tensor.

    Raises:
        ValueError: an argument is of wrong shape, dtype or range.

    References:
        van Rooyen, Menon and Williamson, "Learning with symmetric label noise", NeurIPS 2015.

    Example:
        >>> import torch, brittle
        >>> y = torch.zeros(1000, dtype=torch.int64)
        >>> noisy = brittle.noise.noise_labels(y, num_classes=3, rate=0.3)
        >>> 0.25 < (noisy != y).float().mean().item() < 0.35
        True
    """
    op = "noise_labels"
    if not isinstance(y, Tensor) or y.dim() != 1:
        shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{op}: y must be a tensor [N]; got {shape}")
    check.check_labels(op, y, y)
    check.check_count(op, "num_classes", num_classes, 2)
    if not 0 <= rate <= 1:
        raise ValueError(f"{op}: rate must be in [0, 1]; got {rate}")
    check.check_seed(op, seed)
    if len(y) and not (y.min() >= 0 and y.max() < num_classes):
        raise ValueError(
            f"{op}: y must be in [0, {num_classes}); got labels from {y.min().item()} to {y.max().item()}"
        )
    zeros = torch.zeros(len(y), 2, device=y.device)
    uniform = apply(op, "rate", zeros, "uniform", 1.0, stream(seed, b"labels"), sample_ids, draw)
    # Two exact integers on [0, 2**24) for each sample.
    whether, which = ((uniform + 1) * 2**23).to(torch.int64).unbind(1)
    moved = (y + 1 + which * (num_classes - 1) // 2**24) % num_classes
    return torch.where(whether < rate * 2**24, moved, y)


class WithIds(Dataset[tuple[Any, Any, int]]):
    """A map-style data set of (x, y) as one of (x, y, id), the id being the sample's index.

    Noise keyed by these ids is the same for a sample wherever a shuffling loader puts it, and with any number
    of workers. To work on a part, take the part of this: ``Subset(WithIds(data), rows)`` keeps data's ids.

    Example:
        >>> import torch, brittle
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = brittle.noise.WithIds(TensorDataset(torch.rand(6, 4), torch.arange(6)))
        >>> for x, y, ids in DataLoader(data, batch_size=3, shuffle=True):
        ...     x = brittle.noise.gaussian(x, 0.1, sample_ids=ids, draw=0)
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if isinstance(dataset, IterableDataset) or not indexed:
            raise ValueError(
                "WithIds: dataset must be map-style, with __getitem__ and __len__; "
                f"got {type(dataset).__name__}"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"WithIds: index must be in [0, {len(self)}); got {index}")
        index = int(index) % len(self)
        sample = self.dataset[index]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise ValueError(f"WithIds: dataset must yield (x, y); got {_described(sample)}")
        return sample[0], sample[1], index


def _described(sample: Any) -> str:
    kind = type(sample).__name__
    return f"{kind} of {len(sample)}" if isinstance(sample, (tuple, list)) else kind
