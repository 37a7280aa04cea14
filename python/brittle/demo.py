"""A network that reads handwritten digits, and how little it takes to break it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn import __version__ as sklearn_version
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from brittle import environment, report
from brittle.attacks import fgsm, pgd
from brittle.evaluation import Curve, accuracy_vs_epsilon

EPSILONS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)

# An example counts if the network was this sure of the right answer, and then this sure of a wrong one.
CONFIDENTLY_RIGHT, CONFIDENTLY_WRONG = 0.95, 0.90

_TEST_SIZE = 500
_EPOCHS = 30
_BATCH = 125
_EXAMPLES = 4

Progress = Callable[[str, int, int], None]
Attack = Callable[[Tensor, Tensor, float, Tensor], Tensor]


class Digits(NamedTuple):
    """Images in [0, 1], their labels, and each one's place in scikit-learn's data set."""

    x: Tensor  # [N, 1, 8, 8]
    y: Tensor  # int64 [N]
    ids: Tensor  # int64 [N]

    def take(self, rows: Tensor) -> Digits:
        """The digits at ``rows``."""
        return Digits(self.x[rows], self.y[rows], self.ids[rows])


@dataclass(frozen=True)
class Result:
    """The figures of one demonstration, and where its report is."""

    clean_accuracy: float
    fgsm: Curve
    pgd: Curve
    examples: tuple[report.ExampleGroup, ...]
    report: Path


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
    """
    tick = progress or (lambda stage, done, total: None)
    epsilons = sorted({0.0, *epsilons})
    with _one_thread():
        train, test = digits()
        model = trained_network(train, seed, lambda done: tick("training", done, _EPOCHS))
        curves = [
            accuracy_vs_epsilon(
                model,
                list(zip(*(part.split(_BATCH) for part in test), strict=True)),
                epsilons,
                attack,
                seed=seed,
                progress=lambda done, _, name=attack.upper(): tick(name, done, len(test.x)),  # type: ignore[misc]
            )
            for attack in ("fgsm", "pgd")
        ]
        groups = examples(model, test, epsilons, seed)
    page = _page(train, test, curves, groups, seed)
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return Result(curves[0].accuracy[0], curves[0], curves[1], groups, path)


