"""From the rows of a finished run to its report."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from brittle import __version__
from brittle._files import parse_json, read_regular, write_whole
from brittle.diagnosis import near_duplicates
from brittle.evaluation.rows import AttackRows, Duplicates, RunRows, SetRows
from brittle.evaluation.run.answers import landscape_steps
from brittle.evaluation.run.attacked import Attacked
from brittle.evaluation.run.preflight import SetAbout, as_json
from brittle.evaluation.run.reading import read_rows
from brittle.evaluation.run.settings import Settings
from brittle.evaluation.run.store import RunJson, RunStore, RunStoreError, read_run_json, write_json
from brittle.evaluation.schema import ReportJson
from brittle.evaluation.verdict import Requirement
from brittle.evaluation.views import one_thread, summarise
from brittle.sources import BadSample
from brittle.target import Target

Pictures = dict[str, NDArray[np.floating[Any]]]

_EXAMPLES = 8
_READ = 256
# A side of the pictures that near-duplicates are searched by: 50,000 in colour take 150 MB.
_SIDE = 16


def load_report(out: str | Path) -> dict[str, Any]:
    """What ``report.json`` of a finished run holds.

    Raises:
        RunStoreError: there is none, or none that ``evaluate`` writes.
    """
    path = Path(out) / "report.json"
    try:
        found = parse_json(read_regular(path), ReportJson)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunStoreError(f"evaluate: {out} must hold a finished run; {path}: {reason}") from None
    return cast(dict[str, Any], found)


def finish(
    store: RunStore,
    target: Target,
    about: Sequence[SetAbout],
    settings: Settings,
    requirements: Sequence[Requirement],
    title: str | None,
    provenance: Mapping[str, str],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Write ``report.json`` and ``report.html``: functions of the rows, the settings and nothing else."""
    from brittle.report import evaluation_page

    tick = progress or (lambda stage, done, total: None)
    tick("report", 0, 3)
    texts = {stage.name_in_texts: stage.text for stage in settings.stages() if isinstance(stage, Attacked)}
    run = read_rows(store, as_json(about), settings.as_json(), texts, landscape_steps(settings.reach))
    notes: list[dict[str, str]] = []
    if "duplicates" in settings.views:
        # How a long sum is split between threads would show in its last digits.
        with one_thread():
            run = replace(run, duplicates=tuple(_duplicates(store, about, notes)))
    begun = read_run_json(store.out)
    used, everyone = (
        sum(one.count for one in about if one.labelled),
        sum(len(one.source) for one in about if one.labelled),
    )
    tick("report", 1, 3)
    summary = summarise(
        run,
        title=title or "How far this model can be trusted",
        partial=None if used == everyone else {"used": used, "of": everyone},
        requirements=requirements,
        provenance=_provenance(begun, settings, provenance),
    )
    # Notes are the mildest of findings, which stand in order of severity.
    summary["findings"] += notes
    pictures: Pictures = {}
    if "robustness" in summary["views"]:
        summary["views"]["robustness"]["examples"] = _examples(
            run, store, target, about[0], settings, pictures
        )
    by_name = {one.name: one for one in about}
    for key in _picture_keys(summary["views"]):
        if key not in pictures:
            _add_picture(pictures, key, by_name, target.bounds)
    tick("report", 2, 3)
    page = evaluation_page(summary, pictures)
    write_json(store.out / "report.json", summary)
    try:
        write_whole(store.out / "report.html", page.encode())
    except OSError as error:
        raise RunStoreError(
            f"evaluate: {store.out / 'report.html'} must be writable; got {error.strerror}"
        ) from None
    tick("report", 3, 3)


def _provenance(begun: RunJson, settings: Settings, further: Mapping[str, str]) -> dict[str, str]:
    """All that it takes to get the same numbers: versions, digests, and how the model was called."""
    known: Mapping[str, Any] = begun["fingerprint"]
    data = {name: f"{digest[:16]} (SHA-256)" for name, digest in known.items() if name.startswith("data ")}
    found = {
        "brittle": __version__,
        "torch": torch.__version__,
        "random stream": str(known["random stream"]),
        "seed": str(settings.seed),
        "device": str(known["device"]),
        "samples per call": str(known["fixed batch"]),
        "bounds": _numbers(settings.bounds),
        "mean": _numbers(known["mean"]),
        "std": _numbers(known["std"]),
        "samples at most": "all" if known["limit"] is None else f"{known['limit']} of each set",
        "weights": f"{known['weights'][:16]} (SHA-256)",
        **data,
        **further,
    }
    size = begun["arguments"].get("size")
    if size:
        found["images resized to"] = f"{size[0]} x {size[1]}, bilinear with antialiasing"
    if begun["arguments"]:
        found["command"] = _command(begun, settings)
    else:
        found["call"] = _call(begun, settings)
    return found


