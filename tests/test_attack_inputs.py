"""What callers hand to attacks: data of every usual kind, dtypes, values and radii that do not fit."""

from collections.abc import Callable
from typing import Any

import brittle
import numpy as np
import pytest
import torch
from brittle.attacks import FGSM, PGD
from brittle.evaluation import accuracy_vs_epsilon, minimal_epsilon, noise_sweep
from samples import assert_same_bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


MODEL = network()
X = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = MODEL(X).argmax(1)


class Samples(Dataset[tuple[Tensor, int]]):
    """As torchvision's data sets are."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return X[row], int(Y[row])


PGD_FAST = PGD(0.03, steps=4)

CALLS: dict[str, Callable[[Any], Any]] = {
    "attack": lambda data: brittle.attack(MODEL, PGD_FAST, data, slots=7).success,
    "fgsm curve": lambda data: accuracy_vs_epsilon(MODEL, data, [0.0, 0.03]).correct,
    "curve": lambda data: accuracy_vs_epsilon(MODEL, data, [0.0, 0.03], PGD_FAST, batch_size=7).correct,
    "minimal epsilon": lambda data: minimal_epsilon(MODEL, data, PGD_FAST, upper=0.1).epsilon,
    "noise sweep": lambda data: torch.tensor(
        [
            float(word)
            for word in noise_sweep(MODEL, data, kinds=("gaussian",)).table().split()
            if word.replace(".", "").isdigit()
        ]
    ),
}

KINDS: dict[str, Callable[[], Any]] = {
    "data set": Samples,
    "tensor data set": lambda: TensorDataset(X, Y),
    "list of pairs": lambda: [(X[i], int(Y[i])) for i in range(20)],
    "list of pairs of tensors": lambda: [(X[i], Y[i]) for i in range(20)],
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "loader": lambda: DataLoader(Samples(), batch_size=6),
    "list of batches": lambda: [(X[:9], Y[:9]), (X[9:], Y[9:])],
    "generator": lambda: ((X[i : i + 3], Y[i : i + 3]) for i in range(0, 20, 3)),
}


class TestData:
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
    def test_every_usual_kind_gives_what_the_tensors_give(
        self, call: Callable[[Any], Tensor], kind: Callable[[], Any]
    ) -> None:
        assert torch.equal(call(kind()), call((X, Y)))

    def test_images_of_8_bits_are_divided(self) -> None:
        pixels = (255 * X).round().to(torch.uint8)
        expected = brittle.attack(MODEL, PGD_FAST, (pixels.float() / 255, Y))
        found = brittle.attack(MODEL, PGD_FAST, (pixels[:, 0].numpy(), Y.numpy()))
        assert_same_bits(found.adversarial, expected.adversarial)

    def test_progress_knows_the_length_of_a_data_set(self) -> None:
        seen: list[tuple[int, int | None]] = []
        brittle.attack(MODEL, PGD_FAST, Samples(), progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (20, 20)

    @pytest.mark.parametrize(
        ("data", "got"),
        [
            ([(X[0], "cat")], r"labels must be integers|must yield"),
            ([{"image": X[0], "label": 1}], "must yield"),
            ([(np.zeros((8, 8)), 1)], "pairs of a tensor and a label; got ndarray, int"),
            ((X, Y, Y, Y), r"got \(Tensor, Tensor, Tensor, Tensor\)"),
            ((X, [1, 2]), r"got \(Tensor, list\)"),
            (7, "got int"),
            (None, "got NoneType"),
            (["a", "b"], "got str"),
        ],
    )
    def test_anything_else_is_one_sentence(self, data: Any, got: str) -> None:
        with pytest.raises(ValueError, match=rf"^pgd: .*({got})"):
            brittle.attack(MODEL, PGD_FAST, data)


class TestValues:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 7.0])
    def test_samples_that_do_not_fit_are_named(self, value: float) -> None:
        x = X.clone()
        x[3, 0, 2, 2] = value
        x[11, 0, 0, 0] = value
        ids = torch.arange(100, 120)
        with pytest.raises(ValueError, match=r"^pgd: x must lie inside bounds .* in 2 sample\(s\): 3, 11$"):
            brittle.pgd(MODEL, x, Y, 0.1)
        with pytest.raises(ValueError, match=r"^pgd: .* in 2 sample\(s\): 103, 111$"):
            brittle.pgd(MODEL, x, Y, 0.1, sample_ids=ids)
        with pytest.raises(ValueError, match=r"^pgd: .* in 1 sample\(s\): 11$"):
            brittle.attack(MODEL, PGD_FAST, (torch.cat([X[:10], x[10:]]), Y), slots=5)
        with pytest.raises(ValueError, match=r"^noise_sweep: .* in 2 sample\(s\): 3, 11$"):
            noise_sweep(MODEL, (x, Y))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_another_dtype_than_the_models_is_said(self, dtype: torch.dtype) -> None:
        x, name = X.to(dtype), str(dtype)[6:]
        for op, call in (
            ("pgd", lambda: brittle.pgd(MODEL, x, Y, 0.1)),
            ("fgsm", lambda: brittle.fgsm(MODEL, x, Y, 0.1)),
            ("pgd", lambda: brittle.attack(brittle.Target(MODEL), PGD_FAST, (x, Y))),
            ("accuracy_vs_epsilon", lambda: accuracy_vs_epsilon(MODEL, (x, Y), [0.1])),
            ("noise_sweep", lambda: noise_sweep(MODEL, (x, Y))),
        ):
            with pytest.raises(
                ValueError, match=f"^{op}: x must be float32, as the model's parameters are; got {name}"
            ):
                call()

    def test_a_model_that_converts_its_input_takes_any(self) -> None:
        class Converts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network()

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x.float())

        adv = brittle.pgd(Converts(), X.double(), Y, 0.03, steps=3)
        assert adv.dtype == torch.float64

    def test_errors_of_the_models_own_are_its_own(self) -> None:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            brittle.pgd(nn.Linear(5, 3), X, Y, 0.1)


class TestRadii:
    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda: brittle.fgsm(MODEL, X, Y, eps=8), "fgsm: eps"),
            (lambda: brittle.pgd(MODEL, X, Y, 8), "pgd: eps"),
            (lambda: brittle.pgd(MODEL, X, Y, torch.tensor([0.1] * 19 + [8.0])), "pgd: eps"),
            (lambda: brittle.mifgsm(MODEL, X, Y, 8), "mifgsm: eps"),
            (lambda: brittle.bim(brittle.Target(MODEL, bounds=(-1.0, 1.0)), X, Y, 8), "bim: eps"),
            (lambda: brittle.attack(MODEL, PGD(8), (X, Y)), "pgd: eps"),
            (lambda: brittle.attack(MODEL, FGSM(8.0), (X, Y)), "fgsm: eps"),
            (lambda: accuracy_vs_epsilon(MODEL, (X, Y), [0, 8]), "accuracy_vs_epsilon: epsilons"),
            (lambda: accuracy_vs_epsilon(MODEL, (X, Y), [0, 8], "pgd"), "accuracy_vs_epsilon: epsilons"),
            (lambda: minimal_epsilon(MODEL, (X, Y), upper=8), "minimal_epsilon: upper"),
            (lambda: brittle.evaluation.evaluate(MODEL, (X, Y), "x", epsilons=[8]), "evaluate: epsilons"),
            (lambda: brittle.diagnosis.diagnose(MODEL, (X, Y), (X, Y), eps=8.0), "diagnose: eps"),
            (lambda: brittle.repair.adversarial_train(network(), (X, Y), eps=8.0), "adversarial_train: eps"),
            (lambda: brittle.repair.mend(network(), (X, Y), (X, Y), eps=8.0), "mend: eps"),
        ],
    )
    def test_eight_for_eight_of_255_is_refused(self, call: Callable[[], Any], name: str) -> None:
        with pytest.raises(ValueError, match=rf"^{name} must be at most .*; got 8 \(is it 8/255\?\)"):
            call()

    def test_other_norms_and_the_width_itself_are_let_through(self) -> None:
        brittle.pgd(MODEL, X, Y, 8.0, norm="l2", steps=1)
        brittle.pgd(MODEL, X, Y, 8.0, norm="l1", steps=1)
        brittle.pgd(MODEL, X, Y, 1.0, steps=1)
        brittle.pgd(MODEL, 255 * X, Y, 8.0, steps=1, bounds=(0.0, 255.0))
        assert minimal_epsilon(MODEL, (X[:2], Y[:2]), PGD(steps=2), upper=1.0).epsilon.max() <= 1.0


class TestPrecision:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
    def test_a_bare_module_is_prepared_for_the_call(self, precision: str) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10)).eval()
        y = model(X).argmax(1)
        for attack in (brittle.pgd, brittle.bim, brittle.mifgsm, brittle.rfgsm, brittle.fgsm):
            adv = attack(model, X, y, 0.05, precision=precision)
            expected = attack(brittle.Target(model, precision=precision), X, y, 0.05)
            assert_same_bits(adv, expected)

    def test_a_target_has_its_own(self) -> None:
        with pytest.raises(ValueError, match=r"^pgd: precision must be None for a Target, which has its own"):
            brittle.pgd(brittle.Target(MODEL), X, Y, 0.1, precision="bfloat16")
        with pytest.raises(ValueError, match=r"^pgd: precision must be one of .*; got 'int8'"):
            brittle.pgd(MODEL, X, Y, 0.1, precision="int8")


def test_similarity_names_layers_that_are_constant() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        model[1].bias.fill_(-100)
    with pytest.warns(RuntimeWarning, match=r"^layer_similarity: .* the same for .*; got '2', '3'"):
        brittle.similarity.layer_similarity(model, X)
    with pytest.warns(RuntimeWarning, match="got '2', '3'"):
        brittle.similarity.layer_similarity(network(), X, model)
    with torch.no_grad():
        model[1].bias.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="got '1', '2', '3'"):
        brittle.similarity.layer_similarity(model, X)
    with pytest.warns(RuntimeWarning, match="got '1', '2', '3'"):
        brittle.similarity.layer_similarity(model, X, metric="correlation")
