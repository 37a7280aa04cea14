"""Does a confidence of 90 % mean right nine times out of ten? As it is, under noise and under attack.

python examples/views/calibration.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print accuracy, mean confidence and calibration error under each condition."""
    report = evaluate(network(), (TEST.x, TEST.y), out, views=["calibration"], norms=["linf"])

    (found,) = report.summary["views"]["calibration"]["sets"]
    print(f"{'condition':<20} accuracy  confidence  calibration error")
    for row in found["conditions"]:
        print(f"{row['name']:<20} {row['accuracy']:>8.3f} {row['confidence']:>11.3f} {row['ece']:>18.3f}")
    worst = max(found["conditions"], key=lambda row: row["over_confidence"])
    print(f"most over-confident: {worst['name']}, by {worst['over_confidence']:.3f}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
