"""Mislabelled samples by the area under their margin: the rest of their class pulls against their label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.diagnosis.checks._trial import check_classes
from brittle.diagnosis.checks.suspects import LabelRanking, ranked

_PERCENTILE = 0.99
_STATE = ("ids", "sums", "counts", "labels", "others")


class AreaUnderMargin:
    """Records each sample's margin in training: its label's logit less the largest other.

    Feed it the logits of every training batch, the very ones that the loss is computed from, of all epochs
    up to the first large drop of the learning rate. Samples with wrong labels have small or negative mean
    margins: samples like them have other labels and push the logits the other way.

    To have a threshold as well as a ranking, give some samples a class of their own that is none of the
    real ones (the model needs a logit for it), and pass their ids to :meth:`ranking`; or leave all of it to
    :func:`area_under_margin`.

    References:
        Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020
        (arXiv:2001.10528).

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> margins = checks.AreaUnderMargin()
        >>> for logits in (torch.tensor([[2.0, 0.0], [1.0, 1.5]]), torch.tensor([[4.0, 0.0], [3.0, 0.5]])):
        ...     margins.update(logits, torch.tensor([0, 1]), torch.tensor([10, 11]))
        >>> ids, areas = margins.areas()
        >>> ids.tolist(), areas.tolist()
        ([10, 11], [3.0, -1.0])
    """

    def __init__(self) -> None:
        empty = torch.zeros(0, dtype=torch.int64)
        self._ids, self._counts = empty, empty
        self._labels, self._others = empty, empty
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, logits: Tensor, y: Tensor, ids: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``[N, C]``, C >= 2, before any softmax.
            y: int64 ``[N]``, the labels that the batch was trained on.
            ids: int64 ``[N]``, each sample's identity in its data set, the same in every epoch.

        Raises:
            ValueError: an argument is of wrong shape, dtype, device or range.
        """
        op = "AreaUnderMargin"
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{op}: logits must be [N, C] with C >= 2; got {got}")
        check.check_labels(op, y, logits)
        ids = check.check_sample_ids(op, ids.to(logits.device), logits)
        if not len(y):
            return
        check_classes(op, y, logits.shape[1])
        own = logits.gather(1, y.unsqueeze(1)).squeeze(1).double()
        best, other = logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1)
        # Read back in one piece later: a step of training need not wait for this.
        self._waiting.append((ids, own - best.double(), y, other))
        if sum(len(part[0]) for part in self._waiting) > len(self._ids) + 4096:
            self._merge()

    def __len__(self) -> int:
        """The number of samples that were seen."""
        self._merge()
        return len(self._ids)

    def areas(self) -> tuple[Tensor, Tensor]:
        """Every sample's id, ascending, int64 ``[N]``, and its mean margin, float64 ``[N]``, on the CPU."""
        self._merge()
        return self._ids.clone(), self._sums / self._counts

    def ranking(self, threshold_ids: Tensor | None = None) -> LabelRanking:
        """All samples, the least area first.

        Args:
            threshold_ids: int64, the samples that were trained on a class of their own. The threshold is the
                99th percentile of their areas; they are left out of the ranking. Without them there is
                neither threshold nor suspects.

        Returns:
            The ranking; ``suggested`` is the class of the largest other logit in the last epoch.

        Raises:
            ValueError: none of ``threshold_ids`` was seen.
        """
        ids, areas = self.areas()
        among = torch.zeros(len(ids), dtype=torch.bool)
        threshold = float("nan")
        if threshold_ids is not None:
            among = torch.isin(ids, threshold_ids.cpu())
            if not bool(among.any()):
                raise ValueError(
                    "AreaUnderMargin: threshold_ids must have been seen in training; got none that was"
                )
            threshold = float(areas[among].quantile(_PERCENTILE))
        kept = ~among
        return ranked(
            "area under the margin",
            "mean margin",
            ids[kept],
            areas[kept],
            self._labels[kept],
            self._others[kept],
            threshold=threshold,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on, on the CPU."""
        self._merge()
        return {name: getattr(self, f"_{name}").clone() for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self._waiting = []
        for name in _STATE:
            setattr(self, f"_{name}", state[name].cpu().clone())

    def _merge(self) -> None:
        if not self._waiting:
            return
        ids, margins, labels, others = (
            torch.cat([part.cpu() for part in parts]) for parts in zip(*self._waiting, strict=True)
        )
        self._waiting = []
        known = len(self._ids)
        every, place = torch.unique(torch.cat([self._ids, ids]), return_inverse=True)
        old, new = place[:known], place[known:]
        sums = torch.zeros(len(every), dtype=torch.float64)
        counts, own, other = (torch.zeros(len(every), dtype=torch.int64) for _ in range(3))
        sums[old], counts[old], own[old], other[old] = self._sums, self._counts, self._labels, self._others
        sums.index_add_(0, new, margins)
        counts.index_add_(0, new, torch.ones_like(new))
        # Of a sample seen several times, what was seen last: written one after the other in that order.
        last = torch.full((len(every),), -1).scatter_reduce(0, new, torch.arange(len(new)), "amax")
        seen = last >= 0
        own[seen], other[seen] = labels[last[seen]], others[last[seen]]
        self._ids, self._sums, self._counts, self._labels, self._others = every, sums, counts, own, other
