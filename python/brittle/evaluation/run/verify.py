"""Every stored adversarial point, looked at once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brittle.engine import distances
from brittle.evaluation.run import fingerprint
from brittle.evaluation.run.store import RunStore, RunStoreError, read_run_json
from brittle.sources import Source, as_source
from brittle.target import Model, Target

# A distance is stored as it was computed, in float64; another machine may sum in another order.
_SLACK = 1e-6


@dataclass(frozen=True)
class Verified:
    """What became of the stored points of one attack.

    Attributes:
        attack, norm, seed: of the attack.
        points: how many there are.
        fooling: how many are misclassified by the model now.
        inside: how many are inside the bounds and as near as their rows say.
        fooling_8_bit: how many are misclassified after rounding to 8 bits: what is left of them in an image
            file.
        failed: the ids of those that are not fooling or not inside, and of samples that are said to be
            fooled while no point shows it.
    """

    attack: str
    norm: str
    seed: int
    points: int
    fooling: int
    inside: int
    fooling_8_bit: int
    failed: tuple[int, ...]


@dataclass(frozen=True)
class Verification:
    """The outcome of :func:`verify`, an entry for each attack."""

    attacks: tuple[Verified, ...]

    @property
    def ok(self) -> bool:
        """Whether every point is what its rows say."""
        return not any(found.failed for found in self.attacks)

    @property
    def points(self) -> int:
        """How many points there are."""
        return sum(found.points for found in self.attacks)

    def table(self) -> str:
        """The outcome as text, a line for each attack."""
        lines = [f"{'attack':<18}{'points':>8}{'fooling':>9}{'inside':>8}{'fooling in 8 bits':>19}"]
        for found in self.attacks:
            name = f"{found.attack} {found.norm}" + (f" ({found.seed})" if found.seed else "")
            lines.append(
                f"{name:<18}{found.points:>8}{found.fooling:>9}{found.inside:>8}{found.fooling_8_bit:>19}"
            )
            if found.failed:
                some = ", ".join(map(str, found.failed[:10])) + (", ..." if len(found.failed) > 10 else "")
                lines.append(f"  not as their rows say: {some}")
        return "\n".join(lines)


def verify(
    run: str | Path,
    model: Model,
    data: Any,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Check every stored adversarial point of a run with one forward of the model, and one more in 8 bits.

    A point must be misclassified, inside the bounds, and no further from its sample than its row says; and
    every sample that is right as it is and said to be fooled must have one.
    Rounding to 8 bits is told but not held against it: what is smaller than a grey level does not survive.

    Args:
        run: the run's folder.
        model: the model that was evaluated, in the same weights.
        data: the main data set, or the named ones, as for :func:`brittle.evaluation.evaluate`.
        progress: called with the attack, the points done and their total.

    Returns:
        What was found, by attack.

    Raises:
        RunStoreError: there is no run, or a file of points is missing or damaged.
        RunMismatch: the model has other weights; a ValueError.

    Example:
        >>> import tempfile, torch, brittle
        >>> model = torch.nn.Linear(4, 3)
        >>> x = torch.rand(20, 4)
        >>> y = model(x).argmax(1)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = brittle.evaluation.evaluate(
        ...         model, (x, y), out, views=["robustness"], norms=["linf"], epsilons=[0.5], attacks=["pgd"])
        ...     brittle.evaluation.verify(out, model, (x, y)).ok
        True
    """
    folder = Path(run)
    begun = read_run_json(folder)
    known = begun["fingerprint"]
    fingerprint.check({"weights": known["weights"]}, {"weights": fingerprint.of_weights(model)}, folder)
    name = begun["sets"][0]["name"]
    source = as_source(data[name] if isinstance(data, dict) else data)
    lo, hi = known["bounds"]
    target = Target(
        model, (lo, hi), known["mean"], known["std"], fixed_batch=known["fixed batch"], name="verify"
    )
    store = RunStore(folder)
    try:
        with target:
            attacks = store.rows(
                "SELECT attack, norm, seed, count(place) FROM attacks "
                "LEFT JOIN points USING (data_set, attack, norm, seed, id) WHERE data_set = ? "
                "GROUP BY attack, norm, seed",
                name,
            )
            found = [_one(store, target, source, name, row, progress) for row in attacks]
    finally:
        store.close()
    return Verification(tuple(found))


