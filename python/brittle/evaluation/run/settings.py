"""What an evaluation is to do: views, norms, radii, attacks; checked, and completed with the usual ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle import _checks as check
from brittle.evaluation.run.answers import Clean, Shift, Surroundings
from brittle.evaluation.run.attacked import Attacked
from brittle.evaluation.run.iterated import Iterated
from brittle.evaluation.run.single_steps import RandomSearch, SingleStep
from brittle.evaluation.run.work import Stage
from brittle.evaluation.views import VIEWS
from brittle.evaluation.views.common import ATTACKS
from brittle.target import Bounds

NORMS = ("linf", "l2", "l1")

#: Radii for inputs in [0, 1], and which of them the report speaks of first: the usual ones for images.
EPSILONS: Mapping[str, tuple[float, ...]] = {
    "linf": tuple(k / 255 for k in (1, 2, 4, 8, 16, 32, 64)),
    "l2": (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    "l1": (1.0, 2.0, 4.0, 8.0, 12.0, 24.0),
}
REPORTED: Mapping[str, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}

LANDSCAPE_SAMPLES = 16
NOISE = "uniform noise"  # the synthetic out-of-distribution set


@dataclass(frozen=True)
class Settings:
    """Of one evaluation; see :func:`brittle.evaluation.evaluate`."""

    views: tuple[str, ...]
    norms: tuple[str, ...]
    epsilons: Mapping[str, tuple[float, ...]]
    reported: Mapping[str, float]
    attacks: tuple[str, ...]
    steps: int
    restarts: int
    seed: int
    repeat_seeds: int
    precision: str
    bounds: Bounds

    @classmethod
    def of(
        cls,
        views: Sequence[str] | None,
        norms: Sequence[str],
        epsilons: Mapping[str, Sequence[float]] | Sequence[float] | None,
        reported: Mapping[str, float] | float | None,
        attacks: Sequence[str],
        steps: int,
        restarts: int,
        seed: int,
        repeat_seeds: int,
        precision: str,
        bounds: Bounds,
    ) -> Settings:
        """Checked, with the usual radii where none are given."""
        op = "evaluate"
        check.check_count(op, "steps", steps)
        check.check_count(op, "restarts", restarts)
        check.check_count(op, "repeat_seeds", repeat_seeds)
        check.check_seed(op, seed)
        # Other seeds follow this one, and SQLite's integers are signed.
        if not -(2**63) <= seed < 2**63 - repeat_seeds:
            raise ValueError(f"{op}: seed must be a signed integer of 64 bits; got {seed}")
        # Not "auto": bfloat16 where it pays must not depend on the machine that goes on with the run.
        check.check_choice(op, "precision", precision, ("float32", "bfloat16"))
        if not bounds[0] < bounds[1]:
            raise ValueError(f"{op}: bounds must be (lo, hi) with lo < hi; got ({bounds[0]}, {bounds[1]})")
        chosen = _names("views", tuple(VIEWS) if views is None else views, tuple(VIEWS))
        norms = _names("norms", norms, NORMS)
        attacks = _names("attacks", attacks, ATTACKS)
        if not norms or not attacks:
            raise ValueError(
                f"{op}: norms and attacks must hold at least one name each; got {norms}, {attacks}"
            )
        given = _by_norm("epsilons", epsilons, norms)
        scale = bounds[1] - bounds[0]
        radii = {n: _radii(given[n]) if n in given else tuple(scale * e for e in EPSILONS[n]) for n in norms}
        for norm, values in radii.items():
            for eps in values:
                check.check_inside(op, "epsilons", eps, norm, bounds)
        wished = _by_norm("reported", reported, norms)
        spoken_of = {n: _reported(n, radii[n], wished.get(n), scale) for n in norms}
        return cls(
            chosen, norms, radii, spoken_of, attacks, steps, restarts, seed, repeat_seeds, precision, bounds
        )

    def as_json(self) -> dict[str, Any]:
        """As ``report.json`` has it."""
        return {
            "views": list(self.views),
            "norms": list(self.norms),
            "epsilons": {norm: list(radii) for norm, radii in self.epsilons.items()},
            "reported": dict(self.reported),
            "attacks": list(self.attacks),
            "steps": self.steps,
            "restarts": self.restarts,
            "seed": self.seed,
            "repeat_seeds": self.repeat_seeds,
            "precision": self.precision,
            "bounds": list(self.bounds),
        }

    @property
    def reach(self) -> float:
        """How far the loss landscape goes in Linf: twice the radius that the report speaks of."""
        scale = self.bounds[1] - self.bounds[0]
        return 2 * self.reported.get("linf", scale * REPORTED["linf"])

    def stages(self) -> list[Stage]:
        """What is done to the main set, the model's clean answers first."""
        views = set(self.views)
        stages: list[Stage] = [Clean()]
        if views & {"calibration", "shift"}:
            stages.append(Shift(self.seed))
        if "robustness" in views:
            stages += [stage for norm in self.norms for stage in self._attacks(norm)]
        elif "calibration" in views:
            stages.append(self._single_step(self.norms[0]))
        if "landscape" in views:
            stages.append(Surroundings(self.reach, self.seed))
        if "repeat" in views and self.repeat_seeds > 1:
            stages += self._repeats("pgd" in self.attacks)
        return _once(stages)

    def _attacks(self, norm: str) -> list[Attacked]:
        return [self.attack(name, norm, self.seed) for name in ATTACKS if name in self.attacks]

    def attack(self, name: str, norm: str, seed: int) -> Attacked:
        """One of the attacks by name."""
        radii = self.epsilons[norm]
        if name == "fgsm":
            return self._single_step(norm)
        if name == "random":
            return RandomSearch(norm, radii, seed)
        if name == "minimal":
            return Iterated(norm, radii, seed, self.steps, minimal=True)
        return Iterated(norm, radii, seed, self.steps, self.restarts)

    def _single_step(self, norm: str) -> SingleStep:
        return SingleStep(norm, self.epsilons[norm], self.seed, keeps_answers=norm == self.norms[0])

    def _repeats(self, attacked: bool) -> list[Stage]:
        stages: list[Stage] = []
        for seed in range(self.seed, self.seed + self.repeat_seeds):
            stages.append(Shift(seed, ("gaussian",), (3,)) if seed != self.seed else Shift(seed))
            if attacked:
                stages += [self.attack("pgd", norm, seed) for norm in self.norms]
        return stages


