"""Samples of one set that are nearly those of another."""

from __future__ import annotations

from typing import Any

from brittle.evaluation.rows import RunRows
from brittle.evaluation.views.common import Finding, number, percent

LEAK = 0.01  # of the test samples: enough to move an accuracy in the digits that are quoted


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Of every search; None where there was none."""
    if not run.duplicates:
        return None
    pairs, searches = [], []
    for search in run.duplicates:
        searches.append(
            {
                "train": search.train,
                "test": search.test,
                "suspects": search.suspects,
                "samples": search.samples,
                "threshold": number(search.threshold),
            }
        )
        for test_id, train_id, cosine, p in search.pairs:
            pairs.append(
                {
                    "test": search.test,
                    "test_id": int(test_id),
                    "train": search.train,
                    "train_id": int(train_id),
                    "cosine": number(cosine),
                    "p": number(p),
                    "pictures": [f"{search.test}/{test_id}/clean", f"{search.train}/{train_id}/clean"],
                }
            )
    return {"pairs": pairs, "searches": searches}


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """Searches that found any."""
    found = []
    for search in numbers["searches"]:
        if not search["suspects"] or not search["samples"]:
            continue
        share = search["suspects"] / search["samples"]
        found.append(
            Finding(
                "serious" if share >= LEAK else "moderate",
                "duplicates",
                f"{search['test']} holds near-duplicates of {search['train']}",
                f"{search['suspects']} of {search['samples']} samples ({percent(share)}) have one at a "
                f"cosine of {search['threshold']:.3f} or more.",
                "Look at the pairs, and take what is the same out of one set before results are quoted.",
            )
        )
    return found
