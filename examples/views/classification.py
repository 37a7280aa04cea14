"""Which classes does a model mistake, and for what? A network that has seen but a few eights.

python examples/views/classification.py [FOLDER]
"""

from pathlib import Path

import torch
from brittle.evaluation import Report, evaluate
from digits_model import TEST, TRAIN, run, trained


def look(out: Path) -> Report:
    """Evaluate, and print accuracy, the class that is missed most, and what it is taken for."""
    others, eights = (TRAIN.y != 8).nonzero().flatten(), (TRAIN.y == 8).nonzero().flatten()
    model = trained(TRAIN.take(torch.cat([others[:300], eights[:4]])))
    report = evaluate(model, {"digits": (TEST.x, TEST.y)}, out, views=["classification"])

    (found,) = report.summary["views"]["classification"]["sets"]
    low, high = found["interval"]
    print(f"accuracy {found['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}), F1 {found['f1']:.3f}")
    print("class  samples  precision  recall")
    for row in found["per_class"]:
        print(f"{row['class']:>5}{row['support']:>9}{row['precision']:>11.3f}{row['recall']:>8.3f}")
    worst = min(found["per_class"], key=lambda row: row["recall"])
    answers = dict(enumerate(found["confusion"][int(worst["class"])]))
    del answers[int(worst["class"])]
    print(f"missed most: {worst['class']}, most often taken for {max(answers, key=answers.__getitem__)}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
