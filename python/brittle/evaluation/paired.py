"""Two runs sample by sample: is one right where the other is wrong, more often than by chance?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from brittle._files import check_shape
from brittle._radius import radius
from brittle.evaluation.run.store import RunStore
from brittle.evaluation.views.common import ATTACKS

#: Of each measure the samples' ids, and what each contributes: 1 where it is right, a loss, a distance.
Contributions = dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def contributions(out: Path, report: Mapping[str, Any]) -> Contributions:
    """What every sample of a run contributes to its measures, by the names that :func:`compare` gives them.

    Args:
        out: the run's folder.
        report: its ``report.json``.

    Raises:
        RunStoreError: the folder holds no rows that can be read.
        ValueError: the rows are not of the kinds that they should be.
    """
    store = RunStore(out, readonly=True)
    found: Contributions = {}
    try:
        sets = [one["name"] for one in report["sets"] if one["labelled"]]
        for name in sets:
            rows = check_shape(
                store.rows(
                    "SELECT id, prediction = label, log_loss FROM samples WHERE data_set = ? ORDER BY id",
                    name,
                ),
                list[tuple[int, int, float | None]],
            )
            found[f"accuracy, {name}"] = _columns(rows, 1)
            found[f"log loss, {name}"] = _columns(rows, 2)
        if sets:
            _shifts(store, sets[0], report["settings"]["seed"], found)
            for norm, radii in report["settings"]["epsilons"].items():
                _attacks(store, sets[0], norm, radii, report["settings"]["seed"], found)
    finally:
        store.close()
    return found


def _shifts(store: RunStore, name: str, seed: int, found: Contributions) -> None:
    rows = check_shape(
        store.rows(
            "SELECT a.id, a.prediction = s.label, kind, level FROM answers a "
            "JOIN samples s USING (data_set, id) WHERE data_set = ? AND seed = ? ORDER BY a.id",
            *(name, seed),
        ),
        list[tuple[int, int, str, int]],
    )
    by_level: dict[tuple[str, int], list[Any]] = {}
    for row in rows:
        if row[2] not in ATTACKS:
            by_level.setdefault((row[2], row[3]), []).append(row)
    for (kind, level), part in by_level.items():
        found[f"accuracy under {kind} {level}"] = _columns(part, 1)


def _attacks(
    store: RunStore, name: str, norm: str, radii: list[float], seed: int, found: Contributions
) -> None:
    """By the nearest point that any attack has found, as the report counts."""
    where = "data_set = ? AND norm = ? AND seed = ?"
    rows = check_shape(
        store.rows(
            "SELECT s.id, s.prediction = s.label, near, least FROM samples s "
            f"JOIN (SELECT id, min(distance) near FROM attacks WHERE {where} GROUP BY id) USING (id) "
            "LEFT JOIN (SELECT id, min(CASE WHEN success THEN epsilon END) least FROM verdicts "
            f"WHERE {where} GROUP BY id) USING (id) WHERE s.data_set = ? ORDER BY s.id",
            *(name, norm, seed, name, norm, seed, name),
        ),
        list[tuple[int, int, float | None, float | None]],
    )
    if not rows:
        return
    ids, right = _columns(rows, 1)
    nearest = np.fmin(_columns(rows, 2)[1], _columns(rows, 3)[1])
    nearest = np.where(right > 0, np.where(np.isnan(nearest), np.inf, nearest), 0.0)
    found[f"median epsilon, {norm}"] = ids, nearest
    for eps in radii:
        robust = (right > 0) & (nearest > eps)
        found[f"robust accuracy, {norm} {radius(eps)}"] = ids, robust.astype(np.float64)


class Paired(NamedTuple):
    """The p-value of no difference, and of how many samples the measure rose and fell from a to b."""

    p: float
    rose: int
    fell: int


def paired(a: Contributions, b: Contributions) -> dict[str, Paired]:
    """Of each measure that both have, of the same samples, whether it differs by more than chance.

    The exact sign test on the samples that differ, which for accuracies is McNemar's; then Holm's correction,
    as many measures are tested.

    Example:
        >>> import numpy as np
        >>> from brittle.evaluation.paired import paired
        >>> ids = np.arange(200)
        >>> a = {"accuracy, test": (ids, np.ones(200))}
        >>> b = {"accuracy, test": (ids, (ids >= 20).astype(float))}
        >>> paired(a, b)["accuracy, test"].p < 1e-5, paired(a, a)
        (True, {'accuracy, test': Paired(p=1.0, rose=0, fell=0)})
    """
    from scipy.stats import binomtest

    found = {}
    for name in a.keys() & b.keys():
        (ids, ours), (other_ids, theirs) = a[name], b[name]
        if not np.array_equal(ids, other_ids):
            continue
        rose, fell = int((theirs > ours).sum()), int((theirs < ours).sum())
        p = float(binomtest(rose, rose + fell).pvalue) if rose + fell else 1.0
        found[name] = Paired(p, rose, fell)
    adjusted: dict[str, Paired] = {}
    largest = 0.0
    for place, name in enumerate(sorted(found, key=lambda name: (found[name].p, name))):
        largest = max(largest, min(1.0, (len(found) - place) * found[name].p))
        adjusted[name] = found[name]._replace(p=largest)
    return adjusted


def _columns(rows: Any, column: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values = [np.nan if row[column] is None else row[column] for row in rows]
    return np.array([row[0] for row in rows], np.int64), np.array(values, np.float64)