def _call(begun: RunJson, settings: Settings) -> str:
    """The same for a run that was begun from Python."""
    known: Mapping[str, Any] = begun["fingerprint"]
    given = settings.as_json() | {name: known[name] for name in ("mean", "std", "limit")}
    given["fixed_batch"] = known["fixed batch"]
    shown = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    return f"brittle.evaluation.evaluate(model, data, out, {shown})"


def _numbers(values: Sequence[float] | None) -> str:
    return "none" if values is None else ", ".join(f"{value:.6g}" for value in values)


def _command(begun: RunJson, settings: Settings) -> str:
    """The command line that begins the run again, quoted for a shell."""
    given, known = begun["arguments"], cast(Mapping[str, Any], begun["fingerprint"])

    def exact(values: Sequence[float]) -> str:
        return ",".join(repr(float(value)) for value in values)

    words = ["brittle", "evaluate", "--model", given["model"]]
    words += ["--weights", given["weights"]] if given["weights"] else []
    for name, place in given["data"]:
        words += ["--data", f"{name}={place}"]
    for name, (table, column) in given["groups"].items():
        words += ["--groups", f"{name}={table}" + (f":{column}" if column else "")]
    words += ["--size", ",".join(map(str, given["size"]))] if given["size"] else []
    words += ["--bounds", exact(settings.bounds)]
    words += ["--mean", exact(known["mean"]), "--std", exact(known["std"])] if known["mean"] else []
    words += ["--limit", str(known["limit"])] if known["limit"] is not None else []
    words += ["--views", ",".join(settings.views), "--norm", ",".join(settings.norms)]
    for norm in settings.norms:
        words += ["--epsilons", f"{norm}:{exact(settings.epsilons[norm])}"]
        words += ["--reported", f"{norm}:{settings.reported[norm]!r}"]
    words += ["--attacks", ",".join(settings.attacks), "--steps", str(settings.steps)]
    words += ["--restarts", str(settings.restarts), "--seed", str(settings.seed)]
    words += ["--repeat-seeds", str(settings.repeat_seeds), "--precision", settings.precision]
    words += ["--fixed-batch", str(known["fixed batch"]), "--device", str(known["device"])]
    words += [f"--{name}" for name in ("skip-bad", "trust-checkpoint") if given.get(name)]
    return " ".join(map(shlex.quote, words))


def _duplicates(
    store: RunStore, about: Sequence[SetAbout], notes: list[dict[str, str]]
) -> Iterator[Duplicates]:
    """Every two sets, the one called "train", or else the earlier one, searched for the other's samples."""
    sets = sorted((one for one in about if one.labelled), key=lambda one: one.name != "train")
    if len(sets) < 2:
        return
    inputs = {one.name: _small(store, one) for one in sets}
    for train, test in combinations(sets, 2):
        (ids_a, a), (ids_b, b) = inputs[train.name], inputs[test.name]
        try:
            found = near_duplicates(a, b)
        except ValueError as error:
            notes.append(
                {
                    "severity": "note",
                    "view": "duplicates",
                    "title": f"{test.name} was not searched for near-duplicates of {train.name}",
                    "evidence": str(error),
                    "advice": "Look for shared samples by other means, such as file names and patients.",
                }
            )
            continue
        pairs = zip(
            ids_b[found.test_index].tolist(),
            ids_a[found.train_index].tolist(),
            found.cosines.tolist(),
            found.p_values.tolist(),
            strict=True,
        )
        yield Duplicates(
            train.name, test.name, len(found.suspects), found.samples, found.threshold, tuple(pairs)
        )


def _small(store: RunStore, one: SetAbout) -> tuple[Tensor, Tensor]:
    """Ids and samples of a set, images reduced to at most 16 x 16 pixels by area."""
    ids = store.column("SELECT id FROM samples WHERE data_set = ? ORDER BY id", one.name)
    parts = []
    for first in range(0, len(ids), _READ):
        x = one.source.load(ids[first : first + _READ].tolist())[0]
        if x.dim() == 4 and max(x.shape[2:]) > _SIDE:
            x = F.adaptive_avg_pool2d(x, (min(_SIDE, x.shape[2]), min(_SIDE, x.shape[3])))
        parts.append(x)
    return torch.from_numpy(ids), torch.cat(parts)


