"""The file of a drift reference: what it holds, how large it is, and which files are refused."""

import os
from pathlib import Path

import pytest
import torch
from brittle.evaluation.drift import Reference
from test_drift import equal
from torch import nn


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
