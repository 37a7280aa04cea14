"""Data sets as evaluations read them: the right pixels in the right rows, and one sentence for a mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from brittle.sources import BadSample, Source, as_source, digits, open_source
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset


def grey(seed: int, height: int = 4, width: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def colour(seed: int, height: int = 4, width: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder(root: Path, **classes: list[NDArray[np.generic]]) -> Path:
    """A folder with ``0.png``, ``1.png``, ... in a folder for each class."""
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


class TestPythonData:
    def test_pairs_of_tensors_and_arrays(self) -> None:
        x, y = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0], dtype=torch.int32)
        for pair in ((x, y), (x.numpy(), y.numpy())):
            given, labels = as_source(pair).load([3, 1])
            assert torch.equal(given, x[[3, 1]].float())
            assert torch.equal(labels, torch.tensor([0, 1]))

    def test_torch_data_sets(self) -> None:
        x, y = torch.rand(5, 3), torch.arange(5)
        source = as_source(TensorDataset(x, y))
        assert len(source) == 5
        given, labels = source.load([2, 4])
        assert torch.equal(given, x[[2, 4]])
        assert labels.tolist() == [2, 4]
        assert torch.equal(source.labels(), y)

    def test_a_source_stays_itself(self) -> None:
        source = open_source("digits")
        assert as_source(source, groups=["a"] * 500) is source
        assert source.groups == ("a",) * 500
        with pytest.raises(ValueError, match="one entry a sample, 500; got 1"):
            as_source(source, groups=["a"])

    def test_random_transforms_are_refused(self) -> None:
        class Augmented(TensorDataset):
            def __getitem__(self, row: int) -> tuple[Tensor, ...]:
                x, y = super().__getitem__(row)
                return x + torch.rand(3), y

        with pytest.raises(ValueError, match=r"same sample at every read.*random transforms"):
            as_source(Augmented(torch.rand(5, 3), torch.arange(5)))

    def test_numbers_that_are_none_are_bad_samples(self) -> None:
        x = torch.zeros(4, 2)
        x[2, 1] = torch.nan
        for source in (
            as_source((x, torch.zeros(4, dtype=torch.int64))),
            as_source(TensorDataset(x, x.long()[:, 0])),
        ):
            with pytest.raises(BadSample, match=r"^#2: holds NaN or infinite values$"):
                source.load([3, 2])
            assert source.load([0, 1, 3])[0].shape == (3, 2)

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (7, "must be a Source, a pair"),
            ((torch.rand(2, 3),), "must be a pair"),
            ((torch.rand(2, 3), [0, 1]), "must be a pair"),
            (TensorDataset(torch.rand(2, 3)), "pairs of a tensor and a label; got Tensor"),
            (TensorDataset(torch.rand(2, 3), torch.rand(2)), "labels must be integers; got"),
            (TensorDataset(torch.rand(0, 3), torch.zeros(0)), "got an empty data set"),
        ],
    )
    def test_mistakes(self, data: object, match: str) -> None:
        with pytest.raises(ValueError, match=f"^as_source: .*{match}"):
            as_source(data)


class TestGroups:
    def test_by_name_and_by_number(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "images", a=[grey(0), grey(1)])
        table = tmp_path / "groups.csv"
        table.write_text("file,site,scanner\na/1.png,north,x\na/0.png,south,\nother,west,y\n")
        assert open_source(str(root), groups=table).groups == ("south", "north")
        assert open_source(str(root), groups=table, group_column="scanner").groups == ("unknown", "x")
        table.write_text('\ufeffrow,site\n1,"a, b"\n\n#0,c\n')
        assert open_source(str(root), groups=table).groups == ("c", "a, b")

    @pytest.mark.parametrize(
        ("text", "column", "match"),
        [
            ("row,site\n0,a\n", None, r"must name every sample; 'a/1.png' \(row 1\) is missing"),
            ("row,site\n0,a\n0,b\n1,a\n", None, "one segment a sample; got two for '0'"),
            ("row,site\n0,a\n1,b\n", "place", "must be one of 'site'; got 'place'"),
            ("row\n0\n1\n", None, "a header and two columns"),
            ("", None, "a header and two columns"),
            ("row,site\n0,\xe9\n", None, "CSV file in UTF-8"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, text: str, column: str | None, match: str) -> None:
        root = folder(tmp_path / "images", a=[grey(0), grey(1)])
        table = tmp_path / "groups.csv"
        table.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=match):
            open_source(str(root), groups=table, group_column=column)


class TestDigest:
    def test_it_changes_with_everything(self, tmp_path: Path) -> None:
        def changed(x: Tensor | None = None, y: Tensor | None = None, **names: list[str]) -> str:
            usual = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0])
            return as_source((usual[0] if x is None else x, usual[1] if y is None else y), **names).digest()

        digests = [
            changed(),
            changed(x=torch.arange(6.0).view(3, 2) + 1e-6),
            changed(x=torch.arange(6.0).view(3, 1, 2)),
            changed(x=torch.full((3, 2), torch.nan)),
            changed(y=torch.tensor([0, 1, 1])),
            changed(groups=["a", "b", "a"]),
            changed(groups=["a", "a", "b"]),
            changed(classes=["a", "b"]),
        ]
        assert len(set(digests)) == len(digests)
        assert changed() == digests[0]

    def test_of_a_folder(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "one", a=[grey(0), grey(1)], b=[grey(2)])
        same = folder(tmp_path / "two", a=[grey(0), grey(1)], b=[grey(2)])
        before = open_source(str(root)).digest()
        assert open_source(str(same)).digest() == before
        assert open_source(str(root), size=(2, 2)).digest() != before
        (root / "a" / "0.png").rename(root / "a" / "00.png")
        assert open_source(str(root)).digest() != before
        pixels = same / "a" / "0.png"
        pixels.write_bytes(pixels.read_bytes() + b" ")
        assert open_source(str(same)).digest() != before

    def test_longer_than_one_block(self) -> None:
        x, y = torch.rand(600, 3), torch.zeros(600, dtype=torch.int64)
        other = x.clone()
        other[599, 2] += 1e-6
        assert as_source((x, y)).digest() == as_source(TensorDataset(x, y)).digest()
        assert as_source((x, y)).digest() != as_source((other, y)).digest()


def test_digits() -> None:
    source: Source = open_source("digits")
    test = digits()[1]
    x, y = source.load(range(500))
    assert torch.equal(x, test.x)
    assert torch.equal(y, test.y)
    assert source.classes == tuple("0123456789")
