"""A whole evaluation: what the rows say is what model and data are."""

import copy
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import brittle
import interrupted_runs
import numpy as np
import pytest
import torch
import zoo
from brittle.evaluation import evaluate, load_report, verify
from brittle.evaluation.run import answers
from brittle.evaluation.run.fingerprint import RunMismatch
from brittle.evaluation.run.store import RunStore, RunStoreError
from brittle.sources import BadSample, Source
from brittle.target import Target
from run_folders import contents
from test_target import assert_same_state, picky, state
from torch import Tensor, nn

MODEL = interrupted_runs.model()
DATA = interrupted_runs.data(MODEL)
X, Y = DATA["main"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(answers, "LANDSCAPE_SIDE", 5)
    if "page" not in request.keywords:
        monkeypatch.setattr(brittle.report, "evaluation_page", interrupted_runs.quick_page)


def rows(out: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(out / "run.sqlite")) as db:
        return db.execute(query, values).fetchall()


def linear(weight: list[list[float]]) -> nn.Module:
    net = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(weight))
    return net


# ---- rows are what they say ----


def test_clean_rows_are_the_models_answers(tmp_path: Path) -> None:
    evaluate(MODEL, DATA, tmp_path, views=["classification"], batch_size=5)
    with torch.no_grad():
        for name, (x, y) in DATA.items():
            logits = MODEL(x).double()
            found = rows(
                tmp_path,
                "SELECT id, label, prediction, confidence, log_loss FROM samples "
                "WHERE data_set = ? ORDER BY id",
                name,
            )
            ids, labels, predictions, confidences, losses = map(list, zip(*found, strict=True))
            assert ids == list(range(len(x)))
            assert labels == y.tolist()
            assert predictions == logits.argmax(1).tolist()
            assert confidences == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-5)
            assert losses == pytest.approx(
                nn.functional.cross_entropy(logits, y, reduction="none").tolist(), rel=1e-4
            )


def test_features_are_the_input_of_the_last_layer(tmp_path: Path) -> None:
    evaluate(MODEL, (X, Y), tmp_path, views=["ood"], batch_size=7)
    store = RunStore(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            store.blobs("outputs", "features", "data"), MODEL[:3](X), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(store.blobs("outputs", "logits", "data"), MODEL(X), rtol=1e-5, atol=1e-6)
    noise = store.blobs("outputs", "logits", "uniform noise")
    assert noise is not None
    assert noise.shape == (len(X), 3)
    assert rows(
        tmp_path, "SELECT DISTINCT label, log_loss FROM samples WHERE data_set = 'uniform noise'"
    ) == [(-1, None)]
    store.close()


def test_wide_features_keep_their_distances_when_they_are_projected(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(36, 2000), nn.ReLU(), nn.Linear(2000, 3))
    x = X.flatten(1)
    evaluate(wide, (x, Y), tmp_path, views=["ood"])
    store = RunStore(tmp_path)
    kept = store.blobs("outputs", "features", "data")
    store.close()
    assert kept is not None
    assert kept.shape == (len(x), 512)
    with torch.no_grad():
        ratio = torch.pdist(kept) / torch.pdist(wide[:2](x))
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
    assert float(ratio.std()) < 0.08


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_attacks_on_a_linear_model_find_the_exact_distances(tmp_path: Path, norm: str) -> None:
    """The nearest adversarial point of a linear model is known: margin over the dual norm of the weights."""
    net = linear([[1.0, -2.0, 0.5, 1.5], [-1.0, 1.0, 1.0, -0.5]])
    x = 0.3 + 0.4 * torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(1)
        difference = net.weight[0] - net.weight[1]
        dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
        exact = (x @ difference).abs() / torch.linalg.vector_norm(difference, dual)
    radii = [0.05, 0.1, 0.2, 0.3]
    evaluate(net, (x, y), tmp_path, views=["robustness"], norms=[norm], epsilons=radii, steps=60, restarts=2)
    # Beyond these distances the bounds, which the closed form does not know, may stand in the way.
    for attack in ("minimal", "pgd", "fgsm"):
        verdicts = rows(
            tmp_path, "SELECT epsilon, id, success FROM verdicts WHERE attack = ? AND epsilon <= 0.3", attack
        )
        for eps, sample, success in verdicts:
            if success:
                assert exact[sample] <= eps * (1 + 1e-5)
            elif attack != "fgsm" or norm != "l1":
                # "minimal" tells the nearest point to 1/256 of the largest radius.
                least = eps * (0.999 if norm != "l1" else 0.8) - (0.3 / 256 if attack == "minimal" else 0)
                assert exact[sample] >= least
    found = dict(rows(tmp_path, "SELECT id, distance FROM attacks WHERE attack = 'minimal'"))
    near = exact < 0.25
    assert near.sum() > 20
    for sample in near.nonzero().flatten().tolist():
        slack = 0.3 / 256 + (0.01 if norm != "l1" else 0.06)
        assert exact[sample] * (1 - 1e-5) <= found[sample] <= exact[sample] + slack


def test_single_steps_are_fgsm(tmp_path: Path) -> None:
    model, x, y = zoo.digits_cnn(), *[part[:40] for part in zoo.test_digits()]
    evaluate(
        model,
        (x, y),
        tmp_path,
        views=["robustness", "calibration"],
        norms=["linf"],
        epsilons=[0.05, 0.2],
        attacks=["fgsm"],
    )
    with torch.no_grad():
        for level, eps in enumerate([0.05, 0.2], 1):
            logits = model(brittle.fgsm(model, x, y, eps)).double()
            found = rows(
                tmp_path,
                "SELECT prediction, confidence FROM answers WHERE kind = 'fgsm' AND level = ? ORDER BY id",
                level,
            )
            right = model(x).argmax(1) == y
            predictions, confidences = zip(*found, strict=True)
            same = torch.tensor(predictions) == logits.argmax(1)
            assert bool(same[right].all())
            assert list(confidences) == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-3)
            success = [
                row[0]
                for row in rows(tmp_path, "SELECT success FROM verdicts WHERE epsilon = ? ORDER BY id", eps)
            ]
            assert success == ((logits.argmax(1) != y) | ~right).int().tolist()


