"""The kernels for a GPU against their definition: on one, or else in Triton's interpreter."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from brittle import ops, reference
from brittle.triton import OPERATORS
from samples import DTYPES
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

OURS = [f"brittle.triton.pairwise_cosine{part}" for part in ("_kernels", "_tilings", "")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUDA = torch.cuda.is_available()
# Sums of float32 products, scaled and rounded; tensor cores truncate as they add.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 4e-6, torch.bfloat16: 4e-6}

# NaN and infinity are multiplied on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def load(path: Path) -> ModuleType:
    """A module of its own from a file."""
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Triton looks for the source
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The kernels' module and the tests' own, to be interpreted where there is no GPU.

    Triton settles that as a function is decorated, and its own may have been, by another import. So those
    that the kernels call are decorated anew, for as long as this file's tests run. Then all of Triton's names
    are put back: the interpreter replaces many.
    """
    path = Path(__file__).with_name("triton_tiles.py")
    package = importlib.import_module("brittle.triton")
    spaces = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base, tl.condition)
    names = [(space, dict(vars(space))) for space in spaces]
    with pytest.MonkeyPatch.context() as patch:
        if not CUDA:
            patch.setenv("TRITON_INTERPRET", "1")
            for name in ("max", "sum"):
                patch.setattr(tl, name, triton.jit(getattr(tl, name).fn))
        for name in OURS:
            patch.delitem(sys.modules, name, raising=False)
            patch.delattr(package, name.rpartition(".")[2], raising=False)
        found = {name.rpartition(".")[2]: importlib.import_module(name) for name in OURS}
        yield {**found, path.stem: load(path)}
        del sys.modules[f"tested_{path.stem}"]
        for name in OURS:
            del sys.modules[name]
            delattr(package, name.rpartition(".")[2])
    for space, before in names:
        for name, value in list(vars(space).items()):
            if name not in before:
                delattr(space, name)
            elif value is not before[name]:
                setattr(space, name, before[name])


@pytest.fixture
def kernels(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["pairwise_cosine"]


@pytest.fixture
def tilings(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["pairwise_cosine_tilings"]


def features(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0, shift: float = 0.3) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1000 * n + d + seed)) + shift
    return x.to(dtype).to(DEVICE)


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    got = got.double().cpu()
    assert got.shape == expected.shape
    assert torch.equal(got.isnan(), expected.isnan())
    assert got.nan_to_num(nan=0.0).abs().le(1.0).all()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, equal_nan=True)


def assert_as_defined(kernels: ModuleType, a: Tensor, b: Tensor | None = None) -> Tensor:
    """Writes into memory full of NaN, so that an element left out is seen; returns what was written."""
    rows, columns = a.shape[0], (a if b is None else b).shape[0]
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    out = torch.full((rows, columns), torch.nan, dtype=dtype, device=a.device)
    kernels.pairwise_cosine_out(a, b, out)
    expected = reference.pairwise_cosine(a.cpu(), None if b is None else b.cpu())
    assert_close(out, expected, TOLERANCE[a.dtype])
    if b is None:
        assert_symmetric(out, expected)
    return out


def assert_symmetric(out: Tensor, expected: Tensor) -> None:
    known = expected.diagonal().to(out)
    assert torch.equal(out.diagonal().nan_to_num(nan=7.0), known.nan_to_num(nan=7.0)), "1, 0 or NaN"
    assert torch.equal(out.nan_to_num(nan=7.0), out.T.nan_to_num(nan=7.0)), "the same bits in both halves"


