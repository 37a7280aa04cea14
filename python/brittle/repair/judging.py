"""Whether a repair helped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from brittle.diagnosis.flaws.result import SEVERITIES, Diagnosis, Finding
from brittle.repair.mending_result import Score


def judged(
    aimed: Sequence[Finding],
    before: Diagnosis,
    after: Diagnosis,
    scores: tuple[Score, Score],
    tolerance: float,
) -> tuple[bool, str]:
    """Whether a repair helped, and why or why not."""
    gain = scores[1].accuracy - scores[0].accuracy
    accuracy = f"validation accuracy {scores[0].accuracy:.1%} -> {scores[1].accuracy:.1%}".replace("%", " %")
    if not gain >= -tolerance:  # also where it is NaN
        return False, f"It costs too much: {accuracy}."
    aimed = aimed or before.flaws
    # What merely follows from the cause does not count for it.
    kinds = {aimed[0].kind} if aimed else set()
    places = {(f.layer, f.kind) for f in aimed if f.kind in kinds}
    weights = {place: (_weight(before, *place), _weight(after, *place)) for place in places}
    # What can no longer be judged counts as it was.
    then = sum(a or 0 for a, _ in weights.values())
    now = sum((a or 0) if b is None else b for a, b in weights.values())
    shown = _changes(before, after, {(f.layer, f.kind) for f in aimed})
    if now >= then:
        return False, f"The flaws are as severe as before ({shown}); {accuracy}."
    everywhere = [sum(SEVERITIES.index(f.severity) for f in d.flaws) for d in (before, after)]
    if everywhere[1] > everywhere[0] and gain <= tolerance:
        known = {(f.layer, f.kind) for f in before.flaws}
        new = ", ".join(f"{f.kind} in {f.layer}" for f in after.flaws if (f.layer, f.kind) not in known)
        return False, f"It mends these flaws and makes others ({new or 'others are worse'}); {accuracy}."
    return True, f"It helps ({shown}); {accuracy}."


def _weight(diagnosis: Diagnosis, layer: str, kind: str) -> int | None:
    severity = diagnosis.severity(layer, kind)
    return None if severity is None else SEVERITIES.index(severity)


def _changes(before: Diagnosis, after: Diagnosis, places: Iterable[tuple[str, str]]) -> str:
    """What became of flaws, those with one fate together: ``dead severe -> none in fc1, fc2``."""
    fates: dict[str, list[str]] = {}
    for layer, kind in sorted(places, key=lambda place: (before.layers.index(place[0]), place[1])):
        now = after.severity(layer, kind) or "not judged"
        fate = f"{kind} {before.severity(layer, kind)} -> {now}"
        fates.setdefault(fate, []).append(layer or "(model)")
    return "; ".join(f"{fate} in {', '.join(layers)}" for fate, layers in fates.items())
