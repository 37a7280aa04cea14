"""Distillation: its loss by plain torch, what it leaves alone, and that small students keep up."""

import copy
from collections.abc import Iterator
from pathlib import Path

import brittle
import pytest
import torch
import torch.nn.functional as F
from brittle.repair import Training, distill, regularizer, train
from brittle.sources import digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from zoo import digits_cnn

X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(2))
Y = torch.arange(24) % 3


def still(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def network(width: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, 5),
            nn.Dropout(0.3),
            nn.Linear(5, 3),
        )


def first_loss(training: Training) -> float:
    return training.history[0]["loss"]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_papers(temperature: float, alpha: float) -> None:
    student, teacher = nn.Linear(64, 3), nn.Linear(64, 3)
    x = X.flatten(1)
    training = distill(
        student,
        teacher,
        (x, Y),
        temperature=temperature,
        alpha=alpha,
        epochs=1,
        batch_size=24,
        optimizer=still,
    )
    with torch.no_grad():
        wanted = (teacher(x) / temperature).softmax(1)
        divergence = (wanted * (wanted.log() - (student(x) / temperature).softmax(1).log())).sum(1).mean()
        expected = alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student(x), Y)
    assert first_loss(training) == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_a_copy_of_the_teacher_has_nothing_to_learn_from_it() -> None:
    teacher = nn.Sequential(nn.Linear(64, 3))
    training = distill(
        copy.deepcopy(teacher),
        teacher,
        (X.flatten(1), Y),
        alpha=1.0,
        epochs=1,
        batch_size=24,
        optimizer=still,
    )
    assert first_loss(training) == pytest.approx(0, abs=1e-6)


def test_plain_torch_takes_the_same_steps() -> None:
    student, teacher, x = nn.Linear(64, 3), nn.Linear(64, 3), X.flatten(1)
    twin = copy.deepcopy(student)

    def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    distill(student, teacher, (x, Y), epochs=5, batch_size=24, optimizer=sgd)
    optimizer = sgd(list(twin.parameters()))
    for _ in range(5):
        soft = F.softmax(teacher(x).detach() / 4, 1)
        loss = 0.9 * 16 * F.kl_div(F.log_softmax(twin(x) / 4, 1), soft, reduction="batchmean")
        loss = loss + 0.1 * F.cross_entropy(twin(x), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(student.weight, twin.weight)


def test_the_teacher_and_everything_around_stays_as_it_was() -> None:
    student, teacher = network(2, 0), network(6, 1).train()
    teacher[0].weight.requires_grad_(False)
    teacher[5].weight.grad = torch.ones_like(teacher[5].weight)
    before = [tensor.clone() for tensor in teacher.state_dict().values()]
    parts, generator = len(list(student.parameters())), torch.get_rng_state()
    training = distill(student, teacher, (X, Y), features={"0": "0", "5": "5"}, epochs=2, batch_size=10)
    assert all(torch.equal(*pair) for pair in zip(before, teacher.state_dict().values(), strict=True))
    assert all(part.training for part in (*teacher.modules(), *student.modules()))
    assert [part.requires_grad for part in teacher.parameters()][:2] == [False, True]
    assert (teacher[5].weight.grad == 1).all()
    assert teacher[7].weight.grad is None
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()
    assert not any(part._forward_hooks for model in (student, teacher) for part in model.modules())
    assert len(list(student.parameters())) == parts
    assert training.model is student
    assert {"loss", "accuracy"} <= training.history[0].keys()


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("5", "5", lambda s, t: (s[:6](X), t[:6](X))),
        ("0", "0", lambda s, t: (s[:1](X), t[:1](X))),
        ("3", "0", lambda s, t: (s[:4](X), F.adaptive_avg_pool2d(t[:1](X), 2))),
    ],
)
def test_features_are_matched_through_the_projection(own: str, others: str, expected: object) -> None:
    student, teacher = network(2, 0).eval(), network(6, 1).eval()
    found = []

    def keep(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        found.extend(parameters[len(list(student.parameters())) :])
        return still(parameters)

    student[1], student[6] = nn.Identity(), nn.Identity()  # nothing that differs in training
    losses = []
    for weight in (0.0, 1.0, 3.0):
        found.clear()
        training = distill(
            *(student, teacher, (X, Y)),
            features={own: others},
            feature_weight=weight,
            epochs=1,
            batch_size=24,
            optimizer=keep,
        )
        losses.append(first_loss(training))
    weight, bias = found
    assert weight.requires_grad
    with torch.no_grad():
        ours, theirs = expected(student, teacher)  # type: ignore[operator]
        rows = ours.movedim(1, -1) @ weight.flatten(1).T + bias
        distance = (rows - theirs.movedim(1, -1)).square().mean().item()
    assert losses[1] - losses[0] == pytest.approx(distance, rel=1e-4)
    assert losses[2] - losses[0] == pytest.approx(3 * distance, rel=1e-4)


def test_projections_learn_and_tokens_match() -> None:
    class Tokens(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x.squeeze(1)).mean(1))

    student, teacher = Tokens(4), Tokens(4)
    training = distill(
        *(student, teacher, (X, Y)),
        features={"embed": "embed"},
        feature_weight=1000.0,
        epochs=100,
        batch_size=24,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    )
    assert training.history[-1]["loss"] < 0.05 * training.history[0]["loss"]


