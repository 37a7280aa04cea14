"""Suggestions by cause, repairs kept where they help, and everything told as it was."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import brittle
import pytest
import torch
from brittle.diagnosis.flaws.result import Diagnosis, Finding
from brittle.repair.judging import judged
from brittle.repair.mending import mend
from brittle.repair.mending_result import Mending, Score
from brittle.repair.suggestions import Suggestion
from interrupted_runs import quick_page
from test_suggestions import LAYERS, diagnosed
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


class TestJudged:
    @pytest.mark.parametrize(
        ("after", "gain", "kept", "why"),
        [
            ([], 0.0, True, "It helps (dead severe -> none in conv1)"),
            ([("conv1", "dead", "mild")], -0.009, True, "dead severe -> mild in conv1"),
            ([], -0.011, False, "It costs too much: validation accuracy 50.0 % -> 48.9 %."),
            ([], math.nan, False, "It costs too much"),
            ([("conv1", "dead", "severe")], 0.3, False, "as severe as before"),
            ([("fc1", "overfit", "severe")], 0.0, True, ""),
            ([("conv1", "dead", "mild"), ("fc1", "overfit", "severe")], 0.0, False, "(overfit in fc1)"),
            ([("conv1", "dead", "mild"), ("fc1", "overfit", "severe")], 0.02, True, ""),
        ],
    )  # fmt: skip
    def test_rules(self, after: list[tuple[str, str, str]], gain: float, kept: bool, why: str) -> None:
        before = diagnosed(("conv1", "dead", "severe"))
        scores = Score(0.5, 1.0), Score(0.5 + gain, 1.0)
        found, reason = judged(before.flaws, before, diagnosed(*after), scores, 0.01)
        assert found is kept
        assert why in reason

    def test_what_only_follows_does_not_count(self) -> None:
        flaws = [("conv1", "dead", "severe"), ("conv1", "broken-link", "severe")]
        before, after = diagnosed(*flaws), diagnosed(flaws[0])
        aimed = (*before.of("conv1", "dead"), *before.of("conv1", "broken-link"))
        scores = Score(0.5, 1.0), Score(0.5, 1.0)
        kept, reason = judged(aimed, before, after, scores, 0.01)
        assert not kept
        assert "broken-link severe -> none in conv1; dead severe -> severe in conv1" in reason
        assert judged(aimed[::-1], before, after, scores, 0.01)[0]

    def test_what_cannot_be_judged_any_more_is_not_better(self) -> None:
        before = diagnosed(("conv1", "dead", "mild"))
        after = Diagnosis(LAYERS, ("",) * 5, {}, (), {}, {})
        kept, reason = judged(before.flaws, before, after, (Score(0.5, 1.0), Score(0.9, 1.0)), 0.01)
        assert not kept
        assert "dead mild -> not judged in conv1" in reason


def blobs(samples: int, seed: int) -> Pair:
    """Three classes in the unit cube of eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    centres = torch.rand(3, 8, generator=torch.Generator().manual_seed(99))
    return (centres[y] + 0.12 * torch.randn(samples, 8, generator=generator)).clamp(0, 1), y


TRAIN, VALIDATION, TEST = blobs(300, 0), blobs(150, 1), blobs(150, 2)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def flawed() -> nn.Sequential:
    """Trained; then most units of the second layer are dead, and half of the first layer's are copies."""
    torch.manual_seed(0)
    model = network()
    brittle.repair.train(model, TRAIN, epochs=30, batch_size=50)
    with torch.no_grad():
        model[2].bias[:14] = -10.0
        model[0].weight[12:], model[0].bias[12:] = model[0].weight[:12], model[0].bias[:12]
    return model.train()


OPTIONS: dict[str, Any] = {"epochs": 15, "batch_size": 50, "eps": 0.02}


