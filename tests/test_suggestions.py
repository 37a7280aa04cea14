"""Suggestions: every flaw in one of them, by cause, the worst first."""

from __future__ import annotations

import copy
import json
from typing import Any

import brittle
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
        flaws = [(layer, "vanishing", "severe") for layer in LAYERS[:2]]
        flaws += [(layer, "redundant", "severe") for layer in LAYERS]  # nothing is learned, so all is alike
        assert suggest(diagnosed(*flaws))[0].layers == LAYERS[:2]
        flaws.append((LAYERS[2], "vanishing", "mild"))
        [found] = suggest(diagnosed(*flaws))
        assert found.layers == LAYERS
        assert len(found.findings) == 8
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


def standstill(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.0)


class TestApply:
    """Actions on a network whose first layer's units 4 to 7 repeat 0 to 3, and whose second has dead ones."""

    @pytest.fixture
    def model(self) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
        with torch.no_grad():
            model[0].weight[4:], model[0].bias[4:] = 2 * model[0].weight[:4], 2 * model[0].bias[:4]
            model[2].bias[:2], model[2].bias[2:] = -1e3, 1.0
        return model

    @pytest.fixture
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(90, 6)
        return x, (3 * x[:, 0]).long()

    COPIES = Finding("0", "redundant", "severe", {}, (4, 5, 6, 7))
    DEAD = Finding("2", "dead", "mild", {}, (0, 1))

    @pytest.mark.parametrize("action", ["merge", "recycle"])
    def test_units_start_anew_without_a_change(self, model: nn.Sequential, data: Any, action: str) -> None:
        x, before = data[0], copy.deepcopy(model)
        finding = self.COPIES if action == "merge" else self.DEAD
        [suggestion] = suggest(Diagnosis(("0", "2", "4"), ("",) * 3, {}, (finding,), {}, {}))
        assert suggestion.action == action
        suggestion.apply(model, data, epochs=1, optimizer=standstill)
        assert torch.allclose(model(x), before(x), atol=1e-5)
        layer = int(finding.layer)
        units = list(finding.channels)
        assert (model[layer].weight[units] != before[layer].weight[units]).all()
        assert (model[layer + 2].weight[:, units] == 0).all()
        assert not nn.utils.parametrize.is_parametrized(model[layer])
        suggestion.apply(model, data, epochs=1)
        assert (model[layer + 2].weight[:, units] != 0).any()

    def test_only_the_layer_and_its_reader_are_trained(self, model: nn.Sequential, data: Any) -> None:
        before = copy.deepcopy(model)
        suggestion = Suggestion("recycle", ("0",), (), {"units": {"0": (1,)}})
        suggestion.apply(model, data, epochs=2, batch_size=30)
        same = [torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
        assert same == [False, False, False, False, True, True]

    def test_retraining_leaves_the_others(self, model: nn.Sequential, data: Any) -> None:
        before = copy.deepcopy(model)
        Suggestion("retrain", ("4",), (), {"reset": "default", "l2": 0.1}).apply(model, data, epochs=1)
        same = [torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
        assert same == [True] * 4 + [False] * 2

    def test_a_restart_gives_new_weights_to_the_layer_and_time_to_all(
        self, model: nn.Sequential, data: Any
    ) -> None:
        before = copy.deepcopy(model)
        start = {"reset": "unit-variance", "longer": 3}
        training = Suggestion("restart", ("2",), (), start).apply(
            model, data, epochs=2, optimizer=standstill, batch_size=90
        )
        assert training.epochs == 6
        same = [torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
        assert same == [True, True, False, False, True, True]
        assert model[:3](data[0]).std().item() == pytest.approx(1.0, abs=0.01)

    def test_the_penalty_drives_units_apart(self, model: nn.Sequential, data: Any) -> None:
        def likeness() -> float:
            rows = brittle.ops.pairwise_cosine(model[0](data[0]).T.detach().contiguous())
            return float((rows - torch.eye(8)).abs().mean())

        before = likeness()
        Suggestion("decorrelate", ("0",), (), {"redundancy": 10.0}).apply(
            model, data, epochs=20, batch_size=30
        )
        assert likeness() < before - 0.05

    @pytest.mark.parametrize("batched", [False, True])
    def test_adversarial_training_has_the_radius(
        self, model: nn.Sequential, data: Any, batched: bool
    ) -> None:
        batches = [(data[0][k : k + 30], data[1][k : k + 30]) for k in range(0, 90, 30)]
        training = Suggestion("adversarial_train", (), ()).apply(
            model, batches if batched else data, eps=0.125, epochs=3
        )
        assert training.history[-1]["eps"] == 0.125
        assert ("robust_accuracy" in training.history[-1]) is not batched  # of a pair, a part is held out