def test_shifts_are_those_of_the_noise_functions(tmp_path: Path) -> None:
    evaluate(MODEL, (X, Y), tmp_path, views=["shift"], seed=5, batch_size=7)
    noisy = brittle.noise.gaussian(X, 0.18, seed=5)
    with torch.no_grad():
        expected = MODEL(noisy).argmax(1).tolist()
    found = rows(tmp_path, "SELECT prediction FROM answers WHERE kind = 'gaussian' AND level = 3 ORDER BY id")
    assert [row[0] for row in found] == expected
    kinds = {row[0] for row in rows(tmp_path, "SELECT DISTINCT kind FROM answers")}
    assert kinds == {"gaussian", "shot", "salt_and_pepper", "blur", "brightness", "contrast"}


def test_the_landscape_is_the_loss_around_the_sample(tmp_path: Path) -> None:
    net = linear([[1.0, 2.0], [0.5, -1.0]])
    x, y = torch.tensor([[0.5, 0.4]]), torch.tensor([0])
    evaluate(net, (x, y), tmp_path, views=["landscape"], norms=["linf"], epsilons=[0.05], reported=0.05)
    store = RunStore(tmp_path)
    grid = store.blobs("landscapes", "losses", "data")
    store.close()
    assert grid is not None
    grid = grid.reshape(5, 5)
    steps = answers.landscape_steps(0.1)
    assert steps == pytest.approx((-0.1, -0.05, 0, 0.05, 0.1))
    with torch.no_grad():
        # The gradient of the loss points against the difference of the weights, (0.5, 3).
        for a, along in enumerate(steps):
            expected = nn.functional.cross_entropy(net(x - along), y)
            torch.testing.assert_close(grid[a, 2], expected, rtol=1e-4, atol=1e-6)
    assert bool((grid[1:, 2] > grid[:-1, 2]).all())


def test_other_seeds_are_other_attacks_and_leave_the_first_as_it_was(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"norms": ["linf"], "epsilons": [0.05], "steps": 2, "attacks": ["pgd"]}
    views = ["robustness", "repeat"]
    one = evaluate(MODEL, (X, Y), tmp_path / "one", views=views, **settings)
    three = evaluate(MODEL, (X, Y), tmp_path / "three", views=views, repeat_seeds=3, **settings)
    assert "repeat" not in one.summary["views"]
    assert three.summary["views"]["repeat"]["seeds"] == [0, 1, 2]
    assert {row[0] for row in rows(tmp_path / "three", "SELECT DISTINCT seed FROM attacks")} == {0, 1, 2}
    query = "SELECT id, distance, prediction FROM attacks WHERE seed = 0 ORDER BY id"
    assert rows(tmp_path / "one", query) == rows(tmp_path / "three", query)


