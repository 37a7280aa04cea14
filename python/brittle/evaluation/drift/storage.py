"""A reference as a file: safetensors, whose one metadata entry is JSON. Nothing in it is ever executed.

The digest tells damage, not intent: whoever writes a file can write its digest. So every fact and tensor is
checked before one is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from brittle._files import check_shape, parse_json, refuse_foreign, require_regular, write_whole
from brittle.evaluation.drift.statistics import QUANTILES, rank_of_limit

FORMAT = 1
LARGEST_FIXED_BATCH = 1 << 20

_ENTRY = "brittle_drift_reference"
_LARGEST_FILE = 1 << 30  # bytes; a reference of a million features has 40 MB
_MOST_SAMPLES = 1 << 40
_FLOAT32 = 3.5e38
# So that squares, and quotients of what float32 features can be, stay numbers.
_LARGEST, _LEAST_SPREAD, _LEAST_REST = 1e100, 1e-60, 1e-120
_ROUNDING = 1e-3  # of what orthonormal float32 directions and moments in float64 may be off


class Space(TypedDict):
    """The numbers of a feature space, as :class:`brittle.evaluation.drift.statistics.FeatureSpace` says."""

    rest: float
    variance: float
    variance_squared: float
    fourth: float
    limit: float
    rank: int


Facts = TypedDict(
    "Facts",
    {
        "samples": int,
        "layer": str | None,
        "model": str,
        "fixed_batch": int,
        "space": Space | None,
        "confidence.samples": int,
        "energy.samples": int,
        "distances.samples": NotRequired[int],
    },
)


class _Versioned(TypedDict):
    format: int


class _Entry(TypedDict):
    facts: _Versioned
    digest: str


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write both to ``path``; a file that is there is replaced in one step, or stays as it is."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    facts = {"format": FORMAT, **facts}
    text = json.dumps({"facts": facts, "digest": _digest(tensors, facts)}, sort_keys=True)
    refuse_foreign("Reference.save", path, _ENTRY.encode())
    write_whole(path, save(tensors, {_ENTRY: text}))


def read(op: str, path: Path) -> tuple[dict[str, Tensor], Facts]:
    """What :func:`write` wrote; ValueError if ``path`` holds anything else, or values that cannot be."""
    from safetensors import safe_open

    try:
        require_regular(path)
        large = path.stat().st_size > _LARGEST_FILE
    except FileNotFoundError:
        raise ValueError(f"{op}: path must be an existing file; got {path}") from None
    except OSError as error:
        raise ValueError(f"{op}: path must be a drift reference; {path}: {error.strerror}") from None
    if large:
        raise ValueError(f"{op}: path must be a drift reference, which is small; {path} is larger than 1 GiB")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of types that this torch does not have, too
        raise ValueError(f"{op}: path must be an undamaged drift reference; {path}: {error}") from None
    if text is None:
        raise ValueError(f"{op}: path must be a drift reference; {path} is another safetensors file")
    try:
        entry = parse_json(text, _Entry)
    except ValueError as error:
        raise ValueError(
            f"{op}: path must be an undamaged drift reference; {path} has no facts: {error}"
        ) from None
    if entry["facts"]["format"] != FORMAT:
        raise ValueError(
            f"{op}: path must hold format {FORMAT}; {path} has format {entry['facts']['format']!r}"
        )
    if entry["digest"] != _digest(tensors, entry["facts"]):
        raise ValueError(
            f"{op}: path must be an undamaged drift reference; the contents of {path} do not match its digest"
        )
    try:
        facts = check_shape(entry["facts"], Facts)
        _check(tensors, facts)
    except ValueError as error:
        raise ValueError(f"{op}: path must be a whole drift reference; {path}: {error}") from None
    return tensors, facts


def _check(tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Raise ValueError, a phrase, for what :meth:`Reference.of` can never give."""
    samples, fixed_batch = facts["samples"], facts["fixed_batch"]
    _require(1 <= samples <= _MOST_SAMPLES, f"samples must be at most {_MOST_SAMPLES:,}; got {samples}")
    _require(1 <= fixed_batch <= LARGEST_FIXED_BATCH, f"fixed_batch must be a batch; got {fixed_batch}")
    counts = _tensor(tensors, "class_counts", torch.int64)
    _require(len(counts) > 0 and bool((counts >= 0).all()), "class_counts must be >= 0")
    total = sum(counts.tolist())
    _require(total == samples, f"class_counts must be of {samples} samples; got {total}")
    _require(
        facts["confidence.samples"] == facts["energy.samples"] == samples,
        f"confidence.samples and energy.samples must be {samples}",
    )
    _check_sketch(tensors, "energy")
    confidence = _check_sketch(tensors, "confidence")
    _require(float(confidence[0]) >= 0 and float(confidence[-1]) <= 1, "confidence.values must be in [0, 1]")
    if facts["space"] is not None:
        held_out = facts.get("distances.samples", 0)
        _require(0 < held_out <= samples, f"distances.samples must be some of the samples; got {held_out}")
        _check_space(tensors, facts["space"], held_out)


