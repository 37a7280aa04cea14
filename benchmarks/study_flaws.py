"""Does the diagnosis name what was planted, and does it pay to mend what it names?

    pip install --no-deps weightwatcher powerlaw matplotlib-inline traitlets
    python benchmarks/study_flaws.py FOLDER [--only METHOD ...] [--seeds FROM TO]

Looks at every network of ``tests/flawed.py`` with ``brittle.diagnosis.diagnose``, with WeightWatcher and with
three baselines of one number per layer, then retrains named layers and others. What was measured is kept in
FOLDER, a line of JSON for each network, and not measured again; the tables are printed as Markdown.

Thresholds come from the first half of the seeds, those of the baselines by search: what names most flawed
layers at no more than 0.1 alarms per healthy network. The second half only shows what they are worth.
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# At the end of the path: both folders have a conftest.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import flawed
from flawed import Planted, parametric, plant

SEEDS = 10
ALARMS = 0.1  # per healthy network

#: How layers are repaired, and what each repair may cost.
RESETS = ("none", "unit-variance")
REPAIR_EPOCHS = 5

Row = dict[str, Any]
Key = tuple[str, str, int]
Named = list[tuple[str, str | None]]  # layers, and what is said of each; None where a method has one verdict


# ---------------------------------------------------------------- what is measured of each network


def truth(p: Planted) -> Row:
    return {
        "variant": p.variant,
        "layers": p.layers,
        "kinds": sorted(p.kinds),
        "healthy": p.healthy,
        "implied": {layer: sorted(kinds) for layer, kinds in p.implied.items()},
        "accuracy": look(p.model, p.train)[0],
        "validation_accuracy": look(p.model, p.validation)[0],
    }


def brittle(p: Planted) -> Row:
    from brittle.diagnosis import diagnose

    flaws = diagnose(p.model, p.train, p.validation, p.untrained).flaws
    return {"named": [(flaw.layer, flaw.kind, flaw.severity) for flaw in flaws]}


def brittle_alone(p: Planted) -> Row:
    """Without the untrained copy, which is often not at hand."""
    from brittle.diagnosis import diagnose

    flaws = diagnose(p.model, p.train, p.validation).flaws
    return {"named": [(flaw.layer, flaw.kind, flaw.severity) for flaw in flaws]}


def trivial(p: Planted) -> Row:
    """Stable rank as a share of the rank that it could be; z-score of the log of the spectral norm among the
    network's layers; share of units that give one value for all training samples.
    """
    weights = {name: p.model.get_submodule(name).weight.detach().flatten(1) for name in parametric(p.model)}
    spectral = {name: torch.linalg.matrix_norm(weight, 2).item() for name, weight in weights.items()}
    logs = torch.tensor([math.log(norm) for norm in spectral.values()])
    z = (logs - logs.mean()) / logs.std()
    return {
        "stable rank": {
            name: (weight.norm().item() / spectral[name]) ** 2 / min(weight.shape)
            for name, weight in weights.items()
        },
        "spectral norm": dict(zip(spectral, z.tolist(), strict=True)),
        "dead units": dead_units(p),
    }


def dead_units(p: Planted) -> dict[str, float]:
    """After the ReLU, tanh or sigmoid that follows each layer."""
    found = {}

    def watch(name: str, function: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            units = function(output).transpose(0, 1).flatten(1)
            found[name] = (units.amax(1) - units.amin(1) < 1e-6).float().mean().item()

        return hook

    handles = []
    for name in parametric(p.model):
        place, function = activated(p.model, name)
        handles.append(p.model.get_submodule(place).register_forward_hook(watch(name, function)))
    with torch.no_grad():
        p.model(p.train[0])
    for handle in handles:
        handle.remove()
    return found


def activated(model: nn.Module, name: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The module, and what is still to be done to its output, that give a layer's activation."""
    names = dict(model.named_modules())
    if name.endswith(".conv1"):  # of a residual block, whose ReLUs are functions
        return name.replace("conv1", "norm1"), torch.relu
    if name.endswith(".conv2"):
        return name.removesuffix(".conv2"), torch.relu
    place = {"stem": "stem_act"}.get(name, f"act_{name}")
    return place if place in names else name, lambda output: output


def weightwatcher(p: Planted) -> Row:
    """Alpha of each layer, and the verdict on it. A layer with fewer than 8 eigenvalues has neither."""
    rows = list(details(p.model))
    return {
        "alpha": {row.longname: row.alpha for row in rows},
        "verdict": {row.longname: row.warning for row in rows if row.warning},
    }


def traps(p: Planted) -> Row:
    """The number of correlation traps, which takes a hundred times as long."""
    return {"traps": {row.longname: int(row.num_traps) for row in details(p.model, randomize=True)}}


def details(model: nn.Module, **options: Any) -> Iterator[Any]:
    import weightwatcher as peer

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    np.random.seed(0)  # noqa: NPY002  # its randomised matrices come from the global state
    with contextlib.redirect_stdout(io.StringIO()):
        return peer.WeightWatcher(model=model).analyze(**options).itertuples()