SHAPES = [
    (1, 1, 1),
    (2, 3, 1),
    (1, 200, 3),
    (33, 1, 17),
    (31, 47, 64),
    (65, 130, 33),
    (129, 5, 100),
    (3, 4, 2500),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(kernels: ModuleType, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, m, d = shape
    assert_as_defined(kernels, features(n, d, dtype), features(m, d, dtype, seed=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (33, 16), (70, 31), (135, 48), (3, 4100)], ids=str)
def test_values_of_a_matrix_with_itself(
    kernels: ModuleType, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_as_defined(kernels, features(*shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_do(kernels: ModuleType, dtype: torch.dtype) -> None:
    for n, m, d in ((0, 0, 3), (0, 2, 3), (2, 0, 3)):
        a, b = features(n, d, dtype), features(m, d, dtype)
        assert kernels.pairwise_cosine(a, b).shape == (n, m)
        assert kernels.pairwise_cosine(b).shape == (m, m)
    empty = torch.empty(3, 0, dtype=dtype, device=DEVICE)
    assert_as_defined(kernels, empty)  # rows of no elements are zero rows
    assert_as_defined(kernels, empty, empty[:2])


class TestStrides:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_operands(self, kernels: ModuleType, dtype: torch.dtype) -> None:
        wide = features(40, 90, dtype)
        contiguous = features(21, 37, dtype)
        for a in (
            wide[:21, 5:42],
            wide[:, :37][::2],
            wide.T[:21, 3:40],
            wide[::2, ::2][:, :37],
            wide[3].expand(4, 90),
        ):
            assert_as_defined(kernels, a)
            if a.shape[1] == 37:
                assert_as_defined(kernels, a, contiguous)
                assert_as_defined(kernels, contiguous, a)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_out(self, kernels: ModuleType, dtype: torch.dtype, symmetric: bool) -> None:
        a = features(35, 20, dtype)
        b = None if symmetric else features(35, 20, dtype, seed=1)
        expected = reference.pairwise_cosine(a.cpu(), None if b is None else b.cpu())
        for view in (lambda x: x[3:38, 5:40], lambda x: x.T[:35, :35], lambda x: x[::2, ::3][:35, :35]):
            memory = torch.full((110, 110), 7.0, dtype=dtype, device=DEVICE)
            kernels.pairwise_cosine_out(a, b, view(memory))
            assert_close(view(memory), expected, TOLERANCE[dtype])
            view(memory).fill_(7.0)
            assert (memory == 7.0).all(), "written outside of out"


class TestRowsOfEveryLength:
    """Tiles with a row of extreme length take another loop than those without."""

    FACTORS: ClassVar = {
        torch.float32: [1e-44, 1e-38, 1e-20, 1e-12, 1e-3, 1.0, 1e5, 1e12, 1e13, 1e20, 1e37],
        # Triton's interpreter reads subnormal bfloat16 wrongly.
        torch.bfloat16: [*([1e-39] if CUDA else []), 1e-33, 1e-20, 1e-12, 1.0, 1e12, 1e20, 1e37],
        torch.float16: [1e-6, 1e-4, 1.0, 1e4],
        torch.float64: [1e-320, 1e-308, 1e-200, 1e-120, 1e-20, 1.0, 1e120, 1e125, 1e200, 1e306],
    }

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_lengths(self, kernels: ModuleType, dtype: torch.dtype) -> None:
        factors = torch.tensor(self.FACTORS[dtype], dtype=torch.float64)
        x = features(len(factors), 45, torch.float64, shift=1.0)
        x = (x * factors[:, None].to(DEVICE)).to(dtype)
        assert x.isfinite().all()
        assert_as_defined(kernels, x)
        assert_as_defined(kernels, x, features(140, 45, dtype))
        assert_as_defined(kernels, features(140, 45, dtype), x)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    def test_both_loops_give_the_same_bits(self, kernels: ModuleType, dtype: torch.dtype) -> None:
        ordinary = features(30, 70, dtype)
        expected = kernels.pairwise_cosine(ordinary)
        two = kernels.pairwise_cosine(ordinary, ordinary.clone())
        # The second power's square is out of range.
        for power in (2.0**410, 2.0**600) if dtype == torch.float64 else (2.0**50, 2.0**75):
            large, small = ordinary * power, ordinary / power
            assert torch.equal(kernels.pairwise_cosine(large), expected)
            assert torch.equal(kernels.pairwise_cosine(small), expected)
            assert torch.equal(kernels.pairwise_cosine(small, large), two)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("n", [9, 140])
    def test_zero_and_lost_rows(self, kernels: ModuleType, dtype: torch.dtype, n: int) -> None:
        x = features(n, 40, dtype)
        x[0] = 0
        x[n // 2] = 0
        x[2, 5] = torch.nan
        x[n - 1, 39] = torch.inf
        x[n - 2, 0] = -torch.inf
        out = assert_as_defined(kernels, x)
        assert out[0, 0] == 0
        assert out[2].isnan().all()
        assert int(out.isnan().all(1).sum()) == 3
        assert_as_defined(kernels, x, features(7, 40, dtype))
        assert_as_defined(kernels, features(7, 40, dtype), x)

    def test_all_elements_largest(self, kernels: ModuleType) -> None:
        for dtype in DTYPES:
            x = torch.full((3, 300), torch.finfo(dtype).max, dtype=dtype, device=DEVICE)
            x[1, ::2] *= -1
            assert_as_defined(kernels, x)

    def test_one_element_of_every_float16(self, kernels: ModuleType) -> None:
        every = torch.arange(2**16).to(torch.uint16).view(torch.float16)
        every = every[every.isfinite()].reshape(-1, 1).to(DEVICE)
        out = kernels.pairwise_cosine(every[::97], torch.tensor([[-2.0]], device=DEVICE).half())
        assert_close(out, -every[::97].sign().double().cpu(), 2e-7)


class TestLongRows:
    def test_100_000_columns(self, kernels: ModuleType) -> None:
        x = torch.rand(4, 100_000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        x[1] = 0.1  # roundings that all fall the same way
        x[2] = x[0] * 3
        out = assert_as_defined(kernels, x)
        assert abs(float(out[0, 2]) - 1) <= 2e-6

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("shares", [2, 7])
    def test_any_number_of_shares(
        self, kernels: ModuleType, tilings: ModuleType, dtype: torch.dtype, symmetric: bool, shares: int
    ) -> None:
        a = features(35, 150, dtype)
        a[3] = 0
        a[4, 149] = torch.nan
        b = None if symmetric else features(70, 150, dtype)
        precision = kernels._precision(dtype)
        tiling = tilings.candidates(dtype, precision)[-1]._replace(block_k=16, shares=shares)
        out = launch(kernels, a, b, tiling, precision)
        expected = reference.pairwise_cosine(a.cpu(), None if b is None else b.cpu())
        assert_close(out, expected, TOLERANCE[dtype])
        if symmetric:
            assert_symmetric(out, expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
    @pytest.mark.parametrize("d", [64, 65, 128, 300])
    def test_running_sums_are_cut(
        self,
        kernels: ModuleType,
        tilings: ModuleType,
        dtype: torch.dtype,
        d: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(kernels, "CHUNK", 64)
        a = features(20, d, dtype)
        out = launch(kernels, a, None, tilings.candidates(dtype, "tf32")[-1]._replace(block_k=32), "tf32")
        assert_close(out, reference.pairwise_cosine(a.cpu()), 3e-3 if dtype == torch.float32 else 4e-6)

    def test_parts_are_added_with_compensation(self, kernels: ModuleType, tilings: ModuleType) -> None:
        """1250 parts whose roundings all fall the same way: without, these are off by 2e-5."""
        a = torch.tensor([[0.1], [0.3], [0.37], [1.1]], device=DEVICE).expand(4, 20_000)
        tiling = tilings.candidates(torch.float32, "ieee")[2]._replace(block_k=16)
        out = launch(kernels, a, a[:, :], tiling, "ieee")
        assert_close(out, torch.ones(4, 4, dtype=torch.float64), 1e-6)


def launch(kernels: ModuleType, a: Tensor, b: Tensor | None, tiling: Any, precision: str) -> Tensor:
    out = torch.full(
        (len(a), len(a if b is None else b)), torch.nan, dtype=kernels.result_dtype(a.dtype), device=a.device
    )
    scales = kernels.row_scales(a)
    kernels.product(a, scales, b, scales if b is None else kernels.row_scales(b), out, tiling, precision)
    return out


class TestTilings:
    PRECISIONS: ClassVar = [
        (torch.float32, "ieee"),
        (torch.float32, "tf32"),
        (torch.float32, "tf32x3"),
        (torch.float64, "ieee"),
        (torch.float16, "tf32"),
        (torch.bfloat16, "tf32"),
    ]

    @pytest.mark.parametrize(("dtype", "precision"), PRECISIONS, ids=str)
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_every_candidate(
        self, kernels: ModuleType, tilings: ModuleType, dtype: torch.dtype, precision: str, symmetric: bool
    ) -> None:
        tolerance = 3e-3 if precision == "tf32" and dtype == torch.float32 else TOLERANCE[dtype]
        for tiling in tilings.candidates(dtype, precision):
            a = features(tiling.block_m + 3, 70, dtype)
            b = None if symmetric else features(7, 70, dtype, seed=1)
            out = launch(kernels, a, b, tiling, precision)
            expected = reference.pairwise_cosine(a.cpu(), None if b is None else b.cpu())
            assert_close(out, expected, tolerance)
            if symmetric:
                assert_symmetric(out, expected)

    @pytest.mark.parametrize(("dtype", "precision"), PRECISIONS, ids=str)
    def test_they_fit_hopper(self, tilings: ModuleType, dtype: torch.dtype, precision: str) -> None:
        for tiling in tilings.candidates(dtype, precision):
            assert tiling.block_n % tiling.block_m == 0, "the triangle is one of squares of block_n"
            assert tilings.CHUNK % tiling.block_k == 0
            operands = tiling.num_stages * (tiling.block_m + tiling.block_n) * tiling.block_k * dtype.itemsize
            assert operands <= 227 * 1024

    def test_the_choice(self, kernels: ModuleType, tilings: ModuleType) -> None:
        def chosen(
            n: int, m: int, d: int, symmetric: bool = False, dtype: torch.dtype = torch.float32
        ) -> Any:
            return tilings.tiling_for(n, m, d, dtype, symmetric, kernels._precision(dtype), 132)

        assert chosen(10_000, 10_000, 512)[:3] == (128, 128, 32)
        assert chosen(10_000, 10_000, 512, dtype=torch.bfloat16)[:3] == (128, 256, 64)
        assert chosen(10_000, 10_000, 5000, dtype=torch.bfloat16)[:3] == (128, 128, 64), (
            "two sums per element"
        )
        assert chosen(10_000, 10_000, 5)[:3] == (128, 128, 16)
        assert chosen(100, 100, 512)[:3] == (32, 32, 32), "small tiles keep more of the GPU busy"
        few = chosen(256, 256, 100_000, symmetric=True)
        assert few[:2] == (128, 128)
        assert few.shares == 44, "3 tiles, 132 multiprocessors"
        assert chosen(2, 2, 100_000).shares == 48, "2048 columns each, at least"
        for n, m, d in ((1, 1, 1), (7, 3000, 40_000), (50_000, 50_000, 10)):
            for dtype in DTYPES:
                tiling = chosen(n, m, d, dtype=dtype)
                assert chosen(n, m, d, dtype=dtype) == tiling
                assert tiling.shares == 1 or tiling.shares * n * m <= tilings.SPLIT_WORKSPACE

    def test_tf32_only_where_allowed(self, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        for setting, expected in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
            monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda setting=setting: setting)
            assert kernels._precision(torch.float32) == expected
        assert kernels._precision(torch.float64) == "ieee"


class TestTriangle:
    """Which tile a program takes."""

    @pytest.fixture
    def tiles_of(self, modules: dict[str, ModuleType]) -> Callable[[int, int], np.ndarray]:
        def tiles_of(tiles: int, group: int) -> np.ndarray:
            count = tiles * (tiles + 1) // 2
            found = torch.full((2, count), -1, dtype=torch.int32, device=DEVICE)
            steps = next(steps for steps in (4, 8, 16) if -(-tiles // group) <= 2**steps)
            block = min(triton.next_power_of_2(count), 2**16)
            modules["triton_tiles"].write_tiles[(-(-count // block),)](
                modules["pairwise_cosine_kernels"].triangle_tile,
                found[0],
                found[1],
                0,
                count,
                tiles,
                group,
                steps,
                block,
            )
            return found.cpu().numpy()

        return tiles_of

    @pytest.mark.parametrize("group", [1, 3, 8])
    def test_every_tile_once(self, tiles_of: Callable[[int, int], np.ndarray], group: int) -> None:
        for tiles in (*range(1, 20), 31, 64, 131, 300):
            rows, columns = tiles_of(tiles, group)
            assert (rows >= 0).all()
            assert (rows <= columns).all()
            assert (columns < tiles).all()
            assert len(np.unique(rows.astype(np.int64) * tiles + columns)) == tiles * (tiles + 1) // 2

    def test_the_ends_of_the_largest(self, modules: dict[str, ModuleType]) -> None:
        """46,340 tiles a side are the most whose number fits 31 bits."""
        tiles = 46_340
        first = tiles * (tiles + 1) // 2 - 4096
        found = torch.full((2, 4096), -1, dtype=torch.int32, device=DEVICE)
        triangle = modules["pairwise_cosine_kernels"].triangle_tile
        modules["triton_tiles"].write_tiles[(1,)](
            triangle, found[0], found[1], first, 4096, tiles, 8, 16, 4096
        )
        rows, columns = found.cpu().numpy()
        assert (rows[-1], columns[-1]) == (tiles - 1, tiles - 1)
        assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 4096
        assert (rows <= columns).all()

    def test_neighbours_share(self, tiles_of: Callable[[int, int], np.ndarray]) -> None:
        """Programs that run together read few rows; 132 tiles in a square would read 12, and 11 columns."""
        rows, columns = tiles_of(100, 8)
        read = [
            len(np.unique(np.concatenate([rows[i : i + 132], columns[i : i + 132]])))
            for i in range(0, len(rows), 132)
        ]
        assert np.median(read) <= 27


class TestTopK:
    @pytest.fixture(params=[None, (9, 8)], ids=str)
    def blocks(self, request: Any, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        """The result in one tile, or in many."""
        if request.param is not None:
            rows, columns = request.param
            monkeypatch.setattr(kernels, "WORKSPACE", rows * columns)
            monkeypatch.setattr(kernels, "TOPK_COLUMNS", columns)

    @pytest.mark.usefixtures("blocks")
    @pytest.mark.parametrize(
        ("dtype", "k"),
        [(torch.float32, 22), (torch.float64, 3), (torch.float16, 1), (torch.bfloat16, 3)],
        ids=str,
    )
    def test_against_the_definition(self, kernels: ModuleType, dtype: torch.dtype, k: int) -> None:
        # Elements of 0, 1 and -1 in rows of 16 nonzeros: lengths of 4, sums that are exact, and many ties.
        generator = torch.Generator().manual_seed(k)
        x = torch.zeros(23, 20)
        for row in x:
            places = torch.randperm(20, generator=generator)[:16]
            row[places] = torch.randint(0, 2, (16,), generator=generator).float() * 2 - 1
        x[5] = 0
        x[7, 3] = torch.nan
        x[11] = x[2]
        x[22] = x[2]
        a = x.to(dtype).to(DEVICE)
        b = a[:22].flip(0)
        for other in (None, b):
            cosines, indices = kernels.pairwise_cosine_topk(a, other, k)
            expected = reference.pairwise_cosine_topk(a.cpu(), None if other is None else other.cpu(), k)
            assert_close(cosines, expected[0], 1e-7)
            assert torch.equal(indices.cpu(), expected[1])
            assert (indices[7] == -1).all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_values(self, kernels: ModuleType, dtype: torch.dtype) -> None:
        a, b = features(9, 33, dtype, shift=0.0), features(31, 33, dtype, seed=1, shift=0.0)
        cosines, indices = kernels.pairwise_cosine_topk(a, b, 5)
        every = reference.pairwise_cosine(a.cpu(), b.cpu())
        assert_close(cosines, every.topk(5).values, TOLERANCE[dtype])
        assert_close(every.gather(1, indices.cpu()), every.topk(5).values, TOLERANCE[dtype])

    def test_no_columns_and_no_neighbours(self, kernels: ModuleType) -> None:
        empty = torch.empty(3, 0, device=DEVICE)
        cosines, indices = kernels.pairwise_cosine_topk(empty, None, 2)
        assert cosines.tolist() == [[0, 0]] * 3
        assert indices.tolist() == [[1, 2], [0, 2], [0, 1]]
        assert kernels.pairwise_cosine_topk(features(3, 4), None, 0)[0].shape == (3, 0)
        assert kernels.pairwise_cosine_topk(features(0, 4), features(2, 4), 2)[1].shape == (0, 2)

    def test_order_of_float32_bits(self, kernels: ModuleType) -> None:
        row = torch.tensor([[0.0, -0.0, -1.0, 1.0, -1e-40, 1e-40, torch.nan, -0.5, 0.5, -0.0]], device=DEVICE)
        values, places = kernels._best(row.clone(), 100, 10)
        assert places.tolist() == [[103, 108, 105, 100, 101, 109, 104, 107, 102, -1]]
        assert values[0, :9].tolist() == row[0, places[0, :9] - 100].tolist()
        assert kernels._best(row.double(), 100, 10)[1].tolist() == places.tolist()


class TestChecks:
    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (torch.ones(3), None, r"a must be \[N, D\]; got shape \[3\]"),
            (torch.ones(2, 2).long(), None, "a must be float32, float64, float16 or bfloat16; got int64"),
            (torch.ones(3, 5), torch.ones(5), r"b must be \[M, D\]; got shape \[5\]"),
            (torch.ones(3, 5), torch.ones(4, 5).double(), "b must have a's dtype float32; got float64"),
            (torch.ones(3, 5), torch.ones(4, 6), r"b must have a's 5 columns; got shape \[4, 6\]"),
            (torch.ones(3, 5), torch.ones(4, 5, device="meta"), "b must be on a's device cpu; got meta"),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_operands(self, kernels: ModuleType, a: Tensor, b: Tensor | None, message: str) -> None:
        with pytest.raises(ValueError, match="^pairwise_cosine: " + message):
            kernels.pairwise_cosine(a, b)
        with pytest.raises(ValueError, match="^pairwise_cosine: " + message):
            kernels.pairwise_cosine_out(a, b, torch.empty(3, 4))
        with pytest.raises(ValueError, match="^pairwise_cosine_topk: " + message):
            kernels.pairwise_cosine_topk(a, b, 1)

    def test_out(self, kernels: ModuleType) -> None:
        a, b = torch.ones(3, 4), torch.ones(4, 4)
        memory = torch.empty(100)
        for out, message in (
            (torch.empty(4, 3), r"out must have shape \[3, 4\]; got \[4, 3\]"),
            (torch.empty(3, 4, dtype=torch.bfloat16), "out must be float32; got bfloat16"),
            (torch.empty(3, 4, device="meta"), "out must be on a's device cpu; got meta"),
            (torch.empty(4).expand(3, 4), "out must not be expanded"),
            (a, "out must not share memory with a"),
            (b[:3], "out must not share memory with b"),
        ):
            with pytest.raises(ValueError, match="^pairwise_cosine: " + message):
                kernels.pairwise_cosine_out(a, b, out)
        with pytest.raises(ValueError, match="out must be float64; got float32"):
            kernels.pairwise_cosine_out(a.double(), None, torch.empty(3, 3))
        with pytest.raises(ValueError, match="share memory with a"):
            kernels.pairwise_cosine_out(memory[:12].view(3, 4), None, memory[11:20].view(3, 3))
        assert not kernels._overlap(memory[:12], memory[12:])

    def test_k(self, kernels: ModuleType) -> None:
        a, b = torch.ones(4, 2), torch.ones(4, 2)
        for k in (7, -1):
            message = rf"^pairwise_cosine_topk: k must be in \[0, 4\], the number of rows of b; got {k}$"
            with pytest.raises(ValueError, match=message):
                kernels.pairwise_cosine_topk(a, b, k)
            message = rf"^pairwise_cosine_topk: k must be in \[0, 3\], the number of other rows; got {k}$"
            with pytest.raises(ValueError, match=message):
                kernels.pairwise_cosine_topk(a, None, k)


class TestDispatch:
    def test_torch_knows_where_the_operators_are_on_cuda(self) -> None:
        for name in OPERATORS:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"brittle::{name}", "CUDA")

    def test_without_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from brittle.triton import _on_first_call

        monkeypatch.delitem(sys.modules, "brittle.triton.pairwise_cosine", raising=False)
        monkeypatch.delattr("brittle.triton.pairwise_cosine", raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.raises(
            ImportError, match=r"^pairwise_cosine_topk: on a CUDA device .* needs Triton.*pip install"
        ):
            _on_first_call("pairwise_cosine_topk")(torch.ones(2, 2), None, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
class TestOnTheGpu:
    """Through the dispatcher, as users call it."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        "shape", [(500, 700, 64), (1023, 515, 1000), (300, 300, 4097), (70, 90, 50_001)], ids=str
    )
    def test_values(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        n, m, d = shape
        a, b = features(n, d, dtype), features(m, d, dtype, seed=1)
        tolerance = {**TOLERANCE, torch.float16: 2e-5, torch.bfloat16: 2e-5}[dtype]
        assert_close(ops.pairwise_cosine(a, b), reference.pairwise_cosine(a.cpu(), b.cpu()), tolerance)
        expected = reference.pairwise_cosine(a.cpu())
        out = ops.pairwise_cosine(a)
        assert_close(out, expected, tolerance)
        assert_symmetric(out, expected)
        out = torch.empty(m, n, dtype=out.dtype, device="cuda").T
        assert ops.pairwise_cosine(a, b, out=out) is out
        assert torch.equal(out, ops.pairwise_cosine(a, b)), "equal calls give equal bits"

    @pytest.mark.parametrize("setting", ["high", "medium"])
    def test_tf32(self, setting: str) -> None:
        a = features(400, 300)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            out = ops.pairwise_cosine(a)
        finally:
            torch.set_float32_matmul_precision(before)
        expected = reference.pairwise_cosine(a.cpu())
        assert_close(out, expected, 3e-3)
        assert_symmetric(out, expected)
        assert not torch.equal(out, ops.pairwise_cosine(a)), "TF32 rounds its operands"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_more_than_2_31_elements(self, dtype: torch.dtype) -> None:
        n = 50_000
        if torch.cuda.mem_get_info()[0] < 16 * n * n // 10:
            pytest.skip("too little memory")
        x = features(n, 40, dtype)
        x[n - 3] = 0
        out = ops.pairwise_cosine(x)
        for rows in (slice(0, 50), slice(20_000, 20_050), slice(n - 50, n)):
            expected = reference.pairwise_cosine(x[rows].cpu(), x.cpu())
            assert_close(out[rows], expected, 2e-5)
            assert torch.equal(out[rows], out[:, rows].T)
        assert int((out.diagonal() == 1).sum()) == n - 1

    def test_on_another_stream(self) -> None:
        a = features(700, 300)
        expected = ops.pairwise_cosine(a * 2 - 1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # a launch on any other stream would overtake
            out = ops.pairwise_cosine(a * 2 - 1)
        stream.synchronize()
        assert torch.equal(out, expected)

    def test_in_a_graph(self) -> None:
        a, out = features(300, 5000), torch.empty(300, 300, device="cuda")
        expected = ops.pairwise_cosine(a, out=out).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.pairwise_cosine(a, out=out)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)

    def test_compiled_and_differentiated(self) -> None:
        a = features(60, 33, torch.float64).requires_grad_()
        weight = torch.randn(60, 60, dtype=torch.float64, device="cuda")

        @torch.compile(fullgraph=True)
        def loss(x: Tensor) -> Tensor:
            return (ops.pairwise_cosine(x) * weight).sum()

        (got,) = torch.autograd.grad(loss(a), a)
        on_cpu = a.detach().cpu().requires_grad_()
        (expected,) = torch.autograd.grad((ops.pairwise_cosine(on_cpu) * weight.cpu()).sum(), on_cpu)
        torch.testing.assert_close(got.cpu(), expected)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_topk(self, dtype: torch.dtype) -> None:
        a, b = features(300, 64, dtype), features(40_000, 64, dtype, seed=1)
        b[777] = b[31_000] = a[5]
        b[123] = torch.nan
        cosines, indices = ops.pairwise_cosine_topk(a, b, k=7)
        every = ops.pairwise_cosine(a, b).nan_to_num_(nan=-2.0)
        torch.testing.assert_close(cosines, every.topk(7).values, rtol=0, atol=2e-5)
        torch.testing.assert_close(every.gather(1, indices), cosines, rtol=0, atol=2e-5)
        assert indices[5, :2].tolist() == [777, 31_000]
        assert not (indices == 123).any()