def test_near_duplicates_across_sets_are_found(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(80, 1, 12, 12, generator=generator)
    test = torch.rand(30, 1, 12, 12, generator=generator)
    test[4] = train[17]
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    data = {"test": (test, torch.zeros(30).long()), "train": (train, torch.zeros(80).long())}
    report = evaluate(net, data, tmp_path, views=["duplicates"])
    (search,) = report.summary["views"]["duplicates"]["searches"]
    assert (search["train"], search["test"], search["suspects"]) == ("train", "test", 1)
    (pair,) = report.summary["views"]["duplicates"]["pairs"]
    assert (pair["test_id"], pair["train_id"]) == (4, 17)
    small = {"test": (test[:5], torch.zeros(5).long()), "train": (train[:9], torch.zeros(9).long())}
    report = evaluate(net, small, tmp_path / "small", views=["duplicates"])
    (note,) = [one for one in report.summary["findings"] if one["view"] == "duplicates"]
    assert "at least 50 samples" in note["evidence"]


# ---- nothing that should not matter does ----


@pytest.mark.parametrize("name", ["digits_cnn", "small_resnet", "small_vit"])
def test_a_fixed_batch_gives_every_sample_its_bits_in_any_batch(name: str) -> None:
    model = getattr(zoo, name)()
    x = zoo.test_digits()[0][:50]
    y = zoo.test_digits()[1][:50]
    target = Target(model, fixed_batch=16)
    ids = torch.arange(50)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return target.evaluate(
            x, lambda logits: nn.functional.cross_entropy(logits, y, reduction="none")
        ).gradient

    with target:
        logits, grad = target.logits(x, ids), gradient(x, y)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        for rows_ in (order[:1], order[1:3], order[3:20], order):
            assert torch.equal(target.logits(x[rows_], rows_), logits[rows_])
            assert torch.equal(gradient(x[rows_], y[rows_]), grad[rows_])
            last = x[rows_].contiguous(memory_format=torch.channels_last)
            assert torch.equal(target.logits(last, rows_), logits[rows_])
    torch.testing.assert_close(logits, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_what_the_model_gets() -> None:
    sizes = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.flatten(1)[:, :3]

    with Target(model, fixed_batch=4) as target:
        target.logits(X[:9], torch.arange(9))
    assert sizes == [4, 4, 4]
    assert target.forwards == 9
    with pytest.raises(ValueError, match="fixed_batch must be an integer >= 1 or None; got 0"):
        Target(model, fixed_batch=0)


def test_the_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = picky()
    before = state(model)
    x, y = torch.rand(12, 3, 8, 8), torch.randint(0, 3, (12,))
    before["rng"] = torch.get_rng_state()
    evaluate(model, (x, y), tmp_path, norms=["linf"], epsilons=[0.1], steps=2, restarts=1)
    after = state(model)
    assert_same_state(before, after)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """As a user would start them; only the folder is another one."""
    (tmp_path / "net.py").write_text("from interrupted_runs import model as build\n")
    np.savez(tmp_path / "data.npz", x=X.numpy(), y=Y.numpy())
    command = [
        "-m", "brittle", "evaluate", "--model", str(tmp_path / "net.py:build"), "--norm", "linf",
        "--data", f"main={tmp_path / 'data.npz'}", "--epsilons", "0.05,0.2", "--fixed-batch", "8",
        "--steps", "3", "--views", "classification,robustness,ood",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    env["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    starts = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}
    for name, start in starts.items():
        whole = [sys.executable, *start, *command, "--out", str(tmp_path / name)]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("report: ") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    for file in ("report.json", "report.html"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


# ---- verification ----


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    evaluate(
        MODEL,
        DATA,
        out,
        norms=["linf"],
        epsilons=[0.05, 0.2],
        steps=5,
        attacks=["fgsm", "pgd", "minimal"],
        views=["robustness"],
    )
    return out


def test_stored_points_are_what_the_rows_say(finished: Path) -> None:
    found = verify(finished, MODEL, DATA)
    assert found.ok
    ((points,),) = rows(finished, "SELECT count(*) FROM points")
    assert found.points == points > 30
    for one in found.attacks:
        assert one.points == one.fooling == one.inside
        assert one.fooling_8_bit <= one.points
    assert "fooling in 8 bits" in found.table()


def test_a_point_that_does_not_fool_and_one_that_is_too_far_are_named(finished: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = min((finished / "adversarial").glob("*pgd*"))
    tensors = load_file(path)
    first, second = tensors["ids"][:2].tolist()
    tensors["adversarial"][0] = X[first]
    tensors["adversarial"][1] = (X[second] + 0.5).clamp(0, 1)
    save_file(tensors, path)
    found = verify(finished, MODEL, DATA)
    assert not found.ok
    (wrong,) = [one for one in found.attacks if one.failed]
    assert wrong.attack == "pgd"
    assert set(wrong.failed) == {first, second}
    assert f"not as their rows say: {first}, {second}" in found.table()


def test_a_data_set_may_have_a_long_name(tmp_path: Path) -> None:
    out, name = tmp_path / "run", "n" * 300
    evaluate(
        MODEL, {name: (X, Y)}, out, norms=["linf"], epsilons=[0.2], attacks=["fgsm"], views=["robustness"]
    )
    assert rows(out, "SELECT DISTINCT data_set FROM points") == [(name,)]
    assert verify(out, MODEL, {name: (X, Y)}).ok


def altered(out: Path, statement: str) -> None:
    with closing(sqlite3.connect(out / "run.sqlite")) as db, db:
        db.execute(statement)


def test_a_verdict_without_a_point_and_a_point_without_a_verdict_are_named(finished: Path) -> None:
    (first,), (second,), *_ = rows(finished, "SELECT id FROM points WHERE attack = 'pgd' ORDER BY id")
    altered(finished, f"DELETE FROM points WHERE attack = 'pgd' AND id = {first}")
    altered(finished, f"UPDATE verdicts SET success = 0 WHERE attack = 'pgd' AND id = {second}")
    by_attack = {one.attack: one.failed for one in verify(finished, MODEL, DATA).attacks}
    assert by_attack == {"fgsm": (), "minimal": (), "pgd": (first, second)}
    altered(finished, "DELETE FROM points")
    (count,) = rows(
        finished,
        "SELECT count(DISTINCT v.id) FROM verdicts v JOIN samples s USING (data_set, id) "
        "WHERE attack = 'pgd' AND success AND s.prediction = s.label",
    )[0]
    (pgd,) = [one for one in verify(finished, MODEL, DATA).attacks if one.attack == "pgd"]
    assert (pgd.points, len(pgd.failed)) == (0, count)
    assert count > 5


def test_a_point_that_is_no_number_is_named(finished: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = min((finished / "adversarial").glob("*pgd*"))
    tensors = load_file(path)
    tensors["adversarial"][0] = math.nan
    save_file(tensors, path)
    failed = [one.failed for one in verify(finished, MODEL, DATA).attacks if one.failed]
    assert failed == [(int(tensors["ids"][0]),)]


@pytest.mark.parametrize("damage", ["no points", "other shape", "other place", "bare run.json"])
def test_a_run_that_does_not_fit_together_is_one_sentence(finished: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    path = min((finished / "adversarial").glob("*pgd*"))
    tensors = load_file(path)
    if damage == "no points":
        save_file({"ids": tensors["ids"]}, path)
    elif damage == "other shape":
        save_file({**tensors, "adversarial": tensors["adversarial"][..., :2].contiguous()}, path)
    elif damage == "other place":
        altered(finished, "UPDATE points SET place = 9999 WHERE attack = 'pgd'")
    else:
        (finished / "run.json").write_text('{"format": 1}')
    with pytest.raises(
        RunStoreError, match=r"^(verify: .* must hold the points|evaluate: .* run of format 1)"
    ):
        verify(finished, MODEL, DATA)


def test_a_point_rounded_to_8_bits_is_told_apart(tmp_path: Path) -> None:
    """A linear model whose boundary runs half a grey level beside the samples."""
    net = linear([[1.0, 0.0], [-1.0, 0.0]])
    x = torch.tensor([[101.4 / 255, 0.5]])
    net.weight.data[0, 1] = -202.0 / 255
    net.weight.data[1, 1] = 202.0 / 255
    out = tmp_path / "run"
    y = net(x).argmax(1)
    evaluate(
        net, (x, y), out, norms=["linf"], epsilons=[0.8 / 255], attacks=["minimal"], views=["robustness"]
    )
    (found,) = verify(out, net, (x, y)).attacks
    assert (found.points, found.fooling, found.inside) == (1, 1, 1)
    assert found.fooling_8_bit in (0, 1)


def test_verification_asks_for_the_same_weights_and_whole_files(finished: Path) -> None:
    other = interrupted_runs.model()
    with torch.no_grad():
        other[1].weight += 1e-3
    with pytest.raises(RunMismatch, match="weights"):
        verify(finished, other, DATA)
    path = min((finished / "adversarial").glob("*pgd*"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunStoreError, match="must be a readable safetensors file"):
        verify(finished, MODEL, DATA)
    with pytest.raises(RunStoreError, match="must be a folder with a run in it"):
        verify(finished / "nowhere", MODEL, DATA)


# ---- bad input is one sentence ----


class Broken(Source):
    """Some of its samples cannot be read."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return len(X)

    def load(self, rows: Any) -> tuple[Tensor, Tensor]:
        for row in rows:
            if row in self.bad:
                raise BadSample(row, f"image {row}.png", "truncated")
        return X[list(rows)], Y[list(rows)]

    def labels(self) -> Tensor:
        return Y


def test_bad_samples_are_an_error_or_skipped_and_listed(tmp_path: Path) -> None:
    bad = {0, 9, 23}
    with pytest.raises(
        ValueError, match=r"^evaluate: data must be readable; got image 0.png: truncated"
    ) as error:
        evaluate(MODEL, Broken(bad), tmp_path / "refused", views=["classification"])
    assert "--skip-bad" in str(error.value)
    settings: dict[str, Any] = {
        "norms": ["linf"],
        "epsilons": [0.1],
        "steps": 2,
        "views": ["robustness", "ood"],
    }
    report = evaluate(MODEL, Broken(bad), tmp_path / "a", skip_bad=True, batch_size=4, **settings)
    again = evaluate(MODEL, Broken(bad), tmp_path / "b", skip_bad=True, batch_size=64, **settings)
    assert report.summary == again.summary
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (about, _) = report.summary["sets"]
    assert about["samples"] == len(X) - 3
    assert [one["name"] for one in about["skipped"]] == [f"image {k}.png" for k in sorted(bad)]
    ids = [row[0] for row in rows(tmp_path / "a", "SELECT DISTINCT id FROM attacks ORDER BY id")]
    assert ids == [k for k in range(len(X)) if k not in bad]
    with pytest.raises(ValueError, match=r"got none in 'data'"):
        evaluate(MODEL, Broken(set(range(len(X)))), tmp_path / "none", skip_bad=True)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + torch.rand(len(x), 3)


class Sometimes(nn.Module):
    """Not a number for dark images alone."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :3]
        return torch.where(x.flatten(1).mean(1, keepdim=True) < 0.2, self.value, z)


class Asserting(nn.Module):
    """As models of one image size do."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


class Single(nn.Module):
    """Computes in float32, whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = interrupted_runs.model()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.float())


class Graphless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("model", "x", "y", "message"),
    [
        (MODEL, X * 4 - 2, Y, r"x must lie inside bounds \(0.0, 1.0\); got values .* mean and std"),
        (MODEL, X, Y + 1, r"labels must be in \[0, 3\) for a model of 3 classes; got 3 for #"),
        (nn.Sequential(MODEL, nn.Softmax(1)), X, Y, "must return logits; got probabilities"),
        (Random(), X, Y, "must give the same logits for the same samples; got differences"),
        (Sometimes(math.nan), X * 0.1, Y, "NaN logits for 24 sample"),
        (Sometimes(math.inf), X * 0.1, Y, "must give finite logits"),
        (interrupted_runs.model().to("meta"), X, Y, "must be on one device, .*; got meta"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), X, Y, r"float32 samples of shape \[1, 6, 6\]; got"),
        (Single().double(), X, Y, r"must take float64 samples of .*; got .*[Dd]ouble"),
        (Graphless(), X, Y, "depend on x through differentiable operations; got logits without a graph"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm2d(1)), X, Y, "float32 samples of .*; got expected 4D"),
        (Asserting(), X, Y, "float32 samples of .*; got AssertionError"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), X, Y * 0, "at least 2 classes; got 1"),
        (nn.Flatten(0), X, Y, r"must return floating-point logits \[N, C\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, model: nn.Module, x: Tensor, y: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        evaluate(model, (x, y), tmp_path / "run")
    assert str(error.value).startswith("evaluate: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_too_large_for_the_memory_is_not_said_to_take_other_samples(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Large(), (X, Y), tmp_path / "run")


@pytest.mark.parametrize("name", ["main", "other"])
def test_a_late_sample_outside_the_bounds_is_named_in_any_set_and_view(tmp_path: Path, name: str) -> None:
    x = X.clone()
    x[20] = x[20] * 2 - 1
    data = {**DATA, name: (x, DATA[name][1])}
    with pytest.raises(ValueError, match=rf"x must lie inside bounds .* for #20 in '{name}'; .*--mean"):
        evaluate(MODEL, data, tmp_path / "run", fixed_batch=8, views=["classification"])


def test_a_model_that_fails_late_is_one_sentence_too(tmp_path: Path) -> None:
    dark = X.clone()
    dark[20] *= 0.1
    for value, words in (
        (math.nan, "NaN logits for 1 sample"),
        (math.inf, "finite logits; got infinity for sample 20"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            evaluate(Sometimes(value), (dark, Y), tmp_path / str(value), fixed_batch=4)
        assert str(error.value).startswith("evaluate: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": ["robust"]}, "views must be one of"),
        ({"views": "robustness"}, "views must be a sequence of names; got 'robustness'"),
        ({"norms": ["l3"]}, "norms must be one of"),
        ({"norms": []}, "at least one name each"),
        ({"attacks": ["autoattack"]}, "attacks must be one of"),
        ({"epsilons": []}, "at least one value, finite and > 0"),
        ({"epsilons": [math.inf]}, "at least one value, finite and > 0"),
        ({"epsilons": {"l1": [1.0]}}, "epsilons' norms must be one of"),
        (
            {"epsilons": [0.1], "reported": 0.2},
            r"reported must be one of the epsilons \[0.1\] in linf; got 0.2",
        ),
        ({"norms": ["l1", "l2"], "epsilons": [0.1]}, "epsilons must be given by norm"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"limit": 0}, "limit must be an integer >= 1"),
        ({"seed": 2**63}, "seed must be a signed integer of 64 bits"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"mean": [0.5]}, "mean and std must be given together"),
        ({"fixed_batch": -1}, "fixed_batch must be an integer >= 1"),
        ({"fail_under": ["robust=0.5"]}, "fail_under"),
        ({"fail_under": ["robust=0.5@0.123"]}, "fail_under"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        evaluate(MODEL, (X, Y), tmp_path / "run", **changes)
    assert str(error.value).startswith("evaluate: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "at least one set"),
        ({"uniform noise": (X, Y)}, "must not be called 'uniform noise'"),
        ({"a": (X, Y), "b": (X.flatten(1), Y)}, r"one shape; got \[1, 6, 6\] and, in 'b', \[36\]"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL, data, tmp_path / "run")


# ---- what comes out ----


def test_requirements_decide(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "norms": ["linf"],
        "epsilons": [0.001, 0.5],
        "steps": 3,
        "views": ["classification", "robustness"],
    }
    with torch.no_grad():
        y = MODEL(X).argmax(1)
    held = evaluate(MODEL, (X, y), tmp_path, fail_under=["accuracy=1.0", "robust=0.5@0.001"], **settings)
    assert held.held is True
    missed = evaluate(MODEL, (X, y), tmp_path, fail_under=["accuracy=1.0", "robust=0.5@0.5"], **settings)
    assert missed.held is False
    assert [one["held"] for one in missed.summary["verdict"]["requirements"]] == [True, False]
    assert evaluate(MODEL, (X, y), tmp_path, **settings).held is None
    assert load_report(tmp_path)["verdict"]["held"] is None


def test_a_limit_takes_samples_of_all_classes_though_they_come_one_by_one(tmp_path: Path) -> None:
    order = Y.argsort(stable=True)
    evaluate(MODEL, (X[order], Y[order]), tmp_path, limit=9, views=["classification", "landscape"])
    taken = [k * len(Y) // 9 for k in range(9)]
    for table in ("samples", "landscapes"):
        assert rows(tmp_path, f"SELECT id FROM {table} WHERE data_set = 'data'") == [(k,) for k in taken]
    assert {label for (label,) in rows(tmp_path, "SELECT label FROM samples")} == set(Y.tolist())


def test_a_limit_stamps_the_report(tmp_path: Path) -> None:
    report = evaluate(MODEL, DATA, tmp_path, limit=10, views=["classification"])
    assert report.partial
    assert report.summary["partial"] == {"used": 20, "of": 48}
    assert [one["samples"] for one in report.summary["sets"]] == [10, 10]


def test_bfloat16_searches_and_the_model_itself_certifies(tmp_path: Path) -> None:
    model, (x, y) = zoo.digits_cnn(), (part[:24] for part in zoo.test_digits())
    evaluate(
        model,
        (x, y),
        tmp_path,
        precision="bfloat16",
        norms=["linf"],
        epsilons=[0.1],
        steps=5,
        views=["robustness"],
    )
    found = verify(tmp_path, model, (x, y))
    assert found.ok
    assert found.points > 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_dtype_gets_samples_of_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    model = interrupted_runs.model().to(dtype)
    settings: dict[str, Any] = {"epsilons": {"linf": [0.05, 0.2], "l2": [0.5]}, "steps": 4, "restarts": 2}
    report = evaluate(model, (X, Y), tmp_path, **settings)
    with torch.no_grad():
        expected = (model(X.to(dtype)).argmax(1) == Y).double().mean()
    assert report.summary["views"]["robustness"]["clean_accuracy"] == pytest.approx(float(expected), abs=0.05)
    found = verify(tmp_path, model, (X, Y))
    assert found.ok, found.table()
    assert found.points > 20


def test_a_model_without_gradients_can_be_searched_at_random(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"norms": ["linf"], "epsilons": [0.4], "views": ["robustness", "shift"]}
    report = evaluate(Graphless(), (X, Y), tmp_path, attacks=["random"], **settings)
    (norm,) = report.summary["views"]["robustness"]["norms"]
    assert [curve["attack"] for curve in norm["curves"]] == ["random"]


def test_rows_of_numbers_that_are_no_images_are_fine(tmp_path: Path) -> None:
    report = evaluate(
        MODEL[1:], (X.flatten(1) * 2 - 1, Y), tmp_path, bounds=(-1.0, 1.0), norms=["l2"], steps=3, restarts=1
    )
    shift = report.summary["views"]["shift"]
    assert {kind["kind"] for kind in shift["kinds"]} == {"gaussian", "shot", "salt_and_pepper"}
    assert report.summary["settings"]["epsilons"]["l2"][0] == pytest.approx(0.2)  # for bounds twice as wide


def test_normalisation_stays_inside(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * 0.25 + 0.5)

    settings: dict[str, Any] = {
        "norms": ["linf"],
        "epsilons": [0.05],
        "steps": 3,
        "views": ["robustness"],
        "attacks": ["pgd"],
    }
    a = evaluate(plain, (X, Y), tmp_path / "a", **settings)
    b = evaluate(Normalised(), (X, Y), tmp_path / "b", mean=[0.5], std=[0.25], **settings)
    ours, theirs = (one.summary["views"]["robustness"]["norms"][0]["robust_accuracy"] for one in (a, b))
    assert ours == theirs


def test_requirements_that_nothing_will_measure_are_refused(tmp_path: Path) -> None:
    for text, views in (
        ("worst_group=0.5", None),
        ("auroc=0.9", ["classification"]),
        ("f1=0.5", ["robustness"]),
    ):
        with pytest.raises(ValueError, match=r"^evaluate: fail_under"):
            evaluate(MODEL, (X, Y), tmp_path / "run", views=views, fail_under=[text])
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_on_a_gpu_batches_and_interruptions_do_not_matter_either(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, (x, y) = zoo.digits_cnn(), (part[:60] for part in zoo.test_digits())
    settings: dict[str, Any] = {"norms": ["linf", "l2"], "steps": 5, "restarts": 2, "fixed_batch": 16}
    model = copy.deepcopy(model).cuda()

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("pgd") and done:
            raise KeyboardInterrupt

    evaluate(model, (x, y), tmp_path / "one", **settings)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, (x, y), tmp_path / "two", batch_size=7, progress=stop, **settings)
    evaluate(model, (x, y), tmp_path / "two", batch_size=50, **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert verify(tmp_path / "one", model, (x, y)).ok
