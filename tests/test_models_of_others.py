"""Models of other people: they change, write where they should not, are hard to copy, or are not plain."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brittle
import models
import pytest
import torch
from brittle.attacks import PGD
from brittle.evaluation import accuracy_vs_epsilon, minimal_epsilon, noise_sweep
from brittle.evaluation.drift import Reference
from samples import assert_same_bits
from torch import Tensor, nn
from torch.nn.utils import prune

X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ).eval()


def answers(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x.clone()).argmax(1)


# ---- a target that is used again after its model has changed ----


def ema(model: nn.Sequential, other: nn.Sequential) -> None:
    for mine, theirs in zip(
        (*model.parameters(), *model.buffers()), (*other.parameters(), *other.buffers()), strict=True
    ):
        mine.data.copy_(theirs.data)


def exchanged(model: nn.Sequential, other: nn.Sequential) -> None:
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = theirs.data.clone()


def from_vector(model: nn.Sequential, other: nn.Sequential) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(other.parameters()), model.parameters())


def through_numpy(model: nn.Sequential, other: nn.Sequential) -> None:
    model[4].weight.detach().numpy()[:] = other[4].weight.detach().numpy()


def constant_to_constant(model: nn.Sequential, other: nn.Sequential) -> None:
    """An even number of equal weights becomes as many others: an exclusive or of their bits stays 0."""
    model[1].weight.data.fill_(-2.0)


def rows_exchanged(model: nn.Sequential, other: nn.Sequential) -> None:
    model[4].weight.data.copy_(model[4].weight.data.flip(0))


def assigned(model: nn.Sequential, other: nn.Sequential) -> None:
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


def running_mean(model: nn.Sequential, other: nn.Sequential) -> None:
    model[1].running_mean.data.add_(2.0)


def activation(model: nn.Sequential, other: nn.Sequential) -> None:
    model[2] = nn.Tanh()


def forward(model: nn.Sequential, other: nn.Sequential) -> None:
    model[2].forward = lambda x: x.abs()


def attribute(model: nn.Sequential, other: nn.Sequential) -> None:
    model[1].eps = 5.0


CHANGES = [
    ema, exchanged, from_vector, through_numpy, constant_to_constant, rows_exchanged, assigned, running_mean,
    activation, forward, attribute,
]  # fmt: skip


class TestReusedTarget:
    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_searches_on_what_the_model_is_now(
        self, change: Callable[[nn.Sequential, nn.Sequential], None], precision: str
    ) -> None:
        model, other = network(0), network(1)
        target, attack = brittle.Target(model, precision=precision), PGD(0.02, steps=10)
        brittle.attack(target, attack, (X[:16], answers(model, X[:16])))
        before = target._search
        change(model, other)
        y = answers(model)
        reused = brittle.attack(target, attack, (X, y))
        assert target._search is not before
        fresh = brittle.attack(brittle.Target(model, precision=precision), attack, (X, y))
        assert reused.clean_accuracy == 1.0
        assert torch.equal(reused.success, fresh.success)
        assert torch.equal(reused.adversarial, fresh.adversarial)
        with torch.no_grad():
            copied, own = target._search(X.to(next(target._search.parameters()).dtype)), model(X)  # type: ignore[misc,union-attr]
        assert (copied - own).abs().max() < (0.1 if precision == "bfloat16" else 1e-3) * own.abs().max()

    def test_a_copy_is_kept_while_nothing_changes(self) -> None:
        model = network()
        target, y = brittle.Target(model), answers(model)
        brittle.pgd(target, X, y, 0.02, steps=2)
        before = target._search
        with torch.no_grad():
            model[4].weight.add_(0)  # another version of the same bits
        brittle.pgd(target, X, y, 0.02, steps=2)
        brittle.fgsm(target, X, y, 0.02)
        assert before is not None
        brittle.pgd(target, X, y, 0.02, steps=2)
        after = target._search
        brittle.pgd(target, X, y, 0.02, steps=2)
        assert target._search is after

    def test_robust_accuracy_of_averaged_weights(self) -> None:
        """The case that was found: averaged weights are swapped in, and the attack looked half as strong."""
        torch.manual_seed(0)
        x = torch.rand(200, 3, 8, 8)
        model, average = network(2), network(3)
        y = answers(average, x)
        target, attack = brittle.Target(model), PGD(0.02, steps=20)
        brittle.attack(target, attack, (x[:32], answers(model, x[:32])))
        ema(model, average)
        reused = brittle.attack(target, attack, (x, y)).robust_accuracy
        assert reused == brittle.attack(brittle.Target(model), attack, (x, y)).robust_accuracy
        assert reused == brittle.attack(average, attack, (x, y)).robust_accuracy


# ---- the name and the state of a target ----


class TestTargetIsTheCallers:
    def test_a_call_names_itself_and_leaves_the_name(self) -> None:
        target = brittle.Target(nn.Flatten(0), name="mine")
        for call, op in (
            (lambda: brittle.fgsm(target, X, torch.zeros(40, dtype=torch.int64), 0.1), "fgsm"),
            (lambda: brittle.attack(target, PGD(0.1), (X, torch.zeros(40, dtype=torch.int64))), "pgd"),
            (lambda: noise_sweep(target, (X, torch.zeros(40, dtype=torch.int64))), "noise_sweep"),
        ):
            with pytest.raises(ValueError, match=f"^{op}: the model must return"):
                call()
            assert target.name == "mine"
        with target, pytest.raises(ValueError, match=r"^mine: the model must return"):
            target.logits(X, torch.arange(40))

    def test_evaluations_are_counted_on_the_callers_target(self) -> None:
        model = network()
        target = brittle.Target(model, fold_batchnorm=False, channels_last=False)
        brittle.fgsm(target, X, answers(model), 0.1)
        assert (target.forwards, target.backwards) == (40, 40)

    def test_runs_may_be_inside_each_other(self) -> None:
        model = network().train()
        target = brittle.Target(model)
        y = answers(model)
        with target:
            brittle.pgd(target, X, y, 0.02, steps=2)
            assert not model.training
            assert not any(p.requires_grad for p in model.parameters())
        assert model.training
        assert all(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("used", [False, True])
    @pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda t: pickle.loads(pickle.dumps(t))])
    def test_is_copied_and_pickled(self, used: bool, way: Callable[[Any], Any]) -> None:
        target = brittle.Target(network(), mean=[0.1] * 3, std=[0.9] * 3, name="mine", fixed_batch=8)
        with torch.no_grad():
            y = target.model(target.normalized(X)).argmax(1)
        expected = brittle.pgd(
            brittle.Target(network(), mean=[0.1] * 3, std=[0.9] * 3, fixed_batch=8), X, y, 0.02
        )
        if used:
            brittle.pgd(target, X, y, 0.02)
        again = way(target)
        assert (again.name, again.bounds, again._search) == ("mine", (0.0, 1.0), None)
        assert_same_bits(brittle.pgd(again, X, y, 0.02), expected)
        assert target.model.training is False

    def test_is_not_copied_in_the_middle_of_a_run(self) -> None:
        with brittle.Target(network()) as target:
            for way in (copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="Target: a Target cannot be copied or pickled"):
                    way(target)


# ---- models that write into their input ----


class Writes(nn.Module):
    def __init__(self, write: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 4)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        written = self.write(x)
        return self.layer((x if written is None else written).flatten(1))


@torch.no_grad()
def normalise(x: Tensor) -> None:
    x.sub_(0.5).div_(0.5)


@torch.no_grad()
def mask(x: Tensor) -> None:
    x[:, :, 2:4] = 0


def with_a_graph(x: Tensor) -> Tensor:
    return x.mul_(2).sub_(1)


def clamp(x: Tensor) -> Tensor:
    return x.clamp_(0.25, 0.75)


@torch.no_grad()
def out_of_place_into_it(x: Tensor) -> None:
    torch.mul(x, 3.0, out=x)


def runs(model: nn.Module, x: Tensor, y: Tensor, folder: Path) -> dict[str, Callable[[], Any]]:
    return {
        "pgd": lambda: brittle.pgd(model, x, y, eps=0.1, steps=3),
        "attack": lambda: brittle.attack(model, PGD(0.1, steps=3), (x, y)),
        "target": lambda: brittle.attack(brittle.Target(model), PGD(0.1, steps=3), (x, y)),
        "noise sweep": lambda: noise_sweep(model, (x, y), kinds=("gaussian",)),
        "fgsm curve": lambda: accuracy_vs_epsilon(model, (x, y), [0, 0.1], attack="fgsm"),
        "curve": lambda: accuracy_vs_epsilon(model, (x, y), [0, 0.1], attack="pgd"),
        "minimal epsilon": lambda: minimal_epsilon(model, (x, y), PGD(steps=3), upper=0.2),
        "similarity": lambda: brittle.similarity.layer_similarity(model, x),
        "features": lambda: brittle.similarity.LayerFeatures(model, "layer").of(x),
        "evaluate": lambda: brittle.evaluation.evaluate(
            model, (x, y), folder / "run", norms=["linf"], epsilons=[0.1], steps=2, restarts=1,
            views=["classification", "robustness", "shift"],
        ),
        "diagnose": lambda: brittle.diagnosis.diagnose(model, (x, y), (x, y)),
        "before training": lambda: brittle.diagnosis.checks.before_training(model, (x, y)),
        "adversarial training": lambda: brittle.repair.adversarial_train(
            model, (x, y), eps=0.1, method="trades", epochs=1
        ),
        "drift": lambda: Reference.of(model, x.repeat(2, 1, 1, 1)),
    }  # fmt: skip


class TestModelsThatWriteIntoTheirInput:
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    @pytest.mark.parametrize("name", runs(nn.Identity(), X, X, Path()))
    def test_the_callers_data_stay_as_they_are(self, name: str, tmp_path: Path) -> None:
        x = X.clone()
        model = Writes(normalise)
        runs(model, x, answers(model), tmp_path)[name]()
        assert torch.equal(x, X)

    @pytest.mark.parametrize("write", [normalise, mask, with_a_graph, clamp, out_of_place_into_it])
    @pytest.mark.parametrize("prepared", [False, True])
    def test_points_are_those_of_a_model_that_copies_first(
        self, write: Callable[[Tensor], Tensor | None], prepared: bool
    ) -> None:
        model = Writes(write)
        y = answers(model)
        careful = Writes(write)
        handed: Any = brittle.Target(model) if prepared else model
        result = brittle.attack(handed, PGD(0.05, steps=5), (X, y))
        expected = brittle.attack(lambda x: careful(x.clone()), PGD(0.05, steps=5), (X, y))
        assert_same_bits(result.adversarial, expected.adversarial)
        assert result.adversarial is not None
        assert (result.adversarial - X).abs().max() <= 0.05
        assert torch.equal(answers(model, result.adversarial) != y, result.success)
        assert result.success.any()

    def test_one_that_writes_only_later_is_refused(self) -> None:
        calls = []

        def write(x: Tensor) -> None:
            calls.append(0)
            if len(calls) > 3:
                normalise(x)

        model = Writes(write)
        with pytest.raises(ValueError, match=r"^pgd: the model must not write into its input; .*x.clone\(\)"):
            brittle.pgd(model, X, answers(model), 0.05, steps=9, early_stop=False)

    def test_one_that_does_not_write_is_handed_the_iterate_itself(self) -> None:
        seen = []
        model = Writes(lambda x: seen.append(x.data_ptr()))  # type: ignore[func-returns-value]
        brittle.pgd(model, X, answers(model), 0.05, steps=6, early_stop=False, random_start=False)
        assert len(set(seen[2:-1])) == 1


# ---- models that cannot be copied by copy.deepcopy ----


def pruned(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[0], "weight", 0.5)


def weight_normed(model: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])


def spectral_normed(model: nn.Sequential) -> None:
    nn.utils.spectral_norm(model[4])
    model(X)


def keeps_its_last_output(model: nn.Sequential) -> None:
    model[2].last = model(X)


def buffer_with_a_graph(model: nn.Sequential) -> None:
    model.register_buffer("scale", model[4].weight.mean(), persistent=False)


class TestModelsThatAreHardToCopy:
    @pytest.mark.parametrize(
        "change", [pruned, weight_normed, spectral_normed, keeps_its_last_output, buffer_with_a_graph]
    )
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_tensors_with_a_graph_are_copied_without(
        self, change: Callable[[nn.Sequential], None], precision: str, tmp_path: Path
    ) -> None:
        model = network()
        change(model)
        model.eval()
        y = answers(model)
        target = brittle.Target(model, precision=precision)
        result = brittle.attack(target, PGD(0.03, steps=10), (X, y))
        assert target.searches_on_a_copy
        bare = brittle.attack(model, PGD(0.03, steps=10), (X, y))
        assert abs(result.robust_accuracy - bare.robust_accuracy) <= 0.05
        assert result.success.any()
        assert result.adversarial is not None
        assert (answers(model, result.adversarial) != y)[result.success].all()

    @pytest.mark.parametrize("part", [threading.Lock(), (i for i in range(3)), open(__file__)])  # noqa: SIM115
    def test_where_no_copy_can_be_made_the_search_runs_on_the_model(self, part: Any) -> None:
        model = network()
        model[2].part = part
        y = answers(model)
        target = brittle.Target(model, precision="bfloat16")
        with pytest.warns(
            RuntimeWarning, match="^pgd: the model cannot be copied .*search runs on the model itself"
        ):
            adv = brittle.pgd(target, X, y, 0.03, steps=5)
        assert_same_bits(adv, brittle.pgd(model, X, y, 0.03, steps=5))


# ---- buffers ----


class TestBuffersComeBack:
    class Adapting(nn.BatchNorm2d):
        """Test-time adaptation: stays in training mode, where torch's kernel counts no version."""

        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    class Busy(nn.Module):
        def __init__(self, act: Callable[[nn.Module], None]) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 4)
            self.register_buffer("kept", torch.rand(3))
            self.register_buffer("none", None)
            self.act = act

        def forward(self, x: Tensor) -> Tensor:
            self.act(self)
            return self.layer(x.flatten(1))

    def test_batch_norm_in_training_mode(self) -> None:
        model = nn.Sequential(self.Adapting(3), nn.Flatten(), nn.Linear(192, 4))
        before = {name: b.clone() for name, b in model.named_buffers()}
        for handed in (model, brittle.Target(model)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                brittle.pgd(handed, X, torch.arange(40) % 4, eps=0.1, steps=3)
            for name, buffer in model.named_buffers():
                assert torch.equal(buffer, before[name]), name

    @pytest.mark.parametrize(
        "act",
        [
            lambda m: m.kept.data.add_(1),
            lambda m: m.kept.detach().numpy().__iadd__(1),
            lambda m: m.kept.resize_(5),
            lambda m: m.kept.data.fill_(torch.nan),
            lambda m: setattr(m, "kept", torch.ones(7)),
            lambda m: setattr(m, "none", torch.ones(2)),
            lambda m: m.register_buffer("added", torch.ones(2)),
            lambda m: m._buffers.pop("kept", None),
            lambda m: m.train(),
        ],
    )
    def test_whatever_a_forward_does_to_them(self, act: Callable[[nn.Module], None]) -> None:
        model = self.Busy(act).eval()
        kept = model.kept
        before, names, modes = kept.clone(), list(model._buffers), [m.training for m in model.modules()]
        brittle.pgd(model, X, torch.arange(40) % 4, eps=0.1, steps=2)
        assert model.kept is kept
        assert torch.equal(kept, before)
        assert list(model._buffers) == names
        assert model.none is None
        assert [m.training for m in model.modules()] == modes

    def test_buffers_that_nobody_wrote_to_are_not_touched(self) -> None:
        """NaN is not equal to itself, and has bits all the same."""
        model = network()
        model.register_buffer("nan", torch.full((3,), torch.nan))
        versions = [b._version for b in model.buffers()]
        brittle.pgd(model, X, answers(model), 0.1, steps=2)
        assert [b._version for b in model.buffers()] == versions


# ---- modules that are not plain ----


class TestOtherModules:
    def plain(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)).eval()

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    @pytest.mark.parametrize("kind", ["script", "freeze", "trace", "export", "partial", "data parallel"])
    @pytest.mark.parametrize("prepared", [False, True])
    def test_give_what_the_plain_one_gives(self, kind: str, prepared: bool) -> None:
        plain = self.plain()
        y = answers(plain)
        dynamic = {"x": {0: torch.export.Dim.DYNAMIC}} if hasattr(torch.export.Dim, "DYNAMIC") else None
        other: Any = {
            "script": lambda: torch.jit.script(self.plain()),
            "freeze": lambda: torch.jit.freeze(torch.jit.script(self.plain())),
            "trace": lambda: torch.jit.trace(self.plain(), X),
            "export": lambda: torch.export.export(
                self.plain(), (X,), dynamic_shapes=({0: dynamic["x"][0]},) if dynamic else None
            ).module(),
            "partial": lambda: __import__("functools").partial(self.plain()),
            "data parallel": lambda: nn.DataParallel(self.plain()),
        }[kind]()
        if prepared:
            other = brittle.Target(other)
        adv = brittle.pgd(other, X, y, 0.05, steps=5)
        assert (adv - brittle.pgd(plain, X, y, 0.05, steps=5)).abs().max() < 1e-6
        assert torch.equal(answers(plain, adv), answers(plain, brittle.pgd(plain, X, y, 0.05, steps=5)))

    @pytest.mark.parametrize("prepared", [False, True])
    def test_a_program_exported_for_one_batch_size_says_so(self, prepared: bool) -> None:
        program = torch.export.export(self.plain(), (X[:8],)).module()
        y = answers(self.plain())
        handed: Any = brittle.Target(program) if prepared else program
        with pytest.raises(ValueError, match=r"^pgd: the model must take 16 samples; got an exported"):
            brittle.pgd(handed, X, y, 0.05)
        adv = brittle.pgd(brittle.Target(program, fixed_batch=8), X, y, 0.05)
        assert torch.equal(
            answers(self.plain(), adv) != y, answers(self.plain(), brittle.pgd(self.plain(), X, y, 0.05)) != y
        )

    @pytest.mark.parametrize("prepared", [False, True])
    def test_lazy_and_inference_modules_say_what_to_do(self, prepared: bool) -> None:
        with torch.inference_mode():
            inference = self.plain()
        for model, words in (
            (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "call the model once before"),
            (nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten()), "call the model once before"),
            (inference, r"must be made outside torch.inference_mode\(\)"),
        ):
            handed: Any = brittle.Target(model) if prepared else model
            with pytest.raises(ValueError, match=f"^pgd: .*{words}"):
                brittle.pgd(handed, X, torch.zeros(40, dtype=torch.int64), 0.05)

    def test_a_model_made_in_inference_mode_may_be_a_copy_of_a_usable_one(self) -> None:
        model = models.make("convolutional").eval()
        with torch.inference_mode():
            adv = brittle.pgd(model, X, answers(model), 0.05, steps=3)
        assert_same_bits(adv, brittle.pgd(model, X, answers(model), 0.05, steps=3))
