"""Metrics against slow loops in float64 that share no code with varloss, and against known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from support import oracles

from varloss import metrics
from varloss.metrics.embeddings import sphere_cosine_quantile


def rows(n: int, d: int, seed: int, shift: float = 0.3) -> torch.Tensor:
    """Rows of unequal length and with a common direction, so that forgetting to normalise or to centre shows."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64) + shift
    return z * torch.linspace(0.5, 3.0, n, dtype=torch.float64)[:, None]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a_list, b_list = a.tolist(), b.tolist()
    dot = sum(x * y for x, y in zip(a_list, b_list, strict=True))
    return dot / math.sqrt(sum(x * x for x in a_list)) / math.sqrt(sum(y * y for y in b_list))


def ordered_pairs(n: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(n) for j in range(n) if i != j]


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor]:
    z0 = rows(9, 5, seed=0)
    return z0, z0.roll(1, dims=1) + rows(9, 5, seed=1, shift=-0.2)


def test_similarity_statistics_match_a_loop_over_pairs(views: tuple[torch.Tensor, torch.Tensor]) -> None:
    z0, z1 = views
    n = len(z0)
    positive = [cosine(z0[i], z1[i]) for i in range(n)]
    cross = [cosine(z0[i], z1[j]) for i, j in ordered_pairs(n)]
    within = [cosine(z[i], z[j]) for z in (z0, z1) for i, j in ordered_pairs(n)]
    expected = [f(values) for values in (positive, cross, within) for f in (np.mean, np.var)]
    found = metrics.similarity_statistics(z0, z1)
    assert found._fields == (
        "positive_mean",
        "positive_var",
        "cross_mean",
        "cross_var",
        "within_mean",
        "within_var",
    )
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_similarity_statistics_of_half_precision_rows_are_those_of_the_rounded_values(
    views: tuple[torch.Tensor, torch.Tensor],
) -> None:
    z0, z1 = (z.bfloat16() for z in views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = metrics.similarity_statistics(z0, z1)
    exact = metrics.similarity_statistics(z0.double(), z1.double())
    torch.testing.assert_close(torch.stack(found), torch.stack(exact), rtol=1e-13, atol=0)


def test_similarity_statistics_of_collapsed_rows_are_one_and_zero() -> None:
    z = torch.ones(7, 3) * 0.1
    found = metrics.similarity_statistics(z, z)
    torch.testing.assert_close(
        torch.stack(found), torch.tensor([1.0, 0.0] * 3, dtype=torch.float64), rtol=0, atol=1e-14
    )
    assert all(value >= 0 for value in found)


def test_similarity_statistics_of_the_largest_sets_need_no_pairwise_matrix() -> None:
    # 50 000 rows squared are 20 GB in float64, more than the machine has to give.
    z0 = torch.randn(50_000, 16, generator=torch.Generator().manual_seed(0))
    found = metrics.similarity_statistics(z0, z0.roll(1, dims=0))
    assert found.cross_var.item() == pytest.approx(1 / 16, rel=0.01)


def test_alignment_matches_the_loop_and_its_identity(views: tuple[torch.Tensor, torch.Tensor]) -> None:
    z0, z1 = views
    distances = [math.sqrt(max(2 - 2 * cosine(a, b), 0)) for a, b in zip(z0, z1, strict=True)]
    for alpha in (1.0, 2.0, 3.0):
        expected = np.mean([distance**alpha for distance in distances])
        assert metrics.alignment(z0, z1, alpha=alpha).item() == pytest.approx(expected, rel=1e-12)
    identity = 2 - 2 * metrics.similarity_statistics(z0, z1).positive_mean
    torch.testing.assert_close(metrics.alignment(z0, z1), identity, rtol=1e-12, atol=0)
    assert metrics.alignment(z0, z0).item() == 0


def test_uniformity_matches_the_loop_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    z = rows(11, 4, seed=2)
    for t in (0.5, 2.0, 5.0):
        kernel = [math.exp(-t * (2 - 2 * cosine(z[i], z[j]))) for i in range(11) for j in range(i)]
        assert metrics.uniformity(z, t=t).item() == pytest.approx(math.log(np.mean(kernel)), rel=1e-12)
    whole = metrics.uniformity(z)
    for block in (1, 2, 5, 10):
        monkeypatch.setattr(metrics.embeddings, "_BLOCK_ROWS", block)
        torch.testing.assert_close(metrics.uniformity(z), whole, rtol=1e-13, atol=0)


def test_uniformity_of_the_uniform_sphere_in_128_dimensions() -> None:
    # E exp(-2 (2 - 2x)) under the law of x, by quadrature: the constant that Wang & Liu's plots saturate at.
    law = scipy.stats.beta(127 / 2, 127 / 2, loc=-1, scale=2)
    constant = -math.log(law.expect(lambda x: math.exp(-4 + 4 * x)))
    assert constant == pytest.approx(3.93753, abs=5e-6)
    z = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0))
    assert -metrics.uniformity(z).item() == pytest.approx(constant, abs=2e-3)


