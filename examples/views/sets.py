"""Do results on one data set hold on another? Digits, and blurred ones as from another hospital's scanner.

python examples/views/sets.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from brittle.evaluation.shifts import apply_shift
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print the sets side by side and what is found of them."""
    blurred = apply_shift("blur", 0.8, TEST.x, TEST.ids)
    data = {"digits": (TEST.x, TEST.y), "other-hospital": (blurred, TEST.y)}
    report = evaluate(network(), data, out, views=["sets"])

    print(f"{'set':<16} accuracy     F1  log-loss  calibration error")
    for row in report.summary["views"]["sets"]["rows"]:
        accuracies = f"{row['accuracy']:>8.3f} {row['f1']:>6.3f}"
        print(f"{row['set']:<16} {accuracies} {row['log_loss']:>9.3f} {row['ece']:>18.3f}")
    for finding in report.summary["findings"]:
        print(f"{finding['severity']}: {finding['title']}. {finding['evidence']}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
