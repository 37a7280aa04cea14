"""What every check answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    Attributes:
        problems: what is wrong, a sentence each, with what usually causes it; empty if all is well.
        notes: what is worth knowing and no fault.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def table(self) -> str:
        """The figures behind the verdict as text, then the problems and notes."""
        said = [f"problem: {problem}" for problem in self.problems] + [f"note: {note}" for note in self.notes]
        return "\n".join([*self._figures(), *(said or ["no problem"])])

    def _figures(self) -> list[str]:
        return []
