"""The training loop: its steps are plain torch's, its order and random draws hang on seed and epoch alone,
and a run that is taken up again ends in the bits of one that was never interrupted."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brittle.repair import Batch, Training, checkpoints, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Data = tuple[Tensor, Tensor]


def problem(count: int = 50, classes: int = 3) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 4, 4, generator=generator)
    return x, torch.randint(classes, (count,), generator=generator)


def network(seed: int = 0) -> nn.Module:
    """With everything that has a state or draws: batch-norm and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(16, 3),
        )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Watch:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.events: list[tuple[str, int, int]] = []

    def __call__(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        return F.cross_entropy(batch.model(batch.x), batch.y)

    def on_step(self, training: Training) -> None:
        self.events.append(("step", training.epochs, training.steps))

    def on_epoch(self, training: Training) -> None:
        self.events.append(("epoch", training.epochs, training.steps))

    def on_end(self, training: Training) -> None:
        self.events.append(("end", training.epochs, training.steps))


def orders(seed: int, epochs: int = 2, count: int = 50, batch_size: int = 16) -> list[list[int]]:
    watch = Watch()
    train(network(), problem(count), step=watch, epochs=epochs, seed=seed, batch_size=batch_size)
    found: list[list[int]] = [[] for _ in range(epochs)]
    for batch in watch.batches:
        found[batch.epoch] += batch.ids.tolist()
    return found


def sgd(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


# ---- the steps ----


def test_a_step_is_plain_torchs() -> None:
    """Closed form: softmax regression's gradient is (p - onehot) x^T / N."""
    x, y = torch.rand(10, 4, dtype=torch.float64), torch.arange(10) % 3
    model = nn.Linear(4, 3, dtype=torch.float64)
    before = weights(model)
    training = train(model, (x, y), epochs=1, optimizer=sgd(0.5), batch_size=10)
    p = (x @ before["weight"].T + before["bias"]).softmax(1)
    error = (p - F.one_hot(y, 3)) / 10
    torch.testing.assert_close(model.weight.data, before["weight"] - 0.5 * error.T @ x)
    torch.testing.assert_close(model.bias.data, before["bias"] - 0.5 * error.sum(0))
    (record,) = training.history
    assert record["loss"] == pytest.approx(-p[torch.arange(10), y].log().mean().item())
    assert record["accuracy"] == (p.argmax(1) == y).double().mean().item()
    assert record["learning_rate"] == 0.5


def test_many_steps_are_plain_torchs() -> None:
    """Adam on one cycle by default, over the batches in the order that the step sees."""
    data, watch = problem(), Watch()
    model, twin = network(), network()
    for net in (model, twin):
        net[4].p = 0.0  # type: ignore[index,union-attr]  # its draws are the loop's own
    train(model, data, step=watch, epochs=3, batch_size=16, seed=5)
    steps = len(watch.batches)
    assert steps == 3 * math.ceil(50 / 16)
    optimizer = torch.optim.Adam(twin.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for batch in watch.batches:
        optimizer.zero_grad()
        F.cross_entropy(twin(data[0][batch.ids]), data[1][batch.ids]).backward()
        optimizer.step()
        schedule.step()
    assert same(weights(model), weights(twin))


def test_losses_are_weighted_by_samples() -> None:
    x, y = problem(7)
    sizes: list[int] = []

    def step(batch: Batch) -> Tensor:
        sizes.append(len(batch.x))
        return batch.model(batch.x).mean() * 0 + len(batch.x)

    batches = [(x[:5], y[:5]), (x[:0], y[:0]), (x[5:], y[5:])]
    training = train(network(), batches, step=step, epochs=1)
    assert sizes == [5, 2]
    assert training.history[0]["loss"] == pytest.approx((5 * 5 + 2 * 2) / 7)
    assert "accuracy" not in training.history[0]


def test_the_regularizer_is_added_and_told_apart() -> None:
    model = nn.Linear(4, 3)
    before = weights(model)
    training = train(
        model,
        (torch.rand(6, 4), torch.zeros(6, dtype=torch.int64)),
        step=lambda batch: 0 * batch.model(batch.x).sum() + 2,
        regularizer=lambda net: 3 * net.weight.square().sum(),
        optimizer=sgd(0.1),
        epochs=1,
    )
    torch.testing.assert_close(model.weight.data, before["weight"] * (1 - 0.1 * 6))
    assert training.history[0]["loss"] == pytest.approx(2)
    assert training.history[0]["penalty"] == pytest.approx(3 * before["weight"].square().sum().item())


def test_gradients_are_clipped_over_all_parameters() -> None:
    model = nn.Linear(4, 3)
    before = weights(model)
    data = (torch.rand(6, 4), torch.zeros(6, dtype=torch.int64))
    train(
        model, data, epochs=1, optimizer=sgd(1.0), max_grad_norm=0.01,
        step=lambda batch: 100 * F.cross_entropy(batch.model(batch.x), batch.y),
    )  # fmt: skip
    moved = torch.cat([(before[n] - t).flatten() for n, t in model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-4)


def test_validation_is_in_evaluation_mode() -> None:
    model, data = network(), problem()
    training = train(model, data, epochs=2, validation=problem(20), batch_size=7)
    model.eval()
    x, y = problem(20)
    with torch.no_grad():
        logits = model(x)
    last = training.history[-1]
    assert last["validation_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert last["validation_accuracy"] == (logits.argmax(1) == y).double().mean().item()


def test_replays_take_several_steps_on_a_batch() -> None:
    watch = Watch()
    training = train(network(), problem(), step=watch, epochs=2, batch_size=25, replays=3)
    assert training.steps == 2 * 2 * 3
    ids = [batch.ids.tolist() for batch in watch.batches]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert [batch.step for batch in watch.batches] == list(range(12))


def test_a_single_step_is_enough() -> None:
    assert train(network(), problem(), epochs=1, batch_size=50).steps == 1


# ---- the order ----


@given(count=st.integers(2, 60), batch_size=st.integers(2, 70))
def test_every_sample_once_an_epoch_in_even_batches(count: int, batch_size: int) -> None:
    watch = Watch()
    model = nn.Linear(1, 2)
    data = torch.rand(count, 1), torch.zeros(count, dtype=torch.int64)
    train(model, data, step=watch, epochs=2, batch_size=batch_size)
    for epoch in range(2):
        batches = [batch for batch in watch.batches if batch.epoch == epoch]
        sizes = [len(batch.x) for batch in batches]
        assert sorted(i for batch in batches for i in batch.ids.tolist()) == list(range(count))
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == math.ceil(count / batch_size)
        assert all(torch.equal(batch.x, data[0][batch.ids]) for batch in batches)


def test_order_hangs_on_seed_and_epoch_alone() -> None:
    first, second = orders(0)
    torch.manual_seed(99)
    assert orders(0, epochs=3)[:2] == [first, second]
    # Neither the sum nor the exclusive-or of seed and epoch.
    assert len({tuple(order) for seed in range(4) for order in orders(seed, epochs=4)}) == 16
    assert orders(2**63)[0] != first


def test_a_loader_keeps_its_order_and_is_told_the_epoch() -> None:
    x, y = problem(10)

    class Loader:
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

        def __iter__(self) -> Any:
            return iter([(x[:6], y[:6], torch.arange(40, 46)), (x[6:], y[6:], torch.arange(4))])

    watch = Watch()
    train(network(), Loader(), step=watch, epochs=3, optimizer=sgd(0.1))
    assert Loader.epochs == [0, 1, 2]
    assert [batch.ids.tolist() for batch in watch.batches[:2]] == [list(range(40, 46)), list(range(4))]
    watch = Watch()
    train(network(), DataLoader(TensorDataset(x, y), batch_size=4), step=watch, epochs=1)
    assert torch.equal(torch.cat([batch.x for batch in watch.batches]), x)
    assert torch.cat([batch.ids for batch in watch.batches]).tolist() == list(range(10))


def test_the_same_call_gives_the_same_bits() -> None:
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(3)  # the global generator is somewhere else each time
        train(model, problem(), epochs=2, seed=seed, batch_size=16)
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


# ---- what is left as it was ----


def test_modes_flags_gradients_and_random_state_are_as_before() -> None:
    model = network().eval()
    model[0].train()  # type: ignore[index]
    model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    bias = model[0].bias.detach().clone()  # type: ignore[index,union-attr]
    grad = torch.ones(3, 16)
    model[5].weight.grad = grad  # type: ignore[index,union-attr]
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    with torch.no_grad():
        train(model, problem(), epochs=1)
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert model[5].weight.grad is grad  # type: ignore[index,union-attr]
    assert torch.equal(grad, torch.ones(3, 16))
    assert model[5].bias.grad is None  # type: ignore[index,union-attr]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model[0].bias.requires_grad  # type: ignore[index,union-attr]
    assert torch.equal(model[0].bias, bias)  # type: ignore[index,union-attr]
    assert model[5].bias.requires_grad  # type: ignore[index,union-attr]


def test_an_exception_leaves_modes_and_flags_too() -> None:
    model = network().eval()

    def step(batch: Batch) -> Tensor:
        assert batch.model.training
        raise RuntimeError("from the step")

    state = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="from the step"):
        train(model, problem(), step=step, parameters=["5"])
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("names", [["5"], ["5.weight", "5.bias"], "5"])
def test_named_parameters_alone_are_trained(names: Any) -> None:
    model = network()
    before = weights(model)
    model[5].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    train(model, problem(), epochs=1, parameters=names)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    # Batch-norm's statistics stay with its parameters.
    assert changed == {"5.weight", "5.bias"}
    assert not model[5].weight.requires_grad  # type: ignore[index,union-attr]


def test_an_optimizer_decides_what_is_trained() -> None:
    model = network()
    before = weights(model)
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)  # type: ignore[index,union-attr,list-item]
    training = train(model, problem(), epochs=1, optimizer=optimizer)
    assert training.optimizer is optimizer
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.weight"}


# ---- memory format ----


class Layouts(nn.Module):
    """Notes its kernel's layout at every call; may take a view of its features, which torch refuses where
    their channels are last."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        self.conv, self.head = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 3)), nn.Linear(16, 3)
        self.views = views
        self.plain: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.plain.append(self.conv[1].weight.is_contiguous())  # type: ignore[operator]
        features = self.conv(x)
        return self.head(features.view(len(x), 16) if self.views else features.flatten(1))


@pytest.mark.parametrize(
    ("wanted", "views", "plain"),
    [
        (None, False, [False, False]),  # a trial, then the step
        (None, True, [False, True]),
        (True, False, [False]),
        (False, False, [True]),
        (False, True, [True]),
    ],
)
def test_convolutions_have_channels_last_where_the_model_takes_it(
    wanted: bool | None, views: bool, plain: list[bool]
) -> None:
    model = Layouts(views)
    weight = model.conv[1].weight
    before = weight.detach().clone()
    train(model, problem(), epochs=1, batch_size=50, channels_last=wanted)
    assert model.plain == plain
    assert model.conv[1].weight is weight
    assert weight.is_contiguous()
    assert 0 < (weight.detach() - before).abs().max() < 0.1


def test_loaders_are_not_tried() -> None:
    model = Layouts(views=True)
    train(model, [problem()], epochs=1)
    assert model.plain == [True]


# ---- callbacks ----


def test_callbacks_are_called_in_order() -> None:
    watch = Watch()
    train(network(), problem(), epochs=2, batch_size=25, callbacks=[object(), watch])
    assert watch.events == [
        ("step", 0, 1), ("step", 0, 2), ("epoch", 1, 2),
        ("step", 1, 3), ("step", 1, 4), ("epoch", 2, 4), ("end", 2, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(("event", "steps", "epochs"), [("on_step", 3, 1), ("on_epoch", 2, 1)])
def test_a_callback_may_stop(event: str, steps: int, epochs: int) -> None:
    class Stop(Watch):
        pass

    def stop(_: Any, training: Training) -> None:
        if training.steps >= steps:
            training.stop("enough")
            training.stop("never read")

    setattr(Stop, event, stop)
    watch = Stop()
    training = train(network(), problem(), epochs=9, batch_size=25, callbacks=[watch])
    assert (training.steps, training.epochs, training.stopped) == (steps, epochs, "enough")
    assert watch.events[-1] == ("end", epochs, steps)
    assert training.table().endswith("stopped: enough")


def test_callbacks_may_add_to_the_history() -> None:
    class Norm:
        def on_epoch(self, training: Training) -> None:
            training.history[-1]["norm"] = 2.5

    training = train(network(), problem(), epochs=2, callbacks=[Norm()])
    assert [record["norm"] for record in training.history] == [2.5, 2.5]
    header, *lines = training.table().splitlines()
    assert header.split() == ["epoch", "learning_rate", "loss", "accuracy", "norm"]
    assert [line.split()[0] for line in lines] == ["0", "1"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_before_its_step(bad: float) -> None:
    model, kept = network(), {}

    def step(batch: Batch) -> Tensor:
        kept.update(weights(batch.model)) if batch.step == 2 else None
        return batch.model(batch.x).abs().sum() * (bad if batch.step == 2 else 0.01)

    training = train(model, problem(), step=step, epochs=5, batch_size=25)
    assert training.stopped == f"the loss was {bad} in epoch 1, step 2"
    assert training.steps == 2
    trained = {name for name, _ in model.named_parameters()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(model).items() if name in trained)
    assert set(training.history[-1]) == {"epoch"}


def test_progress_is_told() -> None:
    told: list[tuple[int, int | None]] = []
    train(
        network(), problem(), epochs=2, batch_size=25, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ---- checkpoints ----


class Average:
    """A state of its own, that hangs on every step."""

    def __init__(self) -> None:
        self.mean, self.count = torch.zeros(3), 0

    def on_step(self, training: Training) -> None:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * training.model[5].bias.detach()  # type: ignore[index]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.count = state["mean"], state["count"]


class Killed(Exception):
    pass


def run(path: Path | None, die_after: int | None = None, **options: Any) -> tuple[Training, Average]:
    model, average = network(), Average()

    class Die(Watch):
        def on_step(self, training: Training) -> None:
            if training.steps == die_after:
                raise Killed

    settings = {"epochs": 4, "batch_size": 16, "validation": problem(9), "max_grad_norm": 1.0, **options}
    training = train(model, problem(), callbacks=[average, Die()], checkpoint=path, **settings)
    return training, average


@pytest.mark.parametrize("die_after", [2, 6, 13, 16])
@pytest.mark.parametrize(
    "options", [{}, {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}], ids=["adam", "sgd"]
)
def test_a_run_taken_up_again_ends_in_the_same_bits(
    tmp_path: Path, die_after: int, options: dict[str, Any]
) -> None:
    whole, average = run(None, **options)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        run(path, die_after, **options)
    again, resumed = run(path, **options)
    assert same(weights(again.model), weights(whole.model))
    assert again.history == whole.history
    assert (again.epochs, again.steps, again.stopped) == (4, 16, None)
    assert torch.equal(resumed.mean, average.mean)
    assert resumed.count == average.count == 16
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first, _ = run(path)
    written = path.read_bytes()
    again, average = run(path, die_after=1)  # no step is taken
    assert same(weights(again.model), weights(first.model))
    assert again.history == first.history
    assert average.count == 16
    assert path.read_bytes() == written


def test_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    class Stop(Watch):
        def on_epoch(self, training: Training) -> None:
            super().on_epoch(training)
            training.stop("enough")

    path = tmp_path / "run.safetensors"
    train(network(), problem(), callbacks=[Stop()], checkpoint=path)
    watch = Stop()
    again = train(network(), problem(), callbacks=[watch], checkpoint=path)
    assert (again.stopped, again.epochs, watch.events) == ("enough", 1, [])


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("epochs", 5, "epochs=4, this run epochs=5"), ("seed", 3, "seed=0"), ("batch_size", 8, "batch_size"),
     ("parameters", ["5"], "parameters"), ("optimizer", sgd(0.1), "Adam, this run optimizer=SGD")],
)  # fmt: skip
def test_a_checkpoint_of_other_arguments_is_refused(
    tmp_path: Path, option: str, value: Any, text: str
) -> None:
    path = tmp_path / "run.safetensors"
    run(path)
    with pytest.raises(ValueError, match=f"train: checkpoint must be of a run with the same.*{text}"):
        run(path, **{option: value})


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "run.safetensors"
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="train: checkpoint must be an undamaged file"):
        run(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="another safetensors file"):
        run(path)
    save_file({"x": torch.ones(2)}, path, {"brittle_training": json.dumps({"format": 7})})
    with pytest.raises(ValueError, match="format 1"):
        run(path)
    with pytest.raises(ValueError, match="tensor or plain data"):
        checkpoints.write("train", path, {"a": [object()]})
    with pytest.raises(ValueError, match="strings or integers"):
        checkpoints.write("train", path, {"a": {1.5: 2}})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
@settings(max_examples=20)
def test_checkpoints_give_back_what_they_were_given(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    checkpoints.write("train", path, {"value": value})
    assert repr(checkpoints.read("train", path)) == repr({"value": value})


def test_checkpoints_keep_tensors_of_every_kind(tmp_path: Path) -> None:
    tied = torch.rand(3, 4)
    state = {
        "tied": [tied, tied.T],
        "half": torch.rand(2).bfloat16(),
        "none": torch.zeros(0, 2),
        "step": torch.tensor(3),
    }
    checkpoints.write("train", tmp_path / "state", state)
    found = checkpoints.read("train", tmp_path / "state")
    assert torch.equal(found["tied"][1], tied.T)
    assert found["half"].dtype == torch.bfloat16
    assert found["none"].shape == (0, 2)
    assert found["step"].shape == ()


# ---- wrong arguments ----


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"replays": 0}, "replays must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0"),
        ({"parameters": ["6"]}, "parameters must name parameters or modules with some; got '6'"),
        ({"parameters": ["2"]}, "got '2'"),
        ({"parameters": []}, "must have parameters to train"),
        (
            {"validation": (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))},
            "validation must hold",
        ),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^train: .*{text}"):
        train(network(), problem(), **options)


def test_wrong_data_is_named() -> None:
    x, y = problem()
    with pytest.raises(ValueError, match="mine: data must hold samples"):
        train(network(), (x[:0], y[:0]), name="mine")
    with pytest.raises(ValueError, match="one length; got 50 and 49"):
        train(network(), (x, y[1:]))
    with pytest.raises(ValueError, match="got an iterator"):
        train(network(), iter([(x, y)]))
    with pytest.raises(ValueError, match="must have a length"):
        train(network(), iter([(x, y)]), epochs=1)
    with pytest.raises(ValueError, match="model must be a module; got function"):
        train(lambda x: x, (x, y))  # type: ignore[arg-type]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="those of the optimizer"):
        train(model, (x, y), optimizer=optimizer, parameters=["5"])
