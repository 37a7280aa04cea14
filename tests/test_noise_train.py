"""Noise training: the noise is NoiseInjection's, a sample's own at each step, and gone afterwards."""

from pathlib import Path
from typing import Any

import brittle
import pytest
import torch
import torch.nn.functional as F
from brittle.noise import NoiseInjection
from brittle.repair import Batch, Training, noise_train, train
from brittle.repair.loop import derived_seed
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]


def problem(count: int = 30) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 4, generator=generator)
    return x, (x.mean(1) > 0.5).long()


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2)


def seen_by_steps(**options: Any) -> list[Batch]:
    batches: list[Batch] = []

    def step(batch: Batch) -> Tensor:
        batches.append(batch)
        return F.cross_entropy(batch.model(batch.x), batch.y)

    noise_train(network(), problem(), step=step, **{"epochs": 2, "batch_size": 10, **options})
    return batches


@pytest.mark.parametrize(
    ("kind", "scale", "bounds"),
    [
        ("gaussian", 0.2, (0.0, 1.0)),
        ("gaussian", 0.2, None),
        ("uniform", 0.1, (0.0, 1.0)),
        ("salt_and_pepper", 0.3, (0.0, 1.0)),
        ("dropout", 0.25, None),
    ],
)
def test_inputs_get_the_noise_of_their_ids_and_step(kind: str, scale: float, bounds: Any) -> None:
    x, y = problem()
    function = getattr(brittle.noise, kind)
    batches = seen_by_steps(kind=kind, scale=scale, bounds=bounds, seed=3)
    assert len(batches) == 6
    for number, batch in enumerate(batches):
        expected = function(
            x[batch.ids], scale, seed=derived_seed(3, "noise", 0) % 2**64, sample_ids=batch.ids, draw=number,
            bounds=bounds,
        )  # fmt: skip
        assert torch.equal(batch.x, expected)
        assert torch.equal(batch.y, y[batch.ids])
        assert not torch.equal(batch.x, x[batch.ids])


def test_a_samples_noise_does_not_hang_on_its_batch() -> None:
    """One batch an epoch: the same steps, whatever the order."""

    def noises(seed: int) -> list[Tensor]:
        x, _ = problem()
        batches = seen_by_steps(scale=0.1, bounds=None, batch_size=30, seed=seed)
        return [(batch.x - x[batch.ids])[batch.ids.argsort()] for batch in batches]

    first, second = noises(0)
    assert (first - second).abs().max() > 0.01
    loader = [
        (x, y, ids)
        for x, y, ids in zip(*(t.flip(0).split(30) for t in (*problem(), torch.arange(30))), strict=True)
    ]
    batches: list[Batch] = []

    def step(batch: Batch) -> Tensor:
        batches.append(batch)
        return batch.model(batch.x).sum()

    noise_train(network(), loader, scale=0.1, bounds=None, step=step, epochs=1)
    torch.testing.assert_close((batches[0].x - loader[0][0]).flip(0), first)


def test_training_is_plain_training_on_noisy_samples() -> None:
    model, plain = network(), network()
    batches = seen_by_steps(scale=0.2, optimizer=sgd)
    noise_train(model, problem(), scale=0.2, epochs=2, batch_size=10, optimizer=sgd)
    optimizer = sgd(list(plain.parameters()))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(batch.x), batch.y).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name])


def test_layers_get_noise_of_their_own() -> None:
    x, y = problem(8)
    model = network()
    seen: dict[str, Tensor] = {}
    # Hooks run in the order they are made; these stand before the noise, those of the next layer behind it.
    for name in ("0", "1"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, n=name: seen.update({f"out {n}": out})
        )
    for name in ("1", "2"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, n=name: seen.update({f"in {n}": args[0]})
        )
    noise_train(model, (x, y), scale=0.3, layers=["0", "1"], epochs=1, batch_size=8, seed=2)
    ids = torch.randperm(8, generator=torch.Generator().manual_seed(derived_seed(2, "order", 0)))
    for place, (layer, following) in enumerate((("0", "1"), ("1", "2"))):
        noisy = brittle.noise.gaussian(
            seen[f"out {layer}"].detach(), 0.3, seed=derived_seed(2, "noise", place) % 2**64, sample_ids=ids,
            bounds=None,
        )  # fmt: skip
        assert torch.equal(seen[f"in {following}"].detach(), noisy)
    assert noisy.min() < 0  # features are not clamped


