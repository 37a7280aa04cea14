"""Files of other people's: what is no regular file, or no JSON of the right shape, is refused and named."""

import os
import socket
from pathlib import Path

import pytest
from brittle import _files
from typing_extensions import TypedDict


class Shape(TypedDict):
    name: str
    sizes: list[int]
    share: float


GOOD = '{"name": "a", "sizes": [1, 2], "share": 0.5, "more": {"x": null}}'


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


class TestRegular:
    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("read", [_files.require_regular, _files.open_regular, _files.read_regular])
    def test_what_is_no_regular_file_is_refused_by_its_kind(
        self, read, tmp_path: Path, socket_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "zeros").symlink_to("/dev/zero")
        kinds = {
            "pipe": "a named pipe",
            "zeros": "a device",
            "socket": "a socket",
            ".": "a folder",
        }
        for name, kind in kinds.items():
            with pytest.raises(OSError, match=f"must be a regular file; it is {kind}"):
                read(tmp_path / name)

    def test_links_are_followed_only_where_they_may_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        (tmp_path / "link").symlink_to("file")
        assert _files.read_regular(tmp_path / "link") == b"content"
        assert _files.read_regular(tmp_path / "file", follow=False) == b"content"
        with pytest.raises(OSError, match="it is a symbolic link"):
            _files.read_regular(tmp_path / "link", follow=False)

    @pytest.mark.timeout(20)
    def test_a_file_exchanged_for_a_pipe_between_look_and_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        monkeypatch.setattr(_files, "require_regular", lambda path, follow: None)
        with pytest.raises(OSError, match="it is a named pipe"):
            _files.open_regular(tmp_path / "pipe")


class TestJson:
    def test_what_fits_is_returned_with_all_that_it_holds(self) -> None:
        assert _files.parse_json(GOOD, Shape)["more"] == {"x": None}  # type: ignore[typeddict-item]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"name": 1, "sizes": [], "share": 0.5}', "name is not as expected.*got 1"),
            ('{"name": "a", "sizes": ["1"], "share": 0.5}', "sizes.0 is not as expected.*got '1'"),
            ('{"name": "a", "sizes": [true], "share": 0.5}', "sizes.0 is not"),
            ('{"name": "a", "sizes": [1.5], "share": 0.5}', "sizes.0 is not"),
            ('{"name": "a", "sizes": {}, "share": 0.5}', "sizes is not"),
            ('{"name": "a", "sizes": []}', "share is not as expected: Field required"),
            ('{"name": "a", "sizes": [], "share": NaN}', "it holds NaN"),
            ('{"name": "a", "sizes": [], "share": -Infinity}', "it holds -Infinity"),
            ('{"name": "a", "sizes": [], "share": 1e999}', "too large"),
            ("[]", "it is not as expected"),
            ("null", "it is not as expected"),
            ("{", "no JSON"),
            ("[" * 100_000, "no JSON"),
            (b"\xff", "no JSON"),
            (b"", "no JSON"),
        ],
    )
    def test_what_does_not_fit_is_named(self, text: str | bytes, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            _files.parse_json(text, Shape)

    @pytest.mark.parametrize("title", ["half \\ud800", "\\uDFFF", "whole \\ud83d\\ude00"])
    def test_half_characters_are_replaced(self, title: str) -> None:
        text = GOOD.replace('"a"', f'"{title}"')
        found = _files.parse_json(text, Shape)["name"]
        found.encode()
        assert found in ("half ?", "?", "whole \U0001f600")

    def test_values_are_shown_cut(self) -> None:
        with pytest.raises(ValueError, match=r"\.\.\.$") as error:
            _files.check_shape({"name": ["x"] * 1000}, Shape)
        assert len(str(error.value)) < 200


class TestNames:
    def test_what_utf8_cannot_hold_is_replaced(self) -> None:
        assert _files.clean_text("a\ud800b\udfff \xe9\U0001f600") == "a\ufffdb\ufffd \xe9\U0001f600"
        assert _files.clean_text(os.fsdecode(b"\xff\xc3\xa9.png")) == "\ufffd\xe9.png"

    def test_names_that_differ_stay_different(self) -> None:
        names = ["\ud800", "\ud801", "\ufffd", "\ud800", "\ufffd (2)", "x", "\ud802"]
        cleaned = ("\ufffd (3)", "\ufffd (4)", "\ufffd", "\ufffd (3)", "\ufffd (2)", "x", "\ufffd (5)")
        assert _files.clean_names(names) == cleaned
        assert _files.clean_names([7, "7"]) == ("7", "7")
        assert _files.clean_names([]) == ()

    @pytest.mark.timeout(20)
    def test_many_at_once(self) -> None:
        names = [chr(0xD800 + number % 2048) * (1 + number // 2048) for number in range(20_000)]
        assert len(set(_files.clean_names(names))) == len(set(names))


class TestWriting:
    def test_a_write_that_fails_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_bytes(b"before")
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _files.write_whole(tmp_path / "file", b"after")
        assert os.listdir(tmp_path) == ["file"]
        assert (tmp_path / "file").read_bytes() == b"before"

    def test_whole_files_replace_others(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"before")
        _files.write_whole(tmp_path / "file", b"after")
        assert os.listdir(tmp_path) == ["file"]
        assert (tmp_path / "file").read_bytes() == b"after"


class TestReplacing:
    def test_only_what_brittle_wrote_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "report.html"
        _files.refuse_foreign("op", path, _files.PAGE)
        path.write_bytes(b"<html>" + _files.PAGE + b"</html>")
        _files.refuse_foreign("op", path, _files.PAGE)
        path.write_text("<html>my thesis</html>")
        with pytest.raises(ValueError, match=r"^op: .*report.html is there already and was not written by"):
            _files.refuse_foreign("op", path, _files.PAGE)

    @pytest.mark.timeout(20)
    def test_nor_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "dangling").symlink_to("nowhere")
        for name in ("pipe", ".", "dangling"):
            with pytest.raises(ValueError, match=r"^op: .* must be a file that can be replaced"):
                _files.refuse_foreign("op", tmp_path / name, _files.PAGE)
