"""The theory's printed numbers, the optima of free vectors under the real losses, and the properties that hold everywhere."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exhaustive import examples
from typer.testing import CliRunner

from varloss import functional, metrics
from varloss_bench.cli import app
from varloss_bench.studies.theory import closed_forms, optima, pairs, rows


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


GROUPS = [
    pytest.param(group, id=group.__name__, marks=[pytest.mark.slow] if group is pairs.vrn_rows else [])
    for group in (*optima.GROUPS, *pairs.GROUPS)
]


@pytest.mark.parametrize("group", GROUPS)
def test_free_vectors_settle_where_the_theory_says(group) -> None:
    found = group()
    assert found.rows
    assert [row for row in found.rows if not row.ok] == []


@pytest.mark.parametrize(
    ("predicted", "printed", "digits"),
    [
        (closed_forms.fixed_batch_variance_bounds(num_samples=24, batch_size=4).lower, 0.012602, 6),
        (closed_forms.fixed_batch_variance_bounds(num_samples=24, batch_size=4).upper, 0.302457, 6),
        (closed_forms.vrn_rank_floor(num_samples=50_000, dim=128), 0.0078, 4),
        (closed_forms.siglip_optimum(num_samples=8, scale=10, bias=0).positive, 0.32124, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=10, bias=0).cross, -0.43375, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=10, bias=0).within, 0.245, 4),
        (closed_forms.siglip_optimum(num_samples=8, scale=5, bias=-2).positive, 0.79373, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=5, bias=-2).cross, -0.23126, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=5, bias=-2).within, -0.02499, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=2, bias=0).positive, -0.24063, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=2, bias=0).cross, -0.67456, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=2, bias=0).within, 0.56608, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=10, bias=-8).positive, 1.0, 12),
        (closed_forms.siglip_optimum(num_samples=8, scale=5, bias=-2, vrn_weight=1).positive, 0.81157, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=5, bias=-2, vrn_weight=30).positive, 0.95062, 5),
        (closed_forms.siglip_optimum(num_samples=8, scale=5, bias=-2, vrn_weight=300).positive, 0.99386, 5),
        (-closed_forms.uniform_sphere_uniformity(128), 3.93753, 5),
    ],
)
def test_printed_numbers(predicted: float, printed: float, digits: int) -> None:
    assert round(predicted, digits) == pytest.approx(printed, abs=1.01 * 10**-digits)


@pytest.mark.parametrize(
    ("n", "m", "t", "weight", "printed"),
    [
        (32, 4, 0.5, 1, -0.23474),
        (32, 4, 0.5, 30, -0.04133),
        (50_000, 32, 0.2, 10, -1 / 31),
        (50_000, 32, 0.2, 30, -0.01363),
        (50_000, 32, 0.2, 100, -0.00426),
    ],
)
def test_printed_equilibria(n: int, m: int, t: float, weight: float, printed: float) -> None:
    found = closed_forms.vrn_equilibrium(num_samples=n, batch_size=m, temperature=t, weight=weight)
    assert found.negative == pytest.approx(printed, abs=5e-6)


@pytest.mark.parametrize(("m", "cross", "both"), [(16, 9.74, 11.88), (64, 59.99, 63.42), (256, 333.0, 337.8)])
@pytest.mark.parametrize("negatives", ["cross", "both"])
def test_printed_threshold_weights(m: int, cross: float, both: float, negatives: str) -> None:
    found = closed_forms.vrn_equilibrium(num_samples=997, batch_size=m, temperature=0.5, weight=3, negatives=negatives)
    assert found.threshold_weight == pytest.approx(cross if negatives == "cross" else both, rel=0.0005)
    assert found.negative == -1 / (m - 1)


@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.05, 5), dim=st.integers(2, 12))
@examples(60)
def test_larger_batches_push_each_negative_less(seed: int, t: float, dim: int) -> None:
    """Nested batches: dL/dS of a negative is positive, and falls strictly with the batch size."""
    u, v = (
        torch.nn.functional.normalize(torch.randn(9, dim, generator=generator(seed + k), dtype=torch.float64), dim=1)
        for k in (0, 1)
    )
    similarity = (u @ v.T) / 4  # columns shorter than 1

    def loss(z0: torch.Tensor, z1: torch.Tensor) -> torch.Tensor:
        return functional.nt_xent(z0, z1, temperature=t, negatives="cross")

    gradients = [pairs.similarity_gradient(loss, similarity[:m, :m]) for m in (2, 3, 5, 9)]
    for small, large in itertools.pairwise(gradients):
        m = len(small)
        off = ~torch.eye(m, dtype=torch.bool)
        assert (large[:m, :m][off] > 0).all()
        assert (large[:m, :m][off] < small[off]).all()


def test_similarity_gradients_are_those_of_the_softmax() -> None:
    """The helper above against the formula: (P_ij + P'_ij) / (2 m t), both directions."""
    m, t = 5, 0.3
    similarity = 0.2 * torch.randn(m, m, generator=generator(0), dtype=torch.float64)
    found = pairs.similarity_gradient(
        lambda a, b: functional.nt_xent(a, b, temperature=t, negatives="cross"), similarity
    )
    for i in range(m):
        for j in range(m):
            row = math.exp(similarity[i, j] / t) / sum(math.exp(s / t) for s in similarity[i])
            column = math.exp(similarity[i, j] / t) / sum(math.exp(s / t) for s in similarity[:, j])
            expected = (row + column - 2 * (i == j)) / (2 * m * t)
            assert found[i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.02, 3), factor=st.floats(1.05, 3))