def digits() -> tuple[Digits, Digits]:
    """Training and test set: scikit-learn's 1797 digits, always split the same way, classes in proportion."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target, dtype=torch.int64)
    everything = Digits(images, labels, torch.arange(len(labels)))
    rows = train_test_split(
        np.arange(len(labels)), test_size=_TEST_SIZE, stratify=data.target, random_state=0
    )
    train, test = (everything.take(torch.from_numpy(part)) for part in rows)
    return train, test


def trained_network(train: Digits, seed: int, progress: Callable[[int], None]) -> nn.Module:
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
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for epoch in range(_EPOCHS):
            for rows in torch.randperm(len(train.x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(train.x[rows]), train.y[rows]).backward()
                optimizer.step()
            progress(epoch + 1)
    return model.eval()


def examples(
    model: nn.Module, test: Digits, epsilons: Sequence[float], seed: int
) -> tuple[report.ExampleGroup, ...]:
    """For FGSM and for PGD, the confidently right digits that became the most confidently wrong."""
    confidence, predicted = _answers(model, test.x)
    rows = ((predicted == test.y) & (confidence >= CONFIDENTLY_RIGHT)).nonzero().squeeze(1)
    sure = test.take(rows)

    def by_fgsm(x: Tensor, y: Tensor, eps: float, ids: Tensor) -> Tensor:
        return fgsm(model, x, y, eps)

    def by_pgd(x: Tensor, y: Tensor, eps: float, ids: Tensor) -> Tensor:
        return pgd(model, x, y, eps, seed=seed, sample_ids=ids, early_stop=False)

    return tuple(
        _group(name, attack, model, sure, epsilons)
        for name, attack in {"FGSM": by_fgsm, "PGD": by_pgd}.items()
    )


def _group(
    name: str, attack: Attack, model: nn.Module, sure: Digits, epsilons: Sequence[float]
) -> report.ExampleGroup:
    for eps in (eps for eps in epsilons if eps > 0):
        adversarial = attack(sure.x, sure.y, eps, sure.ids)
        confidence, predicted = _answers(model, adversarial)
        in_wrong = confidence.where(predicted != sure.y, 0)
        if (in_wrong >= CONFIDENTLY_WRONG).any():
            highest = in_wrong.argsort(descending=True, stable=True)[:_EXAMPLES]
            chosen = highest[in_wrong[highest] > 0]
            clean_confidence, clean_predicted = _answers(model, sure.x)
            shown = tuple(
                report.Example(
                    name=f"digit {sure.ids[row]}",
                    label=str(int(sure.y[row])),
                    clean=sure.x[row, 0].numpy(),
                    adversarial=adversarial[row, 0].numpy(),
                    before=report.Answer(str(int(clean_predicted[row])), clean_confidence[row].item()),
                    after=report.Answer(str(int(predicted[row])), confidence[row].item()),
                )
                for row in chosen.tolist()
            )
            return report.ExampleGroup(name, eps, shown)
    return report.ExampleGroup(name, max(epsilons), ())


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
    train: Digits, test: Digits, curves: list[Curve], groups: Sequence[report.ExampleGroup], seed: int
) -> str:
    by_fgsm, by_pgd = curves
    epsilons, clean = by_pgd.epsilons, by_pgd.accuracy[0]
    halved = next((k for k, accuracy in enumerate(by_pgd.accuracy) if accuracy <= 0.5), len(epsilons) - 1)
    figures = [
        report.KeyFigure(report.percent(clean), "clean accuracy", f"on {len(test.x)} digits never trained on"),
        *(
            report.KeyFigure(
                report.percent(curve.accuracy[halved]),
                f"accuracy under {curve.attack.upper()}",
                f"every pixel within {epsilons[halved]:g} of the original",
            )
            for curve in curves
        ),
    ]
    surest = max(
        ((example.after.confidence, group, example) for group in groups for example in group.examples),
        key=lambda entry: entry[0],
        default=None,
    )
    if surest:
        confidence, group, example = surest
        figures.append(
            report.KeyFigure(
                report.percent(confidence),
                "confidence in a wrong answer",
                f"a {example.label} read as a {example.after.label}, {group.attack} at epsilon {group.eps:g}",
            )
        )
    summary = (
        f"A small convolutional network learned to read handwritten digits of 8 × 8 pixels with values in [0, 1], "
        f"from {len(train.x)} of them. Then each pixel of {len(test.x)} others may move by at most epsilon, in whichever "
        "direction raises the network's loss. FGSM takes one step of that length along the sign of the gradient; "
        "PGD takes 40 smaller ones from a random start. People still read the same digit; the network does not."
    )
    command = f"python -m brittle demo --seed {seed}"
    if epsilons != EPSILONS:
        command += "".join(f" --eps {eps!r}" for eps in epsilons if eps > 0)
    facts = environment.facts()
    provenance = {
        "Command": command,
        "Seed": f"{seed}, random stream {facts['random_stream']}",
        "brittle": facts["brittle"],
        "torch": facts["torch"],
        "NumPy": facts["numpy"],
        "scikit-learn": sklearn_version,
        "Python": platform.python_version(),
        "Processor": f"{facts['cpu']}, one thread",
        "Data": f"scikit-learn's handwritten digits, {len(train.x)} for training and {len(test.x)} for testing",
    }
    return report.robustness_page(
        title="Handwritten digits under attack",
        summary=summary,
        key_figures=figures,
        curves=curves,
        groups=groups,
        rule=(
            f"Chosen by rule: of the digits read correctly with at least {CONFIDENTLY_RIGHT:.0%} confidence, "
            f"the {_EXAMPLES} that ended with the highest confidence in a wrong class, at the smallest epsilon "
            f"of the sweep at which one of them reaches {CONFIDENTLY_WRONG:.0%}."
        ),
        provenance=provenance,
    )
