"""Folders of images: the right pixels in the right rows, whatever else lies in them."""

import os
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from brittle.sources import BadSample, Source, as_source, open_source
from numpy.typing import NDArray
from PIL import Image, ImageCms
from test_sources import colour, folder, grey


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


def refusal(source: Source, row: int) -> str:
    with pytest.raises(BadSample) as caught:
        source.load([row])
    assert caught.value.row == row
    return caught.value.reason


@pytest.mark.timeout(60)
class TestNoRegularFiles:
    """A pipe that nobody writes to and a device without an end are bad samples; nothing waits for them."""

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("pipe", "it is a named pipe"),
            ("zeros", "it is a device"),
            ("socket", "it is a socket"),
            ("link to a pipe", "it is a named pipe"),
            ("loop", "Too many levels of symbolic links"),
            ("nowhere", "No such file or directory"),
        ],
    )
    def test_they_are_bad_samples(self, tmp_path: Path, kind: str, reason: str) -> None:
        root = folder(tmp_path / "d", a=[grey(0), grey(1)])
        bad = root / "a" / "00.png"  # between the two others
        if kind == "pipe":
            os.mkfifo(bad)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(bad))
        else:
            os.mkfifo(tmp_path / "pipe")
            places = {"zeros": "/dev/zero", "link to a pipe": tmp_path / "pipe", "loop": bad}
            bad.symlink_to(places.get(kind, tmp_path / "nowhere"))
        source = open_source(str(root))
        assert [source.name_of(row) for row in range(3)] == ["a/0.png", "a/00.png", "a/1.png"]
        assert reason in refusal(source, 1)
        assert torch.equal(source.load([0, 2])[0][:, 0] * 255, torch.from_numpy(np.stack([grey(0), grey(1)])))
        assert source.digest() == open_source(str(root)).digest()

    def test_a_file_that_grows_is_hashed_to_where_it_ended(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[grey(0)])
        (root / "a" / "1.png").write_bytes(bytes(3 << 20))
        for chunk in open_source(str(root)).contents():
            if len(chunk) > 1000:  # of the large file, whose length was told before
                with (root / "a" / "1.png").open("ab") as file:
                    file.write(bytes(1 << 20))
        assert (root / "a" / "1.png").stat().st_size == 6 << 20

    def test_links_to_folders_are_not_followed(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[grey(0)])
        (root / "a" / "loop").symlink_to(root)
        (root / "a" / "self").symlink_to(".")
        source = open_source(str(root))
        assert [source.name_of(row) for row in range(len(source))] == ["a/0.png"]

    def test_folders_in_folders_without_an_end(self, nested: Callable[[int], Path]) -> None:
        root = nested(1100)
        source = open_source(str(root))
        assert source.name_of(1) == "a/" + "d/" * 1100 + "0.png"
        assert torch.equal(source.load([1])[0][0, 0] * 255, torch.from_numpy(grey(1)).float())
        assert source.digest() == open_source(str(root)).digest()

    def test_a_path_that_is_too_long_for_the_system(self, nested: Callable[[int], Path]) -> None:
        with pytest.raises(ValueError, match=r"^open_source: cannot list .*: File name too long$"):
            open_source(str(nested(2100)))


@pytest.fixture
def nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """Makes a folder of so many folders in each other; takes them apart, which pytest's own way cannot."""
    root = folder(tmp_path / "nested", a=[grey(0)])

    def make(count: int) -> Path:
        monkeypatch.chdir(root / "a")
        for _ in range(count):
            os.mkdir("d")
            os.chdir("d")
        Image.fromarray(grey(1)).save("0.png")
        monkeypatch.chdir(tmp_path)
        return root

    yield make
    top, held = root / "a" / "d", tmp_path / "held"
    while (top / "d").exists():
        (top / "d").rename(held)
        top.rmdir()
        held.rename(top)


