"""The whole summary of a run: valid JSON of any rows, the same bits every time, only what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import run_rows
import torch
from brittle.evaluation.rows import RunRows
from brittle.evaluation.views import VIEWS, summarise
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def runs(draw: st.DrawFn) -> RunRows:
    """Rows of every awkward size: no samples, one, a class of one, no groups, infinite losses."""
    seed, classes = draw(st.integers(0, 10**6)), draw(st.integers(2, 4))
    sharpness = draw(st.sampled_from([0.0, 3.0, 1000.0]))
    groups = draw(st.sampled_from([None, ("a",), ("a", "b", "<script>")]))
    sets = []
    for k, name in enumerate(("test", "train", "other", "uniform noise")[: draw(st.integers(1, 4))]):
        rows = run_rows.make_set(
            name,
            draw(st.sampled_from([0, 1, 2, 3, 7])) if k or draw(st.booleans()) else 30,
            classes,
            sharpness=sharpness,
            groups=groups,
            labelled=name != "uniform noise",
            seed=seed + k,
        )
        if len(rows) and draw(st.booleans()):
            rows.logits[0, 0] = -torch.inf
        if draw(st.booleans()):
            rows = replace(rows, features=None)
        sets.append(rows)
    main = sets[0]
    kinds = draw(st.lists(st.sampled_from(["gaussian", "fgsm"]), unique=True))
    attacks = draw(st.lists(st.sampled_from(["fgsm", "pgd", "minimal", "random"]), unique=True))
    sets[0] = replace(
        main,
        conditions=tuple(run_rows.make_condition(main, kind, 1, 8 / 255) for kind in kinds),
        attacks=tuple(
            run_rows.make_attack(main, attack, norm, seed=s)
            for s in range(draw(st.integers(1, 2)))
            for attack in attacks
            for norm in ("linf", "l2")
        ),
    )
    return RunRows(tuple(sets), dict(run_rows.SETTINGS))


@given(runs())
@settings(max_examples=60, deadline=None)
def test_any_rows_make_a_valid_report(run: RunRows) -> None:
    report = summarise(run, partial={"used": 1, "of": 2})
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert set(report["views"]) <= set(VIEWS)
    for one in report["views"].get("classification", {}).get("sets", []):
        assert sum(map(sum, one["confusion"])) == one["samples"]


def test_the_same_bits_on_any_number_of_threads() -> None:
    """Enough samples that torch would share a sum among threads."""
    run = run_rows.make_run(70_000, classes=3, repeat_seeds=1)
    texts, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            fresh = tuple(replace(rows) for rows in run.sets[:2])  # without what was computed before
            texts.append(json.dumps(summarise(RunRows(fresh, run.settings))))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert texts[0] == texts[1]


def test_views_that_were_not_asked_for_are_absent() -> None:
    report = summarise(run_rows.make_run(), title="net", provenance={"brittle": "1"})
    assert list(report["views"]) == list(VIEWS)
    assert (report["title"], report["main"], report["partial"]) == ("net", "test", None)
    assert report["sets"][0]["skipped"] == [{"name": "seven/broken.png", "reason": "not an image"}]
    assert [one["labelled"] for one in report["sets"]] == [True, True, True, False]
    severities = ["critical", "serious", "moderate", "note"]
    ranks = [severities.index(finding["severity"]) for finding in report["findings"]]
    assert ranks == sorted(ranks)
    few = summarise(run_rows.make_run(views=["samples", "sets"]))
    assert list(few["views"]) == ["sets", "samples"]
    losses = [item["log_loss"] for item in few["views"]["samples"]["items"]]
    assert len(losses) == 24
    assert losses == sorted(losses, reverse=True)
