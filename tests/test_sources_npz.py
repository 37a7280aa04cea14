"""Archives of arrays: the right values, or one sentence, whatever their bytes are."""

import io
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from brittle.sources import open_source
from brittle.sources.npz import Archive
from test_sources import colour


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


X = np.random.default_rng(0).random((6, 4)).astype("f4")
Y = np.arange(6)
CLASSES, GROUPS = np.array(["a", "\xe9", "c", "d", "e", "f"]), np.array([b"u", b"v"] * 3)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def written(description: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """An array as its header describes it, whatever that is."""
    text = description.encode("latin-1")
    text += b" " * (-(11 + len(text)) % 64) + b"\n"
    return (
        b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text + content
    )


def shaped(shape: object, dtype: str = "<f4", content: bytes = X.tobytes()) -> bytes:
    return written(f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}", content)


def archive(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """x and y as they should be, and members in their place."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in ({"x": npy(X), "y": npy(Y)} | members).items():
            file.writestr(f"{name}.npy", content)
    return path


def outcome(path: Path) -> str:
    """``right``, or the sentence that is said instead; anything else fails the test."""
    try:
        source = open_source(str(path))
        source.digest()
        x, y = source.load(range(len(source)))
    except ValueError as error:
        sentence = str(error)
    else:
        assert torch.equal(x, torch.from_numpy(X))
        assert y.tolist() == Y.tolist()
        assert source.classes in (None, tuple(CLASSES.tolist()))
        return "right" if source.classes else "right, without names"
    assert sentence.startswith("open_source: ")
    assert "\n" not in sentence
    assert len(sentence) < 500 + len(str(path))
    return sentence


class TestDamage:
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_any_bit_flipped_and_any_end_cut(self, tmp_path: Path, method: int) -> None:
        whole = archive(tmp_path / "d.npz", method, classes=npy(CLASSES), groups=npy(GROUPS)).read_bytes()
        path = tmp_path / "e.npz"
        refused = 0
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            # An archive without its names is another good one.
            found = outcome(path)
            assert found != "right, without names", place
            refused += found != "right"
        assert refused > len(whole) / 2
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert outcome(path).startswith("open_source: ")
        for place in range(0, len(whole) - 64, 31):  # a block that the disk lost
            path.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
            assert outcome(path) != "right, without names"

    def test_a_flipped_bit_of_a_mapped_x_is_seen_by_the_digest(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=np.full((500, 16, 16), 0.5, "f4"), y=np.arange(500) % 10)
        damaged = bytearray((tmp_path / "d.npz").read_bytes())
        damaged[300_002] ^= 64
        (tmp_path / "e.npz").write_bytes(damaged)
        source = open_source(str(tmp_path / "e.npz"))
        with pytest.raises(
            ValueError, match=r"^open_source: .*undamaged .npz archive; x does not match its checksum$"
        ):
            source.digest()
        assert len(open_source(str(tmp_path / "d.npz")).digest()) == 64

    @pytest.mark.parametrize(
        ("x", "reason"),
        [
            (written("{'descr': (((((", X.tobytes()), "as np.savez writes them"),
            (written("(" * 9000), "as np.savez writes them"),
            (written("-" * 9000 + "1"), "as np.savez writes them"),
            (written("7"), "as np.savez writes them"),
            (
                written("{'descr': '<f4', 'fortran_order': 'x', 'shape': (6, 4), }", X.tobytes()),
                "as np.savez",
            ),
            (
                written("{'descr': '<f4,<f4', 'fortran_order': False, 'shape': (6, 2), }", X.tobytes()),
                "numbers of",
            ),
            (npy(X).replace(b"\x93NUMPY\1\0", b"\x93NUMPY\3\0"), "as np.savez writes them"),
            (npy(X).replace(b"\x93NUMPY\1\0", b"\x93NUMPY\7\1"), "as np.savez writes them"),
            (b"", "as np.savez writes them"),
            (shaped((10**30,)), "as np.savez writes them; x.npy has shape"),
            (shaped((0, 10**30)), "as np.savez writes them; x.npy has shape"),
            (shaped((True, 24)), "as np.savez writes them"),
            (shaped((6, -4)), "as np.savez writes them"),
            (shaped((3,) * 40), "as np.savez writes them|x.npy must have"),
            (shaped((6, 4) + (1,) * 90), "as np.savez writes them; x.npy has shape"),
            (shaped("()"), r"x.npy must have .* bytes for shape \[\]"),
            (shaped((6, 5)), r"x.npy must have 248 bytes for shape \[6, 5\] of float32; got 224"),
            (shaped((6, 3)), "x.npy must have 200 bytes"),
            (shaped((6, 0), content=b""), "at least one value a sample"),
            (shaped((0, 4), content=b""), r"\[N, ...\] with N > 0"),
            (npy(np.float32(1)), r"\[N, ...\] with N > 0"),
            (npy(np.zeros((6, 2), np.longdouble)), "at most 64 bits; got (float128|longdouble)"),
            (npy(np.zeros((6, 2), complex)), "at most 64 bits; got complex128"),
            (npy(np.zeros((6, 2), "M8[s]")), "at most 64 bits; got datetime64"),
            (npy(np.zeros((6, 2), "V5")), "at most 64 bits"),
            (npy(np.zeros((6, 2), "i2")), "uint8 or floating-point; got torch.int16"),
            (npy(np.zeros((6, 2), "?")), "uint8 or floating-point; got torch.bool"),
        ],
    )
    def test_headers(self, tmp_path: Path, x: bytes, reason: str) -> None:
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with pytest.raises(ValueError, match=f"^open_source: .*({reason})") as caught:
                open_source(str(archive(tmp_path / "d.npz", method, x=x)))
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"y": npy(np.arange(6)[:, None])}, r"got shape \[6, 1\] \(labels in a column are y\[:, 0\]\)"),
            ({"y": npy(np.eye(6, dtype=int))}, r"got shape \[6, 6\] \(one-hot labels are y.argmax\(1\)\)"),
            (
                {"y": npy(np.arange(6, dtype=np.uint64) + np.uint64(2**63))},
                "64 bits with a sign; got 9223372036854775813",
            ),
            ({"y": npy(np.full(6, np.nan))}, "y must be integers; got torch.float64"),
            ({"y": npy(np.arange(6) > 2)}, "y must be integers; got torch.bool"),
            ({"y": npy(np.array(list("abcdef")))}, "at most 64 bits; got <U1"),
            ({"classes": npy(np.array([["a"]]))}, r"classes must be a list of names; got shape \[1, 1\]"),
            ({"classes": npy(np.array("a"))}, r"classes must be a list of names; got shape \[\]"),
            ({"classes": npy(np.zeros(2, "M8[s]"))}, "classes of .* must be text or numbers"),
            ({"classes": npy(np.zeros(2, complex))}, "classes of .* must be text or numbers"),
            ({"classes": shaped((2,), "<U1", b"\xff" * 8)}, "must hold classes as text"),
            ({"classes": npy(np.array(["a" * 5000]))}, "at most 1,024 characters and 256 MiB together"),
            ({"groups": npy(np.array(["a"] * 7))}, "groups must have one entry a sample, 6; got 7"),
            ({"groups": shaped((6,), "<U0", b"")}, "groups|right"),
        ],
    )
    def test_labels_and_names(self, tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            found = outcome(archive(tmp_path / "d.npz", method, **members))
            assert re.search(reason, found), found

    def test_names_that_are_no_utf8(self, tmp_path: Path) -> None:
        lone = np.array(["\ud800", "\ud801", "c"])
        raw = np.array([b"\xff", b"\xfe", b"c"] * 2)
        source = open_source(str(archive(tmp_path / "d.npz", classes=npy(lone), groups=npy(raw))))
        assert source.classes == ("\ufffd", "\ufffd (2)", "c")
        assert source.groups == ("\ufffd", "\ufffd (2)", "c") * 2

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
    def test_other_compression(self, tmp_path: Path, method: int) -> None:
        path = archive(tmp_path / "d.npz", zipfile.ZIP_STORED if method == 99 else method)
        if method == 99:
            content = bytearray(path.read_bytes())
            content[8] = content[content.find(b"PK\1\2") + 10] = 99
            path.write_bytes(content)
        assert outcome(path).endswith(f"or not at all; got method {method} of ZIP")

    def test_encrypted(self, tmp_path: Path) -> None:
        content = bytearray(archive(tmp_path / "d.npz").read_bytes())
        content[6] |= 1
        content[content.find(b"PK\1\2") + 8] |= 1
        (tmp_path / "e.npz").write_bytes(content)
        assert outcome(tmp_path / "e.npz").endswith("must not be encrypted")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize("second", ["x.npy", "x"])
    def test_two_of_a_name(self, tmp_path: Path, second: str) -> None:
        path = archive(tmp_path / "d.npz")
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(second, npy(X + 1))
        assert outcome(path).endswith("must hold x once; got it 2 times")

    def test_many_members_and_long_names(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "d.npz", **{f"m{number}": b"" for number in range(30)})
        assert outcome(path) == "right, without names"
        with zipfile.ZipFile(path, "w") as file:
            for number in range(30):
                file.writestr(f"m{number}.npy", "")
        assert "got m0, m1, m10, m11, m12, m13, m14, m15, m16, m17 and 20 more" in outcome(path)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a\nb" + "c" * 10_000, "")
        assert "got a bc" in outcome(path)
        with zipfile.ZipFile(path, "w") as file:
            for number in range(10_001):
                file.writestr(f"{number}", "")
        assert outcome(path).endswith("must hold at most 10,000 arrays; got 10,001")

    def test_sizes_that_lie(self, tmp_path: Path) -> None:
        """In the archive's directory, as an extension of 64 bits has them, and for what is stored."""
        whole = archive(tmp_path / "d.npz").read_bytes()
        entry = whole.find(b"PK\1\2")
        for offset in (20, 24):  # of what is packed, and of what is unpacked
            for size in (0, 1, 223, 225, 2**31, 2**32 - 1):
                content = bytearray(whole)
                struct.pack_into("<I", content, entry + offset, size)
                (tmp_path / "e.npz").write_bytes(content)
                assert "must be a" in outcome(tmp_path / "e.npz")

    def test_members_that_lie_in_one_place(self, tmp_path: Path) -> None:
        content = bytearray(archive(tmp_path / "d.npz").read_bytes())
        first = content.find(b"PK\1\2")
        second = content.find(b"PK\1\2", first + 4)
        content[second + 42 : second + 46] = content[first + 42 : first + 46]
        (tmp_path / "e.npz").write_bytes(content)
        assert "must be an .npz archive" in outcome(tmp_path / "e.npz")

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("kind", ["a named pipe", "a device", "a socket"])
    def test_what_is_no_file(self, tmp_path: Path, kind: str) -> None:
        import socket

        path = tmp_path / "d.npz"
        if kind == "a named pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        assert outcome(path).endswith(
            f"cannot be read as an .npz archive: must be a regular file; it is {kind}"
        )


class TestRoom:
    """Nothing is unpacked further than its header says, nor to where there is no room."""

    @pytest.mark.parametrize("name", ["x", "y", "classes", "groups"])
    def test_a_member_with_more_than_its_header_says(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = {"x": npy(X), "y": npy(Y), "classes": npy(CLASSES), "groups": npy(GROUPS)}
        path = archive(
            tmp_path / "d.npz", zipfile.ZIP_DEFLATED, **{**good, name: good[name] + bytes(50 << 20)}
        )
        assert path.stat().st_size < 1 << 20
        unpacked = counted(monkeypatch)
        assert f"{name}.npy must have" in outcome(path)
        assert sum(unpacked) < 1 << 16

    def test_a_member_that_hides_its_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The directory says what the header says, and the packed bytes hold much more."""
        content = bytearray(
            archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED, x=npy(X) + bytes(50 << 20)).read_bytes()
        )
        struct.pack_into("<I", content, content.find(b"PK\1\2") + 24, len(npy(X)))
        (tmp_path / "e.npz").write_bytes(content)
        unpacked = counted(monkeypatch)
        assert "must be an .npz archive; Bad CRC-32" in outcome(tmp_path / "e.npz")
        assert sum(unpacked) < 1 << 16

    def test_names_that_would_fill_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED, classes=npy(np.zeros(300 << 20, "S1")))
        unpacked = counted(monkeypatch)
        assert "256 MiB together; got 314,572,800 of 1 bytes" in outcome(path)
        assert sum(unpacked) < 1 << 16

    def test_no_room_on_the_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED)
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=100))
            assert "must fit on the disk to be unpacked; it has 224 bytes, and" in outcome(path)
        with monkeypatch.context() as patch:
            patch.setattr("brittle.sources.npz.tempfile.TemporaryFile", full_disk)
            assert "must fit on the disk to be unpacked; No space left on device" in outcome(path)
        assert outcome(path) == "right, without names"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes are unpacked from now on, read by read."""
    sizes: list[int] = []
    read = zipfile.ZipExtFile.read

    def counting(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        content = read(self, n)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    return sizes


def full_disk() -> io.BytesIO:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(28, "No space left on device")

    return Full()


class TestChanges:
    """A mapped archive that is rewritten would mix two data sets; one that is cut would end the process."""

    @pytest.mark.parametrize("change", ["cut", "rewritten", "longer"])
    def test_it_is_noticed(self, tmp_path: Path, change: str) -> None:
        path = archive(tmp_path / "d.npz")
        source = open_source(str(path))
        with path.open("r+b") as file:
            {
                "cut": lambda: file.truncate(0),
                "rewritten": lambda: file.write(b"PK"),
                "longer": lambda: file.truncate(9999),
            }[change]()
        os.utime(path, ns=(1, 1))
        for read in (lambda: source.load([0]), source.digest):
            with pytest.raises(ValueError, match=r"^open_source: .*must not change while it is read"):
                read()

    def test_what_is_unpacked_or_replaced_stays(self, tmp_path: Path) -> None:
        packed = archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED)
        mapped = archive(tmp_path / "e.npz")
        sources = [open_source(str(packed)), open_source(str(mapped))]
        packed.write_bytes(b"")
        mapped.unlink()
        for source in sources:
            assert isinstance(source, Archive)
            assert torch.equal(source.load([5, 0])[0], torch.from_numpy(X[[5, 0]]))
