"""The loop: no scheduling changes a result, shortcuts change no verdict, and what it finds is certified."""

import dataclasses
import gc
import math
from collections.abc import Iterator
from typing import Any

import brittle
import models
import pytest
import torch
from brittle.attacks import BIM, FGSM, MIFGSM, PGD, RFGSM, Attack, attack
from brittle.attacks.base import plan_of
from brittle.attacks.run import chunks_of
from brittle.engine import Engine, distances
from brittle.result import AttackResult, Ledger
from samples import assert_same_bits
from test_gradient_step import assert_in_ball
from test_target import assert_same_state, picky, state
from torch import Tensor, nn

ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(0.03),
    "rfgsm": RFGSM(0.03),
    "bim": BIM(0.03, steps=6),
    "mifgsm": MIFGSM(0.03, steps=6),
    "pgd": PGD(0.03, steps=8, step_size=0.01, restarts=2),
    "pgd, every step": PGD(0.03, steps=6, step_size=0.01, restarts=2, early_stop=False),
    "pgd, targets": PGD(0.02, steps=6, step_size=0.005, targets=3, loss="margin"),
    "pgd, targeted": PGD(0.2, steps=6, targeted=True, loss="dlr"),
    "pgd l2": PGD(0.3, norm="l2", steps=8, restarts=2),
    "pgd l1": PGD(3.0, norm="l1", steps=8, l1_quantile=0.9),
}

FIELDS = [f.name for f in dataclasses.fields(AttackResult) if f.name not in ("attack", "norm", "complete")]
VERDICT = ["success", "clean_wrong", "prediction", "distance", "eps", "attempt", "certified", "adversarial"]


def mlp(n: int = 48) -> tuple[nn.Module, Tensor, Tensor]:
    """An MLP in float64, right about most of its labels: its forward treats every row alike."""
    model = models.row_independent()
    x = models.data(n)[0].double()
    y = models.own_labels(model, x)
    y[:6] = (y[:6] + 1) % 10
    return model, x, y


def run(
    rules: Attack,
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    ids: Tensor | None = None,
    slots: int = 64,
    **settings: Any,
) -> AttackResult:
    """`brittle.attack` with the engine's inner settings at hand."""
    target = brittle.Target.of(model, rules.name)
    ledger = Ledger(keep=True)
    ids = torch.arange(len(x)) if ids is None else ids
    y = labels(rules, y)
    with target:
        batches = [(x[i : i + slots], y[i : i + slots], ids[i : i + slots]) for i in range(0, len(x), slots)]
        how = dataclasses.replace(rules.settings(slots), **settings)
        engine = Engine(target, rules.rule(target.bounds, 0), plan_of(rules), how, ledger)
        engine.run(chunks_of(rules.name, rules, target, batches, slots))
    return ledger.result(str(rules), rules.norm)


def labels(rules: Attack, y: Tensor) -> Tensor:
    """The labels to hand over: those to reach, if the attack is targeted."""
    return (y + 1) % 10 if rules.targeted else y


def assert_same_result(a: AttackResult, b: AttackResult, names: list[str] = FIELDS) -> None:
    for name in names:
        assert_same = assert_same_bits if name in ("adversarial", "distance") else torch.testing.assert_close
        left, right = getattr(a, name), getattr(b, name)
        try:
            if left.dtype == torch.float64:
                assert torch.equal(left, right)
            else:
                assert_same(left, right)
        except AssertionError as error:
            raise AssertionError(f"{name} differs") from error


