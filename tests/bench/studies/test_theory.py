"""Configurations have the similarities they promise; bounds are attained by them; optima are stationary; bad input raises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exhaustive import examples

from varloss import functional
from varloss.metrics import similarity_statistics
from varloss_bench.studies.theory import closed_forms, configurations, free_vectors


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "dim"), [(2, None), (2, 5), (7, None), (7, 6), (7, 11), (64, None)])
def test_simplex(n: int, dim: int | None) -> None:
    w = configurations.simplex(n, dim)
    assert w.shape == (n, dim or n - 1)
    gram = w @ w.T
    torch.testing.assert_close(gram.diagonal(), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        off_diagonal(gram), torch.full((n * (n - 1),), -1 / (n - 1), dtype=torch.float64), rtol=0, atol=1e-14
    )
    assert off_diagonal(gram).var() < 1e-28
    assert w.sum(0).abs().max() < 1e-13


@pytest.mark.parametrize("similarity", [-1 / 6, -0.05, 0.0, 0.4, 1.0])
def test_equiangular(similarity: float) -> None:
    gram = (x := configurations.equiangular(7, similarity, 9)) @ x.T
    assert x.shape == (7, 9)
    expected = torch.full((7, 7), similarity, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("positive", [-1.0, -0.3, 0.5, 1.0])
def test_split_simplex_meets_the_tight_bound(positive: float) -> None:
    n = 6
    u, v = configurations.split_simplex(n, positive, 8)
    s, a, b = u @ v.T, u @ u.T, v @ v.T
    cross = ((n - 2) * positive - n) / (2 * (n - 1))
    within = 1 - (1 + positive) * n / (2 * (n - 1))
    for found, expected in (
        (s.diagonal(), positive),
        (a.diagonal(), 1.0),
        (b.diagonal(), 1.0),
        (off_diagonal(s), cross),
        (off_diagonal(a), within),
        (off_diagonal(b), within),
    ):
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-14)
    assert closed_forms.alignment_bound(cross, num_samples=n) == pytest.approx(positive, abs=1e-14)


@given(
    n=st.integers(3, 12),
    dim=st.integers(1, 8),
    noise=st.floats(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
@examples(150)
def test_no_embeddings_break_the_alignment_bound(n: int, dim: int, noise: float, seed: int) -> None:
    z0 = torch.randn(n, dim, generator=generator(seed), dtype=torch.float64)
    z1 = z0 + noise * torch.randn(n, dim, generator=generator(seed + 1), dtype=torch.float64)
    found = similarity_statistics(z0, z1)
    bound = closed_forms.alignment_bound(min(max(found.cross_mean.item(), -1), 1), num_samples=n)
    assert found.positive_mean.item() <= bound + 1e-12


def test_the_alignment_bound_is_tighter_than_the_published_one() -> None:
    for cross in (-0.2, -0.4, -0.7):
        assert closed_forms.alignment_bound(cross, num_samples=8) < 1 + cross + 1 / 7


@pytest.mark.parametrize(("arrangement", "attained"), [("orthogonal", "lower"), ("aligned", "upper")])
def test_batch_simplices_attain_the_variance_bounds(arrangement: str, attained: str) -> None:
    n, m = 24, 4
    z = configurations.batch_simplices(n, m, arrangement=arrangement)
    found = similarity_statistics(z, z)
    bounds = closed_forms.fixed_batch_variance_bounds(num_samples=n, batch_size=m)
    assert found.cross_var.item() == pytest.approx(getattr(bounds, attained), rel=1e-12)
    assert found.cross_mean.item() == pytest.approx(-1 / (n - 1), abs=1e-14)
    for batch in z.split(m):
        torch.testing.assert_close(
            off_diagonal(batch @ batch.T), torch.full((12,), -1 / 3, dtype=torch.float64), rtol=0, atol=1e-14
        )


def test_rotated_batches_have_the_expected_variance() -> None:
    n, m, dim = 24, 4, 10
    variances = []
    for seed in range(200):
        z = configurations.batch_simplices(n, m, dim, arrangement="random", generator=generator(seed))
        found = similarity_statistics(z, z)
        assert found.cross_mean.item() == pytest.approx(-1 / (n - 1), abs=1e-13)
        variances.append(found.cross_var.item())
    expected = closed_forms.rotated_batch_variance(num_samples=n, batch_size=m, dim=dim)
    assert abs(np.mean(variances) - expected) < 4 * np.std(variances) / math.sqrt(200)
    bounds = closed_forms.fixed_batch_variance_bounds(num_samples=n, batch_size=m)
    assert bounds.lower < min(variances) < expected < max(variances) < bounds.upper


def test_siglip_optimum_is_the_minimum_over_split_simplices() -> None:
    for n, scale, bias, weight in (
        (8, 10.0, 0.0, 0.0),
        (8, 5.0, -2.0, 30.0),
        (20, 3.0, 1.0, 5.0),
        (8, 10.0, -8.0, 0.0),
    ):

        def h(x: float, n: int = n, t: float = scale, b: float = bias, weight: float = weight) -> float:
            g = ((n - 2) * x - n) / (2 * (n - 1))
            return np.logaddexp(0, -t * x - b) + (n - 1) * np.logaddexp(0, t * g + b) + weight * (g + 1 / (n - 1)) ** 2

        found = closed_forms.siglip_optimum(num_samples=n, scale=scale, bias=bias, vrn_weight=weight)
        best = scipy.optimize.minimize_scalar(h, bounds=(-1, 1), method="bounded", options={"xatol": 1e-9}).x
        assert found.positive == pytest.approx(best, abs=1e-6)
        u, v = configurations.split_simplex(n, found.positive)
        measured = similarity_statistics(u, v)
        assert found.cross == pytest.approx(measured.cross_mean.item(), abs=1e-14)
        assert found.within == pytest.approx(measured.within_mean.item(), abs=1e-14)


@pytest.mark.parametrize("negatives", ["cross", "within", "both"])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight", [0.7, 30.0])
def test_vrn_equilibrium_is_where_free_vectors_settle(negatives: str, decoupled: bool, weight: float) -> None:
    n, m, t = 32, 4, 0.5

    def loss(z0: torch.Tensor, z1: torch.Tensor) -> torch.Tensor:
        contrastive = functional.nt_xent(z0, z1, temperature=t, negatives=negatives, decoupled=decoupled)
        return contrastive + weight * functional.vrn(z0, z1, num_samples=n, pairs="both")

    found = similarity_statistics(
        *free_vectors.optimize_free_vectors(loss, num_samples=m, dim=6, generator=generator())
    )
    expected = closed_forms.vrn_equilibrium(
        num_samples=n, batch_size=m, temperature=t, weight=weight, negatives=negatives, decoupled=decoupled
    )
    assert found.positive_mean.item() == pytest.approx(1.0, abs=1e-8)
    assert found.cross_mean.item() == pytest.approx(expected.negative, abs=1e-6)
    assert found.cross_var.item() < 1e-10


def test_vrn_equilibrium_leaves_the_simplex_at_the_threshold_and_not_before() -> None:
    weights = {"num_samples": 32, "batch_size": 4, "temperature": 0.5}
    threshold = closed_forms.vrn_equilibrium(**weights, weight=0).threshold_weight
    e = 3 * math.exp((-1 / 3 - 1) / 0.5)
    assert threshold == pytest.approx((1 / 0.5) * e / (1 + e) / (2 * (1 / 3 - 1 / 31)), rel=1e-12)
    assert closed_forms.vrn_equilibrium(**weights, weight=0.999 * threshold).negative == -1 / 3
    assert closed_forms.vrn_equilibrium(**weights, weight=1.001 * threshold).negative > -1 / 3
    whole = closed_forms.vrn_equilibrium(num_samples=32, batch_size=32, temperature=0.5, weight=1e6)
    assert whole.threshold_weight == math.inf
    assert whole.negative == -1 / 31


@pytest.mark.parametrize("dim", [2, 3, 50, 128])
@pytest.mark.parametrize("t", [0.5, 2.0, 10.0])
def test_uniform_sphere_uniformity_matches_quadrature(dim: int, t: float) -> None:
    half = (dim - 1) / 2
    phi, weight = np.polynomial.legendre.leggauss(400)
    phi, weight = phi * math.pi / 2, weight * np.cos(phi * math.pi / 2) ** (2 * half - 1)
    expected = math.log((weight * np.exp(-2 * t * (1 - np.sin(phi)))).sum() / weight.sum())
    assert closed_forms.uniform_sphere_uniformity(dim, t=t) == pytest.approx(expected, rel=1e-10)


def test_free_vectors_are_reproducible_and_keep_a_given_start() -> None:
    def loss(z0: torch.Tensor, z1: torch.Tensor) -> torch.Tensor:
        return functional.nt_xent(z0, z1, temperature=0.5)

    first, again, other = (
        free_vectors.optimize_free_vectors(loss, num_samples=5, dim=3, steps=20, generator=generator(seed))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    start = configurations.simplex(5) * 3, configurations.simplex(5)
    u, v = free_vectors.optimize_free_vectors(loss, num_samples=5, dim=4, start=start)
    torch.testing.assert_close(u, start[1], rtol=0, atol=1e-12)
    assert u.shape == v.shape == (5, 4)
    assert not u.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: configurations.simplex(1), "n must be at least 2"),
        (lambda: configurations.simplex(5, 3), "needs dim >= 4; got 3"),
        (lambda: configurations.equiangular(4, -0.5), "between -0.333333 and 1; got -0.5"),
        (lambda: configurations.equiangular(4, 0.5, 3), "needs dim >= 4; got 3"),
        (lambda: configurations.split_simplex(4, 1.2), "must lie in .-1, 1.; got 1.2"),
        (lambda: configurations.batch_simplices(10, 4), "multiple of batch_size; got 10 and 4"),
        (lambda: configurations.batch_simplices(8, 4, 5), "needs dim >= 6; got 5"),
        (lambda: configurations.batch_simplices(8, 4, arrangement="spread"), "'orthogonal', 'aligned', 'random'"),
        (lambda: closed_forms.alignment_bound(-0.1, num_samples=2), "num_samples must be at least 3"),
        (lambda: closed_forms.alignment_bound(-1.1, num_samples=5), "negative_mean"),
        (
            lambda: closed_forms.fixed_batch_variance_bounds(num_samples=3, batch_size=4),
            "num_samples must be at least 4",
        ),
        (lambda: closed_forms.rotated_batch_variance(num_samples=8, batch_size=4, dim=2), "dim must be at least 3"),
        (lambda: closed_forms.vrn_rank_floor(num_samples=1, dim=3), "num_samples must be at least 2"),
        (lambda: closed_forms.siglip_optimum(num_samples=8, scale=-1), "scale must be positive"),
        (lambda: closed_forms.siglip_optimum(num_samples=8, vrn_weight=-1), "weight must not be negative"),
        (
            lambda: closed_forms.vrn_equilibrium(num_samples=8, batch_size=4, temperature=-0.5, weight=1),
            "temperature must be positive",
        ),
        (lambda: closed_forms.symmetric_nt_xent(0.0, batch_size=1, temperature=0.5), "batch_size must be at least 2"),
        (lambda: closed_forms.symmetric_dhel(0.0, batch_size=4, temperature=0.5, scale="half"), "'paper', 'official'"),
        (lambda: closed_forms.uniform_sphere_uniformity(1), "dim must be at least 2"),
        (lambda: closed_forms.uniform_sphere_uniformity(8, t=1e4), "between 0 and 300"),
        (
            lambda: free_vectors.vrn_alignment(num_samples=8, dim=4, temperature=0.5, weight=1, restarts=0),
            "restarts must be at least 1",
        ),
        (
            lambda: free_vectors.optimize_free_vectors(
                lambda a, b: (a - b).sum(), num_samples=3, dim=2, start=(torch.ones(3, 3), torch.ones(3, 3))
            ),
            "start must be two matrices of shape",
        ),
        (
            lambda: free_vectors.optimize_free_vectors(lambda a, b: (a * b).sum() / 0, num_samples=3, dim=2),
            "NaN or infinite",
        ),
    ],
)
def test_numbers_out_of_range_raise(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
