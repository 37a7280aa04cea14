"""A whole evaluation: from a model and data to a report, through a store that survives interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from brittle import __version__
from brittle import _checks as check
from brittle._extras import REPORT, require
from brittle._files import clean_names, clean_text
from brittle.evaluation.run import fingerprint
from brittle.evaluation.run.answers import Surroundings
from brittle.evaluation.run.finish import finish, load_report
from brittle.evaluation.run.preflight import SetAbout, as_json, look_at
from brittle.evaluation.run.settings import LANDSCAPE_SAMPLES, NOISE, Settings
from brittle.evaluation.run.store import (
    FORMAT,
    RunStore,
    RunStoreError,
    lock,
    read_run_json,
    refuse_foreign,
    remove_drafts,
    write_json,
)
from brittle.evaluation.run.work import Stage, Work
from brittle.evaluation.run.workers import Workers, workers
from brittle.evaluation.verdict import check_requirements, parse_requirement
from brittle.sources import as_source
from brittle.target import Bounds, Model, Target

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation.

    Attributes:
        summary: what ``report.json`` holds.
        out: the run's folder.
        held: whether every requirement holds; None where none was made.
    """

    summary: dict[str, Any]
    out: Path
    held: bool | None

    @property
    def partial(self) -> bool:
        """Whether ``limit`` has left samples out."""
        return self.summary["partial"] is not None