def _one(
    store: RunStore,
    target: Target,
    source: Source,
    name: str,
    about: tuple[Any, ...],
    progress: Callable[[str, int, int], None] | None,
) -> Verified:
    attack, norm, seed, count = about
    fooling = inside = rounded = done = 0
    failed = _without_point(store, name, attack, norm, seed)
    lo, hi = target.bounds
    for ids, points, distance in _points(store, name, attack, norm, seed):
        x, y = source.load(ids.tolist())
        x = x.to(target.dtype)
        if points.shape != x.shape:
            raise RunStoreError(
                f"verify: {store.out / 'adversarial'} must hold the points of samples of shape "
                f"{list(x.shape[1:])}; got {attack} {norm} of shape {list(points.shape[1:])}"
            )
        finite = points.isfinite().flatten(1).all(1)
        points = points.to(x.dtype).nan_to_num()
        device = target.device or x.device
        steps = ((points - lo) / (hi - lo) * 255).round() / 255 * (hi - lo) + lo
        wrong, wrong_rounded = (
            target.logits(part.to(device), ids.to(device)).argmax(1).cpu() != y for part in (points, steps)
        )
        near = distances(points, x, norm) <= distance * (1 + _SLACK)
        near &= finite & ((points >= lo) & (points <= hi)).flatten(1).all(1)
        fooling, inside = fooling + int(wrong.sum()), inside + int(near.sum())
        rounded += int(wrong_rounded.sum())
        failed += ids[~(wrong & near)].tolist()
        done += len(ids)
        if progress is not None:
            progress(f"{attack} {norm}", done, count)
    return Verified(attack, norm, seed, count, fooling, inside, rounded, tuple(sorted(failed)))


def _without_point(store: RunStore, name: str, attack: str, norm: str, seed: int) -> list[int]:
    """The ids of samples that are right as they are and said to be fooled, by no stored point."""
    rows = store.rows(
        "SELECT DISTINCT v.id FROM verdicts v JOIN samples s USING (data_set, id) "
        "LEFT JOIN points p USING (data_set, attack, norm, seed, id) "
        "WHERE data_set = ? AND attack = ? AND norm = ? AND seed = ? "
        "AND success AND s.prediction = s.label AND place IS NULL",
        *(name, attack, norm, seed),
    )
    return [sample for (sample,) in rows]


def _points(
    store: RunStore, name: str, attack: str, norm: str, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, points, and how far from its sample each may be; a file at a time."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    key = name, attack, norm, seed
    where = "data_set = ? AND attack = ? AND norm = ? AND seed = ?"
    for (file,) in store.rows(f"SELECT DISTINCT file FROM points WHERE {where} ORDER BY file", *key):
        path = store.out / "adversarial" / file
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunStoreError(f"verify: {path} must be a readable safetensors file; got {error}") from None
        rows = store.rows(
            "SELECT p.id, place, distance, min(CASE WHEN success THEN epsilon END) FROM points p "
            "LEFT JOIN attacks USING (data_set, attack, norm, seed, id) "
            "LEFT JOIN verdicts USING (data_set, attack, norm, seed, id) "
            f"WHERE {where} AND file = ? GROUP BY p.id ORDER BY p.id",
            *key,
            file,
        )
        ids, places, distance, smallest = zip(*rows, strict=True)
        points = tensors.get("adversarial")
        if points is None or max(places) >= len(points):
            raise RunStoreError(f"verify: {path} must hold the points that rows name; got others")
        # The point proves the verdict at the smallest radius that the sample is said to fall at. One that
        # no verdict speaks of proves none.
        within = (_bound(distance), _bound(smallest))
        yield torch.tensor(ids), points[torch.tensor(places)], within[0].minimum(within[1])


def _bound(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([-1.0 if value is None else value for value in values], dtype=torch.float64)
