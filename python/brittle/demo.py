"""A network that reads handwritten digits, and how little it takes to break it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from sklearn import __version__ as sklearn_version
from torch import Tensor, nn

from brittle import environment, report
from brittle._files import PAGE, refuse_foreign
from brittle.attacks import fgsm, pgd
from brittle.evaluation import Curve, accuracy_vs_epsilon
from brittle.sources import Digits, digits

EPSILONS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)

# An example counts if the network was this sure of the right answer, and then this sure of a wrong one.
CONFIDENTLY_RIGHT, CONFIDENTLY_WRONG = 0.95, 0.90

_EPOCHS = 40
_TRAINING_BATCH = 64
_ATTACK_BATCH = 125
_EXAMPLES = 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """The figures of one demonstration, and where its report is."""

    fgsm: Curve
    pgd: Curve
    examples: tuple[report.ExampleGroup, ...]
    report: Path

    @property
    def clean_accuracy(self) -> float:
        """The share of test digits that the network reads correctly when nobody interferes."""
        return self.fgsm.accuracy[0]


def run(
    out: Path,
    seed: int = 0,
    epsilons: Sequence[float] = EPSILONS,
    progress: Progress | None = None,
) -> Result:
    """Train, attack and write ``out/report.html``.

    Args:
        out: an existing folder.
        seed: of the weights, the training order and PGD's random starts; torch's global random state is
            given back as it was.
        epsilons: radii of the Linf ball, in any order; 0 is always added.
        progress: called with the stage, how much of it is done, and its total.

    Raises:
        ValueError: ``out`` has a ``report.html`` that is not brittle's.
    """
    path = out / "report.html"
    refuse_foreign("demo", path, PAGE)
    tick = progress or (lambda stage, done, total: None)
    epsilons = sorted({0.0, *epsilons})
    with _one_thread():
        train, test = digits()
        model = trained_network(train, seed, tick)
        curves = [_curve(model, test, epsilons, attack, seed, tick) for attack in ("fgsm", "pgd")]
        groups = examples(model, test, epsilons, seed, tick)
    path.write_text(_page(train, test, curves, groups, seed), encoding="utf-8")
    return Result(curves[0], curves[1], groups, path)


def trained_network(train: Digits, seed: int, progress: Progress) -> nn.Module:
    """A small convolutional network, trained without any thought of robustness."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        optimizer = torch.optim.Adam(model.parameters())
        steps = math.ceil(len(train.x) / _TRAINING_BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs=_EPOCHS, steps_per_epoch=steps)
        for epoch in range(_EPOCHS):
            for rows in torch.split(torch.randperm(len(train.x)), _TRAINING_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(train.x[rows]), train.y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            progress("training", epoch + 1, _EPOCHS)
    return model.eval()


def examples(
    model: nn.Module, test: Digits, epsilons: Sequence[float], seed: int, progress: Progress
) -> tuple[report.ExampleGroup, ...]:
    """For FGSM and for PGD, the confidently right digits that became the most confidently wrong."""
    confidence, predicted = _answers(model, test.x)
    sure = test.take(((predicted == test.y) & (confidence >= CONFIDENTLY_RIGHT)).nonzero().squeeze(1))

    def by_fgsm(eps: float) -> Tensor:
        return fgsm(model, sure.x, sure.y, eps)

    def by_pgd(eps: float) -> Tensor:
        return pgd(model, sure.x, sure.y, eps, seed=seed, sample_ids=sure.ids, early_stop=False)

    attacks = {"FGSM": by_fgsm, "PGD": by_pgd}
    groups = []
    for name, attack in attacks.items():
        groups.append(_group(name, attack, model, sure, epsilons))
        progress("examples", len(groups), len(attacks))
    return tuple(groups)


def _curve(
    model: nn.Module, test: Digits, epsilons: Sequence[float], attack: str, seed: int, progress: Progress
) -> Curve:
    def tick(done: int, _: int | None) -> None:
        progress(attack.upper(), done, len(test.x))

    batches = list(zip(*(torch.split(part, _ATTACK_BATCH) for part in test), strict=True))
    return accuracy_vs_epsilon(model, batches, epsilons, attack, seed=seed, progress=tick)


def _group(
    name: str, attack: Callable[[float], Tensor], model: nn.Module, sure: Digits, epsilons: Sequence[float]
) -> report.ExampleGroup:
    for eps in (eps for eps in epsilons if eps > 0):
        adversarial = attack(eps)
        confidence, predicted = _answers(model, adversarial)
        in_wrong = confidence.where(predicted != sure.y, 0)
        if not (in_wrong >= CONFIDENTLY_WRONG).any():
            continue
        before, after = _answers(model, sure.x), (confidence, predicted)
        highest = in_wrong.argsort(descending=True, stable=True)[:_EXAMPLES]
        shown = tuple(
            report.Example(
                name=f"digit {sure.ids[row]}",
                label=str(sure.y[row].item()),
                clean=sure.x[row, 0].numpy(),
                adversarial=adversarial[row, 0].numpy(),
                before=_answer(before, row),
                after=_answer(after, row),
            )
            for row in highest[in_wrong[highest] > 0].tolist()
        )
        return report.ExampleGroup(name, eps, shown)
    return report.ExampleGroup(name, max(epsilons), ())


def _answer(answers: tuple[Tensor, Tensor], row: int) -> report.Answer:
    confidence, predicted = answers
    return report.Answer(str(predicted[row].item()), confidence[row].item())


def _answers(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The highest softmax probability and its class, of each sample."""
    with torch.no_grad():
        confidence, predicted = model(x).softmax(1).max(1)
    return confidence, predicted


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network gains little from a second thread, and the order of its sums stays the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _page(
    train: Digits,
    test: Digits,
    curves: Sequence[Curve],
    groups: Sequence[report.ExampleGroup],
    seed: int,
) -> str:
    summary = (
        f"A small convolutional network learned to read handwritten digits from {len(train.x)} images of "
        "8 by 8 pixels with values in [0, 1]. Then every pixel of "
        f"{len(test.x)} other digits may change by at most epsilon, in the direction that raises the "
        "network's loss. FGSM takes one step of that length along the sign of the gradient; PGD takes 40 "
        "smaller ones from a random start. To a reader it is still the same digit. To the network it is not."
    )
    rule = (
        f"Chosen by rule: of the digits read correctly with a confidence of at least {CONFIDENTLY_RIGHT:.0%},"
        f" the {_EXAMPLES} that end with the highest confidence in a wrong class, at the smallest epsilon of"
        f" the sweep at which one of them reaches {CONFIDENTLY_WRONG:.0%}."
    ).replace("%", " %")
    return report.robustness_page(
        title="Handwritten digits under attack",
        summary=summary,
        key_figures=_key_figures(curves, groups),
        curves=curves,
        groups=groups,
        rule=rule,
        provenance=_provenance(train, test, curves[0].epsilons, seed),
    )


def _key_figures(curves: Sequence[Curve], groups: Sequence[report.ExampleGroup]) -> list[report.KeyFigure]:
    """Clean accuracy, accuracy where the last curve falls to a half, and the most confident error."""
    clean = f"on {curves[0].samples} unseen digits"
    figures = [report.KeyFigure(report.percent(curves[0].accuracy[0]), "clean accuracy", clean)]
    halved = [k for k, accuracy in enumerate(curves[-1].accuracy) if accuracy <= 0.5] or [-1]
    for curve in curves:
        note = f"every pixel within {curve.epsilons[halved[0]]:g} of the original"
        accuracy = report.percent(curve.accuracy[halved[0]])
        figures.append(report.KeyFigure(accuracy, f"accuracy under {curve.attack.upper()}", note))
    shown = [(group, example) for group in groups for example in group.examples]
    if shown:
        group, example = max(shown, key=lambda pair: pair[1].after.confidence)
        note = f"{example.label} read as {example.after.label}: {group.attack}, epsilon {group.eps:g}"
        figures.append(report.KeyFigure(report.percent(example.after.confidence), "confidently wrong", note))
    return figures


def _provenance(train: Digits, test: Digits, epsilons: tuple[float, ...], seed: int) -> dict[str, str]:
    facts = environment.facts()
    command = f"python -m brittle demo --seed {seed}"
    if epsilons != EPSILONS:
        command += "".join(f" --eps {eps!r}" for eps in epsilons if eps > 0)
    return {
        "Command": command,
        "Seed": f"{seed}, random stream {facts['random_stream']}",
        "Data": f"scikit-learn's digits: {len(train.x)} to train, {len(test.x)} to test; the split is fixed",
        "Versions": ", ".join(
            f"{name} {version}"
            for name, version in {
                "brittle": facts["brittle"],
                "torch": facts["torch"],
                "NumPy": facts["numpy"],
                "scikit-learn": sklearn_version,
                "Python": facts["python"],
            }.items()
        ),
        "Processor": f"{facts['cpu']}, {facts['platform']}, one thread",
    }
