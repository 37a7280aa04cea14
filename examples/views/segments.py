"""Does a model serve every group alike? Digits of three pens, one of them running dry.

python examples/views/segments.py [FOLDER]
"""

from pathlib import Path

from brittle.evaluation import Report, evaluate
from brittle.sources import as_source
from digits_model import TEST, network, run


def look(out: Path) -> Report:
    """Evaluate, and print each group's accuracy and how likely chance alone makes such a gap."""
    x = TEST.x.clone()
    x[::3] *= 0.35
    pens = [("dry pen", "blue pen", "black pen")[row % 3] for row in range(len(x))]
    report = evaluate(network(), as_source((x, TEST.y), groups=pens), out, views=["segments"])

    (found,) = report.summary["views"]["segments"]["sets"]
    for group in found["groups"]:
        low, high = group["interval"]
        share = f"{group['accuracy']:.3f} of {group['samples']} digits"
        print(f"{group['group']:<10} {share} (95 % interval {low:.3f} to {high:.3f})")
    print(f"worst: {found['worst']}, {found['gap']:.3f} below {found['best']}; p = {found['p_value']:.1e}")
    return report


if __name__ == "__main__":
    run(look, __doc__)
