"""How far do the numbers move when only the random numbers change? Three seeds.

python examples/views/repeat.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print each measure's values, one for each seed, and their spread."""
    settings = {"norms": ["linf"], "epsilons": [0.1], "attacks": ["pgd"], "steps": 10, "restarts": 1}
    report = evaluate(network(), (TEST.x, TEST.y), out, views=["repeat"], repeat_seeds=3, **settings)

    for row in report.summary["views"]["repeat"]["measures"]:
        values = " ".join(f"{value:.3f}" for value in row["values"])
        print(f"{row['measure']:<28} {values}  spread {row['spread']:.3f}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
