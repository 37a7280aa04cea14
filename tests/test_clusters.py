"""Clusters, redundancy, effective rank and neighbours by cosine."""

import importlib.util
import math
import warnings

import numpy as np
import pytest
import torch
from brittle import reference
from brittle.ops import pairwise_cosine
from brittle.similarity import cluster, effective_rank, layer_summary, nearest, neighbours, redundancy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor

METHODS = ("spectral", "kmeans")
needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def noisy(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def groups(sizes: list[int], spread: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows about orthogonal directions, shuffled, and which direction each is about."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return torch.eye(len(sizes), 12)[labels] + spread * noisy((len(labels), 12), seed), labels


class TestCluster:
    @pytest.mark.parametrize("method", METHODS)
    def test_finds_separated_groups_and_numbers_them_by_size(self, method: str) -> None:
        rows, labels = groups([5, 20, 11])
        found = cluster(pairwise_cosine(rows), 3, method)
        by_size = torch.tensor([2, 0, 1])  # of the directions, the second has most rows
        assert torch.equal(found.labels, by_size[labels])
        assert found.agreement(labels) == 1.0
        assert found.labels.dtype == torch.int64

    @pytest.mark.parametrize("method", METHODS)
    def test_opposed_groups_and_zero_rows_are_told_apart(self, method: str) -> None:
        up = torch.ones(20, 6) + 0.3 * noisy((20, 6))
        opposed = torch.cat([up, -up[:15]])
        with_zeros = torch.cat([groups([20, 15, 11], spread=0.02)[0], torch.zeros(4, 12)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # scikit-learn's, of a graph in several parts
            assert cluster(pairwise_cosine(opposed), 2, method).labels.tolist() == [0] * 20 + [1] * 15
            assert cluster(pairwise_cosine(with_zeros), 4, method).labels[-4:].tolist() == [3] * 4

    def test_silhouette_and_closeness_are_what_they_say(self) -> None:
        rows, _ = groups([7, 6, 9], spread=0.4)
        cosines = pairwise_cosine(rows.double())
        found = cluster(cosines, 3)
        distance = (1 - cosines).clamp(min=0).fill_diagonal_(0)
        expected = silhouette_score(distance.numpy(), found.labels.numpy(), metric="precomputed")
        assert found.silhouette == pytest.approx(expected, abs=1e-12)
        for row, label in enumerate(found.labels):
            assert found.closeness[row].item() == pytest.approx(
                cosines[row, found.labels == label].mean().item(), abs=1e-12
            )

    def test_order_runs_through_clusters_the_most_typical_first(self) -> None:
        rows, _ = groups([7, 6, 9], spread=0.4)
        found = cluster(pairwise_cosine(rows), 3)
        order = found.order()
        assert torch.equal(order.sort().values, torch.arange(22))
        assert (found.labels[order].diff() >= 0).all()
        for label in range(3):
            assert (found.closeness[order][found.labels[order] == label].diff() <= 0).all()

    @pytest.mark.parametrize("method", METHODS)
    def test_one_seed_gives_one_result_and_the_global_state_stays(self, method: str) -> None:
        cosines = pairwise_cosine(noisy((40, 5)))
        np.random.seed(3)  # noqa: NPY002  (the global state that must not be used)
        before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        first, again = (cluster(cosines, 4, method, seed=-(2**63)) for _ in range(2))
        assert torch.equal(first.labels, again.labels)
        assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002

    def test_agreement_is_the_adjusted_rand_index(self) -> None:
        rows, labels = groups([8, 8, 8], spread=0.8)
        found = cluster(pairwise_cosine(rows), 3)
        assert found.agreement(labels) == adjusted_rand_score(labels.numpy(), found.labels.numpy()) < 1
        with pytest.raises(
            ValueError, match=r"Clusters.agreement: labels must be integers \[N\] with N = 24"
        ):
            found.agreement([0, 1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 1}, "cluster: k must be an integer >= 2; got 1"),
            ({"k": 6}, "cluster: k must be 2 to N - 1 = 5; got 6"),
            ({"method": "dbscan"}, "cluster: method must be one of 'spectral', 'kmeans'; got 'dbscan'"),
            ({"seed": 2**64}, "cluster: seed must be an integer of 64 bits"),
            ({"cosines": torch.eye(6, 5)}, r"cluster: cosines must be \[N, N\]; got torch.float32 \[6, 5\]"),
            ({"cosines": torch.eye(6, dtype=torch.int64)}, "cosines must be floating point; got torch.int64"),
        ],
    )
    def test_errors(self, change: dict[str, object], message: str) -> None:
        arguments = {"cosines": torch.eye(6), "k": 2} | change
        with pytest.raises(ValueError, match=message):
            cluster(**arguments)  # type: ignore[arg-type]

    def test_names_the_sample_that_has_no_cosine(self) -> None:
        rows = noisy((6, 3))
        rows[4, 1] = torch.inf
        with pytest.raises(ValueError, match="got NaN or infinity for sample 4"):
            cluster(pairwise_cosine(rows), 2)


class TestFigures:
    def test_redundancy_leaves_out_the_diagonal(self) -> None:
        cosines = torch.tensor([[1.0, 0.5, -0.25], [0.5, 1.0, 0.125], [-0.25, 0.125, 1.0]])
        assert redundancy(cosines) == pytest.approx(0.125)
        assert redundancy({"a": cosines, "b": torch.ones(2, 2)}) == {"a": pytest.approx(0.125), "b": 1.0}
        with pytest.raises(ValueError, match="redundancy: cosines must be of at least 2 samples; got 1"):
            redundancy(torch.ones(1, 1))

    @given(rank=st.integers(1, 6), rows=st.integers(6, 12), seed=st.integers(0, 99))
    @settings(max_examples=20, deadline=None)
    def test_equal_singular_values_count_as_their_number(self, rank: int, rows: int, seed: int) -> None:
        q, _ = torch.linalg.qr(noisy((rows, rank), seed).double())
        p, _ = torch.linalg.qr(noisy((8, rank), seed + 1).double())
        assert effective_rank(3 * q @ p.T) == pytest.approx(rank, rel=1e-9)
        assert effective_rank(9 * q @ q.T, gram=True) == pytest.approx(rank, rel=1e-6)

    def test_effective_rank_of_unequal_values(self) -> None:
        # Shares 3/4 and 1/4.
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))
        assert effective_rank(torch.diag(torch.tensor([9.0, 1.0])), gram=True) == pytest.approx(
            math.exp(entropy)
        )
        assert effective_rank(torch.zeros(3, 2)) == 0.0

    def test_rounding_errors_are_no_rank(self) -> None:
        rows = noisy((300, 3))
        unit = (rows / rows.norm(dim=1, keepdim=True)).double()
        of_cosines = effective_rank(pairwise_cosine(rows), gram=True)
        assert of_cosines == pytest.approx(effective_rank(unit), rel=1e-5)
        assert of_cosines <= 3

    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (torch.ones(3), r"matrix must be floating-point \[N, D\]"),
            (torch.ones(3, 3, dtype=torch.int32), r"matrix must be floating-point \[N, D\]; got torch.int32"),
            (torch.ones(0, 3), "matrix must hold at least one element"),
            (torch.full((2, 2), torch.nan), "matrix must be finite"),
        ],
    )
    def test_effective_rank_errors(self, matrix: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match="effective_rank: " + message):
            effective_rank(matrix)

    def test_layer_summary(self) -> None:
        apart, same = torch.eye(4), torch.ones(4, 4)
        mixed = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
        found = layer_summary({"apart": apart, "same": same, "mixed": mixed}, [0, 0, 1, 1])
        assert found.layers == ("apart", "same", "mixed")
        assert found.redundancy == pytest.approx((0.0, 1.0, (4 * 1 + 8 * 0.8) / 12))
        assert found.effective_rank[:2] == pytest.approx((4.0, 1.0))
        assert found.within == pytest.approx((0.0, 1.0, 1.0))
        assert found.between == pytest.approx((0.0, 1.0, 0.8))
        assert found.table().splitlines()[3].split() == ["mixed", "0.8667", "1.7548", "1.0000", "0.8000"]
        without = layer_summary({"apart": apart})
        assert without.within == ()
        assert "within" not in without.table()
        assert math.isnan(layer_summary({"apart": apart}, [0, 1, 2, 3]).within[0])

    def test_layer_summary_errors(self) -> None:
        with pytest.raises(ValueError, match="layer_summary: cosines must hold at least one matrix"):
            layer_summary({})
        with pytest.raises(ValueError, match=r"layer_summary: b must be \[N, N\] with N = 3; got \[2, 2\]"):
            layer_summary({"a": torch.eye(3), "b": torch.eye(2)}, [0, 1, 1])


