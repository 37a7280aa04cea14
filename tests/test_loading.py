"""Models from files: the right parameters, nothing untrusted is read, and one sentence for a mistake."""

import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from brittle import Target
from brittle.loading import load_model
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

CODE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

def no_module():
    return 7

def broken():
    return torch.zeros(2) @ torch.zeros(3)

def leaves():
    raise SystemExit(0)

def on_meta():
    return nn.Linear(2, 2, device="meta")

class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * self.w

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3, bias=False)
        self.two = nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight

ready = nn.Linear(2, 2)
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return str(path)


def trained(code: str) -> nn.Module:
    """Other parameters and statistics than ``build`` gives."""
    model = load_model(f"{code}:build")
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.add_(torch.randn(tensor.shape))
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    x = torch.rand(4, 1, 4, 4)
    return torch.equal(a(x), b(x))


def exported(code: str, path: Path) -> nn.Module:
    model = trained(code)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.rand(3, 1, 4, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return model


class TestCode:
    def test_parameters_are_the_same_each_time_and_torch_is_not_reseeded(self, code: str) -> None:
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first = load_model(f"{code}:build")
        assert torch.equal(torch.rand(1), expected)
        assert same(first, load_model(f"{code}:build"))
        assert not first.training

    def test_a_class_and_a_module_will_do(self, code: str) -> None:
        assert load_model(f"{code}:Stubborn")(torch.full((1, 2), 3.0)).tolist() == [[3, 3]]
        assert isinstance(load_model(f"{code}:ready"), nn.Linear)

    def test_neighbours_can_be_imported_and_the_path_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "neighbour_of_net.py").write_text("from torch import nn\nwidth = 5\n")
        (tmp_path / "net.py").write_text(
            "from neighbour_of_net import nn, width\ndef build():\n    return nn.Linear(width, 2)\n"
        )
        before = list(sys.path)
        assert load_model(f"{tmp_path}/net.py:build").in_features == 5
        assert sys.path == before

    @pytest.mark.parametrize(
        ("spec", "match"),
        [
            ("{code}", "must be FILE.py:FUNCTION"),
            ("{code}:", "must be FILE.py:FUNCTION"),
            ("net.txt:build", "must be FILE.py:FUNCTION"),
            ("nowhere.py:build", "there is no file nowhere.py"),
            ("{code}:absent", "net.py must define absent"),
            ("{code}:no_module", r"must return a torch.nn.Module; got int"),
            ("{code}:broken", r"net.py, line 12: RuntimeError: .*size"),
            ("{code}:leaves", r"net.py, line 15: SystemExit: 0"),
            ("{code}:on_meta", "must have values; weight is on the meta device"),
        ],
    )
    def test_mistakes(self, code: str, spec: str, match: str) -> None:
        with pytest.raises(ValueError, match=f"^load_model: .*{match}") as caught:
            load_model(spec.format(code=code))
        assert "\n" not in str(caught.value)

    def test_code_that_does_not_parse(self, tmp_path: Path) -> None:
        (tmp_path / "net.py").write_text("def build(:\n")
        with pytest.raises(ValueError, match=r"net.py: SyntaxError"):
            load_model(f"{tmp_path}/net.py:build")

    @pytest.mark.parametrize(
        ("device", "match"),
        [
            ("gpu", "device must be one of this machine; got 'gpu'"),
            ("meta", "one that computes"),
            ("cuda:99", "got 'cuda:99'"),
        ],
    )
    def test_devices(self, code: str, device: str, match: str) -> None:
        with pytest.raises(ValueError, match=f"^load_model: .*{match}"):
            load_model(f"{code}:build", device=device)

    def test_a_model_that_stays_where_it_is(self, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Found with a device that differs: what .to() cannot move is named."""
        model = load_model(f"{code}:Stubborn")
        monkeypatch.setattr(type(model), "to", lambda self, device: self)
        monkeypatch.setattr("brittle.loading._built", lambda spec: model)
        monkeypatch.setattr("brittle.loading._device", lambda name: torch.device("cuda"))
        with pytest.raises(ValueError, match="the model must go to cuda; w stays on cpu"):
            load_model(f"{code}:Stubborn", device="cuda")


class TestSafetensors:
    def test_weights_and_statistics(self, code: str, tmp_path: Path) -> None:
        model = trained(code)
        save_file(state(model), tmp_path / "w.safetensors")
        loaded = load_model(f"{code}:build", tmp_path / "w.safetensors")
        assert same(loaded, model)
        assert not same(loaded, load_model(f"{code}:build"))

    def test_data_parallel_names_and_tied_weights(self, code: str, tmp_path: Path) -> None:
        model = trained(code)
        save_file({f"module.{name}": tensor for name, tensor in state(model).items()}, tmp_path / "w")
        assert same(load_model(f"{code}:build", tmp_path / "w"), model)
        tied = load_model(f"{code}:Tied")
        with torch.no_grad():
            tied.one.weight.copy_(torch.eye(3))
        save_model(tied, str(tmp_path / "tied"))
        loaded = load_model(f"{code}:Tied", tmp_path / "tied")
        assert torch.equal(loaded.two.weight, torch.eye(3))
        assert loaded.two.weight is loaded.one.weight

    def test_unfit_keys_are_named(self, code: str, tmp_path: Path) -> None:
        given = state(trained(code))
        given["4.weight"] = given["4.weight"][:, :5].clone()
        given["head.bias"] = given.pop("4.bias")
        for name in ("running_mean", "running_var", "num_batches_tracked", "weight"):
            del given[f"1.{name}"]
        save_file(given, tmp_path / "w")
        with pytest.raises(ValueError, match="must fit the model") as caught:
            load_model(f"{code}:build", tmp_path / "w")
        assert str(caught.value).partition("; ")[2] == (
            "missing: 1.weight, 1.running_mean, 1.running_var and 2 more; not in the model: head.bias; "
            "of another shape: 4.weight [3, 5] for [3, 8]"
        )

    def test_damaged_files(self, code: str, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file(state(trained(code)), path)
        whole = path.read_bytes()
        for length in (0, 5, 9, 100, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"must be a (whole )?safetensors file"):
                load_model(f"{code}:build", path)
        with pytest.raises(ValueError, match="No such file"):
            load_model(f"{code}:build", tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="it is a folder"):
            load_model(f"{code}:build", tmp_path)


KINDS = """
import torch
from torch import nn

def linear():
    return nn.Linear(4, 2)

def half():
    return nn.Linear(4, 2).half()

def complex_numbers():
    return nn.Linear(4, 2, dtype=torch.complex64)

def lazy():
    return nn.LazyLinear(2)

class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.zeros(2))
        self.register_buffer("count", torch.zeros(2, dtype=torch.int32))
        self.register_buffer("flags", torch.zeros(2, dtype=torch.bool))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.zeros(2))

    def _load_from_state_dict(self, *arguments):
        raise KeyError("its own way")
