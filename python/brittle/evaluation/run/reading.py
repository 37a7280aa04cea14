"""A run's rows as the views read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brittle.evaluation.rows import AttackRows, Condition, Landscape, RunRows, SetRows
from brittle.evaluation.run.store import RunStore

_FLAGS = ("zero_gradient", "nonfinite_gradient", "stalled", "cycled")


def read_rows(
    store: RunStore,
    sets: Iterable[Mapping[str, Any]],
    settings: dict[str, Any],
    texts: Mapping[str, str],
    alphas: tuple[float, ...],
) -> RunRows:
    """Everything that is in the store, samples in ascending order of their ids.

    Args:
        store: of a finished run.
        sets: name and classes of each set, as in ``run.json``.
        settings: of the run.
        texts: each attack's settings as text, by ``"attack norm"``.
        alphas: the steps of the landscape.
    """
    norms = settings["norms"]
    return RunRows(tuple(_set(store, found, norms, texts, alphas) for found in sets), settings)


def _set(
    store: RunStore,
    about: Mapping[str, Any],
    norms: Sequence[str],
    texts: Mapping[str, str],
    alphas: tuple[float, ...],
) -> SetRows:
    name = about["name"]
    found = store.rows("SELECT id, name, label, segment FROM samples WHERE data_set = ? ORDER BY id", name)
    ids, names, labels, segments = zip(*found, strict=True) if found else ((), (), (), ())
    logits = store.blobs("outputs", "logits", name)
    grids = store.blobs("landscapes", "losses", name)
    landscape = None
    if grids is not None:
        where = store.column("SELECT id FROM landscapes WHERE data_set = ? ORDER BY id", name)
        side = len(alphas)
        landscape = Landscape(torch.from_numpy(where), grids.reshape(-1, side, side), alphas)
    features = store.blobs("outputs", "features", name)
    return SetRows(
        name=name,
        ids=torch.tensor(ids, dtype=torch.int64),
        label=torch.tensor(labels, dtype=torch.int64),
        logits=torch.zeros(0, len(about["classes"])) if logits is None else logits,
        features=features if features is not None and len(features) == len(ids) else None,
        groups=tuple(segments) if segments and None not in segments else None,
        classes=tuple(about["classes"]),
        names=tuple(names),
        conditions=tuple(_conditions(store, name)),
        attacks=tuple(_attacks(store, name, norms, texts)),
        skipped=tuple(store.rows("SELECT name, reason FROM skipped WHERE data_set = ? ORDER BY id", name)),
        landscape=landscape,
    )


def _conditions(store: RunStore, name: str) -> Iterable[Condition]:
    keys = store.rows(
        "SELECT DISTINCT kind, level, scale, seed FROM answers WHERE data_set = ? ORDER BY kind, level, seed",
        name,
    )
    where = "FROM answers WHERE data_set = ? AND kind = ? AND level = ? AND seed = ? ORDER BY id"
    for kind, level, scale, seed in keys:
        columns = store.rows(f"SELECT prediction, confidence, log_loss {where}", name, kind, level, seed)
        predicted, confidence, loss = zip(*columns, strict=True)
        yield Condition(
            kind,
            level,
            scale,
            seed,
            torch.tensor(predicted, dtype=torch.int64),
            _reals(confidence),
            _reals(loss),
        )


def _attacks(
    store: RunStore, name: str, norms: Sequence[str], texts: Mapping[str, str]
) -> Iterable[AttackRows]:
    """Of the norms that the run is about, in its order."""
    keys = store.rows("SELECT DISTINCT attack, norm, seed FROM attacks WHERE data_set = ?", name)
    wanted = (key for key in keys if key[1] in norms)
    for attack, norm, seed in sorted(wanted, key=lambda key: (norms.index(key[1]), key[0], key[2])):
        key = name, attack, norm, seed
        where = "data_set = ? AND attack = ? AND norm = ? AND seed = ?"
        columns = ", ".join(("distance", *_FLAGS, "forwards", "backwards"))
        found = store.rows(f"SELECT {columns} FROM attacks WHERE {where} ORDER BY id", *key)
        distance, *others = zip(*found, strict=True)
        flags = [torch.tensor(flag, dtype=torch.bool) for flag in others[:4]]
        costs = [torch.tensor(cost, dtype=torch.int64) for cost in others[4:]]
        radii = [eps for (eps,) in store.rows(f"SELECT DISTINCT epsilon FROM verdicts WHERE {where}", *key)]
        verdict = f"SELECT success FROM verdicts WHERE {where} AND epsilon = ? ORDER BY id"
        fooled = [torch.from_numpy(store.column(verdict, *key, eps)).bool() for eps in sorted(radii)]
        yield AttackRows(
            attack,
            norm,
            texts.get(f"{attack} {norm}", attack),
            seed,
            tuple(sorted(radii)),
            torch.stack(fooled),
            _reals(distance),
            *flags,
            *costs,
        )


def _reals(values: Iterable[float | None]) -> Tensor:
    # SQLite keeps no NaN.
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
