"""What ``brittle diagnose`` and ``brittle mend`` look at: a model, itself before training, and data to learn
from and to judge by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brittle.cli import values
from brittle.cli.inputs import Inputs
from brittle.cli.progress import progress_on_stderr

if TYPE_CHECKING:
    from torch import nn

    from brittle.diagnosis import Diagnosis
    from brittle.sources import Source
    from brittle.sources.batches import Batches

SEVERITIES = ("mild", "severe")
PLACES = "each a folder of class folders of images or an .npz file with x and y; or 'digits' alone."
FAIL_HELP = "Exit code 1 where a flaw is as severe as that, or more."

Untrained = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FUNCTION",
        help="Builds the model as it was before training; by default --model without --weights, where those "
        "are given.",
        rich_help_panel="Model",
    ),
]
UntrainedWeights = Annotated[
    Path | None,
    typer.Option(
        help="The weights of the model before training, for --untrained or --model.", rich_help_panel="Model"
    ),
]


@dataclass(frozen=True)
class Flawed:
    """The model and the data that a command line names.

    Attributes:
        op: the command.
        inputs: model, weights and data; the sets are ``train``, ``validation`` and, where it is wanted,
            ``test``, or ``digits`` alone.
        before: the model before training; None where it is not known.
    """

    op: str
    inputs: Inputs
    before: Inputs | None

    @classmethod
    def of(
        cls,
        op: str,
        model: str,
        weights: Path | None,
        untrained: str | None,
        untrained_weights: Path | None,
        data: Sequence[str],
        size: str | None,
        *,
        test: bool = False,
    ) -> Flawed:
        """As it is written on the command line; ``test`` allows a third set."""
        inputs = Inputs.of(op, model, weights, data, size=size)
        allowed = ("train", "validation", "test") if test else ("train", "validation")
        names = list(inputs.data)
        if list(inputs.data.values()) != ["digits"] and (
            not set(names) <= set(allowed) or not {"train", "validation"} <= set(names)
        ):
            wanted = "train=PLACE and validation=PLACE" + (" and, if wanted, test=PLACE" if test else "")
            raise ValueError(f"{op}: --data must be {wanted}, or 'digits' alone; got {', '.join(names)}")
        before = None
        if untrained is not None or untrained_weights is not None or weights is not None:
            before = Inputs.of(op, untrained or model, untrained_weights, data, size=size)
        return cls(op, inputs, before)

    def described(self) -> dict[str, str]:
        """For a page's last section."""
        found = self.inputs.described()
        if self.before is not None:
            found["before training"] = self.before.described()["model"]
        return found

    def radius(self, text: str | None) -> float | None:
        """Of ``--eps``."""
        if text is None:
            return None
        found = values.numbers(self.op, "--eps", text)
        if len(found) != 1:
            raise ValueError(f"{self.op}: --eps must be one number; got {text!r}")
        return found[0]

    def load_models(
        self, device: str, trust_checkpoint: bool, scale: tuple[str | None, str | None] = (None, None)
    ) -> tuple[nn.Module, nn.Module | None]:
        """The model, and the one before training; both take inputs as they are in the data."""
        models = [
            None if inputs is None else inputs.load_model(device, trust_checkpoint)
            for inputs in (self.inputs, self.before)
        ]
        for model in models:
            if model is not None:
                self._normalise(model, scale)
        assert models[0] is not None
        return models[0], models[1]

    def open_data(self, batch_size: int, seed: int, skip_bad: bool) -> dict[str, Batches]:
        """The sets by name, in batches."""
        from brittle.sources.batches import Batches

        def say(bad: Exception) -> None:
            typer.echo(f"left out: {bad}", err=True)

        return {
            name: Batches(source, batch_size, seed, skip_bad, self.op, say)
            for name, source in self.open_sources().items()
        }

    def open_sources(self) -> dict[str, Source]:
        """The sets by name, as sources; for 'digits' a third one, ``test``, of half of the test digits."""
        if list(self.inputs.data.values()) != ["digits"]:
            return self.inputs.open_data()
        from brittle.sources import as_source, digits

        train, test = digits()
        # The split is random already.
        parts = {"train": train, "validation": test.take(test.ids.new_tensor(range(0, len(test.x), 2)))}
        parts["test"] = test.take(test.ids.new_tensor(range(1, len(test.x), 2)))
        names = [str(digit) for digit in range(10)]
        return {name: as_source((part.x, part.y), classes=names) for name, part in parts.items()}

    def diagnosis(
        self,
        models: tuple[nn.Module, nn.Module | None],
        sets: Mapping[str, Batches],
        bounds: tuple[float, float],
        options: Mapping[str, Any],
    ) -> Diagnosis:
        """What :func:`brittle.diagnosis.diagnose` finds, with progress on stderr."""
        from brittle.diagnosis import diagnose
        from brittle.target import Target

        target = Target(models[0], bounds, channels_last=False, fold_batchnorm=False, name=self.op)
        with progress_on_stderr() as progress:

            def tick(done: int, total: int | None) -> None:
                progress("diagnosis", done, done + 1 if total is None else total)

            return diagnose(target, sets["train"], sets["validation"], models[1], **options, progress=tick)

    def _normalise(self, model: nn.Module, scale: tuple[str | None, str | None]) -> None:
        """Have the model normalise its inputs first, without a change to its layers' names."""
        if scale == (None, None):
            return
        import torch
        from torch import Tensor

        if None in scale:
            raise ValueError(f"{self.op}: --mean and --std must be given together")
        mean, std = (torch.tensor(values.numbers(self.op, "--mean and --std", text or "")) for text in scale)
        if len(mean) != len(std) or not bool((std > 0).all()):
            raise ValueError(f"{self.op}: --mean and --std must be as many numbers, and std > 0; got {scale}")

        def normalise(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *rest = args
            shape = (-1, *[1] * (x.dim() - 2))
            shift, width = (part.to(x).reshape(shape) for part in (mean, std))
            return ((x - shift) / width, *rest)

        model.register_forward_pre_hook(normalise)


def check_severity(op: str, severity: str | None) -> None:
    """Of ``--fail-on``."""
    if severity is not None and severity not in SEVERITIES:
        raise ValueError(f"{op}: --fail-on must be one of {', '.join(SEVERITIES)}; got {severity!r}")
