"""Can samples of another kind be told from the model's answers?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brittle.evaluation.rows import RunRows, SetRows, blocks
from brittle.evaluation.statistics import auroc_interval
from brittle.evaluation.views.common import Finding, percent, rounded

BINS = 30
TAIL = 0.005  # of the scores at either end share the outermost bins: a few far ones hide no shape
MOST_FITTED = 20_000  # samples: the covariance of more features is known no better
WEAK = 0.90  # noise that nobody could mistake is told apart nearly always by a sound score
BLIND = 0.70
TRAIN = "train"
UNLIKE = 0.75  # a random sample of the other set looks stranger three times out of four


def numbers(run: RunRows) -> dict[str, Any] | None:
    """The main set against each of the others; None without one.

    Samples of the other set are the positive ones. A set called "train" is what the features are fitted on,
    and in no comparison. Where there is none, they are fitted on every second sample of the main set, and
    the others stand for it, for distances from the very samples of a fit are too small.
    """
    main = run.main
    others = [rows for rows in run.sets[1:] if len(rows) and rows.name != TRAIN]
    if not len(main) or not others:
        return None
    inside = _scores(main)
    train = next((rows for rows in run.sets[1:] if rows.name == TRAIN and len(rows)), None)
    metric = _Mahalanobis.fit(main, slice(0, None, 2)) if train is None else _Mahalanobis.fit(train)
    if metric is not None and main.features is not None:
        held_out = main.features if train is not None else main.features[1::2]
        inside["feature distance"] = metric(held_out)
    against = []
    for rows in others:
        outside = _scores(rows)
        if metric is not None and rows.features is not None:
            outside["feature distance"] = metric(rows.features)
        against.append(
            {
                "set": rows.name,
                "labelled": rows.labelled,
                "scores": [
                    _compare(name, inside[name], outside[name])
                    for name in inside
                    if name in outside and len(inside[name])
                ],
            }
        )
    return {"reference": main.name, "against": against}


def _scores(rows: SetRows) -> dict[str, Tensor]:
    """float64 ``[N]`` each, in their own units: only of max softmax are small values the strange ones.

    References:
        Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples",
        ICLR 2017; Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020.
    """
    energy, entropy = [], []
    for part in blocks(len(rows)):
        logits = rows.logits[part].double()
        log_probability = logits.log_softmax(1)
        energy.append(-logits.logsumexp(1))
        entropy.append(torch.special.entr(log_probability.exp()).sum(1))
    return {
        "max softmax": rows.answers.confidence,
        "energy": torch.cat(energy),
        "entropy": torch.cat(entropy),
    }


class _Mahalanobis:
    """Distance to the nearest class mean, squared, in the metric of a covariance that all classes share.

    References:
        Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial
        attacks", NeurIPS 2018; Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
        covariance matrices", J. Multivariate Analysis 2004.
    """

    def __init__(self, means: Tensor, factor: Tensor) -> None:
        self.factor = factor  # lower triangular: covariance = factor @ factor.T
        self.means = self._whiten(means)

    @classmethod
    def fit(cls, rows: SetRows, which: slice = slice(None)) -> _Mahalanobis | None:
        """On the features of samples and their labels; None where they span nothing."""
        from sklearn.covariance import ledoit_wolf

        if rows.features is None or not rows.labelled:
            return None
        chosen = torch.arange(len(rows))[which]
        chosen = chosen[:: -(-len(chosen) // MOST_FITTED) or 1]
        features = rows.features[chosen].double().flatten(1)
        present, index = torch.unique(rows.label[chosen], return_inverse=True)
        if len(chosen) <= len(present) or not features.shape[1] or not bool(features.isfinite().all()):
            return None
        sums = torch.zeros(len(present), features.shape[1], dtype=torch.float64)
        means = sums.index_add_(0, index, features) / torch.bincount(index)[:, None]
        covariance = torch.from_numpy(ledoit_wolf((features - means[index]).numpy(), assume_centered=True)[0])
        scale = covariance.diagonal().mean()
        if not float(scale) > 0:
            return None
        # Shrinkage may be 0, and features that never vary need some width to be divided by.
        covariance.diagonal().add_(1e-9 * scale)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        return None if int(failed) else cls(means, factor)

    def _whiten(self, features: Tensor) -> Tensor:
        whitened: Tensor = torch.linalg.solve_triangular(self.factor, features.T, upper=False).T
        return whitened

    def __call__(self, features: Tensor) -> Tensor:
        """float64 ``[N]``."""
        parts = []
        for part in blocks(len(features), 1024):
            z = self._whiten(features[part].double().flatten(1))
            parts.append(torch.cdist(z, self.means).square().min(1).values)
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _compare(name: str, inside: Tensor, outside: Tensor) -> dict[str, Any]:
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc

    values = torch.cat([inside, outside])
    # Ranks: torchmetrics would put what lies outside [0, 1] through a sigmoid, where large scores are one.
    _, rank = torch.unique(-values if name == "max softmax" else values, return_inverse=True)
    strange = rank.double() / max(1, int(rank.max()))
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    area = float(binary_auroc(strange, truth, validate_args=False))
    fpr, tpr, _ = binary_roc(strange, truth, validate_args=False)
    # Six digits: 95 of 100 must count as 0.95 in single precision.
    reached = (tpr.double() >= 0.95 - 1e-6).nonzero()[0, 0]
    bounds = auroc_interval(area, len(outside), len(inside))
    return {
        "score": name,
        "auroc": rounded(area),
        "interval": None if bounds is None else [rounded(b) for b in bounds],
        "aupr": rounded(binary_average_precision(strange, truth, validate_args=False)),
        "fpr95": rounded(fpr[reached]),
        "samples": {"inside": len(inside), "outside": len(outside)},
        "histogram": _histogram(inside, outside),
    }


def _histogram(inside: Tensor, outside: Tensor) -> dict[str, list[float | None]] | None:
    ordered = torch.cat([inside, outside])
    ordered = ordered[ordered.isfinite()].sort().values
    if not len(ordered):
        return None
    last = len(ordered) - 1
    low, high = float(ordered[round(TAIL * last)]), float(ordered[round((1 - TAIL) * last)])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)

    def shares(values: Tensor) -> list[float | None]:
        index = torch.bucketize(values, edges, right=True).sub(1).clamp(0, BINS - 1)
        return [rounded(n / len(values)) for n in torch.bincount(index, minlength=BINS).tolist()]

    return {
        "edges": [rounded(e) for e in edges.tolist()],
        "inside": shares(inside),
        "outside": shares(outside),
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """Noise that passes for data, and named sets that look unlike the main one."""
    found = []
    for one in numbers["against"]:
        sure = [s for s in one["scores"] if s["auroc"] is not None and s["interval"] is not None]
        if not sure:
            continue
        best = max(sure, key=lambda s: s["auroc"])
        evidence = (
            f"Best of {len(sure)} scores: {best['score']}, AUROC {best['auroc']:.3f} (95 % interval "
            f"{best['interval'][0]:.3f}-{best['interval'][1]:.3f}); {percent(best['fpr95'])} of the "
            f"samples of {numbers['reference']} are given up when 95 % of the others are caught."
        )
        if one["labelled"]:
            if best["interval"][0] > UNLIKE:
                found.append(
                    Finding(
                        "note",
                        "ood",
                        f"{one['set']} looks unlike {numbers['reference']} to the model",
                        evidence,
                        "Compare how the two sets were made before results on one are taken for the other.",
                    )
                )
        elif best["interval"][1] < WEAK:
            found.append(
                Finding(
                    "serious" if best["interval"][1] < BLIND else "moderate",
                    "ood",
                    f"The model's answers do not tell {one['set']} from {numbers['reference']}",
                    evidence,
                    "Check inputs by other means before the model sees them.",
                )
            )
    return found
