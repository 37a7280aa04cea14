"""The nearest neighbours by cosine: exactly, or handed over to faiss where a set is too large for that."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brittle import _checks as check
from brittle.ops import pairwise_cosine_topk
from brittle.ops.pairwise_cosine import directions

BACKENDS = ("exact", "faiss")

_CHUNK_BYTES = 64 << 20  # of float64 rows at a time
_TRAINING_BYTES = 256 << 20  # of float32 rows, for indexes that learn where the data lies


def nearest(
    a: Tensor, b: Tensor | None = None, k: int = 1, backend: str = "exact", *, index: str = "HNSW32"
) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``b`` of the largest cosine with each row of ``a``.

    ``"exact"`` is :func:`brittle.ops.pairwise_cosine_topk`, which compares all pairs. Its time grows with
    N times M; where that is too long, ``"faiss"`` builds an index of ``b`` and searches it, in a time that
    grows little with M. It holds a float32 copy of ``b`` (and what the index adds), may miss neighbours, and
    takes rows a chunk at a time.

    Args:
        a: ``[N, D]``, float32, float64, float16 or bfloat16.
        b: ``[M, D]`` of ``a``'s dtype; by default ``a`` itself, where a row is not its own neighbour.
        k: neighbours of each row, at most M (without ``b``, N - 1).
        backend: ``"exact"``, or ``"faiss"`` (needs ``faiss-cpu``).
        index: of ``"faiss"``: a description of the index in the words of faiss' ``index_factory``, such as
            ``"HNSW32"`` (a graph), ``"IVF1024,Flat"`` (cells; needs at least as many rows) or ``"Flat"``
            (all pairs). It is given rows of length 1 and looks for the largest inner product.

    Returns:
        ``(cosines, indices)``, ``[N, k]`` each, on ``a``'s device, descending; of equal cosines the lower
        index first, of those that were found. A zero row's cosine is 0. Rows that hold a NaN or an infinity
        are nobody's neighbours and have none; NaN and index -1 stand for a neighbour that is missing. Cosines
        are float64 for float64 input, else float32; faiss computes in float32.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range.
        ImportError: ``"faiss"`` is asked for and not installed.

    References:
        Douze et al., "The Faiss library", 2024 (arXiv:2401.08281).
        Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
        Navigable Small World graphs", 2016 (arXiv:1603.09320).

    Example:
        >>> import torch
        >>> from brittle.similarity import nearest
        >>> cosines, indices = nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]))
        >>> indices.squeeze(1).tolist()
        [2, 2, 0]
    """
    op = "nearest"
    check.check_choice(op, "backend", backend, BACKENDS)
    _check(op, "a", a)
    if b is a:
        b = None
    if b is not None:
        _check(op, "b", b)
        if b.shape[1] != a.shape[1] or b.dtype != a.dtype or b.device != a.device:
            raise ValueError(
                f"{op}: b must be [M, D] with D = {a.shape[1]}, {a.dtype} on {a.device}; "
                f"got {list(b.shape)}, {b.dtype} on {b.device}"
            )
    most = len(a) - 1 if b is None else len(b)
    check.check_count(op, "k", k)
    if k > most:
        rows = "N - 1" if b is None else "M"
        raise ValueError(f"{op}: k must be at most {rows} = {most}; got {k}")
    if backend == "exact":
        return pairwise_cosine_topk(a.detach(), None if b is None else b.detach(), k)
    return _by_faiss(op, a.detach(), None if b is None else b.detach(), k, index)


def _check(op: str, name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{op}: {name} must be [N, D]; got {got}")
    if not x.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point; got {x.dtype}")


def _by_faiss(op: str, a: Tensor, b: Tensor | None, k: int, description: str) -> tuple[Tensor, Tensor]:
    faiss = _faiss(op)
    base = a if b is None else b
    usable = base.isfinite().all(1)
    places = usable.nonzero().squeeze(1).cpu().numpy()
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    cosines = np.full((len(a), k), np.nan, dtype=np.float32)
    indices = np.full((len(a), k), -1, dtype=np.int64)
    if len(places) and a.shape[1]:
        found = _index(op, faiss, base, usable, description)
        # One more where the row itself will be among them.
        wanted = min(k + (b is None), len(places))
        for rows in _chunks(len(a), a.shape[1]):
            queries = _directions(a[rows])
            fit = np.isfinite(queries).all(1)
            if not fit.any():
                continue
            values, at = found.search(queries[fit], wanted)
            at = np.where(at >= 0, places[at], -1)
            if b is None:
                own = at == np.arange(len(a))[rows][fit][:, None]
                values, at = np.where(own, -np.inf, values), np.where(own, -1, at)
            values = np.where(at >= 0, values.clip(-1, 1), -np.inf)
            best = np.lexsort((at, -values), axis=1)[:, :k]
            values, at = np.take_along_axis(values, best, 1), np.take_along_axis(at, best, 1)
            target = np.arange(len(a))[rows][fit]
            cosines[target, : values.shape[1]] = np.where(at >= 0, values, np.nan)
            indices[target, : at.shape[1]] = at
    return torch.from_numpy(cosines).to(a.device, dtype), torch.from_numpy(indices).to(a.device)


def _faiss(op: str) -> ModuleType:
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"{op}: backend 'faiss' needs the package faiss, which is not installed: pip install faiss-cpu"
        ) from error


def _index(op: str, faiss: ModuleType, base: Tensor, usable: Tensor, description: str) -> Any:
    """The index of all usable rows, in their order."""
    columns = base.shape[1]
    try:
        index = faiss.index_factory(columns, description, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"{op}: index must be an index that faiss knows; got {description!r}: {error}"
        ) from error
    if not index.is_trained:
        rows = usable.nonzero().squeeze(1)
        step = max(1, -(-len(rows) * columns * 4 // _TRAINING_BYTES))
        parts = torch.split(rows[::step], _rows_at_once(columns))
        sample = [_directions(base[part]) for part in parts]
        try:
            index.train(np.concatenate(sample))
        except RuntimeError as error:
            raise ValueError(
                f"{op}: index {description!r} cannot learn from {len(rows)} rows: {error}"
            ) from error
    for part in _chunks(len(base), columns):
        index.add(_directions(base[part][usable[part]]))
    return index


def _rows_at_once(columns: int) -> int:
    return max(1, _CHUNK_BYTES // (8 * max(columns, 1)))


def _chunks(count: int, columns: int) -> list[slice]:
    size = _rows_at_once(columns)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _directions(rows: Tensor) -> np.ndarray:
    """float32, contiguous: the rows at length 1, a zero row 0; NaN where there is none."""
    x = rows.to("cpu", torch.float64)
    found = directions(x, torch.float64)[0].masked_fill(~x.isfinite().all(1, keepdim=True), torch.nan)
    return np.ascontiguousarray(found.float().numpy())
