"""The samples that the model gets most wrong."""

from __future__ import annotations

from typing import Any

import torch

from brittle.evaluation.rows import RunRows
from brittle.evaluation.views.common import Finding, number

SHOWN = 24
SURE = 0.99


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of the main set those of the highest losses, the first of equal ones first."""
    rows = run.main
    if not len(rows) or not rows.labelled:
        return None
    found = rows.answers
    order = torch.argsort(found.log_loss, descending=True, stable=True)[:SHOWN]
    sure = int((~found.correct & (found.confidence > SURE)).sum())
    return {
        "set": rows.name,
        "sure_and_wrong": sure,
        "items": [
            {
                "id": int(rows.ids[i]),
                "name": rows.names[i],
                "label": rows.classes[int(rows.label[i])],
                "prediction": rows.classes[int(found.predicted[i])],
                "confidence": number(found.confidence[i]),
                "log_loss": number(found.log_loss[i]),
                "picture": f"{rows.name}/{int(rows.ids[i])}/clean",
            }
            for i in order.tolist()
        ],
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """Mistakes that the model is sure of: mislabelled samples are found among them."""
    count = numbers["sure_and_wrong"]
    if not count:
        return []
    return [
        Finding(
            "note",
            "samples",
            f"The model is sure and wrong {'once' if count == 1 else f'{count} times'}",
            f"Wrong at a confidence above {SURE:.0%}: {count} of the samples of {numbers['set']}.",
            "Look at the pictures: some may be labelled wrongly.",
        )
    ]
