"""How does the model bear what happens without an enemy: noise, blur, another light?

python examples/views/shift.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print the accuracy under each kind of shift, from mild to strong."""
    report = evaluate(network(), (TEST.x, TEST.y), out, views=["shift"])

    found = report.summary["views"]["shift"]
    print(
        f"as they are {found['clean']['accuracy']:>11.3f}\nseverity            1      2      3      4      5"
    )
    for row in found["kinds"]:
        print(f"{row['kind']:<16}" + "".join(f"{level['accuracy']:>7.3f}" for level in row["levels"]))
    worst = min(found["kinds"], key=lambda row: row["levels"][2]["accuracy"])
    print(f"worst at severity 3: {worst['kind']}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
