"""Is the test set in the training set? Six test digits were copied there, somewhat brighter.

python examples/views/duplicates.py [FOLDER]
"""

from pathlib import Path

import torch
from brittle.evaluation import Report, evaluate
from digits_model import TEST, TRAIN, network, run

COPIED = (5, 60, 125, 250, 300, 444)


def look(out: Path) -> Report:
    """Evaluate, and print the pairs that are more alike than chance allows."""
    copies = (TEST.x[list(COPIED)] * 0.9 + 0.1).clamp(0, 1)
    train = torch.cat([TRAIN.x, copies]), torch.cat([TRAIN.y, TEST.y[list(COPIED)]])
    data = {"digits": (TEST.x, TEST.y), "train": train}
    report = evaluate(network(), data, out, views=["duplicates"])

    found = report.summary["views"]["duplicates"]
    for pair in found["pairs"]:
        mark = "planted" if pair["test_id"] in COPIED else ""
        where = f"{pair['test']} {pair['test_id']} is {pair['train']} {pair['train_id']}"
        print(f"{where:<28} cosine {pair['cosine']:.6f}  p {pair['p']:.1e}  {mark}")
    (search,) = found["searches"]
    print(
        f"{search['suspects']} of {search['samples']} test digits have a near-duplicate in the training set"
    )
    return report


if __name__ == "__main__":
    run(look, __doc__)