def _once(stages: Sequence[Stage]) -> list[Stage]:
    found: dict[str, Stage] = {}
    for stage in stages:
        found.setdefault(stage.name, stage)
    return list(found.values())


def _names(name: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ValueError(f"evaluate: {name} must be a sequence of names; got {given!r}")
    for one in given:
        check.check_choice("evaluate", name, one, tuple(known))
    # In one order, so that what is asked for in another order is the same run.
    return tuple(one for one in known if one in given)


def _by_norm(name: str, given: Any, norms: Sequence[str]) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if "linf" not in norms and len(norms) > 1:
            raise ValueError(
                f"evaluate: {name} must be given by norm for the norms {tuple(norms)}; got {given}"
            )
        return {"linf" if "linf" in norms else norms[0]: given}
    for norm in given:
        check.check_choice("evaluate", f"{name}' norms", norm, tuple(norms))
    return dict(given)


def _radii(given: Sequence[float]) -> tuple[float, ...]:
    values = sorted({float(eps) for eps in given} - {0.0})
    if not values or not all(eps > 0 and math.isfinite(eps) for eps in values):
        raise ValueError(
            f"evaluate: epsilons must hold at least one value, finite and > 0; got {list(given)}"
        )
    return tuple(values)


def _reported(norm: str, radii: tuple[float, ...], wished: float | None, scale: float) -> float:
    if wished is None:
        usual = scale * REPORTED[norm]
        return min(radii, key=lambda eps: abs(math.log(eps / usual)))
    found = [eps for eps in radii if math.isclose(eps, wished, rel_tol=1e-6)]
    if not found:
        raise ValueError(
            f"evaluate: reported must be one of the epsilons {list(radii)} in {norm}; got {wished}"
        )
    return found[0]
