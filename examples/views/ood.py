"""Can samples of another kind be told from the model's answers? Digits in white on black, and mere noise.

python examples/views/ood.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, TRAIN, network, run


def look(out: Path) -> Report:
    """Evaluate, and print how well each score tells the other samples from the digits."""
    # Features are fitted on the set called "train". Noise is added to the comparison by itself.
    data = {"digits": (TEST.x, TEST.y), "train": (TRAIN.x, TRAIN.y), "inverted": (1 - TEST.x, TEST.y)}
    report = evaluate(network(), data, out, views=["ood"])

    print(f"{'against':<14} {'score':<17} AUROC  false alarms when 95 % are caught")
    for one in report.summary["views"]["ood"]["against"]:
        for score in one["scores"]:
            print(f"{one['set']:<14} {score['score']:<17} {score['auroc']:.3f}  {score['fpr95']:.3f}")
        best = max(one["scores"], key=lambda score: score["auroc"])
        print(f"best against {one['set']}: {best['score']}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