def repairs(p: Planted) -> Row:
    """Validation accuracy and loss before, with the flawed layers retrained, and with as many others."""
    from brittle.repair import retrain

    names = parametric(p.model)
    stacks = [names[i : i + len(p.layers)] for i in range(len(names) - len(p.layers) + 1)]
    others = [stack for stack in stacks if not {*stack} & {*p.layers}]
    result: Row = {"before": look(p.model, p.validation)}
    for reset in RESETS:
        after = []
        for stack in (p.layers, *others):
            model = copy.deepcopy(p.model)
            retrain(model, stack, p.train, reset=reset, epochs=REPAIR_EPOCHS, seed=p.seed)
            after.append(look(model, p.validation))
        result[reset] = {"flawed": after[0], "others": after[1:]}
    return result


def look(model: nn.Module, data: flawed.Pair) -> tuple[float, float]:
    """Accuracy and loss."""
    with torch.no_grad():
        logits = model(data[0])
        accuracy = (logits.argmax(1) == data[1]).float().mean().item()
        return accuracy, nn.functional.cross_entropy(logits, data[1]).item()


METHODS: dict[str, Callable[[Planted], Row]] = {
    "truth": truth,
    "brittle": brittle,
    "brittle-alone": brittle_alone,
    "trivial": trivial,
    "weightwatcher": weightwatcher,
    "traps": traps,
    "repairs": repairs,
}


def measured(folder: Path, method: str, seeds: range) -> dict[Key, Row]:
    """All rows of a method that are in the folder, and before that, those of some seeds added to them."""
    path = folder / f"{method}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = {(line.pop("flaw"), line.pop("family"), line.pop("seed")): line for line in lines}
    with path.open("a") as file:
        for flaw, seed in itertools.product(flawed.FAMILIES, seeds):
            for family in flawed.FAMILIES[flaw]:
                key = flaw, family, seed
                if key in rows or (method == "repairs" and flaw == "healthy"):
                    continue
                row = json.dumps(METHODS[method](plant(flaw, seed, family)))
                rows[key] = json.loads(row)
                place = json.dumps({"flaw": flaw, "family": family, "seed": seed})
                file.write(f"{place[:-1]}, {row[1:]}\n")
                file.flush()
    return rows


# ---------------------------------------------------------------- what the methods say


def accused(method: str, rows: dict[Key, Row], limits: tuple[float, float]) -> dict[Key, Named]:
    if method in ("brittle", "brittle-alone"):
        return {key: [(layer, kind) for layer, kind, _ in row["named"]] for key, row in rows.items()}
    if method == "verdicts":
        return {key: [(name, None) for name in row["verdict"]] for key, row in rows.items()}
    if method == "traps":
        return {key: [(name, None) for name, n in row["traps"].items() if n > 0] for key, row in rows.items()}
    low, high = limits
    return {
        key: [(name, None) for name, score in row[method].items() if score < low or score > high]
        for key, row in rows.items()
    }


def right(true: Row, named: Named) -> bool:
    return any(layer in true["layers"] and (kind is None or kind in true["kinds"]) for layer, kind in named)


def wrong(true: Row, named: Named) -> int:
    """Accusations of layers that nothing is wrong with, or of something that is not."""
    return sum(
        layer in true["healthy"]
        or (layer in true["implied"] and kind is not None and kind not in true["implied"][layer])
        for layer, kind in named
    )


def calibrated(method: str, truths: dict[Key, Row], rows: dict[Key, Row]) -> tuple[float, float]:
    """The interval outside which a score accuses: most flawed networks found, few enough alarms."""
    scores = [score for key in rows if key[0] == "healthy" for score in rows[key][method].values()]
    healthy = sorted(filter(math.isfinite, scores))
    networks = sum(key[0] == "healthy" for key in rows)
    spare = int(ALARMS * networks) + 1
    lows = [-math.inf, *healthy[:spare]]
    highs = [math.inf, *healthy[-spare:]]

    def worth(limits: tuple[float, float]) -> tuple[bool, float, int]:
        named = accused(method, rows, limits)
        alarms = sum(len(named[key]) for key in rows if key[0] == "healthy")
        found = sum(right(truths[key], named[key]) for key in rows if key[0] != "healthy")
        return alarms <= ALARMS * networks, found, -alarms

    return max(itertools.product(lows, highs), key=worth)


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Method:
    title: str
    file: str
    score: str


METHODS_SHOWN = [
    Method("brittle", "brittle", "brittle"),
    Method("brittle, no untrained copy", "brittle-alone", "brittle-alone"),
    Method("WeightWatcher's verdicts", "weightwatcher", "verdicts"),
    Method("WeightWatcher's alpha, limits searched", "weightwatcher", "alpha"),
    Method("WeightWatcher's correlation traps", "traps", "traps"),
    Method("stable rank", "trivial", "stable rank"),
    Method("spectral norm, z-score", "trivial", "spectral norm"),
    Method("dead units", "trivial", "dead units"),
]