"""
WEIGHT = torch.tensor([[1.0, -2.0, 3.5, 4.0], [0.0, 0.5, -0.25, 100.0]])


class TestKinds:
    """What torch would copy without a word, and change on the way."""

    @pytest.fixture
    def net(self, tmp_path: Path) -> str:
        (tmp_path / "kinds.py").write_text(KINDS)
        return str(tmp_path / "kinds.py")

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.int8,
            torch.uint8,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
        ],
    )
    @pytest.mark.parametrize("function", ["linear", "half"])
    def test_no_floating_point_weights(
        self, net: str, tmp_path: Path, function: str, dtype: torch.dtype
    ) -> None:
        save_file({"weight": WEIGHT.to(dtype), "bias": torch.zeros(2)}, tmp_path / "w")
        wanted = {"linear": "float32", "half": "float16"}[function]
        given = str(dtype).removeprefix("torch.")
        with pytest.raises(
            ValueError, match=f"must fit the model; of another kind: weight {given} for {wanted}$"
        ):
            load_model(f"{net}:{function}", tmp_path / "w")

    def test_all_are_named(self, net: str, tmp_path: Path) -> None:
        save_file(
            {"weight": WEIGHT.to(torch.int8), "bias": torch.zeros(2, dtype=torch.int32)}, tmp_path / "w"
        )
        with pytest.raises(
            ValueError, match=r"of another kind: weight int8 for float32, bias int32 for float32$"
        ):
            load_model(f"{net}:linear", tmp_path / "w")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_other_widths_are_rounded(self, net: str, tmp_path: Path, dtype: torch.dtype) -> None:
        save_file({"weight": WEIGHT.to(dtype), "bias": torch.zeros(2, dtype=dtype)}, tmp_path / "w")
        assert torch.equal(load_model(f"{net}:linear", tmp_path / "w").weight, WEIGHT)
        half = load_model(f"{net}:half", tmp_path / "w").weight
        assert (half.dtype, half.tolist()) == (torch.float16, WEIGHT.tolist())

    @pytest.mark.parametrize(
        ("function", "weight"),
        [("linear", WEIGHT.double() * 1e300), ("half", WEIGHT * 1e6), ("half", WEIGHT.bfloat16() * 1e30)],
    )
    def test_what_would_become_infinite(
        self, net: str, tmp_path: Path, function: str, weight: Tensor
    ) -> None:
        save_file({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "w")
        with pytest.raises(
            ValueError, match=r"must fit the model; too large: weight (float64|float32|bfloat16) for"
        ):
            load_model(f"{net}:{function}", tmp_path / "w")

    def test_integers_and_flags(self, net: str, tmp_path: Path) -> None:
        good = {"mask": torch.zeros(2), "count": torch.tensor([1, -5]), "flags": torch.tensor([True, False])}
        save_file(good, tmp_path / "w")
        model = load_model(f"{net}:Buffers", tmp_path / "w")
        assert (model.count.tolist(), model.flags.tolist()) == ([1, -5], [True, False])
        for name, bad, listed in (
            ("count", torch.tensor([1, 2**40]), "too large: count int64 for int32"),
            ("count", torch.tensor([1.0, 2.0]), "of another kind: count float32 for int32"),
            ("flags", torch.tensor([1, 7], dtype=torch.uint8), "of another kind: flags uint8 for bool"),
            ("mask", torch.tensor([True, False]), "of another kind: mask bool for float32"),
        ):
            save_file(good | {name: bad}, tmp_path / "w")
            with pytest.raises(ValueError, match=f"must fit the model; {listed}$"):
                load_model(f"{net}:Buffers", tmp_path / "w")

    def test_complex_models(self, net: str, tmp_path: Path) -> None:
        weight = torch.complex(WEIGHT, -WEIGHT)
        torch.save({"weight": weight.to(torch.complex128), "bias": weight[:, 0].contiguous()}, tmp_path / "w")
        model = load_model(f"{net}:complex_numbers", tmp_path / "w", trust_checkpoint=True)
        assert torch.equal(model.weight, weight)
        save_file({"weight": WEIGHT, "bias": torch.zeros(2)}, tmp_path / "w")
        with pytest.raises(ValueError, match="of another kind: weight float32 for complex64"):
            load_model(f"{net}:complex_numbers", tmp_path / "w")

    @pytest.mark.parametrize(
        ("function", "name", "value"),
        [("linear", "weight", torch.nan), ("linear", "weight", -torch.inf), ("Buffers", "mask", torch.nan)],
    )
    def test_values_that_are_no_numbers_are_named(
        self, net: str, tmp_path: Path, function: str, name: str, value: float
    ) -> None:
        given = state(load_model(f"{net}:{function}"))
        given[name].flatten()[1] = value
        save_file(given, tmp_path / "w")
        with pytest.warns(UserWarning, match=f"^load_model: .*w holds NaN or infinite values in {name}$"):
            load_model(f"{net}:{function}", tmp_path / "w")

    def test_a_mask_may_be_infinite(self, net: str, tmp_path: Path) -> None:
        given = state(load_model(f"{net}:Buffers")) | {"mask": torch.tensor([0.0, -torch.inf])}
        save_file(given, tmp_path / "w")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_model(f"{net}:Buffers", tmp_path / "w").mask.tolist() == [0, -torch.inf]

    @pytest.mark.parametrize(
        ("weight", "listed"),
        [(WEIGHT.to_sparse(), "weight sparse_coo"), (WEIGHT.to("meta"), "weight without values")],
    )
    def test_tensors_that_are_not_dense(self, net: str, tmp_path: Path, weight: Tensor, listed: str) -> None:
        torch.save({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "w")
        with pytest.raises(ValueError, match=f"of another kind: {listed}$"):
            load_model(f"{net}:linear", tmp_path / "w", trust_checkpoint=True)

    def test_layers_that_wait_for_a_first_forward(self, net: str, tmp_path: Path) -> None:
        save_file({"weight": WEIGHT, "bias": torch.zeros(2)}, tmp_path / "w")
        assert torch.equal(load_model(f"{net}:lazy", tmp_path / "w").weight, WEIGHT)
        with pytest.raises(
            ValueError, match="must have values; weight is not initialised before a first forward"
        ):
            load_model(f"{net}:lazy")

    def test_a_module_that_loads_its_own_way(self, net: str, tmp_path: Path) -> None:
        save_file({"mask": torch.zeros(2)}, tmp_path / "w")
        with pytest.raises(ValueError, match=r"^load_model: .*w must fit the model; 'its own way'$"):
            load_model(f"{net}:Own", tmp_path / "w")


class TestNoRegularFiles:
    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
    @pytest.mark.parametrize("name", ["net.py", "net.pt2", "w.safetensors", "w.pt2"])
    def test_nothing_waits(self, code: str, tmp_path: Path, name: str, kind: str) -> None:
        path = tmp_path / "more" / name
        path.parent.mkdir()
        if kind == "a named pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        spec, weights = (f"{code}:build", path) if name.startswith("w") else (str(path), None)
        with pytest.raises(ValueError, match=f"^load_model: .*must be a regular file; it is {kind}"):
            load_model(spec + ":build" * (name == "net.py"), weights, trust_checkpoint=True)

    @pytest.mark.parametrize(
        "content",
        [
            struct.pack("<Q", 2**62) + b"{",
            struct.pack("<Q", 10**8) + b'{"a',
            struct.pack("<Q", 100_001) + b"{" + b"[" * 100_000,
            b"\x80" + bytes(7) + b"{" + b" " * 127,
            b"PK\3\4" + bytes(4) + b"{",
            struct.pack("<Q", 58) + b'{"w":{"dtype":"XX","shape":[2,4],"data_offsets":[0,32]}}  ' + bytes(32),
        ],
    )
    def test_headers_that_lie(self, code: str, tmp_path: Path, content: bytes) -> None:
        """Whatever begins like safetensors is never read as anything else."""
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(ValueError, match=r"^load_model: .*must be a whole safetensors file") as caught:
            load_model(f"{code}:build", tmp_path / "w", trust_checkpoint=True)
        assert "\n" not in str(caught.value)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


class TestUntrusted:
    @pytest.mark.parametrize(
        "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))]
    )
    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    def test_a_pickle_is_not_read(self, code: str, tmp_path: Path, save, name: str) -> None:
        save({"w": Trap(tmp_path / "sprung")}, tmp_path / name)
        with pytest.raises(ValueError, match="security boundary") as caught:
            load_model(f"{code}:build", tmp_path / name)
        assert not (tmp_path / "sprung").exists()
        sentence, *recipe = str(caught.value).splitlines()
        assert "torch checkpoint" in sentence
        assert "--trust-checkpoint" in sentence
        assert len(recipe) == 2

    def test_the_recipe_works(self, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import safetensors.torch

        monkeypatch.chdir(tmp_path)
        model = trained(code)
        torch.save(model.state_dict(), "w.pt")
        with pytest.raises(ValueError, match="security boundary") as first:
            load_model(f"{code}:build", Path("w.pt"))
        exported_model = exported(code, tmp_path / "net.pt2")
        with pytest.raises(ValueError, match="security boundary") as second:
            load_model("net.pt2")
        for refusal in (first, second):
            for line in str(refusal.value).splitlines()[1:]:
                exec(line.strip(), {"torch": torch, "safetensors": safetensors}, names := locals())
                state = names.get("state")
        assert same(load_model(f"{code}:build", Path("w.safetensors")), model)
        assert same(load_model(f"{code}:build", Path("net.safetensors")), exported_model)

    def test_an_exported_program_is_not_read(
        self, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04")
        monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("it was read"))
        with pytest.raises(ValueError, match="an exported program, and reading it can run code"):
            load_model(str(tmp_path / "net.pt2"))
        with pytest.raises(ValueError, match="an exported program, and reading it can run code"):
            load_model(f"{code}:build", tmp_path / "net.pt2")


class TestTrusted:
    def test_checkpoints(self, code: str, tmp_path: Path) -> None:
        model = trained(code)
        contents = {
            "plain": model.state_dict(),
            "nested": {"epoch": 3, "state_dict": model.state_dict()},
            "module": nn.Sequential(*model),
            "in_training": {"model": nn.Sequential(*model), "args": Path("x")},
        }
        for name, content in contents.items():
            torch.save(content, tmp_path / name)
            assert same(load_model(f"{code}:build", tmp_path / name, trust_checkpoint=True), model), name

    def test_checkpoints_without_weights(self, code: str, tmp_path: Path) -> None:
        torch.save({"epoch": 3}, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="must hold a state_dict, alone or as 'state_dict'"):
            load_model(f"{code}:build", tmp_path / "w.pt", trust_checkpoint=True)
        (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match="cannot be read as a torch checkpoint"):
            load_model(f"{code}:build", tmp_path / "w.pt", trust_checkpoint=True)

    def test_an_exported_program(self, code: str, tmp_path: Path) -> None:
        path = tmp_path / "net.pt2"
        model = exported(code, path)
        loaded = load_model(str(path), trust_checkpoint=True)
        x = torch.rand(5, 1, 4, 4)
        assert torch.allclose(loaded(x), model(x), atol=1e-6)
        assert torch.allclose(loaded.train()(x), model(x), atol=1e-6), "exported in evaluation mode"
        gradient = Target(loaded, name="test")
        with gradient:
            found = gradient.evaluate(x, lambda logits: logits[:, 0]).gradient
        leaf = x.clone().requires_grad_()
        model(leaf)[:, 0].sum().backward()
        assert torch.allclose(found, leaf.grad, atol=1e-6)
        other = trained(code)
        save_file(state(other), tmp_path / "w.safetensors")
        filled = load_model(str(path), tmp_path / "w.safetensors", trust_checkpoint=True)
        assert torch.allclose(filled(x), other(x), atol=1e-6)
        assert same(load_model(f"{code}:build", path, trust_checkpoint=True), model)

    def test_a_damaged_program(self, tmp_path: Path) -> None:
        (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match="cannot be read as an exported program"):
            load_model(str(tmp_path / "net.pt2"), trust_checkpoint=True)
        with pytest.raises(ValueError, match="there is no file"):
            load_model(str(tmp_path / "elsewhere.pt2"), trust_checkpoint=True)