def test_nothing_of_it_stays() -> None:
    x, y = problem()
    model = network().eval()
    names = list(model.state_dict())
    state = torch.random.get_rng_state()
    noise_train(model, (x, y), scale=0.3, layers="1", epochs=1)
    assert list(model.state_dict()) == names
    assert not any(module._forward_hooks for module in model.modules())
    model.train()
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="from the step"):
        noise_train(model, (x, y), scale=0.3, layers="1", step=raising)
    assert not any(module._forward_hooks for module in model.modules())


def raising(batch: Batch) -> Tensor:
    raise RuntimeError("from the step")


def test_no_noise_is_ordinary_training() -> None:
    model, plain = network(), network()
    noise_train(model, problem(), scale=0.0, bounds=None, epochs=2, batch_size=10)
    train(plain, problem(), epochs=2, batch_size=10)
    assert same(model, plain)


def test_validation_is_without_noise() -> None:
    model, (x, y) = network(), problem()
    training = noise_train(model, (x, y), scale=5.0, layers=["0"], bounds=None, epochs=1, validation=(x, y))
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y).item()
    assert training.history[-1]["validation_loss"] == pytest.approx(loss, rel=1e-5)


def test_noise_grows_as_it_is_told() -> None:
    x, _ = problem()
    batches = seen_by_steps(scale=0.1, bounds=None, growth=lambda step: 0.0 if step < 3 else 2.0)
    moved = [(batch.x - x[batch.ids]).std().item() for batch in batches]
    assert moved[:3] == [0, 0, 0]
    assert moved[3:] == pytest.approx([0.2] * 3, rel=0.4)


class Killed(Exception):
    pass


class Die:
    def __init__(self, after: int | None) -> None:
        self.after = after

    def on_step(self, training: Training) -> None:
        if training.steps == self.after:
            raise Killed


@pytest.mark.parametrize("layers", [None, ["0", "1"]])
def test_a_run_taken_up_again_ends_in_the_same_bits(tmp_path: Path, layers: Any) -> None:
    def run(path: Path | None, after: int | None) -> Training:
        return noise_train(
            network(), problem(), scale=0.2, layers=layers, epochs=3, batch_size=10, checkpoint=path,
            callbacks=[Die(after)],
        )  # fmt: skip

    whole = run(None, None)
    with pytest.raises(Killed):
        run(tmp_path / "run", 5)
    again = run(tmp_path / "run", None)
    assert same(again.model, whole.model)
    assert again.history == whole.history


def test_the_same_call_gives_the_same_bits() -> None:
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(3)
        noise_train(model, problem(), scale=0.2, epochs=1, batch_size=10, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_other_seeds_of_injections_are_kept_apart() -> None:
    seeds = {derived_seed(seed, "noise", number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(int(NoiseInjection("gaussian", 0.1, seed=seed % 2**64).seed) == seed for seed in seeds)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "pink"}, "kind must be"),
        ({"scale": -1.0}, "scale must be finite and >= 0"),
        ({"layers": ["7"]}, "layer_name must be one of '0', '1', '2'; got '7'"),
        ({"layers": []}, "layers must name at least one module; got none"),
        ({"bounds": (1.0, 0.0)}, "bounds must"),
        ({"epochs": 0}, "noise_train: epochs must be"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        noise_train(network(), problem(), **{"scale": 0.1, **options})
