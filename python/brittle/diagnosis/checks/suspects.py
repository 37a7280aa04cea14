"""Samples in the order of suspicion, and pictures of them to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.diagnosis.checks.verdict import Verdict

_TINY = 32  # pixels; smaller pictures are drawn without smoothing


@dataclass(frozen=True)
class LabelRanking(Verdict):
    """Samples by how likely their labels are wrong.

    Attributes:
        method: what ranked them.
        score: what ``scores`` are, in words.
        ids: int64 ``[N]``, the samples' identities, the most suspicious first; on the CPU, as is all here.
        scores: float64 ``[N]``, of ``ids``, from small (suspicious) to large.
        labels: int64 ``[N]``, the labels given.
        suggested: int64 ``[N]``, the class that the model takes each sample for.
        threshold: samples whose score is at most this are suspects; NaN where the method names them in
            another way, or none.
        suspects: int64, the ids of the suspects, the most suspicious first.
    """

    method: str
    score: str
    ids: Tensor
    scores: Tensor
    labels: Tensor
    suggested: Tensor
    threshold: float
    suspects: Tensor

    def precision_recall(self, wrong: Tensor) -> tuple[float, float]:
        """How much of what is suspected is wrong, and how much of what is wrong is suspected.

        Args:
            wrong: int64, the ids of the samples whose labels are wrong, the truth.

        Returns:
            Precision and recall; NaN for a share of nothing.
        """
        found = int(torch.isin(self.suspects, wrong.cpu()).sum())
        named, there = len(self.suspects), len(wrong)
        return found / named if named else math.nan, found / there if there else math.nan

    def _figures(self) -> list[str]:
        suspected = set(self.suspects.tolist())
        lines = [f"{'sample':>8}{'label':>7}{'taken for':>11}{self.score:>16}"]
        columns = self.ids, self.labels, self.suggested, self.scores
        for sample, label, other, score in zip(*(column[:20].tolist() for column in columns), strict=True):
            mark = "  suspect" if sample in suspected else ""
            lines.append(f"{sample:>8}{label:>7}{other:>11}{score:>16.4f}{mark}")
        if len(self.ids) > 20:
            lines.append(f"... and {len(self.ids) - 20} more")
        return [*lines, f"{len(suspected)} of {len(self.ids)} samples are suspects, by {self.method}"]

    def plot(self, path: str | Path) -> None:
        """Draw how the scores are distributed, suspects apart, to a picture file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        ax = figure.subplots()
        suspected = torch.isin(self.ids, self.suspects)
        finite = self.scores.isfinite()
        parts = [self.scores[finite & ~suspected].numpy(), self.scores[finite & suspected].numpy()]
        names = [f"{len(self.ids) - len(self.suspects)} others", f"{len(self.suspects)} suspects"]
        ax.hist(parts, bins=50, stacked=True, color=["C0", "C3"], label=names)
        if not math.isnan(self.threshold):
            ax.axvline(self.threshold, color="0.3", linestyle="--", linewidth=1, label="threshold")
        ax.set(xlabel=self.score, ylabel="samples", title=self.method)
        ax.legend()
        figure.savefig(path, dpi=150)


def ranked(
    method: str,
    score: str,
    ids: Tensor,
    scores: Tensor,
    labels: Tensor,
    suggested: Tensor,
    *,
    threshold: float = math.nan,
    suspected: Tensor | None = None,
    notes: tuple[str, ...] = (),
) -> LabelRanking:
    """The ranking of samples ``[N]`` in any order; ``suspected`` is bool ``[N]``."""
    order = scores.cpu().argsort(stable=True)
    ids, scores, labels, suggested = (part.cpu()[order] for part in (ids, scores.double(), labels, suggested))
    chosen = scores <= threshold if suspected is None else suspected.cpu()[order]
    suspects = ids[chosen]
    problems: tuple[str, ...] = ()
    if len(suspects):
        some = ", ".join(map(str, suspects[:5].tolist())) + (", ..." if len(suspects) > 5 else "")
        problems = (f"{len(suspects)} of {len(ids)} labels may be wrong: look at samples {some}",)
    return LabelRanking(
        problems=problems,
        notes=notes,
        method=method,
        score=score,
        ids=ids,
        scores=scores,
        labels=labels,
        suggested=suggested,
        threshold=threshold,
        suspects=suspects,
    )


def contact_sheet(
    images: Tensor,
    path: str | Path,
    captions: Sequence[str] | None = None,
    *,
    columns: int = 8,
    title: str = "",
) -> None:
    """Draw many small images on one page, such as the most suspicious samples.

    Args:
        images: ``[N, C, H, W]`` with one channel or three, or ``[N, H, W]``; floating point. Black and white
            are the least and the greatest value of them all, or 0 and 1 where all values are between.
        path: of the picture file; its ending says the format.
        captions: one for each image.
        columns: images side by side.
        title: above the page.

    Raises:
        ValueError: images or captions do not fit.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from brittle.diagnosis import checks
        >>> page = pathlib.Path(tempfile.mkdtemp()) / "sheet.png"
        >>> checks.contact_sheet(torch.rand(5, 1, 8, 8), page, captions=list("abcde"))
        >>> page.exists()
        True
    """
    op = "contact_sheet"
    check.check_count(op, "columns", columns)
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() not in (3, 4):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{op}: images must be floating point [N, C, H, W] or [N, H, W]; got {got}")
    shown = images.detach().float().cpu()
    if shown.dim() == 4:
        if shown.shape[1] not in (1, 3):
            raise ValueError(f"{op}: images must have 1 or 3 channels; got {shown.shape[1]}")
        shown = shown.permute(0, 2, 3, 1).squeeze(3) if shown.shape[1] == 1 else shown.permute(0, 2, 3, 1)
    if not shown.numel():
        raise ValueError(f"{op}: images must hold some; got shape {list(images.shape)}")
    if captions is not None and len(captions) != len(shown):
        raise ValueError(f"{op}: captions must be one for each of {len(shown)} images; got {len(captions)}")
    from matplotlib.figure import Figure

    lowest, highest = (float(value) for value in shown.nan_to_num(0, 0, 0).aminmax())
    lowest, highest = min(lowest, 0.0), max(highest, 1.0)
    shown = ((shown - lowest) / (highest - lowest)).nan_to_num(0, 1, 0)
    across = min(columns, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(1.2 * across, 1.45 * down + (0.4 if title else 0.1)), layout="constrained")
    smoothing = "nearest" if shown.shape[1] <= _TINY else "antialiased"
    for place, ax in enumerate(figure.subplots(down, across, squeeze=False).flat):
        ax.set_axis_off()
        if place < len(shown):
            ax.imshow(shown[place].numpy(), cmap="gray", vmin=0, vmax=1, interpolation=smoothing)
            if captions is not None:
                ax.set_title(captions[place], fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