@pytest.fixture(scope="module")
def mending(flawed: nn.Sequential) -> Mending:
    return mend(flawed, TRAIN, VALIDATION, test=TEST, **OPTIONS)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class TestMend:
    def test_planted_flaws_are_mended(self, mending: Mending) -> None:
        found = {(f.layer, f.kind) for f in mending.before.flaws}
        assert {("2", "dead"), ("0", "redundant")} <= found
        assert {(s.suggestion.action, s.outcome) for s in mending.steps} >= {
            ("recycle", "kept"),
            ("merge", "kept"),
        }
        left = {(f.layer, f.kind) for f in mending.after.flaws}
        assert not left & {("2", "dead"), ("0", "redundant")}
        before, after = (mending.scores[when] for when in ("before", "after"))
        assert after.accuracy > before.accuracy + 0.1
        assert after.log_loss < before.log_loss

    def test_scores_are_of_the_test_data(self, mending: Mending, flawed: nn.Sequential) -> None:
        assert mending.judged_on == "test"
        assert not mending.notes
        for when, model in (("before", flawed), ("after", mending.model)):
            with torch.no_grad():
                logits = copy.deepcopy(model).eval()(TEST[0])
            score = mending.scores[when]
            assert score.accuracy == pytest.approx((logits.argmax(1) == TEST[1]).double().mean().item())
            assert score.log_loss == pytest.approx(
                nn.functional.cross_entropy(logits, TEST[1]).item(), abs=1e-5
            )
            adversarial = brittle.pgd(copy.deepcopy(model).eval(), *TEST, 0.02)
            wrong = copy.deepcopy(model).eval()(adversarial).argmax(1) != TEST[1]
            assert score.robust_accuracy == pytest.approx(1 - wrong.double().mean().item(), abs=0.03)

    def test_the_callers_model_and_random_state_are_left_alone(self, flawed: nn.Sequential) -> None:
        before, state = copy.deepcopy(flawed), torch.get_rng_state()
        flawed[4].weight.requires_grad_(False)
        found = mend(flawed, TRAIN, VALIDATION, **{**OPTIONS, "epochs": 1})
        assert torch.equal(torch.get_rng_state(), state)
        assert same(flawed, before)
        assert all(module.training for module in flawed.modules())
        assert [p.requires_grad for p in flawed.parameters()] == [True] * 4 + [False, True]
        assert all(p.grad is None for p in flawed.parameters())
        assert found.model is not flawed
        flawed[4].weight.requires_grad_()
        assert found.judged_on == "validation"
        assert "chosen" in found.table()

    def test_same_call_same_bits(self, mending: Mending, flawed: nn.Sequential) -> None:
        again = mend(flawed, TRAIN, VALIDATION, test=TEST, **OPTIONS)
        assert same(again.model, mending.model)
        assert again.summary() == mending.summary()
        other = mend(flawed, TRAIN, VALIDATION, test=TEST, **OPTIONS, seed=1)
        assert not same(other.model, mending.model)

    def test_table_and_summary_tell_it_all(self, mending: Mending) -> None:
        table = mending.table()
        for step in mending.steps:
            assert f"{step.suggestion.title()}: {step.outcome}. {step.reason}" in table
        assert f"{mending.scores['after'].accuracy:.4f}" in table
        for severity in ("severe", "mild"):
            counts = [
                sum(f.severity == severity for f in d.findings) for d in (mending.before, mending.after)
            ]
            [line] = [line for line in table.splitlines() if line.startswith(f"{severity} flaws")]
            assert line.split()[2:4] == [str(count) for count in counts]
        summary = json.loads(json.dumps(mending.summary(), allow_nan=False))
        assert [step["outcome"] for step in summary["steps"]] == [step.outcome for step in mending.steps]

    def test_what_does_harm_is_rolled_back(self, flawed: nn.Sequential) -> None:
        dead = Finding("2", "dead", "mild", {}, tuple(range(14)))
        harm = Suggestion("restart", ("4",), (dead,), {"reset": "default", "optimizer": _standstill})
        found = mend(flawed, TRAIN, VALIDATION, suggestions=[harm], **OPTIONS)
        [step] = found.steps
        assert step.outcome == "rolled back"
        assert same(found.model, flawed)
        assert found.scores["before"] == found.scores["after"]
        assert found.before == found.after

    def test_what_is_gone_is_not_tried(self, flawed: nn.Sequential) -> None:
        gone = Suggestion("retrain", ("4",), (Finding("4", "unformed", "severe", {}),), {"reset": "none"})
        [step] = mend(flawed, TRAIN, VALIDATION, suggestions=[gone], **OPTIONS).steps
        assert step.outcome == "not needed"
        assert step.before == step.after

    def test_training_that_fails_is_rolled_back(self, flawed: nn.Sequential) -> None:
        dead = Finding("2", "dead", "mild", {}, tuple(range(14)))
        wild = Suggestion("retrain", ("4",), (dead,), {"optimizer": lambda p: torch.optim.SGD(p, 1e30)})
        [step] = mend(flawed, TRAIN, VALIDATION, suggestions=[wild], **OPTIONS).steps
        assert step.outcome == "rolled back"

    def test_masked_gradients_are_a_note_and_not_a_warning(self) -> None:
        model = network()
        with torch.no_grad():
            model[0].bias.fill_(-100.0)  # nothing answers, so no gradient leads anywhere
        found = mend(model, TRAIN, VALIDATION, suggestions=(), **OPTIONS)
        assert found.scores["before"].masked
        assert "note: The model before mending masks its gradients" in found.table()

    def test_a_sound_model_is_left_as_it_is(self) -> None:
        model = network()
        brittle.repair.train(model, TRAIN, epochs=30, batch_size=50)
        found = mend(model, TRAIN, VALIDATION, suggestions=(), **OPTIONS)
        assert found.steps == ()
        assert same(found.model, model)
        assert found.model is not model
        assert found.table().startswith("No flaws found")

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"epochs": 0}, "epochs must be an integer >= 1"),
            ({"tolerance": -0.1}, "tolerance must be finite and >= 0"),
            ({"eps": math.nan}, "eps must be finite and >= 0"),
            ({"seed": 2**70}, "seed must be an integer of 64 bits"),
            ({"train": iter([TRAIN])}, "train must be iterable anew"),
            ({"test": 5}, "test must be a pair of tensors or an iterable of batches; got int"),
            ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\)"),
            ({"model": lambda x: x}, "model must be a module; got function"),
        ],
    )
    def test_wrong_arguments(self, flawed: nn.Sequential, changes: dict[str, Any], expected: str) -> None:
        arguments: dict[str, Any] = {"model": flawed, "train": TRAIN, "validation": VALIDATION, **changes}
        with pytest.raises(ValueError, match=f"^mend: {expected}"):
            mend(**arguments)


