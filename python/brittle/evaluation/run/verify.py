"""Every stored adversarial point, looked at once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brittle._extras import require
from brittle._files import check_shape
from brittle.engine import distances
from brittle.evaluation.run import fingerprint
from brittle.evaluation.run.attacked import Attacked
from brittle.evaluation.run.settings import NORMS, Settings
from brittle.evaluation.run.store import RunJson, RunStore, RunStoreError, SettingsJson, read_run_json
from brittle.sources import Source, as_source
from brittle.target import Model, Target

# A distance is stored as it was computed, in float64; another machine may sum in another order.
_SLACK = 1e-6
_READ = 256  # samples at a time
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WHERE = "data_set = ? AND attack = ? AND norm = ? AND seed = ?"

_Key = tuple[str, str, int]  # attack, norm, seed


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
    """The outcome of :func:`verify`, an entry for each attack.

    Attributes:
        attacks: what was checked.
        missing: what a finished run would hold and this one does not, a sentence each: a success that nothing
            backs is no success.
        samples, of: how many samples the run is about, and how many there are in the data.
    """

    attacks: tuple[Verified, ...]
    missing: tuple[str, ...]
    samples: int
    of: int

    @property
    def ok(self) -> bool:
        """Whether there is at least one attack, nothing is missing, and every point is what its rows say."""
        return bool(self.attacks) and not self.missing and not any(found.failed for found in self.attacks)

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
        lines += [f"missing: {sentence}" for sentence in self.missing]
        lines.append(f"{self.samples} of {self.of} samples were attacked")
        return "\n".join(lines)


def verify(
    run: str | Path,
    model: Model,
    data: Any,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Check every stored adversarial point of a run with one forward of the model, and one more in 8 bits.

    A point must be misclassified, inside the bounds, and no further from its sample than its row says; every
    sample that is said to be fooled must have one, unless the model, asked again, is wrong about the sample
    itself; and every sample must have the rows of every attack that the run has begun. A run without an
    attack has nothing to show, and is not ok. Nothing that the folder names is opened outside it, and none of
    it is run. Rounding to 8 bits is told but not held against a point: what is smaller than a grey level does
    not survive.

    Args:
        run: the run's folder.
        model: the model that was evaluated, in the same weights.
        data: the main data set, or the named ones, as for :func:`brittle.evaluation.evaluate`.
        progress: called with the attack, the points done and their total.

    Returns:
        What was found, by attack.

    Raises:
        RunStoreError: there is no run, a file of points is missing or damaged, or rows do not fit together.
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
    require("verify", "pydantic", "safetensors.torch")
    folder = Path(run)
    begun = read_run_json(folder)
    known = begun["fingerprint"]
    fingerprint.check({"weights": known["weights"]}, {"weights": fingerprint.of_weights(model)}, folder)
    name = begun["sets"][0]["name"]
    source = as_source(data[name] if isinstance(data, Mapping) else data)
    lo, hi = known["bounds"]
    target = Target(
        model, (lo, hi), known["mean"], known["std"], fixed_batch=known["fixed batch"], name="verify"
    )
    store = RunStore(folder, readonly=True)
    try:
        with target:
            attacks = _attacks(store, name)
            missing = tuple(_missing(store, begun, source, attacks))
            found = [_one(store, target, source, name, key, progress) for key in attacks]
    finally:
        store.close()
    return Verification(tuple(found), missing, begun["sets"][0]["samples"], len(source))


def _attacks(store: RunStore, name: str) -> list[_Key]:
    """Attack, norm and seed of all that any row speaks of."""
    parts = " UNION ".join(
        f"SELECT attack, norm, seed FROM {table} WHERE data_set = ?"
        for table in ("attacks", "verdicts", "points")
    )
    rows = store.rows(f"{parts} ORDER BY 1, 2, 3", name, name, name)
    found: list[_Key] = _typed(store, rows, list[_Key])
    for _, norm, _ in found:
        if norm not in NORMS:
            raise RunStoreError(
                f"verify: {store.out} must hold attacks in {', '.join(NORMS)}; got {norm!r:.80}"
            )
    return found


def _missing(store: RunStore, begun: RunJson, source: Source, attacks: Sequence[_Key]) -> Iterator[str]:
    """What a finished run would hold and this one does not: of every attack that it has begun, a row of each
    sample, and a verdict at each epsilon."""
    main, settings = begun["sets"][0], begun["settings"]
    name, count = main["name"], main["samples"]
    limit = begun["fingerprint"]["limit"]
    if not 1 <= count == min(len(source), limit or len(source)):
        raise ValueError(f"verify: data must be the {count} samples that the run is about; got {len(source)}")
    stages = _of_settings(store, settings).stages()
    wanted = {(s.attack, s.norm, s.seed): s.name for s in stages if isinstance(s, Attacked)}
    began = {**{key: " ".join(map(str, key)) for key in attacks}, **wanted}
    if not began:
        yield "there is no attack in the run, so there is nothing to verify"
    skipped = {sample for (sample,) in store.rows("SELECT id FROM skipped WHERE data_set = ?", name)}
    for (attack, norm, seed), stage in began.items():
        where = "data_set = ? AND attack = ? AND norm = ? AND seed = ?"
        key = name, attack, norm, seed
        done = _ids(store, f"SELECT id FROM attacks WHERE {where}", *key)
        if len(done | skipped) < count:
            yield f"{stage} has results of {len(done)} of {count - len(skipped)} samples"
        radii = len(settings["epsilons"].get(norm, ()))
        judged = _ids(
            store, f"SELECT id FROM verdicts WHERE {where} GROUP BY id HAVING count(*) >= {radii}", *key
        )
        if done - judged:
            yield f"{stage} has no verdict at every epsilon for {_some(done - judged)}"
        claimed = _ids(
            store,
            f"SELECT id FROM verdicts WHERE {where} UNION SELECT id FROM points WHERE {where}",
            *key,
            *key,
        )
        if claimed - done:
            yield f"{stage} has verdicts or points, but no results, of {_some(claimed - done)}"


def _of_settings(store: RunStore, settings: SettingsJson) -> Settings:
    try:
        lo, hi = settings["bounds"]
        given: dict[str, Any] = {**settings, "bounds": (lo, hi)}
        return Settings.of(**given)
    except (TypeError, ValueError) as error:
        raise RunStoreError(
            f"verify: {store.out / 'run.json'} must hold the settings of an evaluation; {error}"
        ) from None


def _ids(store: RunStore, query: str, *values: Any) -> set[int]:
    return {sample for (sample,) in _typed(store, store.rows(query, *values), list[tuple[int]])}


def _typed(store: RunStore, rows: Any, shape: Any) -> Any:
    """Rows whose values are of the kinds that they should be: SQLite keeps anything anywhere."""
    try:
        return check_shape(rows, shape)
    except ValueError as error:
        raise RunStoreError(
            f"verify: {store.out / 'run.sqlite'} must hold the rows of a run; {error}"
        ) from None


def _some(ids: set[int]) -> str:
    return ", ".join(map(str, sorted(ids)[:10])) + (", ..." if len(ids) > 10 else "")


def _one(
    store: RunStore,
    target: Target,
    source: Source,
    name: str,
    key: _Key,
    progress: Callable[[str, int, int], None] | None,
) -> Verified:
    attack, norm, seed = key
    ((count,),) = store.rows(f"SELECT count(*) FROM points WHERE {_WHERE}", name, *key)
    fooling = inside = rounded = done = 0
    failed = _without_point(store, target, source, name, key)
    lo, hi = target.bounds
    for ids, points, distance in _points(store, source, name, key):
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


def _without_point(store: RunStore, target: Target, source: Source, name: str, key: _Key) -> list[int]:
    """The ids of samples that are said to be fooled, by no stored point, and that the model, asked now, is
    right about as they are."""
    ids = sorted(
        _ids(
            store,
            f"SELECT DISTINCT id FROM verdicts WHERE {_WHERE} AND success IS NOT 0 "
            f"EXCEPT SELECT id FROM points WHERE {_WHERE}",
            *(name, *key, name, *key),
        )
    )
    _check_ids(store, source, ids)
    device = target.device or torch.device("cpu")
    right = []
    for first in range(0, len(ids), _READ):
        some = ids[first : first + _READ]
        x, y = source.load(some)
        predicted = (
            target.logits(x.to(device, target.dtype), torch.tensor(some, device=device)).argmax(1).cpu()
        )
        right += torch.tensor(some)[predicted == y].tolist()
    return right


def _check_ids(store: RunStore, source: Source, ids: Sequence[int]) -> None:
    wrong = [sample for sample in ids if not 0 <= sample < len(source)]
    if wrong:
        raise RunStoreError(
            f"verify: {store.out / 'run.sqlite'} must hold the rows of data's {len(source)} samples; got "
            f"sample {wrong[0]}"
        )


def _points(
    store: RunStore, source: Source, name: str, attack: _Key
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, points, and how far from its sample each may be; a file at a time."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    key = name, *attack
    for (file,) in store.rows(f"SELECT DISTINCT file FROM points WHERE {_WHERE} ORDER BY file", *key):
        path = store.points_file(file)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunStoreError(f"verify: {path} must be a readable safetensors file; got {error}") from None
        rows = store.rows(
            "SELECT p.id, place, distance, min(CASE WHEN success THEN epsilon END) FROM points p "
            "LEFT JOIN attacks USING (data_set, attack, norm, seed, id) "
            "LEFT JOIN verdicts USING (data_set, attack, norm, seed, id) "
            f"WHERE {_WHERE} AND file = ? GROUP BY p.id ORDER BY p.id",
            *key,
            file,
        )
        rows = _typed(store, rows, list[tuple[int, int, float | None, float | None]])
        ids, places, distance, smallest = zip(*rows, strict=True)
        _check_ids(store, source, ids)
        points, named = tensors.get("adversarial"), tensors.get("ids")
        at = torch.tensor(places)
        if (
            points is None
            or points.dtype not in _REAL
            or points.dim() < 1
            or named is None
            or named.dtype != torch.int64
            or named.shape != points.shape[:1]
            or not 0 <= min(places) <= max(places) < len(points)
            or named[at].tolist() != list(ids)
        ):
            raise RunStoreError(f"verify: {path} must hold the points that rows name; got others")
        # The point proves the verdict at the smallest radius that the sample is said to fall at. One that
        # no verdict speaks of proves none.
        within = (_bound(distance), _bound(smallest))
        yield torch.tensor(ids), points[at], within[0].minimum(within[1])


def _bound(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([-1.0 if value is None else value for value in values], dtype=torch.float64)
