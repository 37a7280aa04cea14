"""The file of a drift reference: what it holds, how large it is, and which files are refused."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from brittle.evaluation.drift import Reference, storage
from test_drift import equal
from torch import Tensor, nn


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


@pytest.fixture(scope="module")
def reference(model: nn.Module) -> Reference:
    return Reference.of(model, torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_a_file_holds_the_reference(model: nn.Module, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    for made in (reference, Reference.of(model.forward, torch.rand(60, 1, 8, 8))):
        made.save(path)
        assert equal(Reference.load(path), made)
    first = path.read_bytes()
    made.save(str(path))
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_small_whatever_it_was_made_from(tmp_path: Path) -> None:
    sizes = []
    for count in (100, 400, 1600):
        features = torch.randn(count, 2048)
        model = nn.Linear(2048, 1000)
        Reference.of(model, features, fixed_batch=200).save(tmp_path / "big")
        sizes.append((tmp_path / "big").stat().st_size)
    assert sizes[0] < sizes[1] < 330_000
    assert sizes[2] < 330_000


def test_damaged_and_foreign_files_are_refused(reference: Reference, tmp_path: Path) -> None:
    from safetensors.torch import load_file, safe_open, save_file

    path = tmp_path / "reference.safetensors"
    reference.save(path)
    whole = path.read_bytes()
    for cut in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"Reference.load: path must be an undamaged drift reference"):
            Reference.load(path)
    for place in range(3, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"Reference.load: path must"):
            Reference.load(path)
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"path must be a drift reference; .* is another safetensors file"):
        Reference.load(path)
    save_file({**tensors, "class_counts": tensors["class_counts"] + 1}, path, metadata)
    with pytest.raises(ValueError, match="do not match its digest"):
        Reference.load(path)
    save_file(
        tensors, path, {name: text.replace('"format": 1', '"format": 2') for name, text in metadata.items()}
    )
    with pytest.raises(ValueError, match=r"path must hold format 1; .* has format 2"):
        Reference.load(path)
    torch.save(tensors, path)
    with pytest.raises(ValueError, match="undamaged drift reference"):
        Reference.load(path)
    with pytest.raises(ValueError, match=r"path must be an existing file; got .*nowhere"):
        Reference.load(tmp_path / "nowhere")


def test_a_file_stays_where_writing_fails(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for part, name in ((os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, full)
            with pytest.raises(OSError, match="No space left"):
                reference.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


NUMBERS = [
    None,
    "x",
    "\udcff",
    True,
    -1,
    0,
    1.5,
    10**30,
    [],
    {},
    float("nan"),
    float("inf"),
    1e300,
    -1e-300,
    "5",
]
# What another reference may well have; there it is no damage.
OTHER_FACTS: dict[str, list[Any]] = {
    "layer": [None, "x", "\udcff", "5"],
    "model": ["x", "\udcff", "5"],
    "space": [None],
    "space/limit": [0, 1.5, 10**30],
    "space/rest": [1.5, 10**30],
}
FACTS = [
    "format",
    "samples",
    "layer",
    "model",
    "fixed_batch",
    "space",
    "confidence.samples",
    "energy.samples",
    "distances.samples",
    *(f"space/{name}" for name in ("rest", "variance", "variance_squared", "fourth", "limit", "rank")),
]
TENSORS = [
    "class_counts",
    *(f"space.{name}" for name in ("centre", "directions", "spread", "mean")),
    *(
        f"{name}.{part}"
        for name in ("confidence", "energy", "distances")
        for part in ("values", "below", "upto")
    ),
]
OTHER_TENSORS = {
    "class_counts": {"reversed"},
    "space.centre": {"negative", "zeros", "reversed", "tiny"},
    "space.directions": {"reversed"},
    "space.spread": {"reversed"},
    "space.mean": {"negative", "zeros", "reversed", "tiny"},
    **{f"{name}.values": {"tiny"} for name in ("confidence", "energy", "distances")},
}
DAMAGES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda t: None,
    "float32": lambda t: t.float() if t.dtype != torch.float32 else t.double(),
    "integers": lambda t: t.int(),
    "complex": lambda t: torch.complex(t.float(), t.float()),
    "float8": lambda t: t.double().clamp(-400, 400).to(torch.float8_e4m3fn),
    "bool": lambda t: t > 0,
    "empty": lambda t: t[:0],
    "no dimension": lambda t: t.flatten()[0].clone(),
    "another dimension": lambda t: t[None],
    "shorter": lambda t: t[:-1],
    "longer": lambda t: torch.cat([t, t]),
    "negative": lambda t: -t - 1,
    "zeros": lambda t: torch.zeros_like(t),
    "reversed": lambda t: t.flip(0).contiguous(),
    "NaN": lambda t: (t * float("nan")).to(t.dtype),
    "infinite": lambda t: (t + float("inf")).to(t.dtype),
    "huge": lambda t: (t.double() + 1e300).to(t.dtype),
    "tiny": lambda t: (t.double() * 1e-300).to(t.dtype),
}


def parts(reference: Reference, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    reference.save(path)
    tensors, facts = storage.read("test", path)
    return dict(tensors), copy.deepcopy(dict(facts))


def failure(call: Callable[[], object]) -> str | None:
    """The sentence that a call ends in, if it fails; anything but a ValueError is not caught."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def refused_or_usable(path: Path, model: nn.Module) -> bool:
    """Whether the file is refused, in one sentence; if not, comparing new data with it must work as ever."""
    reason = failure(lambda: Reference.load(path))
    if reason is not None:
        assert reason.startswith("Reference.load: path must")
        assert "\n" not in reason
        return True

    def score() -> None:
        drift = Reference.load(path).score(model, torch.rand(90, 1, 8, 8), batch_size=40)
        json.dumps(drift.summary(), allow_nan=False)
        drift.table()

    assert (failure(score) or "Reference.score: ").startswith("Reference.score: ")
    return False