@examples(60)
def test_penalty_entropy_grows_with_temperature(seed: int, t: float, factor: float) -> None:
    z0, z1 = (torch.randn(6, 4, generator=generator(seed + k), dtype=torch.float64) for k in (0, 1))
    cold = metrics.relative_penalty_entropy(z0, z1, temperature=t)
    warm = metrics.relative_penalty_entropy(z0, z1, temperature=factor * t)
    assert 0 <= cold < warm < math.log(5)


@given(seed=st.integers(0, 2**32 - 1))
@examples(40)
def test_cold_losses_are_hinges_on_the_hardest_negative(seed: int) -> None:
    z0, z1 = (torch.randn(6, 4, generator=generator(seed + k), dtype=torch.float64) for k in (0, 1))
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
    s = u @ v.T
    hardest = s.masked_fill(torch.eye(6, dtype=torch.bool), -2)
    hinge = torch.cat([(hardest.amax(k) - s.diagonal()).clamp_min(0) for k in (0, 1)]).mean()
    t = 1e-6
    cold = t * functional.nt_xent(z0, z1, temperature=t, negatives="cross")
    torch.testing.assert_close(cold, hinge, rtol=0, atol=10 * t)


@pytest.mark.parametrize("dim", [4, 12])
def test_rank_floor_holds_for_any_aligned_views(dim: int) -> None:
    for seed in range(30):
        z = torch.randn(20, dim, generator=generator(seed), dtype=torch.float64)
        assert functional.vrn(z, z, num_samples=20) > closed_forms.vrn_rank_floor(num_samples=20, dim=dim)


class TestCommand:
    def test_green_run_writes_rows_and_figure(self, tmp_path) -> None:
        result = CliRunner().invoke(
            app, ["study", "theory", "--only", "rank-floor,temperature", "--output", str(tmp_path)]
        )
        assert result.exit_code == 0, result.output
        assert "all within tolerance" in result.output
        record = json.loads((tmp_path / "rows.json").read_text())
        assert [group["group"] for group in record["groups"]] == ["rank-floor", "temperature"]
        assert all(row["ok"] for group in record["groups"] for row in group["rows"])
        assert (tmp_path / "rank-floor.png").read_bytes().startswith(b"\x89PNG")

    def test_a_wrong_loss_makes_it_fail(self, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = functional.vrn
        monkeypatch.setattr(functional, "vrn", lambda *z, **options: 1.001 * right(*z, **options))
        result = CliRunner().invoke(app, ["study", "theory", "--only", "rank-floor", "--output", str(tmp_path)])
        assert result.exit_code == 1
        assert "MISSED" in result.output

    def test_an_unknown_group_is_named(self, tmp_path) -> None:
        result = CliRunner().invoke(app, ["study", "theory", "--only", "rank", "--output", str(tmp_path)])
        assert result.exit_code == 2
        assert "unknown rank" in result.output


@pytest.mark.parametrize(
    ("relation", "measured", "ok"),
    [
        ("=", 1.05, True),
        ("=", 1.2, False),
        ("<=", 0.0, True),
        ("<=", 1.2, False),
        (">=", 9.0, True),
        (">=", 0.8, False),
    ],
)
def test_rows_judge_by_their_relation_and_never_pass_nan(relation, measured: float, ok: bool) -> None:
    assert rows.Row("", 1.0, measured, 0.1, relation).ok is ok
    assert not rows.Row("", 1.0, math.nan, 0.1, relation).ok