def test_a_run_taken_up_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    teacher, features = network(6, 1), {"0": "0", "5": "5"}

    class Interrupt:
        def on_epoch(self, training: Training) -> None:
            if training.epochs == 2 and interrupted:
                raise KeyboardInterrupt

    def run(path: Path | None) -> nn.Module:
        student = network(2, 0)
        distill(
            *(student, teacher, (X, Y)),
            features=features,
            epochs=4,
            batch_size=10,
            checkpoint=path,
            callbacks=[Interrupt()],
        )
        return student

    interrupted = False
    whole = run(None)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.safetensors")
    interrupted = False
    resumed = run(tmp_path / "run.safetensors")
    for ours, theirs in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_seeds_decide() -> None:
    teacher = network(6, 1)
    beginnings: list[list[Tensor]] = []

    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        beginnings.append([part.detach().clone() for part in parameters])
        return torch.optim.Adam(parameters)

    found = []
    for seed in (0, 0, 1):
        torch.rand(3)
        student = network(2, 0)
        options = {"epochs": 2, "batch_size": 10, "seed": seed, "optimizer": adam}
        distill(student, teacher, (X, Y), features={"0": "0"}, **options)
        found.append(student[0].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    # The projection's weight is the last but one; the student's are the same whatever the seed.
    assert torch.equal(beginnings[0][-2], beginnings[1][-2])
    assert not torch.equal(beginnings[0][-2], beginnings[2][-2])
    assert torch.equal(beginnings[0][0], beginnings[2][0])


def test_a_prepared_teacher_and_a_regularizer_are_used() -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.rand(8, 4), torch.arange(8) % 3
    prepared = brittle.Target(teacher, mean=[0.5] * 4, std=[0.25] * 4)
    training = distill(
        *(student, prepared, (x, y)),
        alpha=1.0,
        temperature=1.0,
        epochs=1,
        optimizer=still,
        regularizer=regularizer(l1=0.1),
    )
    with torch.no_grad():
        wanted = teacher((x - 0.5) / 0.25).log_softmax(1)
        expected = F.kl_div(student(x).log_softmax(1), wanted, reduction="batchmean", log_target=True)
    assert first_loss(training) == pytest.approx(expected.item(), rel=1e-5)
    assert training.history[0]["penalty"] == pytest.approx(0.1 * student.weight.abs().sum().item())


def test_a_student_learns_from_a_teacher_what_labels_do_not_say() -> None:
    """Without any label: a student that answers as the teacher does on data it has not seen."""
    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(400, 6, generator=generator), torch.randn(400, 6, generator=generator)
    teacher = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3))
    nn.init.normal_(teacher[2].weight)
    student = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    distill(
        *(student, teacher, (x, torch.zeros(400, dtype=torch.int64))),
        alpha=1.0,
        epochs=40,
        batch_size=40,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    )
    agree = (student(new).argmax(1) == teacher(new).argmax(1)).double().mean()
    assert agree > 0.85


def test_a_student_of_a_quarter_keeps_the_accuracy() -> None:
    rest, new = digits()
    teacher = digits_cnn()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10)),
        )
    sizes = [sum(part.numel() for part in model.parameters()) for model in (student, teacher)]
    assert sizes[0] < sizes[1] / 4
    training = distill(
        *(student, teacher, (rest.x, rest.y)),
        epochs=30,
        batch_size=64,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        schedule=lambda adam, steps: OneCycleLR(adam, 1e-2, total_steps=steps + 1),
        validation=(new.x, new.y),
    )
    with torch.no_grad():
        accuracy = (teacher(new.x).argmax(1) == new.y).double().mean().item()
    assert training.history[-1]["validation_accuracy"] > accuracy - 0.015


def test_wrong_arguments() -> None:
    student, teacher = network(2, 0), network(6, 1)
    before = [tensor.clone() for tensor in student.parameters()]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for options, message in (
        ({"temperature": 0.0}, "temperature must be finite and > 0; got 0.0"),
        ({"temperature": float("inf")}, "temperature must be finite"),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\]; got 1.1"),
        ({"feature_weight": -1.0}, "feature_weight must be finite"),
        ({"features": {"9": "0"}}, "layer must be a name .* got '9'"),
        ({"features": {"0": "9"}}, "layer must be a name .* got '9'"),
        ({"features": {"0": "5"}}, r"features must be .* got \[2, 2, 6, 6\] of '0' and \[2, 5\] of '5'"),
        ({"features": {"0": "0"}, "optimizer": optimizer}, "optimizer must be a function"),
        ({"epochs": 0}, "epochs must be an integer"),
    ):
        with pytest.raises(ValueError, match=f"distill: .*{message}"):
            distill(student, teacher, (X, Y), **options)
    with pytest.raises(ValueError, match="teacher must be another model"):
        distill(student, student, (X, Y))
    with pytest.raises(ValueError, match=r"distill: the student must give logits \[24, 4\]"):
        distill(student, nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (X, Y))
    with pytest.raises(ValueError, match=r"teacher must be an nn\.Module for features"):
        distill(student, lambda x: x.flatten(1)[:, :3], (X, Y), features={"0": "0"})
    with pytest.raises(ValueError, match="distill: data must hold samples"):
        distill(student, teacher, (X[:0], Y[:0]), features={"0": "0"})
    with pytest.raises(ValueError, match=r"distill: the model gave NaN logits for 1 sample\(s\)"):
        distill(student, lambda x: x.flatten(1)[:, :3] / (x.flatten(1)[:, :1] - X[5, 0, 0, 0]) * 0, (X, Y))

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y

    with pytest.raises(ValueError, match="distill: data must be iterable anew"):
        distill(student, teacher, loader(), features={"0": "0"}, epochs=1)
    assert all(torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))
    assert not any(part._forward_hooks for model in (student, teacher) for part in model.modules())
    train(student, (X, Y), epochs=1)  # and may still be trained
