"""Data sets as evaluations read them: the right pixels in the right rows, and one sentence for a mistake."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from brittle.evaluation import evaluate
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


X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


class MapStyle:
    """A torch data set of whatever items."""

    def __init__(self, *items: object) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> object:
        return self._items[row]


class TestLabels:
    @pytest.mark.parametrize(
        ("y", "match"),
        [
            (torch.tensor([0.0, 1.0, torch.nan]), "y must be integers; got torch.float32"),
            (torch.tensor([0, 1, 1]) > 0, "y must be integers; got torch.bool"),
            (torch.tensor([0j, 1, 1]), "y must be integers; got torch.complex64"),
            (torch.tensor([[0], [1], [2]]), r"got shape \[3, 1\] \(labels in a column are y\[:, 0\]\)$"),
            (torch.eye(3), r"got shape \[3, 3\] \(one-hot labels are y.argmax\(1\)\)$"),
            (np.eye(3, dtype=int), r"got shape \[3, 3\] \(one-hot labels are y.argmax\(1\)\)$"),
            (torch.tensor(3), r"N = 3; got shape \[\]$"),
            (np.array([0, 1, 2**63], np.uint64), "64 bits with a sign; got 9223372036854775808"),
            (np.array(["a", "b", "c"]), "numbers of at most 64 bits; got <U1"),
            (np.array([0, 1, None], object), "numbers of at most 64 bits; got object"),
            (np.ma.masked_array([0, 1, 2], [0, 0, 1]), "y must be an array without a mask"),
            (torch.tensor([0, 1, 2]).to_sparse(), "y must be a dense tensor with values"),
            (torch.zeros(3, device="meta"), "y must be a dense tensor with values; got a meta tensor"),
        ],
    )
    def test_arrays_that_are_no_labels(self, y: object, match: str) -> None:
        with pytest.raises(ValueError, match=f"^as_source: {match}" if match.startswith("y") else match):
            as_source((X, y))

    @pytest.mark.parametrize(
        ("label", "match"),
        [
            (torch.eye(3)[0], r"the numbers of the classes; got an array of shape \[3\] for #1"),
            (np.eye(3)[0], r"the numbers of the classes; got an array of shape \[3\] for #1"),
            (True, "labels must be integers; got True for #1"),
            (torch.tensor(torch.nan), "labels must be integers; got nan for #1"),
            (None, "labels must be integers; got None for #1"),
            ("cat", "labels must be integers; got 'cat' for #1"),
            (2**63, "labels must be integers of 64 bits; got 9223372036854775808 for #1"),
        ],
    )
    def test_items_that_are_no_labels(self, label: object, match: str) -> None:
        source = as_source(MapStyle((X[0], 0), (X[1], label)))
        for read in (source.labels, lambda: source.load([1])):
            with pytest.raises(ValueError, match=f"^as_source: .*{match}"):
                read()

    def test_every_integer_is_a_label(self) -> None:
        for dtype in (torch.uint8, torch.uint16, torch.int8, torch.int32, torch.uint64):
            y = torch.tensor([2, 0, 1], dtype=dtype)
            for given in (y, y.numpy()):
                labels = as_source((X, given)).labels()
                assert (labels.dtype, labels.tolist()) == (torch.int64, [2, 0, 1])
        source = as_source(MapStyle((X[0], np.int8(3)), (X[1], torch.tensor([4]))))
        assert source.labels().tolist() == [3, 4]

    @pytest.mark.parametrize(
        ("x", "match"),
        [
            (torch.zeros(3, 0), "at least one value a sample; got shape"),
            (np.zeros((3, 2), np.longdouble), "numbers of at most 64 bits"),
            (np.ma.masked_array(np.zeros((3, 2))), "x must be an array without a mask"),
            (X.to_sparse(), "x must be a dense tensor"),
            (memoryview(b"abc"), "x must be a tensor or a NumPy array; got memoryview"),
        ],
    )
    def test_inputs_that_are_none(self, x: object, match: str) -> None:
        with pytest.raises(ValueError, match=f"^as_source: .*{match}"):
            as_source((x, torch.tensor([0, 1, 2])))

    def test_one_number_is_a_sample(self) -> None:
        source = as_source((torch.tensor([0.5, torch.nan, 1.5]), torch.tensor([0, 1, 2])))
        assert source.load([2, 0])[0].tolist() == [1.5, 0.5]
        with pytest.raises(BadSample, match="#1: holds NaN"):
            source.load([1])


class TestNames:
    def test_of_python_data(self) -> None:
        names = ["\ud800", "b", "\udfff"]
        pair = X, torch.tensor([0, 1, 2])
        for source in (
            as_source(pair, classes=names, groups=names),
            as_source(TensorDataset(*pair), classes=names, groups=names),
            as_source(as_source(pair), classes=names, groups=names),
        ):
            assert source.classes == source.groups == ("\ufffd", "b", "\ufffd (2)")

    def test_a_report_holds_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Classes, segments, samples, sets, title and provenance: nothing is left to fail at the end."""
        for name in (b"\xff", b"\xfe"):
            os.mkdir(bytes(tmp_path) + b"/" + name)
            for number in range(3):
                place = os.fsdecode(bytes(tmp_path) + b"/" + name)
                Image.fromarray(grey(number)).save(f"{place}/{number}.png")
        data = as_source(open_source(str(tmp_path)), groups=["g\ud800", "g\udfff"] * 3)
        monkeypatch.setattr(data, "name_of", lambda row: f"{row} \ud800")  # as in somebody else's source
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 2)).eval()
        out = tmp_path.with_name(f"{tmp_path.name}-run")
        report = evaluate(
            model,
            {"main\udcff": data},
            out,
            views=["classification", "segments", "samples"],
            title="of \ud800",
            provenance={"by": "\udcfe"},
        )
        assert report.summary["title"] == "of \ufffd"
        for file in ("report.json", "report.html", "run.json"):
            text = (out / file).read_text(encoding="utf-8")
            assert "\ufffd" in text
            assert "\\ud" not in text
        (segments,) = report.summary["views"]["segments"]["sets"]
        assert {group["group"] for group in segments["groups"]} == {"g\ufffd", "g\ufffd (2)"}
        (sizes,) = json.loads((out / "run.json").read_text())["sets"]
        assert sizes == {"name": "main\ufffd", "samples": 6, "classes": ["\ufffd", "\ufffd (2)"]}

    def test_of_a_source_of_somebody_elses(self) -> None:
        class Own(Source):
            classes = ("a\ud800", "a\ufffd")
            groups = ("g", "h")

            def __len__(self) -> int:
                return 2

            def load(self, rows: object) -> tuple[Tensor, Tensor]:
                raise NotImplementedError

            def labels(self) -> Tensor:
                return torch.tensor([0, 1])

        source = as_source(Own())
        assert source.classes == ("a\ufffd (2)", "a\ufffd")
        assert "groups" not in vars(source), "nothing was to be done"


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

    @pytest.mark.parametrize("column", ["site", None])
    def test_only_the_sets_own_lines_are_kept(self, tmp_path: Path, column: str | None) -> None:
        """One table for several sets: what it says of others is their affair."""
        table = tmp_path / "groups.csv"
        table.write_text("row,site\n0,a\nother.png,x\nother.png,y\n1,b\n2,c\n")
        source = as_source((X, torch.tensor([0, 1, 2])))
        np.savez(tmp_path / "d.npz", x=X.numpy(), y=[0, 1, 2])
        source = open_source(str(tmp_path / "d.npz"), groups=table, group_column=column)
        assert source.groups == ("a", "b", "c")

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize(
        ("kind", "match"),
        [
            ("pipe", "must be a regular file; it is a named pipe"),
            ("zeros", "must be a regular file; it is a device"),
            ("folder", "must be a regular file; it is a folder"),
            ("nowhere", "No such file or directory"),
            ("one line", "a line has more than 1,048,576 characters"),
            ("one field", "field larger than field limit"),
            ("one open quote", "field larger than field limit"),
            ("surrogate", "'utf-8' codec can't decode"),
        ],
    )
    def test_what_is_no_table(self, tmp_path: Path, kind: str, match: str) -> None:
        table = tmp_path / kind
        contents = {
            "one line": "row,site\n0," + "a," * 600_000,
            "one field": "row,site\n0," + "a" * 200_000,
            "one open quote": 'row,site\n0,"' + "a\n" * 200_000,
            "surrogate": "row,site\n0,\ud800\n",
        }
        if kind in contents:
            table.write_bytes(contents[kind].encode(errors="surrogatepass"))
        elif kind == "pipe":
            os.mkfifo(table)
        elif kind == "zeros":
            table.symlink_to("/dev/zero")
        elif kind == "folder":
            table.mkdir()
        with pytest.raises(
            ValueError, match=f"^open_source: groups must be a CSV file in UTF-8; .*: {match}"
        ):
            open_source("digits", groups=table)


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
