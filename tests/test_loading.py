"""Models from files: the right parameters, nothing untrusted is read, and one sentence for a mistake."""

import pickle
import sys
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
