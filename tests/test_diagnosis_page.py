"""A diagnosis as a page and as a picture: whole, harmless, every number of it, whatever layers are called."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from brittle.diagnosis.flaws.result import KINDS, SEVERITIES, Diagnosis, Finding
from brittle.report.diagnosis import KINDS as EXPLAINED
from brittle.report.diagnosis import PANELS, diagnosis_page, headline
from brittle.report.mending import mending_page
from html_pages import Page
from test_report import harmless

HOSTILE = "<script>alert('1')</script>&amp;\u202egnp.\x00\ud800$x^2$"


def diagnosis(layers: int = 3, **changes: Any) -> Diagnosis:
    """With every severity, missing numbers, and a name that does harm where it is not escaped."""
    names = (HOSTILE, "", *(rf"${k}\frac{{$" for k in range(layers - 2)))
    findings = [
        Finding(
            names[row],
            kind,
            SEVERITIES[(row + column) % 3],
            {"dead_share": 0.125 * row, "unknown": math.nan},
            tuple(range(row * 10)),
            ((0, 3), (2, 8)) if row == 1 else None,
            f"{kind} for {HOSTILE}",
        )
        for row in range(layers)
        for column, kind in enumerate(KINDS)
        if (row, kind) != (2, "fragile")
    ]
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    line = tuple(math.nan if k == 1 else 10.0**-k for k in range(layers))
    measures = {name: line for panel in PANELS for name in panel.lines}
    measures |= {f"<b>{HOSTILE}": line, "infinite": (math.inf,) * layers}
    return replace(
        Diagnosis(
            names,
            tuple(f"Conv2d <{k}>" for k in range(layers)),
            measures,
            tuple(findings),
            {"train": 1297, "validation": 500},
            {"train": 0.875, "validation": math.nan, "validation, attack": 0.25},
            (f"A note on {HOSTILE}",),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def text() -> str:
    return diagnosis_page(diagnosis().summary(), HOSTILE, {HOSTILE: HOSTILE})


def test_page_is_whole_and_harmless_with_hostile_names(text: str) -> None:
    page = harmless(text)
    assert "alert('1')" in page.text  # as text
    assert not re.search("[\x00-\x08\u202a-\u202e\ud800-\udfff]", text)
    assert page.figures == {"measures": len(PANELS)}
    sections = [a["id"] for a in page.every("section") if "id" in a]
    assert sections == ["flaws", "layers", "measures", "run"]


def test_every_severity_is_in_the_grid_in_letters(text: str) -> None:
    page = Page(text)
    rows = page.rows("layers")
    assert rows[0] == ("layer", *KINDS)
    found = diagnosis()
    for row, layer in zip(rows[1:], found.layers, strict=True):
        assert row[1:] == tuple(found.severity(layer, kind) or "?" for kind in KINDS)
    assert rows[2][0].startswith("(model)")
    classes = [a["class"] for a in page.every("td") if a.get("class") in (*SEVERITIES, "unjudged")]
    assert classes.count("unjudged") == 1
    assert classes.count("severe") == sum(f.severity == "severe" for f in found.findings)


def test_flaws_come_worst_first_with_evidence_and_place(text: str) -> None:
    words = " ".join(Page(text).text.split())
    assert words.index("✖ severe") < words.index("◆ mild")
    assert words.count("✖ severe") + words.count("◆ mild") == len(diagnosis().flaws)
    assert "units 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; rows 0 to 2, columns 2 to 7" in words
    assert "units 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more" in words
    assert "dead share 0.125, unknown —" in words


def test_numbers_of_the_measures_are_there(text: str) -> None:
    page = Page(text)
    rows = page.rows("measures")
    lines = list(PANELS[0].lines)
    assert ("(model)", *["—"] * len(lines)) in rows
    assert any(row[1:] == tuple(["1.000"] * len(lines)) for row in rows)
    page.shows("run", ("train", "1,297", "87.5 %"))
    page.shows("run", ("validation", "500", "—"))
    page.shows("run", ("validation, attack", "500", "25.0 %"))


@pytest.mark.parametrize(
    ("severities", "expected"),
    [
        ([], "No flaws found in 3 layers."),
        (["none", "none"], "No flaws found in 3 layers."),
        (["mild"], "1 mild flaw in 1 of 3 layers."),
        (["mild", "severe", "severe"], "2 severe and 1 mild flaws in 3 of 3 layers."),
    ],
)
def test_headline_counts(severities: list[str], expected: str) -> None:
    findings = [{"layer": str(k), "severity": severity} for k, severity in enumerate(severities)]
    assert headline({"findings": findings, "layers": ["0", "1", "2"]}) == expected


def test_a_healthy_network_has_no_flaws_on_its_page() -> None:
    healthy = diagnosis(findings=(), notes=())
    page = harmless(diagnosis_page(healthy.summary(), "Healthy"))
    assert "headline held" in [a.get("class") for a in page.every("p")]
    assert "flaws" not in [a.get("id") for a in page.every("section")]


def test_nothing_measured_is_no_section() -> None:
    for measures in ({}, {"gradient_norm": (math.nan,) * 3}):
        page = harmless(diagnosis_page(diagnosis(measures=measures).summary(), "Bare"))
        assert "measures" not in [a.get("id") for a in page.every("section")]


def test_same_arguments_give_the_same_bytes(text: str) -> None:
    assert diagnosis_page(diagnosis().summary(), HOSTILE, {HOSTILE: HOSTILE}) == text


def test_every_kind_is_explained() -> None:
    assert tuple(EXPLAINED) == KINDS


class TestPicture:
    @pytest.mark.parametrize("layers", [3, 60])
    def test_a_letter_for_every_flaw_beside_the_lines(self, layers: int) -> None:
        found = diagnosis(layers)
        figure = found.plot()
        cells, *panels = figure.axes
        letters = [text.get_text() for text in cells.texts]
        assert letters.count("S") == sum(f.severity == "severe" for f in found.findings)
        assert letters.count("m") == sum(f.severity == "mild" for f in found.findings)
        assert letters.count("?") == 1
        assert len(cells.get_yticklabels()) == layers
        assert [axis.get_xlabel() for axis in panels] == [panel.title for panel in PANELS]
        first = panels[0].lines[0]
        assert list(first.get_ydata()) == list(range(layers))
        assert math.isnan(list(first.get_xdata())[1])
        figure.canvas.draw()  # no name breaks the drawing

    def test_rows_of_the_map_and_of_the_lines_are_the_same(self) -> None:
        axes = diagnosis(5).plot().axes
        assert len({axis.get_ylim() for axis in axes}) == 1

    def test_no_measures_is_the_map_alone(self) -> None:
        assert len(diagnosis(measures={}).plot().axes) == 1

    def test_colours_differ_in_lightness(self) -> None:
        from brittle.diagnosis.flaws.pictures import _CELLS
        from matplotlib.colors import to_rgb

        lightness = [sum(to_rgb(_CELLS[severity][0])) for severity in SEVERITIES]
        assert lightness == sorted(lightness, reverse=True)
        assert min(a - b for a, b in itertools.pairwise(lightness)) > 0.5

    def test_saved(self, tmp_path: Any) -> None:
        diagnosis().plot(tmp_path / "flaws.png")
        assert (tmp_path / "flaws.png").read_bytes().startswith(b"\x89PNG")


def mended(**changes: Any) -> dict[str, Any]:
    """The summary of a mending with one step of each outcome."""
    suggestion = {
        "action": "recycle",
        "title": f"recycle layers {HOSTILE}, (model)",
        "what": "start the dead units anew",
        "layers": [HOSTILE, ""],
        "findings": [{"layer": HOSTILE, "kind": "dead", "severity": "severe"}],
        "arguments": {},
        "why": f"Because of {HOSTILE}.",
    }
    score = {"accuracy": 0.5, "log_loss": 1.5, "robust_accuracy": None}
    steps = [
        {"suggestion": suggestion, "outcome": outcome, "reason": "It is so.", "before": score, "after": score}
        for outcome in ("kept", "rolled back", "not needed")
    ]
    return {
        "before": diagnosis().summary(),
        "after": diagnosis(findings=()).summary(),
        "steps": steps,
        "scores": {"before": score, "after": score | {"accuracy": 0.75, "log_loss": 2.0}},
        "judged_on": "test",
        "eps": 8 / 255,
        "notes": [HOSTILE],
        **changes,
    }


class TestMendingPage:
    def test_whole_and_harmless(self) -> None:
        page = harmless(mending_page(mended(), HOSTILE))
        words = " ".join(page.text.split())
        assert "1 repair kept, 1 rolled back, 1 not needed." in words
        assert words.index("✓ kept") < words.index("✗ rolled back") < words.index("○ not needed")
        page.shows("numbers", ("test accuracy", "50.0 %", "75.0 %", "↑ +0.250", "better"))
        page.shows("numbers", ("test log-loss", "1.500", "2.000", "↑ +0.500", "worse"))
        page.shows("numbers", ("test accuracy under PGD, Linf 8/255", "—", "—", "", ""))
        severe = str(sum(f.severity == "severe" for f in diagnosis().findings))
        page.shows("numbers", ("severe flaws", severe, "0", f"↓ \N{MINUS SIGN}{severe}", "better"))
        assert page.rows("before") != page.rows("after")

    def test_links_lead_to_its_neighbours(self) -> None:
        page = Page(mending_page(mended(), "A model", {"compare.html": "Side by side"}))
        assert "compare.html" in [a["href"] for a in page.every("a")]

    @pytest.mark.parametrize(
        ("steps", "expected", "look"),
        [
            ([], "No flaws found: there is nothing to mend.", "headline held"),
            (mended()["steps"][1:], "No repair helped: the model is as it was.", "headline missed"),
        ],
    )
    def test_what_does_not_help_is_said(self, steps: list[Any], expected: str, look: str) -> None:
        page = harmless(mending_page(mended(steps=steps), "A model"))
        assert expected in " ".join(page.text.split())
        assert look in [a.get("class") for a in page.every("p")]
