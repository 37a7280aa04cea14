"""Suggestions: every flaw in one of them, by cause, the worst first."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from brittle.diagnosis.flaws.result import KINDS, SEVERITIES, Diagnosis, Finding
from brittle.repair.suggestions import ACTIONS, Suggestion, suggest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")


def diagnosed(*flaws: tuple[str, str, str], layers: tuple[str, ...] = LAYERS) -> Diagnosis:
    """With these (layer, kind, severity) and no flaw elsewhere."""
    named = {(layer, kind): severity for layer, kind, severity in flaws}
    findings = [
        Finding(layer, kind, named.get((layer, kind), "none"), {}, (0, 1) if (layer, kind) in named else ())
        for layer in layers
        for kind in KINDS
    ]
    findings.sort(key=lambda f: -SEVERITIES.index(f.severity))
    return Diagnosis(layers, ("",) * len(layers), {}, tuple(findings), {}, {})


class TestSuggest:
    @pytest.mark.parametrize(
        ("kind", "action", "arguments"),
        [
            ("dead", "recycle", {"units": {"conv2": (0, 1)}}),
            ("redundant", "merge", {"redundancy": 0.1}),
            ("unformed", "retrain", {"reset": "none"}),
            ("overfit", "retrain", {"reset": "default", "l2": 5e-4}),
            ("vanishing", "restart", {"reset": "unit-variance", "max_grad_norm": 1.0}),
            ("exploding", "restart", {"reset": "unit-variance", "max_grad_norm": 1.0}),
            ("broken-link", "retrain", {"reset": "none"}),
            ("fragile", "adversarial_train", {}),
        ],
    )
    def test_each_kind_has_its_repair(self, kind: str, action: str, arguments: dict[str, Any]) -> None:
        [found] = suggest(diagnosed(("conv2", kind, "mild")))
        assert (found.action, dict(found.arguments)) == (action, arguments)
        assert found.layers == (() if kind == "fragile" else ("conv2",))
        assert [f.kind for f in found.findings] == [kind]

    def test_no_flaws_no_suggestions(self) -> None:
        assert suggest(diagnosed()) == ()

    def test_redundancy_without_copies_is_penalised(self) -> None:
        flaw = Finding("conv1", "redundant", "severe", {})
        [found] = suggest(Diagnosis(("conv1",), ("",), {}, (flaw,), {}, {}))
        assert found.action == "decorrelate"

    def test_a_layers_worst_flaw_decides_and_the_others_join(self) -> None:
        flaws = [("fc1", "vanishing", "mild"), ("fc1", "overfit", "severe"), ("fc1", "broken-link", "mild")]
        [found] = suggest(diagnosed(*flaws))
        assert found.arguments["reset"] == "default"
        assert [f.kind for f in found.findings] == ["overfit", "vanishing", "broken-link"]

    def test_between_equals_the_likelier_cause_decides(self) -> None:
        flaws = [("fc1", "unformed", "mild"), ("fc1", "vanishing", "mild"), ("fc1", "dead", "mild")]
        [found] = suggest(diagnosed(*flaws))
        assert found.action == "recycle"

    def test_neighbours_with_one_flaw_are_one_suggestion(self) -> None:
        flaws = [(layer, "unformed", "severe") for layer in ("conv1", "conv2", "fc2")]
        assert [found.layers for found in suggest(diagnosed(*flaws))] == [("conv1", "conv2"), ("fc2",)]

    def test_a_run_reaches_to_either_side_of_its_worst_layer(self) -> None:
        flaws = [("conv1", "overfit", "mild"), ("conv2", "overfit", "severe"), ("conv3", "overfit", "mild")]
        [found] = suggest(diagnosed(*flaws))
        assert found.layers == ("conv1", "conv2", "conv3")
        assert [f.layer for f in found.findings] == ["conv2", "conv1", "conv3"]

    def test_copies_are_each_layers_own(self) -> None:
        flaws = [(layer, "redundant", "mild") for layer in ("conv1", "conv2")]
        assert [found.layers for found in suggest(diagnosed(*flaws))] == [("conv1",), ("conv2",)]

    def test_dead_units_explain_what_is_not_learned_before_them(self) -> None:
        flaws = [
            ("conv1", "vanishing", "severe"),
            ("conv2", "unformed", "severe"),
            ("conv3", "dead", "severe"),
        ]
        flaws += [("fc2", "unformed", "mild")]
        first, second = suggest(diagnosed(*flaws))
        assert first.action == "recycle"
        assert [f.layer for f in first.findings] == ["conv3", "conv1", "conv2"]
        assert "before them" in first.why
        assert second.layers == ("fc2",)

    def test_mild_flaws_explain_nothing_elsewhere(self) -> None:
        flaws = [("conv1", "unformed", "mild"), ("conv3", "dead", "mild")]
        assert len(suggest(diagnosed(*flaws))) == 2

    def test_gradients_of_most_layers_are_the_whole_networks(self) -> None:
        flaws = [(layer, "vanishing", "severe") for layer in LAYERS[:3]]
        [found] = suggest(diagnosed(*flaws))
        assert found.layers == LAYERS
        assert found.arguments["longer"] > 1
        assert "architecture is at fault" in found.why

    def test_severe_flaws_come_first_and_fragility_last(self) -> None:
        flaws = [("fc1", "fragile", "severe"), ("conv1", "dead", "mild"), ("conv3", "redundant", "severe")]
        assert [s.action for s in suggest(diagnosed(*flaws))] == ["merge", "recycle", "adversarial_train"]

    @given(
        st.dictionaries(
            st.tuples(st.sampled_from(LAYERS), st.sampled_from(KINDS)), st.sampled_from(SEVERITIES)
        )
    )
    def test_every_flaw_is_in_one_suggestion(self, severities: dict[tuple[str, str], str]) -> None:
        found = diagnosed(*((*place, severity) for place, severity in severities.items()))
        suggestions = suggest(found)
        taken = [(f.layer, f.kind) for s in suggestions for f in s.findings]
        assert sorted(taken) == sorted((f.layer, f.kind) for f in found.flaws)
        leads = [
            SEVERITIES.index(s.findings[0].severity) for s in suggestions if s.action != "adversarial_train"
        ]
        assert leads == sorted(leads, reverse=True)
        for suggestion in suggestions:
            assert suggestion.action in ACTIONS
            assert set(suggestion.layers) <= set(LAYERS)
            json.dumps(suggestion.summary(), allow_nan=False)
            assert suggestion.why in suggestion.text()

    def test_an_unknown_action_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^Suggestion.apply: action must be one of .*; got 'pray'"):
            Suggestion("pray", (), ()).apply(nn.Linear(2, 2), (torch.rand(4, 2), torch.zeros(4).long()))