def _standstill(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.0)


class TestFolder:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pages have tests of their own, and drawing them takes long."""
        monkeypatch.setattr(brittle.report, "evaluation_page", quick_page)
        for page in ("compare_page", "diagnosis_page"):
            monkeypatch.setattr(f"brittle.repair.mending_folder.{page}", lambda *_: "a page")

    def test_everything_is_in_it(self, flawed: nn.Sequential, mending: Mending, tmp_path: Path) -> None:
        from brittle.repair.mending_folder import PAGES
        from safetensors.torch import load_file

        found = mend(flawed, TRAIN, VALIDATION, test=TEST, out=tmp_path / "a" / "b", **OPTIONS)
        out = tmp_path / "a" / "b"
        for name in (*PAGES, "mend.html"):
            assert (out / name).stat().st_size > 0, name
        model = network()
        model.load_state_dict(load_file(out / "mended.safetensors"))
        assert same(model, found.model)
        assert same(model, mending.model)  # whether there is a folder makes no difference
        summary = json.loads((out / "mend.json").read_text())
        assert summary["scores"] == json.loads(json.dumps(found.summary()["scores"]))
        report = json.loads((out / "after" / "report.json").read_text())
        measured = report["views"]["classification"]["sets"][0]["accuracy"]
        assert measured == pytest.approx(found.scores["after"].accuracy)

    def test_an_interrupted_one_goes_on(
        self, flawed: nn.Sequential, mending: Mending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(stage: str, done: int, total: int) -> None:
            if stage == "repair 2" and done > total // 2:
                raise KeyboardInterrupt

        arguments: dict[str, Any] = {"test": TEST, "out": tmp_path, **OPTIONS}
        with pytest.raises(KeyboardInterrupt):
            mend(flawed, TRAIN, VALIDATION, progress=interrupt, **arguments)
        assert (tmp_path / "training" / "repair-1.safetensors").exists()
        steps: list[str] = []
        found = mend(
            flawed, TRAIN, VALIDATION, progress=lambda stage, done, total: steps.append(stage), **arguments
        )
        assert same(found.model, mending.model)
        assert "repair 1" not in steps  # it was whole
        assert "repair 2" in steps

    def test_another_mending_is_refused(self, flawed: nn.Sequential, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

        arguments: dict[str, Any] = {"out": tmp_path, "progress": stop, **OPTIONS}
        with pytest.raises(KeyboardInterrupt):
            mend(flawed, TRAIN, VALIDATION, **arguments)
        with pytest.raises(ValueError, match=r"^mend: out must go on with .* another weights"):
            mend(network(3), TRAIN, VALIDATION, **arguments)
        with pytest.raises(ValueError, match="another seed"):
            mend(flawed, TRAIN, VALIDATION, **arguments, seed=3)
        with pytest.raises(ValueError, match="another train"):
            mend(flawed, blobs(300, 7), VALIDATION, **arguments)
        (tmp_path / "begun.json").write_text("{")
        with pytest.raises(ValueError, match=r"begun.json: it is no JSON that can be read"):
            mend(flawed, TRAIN, VALIDATION, **arguments)

    def test_a_folder_that_cannot_be_made(self, flawed: nn.Sequential, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"^mend: out must be a folder that can be made"):
            mend(flawed, TRAIN, VALIDATION, out=tmp_path / "file" / "below", **OPTIONS)
