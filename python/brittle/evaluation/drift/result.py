"""What was found out about new samples, batch by batch and as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from brittle.evaluation.drift.nulls import Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Far beyond what any of the approximations can tell apart.
_LEAST_P = 1e-300


@dataclass(frozen=True)
class Window:
    """Samples that follow one another, compared with the reference.

    Attributes:
        first: the place of the first of them in the data.
        samples: how many.
        measures: in which ways they were compared.
        false_alarm_rate: how often as many without drift may be accused.
    """

    first: int
    samples: int
    measures: tuple[Measure, ...]
    false_alarm_rate: float

    @property
    def p_value(self) -> float:
        """How often so many samples without drift stray as far in any measure, at most (Bonferroni)."""
        return min(1.0, len(self.measures) * min(measure.p_value for measure in self.measures))

    @property
    def drifted(self) -> bool:
        """Whether a measure says so."""
        return any(measure.drifted for measure in self.measures)

    @property
    def score(self) -> float:
        """``-log10(p_value)``, at most 300: the evidence in powers of ten."""
        return _score(self.p_value)

    def of(self, name: str) -> Measure:
        """A measure by its name."""
        return {measure.name: measure for measure in self.measures}[name]


@dataclass(frozen=True)
class Drift:
    """New samples against a reference.

    Attributes:
        whole: all samples together.
        batches: as many at a time as were asked for, in the order of the data.
        false_alarm_rate: how often data without drift may be accused: by ``whole``, by each of the batches on
            its own, and by ``drifted`` over them all.
        predicted: int64 ``[N]``.
        confidence: float64 ``[N]``, the probability of the predicted class.
        energy: float64 ``[N]``, ``-log sum exp`` of the logits: high where nothing looks familiar.
        distance: float64 ``[N]``, of the features from the reference's; None without features.
        out_of_domain: bool ``[N]``, beyond the distance of 99 % of the reference; None without features.
    """

    whole: Window
    batches: tuple[Window, ...]
    false_alarm_rate: float
    predicted: Tensor
    confidence: Tensor
    energy: Tensor
    distance: Tensor | None
    out_of_domain: Tensor | None

    @property
    def p_value(self) -> float:
        """How often data without drift stray as far, at most: as a whole or in any batch (Bonferroni)."""
        if len(self.batches) == 1:
            return self.whole.p_value
        within = len(self.batches) * min(batch.p_value for batch in self.batches)
        return min(1.0, 2 * min(self.whole.p_value, within))

    @property
    def drifted(self) -> bool:
        """Whether the data as a whole or any batch has drifted."""
        return self.p_value <= self.false_alarm_rate

    @property
    def score(self) -> float:
        """``-log10(p_value)``, at most 300: the evidence in powers of ten."""
        return _score(self.p_value)

    def table(self) -> str:
        """The whole, measure by measure, and the batches that have drifted, as text."""
        lines = [f"{'measure':<22}{'value':>10}{'threshold':>12}{'p-value':>12}"]
        for m in self.whole.measures:
            threshold = "" if m.threshold is None else f"{m.threshold:.4g}"
            mark = "  drift" if m.drifted else ""
            lines.append(f"{m.name:<22}{m.value:>10.4g}{threshold:>12}{m.p_value:>12.3g}{mark}")
        if self.out_of_domain is not None:
            lines.append(
                f"out of domain: {int(self.out_of_domain.sum())} of {len(self.out_of_domain)} samples"
            )
        found = [batch for batch in self.batches if batch.drifted]
        lines.append(f"batches that drifted: {len(found)} of {len(self.batches)}")
        for batch in found:
            names = ", ".join(m.name for m in batch.measures if m.drifted)
            last = batch.first + batch.samples - 1
            lines.append(f"  samples {batch.first} to {last}: {names} (score {batch.score:.1f})")
        verdict = "drift" if self.drifted else "no drift"
        lines.append(
            f"{verdict}: score {self.score:.1f}, alarm at {_score(self.false_alarm_rate):.1f} "
            f"(at most {self.false_alarm_rate:.2%} false alarms)"
        )
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """The same as plain data, fit for JSON."""
        return {
            "drifted": self.drifted,
            "score": self.score,
            "p_value": self.p_value,
            "false_alarm_rate": self.false_alarm_rate,
            "out_of_domain": None
            if self.out_of_domain is None
            else self.out_of_domain.nonzero().flatten().tolist(),
            "whole": _plain(self.whole),
            "batches": [_plain(batch) for batch in self.batches],
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each batch's score over the data with matplotlib, and where the alarm is; returns the axes."""
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        places = [batch.first + batch.samples / 2 for batch in self.batches]
        ax.plot(places, [batch.score for batch in self.batches], marker="o", label="batches")
        ax.axhline(
            _score(self.false_alarm_rate),
            linestyle="--",
            color="grey",
            label=f"alarm ({self.false_alarm_rate:.2%} of batches without drift)",
        )
        ax.set(xlabel="sample", ylabel="drift score (-log10 p)", xlim=(0, self.whole.samples))
        ax.set_ylim(bottom=0)
        ax.legend()
        return ax


def _score(p_value: float) -> float:
    return -math.log10(max(p_value, _LEAST_P)) + 0.0  # no -0.0


def _plain(window: Window) -> dict[str, Any]:
    return {
        "first": window.first,
        "samples": window.samples,
        "drifted": window.drifted,
        "score": window.score,
        "p_value": window.p_value,
        "measures": [
            {
                "name": m.name,
                "value": m.value,
                "threshold": m.threshold,
                "p_value": m.p_value,
                "drifted": m.drifted,
            }
            for m in window.measures
        ],
    }
