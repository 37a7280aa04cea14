import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
import zoo
from brittle._folding import fold_batchnorm
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-6}
SHAPES = {1: (5, 4, 9), 2: (5, 4, 7, 6), 3: (5, 4, 5, 4, 6)}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, gains and shifts as after a training, which scales of one and shifts of zero would hide."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS):
            for name, lo, hi in (("running_mean", -1, 1), ("running_var", 0.2, 3), ("bias", -1, 1)):
                if (tensor := getattr(module, name)) is not None:
                    tensor.data.uniform_(lo, hi, generator=generator)
            if module.weight is not None:
                module.weight.data.uniform_(-2, 2, generator=generator)
    return model


def snapshot(model: nn.Module) -> list[Any]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    return [state, flags, [m.training for m in model.modules()], str(model), list(map(id, model.modules()))]


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name


def norms_left(model: nn.Module) -> int:
    """Batch-norms that still run on batched inputs."""
    return sum(isinstance(m, NORMS) for n, m in model.named_modules() if not n.endswith("original"))


def assert_folds(model: nn.Module, x: Tensor, left: int = 0, seed: int = 0) -> nn.Module:
    """Folded values and input gradients are the model's, and ``left`` of its batch-norms remain."""
    model = lived_in(model.to(x.dtype), seed).train()
    before, state = snapshot(model), torch.get_rng_state()
    folded = fold_batchnorm(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(before, snapshot(model))
    assert folded is not None
    assert norms_left(folded) == left
    assert not any(m.training for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in model.parameters()}

    expected = copy.deepcopy(model).eval()
    results = []
    for candidate in (folded, expected):
        leaf = x.clone().requires_grad_()
        out = candidate(leaf)
        weights = torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view(out.shape)
        results.append((out.detach(), torch.autograd.grad((out * weights).sum(), leaf)[0]))
    for got, want in zip(*results, strict=True):
        assert want.abs().max() > 0
        assert (got - want).abs().max() <= TOLERANCE[x.dtype] * want.abs().max()
    return folded


def assert_kept(model: nn.Module) -> None:
    lived_in(model)
    before = snapshot(model)
    assert fold_batchnorm(model) is None
    assert_same(before, snapshot(model))


class Model(nn.Module):
    """Named layers and a function of them and x as forward."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv_norm(**more: nn.Module) -> dict[str, nn.Module]:
    return {"conv": nn.Conv2d(4, 4, 3, padding=1), "norm": nn.BatchNorm2d(4), **more}


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(SHAPES[2], dtype=dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(
    dtype: torch.dtype, dims: int, affine: bool, bias: bool, groups: int, transposed: bool
) -> None:
    layer = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")(4, 6, 3, 2, 1, groups=groups, bias=bias)
    norm = NORMS[dims - 1](6, affine=affine, eps=1e-3)
    assert_folds(nn.Sequential(layer, norm), torch.rand(SHAPES[dims], dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype: torch.dtype, affine: bool, bias: bool) -> None:
    model = nn.Sequential(nn.Linear(7, 6, bias=bias), nn.BatchNorm1d(6, affine=affine), nn.ReLU())
    assert_folds(model, torch.randn(5, 7, dtype=dtype))


def test_other_axis_of_batchnorm_1d_is_not_folded() -> None:
    """Where the sizes happen to agree, BatchNorm1d on [N, T, C] has T for its channels."""
    linear = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6))
    assert_folds(linear, torch.randn(5, 6, 7, dtype=torch.float64))
    # An unbatched convolution gives [C, L].
    conv = nn.Sequential(nn.Conv1d(4, 6, 4), nn.BatchNorm1d(6))
    assert_folds(conv, torch.randn(4, 9, dtype=torch.float64))
    assert_folds(conv, torch.randn(3, 4, 9, dtype=torch.float64))


def test_output_size_reaches_a_transposed_convolution() -> None:
    for dims, size in ((1, [17]), (2, [14, 12])):
        layer = getattr(nn, f"ConvTranspose{dims}d")(4, 6, 3, 2, 1)
        model = Model(
            lambda self, x, size=size: self.norm(self.up(x, size)), up=layer, norm=NORMS[dims - 1](6)
        )
        assert_folds(model, torch.rand(SHAPES[dims], dtype=torch.float64))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_residual_network(dtype: torch.dtype) -> None:
    """All of it: in containers, in blocks, and on shortcuts."""
    x, _ = zoo.test_digits()
    model = zoo.small_resnet()
    folded = assert_folds(model, x[:32].to(dtype))
    assert type(folded) is nn.Sequential
    assert type(folded[3]).__name__ == "Block"
    assert type(folded[3].norm1) is nn.Identity


def test_channels_last_weights_stay_so() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).to(memory_format=torch.channels_last)
    folded = assert_folds(model, image())
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_rounded_once(dtype: torch.dtype) -> None:
    model = lived_in(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(dtype)
    folded, exact = fold_batchnorm(model), fold_batchnorm(copy.deepcopy(model).double())
    assert folded is not None
    assert exact is not None
    for name, value in folded.state_dict().items():
        assert torch.equal(value, exact.state_dict()[name].to(dtype)), name


def test_weights_beyond_their_dtype_are_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).half()
    nn.init.constant_(model[0].weight, 1000)
    nn.init.constant_(model[1].weight, 1000)
    assert fold_batchnorm(model) is None


def test_convolution_used_twice() -> None:
    assert_kept(models.make("residual with batch norm"))  # its stem feeds the norm and the shortcut
    assert_kept(Model(lambda self, x: self.norm(self.conv(x).relu_()), **conv_norm()))

    def in_place(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(2)
        return self.norm(y)

    assert_kept(Model(in_place, **conv_norm()))


def test_batchnorm_first() -> None:
    assert_kept(Model(lambda self, x: self.conv(self.norm(x)), **conv_norm()))
    assert_kept(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)))


def test_shared_layers() -> None:
    conv, norms = nn.Conv2d(4, 4, 3, padding=1), [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    assert_kept(nn.Sequential(conv, norms[0], conv, norms[1]))
    assert_kept(nn.Sequential(nn.Conv2d(4, 4, 3), norms[0], nn.Conv2d(4, 4, 3), norms[0]))
    # Called once but registered twice: what is not traced may call it by the other name.
    layers = conv_norm()
    assert_kept(
        Model(lambda self, x: self.norm(self.conv(x)), **layers, other=nn.ModuleList([layers["conv"]]))
    )
    assert_kept(Model(lambda self, x: self.norm(self.conv(self.norm(self.conv(x)))), **conv_norm()))


def test_tied_weights_fold_each_on_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model[2].weight = model[0].weight
    assert_folds(model, image())


def test_parameters_read_by_others() -> None:
    assert_kept(Model(lambda self, x: self.norm(self.conv(x)) * self.conv.weight.sum(), **conv_norm()))
    assert_kept(Model(lambda self, x: self.norm(self.conv(x)) + self.norm.running_mean.sum(), **conv_norm()))
    assert_kept(Model(lambda self, x: self.norm(F.conv2d(x, self.conv.weight)), **conv_norm()))
    # Read under another name.
    tied = nn.ParameterList([nn.Parameter(torch.rand(4, 4, 3, 3))])
    layers = conv_norm()
    layers["conv"].weight = tied[0]
    assert_kept(Model(lambda self, x: self.norm(self.conv(x)) * self.tied[0].sum(), tied=tied, **layers))


def test_python_that_asks_for_attributes_or_classes() -> None:
    assert_kept(Model(lambda self, x: self.norm(self.conv(x)) * self.norm.num_features, **conv_norm()))

    def by_class(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * (1 if isinstance(self.norm, nn.BatchNorm2d) else 2)

    assert_kept(Model(by_class, **conv_norm()))


def test_layers_found_through_a_list() -> None:
    """A plain list that refers to the layers must refer to the folded ones in the copy."""
    model = Model(lambda self, x: self.norm(self.plain[0](x)), **conv_norm())
    model.plain = [model.conv]
    folded = assert_folds(model, image())
    assert folded.plain[0] is folded.conv


def test_statistics() -> None:
    assert_kept(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            return self  # its batch-norm keeps using batch statistics

    assert_kept(Frozen(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("where", ["conv", "norm", "model"])
@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
        lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    ],
)
def test_hooks(where: str, register: Callable[[nn.Module], object]) -> None:
    model = Model(lambda self, x: self.norm(self.conv(x)), **conv_norm())
    register(model if where == "model" else getattr(model, where))
    assert_kept(model)


def test_hooks_never_see_the_trace() -> None:
    seen: list[Any] = []
    hooked = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    hooked.register_forward_hook(lambda module, args, out: seen.append(out))
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), hooked)
    folded = fold_batchnorm(model)
    assert folded is not None
    assert norms_left(folded) == 1
    assert not seen

    with nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(out)):
        assert fold_batchnorm(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))) is None
    assert not seen


def test_a_layer_inside_a_hooked_module_and_called_beside_it() -> None:
    layers = conv_norm()
    hooked = Model(lambda self, x: self.conv(x), conv=layers["conv"])
    hooked.register_forward_hook(lambda *_: None)
    assert_kept(
        Model(
            lambda self, x: self.norm(self.hooked.conv(x)) + self.hooked(x),
            hooked=hooked,
            norm=layers["norm"],
        )
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrised_and_replaced_layers() -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    class Subclass(nn.Conv2d):
        pass

    parametrised = nn.utils.parametrize.register_parametrization(nn.Conv2d(4, 4, 3), "weight", Double())
    normalised = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    by_hook = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    spectral = nn.utils.spectral_norm(nn.Conv2d(4, 4, 3))
    patched = nn.Conv2d(4, 4, 3)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    for layer in (parametrised, normalised, by_hook, spectral, patched, Subclass(4, 4, 3)):
        assert fold_batchnorm(nn.Sequential(layer, nn.BatchNorm2d(4))) is None


def test_dtypes_differ() -> None:
    assert_kept(nn.Sequential(nn.Conv2d(4, 4, 3).half(), nn.BatchNorm2d(4)))


def test_control_flow_on_the_data() -> None:
    assert_kept(
        Model(lambda self, x: self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x), **conv_norm())
    )


def test_children_of_what_cannot_be_traced() -> None:
    def checked(self: Any, x: Tensor) -> Tensor:
        if x.min() < 0:
            raise ValueError("negative")
        return self.head(self.norm(self.conv(x)) + self.body(x))

    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    model = Model(checked, **conv_norm(), body=nn.Sequential(block(), block()), head=nn.Flatten())
    assert_folds(model, image(), left=1)


def test_default_arguments_and_replaced_forward() -> None:
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, features: bool = False) -> Any:
            y = self.conv(x)
            return (y, self.norm(y)) if features else self.norm(y)

    assert_folds(Options(), image())
    # An instance may have its own forward: this one taps the convolution.
    model = Model(lambda self, x: self.norm(self.conv(x)), **conv_norm())
    model.forward = lambda x: model.norm(model.conv(x)) + model.conv(x)  # type: ignore[method-assign]
    assert_kept(model)


def test_control_flow_on_a_buffer() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(x)) if self.ready else self.conv(x)

    model = Model(forward, **conv_norm())
    model.register_buffer("calls", torch.tensor(0))
    model.register_buffer("ready", torch.tensor(True))
    folded = assert_folds(copy.deepcopy(model), image())
    assert folded.calls == 1  # the trace did not count
    model.ready.fill_(False)
    assert_kept(model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, functools.partial(torch.compile, backend="eager")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert_folds(wrap(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).double()), image())


def test_graph_module() -> None:
    model = lived_in(zoo.small_resnet())
    assert_folds(torch.fx.symbolic_trace(model), zoo.test_digits()[0][:8].double())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_folded_at_all() -> None:
    class Uncopyable(nn.Sequential):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError

    assert fold_batchnorm(Uncopyable(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))) is None
    unlocked = Model(lambda self, x: self.norm(self.conv(x)), **conv_norm())
    unlocked.lock = threading.Lock()
    assert fold_batchnorm(unlocked) is None
    assert fold_batchnorm(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())) is None
    assert fold_batchnorm(lambda x: x) is None  # type: ignore[arg-type]
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval(), image().float())
    assert fold_batchnorm(scripted) is None


def test_forward_that_draws_and_remembers() -> None:
    """A trace runs forward: neither the generator nor the caller's modules may notice."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.last = x
        return self.norm(self.conv(x)) + 0 * torch.rand(1)

    model = Model(forward, **conv_norm())
    model.last = None
    assert_folds(copy.deepcopy(model), image())
    state = torch.get_rng_state()
    assert fold_batchnorm(model) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.last is None


def test_under_inference_mode() -> None:
    x = image(torch.float32)
    with torch.inference_mode():
        model = lived_in(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
        folded = fold_batchnorm(model)
        expected = model.eval()(x)
    assert folded is not None
    leaf = x.clone().requires_grad_()
    out = folded(leaf)
    assert torch.allclose(out, expected, rtol=0, atol=1e-5)
    assert torch.autograd.grad(out.sum(), leaf)[0].abs().min() > 0