def evaluate(
    model: Model,
    data: Any,
    out: str | Path,
    *,
    views: Sequence[str] | None = None,
    norms: Sequence[str] = ("linf", "l2"),
    epsilons: Mapping[str, Sequence[float]] | Sequence[float] | None = None,
    reported: Mapping[str, float] | float | None = None,
    attacks: Sequence[str] = ("fgsm", "pgd", "minimal", "random"),
    steps: int = 40,
    restarts: int = 3,
    bounds: Bounds = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    precision: str = "float32",
    batch_size: int = 256,
    fixed_batch: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    repeat_seeds: int = 1,
    skip_bad: bool = False,
    fail_under: Sequence[str] = (),
    fresh: bool = False,
    title: str | None = None,
    provenance: Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a model on data, keep every sample's results, and write a report.

    The run lives in a folder: ``run.sqlite`` has a row for every sample, attack and radius, ``adversarial/``
    the points themselves, ``report.html`` and ``report.json`` what they come to. Rows are written as they
    come. The same call again goes on where the last one stopped, whatever stopped it; a call with other
    weights, data or settings is refused. Under ``torchrun`` the samples are shared between the processes.

    The model is always called with batches of one size, the last ones padded, and what is drawn at random is
    a function of seed and sample, so neither ``batch_size`` nor the number of processes nor an interruption
    changes a row. The model is given back as it was (see :func:`brittle.fgsm`).

    Args:
        model: an ``nn.Module`` or a callable that maps ``[N, ...]`` to logits ``[N, C]``, on the device where
            it is to run; it is given samples of its parameters' dtype.
        data: a pair of tensors ``(x, y)``, a map-style torch data set, a :class:`brittle.sources.Source`, or
            several of them by name. The first set is the main one: it is attacked and shifted; the others
            are compared with it.
        out: the run's folder, made if absent.
        views: what to look at, by default everything that the data allows: ``"classification"``,
            ``"segments"``, ``"calibration"``, ``"ood"``, ``"robustness"``, ``"shift"``, ``"sets"``,
            ``"landscape"``, ``"samples"``, ``"repeat"``, ``"duplicates"``.
        norms: of the attacks: ``"linf"``, ``"l2"``, ``"l1"``.
        epsilons: radii, finite and > 0, by norm; a plain sequence is for Linf. By default
            :data:`brittle.evaluation.run.settings.EPSILONS`, times the width of the bounds.
        reported: the radius that the report speaks of first, one of the epsilons, by norm; by default the
            one nearest to 8/255 (Linf), 0.5 (L2), 12 (L1).
        attacks: ``"fgsm"`` (a single step), ``"pgd"`` (with restarts, the radii bisected), ``"minimal"``
            (PGD for each sample's own smallest radius), ``"random"`` (random points, which gradients must
            beat).
        steps, restarts: of PGD; steps of the search for the smallest radius, too.
        bounds: the smallest and the largest value of the inputs.
        mean, std: per channel, if the model expects ``(x - mean) / std``.
        precision: of the search, ``"float32"`` or ``"bfloat16"``; what is found is certified by the model
            itself.
        batch_size: samples that a process reads and attacks at a time, and commits together.
        fixed_batch: samples in each call of the model; by default 32 on a CPU, 256 on a GPU. Another number
            may change the last bits of the model's answers, so it is part of what a run is.
        limit: take so many samples of each set, spread evenly over it; the report says so.
        seed: of everything random, 64 bits.
        repeat_seeds: repeat the noise and PGD with so many seeds in all, and show the spread.
        skip_bad: leave samples out that cannot be read, and list them.
        fail_under: requirements such as ``"robust=0.5@8/255"``, ``"accuracy=0.9"``, ``"ece=0.05"``; see
            :func:`brittle.evaluation.verdict.parse_requirement`.
        fresh: if the folder holds a run already, begin a new one in a folder beside it.
        title: of the report.
        provenance: further lines for the report's last section.
        arguments: kept in ``run.json``, for whoever wants to repeat the run.
        progress: called with the stage, the samples done and their total.

    Returns:
        The report, also written to the folder.

    Raises:
        ValueError: an argument, the data or the model does not fit; nothing is lost.
        RunMismatch: the folder holds a run of something else; a ValueError.
        RunStoreError: the folder is neither empty nor a run's, cannot be written, or another process works on
            it; an OSError.
        UnusablePackage: a package that the report needs is missing or cannot be imported; an ImportError.

    Example:
        >>> import tempfile, torch, brittle
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> x = torch.rand(40, 1, 8, 8)
        >>> y = model(x).argmax(1)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     report = brittle.evaluation.evaluate(
        ...         model, (x, y), out, views=["classification", "robustness"], norms=["linf"],
        ...         epsilons=[0.01, 0.1], attacks=["fgsm", "pgd"], fail_under=["accuracy=0.99"])
        ...     report.held, (report.out / "report.html").exists()
        (True, True)
    """
    op = "evaluate"
    require(op, *REPORT)
    check.check_count(op, "batch_size", batch_size)
    if limit is not None:
        check.check_count(op, "limit", limit)
    settings = Settings.of(
        views, norms, epsilons, reported, attacks, steps, restarts, seed, repeat_seeds, precision, bounds
    )
    requirements = [parse_requirement(text) for text in fail_under]
    named = data if isinstance(data, Mapping) else {"data": data}
    if not named:
        raise ValueError(f"{op}: data must hold at least one set; got none")
    sources = dict(zip(clean_names(named), map(as_source, named.values()), strict=True))
    title = None if title is None else clean_text(title)
    provenance = {clean_text(name): clean_text(text) for name, text in (provenance or {}).items()}
    if NOISE in sources:
        raise ValueError(
            f"{op}: data sets must not be called {NOISE!r}, which is the report's own; got {tuple(sources)}"
        )
    main, *others = sources.values()
    check_requirements(
        requirements,
        settings.as_json(),
        groups=main.groups is not None,
        sets=1 + len(others) + ("ood" in settings.views),
    )
    target = Target(
        model,
        bounds,
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        precision=precision,
        fixed_batch=fixed_batch or 1,
        name=op,
    )
    device = target.device or torch.device("cpu")
    target.fixed_batch = fixed_batch or (256 if device.type == "cuda" else 32)
    with ExitStack() as stack:
        stack.enter_context(_reproducible(device))
        team = stack.enter_context(workers())
        stack.enter_context(target)
        about = look_at(
            target,
            sources,
            skip_bad=skip_bad,
            limit=limit,
            views=settings.views,
            gradients=any(stage.needs_gradients for stage in settings.stages()),
            seed=settings.seed,
        )
        identity = {
            **_identity(target, settings, limit, mean, std),
            # In order: the first one is attacked.
            "sets": list(sources),
            "answers": about[0].answers,
        }
        for rank, theirs in enumerate(team.gather(identity)):
            apart = fingerprint.differences(theirs, identity)
            if apart:
                raise ValueError(
                    f"{op}: all processes must have the same model and settings; rank {rank} differs in "
                    + "; ".join(apart)
                )
        folder = Path(team.from_leader(lambda: str(_folder(Path(out), fresh))))
        if team.leads:
            stack.enter_context(lock(folder))
            identity |= {f"data {one.name}": one.source.digest() for one in about if one.labelled}
            _begin(folder, identity, about, settings, dict(arguments or {}))
        team.wait()
        store = RunStore(folder)
        stack.callback(store.close)
        for name, stage, one in _work(settings, about):
            _run(name, stage, one, team, store, target, batch_size, skip_bad, progress)
        team.wait()
        store.still_there()
        if team.leads:
            finish(store, target, about, settings, requirements, title, provenance, progress)
        team.wait()
    summary = load_report(folder)
    return Report(summary, folder, summary["verdict"]["held"])


def _identity(target: Target, settings: Settings, limit: int | None, mean: Any, std: Any) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    device = target.device or torch.device("cpu")
    found = {
        "library": __version__,
        "random stream": "1",
        "weights": fingerprint.of_weights(target.model),
        "device": device.type,
        "fixed batch": target.fixed_batch,
        "limit": limit,
        "mean": None if mean is None else [float(v) for v in torch.as_tensor(mean).flatten()],
        "std": None if std is None else [float(v) for v in torch.as_tensor(std).flatten()],
    }
    # Views only choose what is shown, and repetitions add to what is there.
    free = ("views", "repeat_seeds")
    return found | {name: value for name, value in settings.as_json().items() if name not in free}


def _folder(out: Path, fresh: bool) -> Path:
    """The run's folder, made if absent; one beside it if that is taken and a fresh one is wanted."""
    # Of "." and "..", too, there is a folder beside.
    out = out if out.name.strip(".") else out.resolve()
    place, number = out, 1
    while fresh and (place / "run.json").exists():
        number += 1
        place = out.with_name(f"{out.name}-{number}")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunStoreError(
            f"evaluate: out must be a folder that can be made; got {place}: {error.strerror}"
        ) from None
    if not (place / "run.json").exists():
        refuse_foreign(place)
    return place


def _begin(
    folder: Path,
    identity: dict[str, Any],
    about: Sequence[SetAbout],
    settings: Settings,
    arguments: dict[str, Any],
) -> None:
    """Begin the run, or make sure that it is this one and clear away what a killed process left."""
    began_before = (folder / "run.json").exists()
    if began_before:
        fingerprint.check(read_run_json(folder)["fingerprint"], identity, folder)
    else:
        remove_drafts(folder)
        write_json(
            folder / "run.json",
            {
                "format": FORMAT,
                "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "settings": settings.as_json(),
                "arguments": arguments,
                "sets": as_json(about),
                "fingerprint": identity,
            },
        )
    store = RunStore(folder, create=True)
    try:
        if began_before:
            store.clean_up()
    finally:
        store.close()


def _work(settings: Settings, about: Sequence[SetAbout]) -> Iterator[tuple[str, Stage, SetAbout]]:
    """The stages in order, each with what it is called while it runs, and the data that it is for."""
    main = about[0]
    first, *further = settings.stages()
    for one in about:
        yield f"{first.name} {one.name}", first, one
    for stage in further:
        # Seeds are told where there are several.
        yield stage.name.removesuffix(f" {settings.seed}"), stage, main


def _run(
    title: str,
    stage: Stage,
    one: SetAbout,
    team: Workers,
    store: RunStore,
    target: Target,
    batch_size: int,
    skip_bad: bool,
    progress: Progress | None,
) -> None:
    mine = one.rows(LANDSCAPE_SAMPLES if isinstance(stage, Surroundings) else None)[team.rank :: team.count]
    finished = set(store.finished(stage.name, one.name).tolist())
    left = [sample for sample in mine if sample not in finished]
    done = len(mine) - len(left)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(title, done, len(mine))

    if left:
        tick(0)
        # What the model has seen of one set's labels is not for another's.
        target.expect_labels(torch.zeros(1, dtype=torch.int64))
        stage.run(Work(store, target, one.source, one.name, left, batch_size, skip_bad, tick))


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """cuDNN otherwise tries its kernels out, and takes another one the next time."""
    if device.type != "cuda":
        yield
        return
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    flags.deterministic, flags.benchmark = True, False
    try:
        yield
    finally:
        flags.deterministic, flags.benchmark = before
