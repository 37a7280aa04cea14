"""What a suggestion does when it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from brittle.data import Data
from brittle.repair.adversarial import adversarial_train
from brittle.repair.masking import mask
from brittle.repair.recycling import recycle
from brittle.repair.regularization import regularizer
from brittle.repair.retraining import reinitialize, retrain
from brittle.repair.state import Training
from brittle.repair.structure import norm_after, reader_of
from brittle.repair.training import train

if TYPE_CHECKING:
    from brittle.repair.suggestions import Suggestion

#: What a suggestion may do, and what it is called in a table.
ACTIONS: Mapping[str, str] = {
    "recycle": "start the dead units anew and train them",
    "merge": "merge the units that repeat each other, start the freed ones anew and train them",
    "decorrelate": "train with a penalty on units that repeat each other",
    "retrain": "train the layers, from new weights where their old ones do harm",
    "restart": "give the layers new weights that pass the variance on, and train the network",
    "adversarial_train": "train on adversarial samples",
}

_WITH_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MERGED_BY = 1024  # samples

Options = Mapping[str, Any]


def perform(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    """Carry a suggestion out; ``attack`` has ``eps`` and ``bounds``, ``training`` what ``train`` takes."""
    return _DO[it.action](it, model, data, attack, training)


def _recycle(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    """Dead units give nothing, so new ones take nothing away, whatever the others are."""
    for layer, units in it.arguments["units"].items():
        if units and isinstance(model.get_submodule(layer), _WITH_UNITS):
            recycle(model, layer, units, seed=training.get("seed", 0))
        else:
            _anew(model, (layer,), data, "unit-variance", training)
    return train(model, data, parameters=_with_readers(model, it.layers), **training)


def _anew(model: nn.Module, layers: Sequence[str], data: Data, reset: str, training: Options) -> None:
    names = ("batch_size", "seed")
    reinitialize(model, layers, data, reset, **{k: training[k] for k in names if k in training}, name="mend")


def _merge(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    """Where what reads the copies is not known, they are left to the penalty."""
    few = _some(data)
    for finding in it.findings:
        if finding.kind == "redundant" and finding.channels and _recyclable(model, finding.layer):
            mask(model, finding.layer, found=finding, data=few, merge=True).bake()
            recycle(model, finding.layer, finding.channels, seed=training.get("seed", 0))
    return _decorrelate(it, model, data, attack, training)


def _recyclable(model: nn.Module, layer: str) -> bool:
    return isinstance(model.get_submodule(layer), _WITH_UNITS) and reader_of(model, layer) is not None


def _some(data: Data) -> list[Tensor]:
    """Inputs enough to tell copies by."""
    if isinstance(data, tuple):
        return [data[0][:_MERGED_BY]]
    found: list[Tensor] = []
    for batch in data:
        found.append(batch[0])
        if sum(map(len, found)) >= _MERGED_BY:
            break
    return found


def _decorrelate(
    it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options
) -> Training:
    strength = {"redundancy": it.arguments["redundancy"]}
    penalty = regularizer(redundancy_of="activations", layers=dict.fromkeys(it.layers, strength))
    return train(model, data, regularizer=penalty, parameters=_with_readers(model, it.layers), **training)


def _retrain(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    arguments = dict(it.arguments)
    strength = arguments.pop("l2", None)
    if strength is not None:
        arguments["regularizer"] = regularizer(l2=strength)
    return retrain(model, it.layers, data, **{**training, **arguments})


def _restart(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    """New weights in the midst of old ones: all of them have to find to each other."""
    arguments = dict(it.arguments)
    _anew(model, it.layers, data, arguments.pop("reset"), training)
    arguments["epochs"] = arguments.pop("longer", 1) * training.get("epochs", 10)
    return train(model, data, **{**training, **arguments})


def _harden(it: Suggestion, model: nn.Module, data: Data, attack: Options, training: Options) -> Training:
    # A part of a pair can be held out; of other data nothing is.
    held_out = {} if isinstance(data, tuple) else {"validation": None}
    return adversarial_train(model, data, **{**attack, **held_out, **it.arguments, **training})


_DO: Mapping[str, Callable[[Suggestion, nn.Module, Data, Options, Options], Training]] = {
    "recycle": _recycle,
    "merge": _merge,
    "decorrelate": _decorrelate,
    "retrain": _retrain,
    "restart": _restart,
    "adversarial_train": _harden,
}


def _with_readers(model: nn.Module, layers: Sequence[str]) -> list[str] | None:
    """The layers with their norms and the layers that read them; None, for all, where those are unknown."""
    found = list(layers)
    for layer in layers:
        reader, norm = reader_of(model, layer), norm_after(model, layer)
        if reader is None:
            return None
        found += [reader.name] + ([norm] if norm else [])
    return list(dict.fromkeys(found))
