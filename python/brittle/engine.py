"""The loop that runs an attack's rule: forward and backward, retire what is fooled, step the rest."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from brittle.target import Target


class Rule(Protocol):
    """How an attack starts and how it steps. ``rows`` are the samples' places in the caller's batch."""

    def start(self, clean: Tensor, rows: Tensor, attempt: int) -> Tensor:
        """The first iterate of samples ``clean``, a new tensor."""

    def step_(self, adv: Tensor, grad: Tensor, clean: Tensor, rows: Tensor) -> None:
        """Move ``adv`` in place along ``grad``."""


class Outcome(NamedTuple):
    """What an attack found, row by row."""

    adversarial: Tensor  # [N, ...]
    fooled: Tensor  # bool [N]; with early_stop=False, of the iterate that is returned


def run(
    target: Target,
    rule: Rule,
    clean: Tensor,
    y: Tensor,
    sample_ids: Tensor,
    *,
    steps: int,
    restarts: int = 1,
    targeted: bool = False,
    early_stop: bool = True,
    known_right: bool = False,
) -> Outcome:
    """Attack ``clean`` and return for each sample its first success, else its iterate of highest loss.

    With ``early_stop`` a sample that the model already gets wrong is returned as it is, a sample leaves the
    batch at its first success (the rest goes on without it), and a restart is spent only on samples that no
    earlier one fooled. Without it every sample takes every step, and the highest loss is returned.

    ``known_right`` says that the caller has already seen the model classify every clean sample correctly.

    Costs, for a sample never fooled: ``restarts * steps`` forward-backward passes, one forward more per
    restart, and with ``early_stop`` one for the clean sample.
    """
    result = clean.clone()
    fooled = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    highest = torch.full((len(clean),), -torch.inf, dtype=torch.float64, device=clean.device)
    remaining = torch.arange(len(clean), device=clean.device)
    target.expect_labels(y)
    if early_stop and not known_right:
        fooled = _succeeded(target.logits(clean, sample_ids), y, targeted)
        remaining = remaining[~fooled]
    for attempt in range(restarts):
        if len(remaining) == 0:
            break
        rows = remaining
        centre, labels = take(clean, rows), y[rows]
        adv = rule.start(centre, rows, attempt)
        for step in range(steps + 1):
            logits, loss, grad = target.evaluate(
                adv, labels, sample_ids[rows], targeted=targeted, gradient=step < steps
            )
            better = loss > highest[rows]
            success = _succeeded(logits, labels, targeted)
            record = better | success if early_stop else better
            result[rows[record]] = adv[record]
            highest[rows[record]] = loss[record].to(highest.dtype)
            fooled[rows[record]] = success[record]
            if early_stop and success.any():
                open_ = (~success).nonzero().squeeze(1)
                rows, labels = rows[open_], labels[open_]
                adv, centre = take(adv, open_), take(centre, open_)
                grad = None if grad is None else take(grad, open_)
            if grad is None or len(rows) == 0:
                break
            rule.step_(adv, grad, centre, rows)
        remaining = rows
    return Outcome(result, fooled)


def run_to_last(
    target: Target,
    rule: Rule,
    clean: Tensor,
    y: Tensor,
    sample_ids: Tensor,
    *,
    steps: int,
    targeted: bool = False,
) -> Tensor:
    """Every step for every sample on the mean loss, and the last iterate: what the peers compute."""
    rows = torch.arange(len(clean), device=clean.device)
    adv = rule.start(clean, rows, 0)
    target.expect_labels(y)
    for _ in range(steps):
        grad = target.evaluate(adv, y, sample_ids, targeted=targeted, reduction="mean").gradient
        assert grad is not None
        rule.step_(adv, grad, clean, rows)
    return adv


def take(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]`` in x's memory order; ``x`` itself if that is all of it."""
    if len(rows) == len(x):
        return x
    chosen = x.index_select(0, rows)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return chosen.contiguous(memory_format=torch.channels_last)
    return chosen


def _succeeded(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    predicted = logits.argmax(1)
    return predicted == y if targeted else predicted != y
