"""Are the data still what the network was made for? Drift, on handwritten digits.

    python examples/drift.py

Trains a small network on 797 of scikit-learn's 8 x 8 digits and makes a reference from 500 others. Then 500
digits that neither has seen arrive 100 at a time: as they are, under noise, blur, other light and contrast,
with some of the digits missing, and turned by 90 degrees. Takes about ten seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from brittle.demo import trained_network
from brittle.evaluation.drift import Drift, Reference
from brittle.evaluation.shifts import apply_shift, kinds_for
from brittle.sources import Digits, digits
from torch import Tensor

KINDS = ("gaussian", "shot", "blur", "brightness", "contrast")


def arrivals(new: Digits) -> dict[str, Tensor]:
    """What could come in production: the new digits, and what may have happened to them."""
    scales = kinds_for(new.x.shape)
    shifted = {
        f"{kind}, severity {severity}": apply_shift(kind, scales[kind][severity - 1], new.x, new.ids)
        for kind in KINDS
        for severity in (1, 3, 5)
    }
    return {
        "as they are": new.x,
        **shifted,
        "no 8 and no 9": new.x[new.y < 8],
        "turned by 90 degrees": new.x.rot90(1, (2, 3)),
    }


def experiment(folder: Path, seed: int = 0) -> dict[str, Drift]:
    """What the reference, written to ``folder`` and read again, says about each of the arrivals."""
    rest, new = digits()
    rows = torch.randperm(len(rest.x), generator=torch.Generator().manual_seed(seed))
    model = trained_network(rest.take(rows[500:]), seed, lambda stage, done, total: None)
    Reference.of(model, rest.x[rows[:500]]).save(folder / "reference.safetensors")
    reference = Reference.load(folder / "reference.safetensors")
    return {name: reference.score(model, x, batch_size=100) for name, x in arrivals(new).items()}


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description="Drift of handwritten digits.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    with tempfile.TemporaryDirectory() as folder:
        found = experiment(Path(folder), arguments.seed)
    print(f"{'what arrives':<24}{'score':>7}{'batches with an alarm':>23}{'out of domain':>15}  verdict")
    for name, drift in found.items():
        alarms = f"{sum(batch.drifted for batch in drift.batches)} of {len(drift.batches)}"
        outside = drift.whole.of("out-of-domain share").value
        verdict = "drift" if drift.drifted else "no drift"
        print(f"{name:<24}{drift.score:>7.1f}{alarms:>23}{outside:>15.1%}  {verdict}")
    for name in ("as they are", "blur, severity 1"):
        print(f"\n{name}\n{found[name].table()}")


if __name__ == "__main__":
    main()
