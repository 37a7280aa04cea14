"""What a whole evaluation costs beside the model's passes: keeping everything, one batch size, the report.

A note beside a ratio tells the evaluations of both sides, in forwards + backwards of the model per sample.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import brittle
import pytest
import torch
import zoo
from brittle.attacks import PGD
from brittle.evaluation.run.iterated import Iterated
from brittle.evaluation.run.store import RunStore
from brittle.evaluation.run.work import Work
from brittle.sources import as_source
from conftest import Versus
from torch import Tensor, nn

EPS, STEPS, RESTARTS = 0.1, 40, 2
BATCH = 256
Passes = tuple[int, int]  # forwards, backwards


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """One that is not there yet, and another each time."""
    return (tmp_path / str(number) for number in itertools.count())


def fixed_batch(device: torch.device) -> int:
    return 256 if device.type == "cuda" else 32


def attack(target: brittle.Target, x: Tensor, y: Tensor) -> Callable[[], brittle.AttackResult]:
    rule = PGD(EPS, steps=STEPS, restarts=RESTARTS)
    return lambda: brittle.attack(target, rule, (x, y), slots=BATCH)


def per_sample(passes: Passes, samples: int) -> str:
    return " + ".join(f"{count / samples:.1f}" for count in passes)


def spent(result: brittle.AttackResult) -> Passes:
    return int(result.forwards.sum()), int(result.backwards.sum())


def spent_on(store: RunStore) -> Passes:
    """By the attacks whose rows a store holds."""
    ((forwards, backwards),) = store.rows("SELECT sum(forwards), sum(backwards) FROM attacks")
    return forwards, backwards


def bench_keeping_everything(versus: Versus, device: torch.device, folders: Iterator[Path]) -> None:
    """PGD with its verdicts and points in the run's folder, against PGD with its result in memory."""
    model = zoo.digits_cnn().to(device)
    x, y = zoo.test_digits()
    target = brittle.Target(model, fixed_batch=fixed_batch(device))
    stage = Iterated("linf", (EPS,), 0, STEPS, RESTARTS)
    passes = []

    def stored() -> None:
        out = next(folders)
        out.mkdir()
        store = RunStore(out, create=True)
        with target:
            work = Work(
                store, target, as_source((x, y)), "digits", range(len(x)), BATCH, False, lambda _: None
            )
            stage.run(work)
        passes.append(spent_on(store))
        store.close()

    in_memory = attack(target, x.to(device), y.to(device))
    versus(
        "PGD-40 into the store",
        stored,
        {"brittle.attack": in_memory},
        rounds=9,
        warm_up=1,
        notes={"brittle.attack": f"theirs {per_sample(spent(in_memory()), len(x))}"},
    )
    assert passes[0] == spent(in_memory())


@pytest.mark.parametrize("name", ["digits_cnn", "small_resnet"])
def bench_fixed_batch(versus: Versus, device: torch.device, name: str) -> None:
    """The model always called with so many samples, against as many as there are."""
    model = zoo.MODELS[name]().to(device)
    x, y = (part.to(device) for part in zoo.test_digits())
    fixed = attack(brittle.Target(model, fixed_batch=fixed_batch(device)), x, y)
    free = attack(brittle.Target(model), x, y)
    versus(
        f"PGD-40, {fixed_batch(device)} samples a call, {name.replace('_', ' ')}",
        fixed,
        {"as many as there are": free},
        rounds=9,
        warm_up=1,
        notes={
            "as many as there are": f"{per_sample(spent(fixed()), len(x))}; "
            f"theirs {per_sample(spent(free()), len(x))}"
        },
    )


def bench_whole_evaluation(versus: Versus, device: torch.device, folders: Iterator[Path]) -> None:
    """500 digits, every view that they allow, report and all, against the bare passes that it took."""
    model = zoo.digits_cnn().to(device)
    x, y = zoo.test_digits()
    x, y = x.to(device), y.to(device)
    samples, size = len(x), fixed_batch(device)

    def ours() -> Passes:
        report = brittle.evaluation.evaluate(model, (x, y), next(folders))
        store = RunStore(report.out)
        forwards, backwards = spent_on(store)
        count = "SELECT count(*) FROM"
        for table in ("outputs", "answers WHERE kind != 'fgsm'"):
            forwards += store.rows(f"{count} {table}")[0][0]
        for (blob,) in store.rows("SELECT losses FROM landscapes"):
            forwards, backwards = forwards + 1 + len(blob) // 4, backwards + 1
        store.close()
        return forwards, backwards

    forwards, backwards = ours()
    batch = x[:size], y[:size]

    def bare() -> None:
        for _ in range(-(-backwards // size)):
            forward_and_gradient(model, *batch)
        with torch.no_grad():
            for _ in range(-(-(forwards - backwards) // size)):
                model(batch[0])

    versus(
        "whole evaluation of 500 digits",
        ours,
        {"its bare passes": bare},
        rounds=3,
        warm_up=0,
        notes={"its bare passes": per_sample((forwards, backwards), samples)},
    )


def forward_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
