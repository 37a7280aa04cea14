"""A mending's folder.

=========================== ==================================================================================
``mend.html``               what was tried, what came of it, and the model before and after
``mend.json``               the same for programs
``mended.safetensors``      the mended weights, a ``state_dict``
``diagnosis-before.html``   and ``diagnosis-after.html``: the diagnoses
``before/``, ``after/``     evaluations (:func:`brittle.evaluation.evaluate`)
``compare.html``            the two side by side
``training/``               a checkpoint of each repair, from which an interrupted one goes on
``begun.json``              what the folder is of
=========================== ==================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brittle import __version__
from brittle._files import parse_json, read_regular, write_whole
from brittle.data import Data
from brittle.evaluation.compare import compare
from brittle.evaluation.run import fingerprint
from brittle.evaluation.run.evaluate import evaluate
from brittle.evaluation.run.settings import EPSILONS
from brittle.evaluation.run.store import RunStoreError, lock, refuse_foreign, write_json
from brittle.report.compare import compare_page
from brittle.report.diagnosis import diagnosis_page
from brittle.report.mending import mending_page
from brittle.sources.batches import Batches

_OP = "mend"
_FORMAT = 1

#: The pages beside ``mend.html``, and what they are.
PAGES: Mapping[str, str] = {
    "diagnosis-before.html": "Diagnosis before",
    "diagnosis-after.html": "Diagnosis after",
    "compare.html": "Evaluations side by side",
    "before/report.html": "Evaluation before",
    "after/report.html": "Evaluation after",
}


class Folder:
    """The folder of one mending; in a ``with`` block this process alone works on it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._held = ExitStack()

    def __enter__(self) -> Folder:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if not (self.out / "begun.json").exists():
                refuse_foreign(self.out, "mending")
            self._held.enter_context(lock(self.out))
            (self.out / "training").mkdir(exist_ok=True)
        except RunStoreError as error:
            raise ValueError(str(error).replace("evaluate:", f"{_OP}:", 1)) from None
        except OSError as error:
            raise ValueError(
                f"{_OP}: out must be a folder that can be made; got {self.out}: {error.strerror}"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Begin, or make sure that what was begun here is the same."""
        path = self.out / "begun.json"
        if path.exists():
            try:
                begun = parse_json(read_regular(path, follow=False), dict[str, Any])
            except OSError as error:
                raise ValueError(f"{_OP}: out must be a mending's folder; {path}: {error.strerror}") from None
            except ValueError as error:
                raise ValueError(f"{_OP}: out must be a mending's folder; {path}: {error}") from None
            apart = fingerprint.differences(begun, json.loads(json.dumps(identity)))
            if apart:
                raise ValueError(
                    f"{_OP}: out must go on with what it was begun with; {self.out} has another "
                    f"{'; another '.join(apart)}. Take another folder"
                )
            return
        write_json(path, dict(identity))

    def checkpoint(self, number: int) -> Path:
        """Of the repair with a number."""
        return self.out / "training" / f"repair-{number}.safetensors"

    def finish(
        self,
        summary: Mapping[str, Any],
        models: Mapping[str, nn.Module],
        data: Data,
        title: str,
        provenance: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> None:
        """Write weights, evaluations and pages.

        Args:
            summary: of the mending.
            models: ``"before"`` and ``"after"``.
            data: what they are compared on.
            title, provenance: for the pages.
            options: ``bounds``, ``seed``, ``eps`` and ``progress`` of the evaluations.
        """
        from safetensors.torch import save

        # Tensors of their own, for tied weights share theirs and safetensors refuses that.
        state = {name: t.detach().cpu().clone() for name, t in models["after"].state_dict().items()}
        write_whole(self.out / "mended.safetensors", save({n: t.contiguous() for n, t in state.items()}))
        for when, model in models.items():
            page = diagnosis_page(summary[when], f"{title}, {when} mending", provenance)
            write_whole(self.out / f"diagnosis-{when}.html", page.encode())
            self._evaluate(model, when, data, f"{title}, {when} mending", options)
        found = compare(self.out / "before", self.out / "after")
        write_whole(self.out / "compare.html", compare_page(found.a, found.b, found.summary).encode())
        write_json(self.out / "mend.json", {"format": _FORMAT, "title": title, **summary})
        write_whole(self.out / "mend.html", mending_page(summary, title, PAGES, provenance).encode())

    def _evaluate(
        self, model: nn.Module, when: str, data: Data, title: str, options: Mapping[str, Any]
    ) -> None:
        low, high = options["bounds"]
        epsilons = {eps * (high - low) for eps in EPSILONS["linf"]} | ({options["eps"]} - {0.0})
        progress = options["progress"]
        evaluate(
            model,
            {"data": data.source if isinstance(data, Batches) else _tensors(data)},
            self.out / when,
            norms=["linf"],
            epsilons={"linf": sorted(epsilons)},
            reported={"linf": options["eps"]} if options["eps"] else None,
            attacks=["fgsm", "pgd"],
            restarts=1,
            bounds=options["bounds"],
            seed=options["seed"],
            skip_bad=isinstance(data, Batches) and data.skip_bad,
            title=title,
            progress=progress and (lambda stage, done, total: progress(f"{when}: {stage}", done, total)),
        )


def identity_of(
    model: nn.Module, untrained: nn.Module | None, data: Mapping[str, Data | None]
) -> dict[str, Any]:
    """What must be the same for a mending to go on: version, weights and data."""
    found = {"library": __version__, "weights": fingerprint.of_weights(model)}
    found["untrained"] = "none" if untrained is None else fingerprint.of_weights(untrained)
    return found | {name: "none" if each is None else _digest(each) for name, each in data.items()}


def _digest(data: Data) -> str:
    """SHA-256 of a pair of tensors or a source; of an iterable, of its first batch."""
    if isinstance(data, Batches):
        return data.source.digest()
    parts = data if isinstance(data, tuple) else next(iter(data), ())
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype} {list(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(data: Data) -> tuple[Tensor, Tensor]:
    """All of it as one pair."""
    if isinstance(data, tuple):
        return data[0], data[1]
    parts = [(batch[0], batch[1]) for batch in data]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
