"""The loop over turns: fill the slots, step them, let go what is done, certify what is found."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from brittle.engine.device import Graph, LateFlags
from brittle.engine.plan import Plan, Rule, Settings
from brittle.engine.rows import Chunk, Rows, joined
from brittle.losses import attack_loss
from brittle.result import Ledger
from brittle.target import Target, out_of_memory


class Engine:
    """Runs one attack over a stream of samples and writes what it finds to a ledger.

    Args:
        target: entered (``with target``).
        rule, plan, settings: the attack.
        ledger: takes the finished samples.
        own: search on the caller's own model; by default where the target has no copy to search on.
        slots: instead of the settings' number.
    """

    def __init__(
        self,
        target: Target,
        rule: Rule,
        plan: Plan,
        settings: Settings,
        ledger: Ledger,
        *,
        own: bool | None = None,
        slots: int | None = None,
    ) -> None:
        self.target, self.rule, self.plan, self.settings, self.ledger = target, rule, plan, settings, ledger
        self.own = not target.searches_on_a_copy if own is None else own
        self.slots = settings.slots if slots is None else slots
        self._chunks: Iterator[Chunk] = iter(())
        self._rows: Rows | None = None
        self._free = self._trace = torch.zeros(0, dtype=torch.int64)
        self._late = False
        self._wavers = False
        self._flags: deque[LateFlags] = deque()
        self._graph: Graph | None = None
        # Started, and waiting for a slot; for the forward after the last step; for the caller's own model to
        # confirm a finding; for another search on that model.
        self._ready: deque[Rows] = deque()
        self._last: list[Rows] = []
        self._found: list[Rows] = []
        self._doubtful: list[Rows] = []

    def run(self, chunks: Iterator[Chunk]) -> None:
        """Attack every sample of ``chunks``, reading no further ahead than the slots can take."""
        self._chunks = chunks
        while True:
            self._refill()
            idle = self._rows is None
            if _due(self._last, self.slots, idle):
                self._settle_last()
            elif _due(self._found, self.slots, idle):
                self._certify()
            elif _due(self._doubtful, self.slots, idle):
                self._retry()
            elif not idle:
                self._turn()
            else:
                return

    # ---- coming in ----

    def _refill(self) -> None:
        """Fill the free slots; where nothing is left to fill them, shrink (CPU) or let them rest (GPU)."""
        rows = self._rows
        if rows is None:
            fresh = self._next(self.slots)
            if fresh is not None:
                self._install(fresh)
            return
        while len(self._free):
            fresh = self._next(len(self._free))
            if fresh is None:
                break
            rows.put(self._free[: len(fresh)], fresh)
            self._free = self._free[len(fresh) :]
        if len(self._free) == 0:
            return
        if len(self._free) == len(rows):
            self._rows = None
        elif not self._late:
            stays = torch.ones(len(rows), dtype=torch.bool, device=self._free.device)
            stays[self._free] = False
            self._install(rows.take(stays.nonzero().squeeze(1)))

    def _install(self, rows: Rows) -> None:
        """Make ``rows`` the slots."""
        device, late = rows.ints.device, self.settings.late
        self._late = device.type == "cuda" if late is None else late
        count = len(rows)
        if self._late and count < self.slots:
            # Shapes are static there: slots that nobody needs hold copies that are not alive.
            padding = rows.take(torch.zeros(self.slots - count, dtype=torch.int64, device=device))
            padding.alive.fill_(False)
            rows = joined([rows, padding])
        self._free = torch.arange(count, len(rows), device=device)
        if self.target.channels_last and rows.clean.dim() == 4:
            for name in rows.images():
                setattr(rows, name, getattr(rows, name).contiguous(memory_format=torch.channels_last))
        self._rows = rows
        self._trace = torch.zeros(len(rows), 3, dtype=torch.int64, device=device)
        self._flags.clear()
        self._graph = None

    def _next(self, count: int) -> Rows | None:
        """Up to ``count`` started rows: those whose next attempt is due, then new samples; None at the
        end."""
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            rows = self._admit(chunk)
            if rows is not None:
                self._start(rows)
        rows = self._ready.popleft()
        if len(rows) > count:
            places = torch.arange(len(rows), device=rows.ints.device)
            self._ready.appendleft(rows.take(places[count:]))
            rows = rows.take(places[:count])
        return rows

    def _start(self, rows: Rows) -> None:
        rows.alive.fill_(True)
        rows.counter.zero_()
        rows.history.zero_()
        self.plan.begin(rows, self.rule)
        self._ready.append(rows)

    def _admit(self, chunk: Chunk) -> Rows | None:
        """Rows for the samples that need an attack; the others are recorded."""
        settings = self.settings
        self.target.expect_labels(chunk.label)
        self.own = self.own or not self.target.confirm_copy(chunk.clean)
        self._wavers = self.settings.ask_again and self.target.probe(chunk.clean[: self.slots])
        goals = chunk.label.new_zeros(len(chunk.label), settings.targets)
        predicted = None
        # Where a copy is searched on, its word on the clean samples is not enough.
        asks = settings.check_clean or (settings.early_stop and not self.own)
        if asks or settings.targets:
            logits = self._forward(chunk.clean, chunk.ids, own=True)
            predicted = logits.argmax(1)
            if settings.targets:
                goals = _likeliest_others(self.target.name, logits, chunk.label, settings.targets)
        rows = Rows.fresh(chunk, goals, self.rule.steps, self.rule.has_momentum)
        rows.eps.copy_(rows.radii[0])
        if predicted is None:
            return rows
        rows.forwards.fill_(1)
        rows.predicted.copy_(predicted)
        if not asks:
            return rows
        needless, needing = rows.split(self._asked_again(rows, self._succeeded(predicted, rows), chunk.clean))
        if needless is not None:
            needless.attempt.fill_(-1)
            needless.fooled.fill_(True)
            self._record(needless)
        return needing

    # ---- the turn ----

    def _turn(self) -> None:
        rows = self._rows
        assert rows is not None
        try:
            # What wavers is asked again, for as many rows as it takes: nothing to capture.
            if rows.clean.is_cuda and not self._wavers:
                if self._graph is None:
                    self._graph = Graph(self._step, rows, self.target)
                status = self._graph.replay()
            else:
                status = self._step(rows)
        except RuntimeError as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
            self._halve(rows, error)
            return
        if self._late:
            self._flags.append(LateFlags(status))
            if len(self._flags) == 1:
                return
            status = self._flags.popleft().read()
        self._retire(rows, status)

    def _step(self, rows: Rows) -> Tensor:
        """One turn, on the device alone: no shape changes, nothing is read back there.

        Returns:
            int8 ``[N]``, the sum of: 1, the attempt is over; 2, a logit was NaN; 4, the last step is taken
            and its point is still to be evaluated.
        """
        settings = self.settings
        found = self.target.evaluate(rows.adv, self._loss(rows), own=self.own)
        top, predicted = found.logits.max(1)
        alive = rows.alive
        success = alive & self._succeeded(predicted, rows)
        if settings.early_stop:
            success = self._asked_again(rows, success, rows.adv)
        self._keep(rows, found.loss, predicted, success, alive)
        walks = alive & (rows.counter < self.rule.steps)
        rows.forwards.add_(alive)
        rows.backwards.add_(walks)
        if settings.early_stop and settings.shortcuts:
            walks = walks & ~success
        over = alive & ~walks
        cycles = self._walk(rows, found.gradient, walks)
        if settings.shortcuts:
            over = over | cycles
        waits = walks & ~over & (rows.counter >= self.rule.steps)
        failed = alive & top.isnan()
        rows.alive.copy_(alive & ~over)
        return over.to(torch.int8) + 2 * failed.to(torch.int8) + 4 * waits.to(torch.int8)

    def _walk(self, rows: Rows, grad: Tensor, walks: Tensor) -> Tensor:
        """The step kernel, and what its trace tells of the rows that walk: bool ``[N]``, which cycle."""
        self.rule.step_(rows, grad, rows.step_size * walks, self._trace)
        fingerprint, moved, nonfinite = self._trace.unbind(1)
        rows.nonfinite_gradient.logical_or_(walks & (nonfinite > 0))
        rows.zero_gradient.logical_or_(walks & (moved + nonfinite == 0))
        at = rows.counter.clamp(max=self.rule.steps - 1).unsqueeze(1)
        seen = rows.history == fingerprint.unsqueeze(1)
        stays = walks & seen.gather(1, (at - 1).clamp(min=0)).squeeze(1)
        rows.stalled.logical_or_(stays)
        rows.history.scatter_(1, at, fingerprint.unsqueeze(1))
        rows.counter.add_(walks)
        rows.steps.add_(walks)
        if not self.rule.memoryless or self._wavers:
            return torch.zeros_like(walks)
        # Of booleans, a sum over rows takes a seventh of the time of any().
        cycles = walks & (seen.sum(1) > 0)
        rows.cycled.logical_or_(cycles)
        return cycles

    def _keep(
        self, rows: Rows, loss: Tensor, predicted: Tensor, success: Tensor, alive: Tensor | None = None
    ) -> None:
        """Let each row keep this iterate, if it is its first success, or the highest loss so far."""
        settings = self.settings
        keep = loss > rows.highest
        if not settings.keep_start:
            keep = keep & (rows.counter > 0)
        if settings.early_stop:
            keep = (success | keep) & ~rows.fooled
        if alive is not None:
            keep = keep & alive
        if rows.clean.is_cuda:
            mask = keep.view(-1, *[1] * (rows.adv.dim() - 1))
            torch.where(mask, rows.adv, rows.kept, out=rows.kept)
        else:
            places = keep.nonzero().squeeze(1)
            if len(places):
                rows.kept.index_copy_(0, places, rows.adv.index_select(0, places))
        for column, value in ((rows.highest, loss), (rows.predicted, predicted), (rows.fooled, success)):
            torch.where(keep, value.to(column.dtype), column, out=column)

    def _loss(self, rows: Rows) -> Callable[[Tensor], Tensor]:
        settings = self.settings
        y = None if settings.targeted else rows.label
        goal = rows.label if settings.targeted else rows.goal if settings.targets else None
        return lambda logits: attack_loss(settings.loss, logits, y, goal)

    def _succeeded(self, predicted: Tensor, rows: Rows) -> Tensor:
        return predicted == rows.label if self.settings.targeted else predicted != rows.label

    # ---- going out ----

    def _retire(self, rows: Rows, status: Tensor) -> None:
        """Free the slots whose attempt is over, and (on a CPU) those that only want a last forward."""
        # The status is on the host, where asking it costs no wait for the device.
        leaves = status & 3 if self._late else status
        chosen = leaves.nonzero().squeeze(1)
        if len(chosen) == 0:
            return
        places, leaves = chosen.to(rows.ints.device), leaves[chosen]
        self._free = torch.cat([self._free, places])
        gone = rows.take(places)
        failed = (leaves & 2) > 0
        if failed.any():
            self.target.refuse_nan(gone.ids.cpu()[failed])
        if self._late:
            self._conclude(gone)
            return
        waiting, over = gone.split((leaves & 4) > 0)
        if waiting is not None:
            self._last.append(waiting)
        if over is not None:
            self._conclude(over)

    def _settle_last(self) -> None:
        """The forward after the last step, for all that wait for it."""
        rows = joined(self._last)
        self._last.clear()
        logits = self._forward(rows.adv, rows.ids, own=self.own)
        predicted = logits.argmax(1)
        success = self._succeeded(predicted, rows)
        if self.settings.early_stop:
            success = self._asked_again(rows, success, rows.adv)
        self._keep(rows, self._loss(rows)(logits), predicted, success)
        rows.forwards.add_(1)
        self._conclude(rows)

    def _conclude(self, rows: Rows) -> None:
        """An attempt is over: what a copy of the model found goes to the model itself first."""
        if self._wavers and not self.settings.early_stop:
            rows.fooled.copy_(self._asked_again(rows, rows.fooled.clone(), rows.kept))
        if self.own or self._wavers:
            self._advance(rows)
            return
        found, failed = rows.split(rows.fooled)
        if found is not None:
            self._found.append(found)
        if failed is not None:
            self._advance(failed)

    def _asked_again(self, rows: Rows, success: Tensor, points: Tensor) -> Tensor:
        """Of a model whose answers waver, the successes at ``points`` that hold when it is asked again."""
        places = success.nonzero().squeeze(1) if self._wavers else success[:0]
        if len(places) == 0:
            return success
        label, targeted = rows.label[places], self.settings.targeted

        def succeeded(predicted: Tensor, at: Tensor) -> Tensor:
            return predicted == label[at] if targeted else predicted != label[at]

        holds, asked = self.target.holds(points.index_select(0, places), rows.ids[places], succeeded)
        rows.forwards[places] += asked
        return success.index_put((places,), holds)

    def _certify(self) -> None:
        """Ask the caller's own model about what the search found."""
        rows = joined(self._found)
        self._found.clear()
        predicted = self._forward(rows.kept, rows.ids, own=True).argmax(1)
        rows.forwards.add_(1)
        rows.predicted.copy_(predicted)
        rows.fooled.copy_(self._succeeded(predicted, rows))
        if not self.settings.early_stop:
            self._advance(rows)
            return
        fooled, doubtful = rows.split(rows.fooled)
        if doubtful is not None:
            self._doubtful.append(doubtful)
        if fooled is not None:
            self._advance(fooled)

    def _retry(self) -> None:
        """Repeat, on the caller's own model, the attempts whose findings it did not confirm."""
        rows = joined(self._doubtful)
        self._doubtful.clear()
        again = Engine(
            self.target, self.rule, self.plan, self.settings, self.ledger, own=True, slots=self.slots
        )
        rows.highest.fill_(-torch.inf)
        again._start(rows)
        again.run(iter(()))

    def _advance(self, rows: Rows) -> None:
        """On to the next attempt, or to the ledger."""
        more, done = rows.split(self.plan.advance(rows))
        if more is not None:
            self._start(more)
        if done is not None:
            self._record(done)

    def _record(self, rows: Rows) -> None:
        distance = distances(rows.kept, rows.clean, self.rule.norm)
        lo, hi = (torch.tensor(b, dtype=rows.kept.dtype, device=rows.kept.device) for b in self.target.bounds)
        points = rows.kept.flatten(1)
        clean_wrong = (rows.attempt < 0) | (rows.fooled & (distance == 0))
        inside = (distance <= rows.eps) & ((points >= lo) & (points <= hi)).all(1)
        self.ledger.record(
            rows.index,
            rows.kept,
            sample_ids=rows.ids,
            label=rows.label,
            success=rows.fooled,
            clean_wrong=clean_wrong,
            prediction=rows.predicted,
            distance=distance,
            eps=rows.eps,
            attempt=torch.where(clean_wrong, -1, rows.attempt),
            steps=rows.steps,
            forwards=rows.forwards,
            backwards=rows.backwards,
            zero_gradient=rows.zero_gradient,
            nonfinite_gradient=rows.nonfinite_gradient,
            stalled=rows.stalled,
            cycled=rows.cycled,
            certified=rows.fooled & (inside | clean_wrong),
        )

    # ---- memory ----

    def _forward(self, x: Tensor, ids: Tensor, *, own: bool) -> Tensor:
        """Checked logits without a graph, at most as many samples at a time as there are slots."""
        parts: list[Tensor] = []
        done = 0
        while done < len(x) or not parts:
            part = slice(done, done + self.slots)
            try:
                parts.append(self.target.logits(x[part], ids[part], own=own))
            except RuntimeError as error:
                if not out_of_memory(error) or self.slots == 1:
                    raise
                self._shrink(self.slots // 2, error)
                continue
            done += len(parts[-1])
        return torch.cat(parts)

    def _halve(self, rows: Rows, error: RuntimeError) -> None:
        """Half of the rows go back to wait as they are: a turn that ran out of memory has not changed
        them."""
        while self._late and self._flags:
            self._retire(rows, self._flags.popleft().read())
        half = min(len(rows) // 2, self.slots)
        stays = torch.ones(len(rows), dtype=torch.bool, device=rows.ints.device)
        stays[self._free] = False
        places = stays.nonzero().squeeze(1)
        self._rows = None
        self._graph = None
        self._shrink(half, error)
        for part in reversed(torch.split(places, half)):
            self._ready.appendleft(rows.take(part))

    def _shrink(self, slots: int, error: RuntimeError) -> None:
        if slots < self.slots:
            warnings.warn(
                f"{self.target.name}: out of memory with {self.slots} slots, going on with {slots}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        self.slots = slots
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def distances(x: Tensor, clean: Tensor, norm: str) -> Tensor:
    """float64 ``[N]``: ``|x - clean|`` as an evaluator recomputes it: subtracted in the dtype, halves in
    float32."""
    if norm != "linf" and x.dtype in (torch.float16, torch.bfloat16):
        x, clean = x.float(), clean.float()
    difference = (x - clean).flatten(1).double()
    if difference.shape[1] == 0:
        return difference.new_zeros(len(difference))
    found: Tensor = torch.linalg.vector_norm(difference, {"linf": torch.inf, "l2": 2, "l1": 1}[norm], 1)
    return found


def _likeliest_others(name: str, logits: Tensor, label: Tensor, count: int) -> Tensor:
    classes = logits.shape[1]
    if count >= classes:
        raise ValueError(f"{name}: targets must be fewer than the model's {classes} classes; got {count}")
    return logits.scatter(1, label.unsqueeze(1), -torch.inf).topk(count, dim=1).indices


def _due(waiting: list[Rows], slots: int, idle: bool) -> bool:
    """Whether there are enough to fill the slots, or nothing else to do."""
    return bool(waiting) and (idle or sum(map(len, waiting)) >= slots)