@pytest.mark.parametrize("name", ATTACKS)
class TestScheduling:
    """Exactly the same results in a model whose forward treats rows alike."""

    def test_slots(self, name: str) -> None:
        model, x, y = mlp()
        expected = run(ATTACKS[name], model, x, y, slots=len(x))
        attacked = ~expected.clean_wrong
        assert 0.1 < expected.success[attacked].double().mean() < 0.98
        for slots in (1, 7, 64):
            assert_same_result(run(ATTACKS[name], model, x, y, slots=slots), expected)

    def test_order(self, name: str) -> None:
        model, x, y = mlp()
        expected = run(ATTACKS[name], model, x, y)
        order = torch.randperm(len(x))
        shuffled = run(ATTACKS[name], model, x[order], y[order], ids=order, slots=16)
        back = order.argsort()
        moved = {f: getattr(shuffled, f)[back] for f in FIELDS}
        assert_same_result(dataclasses.replace(shuffled, **moved), expected)

    def test_threads(self, name: str) -> None:
        model, x, y = mlp()
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(run(ATTACKS[name], model, x, y))
        finally:
            torch.set_num_threads(threads)
        assert_same_result(*results)

    def test_flags_read_late(self, name: str) -> None:
        """As on a GPU: rows that are done rest for a turn, shapes stay, last points are not set aside."""
        model, x, y = mlp()
        expected = run(ATTACKS[name], model, x, y)
        for slots in (7, 64, 200):
            assert_same_result(run(ATTACKS[name], model, x, y, slots=slots, late=True), expected)

    def test_shortcuts_change_no_verdict(self, name: str) -> None:
        model, x, y = mlp()
        with_them = run(ATTACKS[name], model, x, y)
        without = run(ATTACKS[name], model, x, y, shortcuts=False)
        assert_same_result(with_them, without, VERDICT)
        if ATTACKS[name].early_stop and ATTACKS[name].step_count > 1:
            assert with_them.backwards.sum() < without.backwards.sum()

    def test_what_is_returned_is_what_is_said(self, name: str) -> None:
        model, x, y = mlp()
        result = run(ATTACKS[name], model, x, y)
        adv = result.adversarial
        assert adv is not None
        predicted = model(adv).argmax(1)
        assert torch.equal(predicted, result.prediction)
        goal = labels(ATTACKS[name], y)
        assert torch.equal(
            (predicted == goal) if ATTACKS[name].targeted else (predicted != y), result.success
        )
        assert torch.equal(result.certified, result.success)
        norm = {"linf": math.inf, "l2": 2, "l1": 1}[ATTACKS[name].norm]
        recomputed = torch.linalg.vector_norm((adv - x).flatten(1), norm, dim=1)
        assert torch.allclose(recomputed, result.distance)
        assert (recomputed <= result.eps).all()
        assert ((adv >= 0) & (adv <= 1)).all()
        assert_same_bits(adv[result.clean_wrong], x[result.clean_wrong])


class TestCounts:
    def test_every_evaluation_is_counted(self) -> None:
        """The per-sample counts add up to what the model was asked."""
        model, x, y = mlp()
        asked = {"forward": 0}

        def counted(inputs: Tensor) -> Tensor:
            asked["forward"] += len(inputs)
            return model(inputs)

        for name in ATTACKS:
            asked["forward"] = 0
            result = run(ATTACKS[name], counted, x, y, slots=16)
            # Beside three looks at the first 16: whether what it answers depends on the sample alone.
            assert asked["forward"] == 3 * 16 + result.forwards.sum()

    def test_pgd_by_hand(self) -> None:
        """A walk written out: where it first succeeds, and what it has cost by then."""
        model, x, y = mlp()
        result = run(PGD(0.03, steps=6, step_size=0.01, random_start=False), model, x, y, shortcuts=False)
        found = run(PGD(0.03, steps=6, step_size=0.01, random_start=False), model, x, y)
        adv = x.clone()
        first = torch.full((len(x),), -1)
        for step in range(7):
            leaf = adv.clone().requires_grad_()
            logits = model(leaf)
            success = logits.argmax(1) != y
            first = torch.where((first < 0) & success, step, first)
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)
            brittle.ops.linf_step_(adv, grad, x, 0.01, 0.03)
        assert torch.equal(first >= 0, found.success)
        assert torch.equal(found.steps[first >= 0], first[first >= 0])
        assert torch.equal(found.forwards[first >= 0], 1 + first[first >= 0])
        never = (first < 0) & ~found.cycled
        assert (found.forwards[never] == 7).all()
        assert (found.backwards[never] == 6).all()
        assert (result.backwards == 6).all()

    def test_cycling_is_seen_as_soon_as_it_starts(self) -> None:
        """On a linear model every walk ends in a corner, where the next step leads nowhere."""
        model = nn.Linear(20, 2).double()
        x = torch.rand(30, 20, dtype=torch.float64) * 0.4 + 0.3
        with torch.no_grad():
            model.bias += torch.tensor([50.0, -50.0])  # out of reach
        y = torch.zeros(30, dtype=torch.int64)
        result = run(PGD(0.1, steps=40, step_size=0.03, random_start=False), model, x, y)
        assert result.cycled.all()
        assert result.stalled.all()
        assert not result.success.any()
        assert (result.steps == 5).all()  # four to the corner, one to see that it stays
        momentum = run(MIFGSM(0.1, steps=12, step_size=0.03), model, x, y)
        assert not momentum.cycled.any()  # where momentum is part of the state, a point may come back
        assert momentum.stalled.all()
        assert (momentum.steps == 12).all()