def _check_space(tensors: Mapping[str, Tensor], space: Space, held_out: int) -> None:
    rank = rank_of_limit(held_out)
    _require(space["rank"] == rank, f"space.rank must be {rank} of {held_out}; got {space['rank']}")
    _require(_LEAST_REST <= space["rest"] <= _LARGEST, f"space.rest must be > 0; got {space['rest']}")
    _require(0 <= space["limit"] <= _LARGEST, f"space.limit must be a distance; got {space['limit']}")
    centre = _tensor(tensors, "space.centre", torch.float64, largest=_FLOAT32)
    spread = _tensor(tensors, "space.spread", torch.float64)
    _require(bool((spread >= _LEAST_SPREAD).all()), "space.spread must be > 0")
    count = len(spread)
    _require(
        0 < count <= len(centre), f"space.spread must be of at most {len(centre)} directions; got {count}"
    )
    _tensor(tensors, "space.mean", torch.float64, (count,))
    directions = _tensor(tensors, "space.directions", torch.float32, (count, len(centre))).double()
    apart = (directions @ directions.T - torch.eye(count)).abs().max()
    _require(float(apart) < _ROUNDING, "space.directions must be orthonormal")
    _check_moments(space, count, held_out)
    distances = _check_sketch(tensors, "distances")
    _require(float(distances[0]) >= 0, "distances.values must be >= 0")


def _check_moments(space: Space, count: int, held_out: int) -> None:
    """Whether any K coordinates of so many samples have these: each moment bounds the next."""
    _require(0 <= space["variance"] <= _LARGEST, f"space.variance must be >= 0; got {space['variance']}")
    square, largest = space["variance"] ** 2, 1 + _ROUNDING
    for name, value, most in (
        ("variance_squared", space["variance_squared"], square),
        ("fourth", space["fourth"], square * held_out),
    ):
        least = square / count if name == "variance_squared" else square * (1 - 1 / held_out) ** 2
        _require(
            least / largest <= value <= most * largest,
            f"space.{name} must be one that goes with space.variance, {space['variance']}; got {value}",
        )


def _check_sketch(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The values of a distribution."""
    values = _tensor(tensors, f"{name}.values", torch.float64)
    _require(1 <= len(values) <= QUANTILES, f"{name}.values must be at most {QUANTILES}; got {len(values)}")
    _require(bool((values.diff() > 0).all()), f"{name}.values must ascend")
    below = _tensor(tensors, f"{name}.below", torch.float64, values.shape)
    upto = _tensor(tensors, f"{name}.upto", torch.float64, values.shape)
    shares = torch.stack([below, upto], 1).flatten()
    ascending = bool((shares.diff() >= 0).all()) and bool((below < upto).all())
    whole = float(shares[0]) == 0 and float(shares[-1]) == 1
    _require(ascending and whole, f"{name}.below and {name}.upto must ascend from 0 to 1")
    return values


def _tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...] | None = None,
    largest: float = _LARGEST,
) -> Tensor:
    """A tensor of numbers; without a shape it has one dimension."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"{name} is missing")
    fits = tensor.dim() == 1 if shape is None else tensor.shape == shape
    expected = "[N]" if shape is None else list(shape)
    _require(
        tensor.dtype == dtype and fits,
        f"{name} must be {dtype} {expected}; got {tensor.dtype} {list(tensor.shape)}",
    )
    _require(bool((tensor.abs() <= largest).all()), f"{name} must be finite and at most {largest}")
    return tensor


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