def test_uniformity_does_not_underflow_where_the_kernel_does() -> None:
    # exp(-2000 * 4) is 0 in every floating-point format.
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert metrics.uniformity(z, t=2000.0).item() == pytest.approx(-8000.0)


@pytest.mark.parametrize("block", [1024, 3])
def test_alignment_and_uniformity_have_correct_gradients(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(metrics.embeddings, "_BLOCK_ROWS", block)
    z0, z1 = rows(7, 3, seed=3).requires_grad_(), rows(7, 3, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(metrics.alignment, (z0, z1))
    assert torch.autograd.gradcheck(metrics.uniformity, (z0,))


def test_tolerance_matches_the_loop_over_pairs_of_one_label() -> None:
    z = rows(12, 4, seed=5)
    labels = torch.tensor([7, -3, 7, 7, 2, 2, 7, -3, 2, 99, 7, 7])  # 99 stands alone
    same = [cosine(z[i], z[j]) for i, j in ordered_pairs(12) if labels[i] == labels[j]]
    assert metrics.tolerance(z, labels).item() == pytest.approx(np.mean(same), rel=1e-12)


REAL_DTYPES = [
    getattr(torch, name) for name in ("uint8", "int8", "int16", "uint16", "uint32", "uint64", "int32", "int64")
]
REAL_DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_tolerance_takes_labels_of_any_real_dtype(dtype) -> None:
    z, labels = rows(6, 4, seed=5), torch.tensor([3, 0, 3, 1, 0, 3])
    expected = metrics.tolerance(z, labels)
    assert metrics.tolerance(z, labels.to(dtype)) == expected
    assert metrics.ClassSums.of(z, labels.to(dtype), num_classes=4).tolerance() == pytest.approx(expected.item())
    assert metrics.tolerance(z, labels == 3) == metrics.tolerance(z, (labels == 3).long())
    assert metrics.tolerance(z, labels - 0.5) == expected
    with pytest.raises(IndexError):
        metrics.ClassSums.of(z, labels + 0.5, num_classes=4)


def test_class_sums_of_all_different_labels_are_nan_and_those_of_no_rows_add_nothing() -> None:
    z, labels = rows(6, 4, seed=5), torch.tensor([3, 0, 3, 1, 0, 3])
    assert metrics.ClassSums.of(z[:2], labels[:2], num_classes=4).tolerance().isnan()
    assert not metrics.ClassSums.of(z[:0], labels[:0], num_classes=4).pack().any()
    kept = metrics.ClassSums.of(z, labels, num_classes=4, keep=labels != 0)
    expected = metrics.ClassSums.of(z[labels != 0], labels[labels != 0], num_classes=4)
    torch.testing.assert_close(kept, expected)


def test_tolerance_of_collapsed_classes_is_one() -> None:
    labels = torch.arange(6) // 2
    assert metrics.tolerance(torch.eye(3)[labels], labels).item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 17, 128, 2048])
def test_sphere_cosine_quantiles_match_the_beta_law(dim: int) -> None:
    q = torch.linspace(0, 1, 401, dtype=torch.float64)
    half = (dim - 1) / 2
    expected = torch.from_numpy(2 * scipy.stats.beta.ppf(q.numpy(), half, half) - 1)
    torch.testing.assert_close(sphere_cosine_quantile(q, dim), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 64])
def test_wasserstein_uniformity_matches_scipy_on_the_same_quantiles(dim: int) -> None:
    z = rows(23, dim, seed=6)
    cosines = [cosine(z[i], z[j]) for i in range(23) for j in range(i)]
    # scipy's distance between two samples; 200 quantiles for each pair stand for the continuous law.
    count = 200 * len(cosines)
    half = (dim - 1) / 2
    law = 2 * scipy.stats.beta.ppf((np.arange(count) + 0.5) / count, half, half) - 1
    expected = scipy.stats.wasserstein_distance(cosines, law)
    assert metrics.wasserstein_uniformity(z).item() == pytest.approx(expected, rel=0.01)


