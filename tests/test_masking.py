"""Masks: what they silence, what they leave alone, and that the way back is exact."""

import copy
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from brittle.repair import DuplicateUnits, duplicate_units, mask
from brittle.repair.duplicates import centred
from brittle.repair.structure import norm_after, reader_of
from brittle.sources import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from zoo import Block


@dataclass(frozen=True)
class Finding:
    layer: str
    kind: str
    channels: tuple[int, ...] = ()
    region: tuple[tuple[int, int], tuple[int, int]] | None = None


@dataclass(frozen=True)
class Diagnosis:
    flaws: tuple[Finding, ...]


EXAMPLE = Path(__file__).parent.parent / "examples" / "masking.py"

X = torch.rand(2, 1, 8, 8)


def cnn() -> nn.Sequential:
    """With norms that have seen data, so that none of them is an identity."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )
    for part in model.parameters():
        nn.init.normal_(part, 0.1, 0.5)
    for _ in range(3):
        model(torch.rand(16, 1, 8, 8))
    return model.eval()


def bits(model: nn.Module) -> list[tuple[str, bytes]]:
    return [(name, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()]


def names(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(parameter)) for name, parameter in model.named_parameters()]


LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5), 1),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 7), 1),
    "grouped conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=2), (3, 4, 6, 6), 1),
    "conv without bias": (lambda: nn.Conv2d(2, 4, 3, bias=False), (3, 2, 6, 6), 1),
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3), (3, 2, 6, 6), 1),
    "grouped transposed": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), (3, 6, 6), 1),
    "batch-norm": (lambda: nn.BatchNorm2d(4), (3, 4, 6, 6), 1),
    "group-norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 6), 1),
    "layer-norm": (lambda: nn.LayerNorm(4), (3, 7, 4), 2),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masked_units_give_zero_and_the_others_what_they_gave(kind: str, dtype: torch.dtype) -> None:
    make, shape, dim = LAYERS[kind]
    layer = make().to(dtype)
    for part in layer.parameters():
        nn.init.normal_(part)
    x = torch.randn(shape).to(dtype)
    before = layer(x)
    with mask(layer, "", [1, 2]):
        after = layer(x)
    silent = torch.tensor([1, 2])
    assert (after.index_select(dim, silent) == 0).all()
    spared = torch.tensor([0, 3])
    torch.testing.assert_close(after.index_select(dim, spared), before.index_select(dim, spared))
    assert torch.equal(layer(x), before) or kind == "batch-norm"


def test_removal_gives_back_the_very_tensors_in_their_order() -> None:
    model = cnn()
    before, parameters, classes = bits(model), names(model), [type(part) for part in model.modules()]
    modes = [part.training for part in model.modules()]
    masks = [mask(model, "0", [1]), mask(model, "4", fraction=0.5), mask(model, "0", [2, 3])]
    assert bits(model) != before
    masks[1].remove()
    masks[0].remove()
    assert parametrize.is_parametrized(model[0])
    masks[2].remove()
    assert bits(model) == before
    assert names(model) == parameters
    assert [type(part) for part in model.modules()] == classes
    assert [part.training for part in model.modules()] == modes
    masks[2].remove()  # once more is no mistake


def test_a_block_ends_the_mask_also_by_an_exception() -> None:
    model = cnn()
    before = bits(model)
    with pytest.raises(RuntimeError, match="stop"), mask(model, "4", [0]):
        raise RuntimeError("stop")
    assert bits(model) == before


@pytest.mark.parametrize("training", [False, True])
def test_the_norm_after_the_layer_is_masked_with_it(training: bool) -> None:
    model, x = cnn().train(training), torch.rand(9, 1, 8, 8)
    with mask(model, "0", [2, 5]) as masked:
        assert masked.norm == "1"
        assert (model[:2](x)[:, [2, 5]] == 0).all()
        assert (model[:2](x)[:, [0, 1, 3, 4]] != 0).all()
    with mask(model.eval(), "0", [2, 5], norm=None) as masked:
        assert masked.norm is None
        assert (model[:2](x)[:, [2, 5]] != 0).all()  # the batch-norm's shift


def test_baked_weights_are_what_the_mask_made_of_them() -> None:
    model, x = cnn(), torch.rand(4, 1, 8, 8)
    expected = copy.deepcopy(model)
    parameters = names(model)
    masked = mask(model, "0", [1, 4])
    under = model(x)
    masked.bake()
    with torch.no_grad():
        for part in (*expected[0].parameters(), *expected[1].parameters()):
            part[[1, 4]] = 0
    assert bits(model) == bits(expected)
    assert names(model) == parameters
    assert torch.equal(model(x), under)
    with pytest.raises(ValueError, match=r"Mask\.bake: the mask must be in place"):
        masked.bake()


def test_masks_are_baked_from_the_first() -> None:
    model = cnn()
    first, second = mask(model, "4", [0]), mask(model, "4", [1])
    with pytest.raises(ValueError, match=r"first parametrisation of 'weight' in layer '4'"):
        second.bake()
    first.bake()
    second.bake()
    assert not parametrize.is_parametrized(model[4])
    assert (model[4].weight.flatten(1) == 0).all(1).tolist() == [True, True] + [False] * 6


def test_training_moves_no_masked_weight() -> None:
    model, x, y = cnn().train(), torch.rand(32, 1, 8, 8), torch.arange(32) % 5
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    before = copy.deepcopy(model)
    masked = mask(model, "0", [1, 4])
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model[:2](x)[:, [1, 4]] == 0).all()
    masked.remove()
    for part, old in zip((*model[0].parameters(), *model[1].parameters()), before.parameters(), strict=False):
        assert torch.equal(part[[1, 4]], old[[1, 4]])
        assert (part[[0, 2, 3, 5]] != old[[0, 2, 3, 5]]).any()


def test_state_goes_to_a_model_with_the_same_mask() -> None:
    model, other, x = cnn(), cnn(), torch.rand(4, 1, 8, 8)
    mask(model, "4", [0, 3]), mask(other, "4", [1])
    other.load_state_dict(model.state_dict())  # the mask itself is state
    assert torch.equal(model(x), other(x))
    copied = copy.deepcopy(model)
    assert torch.equal(model(x), copied(x))


def test_other_parametrisations_stay() -> None:
    layer, x = nn.Linear(6, 4), torch.rand(5, 6)
    parametrize.register_parametrization(layer, "weight", Doubled())
    before = layer(x)
    masked = mask(layer, "", [2])
    assert (layer(x)[:, 2] == 0).all()
    with pytest.raises(ValueError, match="first parametrisation"):
        masked.bake()
    masked.remove()
    assert torch.equal(layer(x), before)
    assert isinstance(layer.parametrizations.weight[0], Doubled)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_attention_is_masked_in_what_it_gives() -> None:
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.rand(3, 5, 8)
    with mask(attention, "", [0, 7]) as masked:
        out = attention(x, x, x)[0]
        assert (out[..., [0, 7]] == 0).all()
        assert (out[..., 1:7] != 0).all()
    assert masked.units == (0, 7)


def test_a_fraction_is_chosen_by_the_seed_alone() -> None:
    model = nn.Linear(3, 40)
    chosen = []
    for seed in (0, 0, 1, -1):
        torch.rand(seed + 2)
        with mask(model, "", fraction=0.25, seed=seed) as masked:
            chosen.append(masked.units)
    assert [len(units) for units in chosen] == [10] * 4
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 3
    with mask(model, "", fraction=0.0) as none, mask(model, "", fraction=1.0) as everything:
        assert (none.units, everything.units) == ((), tuple(range(40)))


def test_a_region_is_silent_in_all_channels() -> None:
    model, x = cnn(), torch.rand(3, 1, 8, 8)
    before = model[:2](x)
    silent = torch.zeros(8, 8, dtype=torch.bool)
    silent[2:5, 6:] = True
    with mask(model, "0", region=((2, 5), slice(6, None))) as masked:
        after = model[:2](x)  # behind the norm, whose shift would fill the region
        with pytest.raises(ValueError, match=r"Mask\.bake: the mask must be of units"):
            masked.bake()
    assert torch.equal(after, before.masked_fill(silent, 0))
    assert torch.equal(model[:2](x), before)
    with mask(model, "0", found=Finding("0", "dead", region=((2, 5), (6, 8)))):
        assert torch.equal(model[:2](x), after)


def with_duplicates(factor: float = 1.0) -> nn.Sequential:
    """Units 1, 4 and 5 of layer "0" are one, the last two ``factor`` times the first; so are 2 and 3."""
    model = cnn()
    with torch.no_grad():
        for part in model[0].parameters():
            part[4] = part[5] = part[1]
            part[3] = part[2]
        for name in ("weight", "bias", "running_mean", "running_var"):
            part = getattr(model[1], name)
            scale = factor if name in ("weight", "bias") else 1.0
            part[4] = part[5] = scale * part[1]
            part[3] = part[2]
    return model


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_duplicates_are_found_and_the_strongest_stays(factor: float) -> None:
    model, x = with_duplicates(factor), torch.rand(40, 1, 8, 8)
    before, modes = bits(model), [part.training for part in model.modules()]
    found = duplicate_units(model, "0", x, threshold=0.9999)
    assert set(found.groups) == {(1, 4, 5), (2, 3)}
    assert found.channels == (3, 4, 5)
    assert bits(model) == before
    assert [part.training for part in model.modules()] == modes
    batches = [x[:7], x[7:20], x[20:]]
    assert duplicate_units(model, "0", batches, threshold=0.9999) == found
    assert duplicate_units(cnn(), "0", x, threshold=0.9999).groups == ()


def test_members_of_a_group_are_like_its_first() -> None:
    # At 0, 20 and 40 degrees: each like the next, but the ends not like each other.
    angles = torch.tensor([0.0, 20.0, 40.0]).deg2rad()
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[3.0], [2.0], [1.0]]))
    found = duplicate_units(layer, "", torch.cat([torch.eye(2), -torch.eye(2)]), threshold=0.9)
    assert found.groups == ((0, 1),)


def test_units_that_share_a_mean_or_never_vary_are_no_duplicates() -> None:
    layer = nn.Linear(2, 5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]))
        layer.bias.copy_(torch.tensor([-50.0, -50.0, 0.1, 0.1, 7.0]))
    assert duplicate_units(layer, "", torch.randn(60, 2)).groups == ((0, 4),)  # equal up to scale and shift
    for count in range(1, 200):  # of some, the mean is off by a rounding
        assert not centred(torch.full((1, count), 0.1)).any()


def test_units_are_compared_behind_their_norm() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(), torch.randn(50, 3)
    with torch.no_grad():
        for part in model[0].parameters():
            part[1] = part[0]
        assert duplicate_units(model, "0", x).groups == ((0, 1),)
        model[1].weight[1] = -1.0
        assert duplicate_units(model, "0", x).groups == ()
        assert duplicate_units(model[:1], "0", x).groups == ((0, 1),)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_merge_keeps_the_function(factor: float) -> None:
    model, x = with_duplicates(factor), torch.rand(40, 1, 8, 8)
    before, outputs, parameters = bits(model), model(x), names(model)
    found = duplicate_units(model, "0", x, threshold=0.9999)
    with mask(model, "0", found=found):
        assert (model(x) - outputs).abs().max() > 0.1
    with mask(model, "0", found=found, data=x, merge=True) as masked:
        assert masked.units == (3, 4, 5)
        assert masked.merged == ((3, 2), (4, 1), (5, 1))
        torch.testing.assert_close(model(x), outputs, rtol=1e-4, atol=1e-4)
    assert bits(model) == before
    assert names(model) == parameters
    mask(model, "0", found=found, data=x, merge=True).bake()
    torch.testing.assert_close(model(x), outputs, rtol=1e-4, atol=1e-4)
    assert not any(parametrize.is_parametrized(part) for part in model.modules())


def test_a_merge_reaches_through_flattening_and_between_linear_layers() -> None:
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.ReLU())
    mlp = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))
    up = nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3))
    for model, shape in ((flat, (8, 1, 8, 8)), (mlp, (8, 6)), (up, (8, 1, 4, 4))):
        with torch.no_grad():
            weight, bias = model[0].weight, model[0].bias
            if model is up:
                weight[:, 3] = weight[:, 0]
            else:
                weight[3] = weight[0]
            bias[3] = bias[0]
        x = torch.randn(shape)
        outputs = model(x)
        with mask(model, "0", [3], data=x, merge=True, threshold=0.9999) as masked:
            assert masked.merged == ((3, 0),)
            torch.testing.assert_close(model(x), outputs)


def test_units_without_a_like_are_masked_and_not_merged() -> None:
    model, x = with_duplicates(), torch.rand(40, 1, 8, 8)
    with mask(model, "0", [0, 1, 4], data=x, merge=True, threshold=0.9999) as masked:
        assert masked.merged == ((1, 5), (4, 5))
        outputs = model(x)
    with mask(model, "0", [0]):
        torch.testing.assert_close(model(x), outputs, rtol=1e-4, atol=1e-4)
    with mask(model, "0", [0], data=x, merge=True, threshold=0.9999) as alone:
        assert alone.merged == ()
    with mask(model, "0", fraction=1.0, data=x, merge=True) as everything:
        assert everything.merged == ()


def test_a_merge_goes_by_all_batches_and_leaves_no_hook() -> None:
    model, x = cnn(), torch.rand(40, 1, 8, 8)
    outputs = []
    for data in (x, [x[:7], x[7:]], (x, torch.zeros(40))):
        with mask(model, "0", [1, 3], data=data, merge=True, threshold=0.1) as masked, torch.no_grad():
            outputs.append(model(x))
            assert [unit for unit, _ in masked.merged] == [1, 3]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_units_that_are_never_heard_do_not_hinder_a_merge() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(50, 3)
    with torch.no_grad():
        model[0].bias[0] = -100.0
        for part in model[0].parameters():
            part[3] = part[1]
    with mask(model, "0", [3], data=x, merge=True, threshold=0.9999) as masked:
        assert masked.merged == ((3, 1),)
    with mask(model, "0", [0], data=x, merge=True) as masked:
        assert masked.merged == ()


def test_findings_choose_the_units() -> None:
    model = cnn()
    dead, redundant = Finding("0", "dead", (0,)), Finding("0", "redundant", (3, 5))
    diagnosis = Diagnosis((dead, redundant, Finding("0", "fragile", (1,)), Finding("4", "dead", (7,))))
    for layer, found, units in (
        ("0", dead, (0,)),
        ("0", redundant, (3, 5)),
        ("0", diagnosis, (0, 3, 5)),
        ("4", diagnosis, (7,)),
        ("0", DuplicateUnits("0", ((4, 2), (1, 5, 0)), 0.9), (0, 2, 5)),
        ("0", Finding("0", "dead", (2,), region=((0, 1), (0, 1))), (2,)),
    ):
        with mask(model, layer, found=found) as masked:
            assert masked.units == units
    for found in (dead, Diagnosis((dead,)), Finding("4", "unformed")):
        with pytest.raises(ValueError, match="found must accuse units or a region of layer '4'"):
            mask(model, "4", found=found)


class Tangled(nn.Module):
    """Registered in an order that is not the one in which modules run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        y = self.conv2(x)
        return self.head(F.relu(self.norm2(y) + y).mean((2, 3)))