class TestChanges:
    """What was listed is what is read."""

    @pytest.mark.parametrize(
        ("after", "size", "reason"),
        [
            (grey(9, 6, 5), None, "it was 4 x 5, grey when the folder was listed, and now is 6 x 5, grey"),
            (grey(9, 6, 5), (4, 5), "it was 4 x 5, grey .* now is 6 x 5, grey"),
            (colour(9), None, "now is 4 x 5, in colour"),
        ],
    )
    def test_another_image_in_its_place(
        self, tmp_path: Path, after: NDArray[np.uint8], size: tuple[int, int] | None, reason: str
    ) -> None:
        root = folder(tmp_path, a=[grey(0), grey(1)])
        source = open_source(str(root), size=size)
        Image.fromarray(after).save(root / "a" / "1.png")
        with pytest.raises(BadSample, match=f"^a/1.png: .*{reason}"):
            source.load([0, 1])
        assert source.load([0])[0].shape == (1, 1, 4, 5)

    def test_pixels_of_another_size_than_the_header_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in icons, whose size is known once they are decoded."""
        source = open_source(str(folder(tmp_path, a=[grey(0), grey(1)])))
        monkeypatch.setattr("brittle.sources.folder._pixels", lambda *arguments: torch.zeros(1, 3, 5))
        assert "its header says 4 x 5; got 3 x 5" in refusal(source, 1)


class TestBombs:
    @pytest.mark.parametrize("width", [101, 250])
    def test_more_pixels_than_pillow_would_decode(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        """Beyond its limit Pillow warns, and beyond twice as much it refuses; here both are refused."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        root = folder(tmp_path, a=[grey(0, 10, 10), grey(1, 1, width)])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            source = open_source(str(root))
            assert f"{width}" in refusal(source, 1)
            assert source.load([0])[0].shape == (1, 1, 10, 10)
        assert not seen, "one sentence is enough"

    def test_the_limit_may_be_lifted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert open_source(str(folder(tmp_path, a=[grey(1, 1, 300)]))).load([0])[0].shape == (1, 1, 1, 300)

    def test_text_that_unpacks_to_more_than_memory(self, tmp_path: Path) -> None:
        import zlib

        def chunk(kind: bytes, content: bytes) -> bytes:
            return (
                struct.pack(">I", len(content))
                + kind
                + content
                + struct.pack(">I", zlib.crc32(kind + content))
            )

        root = folder(tmp_path, a=[grey(0), grey(1)])
        path = root / "a" / "1.png"
        whole = path.read_bytes()
        bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20), 9))
        path.write_bytes(whole[:33] + bomb + whole[33:])
        assert refusal(open_source(str(root)), 1).startswith("cannot be decoded")

    def test_programs_are_not_run(self, tmp_path: Path) -> None:
        root = folder(tmp_path, a=[colour(0)])
        Image.fromarray(colour(1)).save(root / "a" / "1.eps")
        assert "EPS is a program, which is not run; convert it to PNG" in refusal(open_source(str(root)), 1)


PICTURE = np.array([[[255, 51, 0], [0, 102, 204]], [[10, 20, 30], [255, 255, 255]]], np.uint8)
GREY = [[0, 85], [170, 255]]


def only(root: Path, save: Callable[[Path], object]) -> Source:
    (root / "a").mkdir()
    save(root / "a")
    return open_source(str(root))


