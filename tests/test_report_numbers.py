"""Every number of a summary is in a table of its section of the page."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import report_summaries
from brittle import report
from brittle.report.text import count, epsilon, interval, number, percent
from html_pages import Page

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


def test_robustness_numbers(summary: Summary, page: Page) -> None:
    page.shows("robustness", ("0", "97.0 %", "95.1 % to 98.2 %", "97.0 %", "97.0 %", "97.0 %", "97.0 %"))
    for norm in summary["views"]["robustness"]["norms"]:
        for k, eps in enumerate(norm["epsilons"]):
            name = f"{epsilon(eps)} ({eps:.4f})" if "/" in epsilon(eps) else epsilon(eps)
            worst = (percent(norm["robust_accuracy"][k]), interval(norm["interval"][k]))
            row = (name, *worst, *(percent(c["accuracy"][k]) for c in norm["curves"]))
            page.shows("robustness", row)
        smallest = norm["minimal_epsilon"]
        for each in smallest["quantiles"]:
            page.shows("robustness", (f"{percent(each['share'])} of samples", epsilon(each["epsilon"])))
        page.shows("robustness", ("median", epsilon(smallest["median"])))
        page.shows("robustness", ("never fooled", "7"))
        page.shows("robustness", ("searched up to epsilon", epsilon(smallest["upper"])))
        for eps, share in zip(*smallest["curve"].values(), strict=True):
            page.shows("robustness", (f"within {epsilon(eps)}", percent(share)))
    flags = {"samples attacked": "485", "with a zero gradient": "2", "stalled": "5"}
    flags |= {"with a gradient that is not finite": "0", "fooled by a single step alone": "1"}
    for flag in (
        *flags.items(),
        ("fooled by random search alone", "3"),
        ("backwards of the model", "91,034"),
    ):
        page.shows("robustness", flag)
    page.shows("robustness", ("still right at the largest epsilon", "1.4 %"))
    page.shows("robustness", ("forwards of the model", "183,211"))
    assert "No sign of gradient masking, Linf" in page.text
    assert "Signs of gradient masking, L2" in page.text
    cards = " ".join(page.text.split())
    assert "robust accuracy, Linf worst case within epsilon 8/255" in cards
    assert "worst case within epsilon 8/255; at most" not in cards
    assert "robust accuracy, L2 worst case within epsilon 0.5; at most, for there are signs" in cards
    for each in summary["views"]["robustness"]["examples"]:
        found = [row for row in page.rows("robustness") if row[0] == each["name"]]
        after = f"{each['after']['label']} ({percent(each['after']['confidence'])})"
        assert [row[5] for row in found] == [after]


def test_masking_is_not_denied_where_nothing_was_attacked(summary: Summary) -> None:
    robustness = copy.deepcopy(summary["views"]["robustness"])
    for norm in robustness["norms"]:
        norm["masking"] |= {"attacked": 0, "signs": []}
    page = Page(report.evaluation_page({**summary, "views": {"robustness": robustness}}, {}))
    assert "No sign of gradient masking, " not in page.text
    assert "Gradient masking could not be looked for, Linf: no sample is right without an attack" in page.text


def test_classification_numbers(summary: Summary, page: Page) -> None:
    sets = summary["views"]["classification"]["sets"]
    measures: dict[str, tuple[str, Callable[[Any], str]]] = {
        "samples": ("samples", count),
        "accuracy": ("accuracy", percent),
        "95 % interval": ("interval", interval),
        "balanced accuracy": ("balanced_accuracy", percent),
        "precision (macro)": ("precision", percent),
        "recall (macro)": ("recall", percent),
        "F1 (macro)": ("f1", percent),
        "average precision (macro)": ("average_precision", percent),
        "log-loss": ("log_loss", number),
        "Hamming distance": ("hamming", number),
    }
    for name, (key, show) in measures.items():
        page.shows("classification", (name, *(show(each[key]) for each in sets)))
    for each in sets:
        for row in each["per_class"]:
            shares = (percent(row[key]) for key in ("precision", "recall", "f1", "average_precision"))
            page.shows("classification", (row["class"], count(row["support"]), *shares))
        for label, row in zip("0123456789", each["confusion"], strict=True):
            page.shows("classification", (label, *map(str, row)))
        for curve in each["curves"]:
            for recall, precision in zip(curve["recall"], curve["precision"], strict=True):
                page.shows("classification", (curve["class"], percent(recall), percent(precision)))
        confusion = np.array(each["confusion"])
        np.fill_diagonal(confusion, 0)
        i, j = np.unravel_index(confusion.argmax(), confusion.shape)
        share = confusion[i, j] / np.sum(each["confusion"][i])
        page.shows("classification", (str(i), str(j), str(confusion[i, j]), percent(share)))
    for table in page.tables["classification"]:
        if table[0][1] == "predicted as":
            confused = [int(row[2]) for row in table[1:]]
            assert confused == sorted(confused, reverse=True)


def test_segments_and_sets_numbers(summary: Summary, page: Page) -> None:
    [each] = summary["views"]["segments"]["sets"]
    for group in each["groups"]:
        numbers = (percent(group["accuracy"]), interval(group["interval"]))
        more = (number(group["log_loss"]), percent(group["f1"]))
        page.shows("segments", (group["group"], count(group["samples"]), *numbers, *more))
    page.shows("segments", ("worst segment", "portable"))
    page.shows("segments", ("best segment", "scanner A"))
    page.shows("segments", ("accuracy gap", "17.1 %"))
    page.shows("segments", ("recall gap", "22.1 %"))
    page.shows("segments", ("p-value", "0.000213"))
    rows = summary["views"]["sets"]["rows"]
    for row in rows:
        numbers = (percent(row["accuracy"]), interval(row["interval"]))
        page.shows("sets", (row["set"], count(row["samples"]), *numbers))
    for name, key in (("precision", "precision"), ("F1", "f1"), ("mean confidence", "confidence")):
        page.shows("sets", (name, *(percent(row[key]) for row in rows)))
    page.shows("sets", ("ECE", "1.9 %", "1.9 %"))
    page.shows("sets", ("log-loss", *(number(row["log_loss"]) for row in rows)))


def test_calibration_and_ood_numbers(summary: Summary, text: str, page: Page) -> None:
    for place, each in enumerate(summary["views"]["calibration"]["sets"]):
        for condition in each["conditions"]:
            name = condition["name"] if not place else f"{each['set']}, {condition['name']}"
            keys = ("accuracy", "confidence", "ece", "mce", "over_confidence")
            shares = (percent(condition[key]) for key in keys)
            row = (name, count(condition["samples"]), *shares, number(condition["brier"]))
            page.shows("calibration", row)
            for part in condition["bins"]:
                ends = f"{percent(part['low'])} to {percent(part['high'])}"
                means = (percent(part["confidence"]), percent(part["accuracy"]))
                page.shows("calibration", (ends, count(part["samples"]), *means))
    drawn = re.findall(r"Reliability diagram, ([\w .]+)", text)
    assert drawn[:6] == ["clean", "fgsm 0.0157", "fgsm 0.0314", "fgsm 0.0941", "gaussian 5", "gaussian 3"]
    for against in summary["views"]["ood"]["against"]:
        for score in against["scores"]:
            auroc, aupr, fpr = (percent(score[key]) for key in ("auroc", "aupr", "fpr95"))
            page.shows("ood", (score["score"], auroc, "—", aupr, fpr))
            bars = score["histogram"]
            for k, (a, b) in enumerate(zip(bars["inside"], bars["outside"], strict=True)):
                ends = f"{number(bars['edges'][k])} to {number(bars['edges'][k + 1])}"
                page.shows("ood", (ends, percent(a), percent(b)))


def test_shift_landscape_and_repeat_numbers(summary: Summary, page: Page) -> None:
    views = summary["views"]
    page.shows("shift", ("0 (clean)", "—", "97.0 %", "1.9 %", "95.5 %", "0.153"))
    for kind in views["shift"]["kinds"]:
        for level in kind["levels"]:
            shares = (percent(level[key]) for key in ("accuracy", "ece", "confidence"))
            severity = (str(level["severity"]), number(level["scale"]))
            page.shows("shift", (*severity, *shares, number(level["log_loss"])))
        page.shows("shift", (kind["kind"], *(percent(level["accuracy"]) for level in kind["levels"])))
    surface = views["landscape"]
    for k, alpha in enumerate(surface["alphas"]):
        page.shows("landscape", (f"{alpha:.3g}", *map(number, surface["mean"][k])))
        along = (number(surface["along_gradient"][k]), number(surface["along_random"][k]))
        page.shows("landscape", (f"{alpha:.3g}", *along))
    for measure in views["repeat"]["measures"]:
        ends = (percent(measure["mean"]), percent(measure["spread"]))
        page.shows("repeat", (measure["measure"], *ends, *map(percent, measure["values"])))


def test_samples_duplicates_and_run_numbers(summary: Summary, page: Page) -> None:
    for item in summary["views"]["samples"]["items"]:
        names = (item["name"], str(item["id"]), item["label"], item["prediction"])
        page.shows("samples", (*names, percent(item["confidence"]), number(item["log_loss"])))
    for pair in summary["views"]["duplicates"]["pairs"]:
        names = (f"{pair['test']} {pair['test_id']}", f"{pair['train']} {pair['train_id']}")
        page.shows("duplicates", (*names, number(pair["cosine"]), number(pair["p"])))
    page.shows("duplicates", ("other hospital against digits", "250", "4", "0.996"))
    page.shows("run", ("digits", "500", "yes", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "yes", "0"))
    page.shows("run", ("other hospital", "3/0041.png", "not an image: cannot identify image file"))
    for value in (*summary["provenance"].values(), "linf: 0.0313725; l2: 0.5", "fgsm, pgd, minimal, random"):
        assert value in page.text