class Untraceable(Tangled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_norms_and_readers_are_found_where_they_are() -> None:
    tangled = nn.Sequential(Tangled())
    assert norm_after(tangled, "0.conv1") == "0.norm1"
    assert norm_after(tangled, "0.conv2") is None  # read by the sum too
    assert reader_of(tangled, "0.conv1").name == "0.conv2"
    assert reader_of(tangled, "0.conv2") is None
    # No trace: the module registered next, if it is a batch-norm.
    assert norm_after(nn.Sequential(Untraceable()), "0.conv1") is None
    assert norm_after(nn.Sequential(Untraceable()), "0.conv2") == "0.norm1"
    assert norm_after(Block(4, 8, 2), "conv1") == "norm1"
    assert norm_after(Block(4, 8, 2), "shortcut.0") == "shortcut.1"
    twice = nn.Linear(4, 4)
    assert norm_after(nn.Sequential(twice, nn.BatchNorm1d(4), twice), "0") is None
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    assert norm_after(encoder, "linear2") is None  # registered before norm1, but a sum comes between
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2))
    assert reader_of(mixed, "0") is None
    last = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 4))  # mixes columns, not channels
    assert reader_of(last, "0") is None


def test_tracing_leaves_the_model_and_the_random_state_alone() -> None:
    model = cnn()
    before, state = bits(model), torch.get_rng_state()
    norm_after(model, "0")
    assert bits(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not [name for name, _ in model.named_modules() if "tracer" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of units, fraction, region, found; got none"),
        ({"units": [0], "fraction": 0.5}, "exactly one .* got units and fraction"),
        ({"units": [8]}, r"units must be in \[0, 8\); got 8"),
        ({"units": [-1]}, r"units must be in \[0, 8\); got -1"),
        ({"units": [0.5]}, "units must be integers"),
        ({"fraction": 1.5}, r"fraction must be in \[0, 1\]; got 1.5"),
        ({"fraction": float("nan")}, r"fraction must be in \[0, 1\]; got nan"),
        ({"fraction": 0.5, "seed": 2**64}, "seed must be an integer of 64 bits"),
        ({"units": [0], "merge": True}, "merge needs units and data; got no data"),
        ({"region": ((0, 1), (0, 1)), "merge": True, "data": X}, "merge needs units and data; got a region"),
        ({"units": [0], "merge": True, "data": X, "threshold": -1.0}, "threshold must be finite"),
        ({"units": [0], "norm": "1"}, "norm must be the name of a norm of 8 channels; got '1'"),
        ({"units": [0], "norm": "none"}, "layer must be a name"),
        ({"region": 3}, "region must be"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    model = cnn()
    before = bits(model)
    with pytest.raises(ValueError, match=f"mask: .*{message}"):
        mask(model, "4", **arguments)
    assert bits(model) == before


def test_wrong_layers() -> None:
    model = cnn()
    with pytest.raises(ValueError, match=r"mask: layer must be a name of .*; got 'conv'"):
        mask(model, "conv", [0])
    with pytest.raises(ValueError, match=r"mask: layer must be a linear layer, .* '2' is a ReLU"):
        mask(model, "2", [0])
    with pytest.raises(ValueError, match="mask: region needs a convolution; '7' is none"):
        mask(model, "7", region=((0, 1), (0, 1)))
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False))
    with pytest.raises(ValueError, match="norm must have weights"):
        mask(plain, "0", [1])
    with pytest.raises(ValueError, match="alone reads '7'"):
        mask(model, "7", [0], data=X, merge=True)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"duplicate_units: threshold must be in \(0, 1\]"):
            duplicate_units(model, "0", X, threshold)
    with pytest.raises(ValueError, match="data must hold samples"):
        duplicate_units(model, "0", torch.rand(0, 1, 8, 8))


