"""What must hold for a pipeline to go on: ``robust=0.5@8/255`` and its like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from brittle._radius import radius
from brittle.evaluation.curve import NORM_NAMES

OP = "evaluate"
AT_LEAST = ("accuracy", "f1", "robust", "worst_group", "auroc")
AT_MOST = ("ece", "log_loss")
MEASURES = AT_LEAST + AT_MOST
# The view whose numbers a measure is read from.
VIEW_OF = {
    "accuracy": "classification",
    "f1": "classification",
    "log_loss": "classification",
    "robust": "robustness",
    "worst_group": "segments",
    "auroc": "ood",
    "ece": "calibration",
}


@dataclass(frozen=True)
class Requirement:
    """A bound on one measure.

    Attributes:
        text: as it was given.
        measure: ``"accuracy"``, ``"f1"``, ``"robust"``, ``"worst_group"`` or ``"auroc"``, which must be at
            least the value; ``"ece"`` or ``"log_loss"``, which must be at most it.
        value: the bound.
        epsilon: the radius, of ``"robust"`` alone.
        norm: of the radius; None for the first norm that is evaluated.
    """

    text: str
    measure: str
    value: float
    epsilon: float | None = None
    norm: str | None = None

    def holds(self, got: float | None) -> bool:
        """Whether a number keeps the bound; what was not measured does not."""
        if got is None:
            return False
        return got >= self.value if self.measure in AT_LEAST else got <= self.value


def parse_requirement(text: str) -> Requirement:
    """Read ``MEASURE=VALUE``, or ``robust=VALUE@EPSILON`` or ``robust=VALUE@EPSILON:NORM``.

    Values and radii are numbers or fractions.

    Args:
        text: such as ``"accuracy=0.9"``, ``"ece=0.05"``, ``"robust=0.5@8/255"`` or ``"robust=0.4@0.5:l2"``.

    Returns:
        The requirement.

    Raises:
        ValueError: the text is none.

    Example:
        >>> from brittle.evaluation.requirements import parse_requirement
        >>> parse_requirement("robust=0.5@1/4:l2")
        Requirement(text='robust=0.5@1/4:l2', measure='robust', value=0.5, epsilon=0.25, norm='l2')
    """
    measure, equals, rest = text.strip().partition("=")
    if not equals or measure not in MEASURES:
        raise _error(f"MEASURE=VALUE with a measure of {', '.join(MEASURES)}", text)
    value_text, at, where = rest.partition("@")
    value = _fraction(value_text)
    if value is None or value < 0 or (value > 1 and measure != "log_loss"):
        raise _error(f"{measure}=VALUE with a value {'>= 0' if measure == 'log_loss' else 'in [0, 1]'}", text)
    if measure != "robust":
        if at:
            raise _error(f"{measure}=VALUE, without a radius", text)
        return Requirement(text.strip(), measure, value)
    epsilon_text, colon, norm = where.partition(":")
    epsilon = _fraction(epsilon_text)
    if epsilon is None or epsilon <= 0:
        raise _error("robust=VALUE@EPSILON with a radius > 0, such as robust=0.5@8/255", text)
    if colon and norm not in NORM_NAMES:
        raise _error(f"robust=VALUE@EPSILON:NORM with a norm of {', '.join(NORM_NAMES)}", text)
    return Requirement(text.strip(), measure, value, epsilon, norm or None)


def check_requirements(
    requirements: Sequence[Requirement], settings: Mapping[str, Any], *, groups: bool = True, sets: int = 2
) -> None:
    """Every requirement asks for something that the run will measure.

    Args:
        requirements: parsed.
        settings: of the run, as in ``report.json``: ``"views"``, ``"norms"`` and ``"epsilons"``.
        groups: the main set has groups.
        sets: how many sets there are, the noise made for comparison included.

    Raises:
        ValueError: a view that is left out, a norm or a radius that is not evaluated, no groups, nothing to
            tell the main set from.
    """
    for one in requirements:
        view = VIEW_OF[one.measure]
        if view not in settings.get("views", VIEW_OF.values()):
            raise _error(f"of a view that is evaluated ({one.measure} is of {view!r})", one.text)
        if one.measure == "worst_group" and not groups:
            raise _error("worst_group only where the main set has groups", one.text)
        if one.measure == "auroc" and sets < 2:
            raise _error("auroc only where there is a second set", one.text)
        if one.epsilon is None:
            continue
        norm = one.norm or settings["norms"][0]
        known = settings["epsilons"].get(norm)
        if known is None:
            raise _error(f"in a norm that is evaluated ({', '.join(settings['norms'])})", one.text)
        if radius_among(one.epsilon, known) is None:
            listed = ", ".join(map(radius, known))
            raise _error(f"at a radius that is evaluated in {norm} ({listed})", one.text)


def radius_among(epsilon: float, known: Sequence[float]) -> int | None:
    """The index of a radius among others, up to the three digits in which reports print it."""
    close = [k for k, eps in enumerate(known) if abs(eps - epsilon) <= 5e-3 * epsilon]
    return min(close, key=lambda k: abs(known[k] - epsilon)) if close else None


def _fraction(text: str) -> float | None:
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return None
    return value if isfinite(value) else None


def _error(expected: str, text: str) -> ValueError:
    return ValueError(f"{OP}: fail_under must be {expected}; got {text!r}")