def half(rows: dict[Key, Row], second: bool) -> dict[Key, Row]:
    return {key: row for key, row in rows.items() if (key[2] >= SEEDS // 2) == second}


def named_by(method: Method, truths: dict[Key, Row], rows: dict[Key, Row]) -> dict[Key, Named]:
    fixed = method.score in ("brittle", "brittle-alone", "verdicts", "traps")
    limits = (0.0, 0.0) if fixed else calibrated(method.score, truths, half(rows, second=False))
    if not fixed:
        print(f"{method.title}: accuses outside {limits[0]:.3g} .. {limits[1]:.3g}\n")
    return accused(method.score, rows, limits)


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)) + "\n"


def recall_table(truths: dict[Key, Row], named: dict[str, dict[Key, Named]]) -> str:
    flaws = [flaw for flaw in flawed.FAMILIES if flaw != "healthy"]
    lines = []
    for title, accusations in named.items():
        cells = [title]
        for flaw in flaws:
            parts = []
            for second in (False, True):
                chosen = [key for key in half(truths, second) if key[0] == flaw and key in accusations]
                parts.append(mean(right(truths[k], accusations[k]) for k in chosen))
            cells.append(" / ".join(parts))
        for ill in (False, True):
            parts = []
            for second in (False, True):
                chosen = [k for k in half(truths, second) if (k[0] != "healthy") == ill and k in accusations]
                parts.append(mean(wrong(truths[k], accusations[k]) for k in chosen))
            cells.append(" / ".join(parts))
        lines.append(cells)
    return table(["", *flaws, "alarms per healthy network", "per flawed network"], lines)


def family_table(truths: dict[Key, Row], accusations: dict[Key, Named]) -> str:
    """The second half of the seeds alone, by family."""
    shown = half(truths, second=True)
    lines = []
    for flaw, families in flawed.FAMILIES.items():
        cells = [flaw]
        for family in ("cnn", "mlp", "resnet"):
            chosen = [key for key in shown if key[:2] == (flaw, family) and key in accusations]
            found = sum(right(shown[k], accusations[k]) for k in chosen)
            alarms = sum(wrong(shown[k], accusations[k]) for k in chosen)
            part = f"{found} of {len(chosen)}, " if flaw != "healthy" else ""
            cells.append(f"{part}{alarms} wrong" if family in families else "")
        lines.append(cells)
    return table(["", "cnn", "mlp", "resnet"], lines)


def misses(truths: dict[Key, Row], accusations: dict[Key, Named]) -> str:
    lines = []
    for key, true in truths.items():
        if key not in accusations:
            continue
        missed = key[0] != "healthy" and not right(true, accusations[key])
        if missed or wrong(true, accusations[key]):
            said = ", ".join(f"{layer}: {kind}" for layer, kind in accusations[key]) or "nothing"
            place = f"{' '.join(map(str, key))} ({', '.join(true['layers'])})"
            lines.append(f"{place}: {'MISSED ' if missed else ''}{said}")
    return "\n".join(lines)


def repair_table(rows: dict[Key, Row], reset: str) -> str:
    lines = []
    for flaw in flawed.FAMILIES:
        mine = [row for key, row in rows.items() if key[0] == flaw]
        if mine:
            others = [(row[reset]["flawed"], other) for row in mine for other in row[reset]["others"]]
            columns = ([row["before"] for row in mine], [row[reset]["flawed"] for row in mine])
            cells = [spread(column) for column in (*columns, [other for _, other in others])]
            ahead = mean(flawed_one[1] < other[1] for flawed_one, other in others)
            lines.append([flaw, str(len(mine)), *cells, ahead])
    return table(["", "networks", "before", "flawed layer", "another layer", "is better than"], lines)


def mean(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.fmean(values):.2f}" if values else "-"


def spread(results: list[list[float]]) -> str:
    """Accuracy in percent with its spread, and the loss."""
    if not results:
        return "-"
    accuracy = [100 * result[0] for result in results]
    loss = statistics.fmean(result[1] for result in results)
    return f"{statistics.fmean(accuracy):.1f} ± {statistics.stdev(accuracy):.1f} ({loss:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, SEEDS), help="of what is to be measured")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows = {method: measured(asked.folder, method, range(*asked.seeds)) for method in asked.only}
    if "truth" not in rows:
        return
    truths = rows["truth"]
    named = {m.title: named_by(m, truths, rows[m.file]) for m in METHODS_SHOWN if m.file in rows}
    print(recall_table(truths, named))
    if "brittle" in named:
        print(family_table(truths, named["brittle"]))
        print(misses(truths, named["brittle"]), "\n")
    for reset in RESETS if "repairs" in rows else ():
        print(f"reset={reset!r}\n")
        print(repair_table(rows["repairs"], reset))


if __name__ == "__main__":
    main()