@settings(max_examples=25)
@given(st.data())
def test_any_masks_in_any_order_leave_nothing_behind(data: st.DataObject) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    x, before = torch.rand(2, 3), bits(model)
    subsets = st.sets(st.integers(0, 3))
    masks = [
        (layer, units, mask(model, layer, units))
        for layer, units in data.draw(st.lists(st.tuples(st.sampled_from(["0", "2"]), subsets), max_size=4))
    ]
    while masks:
        silent = set().union(*(units for layer, units, _ in masks if layer == "2"))
        assert {i for i in range(4) if (model(x)[:, i] == 0).all()} >= silent
        assert {i for i in range(4) if (model[2].weight[i] == 0).all()} == silent
        masks.pop(data.draw(st.integers(0, len(masks) - 1)))[2].remove()
    assert bits(model) == before


def test_example_in_short() -> None:
    spec = importlib.util.spec_from_file_location("masking_example", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rest, new = digits()
    results = module.experiment(0, 6, (rest.x, rest.y), (new.x, new.y))
    before, merged, chance = (
        results[name] for name in ("with copies", "found units merged", "random units masked")
    )
    assert before["units"] == 32
    assert 12 <= merged["units"] == chance["units"] <= 17  # of so hasty a training more are alike
    assert merged["accuracy, %"] > 90
    assert abs(merged["accuracy, %"] - before["accuracy, %"]) < 0.5
    assert chance["accuracy, %"] < merged["accuracy, %"] - 1
    assert merged["mean |cosine|"] < before["mean |cosine|"]
    assert merged["rank / units"] > 1.7 * before["rank / units"]
    assert chance["rank / units"] < merged["rank / units"]
