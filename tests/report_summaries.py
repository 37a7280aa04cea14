"""A summary as an evaluation of real size would give, with every view, made of smooth formulas and a seed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from brittle.report import evaluation_page

Summary = dict[str, Any]
EPSILONS = {
    "linf": [0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 24 / 255],
    "l2": [0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0],
}
REPORTED = {"linf": 8 / 255, "l2": 0.5}


def interval(share: float, samples: int) -> list[float]:
    """Wilson's 95 % interval."""
    z = 1.96
    middle = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * np.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    return [float(middle - half), float(middle + half)]


@cache
def whole() -> tuple[Summary, str]:
    """The summary and its page, drawn once for all tests. Not to be changed: take a copy."""
    everything = summary()
    return everything, evaluation_page(everything, pictures(everything))


def summary(classes: int = 10, samples: int = 500, names: tuple[str, ...] | None = None) -> Summary:
    """Every view of two labelled sets and a synthetic one."""
    chance = np.random.default_rng(0)
    labels = names or tuple(str(c) for c in range(classes))
    sets = [("digits", samples, 0.97), ("other hospital", samples // 2, 0.9)]
    views = {
        "classification": {"sets": [classified(*each, labels, chance) for each in sets]},
        "segments": {"sets": [segmented(sets[0][0], samples)]},
        "calibration": {"sets": [calibrated(*sets[0]), calibrated(*sets[1], conditions=1)]},
        "ood": {
            "reference": "digits",
            "against": [separated(name, chance) for name in ("uniform noise", "other hospital")],
        },
        "robustness": attacked(samples, labels),
        "shift": shifted(),
        "sets": {"rows": [side_by_side(*each) for each in sets]},
        "landscape": landscape(),
        "samples": highest_losses(labels, samples),
        "repeat": repeated(),
        "duplicates": duplicated(),
    }
    return {
        "format": 1,
        "title": "Digits, second training",
        "partial": None,
        "sets": [
            {
                "name": name,
                "samples": count,
                "classes": list(labels),
                "labelled": labelled,
                "skipped": skipped,
                "groups": labelled,
            }
            for name, count, labelled, skipped in (
                ("digits", samples, True, []),
                (
                    "other hospital",
                    samples // 2,
                    True,
                    [{"name": "3/0041.png", "reason": "not an image: cannot identify image file"}],
                ),
                ("uniform noise", samples, False, []),
            )
        ],
        "main": "digits",
        "settings": {
            "views": list(views),
            "norms": list(EPSILONS),
            "epsilons": EPSILONS,
            "reported": REPORTED,
            "attacks": ["fgsm", "pgd", "minimal", "random"],
            "steps": 40,
            "restarts": 3,
            "seed": 0,
            "repeat_seeds": 3,
            "precision": "float32",
            "bounds": [0.0, 1.0],
        },
        "verdict": {
            "held": False,
            "headline": "Breaks at epsilon 8/255 (Linf): accuracy falls from 97.0 % to 41.2 %.",
            "sentences": [
                "Half of all samples are fooled within epsilon 0.0276 (Linf) or 0.49 (L2); the 95 % interval "
                "of the robust accuracy is 36.9 % to 45.6 %.",
                "No sign of gradient masking in Linf; in L2, random search fooled 3 samples that gradients "
                "did not.",
            ],
            "requirements": [
                {"text": "accuracy=0.95", "got": 0.97, "held": True},
                {"text": "robust=0.5@8/255", "got": 0.412, "held": False},
                {"text": "worst_group=0.9", "got": None, "held": False},
            ],
        },
        "findings": FINDINGS,
        "provenance": {
            "brittle": "0.1.0",
            "Command": "brittle evaluate --model net.py:digits --data digits --groups groups.csv --out run",
            "Weights": "sha256 3f0c8e4f1d6a8b8e0c1f2a9d6f30f7f1c8f9d0c6b0d0b3c7e8a1f5d2c3b4a5e6",
            "torch": "2.13.0",
        },
        "views": views,
    }


FINDINGS = [
    {
        "severity": "critical",
        "view": "robustness",
        "title": "Fewer than half of the samples survive epsilon 8/255",
        "evidence": "Worst-case accuracy is 41.2 % (95 % interval 36.9 % to 45.6 %); clean, it is 97.0 %.",
        "advice": "Train with noise or adversarial examples, and compare the two runs.",
    },
    {
        "severity": "serious",
        "view": "segments",
        "title": "The segment portable is far behind",
        "evidence": "Accuracy 81.3 % on 75 samples, 17.1 points below the best segment; p = 0.0002.",
        "advice": "Collect more samples of this segment, or say that the model is not for it.",
    },
    {
        "severity": "moderate",
        "view": "calibration",
        "title": "Too sure of itself under noise",
        "evidence": "At gaussian 3, mean confidence is 15.2 points above accuracy.",
        "advice": "Fit a temperature on samples with noise.",
    },
    {
        "severity": "note",
        "view": "duplicates",
        "title": "4 near-duplicates between digits and other hospital",
        "evidence": "Each pair would be expected by chance fewer than once in 1,000 searches.",
        "advice": "",
    },
]


def classified(name: str, samples: int, accuracy: float, labels: tuple[str, ...], chance: Any) -> Summary:
    """One set's classification: few errors, most of them between neighbouring classes."""
    classes = len(labels)
    truth = np.arange(samples) % classes
    wrong = chance.random(samples) > accuracy
    offsets = np.where(chance.random(samples) < 0.6, 1, chance.integers(1, classes, samples))
    predicted = np.where(wrong, (truth + offsets) % classes, truth)
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (truth, predicted), 1)
    support, given = confusion.sum(1), confusion.sum(0)
    per_class, curves = [], []
    for c, label in enumerate(labels):
        hits = int(confusion[c, c])
        precision = hits / given[c] if given[c] else None
        recall = hits / support[c] if support[c] else None
        total = support[c] + given[c]
        average = 0.9 + 0.099 * hits / max(1, support[c])
        per_class.append(
            {
                "class": label,
                "support": int(support[c]),
                "precision": precision,
                "recall": recall,
                "f1": float(2 * hits / total) if total else None,
                "average_precision": average,
            }
        )
        over = np.linspace(0, 1, 41)
        curves.append(
            {"class": label, "recall": over.tolist(), "precision": (1 - (1 - average) * 3 * over**8).tolist()}
        )
    right = float((truth == predicted).mean())
    return {
        "set": name,
        "samples": samples,
        "accuracy": right,
        "interval": interval(right, samples),
        "balanced_accuracy": right - 0.0021,
        "precision": right - 0.0012,
        "recall": right - 0.0021,
        "f1": right - 0.0017,
        "log_loss": 0.1234 + (1 - right),
        "hamming": 1 - right,
        "average_precision": 0.9871,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "curves": curves,
    }


def segmented(name: str, samples: int) -> Summary:
    """Segments from good to bad."""
    shares = {
        "scanner A": 0.984,
        "scanner B": 0.975,
        "outpatient": 0.951,
        "night shift": 0.922,
        "portable": 0.8133,
    }
    groups = [
        {
            "group": group,
            "samples": samples // 5 - 5 * k,
            "accuracy": share,
            "interval": interval(share, samples // 5 - 5 * k),
            "log_loss": 1.3 * (1 - share) + 0.02,
            "f1": share - 0.011,
        }
        for k, (group, share) in enumerate(shares.items())
    ]
    return {
        "set": name,
        "groups": groups,
        "worst": "portable",
        "best": "scanner A",
        "gap": 0.1707,
        "recall_gap": 0.2214,
        "p_value": 0.000213,
    }


def calibrated(name: str, samples: int, accuracy: float, conditions: int = 7) -> Summary:
    """Clean, noise of rising severity, and an attack, ever more over-confident."""
    found = []
    for k, condition in enumerate(
        ("clean", "gaussian 1", "gaussian 3", "gaussian 5", "fgsm 0.0157", "fgsm 0.0314", "fgsm 0.0941")
    ):
        edges = np.linspace(0, 1, 16)
        middles = (edges[1:] + edges[:-1]) / 2
        weights = np.where(middles > 0.2, np.exp((5 - 0.5 * k) * middles), 0)
        counts = np.floor(samples * weights / weights.sum()).astype(int)
        counts[-1] += samples - counts.sum()
        shares = np.clip(middles - 0.045 * k * middles + 0.02 * np.sin(9 * middles), 0, 1)
        gaps = np.abs(shares - middles)
        found.append(
            {
                "name": condition,
                "samples": samples,
                "accuracy": max(0.02, accuracy - 0.11 * k),
                "confidence": accuracy - 0.02 - 0.05 * k,
                "ece": float((counts * gaps).sum() / samples),
                "mce": float(gaps[counts > 0].max()),
                "brier": 0.0513 + 0.07 * k if k else None,
                "over_confidence": float((counts * (middles - shares)).sum() / samples),
                "bins": [
                    {
                        "low": float(low),
                        "high": float(high),
                        "samples": int(n),
                        "accuracy": float(share) if n else None,
                        "confidence": float(middle) if n else None,
                    }
                    for low, high, n, share, middle in zip(
                        edges[:-1], edges[1:], counts, shares, middles, strict=True
                    )
                ],
            }
        )
    return {"set": name, "conditions": found[:conditions]}


def separated(name: str, chance: Any) -> Summary:
    """Four scores with overlapping histograms."""
    scores = []
    for k, score in enumerate(("max softmax", "energy", "entropy", "feature distance")):
        inside, outside = chance.normal(2.5, 1, 2000), chance.normal(0.5 - 0.3 * k, 1.1, 2000)
        edges = np.histogram_bin_edges(np.concatenate([inside, outside]), 30)
        scores.append(
            {
                "score": score,
                "auroc": 0.885 + 0.031 * k,
                "aupr": 0.871 + 0.0312 * k,
                "fpr95": 0.452 - 0.1111 * k,
                "histogram": {
                    "edges": edges.tolist(),
                    "inside": (np.histogram(inside, edges)[0] / 2000).tolist(),
                    "outside": (np.histogram(outside, edges)[0] / 2000).tolist(),
                },
            }
        )
    return {"set": name, "labelled": name != "uniform noise", "scores": scores}


def attacked(samples: int, labels: tuple[str, ...]) -> Summary:
    """Two norms, four attacks of different strength, and examples."""
    norms = []
    for norm, epsilons in EPSILONS.items():
        over = np.array(epsilons) / epsilons[-1]
        strengths = {"fgsm": 1.6, "pgd": 3.3, "minimal": 3.2, "random": 0.2}
        curves = {name: 0.97 * np.exp(-((rate * over) ** 1.6)) for name, rate in strengths.items()}
        worst = np.min(list(curves.values()), axis=0)
        steps = np.linspace(0, epsilons[-1], 120)
        fooled = 1 - 0.97 * np.exp(-((3.2 * steps / epsilons[-1]) ** 1.6))
        texts = {
            "fgsm": "single step",
            "pgd": "PGD(steps=40, restarts=3)",
            "minimal": "bisection",
            "random": "100 points",
        }
        signs = (
            []
            if norm == "linf"
            else ["Random search fooled 3 samples that no gradient attack did: gradients may mislead."]
        )
        norms.append(
            {
                "norm": norm,
                "epsilons": epsilons,
                "reported": REPORTED[norm],
                "curves": [
                    {"attack": name, "text": texts[name], "accuracy": curve.tolist()}
                    for name, curve in curves.items()
                ],
                "robust_accuracy": worst.tolist(),
                "interval": [interval(share, samples) for share in worst.tolist()],
                "minimal_epsilon": {
                    "quantiles": [
                        {"share": 0.05, "epsilon": 0.031 * epsilons[-1]},
                        {"share": 0.25, "epsilon": 0.137 * epsilons[-1]},
                        {"share": 0.75, "epsilon": 0.384 * epsilons[-1]},
                        {"share": 0.95, "epsilon": None},
                    ],
                    "median": 0.2477 * epsilons[-1],
                    "never_fooled": 7,
                    "upper": epsilons[-1],
                    "curve": {"epsilon": steps.tolist(), "fooled": fooled.tolist()},
                },
                "cost": {"forwards": 183211, "backwards": 91034},
                "masking": {
                    "attacked": samples - 15,
                    "zero_gradient": 2,
                    "nonfinite_gradient": 0,
                    "stalled": 5,
                    "random_beats_gradient": 3 * len(signs),
                    "single_step_beats_iterative": 1,
                    "robust_at_largest": 0.014,
                    "signs": signs,
                },
            }
        )
    examples = [
        {
            "id": 11 * k,
            "name": f"#{11 * k}",
            "label": labels[k % len(labels)],
            "attack": "pgd" if k % 2 else "minimal",
            "norm": "l2" if k > 3 else "linf",
            "distance": 0.0123 + 0.004 * k,
            "before": {"label": labels[k % len(labels)], "confidence": 0.9987 - 0.01 * k},
            "after": {"label": labels[(k + 3) % len(labels)], "confidence": 0.9312 - 0.05 * k},
            "clean": f"digits/{11 * k}/clean",
            "adversarial": f"digits/{11 * k}/adversarial/{k}",
        }
        for k in range(8)
    ]
    return {"set": "digits", "samples": samples, "clean_accuracy": 0.97, "norms": norms, "examples": examples}


def shifted() -> Summary:
    """Four corruptions of rising severity."""
    kinds = []
    for k, kind in enumerate(("gaussian", "shot", "speckle", "blur")):
        levels = [
            {
                "severity": s,
                "scale": 0.0605 * s,
                "accuracy": 0.97 - 0.013 * (k + 1) * s**1.4,
                "log_loss": 0.15 + 0.081 * s * (k + 1),
                "confidence": 0.95 - 0.02 * s,
                "ece": 0.02 + 0.011 * s * (k + 1),
            }
            for s in range(1, 6)
        ]
        kinds.append({"kind": kind, "levels": levels})
    clean = {"accuracy": 0.97, "log_loss": 0.1534, "confidence": 0.955, "ece": 0.0187}
    return {"set": "digits", "clean": clean, "kinds": kinds}


def side_by_side(name: str, samples: int, accuracy: float) -> Summary:
    """One labelled set beside the others."""
    return {
        "set": name,
        "samples": samples,
        "accuracy": accuracy,
        "interval": interval(accuracy, samples),
        "precision": accuracy - 0.0012,
        "recall": accuracy - 0.0031,
        "f1": accuracy - 0.0022,
        "log_loss": 1.1 - accuracy,
        "ece": 0.0187,
        "confidence": accuracy - 0.0154,
    }


def landscape() -> Summary:
    """A slope along the gradient, nearly level across it."""
    alphas = np.linspace(-8 / 255, 8 / 255, 21)
    a, b = np.meshgrid(alphas * 255, alphas * 255, indexing="ij")
    mean = 2.2 / (1 + np.exp(-0.6 * a + 2)) + 0.012 * b**2 + 0.05 * np.sin(b)
    return {
        "set": "digits",
        "samples": 64,
        "norm": "linf",
        "reach": 8 / 255,
        "alphas": alphas.tolist(),
        "mean": mean.tolist(),
        "along_gradient": mean[:, 10].tolist(),
        "along_random": mean[10, :].tolist(),
    }


def highest_losses(labels: tuple[str, ...], samples: int) -> Summary:
    """Two dozen of the worst."""
    items = [
        {
            "id": 7 * k,
            "name": f"#{7 * k}",
            "label": labels[k % len(labels)],
            "prediction": labels[(k + 1 + k % 3) % len(labels)] if k < 15 else labels[k % len(labels)],
            "confidence": 0.991 - 0.02 * k,
            "log_loss": 7.31 - 0.29 * k,
            "picture": f"digits/{7 * k}/clean",
        }
        for k in range(24)
    ]
    return {"set": "digits", "items": items}


def repeated() -> Summary:
    """Three measures under three seeds."""
    rows = {
        "accuracy": [0.97, 0.97, 0.97],
        "robust accuracy, linf 0.0314": [0.412, 0.416, 0.41],
        "robust accuracy, l2 0.5": [0.522, 0.53, 0.524],
    }
    measures = [
        {
            "measure": name,
            "values": values,
            "mean": sum(values) / 3,
            "spread": max(values) - min(values),
        }
        for name, values in rows.items()
    ]
    return {"seeds": [0, 1, 2], "measures": measures}


def duplicated() -> Summary:
    """Four pairs found in one search."""
    pairs = [
        {
            "test": "other hospital",
            "test_id": 3 + k,
            "train": "digits",
            "train_id": 40 + 9 * k,
            "cosine": 0.9991 - 0.0007 * k,
            "p": 3e-5 * (k + 1),
            "pictures": [f"other hospital/{3 + k}/clean", f"digits/{40 + 9 * k}/clean"],
        }
        for k in range(4)
    ]
    search = {"train": "digits", "test": "other hospital", "suspects": 4, "samples": 250, "threshold": 0.9961}
    return {"pairs": pairs, "searches": [search]}


def pictures(report: Summary, side: int = 8, colour: bool = False) -> dict[str, Any]:
    """A picture for every key that the summary names."""
    views = report["views"]
    keys = [item["picture"] for item in views["samples"]["items"]]
    keys += [key for pair in views["duplicates"]["pairs"] for key in pair["pictures"]]
    keys += [example["clean"] for example in views["robustness"]["examples"]]
    chance = np.random.default_rng(1)
    y, x = np.mgrid[0:side, 0:side] / (side - 1) - 0.5
    found: dict[str, Any] = {}
    for key in keys:
        u, v, w = chance.uniform(-0.25, 0.25, 3)
        ring = np.exp(-((np.hypot(x - u, y - v) - 0.25 - 0.4 * w) ** 2) / 0.015)
        tint = chance.uniform(0.4, 1, 3) if colour else None
        found[key] = ring if tint is None else ring[..., None] * tint
    for example in views["robustness"]["examples"]:
        clean = found[example["clean"]]
        found[example["adversarial"]] = np.clip(clean + 0.06 * np.sign(chance.normal(size=clean.shape)), 0, 1)
    return found