class TestKindsOfImages:
    @pytest.mark.parametrize(
        ("kind", "file", "off"),
        [
            ("CMYK", "0.tif", 0),
            ("YCbCr", "0.tif", 2),
            ("RGBA", "0.png", 0),
            ("RGBX", "0.tif", 0),
            ("LAB", "0.tif", 20),
            ("P", "0.png", 0),
            ("PA", "0.png", 0),
        ],
    )
    def test_colours(self, tmp_path: Path, kind: str, file: str, off: int) -> None:
        picture = Image.fromarray(PICTURE)
        if kind == "LAB":
            profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            picture = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
        elif kind.startswith("P"):
            picture = picture.quantize(4)
        else:
            picture = picture.convert(kind)
        # A pixel that is transparent has its colour all the same.
        more = {"transparency": 0} if kind == "PA" else {}
        x, _ = only(tmp_path, lambda place: picture.save(place / file, **more)).load([0])
        expected = torch.from_numpy(PICTURE).permute(2, 0, 1).float()
        assert (x[0] * 255 - expected).abs().max() <= off

    def test_bits(self, tmp_path: Path) -> None:
        picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
        for file in ("0.png", "1.tif", "2.bmp"):
            picture.save(folder(tmp_path / file, b=[]) / "b" / file)
            assert open_source(str(tmp_path / file)).load([0])[0].tolist() == [[[[0, 1], [1, 0]]]]

    def test_grey_with_transparency_is_grey(self, tmp_path: Path) -> None:
        picture = Image.fromarray(np.array(GREY, np.uint8)).convert("LA")
        picture.putalpha(7)
        x, _ = only(tmp_path, lambda place: picture.save(place / "0.png")).load([0])
        assert (x * 255).round().tolist() == [[GREY]]

    @pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
    def test_deep_grey(self, tmp_path: Path, dtype: str) -> None:
        values = np.array([[0, 1], [300, 65535]]).astype(dtype)
        x, _ = only(tmp_path, lambda place: Image.fromarray(values).save(place / "0.tif")).load([0])
        assert torch.equal(x[0, 0], torch.tensor([[0, 1], [300, 65535]]) / 65535)

    @pytest.mark.parametrize("most", [1000, 65535])
    def test_netpbm_of_any_depth(self, tmp_path: Path, most: int) -> None:
        content = b"P5 2 1 %d\n" % most + struct.pack(">2H", 0, most)
        x, _ = only(tmp_path, lambda place: (place / "0.pgm").write_bytes(content)).load([0])
        assert x.tolist() == [[[[0, 1]]]]

    def test_12_bits_are_12(self, tmp_path: Path) -> None:
        rows = bytes([0x00, 0x00, 0x01, 0xFF, 0xF8, 0x00])  # 0, 1; 4095, 2048
        tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 6}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        content = b"II*\0" + struct.pack("<I", 14) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)
        x, _ = only(tmp_path, lambda place: (place / "0.tif").write_bytes(content)).load([0])
        assert torch.equal(x[0, 0], torch.tensor([[0, 1], [4095, 2048]]) / 4095)

    @pytest.mark.parametrize("values", [[0, 65536], [0, 2**31 - 1], [-1, 5], [-(2**31), 0]])
    def test_integers_beyond_16_bits(self, tmp_path: Path, values: list[int]) -> None:
        picture = Image.fromarray(np.array([values], np.int32))
        reason = refusal(only(tmp_path, lambda place: picture.save(place / "0.tif")), 0)
        least, most = values
        assert f"from {least} to {most}, where 16 bits hold 0 to 65535; convert it to 8 or 16 bits" in reason

    def test_floating_point_has_no_range(self, tmp_path: Path) -> None:
        picture = Image.fromarray(np.ones((2, 2), np.float32))
        reason = refusal(only(tmp_path, lambda place: picture.save(place / "0.tif")), 0)
        assert "floating-point images have no fixed range" in reason

    @pytest.mark.parametrize("file", ["0.gif", "0.tif", "0.png", "0.webp"])
    def test_of_several_frames_the_first(self, tmp_path: Path, file: str) -> None:
        first, *rest = (Image.fromarray(np.full((2, 2, 3), value, np.uint8)) for value in (51, 102, 255))
        options = {"lossless": True} if file.endswith("webp") else {}
        save = lambda place: first.save(place / file, save_all=True, append_images=rest, **options)  # noqa: E731
        x, _ = only(tmp_path, save).load([0])
        assert torch.equal(x, torch.full((1, 3, 2, 2), 51) / 255)


class TestNames:
    def test_classes_that_are_no_utf8(self, tmp_path: Path) -> None:
        for name in (b"\xff", b"\xfe", b"b", "\ufffd (2)".encode()):
            place = bytes(tmp_path) + b"/" + name
            os.mkdir(place)
            Image.fromarray(grey(0)).save(os.fsdecode(place) + "/0.png")
        source = open_source(str(tmp_path))
        assert source.classes == ("b", "\ufffd", "\ufffd (3)", "\ufffd (2)")
        assert [source.name_of(row) for row in range(4)] == [
            "b/0.png",
            "\ufffd/0.png",
            "\ufffd/0.png (2)",
            "\ufffd (2)/0.png",
        ]
        for name in (*source.classes, *map(source.name_of, range(4))):
            name.encode()
        again = as_source(source)
        assert again.classes == source.classes

    def test_a_reason_is_text(self, tmp_path: Path) -> None:
        bad = BadSample(0, "a/\udcff.png", "has \ud800")
        assert (bad.name, bad.reason, str(bad)) == ("a/\ufffd.png", "has \ufffd", "a/\ufffd.png: has \ufffd")
