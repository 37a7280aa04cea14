"""A source as a training loop wants it: batch after batch, in another order each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from brittle.sources.base import BadSample, Source


class Batches:
    """A source's samples in shuffled batches ``(x, y, ids)``, read when they are wanted.

    The order depends on the seed and on the epoch alone. An id is the sample's row in the source.

    Args:
        source: where the samples come from.
        batch_size: samples in a batch; the last one has the rest.
        seed: of the order.
        skip_bad: leave out samples that cannot be read. By default they raise ValueError.
        op: the operator to name in error messages.
        on_bad: called once with each sample that is left out.

    Example:
        >>> import torch
        >>> from brittle.sources import as_source
        >>> from brittle.sources.batches import Batches
        >>> batches = Batches(as_source((torch.rand(5, 2), torch.arange(5))), batch_size=2)
        >>> [len(x) for x, y, ids in batches], sorted(int(i) for _, _, ids in batches for i in ids)
        ([2, 2, 1], [0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 128,
        seed: int = 0,
        skip_bad: bool = False,
        op: str = "batches",
        on_bad: Callable[[BadSample], None] | None = None,
    ) -> None:
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.skip_bad, self._op, self._on_bad = skip_bad, op, on_bad
        self._epoch = 0
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The order in which the samples come next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._epoch) % 2**63)
        order = torch.randperm(len(self.source), generator=generator).tolist()
        for first in range(0, len(order), self.batch_size):
            rows = [row for row in order[first : first + self.batch_size] if row not in self._bad]
            while rows:
                try:
                    x, y = self.source.load(rows)
                    yield x, y, torch.tensor(rows)
                    break
                except BadSample as bad:
                    if not self.skip_bad:
                        raise ValueError(f"{self._op}: {bad} (--skip-bad leaves such samples out)") from None
                    self._bad.add(bad.row)
                    rows.remove(bad.row)
                    if self._on_bad is not None:
                        self._on_bad(bad)
