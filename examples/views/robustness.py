"""What breaks the model, at what radius, and can the answer be trusted?

python examples/views/robustness.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print the accuracy left at each radius, and signs of gradient masking."""
    settings = {"norms": ["linf"], "epsilons": [0.02, 0.05, 0.1, 0.15, 0.2], "steps": 20, "restarts": 2}
    report = evaluate(network(), (TEST.x[:250], TEST.y[:250]), out, views=["robustness"], **settings)

    (found,) = report.summary["views"]["robustness"]["norms"]
    print("epsilon " + "".join(f"{eps:>7.3g}" for eps in found["epsilons"]))
    for curve in found["curves"]:
        print(f"{curve['attack']:<8}" + "".join(f"{accuracy:>7.3f}" for accuracy in curve["accuracy"]))
    print("all     " + "".join(f"{accuracy:>7.3f}" for accuracy in found["robust_accuracy"]))
    print(f"half of the samples are wrong within epsilon {found['minimal_epsilon']['median']:.3f}")
    print("signs of gradient masking:", " ".join(found["masking"]["signs"]) or "none")
    print(report.summary["verdict"]["headline"])
    return report


if __name__ == "__main__":
    run(look, __doc__)
