"""The model and the data of a command, and how a later one finds them again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from brittle._files import check_shape
from brittle.cli import values

if TYPE_CHECKING:
    from torch import nn

    from brittle.sources import Source


class _InputsJson(TypedDict):
    model: str
    weights: str | None
    data: list[list[str]]
    groups: dict[str, list[str | None]]
    size: list[int] | None


@dataclass(frozen=True)
class Inputs:
    """What ``--model``, ``--weights``, ``--data``, ``--groups`` and ``--size`` name.

    Attributes:
        model: ``FILE.py:FUNCTION`` or an exported program.
        weights: its weights' file.
        data: places by name, the main set first.
        groups: CSV file and column by the set's name.
        size: height and width of images.
    """

    model: str
    weights: str | None
    data: Mapping[str, str]
    groups: Mapping[str, tuple[str, str | None]]
    size: tuple[int, int] | None

    @classmethod
    def of(
        cls,
        command: str,
        model: str,
        weights: Path | None,
        data: Sequence[str],
        groups: Sequence[str] | None = None,
        size: str | None = None,
    ) -> Inputs:
        """As they are written on the command line."""
        sets = values.named_data(command, data)
        # The run keeps where they are from any working directory, which has a name as well.
        for option, text in (
            ("--model", model),
            ("--weights", str(weights)),
            *(("--groups", g) for g in groups or ()),
        ):
            values.require_utf8(command, option, os.path.realpath(text))
        return cls(
            model=model,
            weights=None if weights is None else str(weights),
            data=sets,
            groups=values.named_groups(command, groups or (), list(sets)),
            size=values.height_and_width(command, size),
        )

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types, and from any working directory."""
        file, colon, function = self.model.rpartition(":")
        return {
            "model": f"{Path(file).resolve()}:{function}" if colon else str(Path(self.model).resolve()),
            "weights": None if self.weights is None else str(Path(self.weights).resolve()),
            "data": [
                [n, text if text == "digits" else str(Path(text).resolve())] for n, text in self.data.items()
            ],
            "groups": {
                name: [str(Path(csv).resolve()), column] for name, (csv, column) in self.groups.items()
            },
            "size": None if self.size is None else list(self.size),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Inputs:
        """What :meth:`as_json` gave; ValueError, a phrase, for anything else."""
        check_shape(saved, _InputsJson)
        if saved["size"] is not None and len(saved["size"]) != 2:
            raise ValueError(f"size must be two numbers; got {saved['size']}")
        return cls(
            model=saved["model"],
            weights=saved["weights"],
            data=dict(saved["data"]),
            groups={name: (csv, column) for name, (csv, column) in saved["groups"].items()},
            size=None if saved["size"] is None else (saved["size"][0], saved["size"][1]),
        )

    def described(self) -> dict[str, str]:
        """For a report's last section."""
        weights = "" if self.weights is None else f" with {self.weights}"
        sets = ", ".join(text if text == name else f"{name} = {text}" for name, text in self.data.items())
        return {"model": f"{self.model}{weights}", "data": sets}

    def load_model(self, device: str, trust_checkpoint: bool) -> nn.Module:
        """The module on its device: ``"cuda"`` is this process's own, ``"auto"`` the CPU if there is none."""
        import torch

        from brittle.loading import load_model

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device in ("auto", "cuda") and gpus:
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % gpus}"
        elif device == "auto":
            device = "cpu"
        weights = None if self.weights is None else Path(self.weights)
        return load_model(self.model, weights, trust_checkpoint, device)

    def open_data(self) -> dict[str, Source]:
        """The data sets by name, the main one first."""
        from brittle.sources import open_source

        folders = {name for name, text in self.data.items() if os.path.isdir(text)}
        sources = {}
        for name, text in self.data.items():
            csv, column = self.groups.get(name, (None, None))
            sources[name] = open_source(
                text,
                groups=None if csv is None else Path(csv),
                group_column=column,
                size=self.size if name in folders or not folders else None,
            )
        return sources