class TestFlags:
    def test_zero_gradients_are_reported_and_named(self) -> None:
        def masked(x: Tensor) -> Tensor:
            return (x.flatten(1)[:, :10] * 8).round() + 0 * x.flatten(1)[:, :10]

        x = torch.rand(40, 3, 8, 8)
        y = masked(x).argmax(1)
        with pytest.warns(brittle.GradientMaskingWarning, match="gradient masking"):
            result = attack(masked, PGD(0.01, steps=5, random_start=False), (x, y))
        assert result.zero_gradient.all()
        assert result.stalled.all()
        assert "zero gradient" in result.summary()

    def test_nonfinite_gradients_are_reported(self) -> None:
        class Rooted(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1)[:, :10].sqrt() + x.flatten(1)[:, 10:20]

        x = torch.rand(20, 3, 8, 8)
        x[:10].flatten(1)[:, :10] = 0.75  # where the root is smooth
        x[10:].flatten(1)[:, :10] = 0.0  # and where it is infinitely steep
        y = Rooted()(x).argmax(1)
        result = attack(Rooted(), PGD(0.02, steps=3, random_start=False), (x, y))
        assert not result.nonfinite_gradient[:10].any()
        assert result.nonfinite_gradient[10:].any()
        assert not result.adversarial.isnan().any()  # type: ignore[union-attr]

    def test_no_warning_without_cause(self, recwarn: pytest.WarningsRecorder) -> None:
        model, x, y = mlp()
        attack(model, PGD(0.03, steps=4), (x, y))
        assert not [w for w in recwarn if issubclass(w.category, brittle.GradientMaskingWarning)]


class Disagreeing(nn.Module):
    """Batch-norm that folds, a head whose answers hang on the last bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def trained_statistics(model: nn.Module) -> nn.Module:
    model.train()
    for _ in range(3):
        model(torch.rand(16, 3, 8, 8))
    return model.eval()


class TestCertification:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_successes_of_a_copy_count_on_the_model_itself(self, precision: str) -> None:
        model = trained_statistics(Disagreeing())
        x, _ = models.data(200)
        y = models.own_labels(model, x)
        target = brittle.Target(model, precision=precision)
        result = attack(target, PGD(0.03, steps=10), (x, y), slots=32)
        assert target.searches_on_a_copy
        assert 0.1 < result.success.double().mean() < 1
        adv = result.adversarial
        assert adv is not None
        wrong = model(adv).argmax(1) != y
        # What is misclassified is known to be; a point the copy was never fooled by may fool the model.
        assert wrong[result.success].all()
        assert torch.equal(result.success, result.certified)
        assert_in_ball(adv, x, 0.03, (0, 1))
        own = attack(model, PGD(0.03, steps=10), (x, y))
        assert abs(result.robust_accuracy - own.robust_accuracy) <= 0.03

    def test_findings_that_do_not_hold_are_searched_for_again_on_the_model(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy believes every point is adversarial: nothing may be believed, and the model decides."""
        model = trained_statistics(Disagreeing())
        x, _ = models.data(100)
        y = models.own_labels(model, x)
        answer = y[0]
        x, y = x[y != answer], y[y != answer]
        target = brittle.Target(model)
        rules = PGD(0.03, steps=5)
        expected = attack(model, rules, (x, y), slots=16)
        monkeypatch.setattr(brittle.target, "folded", lambda model: Always(answer))
        monkeypatch.setattr(brittle.Target, "confirm_copy", lambda self, x: True)
        result = attack(target, rules, (x, y), slots=16)
        assert_same_result(result, expected, VERDICT)
        # A finding and its rebuttal more than the walk on the model; just the question where it was right.
        right = expected.steps == 0
        assert (result.forwards - expected.forwards == torch.where(right, 1, 2)).all()
        assert not right.all()

    def test_every_step_reports_what_the_model_says(self) -> None:
        model = trained_statistics(Disagreeing())
        x, _ = models.data(50)
        y = models.own_labels(model, x)
        result = attack(brittle.Target(model), PGD(0.03, steps=5, early_stop=False), (x, y))
        assert result.adversarial is not None
        wrong = model(result.adversarial).argmax(1) != y
        assert wrong[result.success].all()

    def test_a_copy_that_computes_something_else_is_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = trained_statistics(Disagreeing())
        x, _ = models.data(20)
        y = models.own_labels(model, x)
        target = brittle.Target(model)
        monkeypatch.setattr(brittle.target, "folded", lambda model: Always(torch.tensor(3)))
        with pytest.warns(RuntimeWarning, match="gave other logits than the model itself"):
            result = attack(target, PGD(0.03, steps=5), (x, y))
        assert_same_result(result, attack(model, PGD(0.03, steps=5), (x, y)))