class TestRightDigestWrongValues:
    """Whoever can write a file can write its digest as well."""

    @pytest.mark.parametrize("name", FACTS)
    def test_each_fact(self, name: str, model: nn.Module, reference: Reference, tmp_path: Path) -> None:
        path = tmp_path / "reference.safetensors"
        for bad in NUMBERS:
            tensors, facts = parts(reference, path)
            owner = facts["space"] if "/" in name else facts
            key = name.removeprefix("space/")
            if (bad, type(bad)) == (owner[key], type(owner[key])):
                continue
            owner[key] = bad
            storage.write(path, tensors, facts)
            refused = refused_or_usable(path, model)
            assert refused or bad in OTHER_FACTS.get(name, ()), f"{name} = {bad!r} was taken"
        tensors, facts = parts(reference, path)
        owner = facts["space"] if "/" in name else facts
        del owner[name.removeprefix("space/")]
        if name == "format":
            return
        storage.write(path, tensors, facts)
        assert refused_or_usable(path, model)

    @pytest.mark.parametrize("name", TENSORS)
    def test_each_tensor(self, name: str, model: nn.Module, reference: Reference, tmp_path: Path) -> None:
        path = tmp_path / "reference.safetensors"
        whole = parts(reference, path)[0][name]
        taken = []
        for kind, damage in DAMAGES.items():
            tensors, facts = parts(reference, path)
            bad = damage(whole)
            if bad is None:
                del tensors[name]
            else:
                tensors[name] = bad
            storage.write(path, tensors, facts)
            if not refused_or_usable(path, model):
                taken.append(kind)
        assert set(taken) == OTHER_TENSORS.get(name, set())

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"samples": 499}, "class_counts must be of 499 samples; got 500"),
            ({"confidence.samples": 499}, "confidence.samples and energy.samples must be 500"),
            ({"distances.samples": 501}, "distances.samples must be some of the samples; got 501"),
            ({"samples": "500"}, "samples is not as expected: .*valid integer; got '500'"),
            ({"layer": 7}, "layer is not as expected"),
            ({"space": {}}, "space.rest is not as expected: Field required"),
            ({"fixed_batch": 2**40}, "fixed_batch must be a batch"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, change: dict[str, Any], reason: str, reference: Reference, tmp_path: Path
    ) -> None:
        path = tmp_path / "reference.safetensors"
        tensors, facts = parts(reference, path)
        storage.write(path, tensors, facts | change)
        with pytest.raises(
            ValueError, match=f"^Reference.load: path must be a whole drift reference; .*{reason}"
        ):
            Reference.load(path)

    def test_more_than_is_needed_does_no_harm(self, reference: Reference, tmp_path: Path) -> None:
        path = tmp_path / "reference.safetensors"
        tensors, facts = parts(reference, path)
        facts["space"]["more"] = "x"
        storage.write(path, tensors | {"more": torch.zeros(3)}, facts | {"more": [1]})
        assert equal(Reference.load(path), reference)

    @pytest.mark.parametrize(
        "text", ["[]", "7", "[" * 100_000, '{"facts": {}}', '{"facts": 7, "digest": 7}', "{"]
    )
    def test_facts_that_are_none(self, text: str, reference: Reference, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        path = tmp_path / "reference.safetensors"
        save_file(parts(reference, path)[0], path, {"brittle_drift_reference": text})
        with pytest.raises(
            ValueError, match=r"^Reference.load: path must be an undamaged drift reference; .* has no facts"
        ):
            Reference.load(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ValueError, match=f"^Reference.load: path must be a drift reference; .*it is {kind}"):
        Reference.load(path)


def test_a_huge_file_is_not_read(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    os.truncate(path, 2**31)
    with pytest.raises(ValueError, match="larger than 1 GiB"):
        Reference.load(path)


def test_infinite_logits_make_no_reference() -> None:
    def model(x: Tensor) -> Tensor:
        logits = torch.stack([x.flatten(1).sum(1), torch.zeros(len(x))], 1)
        return torch.where(x.flatten(1)[:, :1] > 2, torch.inf, logits)

    x = torch.rand(100, 1, 8, 8)
    x[70, 0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"^Reference.of: .*finite.*sample 70"):
        Reference.of(model, x)
