"""The demonstration's figures, and that its page is whole, honest and harmless."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from brittle import demo, report
from brittle.evaluation import Curve
from jinja2 import UndefinedError
from matplotlib import image

Stages = list[tuple[str, int, int]]


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(";base64,")[2], validate=True)


def pixels(uri: str) -> Any:
    """The red, green and blue bytes of a PNG's data URI."""
    return np.round(image.imread(io.BytesIO(decoded(uri)))[..., :3] * 255).astype(int)


@pytest.fixture(scope="module")
def stages() -> Stages:
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, stages: Stages) -> demo.Result:
    return demo.run(tmp_path_factory.mktemp("demo"), progress=lambda *stage: stages.append(stage))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The network of the demonstration, trained once more."""
    with demo._one_thread():
        return demo.trained_network(demo.digits()[0], 0, lambda *stage: None)


@pytest.fixture(scope="module")
def page(result: demo.Result) -> Page:
    return Page(result.report.read_text(encoding="utf-8"))


def test_clean_accuracy(result: demo.Result) -> None:
    assert result.fgsm.samples == result.pgd.samples == 500
    assert result.clean_accuracy >= 0.97
    assert result.fgsm.accuracy[0] == result.pgd.accuracy[0] == result.clean_accuracy


def test_curves_fall(result: demo.Result) -> None:
    assert result.fgsm.epsilons == result.pgd.epsilons == demo.EPSILONS
    assert result.fgsm.accuracy[-1] < 0.2
    assert result.pgd.accuracy[-1] < 0.02
    # Sample by sample, one that PGD fooled stays fooled.
    assert bool((result.pgd.correct[1:] <= result.pgd.correct[:-1]).all())


def test_pgd_is_the_stronger_attack(result: demo.Result) -> None:
    gaps = np.subtract(result.fgsm.accuracy, result.pgd.accuracy)
    # PGD starts at random, so a sample or two on the edge may go the other way.
    assert (gaps > -0.01).all()
    assert gaps[1:].mean() > 0.02


def test_progress_is_complete(result: demo.Result, stages: Stages) -> None:
    last = {name: (done, total) for name, done, total in stages}
    assert list(last) == ["training", "FGSM", "PGD", "examples"]
    assert last["FGSM"] == last["PGD"] == (500, 500)
    assert all(done == total for done, total in last.values())


def test_examples_are_what_they_claim(result: demo.Result, network: torch.nn.Module) -> None:
    assert [group.attack for group in result.examples] == ["FGSM", "PGD"]
    for group in result.examples:
        assert len(group.examples) == 4
        assert group.eps in demo.EPSILONS
        confidences = [example.after.confidence for example in group.examples]
        assert confidences == sorted(confidences, reverse=True)
        assert confidences[0] >= 0.90
        for example in group.examples:
            assert example.before.label == example.label != example.after.label
            assert example.before.confidence >= 0.95
            assert 0 < abs(example.adversarial - example.clean).max() <= np.float32(group.eps)
            assert 0 <= example.adversarial.min() <= example.adversarial.max() <= 1
            pair = np.stack([example.clean, example.adversarial])[:, np.newaxis]
            softmax = network(torch.from_numpy(pair)).softmax(1)
            for probability, answer in zip(softmax, (example.before, example.after), strict=True):
                assert probability[int(answer.label)].item() == pytest.approx(answer.confidence, abs=1e-4)


def test_no_smaller_epsilon_has_an_example(result: demo.Result, network: torch.nn.Module) -> None:
    smallest = min(group.eps for group in result.examples)
    smaller = [eps for eps in demo.EPSILONS if eps < smallest]
    with demo._one_thread():
        groups = demo.examples(network, demo.digits()[1], smaller, 0, lambda *stage: None)
    assert [group.examples for group in groups] == [(), ()]


def test_page_shows_the_numbers(result: demo.Result, page: Page) -> None:
    for curve in (result.fgsm, result.pgd):
        for accuracy in curve.accuracy:
            assert report.percent(accuracy) in page.text
    for group in result.examples:
        for example in group.examples:
            assert f"✓ {example.label} {report.percent(example.before.confidence)}" in page.text
            assert f"✗ {example.after.label} {report.percent(example.after.confidence)}" in page.text
    assert "python -m brittle demo --seed 0" in page.text
    assert "random stream 1" in page.text
    assert f"torch {torch.__version__}" in page.text


def test_page_shows_the_images(result: demo.Result, page: Page) -> None:
    sources = {attributes["alt"]: attributes["src"] or "" for attributes in page.every("img")}
    for group in result.examples:
        example = group.examples[0]
        [clean] = {s for a, s in sources.items() if a and a.startswith(f"{example.name}, clean")}
        grey = pixels(clean)
        assert grey.shape == (8, 8, 3)
        np.testing.assert_allclose(grey[..., 0], 255 * (1 - example.clean), atol=1.1)
        change = pixels(sources[f"{example.name}, what {group.attack} added"] or "")
        delta = example.adversarial - example.clean
        assert (change[delta == 0] == 255).all()
        assert (change[delta > group.eps / 2][:, 0] > change[delta > group.eps / 2][:, 2]).all()
        assert (change[delta < -group.eps / 2][:, 0] < change[delta < -group.eps / 2][:, 2]).all()


def test_page_is_self_contained(result: demo.Result, page: Page) -> None:
    text = result.report.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes), tag
    for attributes in page.every("img"):
        assert (attributes["src"] or "").startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
        assert attributes["alt"]


def test_plot_is_labelled(page: Page) -> None:
    [svg] = [a["src"] or "" for a in page.every("img") if "svg" in (a["src"] or "")]
    drawn = ElementTree.fromstring(decoded(svg))
    labels = {element.text for element in drawn.iter() if element.tag.endswith("}text")}
    assert {"epsilon (Linf)", "accuracy (%)", "FGSM", "PGD"} <= labels


def test_same_seed_same_page_and_nothing_left_behind(result: demo.Result, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    again = demo.run(tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.equal(again.fgsm.correct, result.fgsm.correct)
    assert torch.equal(again.pgd.correct, result.pgd.correct)
    assert again.report.read_bytes() == result.report.read_bytes()


def test_another_sweep_is_in_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    outcome = demo.run(tmp_path, seed=3, epsilons=[0.001])
    shown = Page(outcome.report.read_text(encoding="utf-8"))
    assert outcome.pgd.epsilons == (0.0, 0.001)
    assert "python -m brittle demo --seed 3 --eps 0.001" in shown.text
    # Too small an epsilon for any example: the page says so.
    assert [group.examples for group in outcome.examples] == [(), ()]
    assert "None at any epsilon of the sweep." in shown.text


HOSTILE = "<script>alert(1)</script>\"'><img src=http://x.example/a onerror=alert(2)>$&"


def hostile_page() -> str:
    curve = Curve(HOSTILE, (0.0, 0.1), torch.tensor([[True], [False]]), torch.arange(1), 0, 0)
    answer = report.Answer(HOSTILE, 0.97)
    zeros = np.zeros((2, 2))
    example = report.Example(HOSTILE, HOSTILE, zeros, zeros, answer, replace(answer, label="1"))
    return report.robustness_page(
        title=HOSTILE,
        summary=HOSTILE,
        key_figures=[report.KeyFigure(HOSTILE, HOSTILE, HOSTILE)],
        curves=[curve],
        groups=[report.ExampleGroup(HOSTILE, 0.1, (example,))],
        rule=HOSTILE,
        provenance={HOSTILE: HOSTILE},
    )


def test_everything_is_escaped() -> None:
    text = hostile_page()
    shown = Page(text)
    assert "<script" not in text.lower()
    assert not shown.every("script")
    assert text.count("&lt;script&gt;") >= 12
    for attributes in shown.every("img"):
        assert (attributes["src"] or "").startswith("data:")
        assert "onerror" not in attributes
    [svg] = [a["src"] or "" for a in shown.every("img") if "svg" in (a["src"] or "")]
    drawn = ElementTree.fromstring(decoded(svg))
    assert not [element for element in drawn.iter() if element.tag.endswith("script")]
    assert HOSTILE.upper() in {element.text for element in drawn.iter()}


def test_templates_refuse_missing_values() -> None:
    with pytest.raises(UndefinedError):
        report.render("page.html.jinja", title="only a title")


def test_curves_must_share_their_epsilons(result: demo.Result) -> None:
    with pytest.raises(ValueError, match="the same epsilons"):
        report.robustness_page(
            title="",
            summary="",
            key_figures=[],
            curves=[result.fgsm, replace(result.pgd, epsilons=(0.0,))],
            groups=[],
            rule="",
            provenance={},
        )


def test_colours_of_images() -> None:
    assert pixels(report.grey_image(np.array([[0.0, 1.0]]))).tolist() == [[[255] * 3, [0] * 3]]
    low, zero, high = pixels(report.perturbation_image(np.array([[-0.5, 0.0, 0.5]]), 0.5))[0].tolist()
    assert zero == [255, 255, 255]
    assert low == [0x25, 0x63, 0xA8]
    assert high == [0xC2, 0x41, 0x0C]
