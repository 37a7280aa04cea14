"""Which samples does the model get most wrong? Mislabelled ones are found among them.

python examples/views/samples.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, network, run

WRONG = (3, 77, 140, 201, 333, 410)  # samples whose labels somebody got wrong


def look(out: Path) -> Report:
    """Evaluate, and print the samples of the highest losses and how many of the wrong labels are there."""
    y = TEST.y.clone()
    y[list(WRONG)] = (y[list(WRONG)] + 1) % 10
    report = evaluate(network(), (TEST.x, y), out, views=["samples"])

    items = report.summary["views"]["samples"]["items"]
    for item in items[:10]:
        mark = "mislabelled" if item["id"] in WRONG else ""
        said = f"labelled {item['label']}, taken for {item['prediction']} at {item['confidence']:.3f}"
        print(f"{item['name']:<6} log-loss {item['log_loss']:>6.2f}  {said}  {mark}")
    found = len({item["id"] for item in items} & set(WRONG))
    print(f"{found} of {len(WRONG)} wrong labels are among the {len(items)} highest losses")
    return report


if __name__ == "__main__":
    run(look, __doc__)
