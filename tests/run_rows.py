"""Runs made up of random numbers, for tests of what is computed from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from brittle.evaluation.rows import AttackRows, Condition, Duplicates, Landscape, RunRows, SetRows
from torch import Tensor

EPSILONS = {"linf": (2 / 255, 4 / 255, 8 / 255, 16 / 255), "l2": (0.1, 0.25, 0.5, 1.0)}
SETTINGS: dict[str, Any] = {
    "views": [
        "classification",
        "segments",
        "calibration",
        "ood",
        "robustness",
        "shift",
        "sets",
        "landscape",
        "samples",
        "repeat",
        "duplicates",
    ],
    "norms": ["linf", "l2"],
    "epsilons": {norm: list(values) for norm, values in EPSILONS.items()},
    "reported": {"linf": 8 / 255, "l2": 0.5},
    "attacks": ["fgsm", "pgd", "minimal", "random"],
    "steps": 40,
    "restarts": 3,
    "seed": 0,
    "repeat_seeds": 1,
    "precision": "float32",
    "bounds": [0, 1],
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(logits: Tensor, seed: int = 0) -> Tensor:
    """Labels drawn from the model's own probabilities: a model that is calibrated."""
    return torch.multinomial(logits.double().softmax(1), 1, generator=generator(seed)).squeeze(1)


def make_set(
    name: str = "test",
    samples: int = 200,
    classes: int = 10,
    *,
    sharpness: float = 6.0,
    groups: Sequence[str] | None = ("north", "south"),
    labelled: bool = True,
    dimensions: int = 8,
    moved: float = 0.0,
    seed: int = 0,
    **parts: Any,
) -> SetRows:
    """A calibrated model on ``samples``, right about nine times out of ten; features of class clusters.

    ``moved`` takes the features away from their clusters; ``parts`` are further attributes.
    """
    g = generator(seed)
    near = torch.randint(classes, (samples,), generator=g)
    logits = torch.randn(samples, classes, generator=g)
    logits[torch.arange(samples), near] += sharpness
    centres = 3 * torch.randn(classes, dimensions, generator=generator(1234))
    features = centres[near] + torch.randn(samples, dimensions, generator=g) + moved
    drawn = torch.randint(len(groups), (samples,), generator=g).tolist() if groups else None
    given: dict[str, Any] = {
        "name": name,
        "ids": torch.arange(samples),
        "label": labels_of(logits, seed) if labelled else torch.full((samples,), -1),
        "logits": logits,
        "features": features,
        "groups": None if groups is None or drawn is None else tuple(groups[k] for k in drawn),
        "classes": tuple(f"class {c}" for c in range(classes)),
        "names": tuple(f"#{i}" for i in range(samples)),
    }
    return SetRows(**{**given, **parts})


def make_condition(rows: SetRows, kind: str, level: int, scale: float, seed: int = 0) -> Condition:
    """Answers that noise of this level has shifted at random."""
    logits = rows.logits + level * torch.randn(rows.logits.shape, generator=generator(100 * level + seed))
    log_probabilities = logits.double().log_softmax(1)
    confidence, predicted = log_probabilities.exp().max(1)
    loss = -log_probabilities.gather(1, rows.label[:, None]).squeeze(1)
    return Condition(kind, level, scale, seed, predicted, confidence, loss)


def make_attack(
    rows: SetRows,
    attack: str = "pgd",
    norm: str = "linf",
    *,
    distance: Tensor | None = None,
    seed: int = 0,
    **parts: Any,
) -> AttackRows:
    """An attack that fools every sample at its distance: by default of a median of about 6/255 in Linf."""
    epsilons = parts.pop("epsilons", EPSILONS.get(norm, EPSILONS["l2"]))
    samples = len(rows)
    if distance is None:
        scale = {"linf": 6 / 255, "l2": 0.4}.get(norm, 1.0) * {"fgsm": 1.4, "random": 8.0}.get(attack, 1.0)
        noise = torch.randn(samples, generator=generator(77 + seed), dtype=torch.float64)
        distance = scale * (0.6 * noise).exp()
    distance = distance.clone().double()
    if samples and attack != "minimal":
        distance[distance > epsilons[-1]] = torch.inf
    distance[~rows.answers.correct] = 0.0
    no, spent = torch.zeros(samples, dtype=torch.bool), torch.full((samples,), 20)
    given: dict[str, Any] = {
        "fooled": distance <= torch.tensor(epsilons, dtype=torch.float64)[:, None],
        "distance": distance,
        "zero_gradient": no,
        "nonfinite_gradient": no,
        "stalled": no,
        "cycled": no,
        "forwards": spent,
        "backwards": torch.zeros_like(spent) if attack == "random" else spent,
    }
    return AttackRows(attack, norm, f"{attack} ({norm})", seed, epsilons, **{**given, **parts})


def make_landscape(samples: int = 12, points: int = 7, reach: float = 16 / 255) -> Landscape:
    """A loss that rises along the gradient and bends up a little both ways along the other direction."""
    alphas = torch.linspace(-reach, reach, points, dtype=torch.float64)
    surface = (40 * alphas[:, None] + 300 * alphas[None, :] ** 2).float()
    losses = surface + torch.rand(samples, 1, 1, generator=generator(5))
    return Landscape(torch.arange(samples), losses, tuple(alphas.tolist()))


def make_run(
    samples: int = 200, classes: int = 10, *, repeat_seeds: int = 2, seed: int = 0, **changes: Any
) -> RunRows:
    """Everything at once: three sets and noise, attacks in two norms, conditions, a landscape, duplicates."""
    main = make_set("test", samples, classes, seed=seed)
    conditions = [
        make_condition(main, kind, level, scale, s)
        for s in range(repeat_seeds)
        for kind, scales in (("gaussian", (0.08, 0.12, 0.18)), ("blur", (0.5, 1.0, 1.5)))
        for level, scale in enumerate(scales, 1)
    ]
    conditions += [make_condition(main, "fgsm", k, eps) for k, eps in enumerate(EPSILONS["linf"], 1)]
    attacks = [
        make_attack(main, attack, norm, seed=s)
        for s in range(repeat_seeds)
        for norm in ("linf", "l2")
        for attack in ("fgsm", "pgd", "minimal", "random")
    ]
    main = make_set(
        "test",
        samples,
        classes,
        seed=seed,
        conditions=tuple(conditions),
        attacks=tuple(attacks),
        landscape=make_landscape(),
        skipped=(("seven/broken.png", "not an image"),),
    )
    sets = (
        main,
        make_set("train", samples, classes, seed=seed + 1),
        make_set("other-hospital", samples, classes, seed=seed + 2, sharpness=4.0, groups=None),
        make_set("uniform noise", samples, classes, seed=seed + 3, labelled=False, sharpness=1.0, moved=9.0),
    )
    pairs = ((3, 5, 0.999, 1e-9), (8, 1, 0.98, 1e-4)) if samples > 8 else ()
    duplicates = (Duplicates("train", "test", len(pairs), samples, 0.97, pairs),)
    settings = {**SETTINGS, "repeat_seeds": repeat_seeds, **changes}
    return RunRows(sets, settings, duplicates)