AWKWARD = torch.tensor(
    [
        [3.0, 4.0, 0.0],
        [0.0, 0.0, 0.0],
        [3.0, 4.0, 0.0],
        [torch.nan, 1.0, 1.0],
        [-6.0, -8.0, 0.0],
        [1e-30, 0, 0],
    ]
)


class TestNearest:
    def test_exact_is_the_operator(self) -> None:
        a, b = noisy((9, 5)), noisy((7, 5), 1)
        for other in (None, b):
            cosines, indices = nearest(a, other, k=3)
            expected, at = reference.pairwise_cosine_topk(a, other, 3)
            torch.testing.assert_close(cosines.double(), expected, atol=1e-6, rtol=0)
            assert torch.equal(indices, at)

    @needs_faiss
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_a_flat_index_finds_exactly_the_same(
        self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(neighbours, "_CHUNK_BYTES", 8 * 6 * 10)  # ten rows at a time
        a, b = noisy((83, 6)).to(dtype), noisy((37, 6), 1).to(dtype)
        for other in (None, b):
            cosines, indices = nearest(a, other, 4, "faiss", index="Flat")
            expected, at = nearest(a, other, 4)
            assert cosines.dtype == expected.dtype
            torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0)
            assert torch.equal(indices, at)

    @needs_faiss
    def test_awkward_rows_by_the_operators_conventions(self) -> None:
        for k in (1, 5):
            cosines, indices = nearest(AWKWARD, k=k, backend="faiss", index="Flat")
            expected, at = nearest(AWKWARD, k=k)
            torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0, equal_nan=True)
            # A duplicate of a row is its neighbour, the row itself never; NaN rows are nobody's.
            assert torch.equal(indices == -1, at == -1)
            assert not (indices == torch.arange(6)[:, None]).any()
            assert not (indices == 3).any()
        assert torch.equal(indices, at)  # with all of them found, equal cosines come in order

    @needs_faiss
    def test_rows_whose_squares_are_out_of_range(self) -> None:
        a = torch.tensor([[1e-200, 0.0], [1e200, 1e200], [0.0, 3.0]], dtype=torch.float64)
        cosines, indices = nearest(a, backend="faiss", index="Flat")
        assert indices.squeeze(1).tolist() == [1, 0, 1]
        assert cosines.squeeze(1).tolist() == pytest.approx([math.sqrt(0.5)] * 3)

    @needs_faiss
    @pytest.mark.parametrize(("index", "least"), [("HNSW32", 0.95), ("IVF16,Flat", 0.3)])
    def test_recall_of_approximate_indexes(self, index: str, least: float) -> None:
        centres = noisy((30, 24))
        base = centres.repeat_interleave(50, 0) + 0.5 * noisy((1500, 24), 1)
        cosines, indices = nearest(base[:200] + 0.1 * noisy((200, 24), 2), base, 5, "faiss", index=index)
        _, exact = nearest(base[:200] + 0.1 * noisy((200, 24), 2), base, 5)
        recall = (indices[:, :, None] == exact[:, None, :]).any(2).double().mean().item()
        assert recall >= least
        assert (cosines.diff(dim=1) <= 0)[~cosines[:, 1:].isnan()].all()

    def test_faiss_missing_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "faiss", None)
        with pytest.raises(ImportError, match=r"nearest: backend 'faiss' needs .* pip install faiss-cpu"):
            nearest(torch.eye(3), backend="faiss")

    @needs_faiss
    def test_an_unknown_index_is_named(self) -> None:
        with pytest.raises(ValueError, match="nearest: index must be an index that faiss knows; got 'Tree'"):
            nearest(torch.eye(3), backend="faiss", index="Tree")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((torch.eye(3), None, 3), "k must be at most N - 1 = 2; got 3"),
            ((torch.eye(3), torch.eye(2, 3), 3), "k must be at most M = 2; got 3"),
            ((torch.eye(3), None, 0), "k must be an integer >= 1; got 0"),
            ((torch.eye(3), None, 1, "annoy"), "backend must be one of 'exact', 'faiss'; got 'annoy'"),
            ((torch.ones(3),), r"a must be \[N, D\]; got shape \[3\]"),
            ((torch.eye(3).int(),), "a must be floating point; got torch.int32"),
            (
                (torch.eye(3), torch.eye(4)),
                r"b must be \[M, D\] with D = 3, torch.float32 on cpu; got \[4, 4\]",
            ),
            ((torch.eye(3), torch.eye(3).double()), "got .* torch.float64 on cpu"),
        ],
    )
    def test_errors(self, arguments: tuple[object, ...], message: str) -> None:
        with pytest.raises(ValueError, match="nearest: .*" + message):
            nearest(*arguments)  # type: ignore[arg-type]
