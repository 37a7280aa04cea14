"""How does the loss look around the samples? Along its gradient, and in a random direction.

python examples/views/landscape.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print the mean loss of 16 digits along both directions."""
    settings = {"norms": ["linf"], "epsilons": [0.1]}  # the landscape reaches twice as far
    report = evaluate(network(), (TEST.x, TEST.y), out, views=["landscape"], **settings)

    found = report.summary["views"]["landscape"]
    print("distance  along the gradient  along a random direction")
    for at in range(0, len(found["alphas"]), 5):
        gradient, chance = found["along_gradient"][at], found["along_random"][at]
        print(f"{found['alphas'][at]:>8.3f} {gradient:>19.3f} {chance:>25.3f}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
