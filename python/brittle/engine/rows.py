"""The state of samples under attack, one a row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """Samples as they come from the data, on the model's device."""

    clean: Tensor  # [N, ...]
    label: Tensor  # int64 [N]: the labels to leave, or to reach in a targeted attack
    ids: Tensor  # int64 [N]
    places: Tensor  # int64 [N]: in the result
    radii: Tensor  # float64 [N, E]: the epsilons to try, in order
    step_sizes: Tensor  # float64 [N, E]


_INTS = (
    "index",
    "ids",
    "label",
    "goal",
    "attempt",
    "counter",
    "steps",
    "predicted",
    "reached",
    "low",
    "high",
    "forwards",
    "backwards",
)
_FLOATS = ("eps", "step_size", "highest")
_FLAGS = ("alive", "fooled", "zero_gradient", "nonfinite_gradient", "stalled", "cycled")


class Rows:
    """The state of samples under attack, one a row.

    ``clean``, ``adv`` (the iterate) and ``kept`` (the point to return) are like the data, and so is
    ``momentum`` where the rule has one. What is one number a row lies side by side in three matrices, so that
    moving rows is a few copies:

    * int64 ``index`` (place in the result), ``ids, label, goal, attempt, counter`` (steps of this attempt),
      ``steps, predicted, reached, low, high, forwards, backwards``, then ``goals``: the classes to aim for;
    * float64 ``eps, step_size, highest`` (the loss at ``kept``), then ``radii`` and ``step_sizes`` to come;
    * bool ``alive`` (False: done, waiting to be taken away), ``fooled`` (at ``kept``) and the result's flags.

    ``history``, int64 ``[N, steps]``, holds the fingerprints of this attempt's iterates, 0 for those to come.

    A plan whose attempts go on after a success keeps its best point so far in ``nearest``, like the data, and
    that point's class in ``reached``, -1 before there is one. Such a plan makes ``nearest`` when rows begin
    their first attempt; for others it stays None. One that bisects ``radii`` keeps in ``low`` and ``high``
    between which of them the search still goes on.
    """

    def __init__(
        self,
        clean: Tensor,
        adv: Tensor,
        kept: Tensor,
        momentum: Tensor | None,
        history: Tensor,
        ints: Tensor,
        floats: Tensor,
        flags: Tensor,
        nearest: Tensor | None = None,
    ) -> None:
        self.clean, self.adv, self.kept, self.momentum = clean, adv, kept, momentum
        self.nearest = nearest
        self.history, self.ints, self.floats, self.flags = history, ints, floats, flags

    @classmethod
    def fresh(cls, chunk: Chunk, goals: Tensor, history: int, momentum: bool) -> Rows:
        """Rows for new samples, before their first attempt."""
        n, device, epsilons = len(chunk.clean), chunk.clean.device, chunk.radii.shape[1]
        ints = torch.zeros(len(_INTS) + goals.shape[1], n, dtype=torch.int64, device=device)
        ints[len(_INTS) :] = goals.T
        floats = torch.zeros(len(_FLOATS) + 2 * epsilons, n, dtype=torch.float64, device=device)
        floats[len(_FLOATS) : len(_FLOATS) + epsilons] = chunk.radii.T
        floats[len(_FLOATS) + epsilons :] = chunk.step_sizes.T
        flags = torch.zeros(len(_FLAGS), n, dtype=torch.bool, device=device)
        rows = cls(
            chunk.clean.clone(),  # slots are overwritten, the caller's data never
            chunk.clean.clone(),
            chunk.clean.clone(),
            torch.zeros_like(chunk.clean) if momentum else None,
            torch.zeros(n, history, dtype=torch.int64, device=device),
            ints,
            floats,
            flags,
        )
        rows.index[:], rows.ids[:], rows.label[:] = chunk.places, chunk.ids, chunk.label
        rows.alive.fill_(True)
        rows.highest.fill_(-torch.inf)
        rows.predicted.fill_(-1)
        rows.reached.fill_(-1)
        return rows

    def __len__(self) -> int:
        return self.ints.shape[1]

    def __getattr__(self, name: str) -> Tensor:
        # A column, as a view to read and write.
        for names, matrix in ((_INTS, "ints"), (_FLOATS, "floats"), (_FLAGS, "flags")):
            if name in names:
                column: Tensor = getattr(self, matrix)[names.index(name)]
                return column
        raise AttributeError(name)

    @property
    def goals(self) -> Tensor:
        """int64 ``[K, N]``."""
        return self.ints[len(_INTS) :]

    @property
    def radii(self) -> Tensor:
        """float64 ``[E, N]``."""
        return self.floats[len(_FLOATS) :].chunk(2)[0]

    @property
    def step_sizes(self) -> Tensor:
        """float64 ``[E, N]``."""
        return self.floats[len(_FLOATS) :].chunk(2)[1]

    def save_nearest(self) -> None:
        """The points of the attempts that succeeded are the nearest so far."""
        assert self.nearest is not None
        places = self.fooled.nonzero().squeeze(1)
        self.nearest.index_copy_(0, places, self.kept.index_select(0, places))
        self.reached.copy_(torch.where(self.fooled, self.predicted, self.reached))

    def return_nearest(self, places: Tensor, eps: Tensor) -> None:
        """In the rows ``places`` return the nearest point, as found at their ``eps``."""
        assert self.nearest is not None
        self.kept.index_copy_(0, places, self.nearest.index_select(0, places))
        self.predicted[places] = self.reached[places]
        self.eps[places] = eps[places]
        self.fooled[places] = True

    def images(self) -> tuple[str, ...]:
        """The names of what is like the data."""
        optional = (name for name in ("momentum", "nearest") if getattr(self, name) is not None)
        return ("clean", "adv", "kept", *optional)

    def _wide(self) -> tuple[str, ...]:
        return (*self.images(), "history")

    def take(self, chosen: Tensor) -> Rows:
        """A copy of the rows ``chosen``, int64 ``[M]``."""
        parts = {name: take(getattr(self, name), chosen) for name in self._wide()}
        parts.setdefault("momentum", None)  # type: ignore[arg-type]
        numbers = {m: getattr(self, m).index_select(1, chosen) for m in ("ints", "floats", "flags")}
        return Rows(**parts, **numbers)

    def split(self, chosen: Tensor) -> tuple[Rows | None, Rows | None]:
        """The rows where bool ``chosen`` holds, and the others: None where there are none, no copy of all."""
        places = chosen.nonzero().squeeze(1)
        if len(places) == len(self):
            return self, None
        if len(places) == 0:
            return None, self
        return self.take(places), self.take((~chosen).nonzero().squeeze(1))

    def put(self, places: Tensor, rows: Rows) -> None:
        """Overwrite the rows at ``places`` with ``rows``."""
        for name in self._wide():
            getattr(self, name).index_copy_(0, places, getattr(rows, name))
        for matrix in ("ints", "floats", "flags"):
            getattr(self, matrix).index_copy_(1, places, getattr(rows, matrix))


def take(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]`` as a new tensor in x's memory order."""
    chosen = x.index_select(0, rows)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return chosen.contiguous(memory_format=torch.channels_last)
    return chosen


def joined(parts: list[Rows]) -> Rows:
    """One Rows of several."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    wide = {name: torch.cat([getattr(p, name) for p in parts]) for name in first._wide()}
    wide.setdefault("momentum", None)  # type: ignore[arg-type]
    matrices = {m: torch.cat([getattr(p, m) for p in parts], 1) for m in ("ints", "floats", "flags")}
    return Rows(**wide, **matrices)
