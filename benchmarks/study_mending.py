"""Does `brittle.repair.mend` mend, and more than plain further training would?

    python benchmarks/study_mending.py FOLDER [--seeds FROM TO] [--epochs 10]

Mends every network of ``tests/flawed.py`` whose seed was not used to set the diagnosis' thresholds: repairs
are chosen on one half of the digits that the network never saw, and all numbers are of the other half. Beside
it, the same network trained on as a whole for as many epochs as all repairs that were tried took together.
What was measured is kept in FOLDER, a line of JSON for each network; the table is printed as Markdown.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from brittle.evaluation import accuracy_vs_epsilon
from brittle.repair import mend, train
from torch import nn

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from flawed import FAMILIES, Pair, Planted, plant

EPS = 0.05

Row = dict[str, Any]


def look(model: nn.Module, data: Pair) -> dict[str, float]:
    """Accuracy, log-loss and accuracy under PGD."""
    model.eval()
    with torch.no_grad():
        logits = model(data[0])
    return {
        "accuracy": float((logits.argmax(1) == data[1]).double().mean()),
        "log_loss": float(nn.functional.cross_entropy(logits, data[1])),
        "robust_accuracy": accuracy_vs_epsilon(model, data, [EPS], "pgd").accuracy[0],
    }


def measured(planted: Planted, epochs: int) -> Row:
    """What mending one network did, and what plain further training did."""
    x, y = planted.validation
    choosing, test = (x[::2], y[::2]), (x[1::2], y[1::2])
    mending = mend(
        planted.model, planted.train, choosing, planted.untrained, test=test, epochs=epochs, eps=EPS
    )
    tried = [step for step in mending.steps if step.outcome != "not needed"]
    spent = sum(epochs * step.suggestion.arguments.get("longer", 1) for step in tried)
    onward = copy.deepcopy(planted.model)
    if spent:
        train(onward, planted.train, epochs=spent)
    return {
        "before": look(copy.deepcopy(planted.model), test),
        "mended": look(mending.model, test),
        "trained on": look(onward, test),
        "flaws": [len(mending.before.flaws), len(mending.after.flaws)],
        "named": any(f.layer in planted.layers and f.kind in planted.kinds for f in mending.before.flaws),
        "still named": any(
            f.layer in planted.layers and f.kind in planted.kinds for f in mending.after.flaws
        ),
        "outcomes": [step.outcome for step in mending.steps],
        "steps": [f"{step.suggestion.title()}: {step.outcome}. {step.reason}" for step in mending.steps],
    }


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Mean and standard deviation."""
    if len(values) < 2:
        return "".join(f"{scale * value:.1f}" for value in values)
    return f"{scale * statistics.mean(values):.1f} ± {scale * statistics.stdev(values):.1f}"


def table(rows: dict[str, list[Row]]) -> str:
    """A line for each flaw, over families and seeds."""
    head = ["flaw", "networks", "named", "kept / tried", "flaws", "accuracy (%): before"]
    head += ["mended", "trained on", "under PGD (%): before", "mended", "trained on"]
    lines = [head, ["---"] * len(head)]
    for flaw, found in rows.items():
        outcomes = [outcome for row in found for outcome in row["outcomes"]]
        tried = sum(outcome != "not needed" for outcome in outcomes)
        flaws = [statistics.mean(row["flaws"][k] for row in found) for k in (0, 1)]
        line = [flaw, str(len(found)), str(sum(row["named"] for row in found))]
        line += [f"{outcomes.count('kept')} / {tried}", f"{flaws[0]:.1f} -> {flaws[1]:.1f}"]
        for measure in ("accuracy", "robust_accuracy"):
            line += [
                spread([row[when][measure] for row in found]) for when in ("before", "mended", "trained on")
            ]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs=2, default=(5, 10), metavar=("FROM", "TO"))
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"mending-{arguments.epochs}.jsonl"
    known: dict[tuple[str, str, int], Row] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            flaw, family, seed, row = json.loads(line)
            known[flaw, family, seed] = row
    rows: dict[str, list[Row]] = {}
    for seed in range(*arguments.seeds):
        for flaw, families in FAMILIES.items():
            for family in families:
                if (flaw, family, seed) not in known:
                    known[flaw, family, seed] = measured(plant(flaw, seed, family), arguments.epochs)
                    with path.open("a") as file:
                        file.write(json.dumps([flaw, family, seed, known[flaw, family, seed]]) + "\n")
                rows.setdefault(flaw, []).append(known[flaw, family, seed])
    print(table(rows))


if __name__ == "__main__":
    main()