class Always(nn.Module):
    """One answer to everything, with a gradient."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :10].clone()
        logits[:, self.answer] += 100
        return logits


class Greedy(nn.Module):
    """Runs out of memory above a number of samples."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        super().__init__()
        self.model, self.limit = model, limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return self.model(x)


class TestMemory:
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("limit", [3, 13])
    def test_fewer_slots_where_memory_runs_out(self, limit: int, late: bool) -> None:
        model, x, y = mlp()
        expected = run(ATTACKS["pgd"], model, x, y)
        with pytest.warns(RuntimeWarning, match="out of memory with 64 slots, going on with 32"):
            result = run(ATTACKS["pgd"], Greedy(model, limit), x, y, late=late)
        assert_same_result(result, expected)

    def test_a_single_sample_that_does_not_fit_raises(self) -> None:
        model, x, y = mlp()
        with pytest.raises(torch.OutOfMemoryError), pytest.warns(RuntimeWarning):
            run(ATTACKS["pgd"], Greedy(model, 0), x, y)

    def test_other_errors_pass(self) -> None:
        def broken(x: Tensor) -> Tensor:
            raise RuntimeError("something else")

        _, x, y = mlp()
        with pytest.raises(RuntimeError, match="something else"):
            attack(broken, PGD(0.1), (x, y))

    def test_a_stream_is_read_as_it_is_needed_and_let_go(self) -> None:
        model, x, y = mlp(64)
        alive: set[int] = set()
        most = 0

        def stream() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal most
            for i in range(100):
                batch = x.clone()
                alive.add(i)
                _watch(batch, alive, i)
                most = max(most, len(alive))
                yield batch, y
                del batch

        result = attack(model, PGD(0.03, steps=4), stream(), slots=64)
        assert len(result) == 6400
        assert result.adversarial is None
        assert most <= 4

    def test_twenty_thousand_samples(self) -> None:
        """With a progress count, in memory that does not grow with their number."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        seen = []

        def stream() -> Iterator[tuple[Tensor, Tensor]]:
            for i in range(80):
                x = torch.rand(250, 3, 8, 8, generator=torch.Generator().manual_seed(i))
                with torch.no_grad():
                    yield x, model(x).argmax(1)

        found: list[int] = []

        def sink(ids: Tensor, points: Tensor, success: Tensor) -> None:
            found.extend(ids[success].tolist())
            assert len(ids) == len(points)

        result = attack(
            model,
            PGD(0.05, steps=3),
            stream(),
            sink=sink,
            progress=lambda done, total: seen.append((done, total)),
        )
        gc.collect()
        assert len(result) == 20_000
        assert torch.equal(result.sample_ids, torch.arange(20_000))
        assert sorted(found) == result.sample_ids[result.success].tolist()
        assert seen[-1] == (20_000, None)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def _watch(tensor: Tensor, alive: set[int], key: int) -> None:
    import weakref

    weakref.finalize(tensor, alive.discard, key)


class TestInterruption:
    def interrupted(self, at: int, **options: Any) -> tuple[Any, AttackResult, dict[str, object]]:
        model = picky()
        x, _ = models.data(60)
        y = models.own_labels(model.body, x)
        model.fail_at = at
        model.forwards = 0
        before = state(model)
        result = attack(model, PGD(0.05, steps=6), (x, y), slots=8, **options)
        return model, result, before

    def test_what_is_finished_is_returned_and_the_model_is_itself(self) -> None:
        model, result, before = self.interrupted(25)
        assert not result.complete
        assert 0 < len(result) < 60
        assert "interrupted" in result.summary()
        assert_same_state(before, state(model))

    def test_resuming_gives_what_an_unbroken_run_gives(self) -> None:
        model, partial, _ = self.interrupted(25)
        x, _ = models.data(60)
        y = models.own_labels(model.body, x)
        rules = PGD(0.05, steps=6)
        model.fail_at = -1
        rest = attack(model, rules, (x, y), slots=8, resume=partial)
        assert rest.complete
        whole = attack(model, rules, (x, y), slots=8)
        order = rest.sample_ids.argsort()
        for name in ("success", "prediction", "attempt"):
            assert torch.equal(getattr(rest, name)[order], getattr(whole, name))

    def test_the_functional_form_passes_the_interruption_on(self) -> None:
        model = picky()
        x, _ = models.data(20)
        y = models.own_labels(model.body, x)
        model.forwards, model.fail_at = 0, 3
        before = state(model)
        with pytest.raises(KeyboardInterrupt):
            brittle.pgd(brittle.Target(model), x, y, 0.1, steps=5)
        assert_same_state(before, state(model))


class TestData:
    def test_the_callers_data_is_never_written_to(self) -> None:
        model, x, y = mlp()
        copies = x.clone(), y.clone()
        for slots in (1, 8, 200):
            attack(model, PGD(0.03, steps=3), (x, y), slots=slots)
            assert_same_bits(x, copies[0])
            assert torch.equal(y, copies[1])

    def test_a_loader_gives_the_same_as_a_pair(self) -> None:
        model, x, y = mlp()
        expected = attack(model, ATTACKS["pgd"], (x, y), keep=False)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=11)
        result = attack(model, ATTACKS["pgd"], loader)
        assert_same_result(result, expected, [f for f in FIELDS if f != "adversarial"])

    def test_eps_and_step_size_for_each_sample(self) -> None:
        model, x, y = mlp()
        eps = torch.rand(len(x), dtype=torch.float64) * 0.05
        result = attack(model, PGD(eps, steps=4, step_size=eps / 3), (x, y), slots=16)
        assert torch.equal(result.eps, eps)
        alone = attack(
            model,
            PGD(float(eps[40]), steps=4, step_size=float(eps[40] / 3)),
            [(x[40:41], y[40:41], torch.tensor([40]))],
            keep=True,
        )
        assert result.adversarial is not None
        assert alone.adversarial is not None
        assert_same_bits(alone.adversarial[0], result.adversarial[40])

    def test_no_samples(self) -> None:
        model, x, y = mlp()
        result = attack(model, PGD(0.03), (x[:0], y[:0]))
        assert len(result) == 0
        assert math.isnan(result.robust_accuracy)
        assert "samples" in result.summary()

    def test_samples_of_different_shapes_are_refused(self) -> None:
        def any_size(x: Tensor) -> Tensor:
            return x.mean((2, 3)) @ torch.eye(3)

        batches = [(torch.rand(2, 3, s, s), torch.zeros(2, dtype=torch.int64)) for s in (8, 9)]
        with pytest.raises(ValueError, match=r"one shape; got \[3, 8, 8\] and \[3, 9, 9\]"):
            attack(any_size, PGD(0.03, steps=2), batches)

    def test_a_progress_bar(self, capsys: pytest.CaptureFixture[str]) -> None:
        model, x, y = mlp()
        attack(model, PGD(0.03, steps=2), (x, y), progress=True)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "48/48" in captured.err

    def test_nan_logits_name_the_samples(self) -> None:
        def broken(x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :10]
            return torch.where((x[:, 0, 0, 0] > 0.9)[:, None], math.nan, logits)

        x = torch.full((40, 3, 8, 8), 0.1)
        x[[7, 31], 0, 0, 0] = 1.0
        y = torch.zeros(40, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"pgd: the model gave NaN logits for 1 sample\(s\): 107"):
            attack(broken, PGD(0.01, steps=2, random_start=False), [(x, y, torch.arange(100, 140))], slots=20)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"eps": -1.0}, "pgd: eps must be finite and >= 0; got -1.0"),
            ({"loss": "mse"}, "pgd: loss must be one of 'ce', 'margin', 'dlr'; got 'mse'"),
            ({"norm": "l3"}, "pgd: norm must be one of"),
            ({"compat": "captum"}, "pgd: compat must be one of None, 'torchattacks'"),
            ({"norm": "l1", "compat": "art"}, "pgd: compat must be one of None; got 'art'"),
            ({"targets": 2, "targeted": True}, "targets chooses the classes to aim for"),
            ({"restarts": 2, "random_start": False}, "restarts > 1 needs random_start"),
            ({"restarts": 2, "compat": "foolbox"}, "has no restarts and no targets"),
            ({"l1_quantile": 1.0}, r"l1_quantile must be in \[0, 1\)"),
        ],
    )
    def test_settings_are_checked_when_the_attack_is_made(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PGD(**change)

    def test_more_targets_than_classes(self) -> None:
        model, x, y = mlp()
        with pytest.raises(ValueError, match="targets must be fewer than the model's 10 classes; got 10"):
            attack(model, PGD(0.03, targets=10), (x, y))


class TestResult:
    def test_summary(self) -> None:
        model, x, y = mlp()
        result = attack(model, PGD(0.03, steps=8, step_size=0.01), (x, y))
        text = result.summary()
        assert text.startswith("PGD(eps=0.03, steps=8, step_size=0.01)")
        assert f"robust accuracy    {result.robust_accuracy:.2%}" in text
        assert "clean accuracy     87.50%" in text
        assert f"{result.forwards.double().mean():.1f} forwards" in text

    def test_distances(self) -> None:
        x, clean = torch.tensor([[1.0, 0.5], [0.25, 0.0]]), torch.zeros(2, 2)
        assert distances(x, clean, "linf").tolist() == [1.0, 0.25]
        assert distances(x, clean, "l1").tolist() == [1.5, 0.25]
        assert distances(x, clean, "l2")[0].item() == math.sqrt(1.25)


def test_samples_that_only_the_model_itself_gets_wrong_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_statistics(Disagreeing())
    x, _ = models.data(40)
    y = models.own_labels(model, x)
    y[:10] = (y[:10] + 1) % 10
    target = brittle.Target(model)
    # Right about the first samples, whatever is done to them.
    monkeypatch.setattr(brittle.target, "folded", lambda model: Always(y[0]))
    monkeypatch.setattr(brittle.Target, "confirm_copy", lambda self, x: True)
    result = attack(target, PGD(0.0, steps=1, random_start=False), (x[:10], y[:10]))
    assert result.clean_wrong.all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnTheGpu:
    """The turn in a CUDA graph, flags read late: the CPU's verdicts."""

    @pytest.mark.parametrize("name", ATTACKS)
    def test_the_same_verdicts_as_on_the_cpu(self, name: str) -> None:
        model, x, y = mlp()
        expected = run(ATTACKS[name], model, x, y)
        model.cuda()
        for slots in (7, 64):
            found = run(
                ATTACKS[name], model, x.cuda(), y.cuda(), ids=torch.arange(len(x)).cuda(), slots=slots
            )
            # The device's products round differently, which may decide a sample at the boundary.
            assert (found.success != expected.success).sum() <= 1
            assert (found.forwards != expected.forwards).sum() <= 3

    def test_memory_that_runs_out(self) -> None:
        model, x, y = mlp()
        model.cuda()
        with pytest.warns(RuntimeWarning, match="out of memory with 64 slots, going on with 32"):
            result = run(
                ATTACKS["pgd"], Greedy(model, 20), x.cuda(), y.cuda(), ids=torch.arange(len(x)).cuda()
            )
        assert len(result) == len(x)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_prepared_copy(self, precision: str) -> None:
        model = trained_statistics(Disagreeing()).cuda()
        x, _ = models.data(100)
        with torch.no_grad():
            y = model(x.cuda()).argmax(1)
        target = brittle.Target(model, precision=precision)
        result = attack(target, PGD(0.03, steps=10), (x, y.cpu()), slots=32)
        assert target.searches_on_a_copy
        assert torch.equal(result.success, result.certified)
        assert_in_ball(result.adversarial, x, 0.03, (0, 1))  # type: ignore[arg-type]