def test_wasserstein_uniformity_orders_uniform_and_collapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(1500, 64, generator=torch.Generator().manual_seed(0))
    uniform = metrics.wasserstein_uniformity(z)
    assert uniform < 1e-3
    assert metrics.wasserstein_uniformity(torch.ones(50, 64)).item() == pytest.approx(1.0, abs=1e-6)
    monkeypatch.setattr(metrics.embeddings, "_BLOCK_ROWS", 400)
    torch.testing.assert_close(metrics.wasserstein_uniformity(z), uniform, rtol=1e-12, atol=0)


def test_effective_rank_counts_equal_directions_and_matches_its_definition() -> None:
    assert metrics.effective_rank(torch.eye(6)).item() == pytest.approx(6.0)
    assert metrics.effective_rank(torch.ones(9, 4)).item() == pytest.approx(1.0)
    z = rows(9, 5, seed=7)
    for normalize in (False, True):
        x = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) if normalize else z.numpy()
        sigma = np.linalg.svd(x, compute_uv=False)
        expected = math.exp(scipy.stats.entropy(sigma / sigma.sum()))
        assert metrics.effective_rank(z, normalize=normalize).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("negatives", ["cross", "within", "both"])
def test_penalty_entropy_matches_the_loop(
    negatives: str, views: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    z0, z1 = views
    n, t = len(z0), 0.3
    entropies = []
    for own, other in ((z0, z1), (z1, z0)):
        for i in range(n):
            logits = []
            for j in range(n):
                if j != i and negatives in ("cross", "both"):
                    logits.append(cosine(own[i], other[j]) / t)
                if j != i and negatives in ("within", "both"):
                    logits.append(cosine(own[i], own[j]) / t)
            weights = np.exp(logits) / np.sum(np.exp(logits))
            assert weights.sum() == pytest.approx(1)
            entropies.append(-(weights * np.log(weights)).sum())
    for block in (1024, 4):
        monkeypatch.setattr(metrics.embeddings, "_BLOCK_ROWS", block)
        found = metrics.relative_penalty_entropy(z0, z1, temperature=t, negatives=negatives)
        assert found.item() == pytest.approx(np.mean(entropies), rel=1e-12)


def test_penalty_entropy_survives_a_temperature_that_leaves_one_negative(
    views: tuple[torch.Tensor, torch.Tensor],
) -> None:
    assert metrics.relative_penalty_entropy(*views, temperature=1e-6).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: metrics.similarity_statistics(z[:1], z[:1]), ValueError, "needs at least 2 rows; z0 has 1"),
        (lambda z: metrics.similarity_statistics(z, z[:3]), ValueError, "same shape"),
        (lambda z: metrics.similarity_statistics(z[0], z[0]), ValueError, "2-D"),
        (lambda z: metrics.similarity_statistics(z.long(), z.long()), TypeError, "floating-point"),
        (lambda z: metrics.similarity_statistics(None, z), TypeError, "z0 must be a torch.Tensor; got NoneType"),
        (lambda z: metrics.alignment(z[:0], z[:0]), ValueError, "at least 1 row"),
        (lambda z: metrics.alignment(z, z, alpha=0), ValueError, "alpha must be positive; got 0"),
        (lambda z: metrics.uniformity(z[:1]), ValueError, "at least 2 rows"),
        (lambda z: metrics.uniformity(z, t=-1), ValueError, "t must be positive; got -1"),
        (lambda z: metrics.uniformity(z, t=math.nan), ValueError, "t must be finite"),
        (lambda z: metrics.tolerance(z, torch.arange(4)), ValueError, "two samples with the same label; all 4"),
        (lambda z: metrics.tolerance(z, torch.zeros(3, dtype=torch.long)), ValueError, "labels"),
        (lambda z: metrics.tolerance(z, torch.zeros(4, dtype=torch.complex64)), TypeError, "integer"),
        (lambda z: metrics.tolerance(z, [0, 0, 1, 1]), TypeError, "labels must be a torch.Tensor"),
        (lambda z: metrics.tolerance(z, torch.tensor([0, 0, torch.nan, torch.nan])[[0, 2, 2, 3]]), ValueError, "all 4"),
        (lambda z: metrics.wasserstein_uniformity(z[:1]), ValueError, "at least 2 rows"),
        (lambda z: metrics.wasserstein_uniformity(z[:, :1]), ValueError, "D >= 2"),
        (lambda z: sphere_cosine_quantile(z, 1), ValueError, "dim must be at least 2"),
        (lambda z: metrics.effective_rank(0 * z), ValueError, "zeros"),
        (lambda z: metrics.effective_rank(z[:0]), ValueError, "at least 1 row"),
        (lambda z: metrics.relative_penalty_entropy(z[:1], z[:1]), ValueError, "at least 2 rows"),
        (lambda z: metrics.relative_penalty_entropy(z, z, temperature=0), ValueError, "temperature"),
        (lambda z: metrics.relative_penalty_entropy(z, z, negatives="all"), ValueError, "'cross', 'within', 'both'"),
    ],
)
def test_bad_input_says_what_was_given(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(rows(4, 3, seed=8))


def test_rows_that_are_not_finite_give_no_finite_answer() -> None:
    z = rows(4, 3, seed=9)
    z[1, 2] = math.nan
    assert all(value.isnan() for value in metrics.similarity_statistics(z, z))
    assert metrics.uniformity(z).isnan()


BATCHES = ((0, 4), (4, 8), (8, 9))  # the last holds one sample: a positive pair, no negatives


def test_sums_of_batches_add_up_to_their_in_batch_pairs() -> None:
    z0, z1 = rows(9, 4, seed=10), rows(9, 4, seed=11)
    packed = sum(metrics.SimilaritySums.of(z0[a:b], z1[a:b]).pack() for a, b in BATCHES)
    positive = [cosine(z0[i], z1[i]) for i in range(9)]
    pairs = [(i, j) for a, b in BATCHES for i in range(a, b) for j in range(a, b) if i != j]
    cross = [cosine(z0[i], z1[j]) for i, j in pairs]
    within = [cosine(z[i], z[j]) for z in (z0, z1) for i, j in pairs]
    expected = [f(values) for values in (positive, cross, within) for f in (np.mean, np.var)]
    sums = metrics.SimilaritySums.unpack(packed)
    assert [int(part.number) for part in sums] == [9, len(cross), len(within)]
    torch.testing.assert_close(
        torch.stack(sums.statistics()), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


def test_grams_of_batches_add_up_to_all_pairs() -> None:
    z0, z1 = rows(9, 4, seed=10), rows(9, 4, seed=11)
    packed = sum(metrics.Grams.of(z0[a:b], z1[a:b]).pack() for a, b in BATCHES)
    found = metrics.SimilaritySums.of_grams(metrics.Grams.unpack(packed, 4)).statistics()
    torch.testing.assert_close(
        torch.stack(found), torch.stack(metrics.similarity_statistics(z0, z1)), rtol=1e-12, atol=1e-14
    )
    with pytest.raises(ValueError, match=r"similarity sums have shape \(9,\); got \(47,\)"):
        metrics.SimilaritySums.unpack(packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-4, 1e-6, 0.0])
def test_similarity_statistics_of_clusters_are_right_to_1e_14(spread: float, dtype: torch.dtype) -> None:
    z0, z1 = oracles.cluster(700, 16, spread, dtype)
    found = metrics.similarity_statistics(z0, z1)
    for kind in ("cross", "within"):
        exact = oracles.exact_similarities(z0, z1, kind)
        mean, variance = getattr(found, f"{kind}_mean"), getattr(found, f"{kind}_var")
        assert abs(mean.item() - float(exact.mean())) < 1e-14
        assert abs(variance.item() - float(((exact - exact.mean()) ** 2).mean())) < 1e-14


def test_class_sums_of_batches_add_up() -> None:
    z, labels = rows(9, 4, seed=12), torch.tensor([0, 2, 2, 0, 1, 2, 0, 0, 2])
    packed = sum(metrics.ClassSums.of(z[a:b], labels[a:b], num_classes=4).pack() for a, b in ((0, 5), (5, 9)))
    found = metrics.ClassSums.unpack(packed).tolerance()
    torch.testing.assert_close(found, metrics.tolerance(z, labels), rtol=1e-12, atol=0)


def test_arguments_may_be_given_by_name():
    z0, z1 = torch.randn(5, 3), torch.randn(5, 3)
    assert metrics.similarity_statistics(z0=z0, z1=z1) == metrics.similarity_statistics(z0, z1)
    assert metrics.alignment(z0=z0, z1=z1) == metrics.alignment(z0, z1)
