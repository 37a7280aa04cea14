"""An attack over a whole data set: any size, a fixed number of samples at a time, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.attacks.base import Attack, column, plan_of
from brittle.attacks.compat import run_as_peer
from brittle.data import Data, Samples, batches, known_length
from brittle.engine import Chunk, Engine, distances
from brittle.progress import bar
from brittle.result import AttackResult, Ledger, Sink
from brittle.target import Model, Target

Progress = bool | Callable[[int, int | None], None]


def attack(
    target: Model | Target,
    attack: Attack,
    data: Data | Samples,
    *,
    slots: int = 256,
    seed: int = 0,
    keep: bool | None = None,
    sink: Sink | None = None,
    resume: AttackResult | None = None,
    shortcuts: bool = True,
    progress: Progress = False,
) -> AttackResult:
    """Attack every sample of a data set and tell what happened to each.

    The samples pass through a fixed number of slots: one that is fooled, out of steps or going round in
    circles makes room for the next at once, and a sample's restarts and targets follow one another only as
    long as they fail. What a sample's result is depends on the sample, its id and the seed, not on the
    others, the order or the slots, as far as the model's own forward treats samples independently. Memory
    does not grow with the data.

    Ctrl-C ends the run and returns what is finished, with ``complete`` False; ``resume`` goes on from there.

    Args:
        target: a :class:`brittle.Target`; or a module or callable, used as it is.
        attack: for example ``brittle.attacks.PGD(8 / 255, steps=40)``.
        data: a pair ``(x, y)`` of tensors or arrays; a map-style data set, or a list, of pairs of a tensor
            and a label; or an iterable of batches ``(x, y)`` such as a DataLoader. Batches may carry int64
            sample ids as a third item; otherwise samples are numbered as they come. 8-bit images that are no
            tensors yet are divided by 255. Batches are moved to the model's device.
        slots: samples at a time. Where memory runs out it is halved, with a warning, and the run goes on.
        seed: of random starts, 64 bits.
        keep: keep the adversarial points in the result; by default where the data is a pair of tensors.
        sink: called as samples finish with their ids, adversarial points and successes, on the model's
            device: to store what is too large to keep.
        resume: an earlier result on the same data: samples whose ids it has are not attacked again, and
            stand before the others in the result.
        shortcuts: let fooled and cycling samples go at once. Off, all take every step, for the same verdicts;
            switch it off where the model's forward is random, so that a point that comes back proves nothing.
        progress: True for a progress bar on stderr (needs ``rich``), or a function that is called with the
            number of samples finished and their total, None where it is not known.

    Returns:
        The result, in the order of the data.

    Raises:
        ValueError: an argument or a batch that the attack refuses.

    Warns:
        GradientMaskingWarning: many samples had no gradient at all.
        RuntimeWarning: memory ran out and the slots were halved.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x = torch.rand(50, 4)
        >>> y = model(x).argmax(1)
        >>> result = brittle.attack(model, brittle.attacks.PGD(0.3, steps=10), (x, y), slots=16)
        >>> result.clean_accuracy, len(result)
        (1.0, 50)
    """
    op = attack.name
    check.check_count("attack", "slots", slots)
    check.check_seed("attack", seed)
    if keep is None:
        keep = isinstance(data, tuple) and sink is None
    lent = Target.of(target, op)
    total = known_length(data)
    done = frozenset() if resume is None else frozenset(resume.sample_ids.tolist())
    with bar(progress, op, None if total is None else total - len(done)) as tick, lent:
        ledger = Ledger(
            keep=keep, sink=sink, progress=tick, total=None if total is None else total - len(done)
        )
        chunks = chunks_of(op, attack, lent, data, slots, done=done)
        complete = True
        try:
            if attack.compat is None:
                rule = attack.rule(lent.bounds, seed)
                settings = attack.settings(slots, shortcuts=shortcuts and attack.early_stop)
                Engine(lent, rule, plan_of(attack), settings, ledger).run(chunks)
            else:
                for chunk in chunks:
                    _as_peer(attack, lent, chunk, seed, ledger)
        except KeyboardInterrupt:
            complete = False
    result = ledger.result(str(attack), attack.norm, complete=complete)
    if resume is not None:
        result = resume.joined(result)
    result.warn_of_masking()
    return result


def chunks_of(
    op: str,
    attack: Attack,
    target: Target,
    data: Data | Samples,
    slots: int,
    *,
    epsilons: Sequence[float] | None = None,
    done: frozenset[int] = frozenset(),
) -> Iterator[Chunk]:
    """The data's batches, checked, with the radii and step sizes that each sample is to be attacked with.

    Args:
        op: the operator to name in error messages.
        attack: whose eps and step sizes these are.
        target: entered.
        data: as :func:`attack` takes it; a pair of tensors is cut into batches of ``slots``.
        slots: see there.
        epsilons: radii for every sample instead of the attack's own.
        done: ids of samples to leave out.
    """
    for eps in [attack.eps] if epsilons is None else epsilons:
        name = "eps" if epsilons is None else "epsilons"
        check.check_inside(op, name, eps, attack.norm, target.bounds)
    first = 0
    shape = None
    for x, y, ids in batches(op, data, slots, target):
        check.check_images(op, x, target.bounds, ids)
        check.check_labels(op, y, x)
        check.check_device(op, x, target)
        if shape is not None and x.shape[1:] != shape:
            raise ValueError(
                f"{op}: all samples must have one shape; got {list(shape)} and {list(x.shape[1:])}"
            )
        shape = x.shape[1:]
        place = slice(first, first + len(x))
        first += len(x)
        radii = [_own_radius(attack, place)] if epsilons is None else epsilons
        lengths = [step_length_at(attack, eps, place) for eps in radii]
        places = torch.arange(place.start, place.stop, device=x.device)
        chunk = Chunk(
            x,
            y,
            ids,
            places,
            torch.cat([column(eps, x) for eps in radii], 1),
            torch.cat([column(length, x) for length in lengths], 1),
        )
        if done:
            new = torch.tensor([i not in done for i in ids.tolist()], dtype=torch.bool, device=x.device)
            chunk = Chunk(*(part[new] for part in chunk))
        if len(chunk.clean):
            yield chunk


def step_length_at(attack: Attack, eps: float | Tensor, place: slice | Tensor) -> float | Tensor:
    """The step size at ``eps`` of the samples at ``place`` of the data."""
    length = attack.step_length(eps)
    given = getattr(attack, "step_size", None)
    # A size given for each sample is for all of the data; any other has been derived from eps.
    if given is not None and isinstance(length, Tensor) and length.dim():
        return length[place]
    return length


def _own_radius(attack: Attack, place: slice) -> float | Tensor:
    return attack.eps[place] if isinstance(attack.eps, Tensor) and attack.eps.dim() else attack.eps


def _as_peer(attack: Attack, target: Target, chunk: Chunk, seed: int, ledger: Ledger) -> None:
    """One batch by a peer's conventions: every step for every sample, and a look at what came out."""
    clean, y, ids = chunk.clean, chunk.label, chunk.ids
    eps, step_size = chunk.radii[:, 0], chunk.step_sizes[:, 0]
    target.expect_labels(y)
    before = target.logits(clean, ids).argmax(1)
    adv = run_as_peer(attack, target, clean, y, ids, eps, step_size, seed)
    predicted = target.logits(adv, ids).argmax(1)
    success, wrong = ((p == y) if attack.targeted else (p != y) for p in (predicted, before))
    count = torch.full_like(y, attack.step_count)
    no = torch.zeros_like(success)
    distance = distances(adv, clean, attack.norm)
    certified = success & (distance <= eps)
    if target.probe(clean):
        certified &= target.holds(adv, ids, lambda p, at: (p == y[at]) == attack.targeted)[0]
    ledger.record(
        chunk.places,
        adv,
        sample_ids=ids,
        label=y,
        success=success,
        clean_wrong=wrong,
        prediction=predicted,
        distance=distance,
        eps=eps,
        attempt=(~success).to(torch.int64),
        steps=count,
        forwards=count + 2,
        backwards=count,
        zero_gradient=no,
        nonfinite_gradient=no,
        stalled=no,
        cycled=no,
        certified=certified,
    )
