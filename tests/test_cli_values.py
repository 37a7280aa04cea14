"""What is written on the command line or in a TOML file, as values."""

import os
from pathlib import Path

import pytest
import typer
from brittle.cli import values
from brittle.cli.config import options_from_file
from brittle.cli.inputs import Inputs
from typer.testing import CliRunner, Result


@pytest.mark.parametrize("texts", [["a,b", "c"], ["a", "b", "c"], [" a , b,c,"]])
def test_words_are_repeated_or_separated_by_commas(texts: list[str]) -> None:
    assert values.words(texts) == ["a", "b", "c"]


def test_numbers_and_fractions() -> None:
    assert values.numbers("evaluate", "--mean", "0.5, 8/255,-1") == [0.5, 8 / 255, -1.0]
    assert values.pair("evaluate", "--bounds", "-1,1") == (-1.0, 1.0)
    assert values.height_and_width("evaluate", "224, 196") == (224, 196)


@pytest.mark.parametrize("word", ["x", "1/0", "nan", "inf", "1/2/3", "1e999"])
def test_what_is_no_number(word: str) -> None:
    with pytest.raises(
        ValueError, match=r"^evaluate: --mean must be numbers or fractions such as 8/255; got "
    ):
        values.numbers("evaluate", "--mean", f"0.5,{word}")