def _examples(
    run: RunRows, store: RunStore, target: Target, one: SetAbout, settings: Settings, pictures: Pictures
) -> list[dict[str, Any]]:
    """The nearest adversarial points of samples that the model was sure of, some in each norm."""
    shown = []
    for norm in settings.norms:
        tried = {a.attack: a for a in run.main.attacks if a.norm == norm and a.seed == settings.seed}
        rows = next((tried[name] for name in ("minimal", "pgd", "fgsm") if name in tried), None)
        if rows is None:
            continue
        for place in _surest(run.main, rows, settings.reported[norm])[: _EXAMPLES // len(settings.norms)]:
            point = store.point(run.main.name, rows.attack, norm, rows.seed, int(run.main.ids[place]))
            if point is not None:
                shown.append(_example(run.main, place, rows, point, target, one, pictures))
    return shown


def _surest(main: SetRows, rows: AttackRows, eps: float) -> list[int]:
    """Places of the samples that fell at this radius, the surest of each class first."""
    confidence, predicted = main.logits.double().softmax(1).max(1)
    fallen = (predicted == main.label) & rows.fooled[rows.epsilons.index(eps)] & rows.distance.isfinite()
    order = torch.where(fallen, confidence, -1.0).argsort(descending=True, stable=True)[: int(fallen.sum())]
    seen: Counter[int] = Counter()
    ranked = []
    for place in order.tolist():
        label = int(main.label[place])
        ranked.append((seen[label], place))
        seen[label] += 1
    return [place for _, place in sorted(ranked, key=lambda pair: pair[0])]


def _example(
    main: SetRows,
    place: int,
    rows: AttackRows,
    point: Tensor,
    target: Target,
    one: SetAbout,
    pictures: Pictures,
) -> dict[str, Any]:
    sample = int(main.ids[place])
    x, _ = one.source.load([sample])
    both = torch.cat([x.to(target.dtype), point[None]]).to(target.device or x.device)
    logits = target.logits(both, torch.tensor([sample, sample], device=both.device))
    confidence, predicted = (part.tolist() for part in logits.double().softmax(1).max(1))
    clean, adversarial = f"{main.name}/{sample}/clean", f"{main.name}/{sample}/{rows.attack} {rows.norm}"
    for key, picture in ((clean, x[0]), (adversarial, point)):
        _draw(pictures, key, picture, target.bounds)
    before, after = (
        {"label": main.classes[label], "confidence": sure}
        for label, sure in zip(predicted, confidence, strict=True)
    )
    return {
        "id": sample,
        "name": main.names[place],
        "label": main.classes[int(main.label[place])],
        "attack": rows.attack,
        "norm": rows.norm,
        "distance": float(rows.distance[place]),
        "before": before,
        "after": after,
        "clean": clean,
        "adversarial": adversarial,
    }


def _picture_keys(value: Any) -> Iterator[str]:
    """The keys under ``picture`` and ``pictures``, anywhere."""
    if isinstance(value, list):
        for part in value:
            yield from _picture_keys(part)
    elif isinstance(value, dict):
        for name, part in value.items():
            if name == "picture":
                yield part
            elif name == "pictures":
                yield from part
            else:
                yield from _picture_keys(part)


def _add_picture(
    pictures: Pictures, key: str, about: Mapping[str, SetAbout], bounds: tuple[float, float]
) -> None:
    name, sample, _ = key.rsplit("/", 2)
    try:
        _draw(pictures, key, about[name].source.load([int(sample)])[0][0], bounds)
    except BadSample:
        return


def _draw(pictures: Pictures, key: str, x: Tensor, bounds: tuple[float, float]) -> None:
    """A sample that is an image, as ``[H, W]`` or ``[H, W, 3]`` in [0, 1]."""
    if x.dim() != 3 or x.shape[0] not in (1, 3):
        return
    lo, hi = bounds
    shown = ((x.detach().cpu().float() - lo) / (hi - lo)).clamp(0, 1)
    pictures[key] = (shown[0] if len(shown) == 1 else shown.permute(1, 2, 0)).numpy()
