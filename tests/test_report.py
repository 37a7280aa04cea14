"""The report of an evaluation: whole, harmless, and with every number that the summary holds."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import report_summaries
import run_rows
from brittle import report
from brittle.evaluation.compare import compare
from brittle.evaluation.views import summarise
from brittle.report.text import count, number, percent
from html_pages import Page
from matplotlib import image, rc_context

Summary = dict[str, Any]


@pytest.fixture(scope="module")
def summary() -> Summary:
    return report_summaries.whole()[0]


@pytest.fixture(scope="module")
def text() -> str:
    return report_summaries.whole()[1]


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def only(summary: Summary, *views: str) -> Summary:
    """The summary with no other views."""
    return summary | {"views": {name: summary["views"][name] for name in views}}


def harmless(text: str) -> Page:
    """The page, after checks that it neither runs nor loads anything and holds together."""
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "use", "image"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not {"href", "xlink:href", "action", "srcset"} & set(attributes) or tag == "a"
    for attributes in page.every("a"):
        assert (attributes["href"] or "").startswith("#")
        assert (attributes["href"] or "")[1:] in ids
    for attributes in page.every("img"):
        assert (attributes["src"] or "").startswith("data:image/png;base64,")
        assert attributes["alt"]
    [policy] = [a["content"] for a in page.every("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    [styles] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url\(|@import|https?:", styles)
    return page


def test_page_is_whole_and_loads_nothing(text: str, page: Page) -> None:
    harmless(text)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", page.text)
    assert [a["id"] for a in page.every("section") if "id" in a] == [
        "findings",
        "robustness",
        "classification",
        "segments",
        "sets",
        "calibration",
        "shift",
        "ood",
        "landscape",
        "samples",
        "duplicates",
        "repeat",
        "run",
    ]


def test_every_figure_has_its_numbers_and_the_colours_of_the_page(text: str, page: Page) -> None:
    expected = {"robustness": 4, "classification": 4, "segments": 1, "sets": 1, "calibration": 8}
    expected |= {"shift": 4, "ood": 8, "landscape": 2, "repeat": 1}
    assert page.figures == expected
    assert text.count('<details class="numbers">') == sum(expected.values()) + 2 + 3  # notices, tiles
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{3,6}\b", " ".join(re.findall(r'style="(.*?)"', drawing)))
        assert "var(--ink)" in drawing or "var(--soft)" in drawing
        assert "aria-label=" in drawing


def test_verdict_comes_first(summary: Summary, page: Page) -> None:
    verdict = summary["verdict"]
    words = " ".join(page.text.split())
    places = [words.index(" ".join(part.split())) for part in (summary["title"], verdict["headline"])]
    places += [words.index(" ".join(sentence.split())) for sentence in verdict["sentences"]]
    places.append(words.index(summary["findings"][0]["title"]))
    assert places == sorted(places)
    assert "✓ held accuracy=0.95 got 0.970" in words
    assert "✗ missed robust=0.5@8/255 got 0.412" in words
    assert "✗ missed worst_group=0.9 got —" in words
    assert "partial" not in words.lower()
    for severity, icon in {"critical": "✖", "serious": "▲", "moderate": "◆", "note": "●"}.items():
        assert f"{icon} {severity}" in words


@pytest.mark.parametrize(("held", "look"), [(True, "headline held"), (None, "headline ")])
def test_verdict_that_holds_or_was_not_asked_for(summary: Summary, held: bool | None, look: str) -> None:
    verdict = summary["verdict"] | {"held": held, "requirements": []}
    page = Page(report.evaluation_page(only(summary) | {"verdict": verdict, "findings": []}, {}))
    assert look in [a.get("class") for a in page.every("p")]
    assert not [a for a in page.every("ul") if a.get("class") == "requirements"]


def test_partial_stamp(summary: Summary) -> None:
    page = Page(report.evaluation_page(only(summary) | {"partial": {"used": 1000, "of": 50000}}, {}))
    assert "Partial 1,000 of 50,000 samples" in " ".join(page.text.split())


def test_key_figures(page: Page, summary: Summary) -> None:
    words = " ".join(page.text.split())
    accuracy = summary["views"]["classification"]["sets"][0]["accuracy"]
    assert f"{percent(accuracy)} clean accuracy 500 samples of digits" in words
    robust = summary["views"]["robustness"]["norms"][0]["robust_accuracy"][4]
    assert f"{percent(robust)} robust accuracy, Linf worst case within epsilon 8/255" in words
    assert "0.495 median epsilon, L2" in words
    assert "81.3 % worst segment portable, 80 samples" in words
    assert "97.8 % AUROC against other hospital best score (feature distance)" in words
    assert "AUROC against uniform noise" not in words


def test_views_that_are_absent_are_not_on_the_page(summary: Summary) -> None:
    for name in ("samples", "repeat", "duplicates", "sets"):
        page = harmless(report.evaluation_page(only(summary, name), {}))
        assert [a["id"] for a in page.every("section") if "id" in a] == ["findings", name, "run"]
        assert f"#{name}" in [a["href"] for a in page.every("a")]


def test_same_bytes_whatever_the_reader_has_set(summary: Summary) -> None:
    small = only(summary, "robustness", "segments", "landscape")
    pictures = report_summaries.pictures(summary)
    first = report.evaluation_page(small, pictures)
    with rc_context({"font.size": 30, "svg.hashsalt": None, "grid.linestyle": ":", "xtick.major.pad": 20}):
        assert report.evaluation_page(json.loads(json.dumps(small)), pictures) == first


HOSTILE = "</svg><script>alert(1)</script>\"'><img src=//x.example onerror=alert(2)>&amp;$x_1$\udcff\x00"
FIXED = {"linf", "l2", "critical", "serious", "moderate", "note", "clean", "float32"}


def hostile(value: Any, key: str = "") -> Any:
    """Every text in the summary made hostile, the same text the same way."""
    if isinstance(value, dict):
        return {k: hostile(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, key) for v in value]
    return HOSTILE + value if isinstance(value, str) and value not in FIXED and key != "view" else value


def test_everything_is_escaped(summary: Summary) -> None:
    bad = hostile(summary)
    bad["views"]["calibration"]["sets"] = bad["views"]["calibration"]["sets"][:1]
    pictures = {HOSTILE + key: pixels for key, pixels in report_summaries.pictures(summary).items()}
    text = report.evaluation_page(bad, pictures)
    page = harmless(text)
    text.encode("utf-8")
    assert "\0" not in text
    assert "<script" not in text.lower()
    seen = HOSTILE.replace("\udcff", "�").replace("\0", "�")
    for value in ("Digits, second training", "portable", "other hospital", "3/0041.png", "speckle", "#77"):
        assert seen + value in page.text, value
    # In figures, names are cut short.
    assert page.text.count("</svg><script…") >= 8
    assert len(page.every("img")) == 8 * 3 + 24 + 4 * 2


def nulled(value: Any) -> Any:
    """Every number that a run may fail to give, taken away."""
    names = {"accuracy", "interval", "f1", "log_loss", "ece", "mce", "brier", "confidence", "auroc", "aupr"}
    names |= {"fpr95", "median", "p_value", "precision", "recall", "average_precision", "over_confidence"}
    names |= {"balanced_accuracy", "hamming", "gap", "recall_gap", "clean_accuracy", "robust_at_largest"}
    if isinstance(value, dict):
        kept = {"precision", "recall", "accuracy", "interval"}
        lists = {k: [None] * len(v) for k, v in value.items() if k in kept and isinstance(v, list)}
        lists.pop("interval" if "robust_accuracy" not in value else "", None)
        return {k: lists.get(k, None if k in names else nulled(v)) for k, v in value.items()}
    return [nulled(v) for v in value] if isinstance(value, list) else value


def test_missing_numbers_are_dashes(summary: Summary) -> None:
    views = ("robustness", "classification", "segments", "sets", "shift", "samples")
    bare = only(copy.deepcopy(summary), *views)
    bare["views"] = nulled(bare["views"])
    page = harmless(report.evaluation_page(bare, {}))
    assert not re.search(r"\b(nan|None)\b", page.text)
    page.shows("classification", ("accuracy", "—", "—"))
    page.shows("segments", ("portable", "80", "—", "—", "—", "—"))
    page.shows("shift", ("1", number(0.0605), "—", "—", "—", "—"))
    page.shows("robustness", ("median", "—"))


def test_a_thousand_classes_stay_readable() -> None:
    many = report_summaries.summary(1000, 5000, tuple(f"synset {c:04d}" for c in range(1000)))
    text = report.evaluation_page(only(many, "classification", "samples"), {})
    page = harmless(text)
    assert len(text) < 3_000_000
    # No matrix of a million cells: the precision-recall figure of each set, and the pairs most confused.
    assert page.figures == {"classification": 2}
    lengths: dict[str, list[int]] = {}
    for table in page.tables["classification"]:
        lengths.setdefault(table[0][1], []).append(len(table) - 1)
    assert lengths["predicted as"] == [20, 20]
    assert lengths["support"] == [20, 980, 20, 980]
    assert lengths["recall"] == [20 * 41] * 2
    assert "synset 0003, synset 0004 … synset 0999 (1,000)" in page.text


def pixels_of(source: str | None) -> Any:
    content = base64.b64decode((source or "").partition(";base64,")[2], validate=True)
    return image.imread(io.BytesIO(content))


def test_pictures_show_the_samples(summary: Summary) -> None:
    pictures = report_summaries.pictures(summary)
    page = Page(report.evaluation_page(only(summary, "robustness"), pictures))
    example = summary["views"]["robustness"]["examples"][0]
    clean, change, adversarial = (pixels_of(a["src"]) for a in page.every("img")[:3])
    before, after = pictures[example["clean"]], pictures[example["adversarial"]]
    np.testing.assert_allclose(clean, before, atol=0.01)
    np.testing.assert_allclose(adversarial, after, atol=0.01)
    delta = after - before
    assert (change[delta == 0] == 1).all()
    assert (change[delta > 0.04][:, 0] > change[delta > 0.04][:, 2]).all()
    assert (change[delta < -0.04][:, 0] < change[delta < -0.04][:, 2]).all()
    assert {a.get("class") for a in page.every("img")} == {"pixelated"}


def test_large_pictures_are_made_small_and_colours_kept(summary: Summary) -> None:
    pictures = report_summaries.pictures(summary, side=200, colour=True)
    page = Page(report.evaluation_page(only(summary, "duplicates", "samples", "robustness"), pictures))
    first = pixels_of(page.every("img")[0]["src"])
    assert first.shape == (160, 160, 3)
    example = summary["views"]["robustness"]["examples"][0]
    whole = pictures[example["clean"]].mean((0, 1))
    np.testing.assert_allclose(first.mean((0, 1)), whole, atol=0.01)
    assert "pixelated" not in {a.get("class") for a in page.every("img")}


def test_samples_without_pictures_are_listed(summary: Summary) -> None:
    page = Page(report.evaluation_page(only(summary, "samples", "duplicates", "robustness"), {}))
    assert not page.every("img")
    assert not page.every("article")
    page.shows("samples", ("#0", "0", "0", "1", "99.1 %", "7.310"))


def test_summary_of_real_rows() -> None:
    rows = summarise(run_rows.make_run(60, 4), title="Rows")
    page = harmless(report.evaluation_page(rows, {}))
    words = " ".join(page.text.split())
    assert " ".join(rows["verdict"]["headline"].split()) in words
    for finding in rows["findings"]:
        assert " ".join(finding["evidence"].split()) in words
    for row in rows["views"]["classification"]["sets"][0]["per_class"]:
        page.shows("classification", (row["class"], count(row["support"]), *(percent(row[k]) for k in KEYS)))


KEYS = ("precision", "recall", "f1", "average_precision")


def after_a_fix(summary: Summary) -> Summary:
    """A second run: more robust, a little less accurate, other findings."""
    fixed = copy.deepcopy(summary)
    fixed["title"] = "Digits, with noise"
    fixed["verdict"] |= {"held": True, "headline": "Holds."}
    fixed["settings"]["steps"] = 100
    fixed["views"]["classification"]["sets"][0]["accuracy"] -= 0.006
    for norm in fixed["views"]["robustness"]["norms"]:
        norm["robust_accuracy"] = [0.97 * share**0.5 for share in norm["robust_accuracy"]]
        norm["interval"] = [report_summaries.interval(share, 500) for share in norm["robust_accuracy"]]
    new = {"severity": "moderate", "view": "classification", "title": "Slower", "evidence": "e", "advice": ""}
    fixed["findings"] = [fixed["findings"][1], new]
    return fixed


def test_two_runs_side_by_side(summary: Summary) -> None:
    fixed = after_a_fix(summary)
    text = report.compare_page(summary, fixed, compare(summary, fixed).summary)
    page = harmless(text)
    drawn = re.findall(r"Reliability diagram, ([\w .]+)", text)
    assert drawn == [name for k in ("clean", "fgsm 0.0157", "fgsm 0.0314", "fgsm 0.0941") for name in (k, k)]
    words = " ".join(page.text.split())
    assert words.index(summary["verdict"]["headline"]) < words.index("Holds.")
    before = summary["views"]["classification"]["sets"][0]["accuracy"]
    less = f"↓ {number(-0.006)}"
    page.shows(
        "numbers",
        (
            "accuracy, digits",
            number(before),
            number(before - 0.006),
            less,
            "within chance",
            "intervals overlap",
        ),
    )
    [row] = [row for row in page.rows("numbers") if row[0] == "robust accuracy, linf 8/255"]
    assert row[3].startswith("↑ +0.")
    assert row[4:] == ("better", "intervals apart")
    assert page.figures == {"curves": 2, "calibration": 8}
    robust = [run["views"]["robustness"]["norms"][1]["robust_accuracy"][3] for run in (summary, fixed)]
    page.shows("curves", ("0.5", *map(percent, robust)))
    gone, new, kept = (words.index(f"{name} (") for name in ("Gone", "New", "Kept"))
    assert new < words.index("Slower") < kept < words.index("The segment portable is far behind") < gone
    assert gone < words.index("Fewer than half of the samples survive")
    page.shows("settings", ("Steps", "40", "100"))


def test_comparison_is_escaped_and_survives_missing_views(summary: Summary) -> None:
    bad = hostile(only(summary, "robustness", "segments"))
    numbers = compare(bad, only(bad, "segments")).summary
    page = harmless(report.compare_page(bad, only(summary, "segments"), numbers))
    assert "alert(1)" in page.text
    assert page.figures == {"curves": 2}
