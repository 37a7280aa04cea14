"""Epochs of adversarial training on digits, beside the same loop written with torchattacks and with ART.

The same model, optimizer, number and sizes of batches and number of steps on every side; Wong's FGSM from a
random start and Madry's PGD of 7 steps, both attacking the model in evaluation mode. Every side's model goes
on training from round to round. The last line is the loop without any attack: forward, backward and the
optimizer.
"""

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import zoo
from brittle.demo import digits
from brittle.repair import adversarial_train
from conftest import Versus
from torch import Tensor, nn

# A call has its own fixed costs, which training of one epoch would overrate.
EPS, STEPS, BATCH, EPOCHS = 0.2, 7, 128, 3
MODELS = {"digits CNN": zoo.digits_cnn, "small ResNet": zoo.small_resnet}

Perturb = Callable[[Tensor, Tensor], Tensor]


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """ART's NumPy would have none of a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plain_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], perturb: Perturb
) -> None:
    x, y = data
    for rows in torch.tensor_split(torch.randperm(len(x)), math.ceil(len(x) / BATCH)):
        rows = rows.to(x.device)
        adv = perturb(x[rows], y[rows])
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(adv), y[rows]).backward()
        optimizer.step()


def torchattacks_side(model: nn.Module, method: str) -> Perturb:
    torchattacks = pytest.importorskip("torchattacks")
    if method == "fgsm":
        return torchattacks.FFGSM(model, eps=EPS, alpha=1.25 * EPS)  # type: ignore[no-any-return]
    return torchattacks.PGD(model, eps=EPS, alpha=2.5 * EPS / STEPS, steps=STEPS)  # type: ignore[no-any-return]


def art_side(model: nn.Module, method: str, device: torch.device) -> Perturb:
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    kind = "gpu" if device.type == "cuda" else "cpu"
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type=kind
    )
    settings = {"eps": EPS, "num_random_init": 1, "batch_size": BATCH}
    if method == "fgsm":
        attack = evasion.FastGradientMethod(classifier, eps_step=1.25 * EPS, **settings)
    else:
        step = 2.5 * EPS / STEPS
        attack = evasion.ProjectedGradientDescent(
            classifier, eps_step=step, max_iter=STEPS, verbose=False, **settings
        )

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(device)

    return perturb


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["fgsm", "pgd"])
@pytest.mark.parametrize("name", list(MODELS))
def bench_epoch(versus: Versus, device: torch.device, name: str, method: str, precision: str) -> None:
    train_set, _ = digits()
    data = train_set.x.to(device), train_set.y.to(device)
    start = MODELS[name]().to(device)

    def side(make: Callable[[nn.Module], Perturb]) -> Callable[[], None]:
        model = copy.deepcopy(start)
        optimizer, perturb = adam(list(model.parameters())), make(model)

        def run() -> None:
            for _ in range(EPOCHS):
                plain_epoch(model, optimizer, data, perturb)

        return run

    model = copy.deepcopy(start)
    optimizer = adam(list(model.parameters()))

    def ours() -> None:
        adversarial_train(
            model,
            data,
            eps=EPS,
            method=method,
            ramp=0,
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=optimizer,
            validation=None,
            precision=precision,
        )

    versus(
        f"{EPOCHS} epochs, {method if method == 'fgsm' else 'pgd-7'}, {name}, attack in {precision}",
        ours,
        {
            "torchattacks": side(lambda model: torchattacks_side(model, method)),
            "ART": side(lambda model: art_side(model, method, device)),
            "no attack": side(lambda _: lambda x, y: x),
        },
        targets={"torchattacks": ">= 1", "ART": ">= 1.4"},
        rounds=9,
        warm_up=1,
    )