@pytest.mark.parametrize("text", ["224", "224,", "a,b", "0,8", "-8,8", "8,8,8", "8.0,8", "9" * 5000 + ",8"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"^evaluate: --size must be H,W in pixels"):
        values.height_and_width("evaluate", text)


@pytest.mark.parametrize(
    ("texts", "norms", "expected"),
    [
        (None, ["linf"], None),
        (["8/255,0.1"], ["linf", "l2"], {"linf": [8 / 255, 0.1]}),
        (["0.1", "0.2", "l2:1,2"], ["linf", "l2"], {"linf": [0.1, 0.2], "l2": [1, 2]}),
        (["0.5"], ["l2"], {"l2": [0.5]}),
    ],
)
def test_radii_by_norm(
    texts: list[str] | None, norms: list[str], expected: dict[str, list[float]] | None
) -> None:
    assert values.by_norm("evaluate", "--epsilons", texts, norms) == expected


def test_radii_of_an_unknown_norm() -> None:
    with pytest.raises(
        ValueError, match=r"^evaluate: --epsilons must be for one of linf, l2, l1; got 'l3:1'"
    ):
        values.by_norm("evaluate", "--epsilons", ["l3:1"], ["linf"])


class TestNames:
    def test_data(self, tmp_path: Path) -> None:
        (tmp_path / "odd=name").mkdir()
        given = ["digits", "train=a=b.npz", "x/there.npz", f"{tmp_path}/odd=name/", f"n={tmp_path}"]
        assert values.named_data("evaluate", given) == {
            "digits": "digits",
            "train": "a=b.npz",
            "there": "x/there.npz",
            "odd=name": f"{tmp_path}/odd=name/",
            "n": str(tmp_path),
        }

    def test_a_name_longer_than_a_files(self) -> None:
        name = "n" * 300
        assert values.named_data("evaluate", [f"{name}=x.npz"]) == {name: "x.npz"}
        assert values.named_data("evaluate", [name]) == {name: name}

    @pytest.mark.parametrize(
        ("texts", "match"),
        [
            (["a/x.npz", "b/x.npz"], "another NAME= for each set; got 'x' twice"),
            (["a=1", "a=2"], "got 'a' twice"),
            (["=x"], "NAME=PATH or PATH; got '=x'"),
            (["x="], "NAME=PATH or PATH; got 'x='"),
            (["bad\udcff=x.npz"], "in UTF-8; got 'bad.udcff=x.npz'"),
        ],
    )
    def test_data_mistakes(self, texts: list[str], match: str) -> None:
        with pytest.raises(ValueError, match=f"^evaluate: --data must (be|have) .*{match}"):
            values.named_data("evaluate", texts)

    def test_groups(self, tmp_path: Path) -> None:
        odd = tmp_path / "a:b.csv"
        odd.touch()
        names = ["train", "test"]
        assert values.named_groups("evaluate", ["g.csv:site"], names) == {"train": ("g.csv", "site")}
        both = values.named_groups("evaluate", [str(odd), "test=h.csv:a=b"], names)
        assert both == {"train": (str(odd), None), "test": ("h.csv", "a=b")}
        with pytest.raises(ValueError, match="got two for 'train'"):
            values.named_groups("evaluate", ["g.csv", "train=h.csv"], names)

    def test_inputs_are_found_again_from_anywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        inputs = Inputs.of("evaluate", "net.py:f", Path("w"), ["digits", "b=x.npz"], ["b=g.csv:s"], "8,9")
        saved = inputs.as_json()
        assert saved == {
            "model": f"{tmp_path}/net.py:f",
            "weights": f"{tmp_path}/w",
            "data": [["digits", "digits"], ["b", f"{tmp_path}/x.npz"]],
            "groups": {"b": [f"{tmp_path}/g.csv", "s"]},
            "size": [8, 9],
        }
        os.chdir("/")
        assert Inputs.from_json(saved).as_json() == saved
        assert Inputs.of("evaluate", "net.pt2", None, ["digits"]).as_json()["model"] == "/net.pt2"

    def test_paths_that_no_report_could_hold(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bad = "n\udcff"
        for option, arguments in {
            "--model": (f"{bad}.py:f", None, ["digits"]),
            "--weights": ("net.py:f", Path(bad), ["digits"]),
            "--data": ("net.py:f", None, [bad]),
            "--groups": ("net.py:f", None, ["digits"], [f"{bad}.csv"]),
        }.items():
            with pytest.raises(ValueError, match=f"^evaluate: {option} must be in UTF-8; got "):
                Inputs.of("evaluate", *arguments)
        (tmp_path / bad).mkdir()
        monkeypatch.chdir(tmp_path / bad)
        with pytest.raises(ValueError, match=r"^evaluate: --model must be in UTF-8; got .*n.udcff/net"):
            Inputs.of("evaluate", "net.py:f", None, ["digits"])


def told(config: Path, *arguments: str) -> Result:
    """What a command with options of every kind makes of a file and a command line."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    @app.command()
    def command(
        data: list[str] = typer.Option(),  # noqa: B008
        norms: list[str] = typer.Option(["linf"], "--norm"),  # noqa: B008
        epsilons: list[str] = typer.Option([]),  # noqa: B008
        mean: str = typer.Option(None),
        batch_size: int = typer.Option(256),
        skip_bad: bool = typer.Option(False, "--skip-bad"),
        config: Path = typer.Option(None, callback=options_from_file, is_eager=True),  # noqa: B008
    ) -> None:
        typer.echo((data, norms, epsilons, mean, batch_size, skip_bad))

    return CliRunner().invoke(app, ["--config", str(config), *arguments])


class TestFile:
    def test_every_kind_of_value(self, tmp_path: Path) -> None:
        config = tmp_path / "run.toml"
        config.write_text(
            'norm = ["l2", "l1"]\nbatch_size = 7\nskip-bad = true\nmean = [0.5, 1]\n'
            '[data]\ntrain = "a"\ntest = "b"\n[epsilons]\nl2 = [0.5, "8/255"]\nl1 = 3\n'
        )
        expected = (["train=a", "test=b"], ["l2", "l1"], ["l2:0.5,8/255", "l1:3"], "0.5,1", 7, True)
        assert told(config).output == f"{expected}\n"
        config.write_text('data = "digits"\n')
        assert told(config).output == f"{(['digits'], ['linf'], [], None, 256, False)}\n"

    def test_the_command_line_wins(self, tmp_path: Path) -> None:
        config = tmp_path / "run.toml"
        config.write_text('data = ["a", "b"]\nbatch-size = 7\nnorm = "l2"\n')
        shown = told(config, "--data", "c", "--batch-size", "9").output
        assert shown == f"{(['c'], ['l2'], [], None, 9, False)}\n"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "colour = 3",
                "unknown option 'colour'; there are batch-size, data, epsilons, mean, norm, skip-bad",
            ),
            ("config = 'x'", "unknown option 'config'"),
            ("skip-bad = 'yes'", "skip-bad must be true or false; got 'yes'"),
            ("data = true", "data must be text or numbers; got True"),
            ("mean = {a = 1}", "mean must be text or numbers"),
            ("batch-size = 'many'", "Invalid value for '--batch-size'"),
            ("data = ", "must be TOML in UTF-8"),
            ("data = " + "[" * 50_000, "must be TOML in UTF-8"),
            ("data = " + "[" * 50_000 + "]" * 50_000, "must be TOML in UTF-8"),
            ("data = [[['a']]]", "data must be text or numbers; got a list"),
            ("mean = 0x" + "f" * 5000, "mean must be a number that fits"),
            ("mean = " + "9" * 5000, "must be TOML in UTF-8"),
            ("mean = 1979-05-27", "mean must be text or numbers; got datetime.date"),
            ('data = "a\\u0000b"', "data must be text without zero bytes"),
            ('[data]\n"a\\u0000" = "b"', "data must be text without zero bytes"),
            ('data = "\\ud800"', "must be TOML in UTF-8"),
            ("#" * (1 << 20) + "\n", "must be TOML of at most 1 MiB"),
            ("a" * 100_000 + " = 1", "unknown option 'aaaa"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, text: str, expected: str) -> None:
        config = tmp_path / "run.toml"
        config.write_text(text)
        outcome = told(config, "--data", "x")
        assert outcome.exit_code == 2
        assert expected in " ".join(outcome.stderr.split())
        assert not outcome.stdout

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
    def test_no_regular_file(self, tmp_path: Path, kind: str) -> None:
        config = tmp_path / "run.toml"
        if kind == "a named pipe":
            os.mkfifo(config)
        elif kind == "a device":
            config.symlink_to("/dev/zero")
        else:
            config.mkdir()
        outcome = told(config)
        assert outcome.exit_code == 2
        assert f"cannot be read: must be a regular file; it is {kind}" in " ".join(outcome.stderr.split())

    def test_no_file(self, tmp_path: Path) -> None:
        outcome = told(tmp_path / "run.toml")
        assert outcome.exit_code == 2
        assert "cannot be read: No such file" in outcome.stderr
