"""Data sets as evaluations read them: the right pixels in the right rows, and one sentence for a mistake."""

import os
import subprocess
import sys
import zipfile
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


class TestFolder:
    def test_pixels_labels_and_names(self, tmp_path: Path) -> None:
        images = [grey(seed) for seed in range(12)]
        root = folder(tmp_path, b=images[:2], a=images[2:])
        source = open_source(str(root))
        assert source.classes == ("a", "b")
        assert source.labels().tolist() == [0] * 10 + [1, 1]
        assert [source.name_of(row) for row in (0, 1, 10)] == ["a/0.png", "a/1.png", "b/0.png"]
        rows = [11, 0, 5, 3, 10, 9, 8, 7, 2]
        x, y = source.load(rows)
        assert y.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0]
        assert x.dtype == torch.float32
        expected = [(images[2:] + images[:2])[row] for row in rows]
        assert torch.equal(x, torch.from_numpy(np.stack(expected))[:, None] / 255)

    def test_one_colour_image_makes_all_colour(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[grey(0)], b=[colour(1)])
        x, _ = open_source(str(root)).load([0, 1])
        assert torch.equal(x[0], torch.from_numpy(grey(0)).expand(3, 4, 5) / 255)
        assert torch.equal(x[1], torch.from_numpy(colour(1)).permute(2, 0, 1) / 255)

    def test_16_bits_are_kept(self, tmp_path: Path) -> None:
        deep = np.array([[0, 1], [300, 65535]], dtype=np.uint16)
        x, _ = open_source(str(folder(tmp_path, a=[deep]))).load([0])
        assert torch.equal(x[0, 0], torch.tensor([[0, 1], [300, 65535]]) / 65535)

    def test_palettes_transparency_and_other_formats(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        picture = Image.fromarray(np.full((2, 2, 3), (255, 51, 0), np.uint8))
        picture.quantize(4).save(tmp_path / "a" / "0.gif")
        picture.convert("RGBA").save(tmp_path / "a" / "1.webp", lossless=True)
        picture.save(tmp_path / "a" / "2.bmp")
        x, _ = open_source(str(tmp_path)).load([0, 1, 2])
        assert torch.equal(x, torch.tensor([1.0, 0.2, 0.0]).view(1, 3, 1, 1).expand(3, 3, 2, 2))

    def test_sizes_must_agree_or_be_given(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[np.full((4, 5), 51, np.uint8)], b=[np.full((6, 5), 102, np.uint8)])
        with pytest.raises(ValueError, match=r"got 4 x 5 \(a/0.png\) and 6 x 5 \(b/0.png\).*--size H,W"):
            open_source(str(root))
        x, _ = open_source(str(root), size=(3, 2)).load([0, 1])
        assert torch.equal(x, torch.tensor([0.2, 0.4]).view(2, 1, 1, 1).expand(2, 1, 3, 2))

    def test_nested_files_count_and_hidden_ones_do_not(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[grey(0)])
        (root / "a" / "more").mkdir()
        Image.fromarray(grey(1)).save(root / "a" / "more" / "0.png")
        (root / "a" / ".DS_Store").write_text("")
        (root / "a" / "Thumbs.db").write_text("")
        (root / ".git").mkdir()
        source = open_source(str(root))
        assert [source.name_of(row) for row in range(len(source))] == ["a/0.png", "a/more/0.png"]
        assert source.classes == ("a",)

    @pytest.mark.parametrize("damage", ["text", "cut", "empty", "gone"])
    def test_a_bad_image_is_named_and_moves_no_other(self, tmp_path: Path, damage: str) -> None:
        root = folder(tmp_path, a=[colour(seed, 40, 40) for seed in range(12)])
        path = root / "a" / "3.png"
        if damage != "gone":
            whole = path.read_bytes()
            path.write_bytes({"text": b"no image", "cut": whole[: len(whole) // 2], "empty": b""}[damage])
        source = open_source(str(root))
        if damage == "gone":
            path.unlink()
        assert len(source) == 12
        row = [source.name_of(row) for row in range(12)].index("a/3.png")
        with pytest.raises(BadSample, match=r"^a/3.png: (cannot be|is not an image)") as caught:
            source.load(range(12))
        assert (caught.value.row, caught.value.name) == (row, "a/3.png")
        assert str(caught.value) == f"a/3.png: {caught.value.reason}"
        x, _ = source.load([row + 1])
        after = int(source.name_of(row + 1)[2:].removesuffix(".png"))
        assert torch.equal(x[0], torch.from_numpy(colour(after, 40, 40)).permute(2, 0, 1) / 255)

    def test_the_first_of_several_bad_ones(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[grey(seed) for seed in range(9)])
        for number in (2, 5):
            (root / "a" / f"{number}.png").write_text("")
        with pytest.raises(BadSample, match=r"a/5\.png"):
            open_source(str(root)).load([0, 5, 1, 2])

    def test_names_that_are_no_text(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[grey(0)])
        os.rename(bytes(root / "a" / "0.png"), bytes(root) + b"/a/\xff.png")
        source = open_source(str(root))
        assert source.name_of(0) == "a/\ufffd.png"
        assert source.load([0])[0].shape == (1, 1, 4, 5)
        assert len(source.digest()) == 64

    def test_splits_are_no_classes(self, tmp_path: Path) -> None:
        for split in ("train", "Test"):
            folder(tmp_path / split, a=[grey(0)])
        with pytest.raises(ValueError, match=r"one folder of images for each class; got splits: Test, train"):
            open_source(str(tmp_path))
        assert open_source(str(tmp_path / "train")).classes == ("a",)

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="one folder of images for each class; got no folder"):
            open_source(str(tmp_path))
        folder(tmp_path, a=[grey(0)], b=[])
        with pytest.raises(ValueError, match=r"every class folder must hold images; got none in .*b$"):
            open_source(str(tmp_path))
        with pytest.raises(ValueError, match="does not exist"):
            open_source(str(tmp_path / "elsewhere"))
        with pytest.raises(ValueError, match="does not exist"):
            open_source("n" * 300)
        (tmp_path / "x.pt").touch()
        with pytest.raises(ValueError, match=r"must be 'digits', an .npz file or a folder; got the file"):
            open_source(str(tmp_path / "x.pt"))
        with pytest.raises(ValueError, match="size is for folders"):
            open_source("digits", size=(8, 8))


class TestArchive:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_floats_are_as_they_are(self, tmp_path: Path, save, order: str) -> None:
        x = np.asarray(np.random.default_rng(0).normal(size=(5, 2, 3)), order=order)
        save(tmp_path / "d.npz", x=x, y=np.array([2, 0, 1, 1, 2], np.uint16))
        source = open_source(str(tmp_path / "d.npz"))
        given, y = source.load([4, 0])
        assert torch.equal(given, torch.from_numpy(x[[4, 0]]).float())
        assert y.tolist() == [2, 2]
        assert source.labels().tolist() == [2, 0, 1, 1, 2]
        assert source.classes is source.groups is None
        assert source.name_of(3) == "#3"

    def test_8_bit_images_in_any_layout(self, tmp_path: Path) -> None:
        pixels = np.stack([colour(seed) for seed in range(3)])
        expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        for name, x in {"nhwc": pixels, "nchw": pixels.transpose(0, 3, 1, 2)}.items():
            np.savez(tmp_path / f"{name}.npz", x=x, y=[0, 1, 0])
            assert torch.equal(open_source(str(tmp_path / f"{name}.npz")).load([0, 1, 2])[0], expected)
        np.savez(tmp_path / "grey.npz", x=pixels[..., 0], y=[0, 1, 0])
        assert torch.equal(open_source(str(tmp_path / "grey.npz")).load([0, 1, 2])[0], expected[:, :1])

    def test_names_come_along(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=np.zeros((2, 3)), y=[0, 1], classes=["cat", b"dog"], groups=[7, 8])
        source = open_source(str(tmp_path / "d.npz"))
        assert source.classes == ("cat", "dog")
        assert source.groups == ("7", "8")

    def test_big_endian(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=np.array([[1.5], [2.5]], ">f4"), y=np.array([1, 0], ">i4"))
        x, y = open_source(str(tmp_path / "d.npz")).load([0, 1])
        assert (x.tolist(), y.tolist()) == ([[1.5], [2.5]], [1, 0])

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_memory_does_not_grow_with_the_archive(self, tmp_path: Path, save) -> None:
        save(tmp_path / "d.npz", x=np.ones((25_000, 4000), np.uint8), y=np.zeros(25_000, np.int64))
        code = (
            "import resource, sys; from brittle.sources import open_source\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "source = open_source(sys.argv[1])\n"
            "assert float(source.load([24_999])[0].sum()) > 15\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
        )
        arguments = [sys.executable, "-c", code, str(tmp_path / "d.npz")]
        outcome = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert float(outcome.stdout) < 30, "MiB, of the 95 that x has"

    def test_objects_are_refused_and_not_unpickled(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self):
                return (tmp_path / "sprung").touch, ()

        np.savez(tmp_path / "d.npz", x=np.array([Trap(), 1], object), y=[0, 1])
        with pytest.raises(ValueError, match="got Python objects, which only unpickling"):
            open_source(str(tmp_path / "d.npz"))
        assert not (tmp_path / "sprung").exists()

    def test_mistakes(self, tmp_path: Path) -> None:
        path = tmp_path / "d.npz"

        def refused(match: str, **arrays: object) -> None:
            if arrays:
                np.savez(path, **arrays)
            with pytest.raises(ValueError, match=f"^open_source: {match}"):
                open_source(str(path))

        refused("y must be integers; got torch.float64", x=np.zeros((2, 3)), y=[0.0, 1.0])
        refused(r"y must be \[N\] with N = 2; got shape \[3\]", x=np.zeros((2, 3)), y=[0, 1, 1])
        refused("x must be uint8 or floating-point; got torch.int64", x=np.zeros((2, 3), int), y=[0, 1])
        refused(
            r"x must be \[N, ...\] with N > 0; got shape \[0, 3\]", x=np.zeros((0, 3)), y=np.zeros(0, int)
        )
        refused("x and y must be numbers", x=np.array(["a", "b"]), y=[0, 1])
        refused("groups must have one entry", x=np.zeros((2, 3)), y=[0, 1], groups=["a"])
        refused(".*must hold the arrays x and y; got images, y", images=np.zeros((2, 3)), y=[0, 1])
        np.savez(path, x=np.zeros((2, 3)), y=[0, 1])
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            refused(".*must be an .npz archive")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", "text")
            archive.writestr("y.npy", "text")
        refused(".*must hold arrays as np.savez writes them")


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
