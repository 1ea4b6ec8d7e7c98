"""NT-Xent and its relatives against loops, closed-form values and their own edges."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracles
from support.agreement import assert_same
from support.cases import INDEX, KINDS, VIEWS

from varloss import functional as vf
from varloss._core.numerics import group_sizes, joint_labels
from varloss.distributed import Gathered, GatheredRows

CELLS = [(kind, decoupled) for kind in KINDS for decoupled in (False, True)]


@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 4), (4, 1)])
def test_two_views_equal_the_loops(kind, decoupled, temperature, n, d):
    z = oracles.views(n, d)
    ours = vf.nt_xent(*z, temperature=temperature, negatives=kind, decoupled=decoupled)
    assert_same(ours, oracles.nt_xent(*z, temperature, kind, decoupled), z)


@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
def test_positive_weights_equal_the_loops(kind, decoupled):
    z = oracles.views(5, 4)
    weights = torch.linspace(0.2, 1.9, 10, dtype=torch.float64).view(2, 5)
    ours = vf.nt_xent(*z, negatives=kind, decoupled=decoupled, positive_weight=weights)
    assert_same(ours, oracles.nt_xent(*z, 0.5, kind, decoupled, weights), z)
    one_row = vf.nt_xent(*z, negatives=kind, decoupled=decoupled, positive_weight=weights[0])
    assert_same(one_row, oracles.nt_xent(*z, 0.5, kind, decoupled, weights[[0, 0]]), z)


# Three crops of samples 7 and -2, two of 10**12 (a hash), one of 5 that has no positive; views out of order.
@pytest.mark.parametrize("positives", ["inside", "outside"])
@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
def test_indexed_rows_equal_the_loops(kind, decoupled, positives):
    z = torch.cat(oracles.views(5, 4)).detach()[:9].requires_grad_()
    ours = vf.nt_xent_indexed(
        z,
        torch.tensor(INDEX),
        views=torch.tensor(VIEWS),
        temperature=0.3,
        negatives=kind,
        decoupled=decoupled,
        positives=positives,
    )
    assert_same(ours, oracles.nt_xent_indexed(z, INDEX, VIEWS, 0.3, kind, decoupled, positives), [z])


@pytest.mark.parametrize("offset", [0, 2, 6])
@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
def test_local_rows_against_gathered_keys_are_rows_of_the_whole(kind, decoupled, offset):
    """The mean over ranks of 2, 4 and 2 rows, weighted by rows, is the loss of all 8."""
    z0, z1 = (z.detach() for z in oracles.views(8, 4))
    sizes = {0: 2, 2: 4, 6: 2}
    parts = {
        start: vf.nt_xent(
            z0[start : start + rows],
            z1[start : start + rows],
            negatives=kind,
            decoupled=decoupled,
            gathered=Gathered((z0, z1), start),
        )
        for start, rows in sizes.items()
    }
    whole = sum(parts[start] * rows for start, rows in sizes.items()) / 8
    torch.testing.assert_close(whole, vf.nt_xent(z0, z1, negatives=kind, decoupled=decoupled), rtol=1e-12, atol=0)
    rows = slice(offset, offset + sizes[offset])
    views = [0] * 8 + [1] * 8
    alone = torch.stack(
        [
            vf.nt_xent_indexed(
                torch.cat([z0, z1])[[i, 8 + i]],
                torch.tensor([i, i]),
                views=torch.tensor([0, 1]),
                negatives=kind,
                decoupled=decoupled,
                gathered=GatheredRows(
                    torch.cat([z0[[i]], z1[[i]], z0[:i], z0[i + 1 :], z1[:i], z1[i + 1 :]]),
                    torch.tensor([i, i, *(j for j in range(8) if j != i)] + [j for j in range(8) if j != i]),
                    torch.tensor([0, 1, *views[:7], *views[8:15]]),
                ),
            )
            for i in range(rows.start, rows.stop)
        ]
    ).mean()
    torch.testing.assert_close(parts[offset], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("offset", [-1, 6, 11])
def test_local_rows_lie_inside_the_gathered_keys(offset):
    z0, z1 = (z.detach() for z in oracles.views(8, 4))
    with pytest.raises(ValueError, match=f"offset {offset} does not fit: 3 local rows"):
        vf.nt_xent(z0[:3], z1[:3], gathered=Gathered((z0, z1), offset))


@pytest.mark.parametrize("positives", ["inside", "outside"])
@pytest.mark.parametrize("kind", KINDS)
def test_gathered_indexed_rows_average_to_the_whole_when_ranks_differ(kind, positives):
    """Rank 0 holds the anchor without a positive: its local mean has fewer anchors, the mean over ranks is still right."""
    z = torch.cat(oracles.views(5, 4)).detach()[:8]
    index, views = torch.tensor(INDEX[:8]), torch.tensor(VIEWS[:8])
    options = {"negatives": kind, "positives": positives}
    parts = [
        vf.nt_xent_indexed(
            z[rows],
            index[rows],
            views=views[rows],
            gathered=GatheredRows(z, index, views, rows.start),
            **options,
        )
        for rows in (slice(0, 4), slice(4, 8))
    ]
    whole = vf.nt_xent_indexed(z, index, views=views, **options)
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("a", [-1 / 5, -0.1, 0.3])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_symmetric_point_values(a, temperature):
    """Positives 1, all negatives a: the six cells, the two scales of DHEL and VRN have closed-form values."""
    m, n, t = 6, 50, temperature
    gram = torch.full((m, m), a, dtype=torch.float64).fill_diagonal_(1)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    z = vectors * eigenvalues.clamp_min(0).sqrt()
    e = math.exp((a - 1) / t)
    expected = {
        ("cross", False): math.log(1 + (m - 1) * e),
        ("within", False): math.log(1 + (m - 1) * e),
        ("both", False): math.log(1 + 2 * (m - 1) * e),
        ("cross", True): (a - 1) / t + math.log(m - 1),
        ("within", True): (a - 1) / t + math.log(m - 1),
        ("both", True): (a - 1) / t + math.log(2 * (m - 1)),
    }
    for (kind, decoupled), value in expected.items():
        ours = vf.nt_xent(z, z.clone(), temperature=t, negatives=kind, decoupled=decoupled)
        assert ours.item() == pytest.approx(value, rel=1e-12), (kind, decoupled)
    paper, official = (vf.dhel(z, z, temperature=t, scale=scale).item() for scale in ("paper", "official"))
    assert paper == pytest.approx((a - 1) / t + math.log(m - 1), rel=1e-12)
    assert official == pytest.approx(-1 / t + 2 * (a / t + math.log(m - 1)), rel=1e-12)
    for kind in KINDS:
        assert vf.vrn(z, z, num_samples=n, pairs=kind).item() == pytest.approx((a + 1 / (n - 1)) ** 2, abs=1e-14)


def test_dhel_scales_equal_their_sources():
    z = oracles.views(6, 4)
    assert_same(vf.dhel(*z, temperature=0.3, scale="official"), oracles.dhel_official(*z, 0.3), z)
    assert_same(vf.dhel(*z, temperature=0.3), oracles.nt_xent(*z, 0.3, "within", True), z)


def test_dclw_weights_equal_the_loops_and_carry_no_gradient():
    z0, z1 = oracles.views(6, 4)
    weights = vf.dclw_weights(z0, z1, sigma=0.4)
    assert weights.tolist() == pytest.approx(oracles.dclw_weights(z0.detach(), z1.detach(), 0.4), rel=1e-12)
    assert weights.mean().item() == pytest.approx(1)
    assert not weights.requires_grad
    # The second half of a global batch: its rows of the global weights, not a softmax of its own.
    half = vf.dclw_weights(z0[3:], z1[3:], sigma=0.4, gathered=Gathered((z0, z1), 3))
    torch.testing.assert_close(half, weights[3:])


def test_learned_temperature_gets_its_gradient():
    z = [z.detach() for z in oracles.views(5, 4)]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: vf.nt_xent(*z, temperature=t), temperature)
    ours, fixed = vf.nt_xent(*z, temperature=temperature), vf.nt_xent(*z, temperature=0.4)
    torch.testing.assert_close(ours.detach(), fixed, rtol=1e-14, atol=0)


def test_separated_batches_underflow_without_cancellation():
    """log(1 + x) for x far below eps: the difference of two log-sums would return 0 or noise."""
    gram = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    z = (vectors * eigenvalues.clamp_min(0).sqrt()).float()
    loss = vf.nt_xent(z, z, temperature=0.05)
    assert loss.item() == pytest.approx(6 * math.exp(-4 / 3 / 0.05), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.005, -0.5])
def test_extreme_temperatures_equal_the_loops(temperature):
    z = oracles.views(5, 4)
    exact = oracles.nt_xent(*z, temperature, "both", False)
    rounded = [x.detach().float() for x in z]
    assert vf.nt_xent(*rounded, temperature=temperature).item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
def test_masks_hold_where_every_logit_is_far_below_zero(kind, decoupled):
    """Opposite positives and negatives at t = .005: logits of -100 and less, which a large negative number would not mask."""
    z = (torch.randn(6, 4, dtype=torch.float64) * 0.1 + torch.tensor([1.0, 0, 0, 0])).requires_grad_()
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64).unsqueeze(1)
    index, views = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]
    ours = vf.nt_xent_indexed(
        z * signs,
        torch.tensor(index),
        views=torch.tensor(views),
        temperature=0.005,
        negatives=kind,
        decoupled=decoupled,
    )
    assert_same(ours, oracles.nt_xent_indexed(z * signs, index, views, 0.005, kind, decoupled, "inside"), [z], 1e-8)


def test_ids_may_be_any_integers():
    """Hashes near the largest integer, and views that are not 0, 1, 2: counts of pairs must not overflow or collide."""
    z = torch.cat(oracles.views(3, 4)).detach()
    small, views = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1])
    big = torch.tensor([2**62, -(2**62), 2**62 - 1])[small]
    far = views * 2**61 - 5
    for kind in KINDS:
        for function, option in ((vf.nt_xent_indexed, "negatives"), (vf.vrn_indexed, "pairs")):
            extra = {option: kind} | ({"num_samples": 9} if option == "pairs" else {})
            torch.testing.assert_close(
                function(z, big, views=far, **extra), function(z, small, views=views, **extra), rtol=0, atol=0
            )
    # Without ranks the pairs 0*2+2 and 1*2+0 would be one.
    joint = joint_labels(torch.tensor([0, 1]), torch.tensor([2, 0]))
    assert joint[0] != joint[1]
    assert group_sizes(torch.tensor([5, -1, 5, 2**62])).tolist() == [2, 1, 2, 1]


def test_more_negatives_push_each_less():
    """On nested batches dL/dS of a negative is P/(m t) for InfoNCE: positive, and strictly falling in m.

    v_j = e_j and u_i = .3 e_i + (a direction of its own): u_0's gradient along e_1 is dL/dS_01 alone.
    """
    t, push = 0.5, []
    for m in (2, 4, 8, 12):
        u = torch.zeros(m, 24, dtype=torch.float64)
        u[range(m), range(m)], u[range(m), range(12, 12 + m)] = 0.3, math.sqrt(1 - 0.09)
        u.requires_grad_()
        vf.nt_xent(u, torch.eye(m, 24, dtype=torch.float64), temperature=t, negatives="cross").backward()
        probability = 1 / (math.exp(0.3 / t) + m - 1)
        push.append(u.grad[0, 1].item())
        assert push[-1] == pytest.approx(probability / (m * t))
    assert push == sorted(push, reverse=True)


class TestEdges:
    def test_anchors_without_positive_or_negative_leave_the_mean(self):
        z, index = torch.cat(oracles.views(3, 4))[:5], torch.tensor([0, 1, 2, 0, 1])
        with_lonely = vf.nt_xent_indexed(z, index)
        expected = oracles.nt_xent_indexed(z, index.tolist(), [0] * 5, 0.5, "both", False, "inside")
        torch.testing.assert_close(with_lonely, expected)
        with pytest.raises(ValueError, match="1 of 5 anchors have no positive"):
            vf.nt_xent_indexed(z, index, check=True)

    @pytest.mark.parametrize("decoupled", [False, True])
    @pytest.mark.parametrize("positives", ["inside", "outside"])
    def test_no_anchor_left_gives_an_attached_zero(self, decoupled, positives):
        z = torch.randn(4, 3, requires_grad=True)
        loss = vf.nt_xent_indexed(z, torch.zeros(4, dtype=torch.long), decoupled=decoupled, positives=positives)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(z.grad, torch.zeros_like(z))
        with pytest.raises(ValueError, match="4 of 4 anchors have no negative"):
            vf.nt_xent_indexed(z, torch.zeros(4, dtype=torch.long), check=True)

    @pytest.mark.parametrize(("kind", "decoupled"), CELLS)
    def test_zero_rows_have_finite_values_and_zero_gradient(self, kind, decoupled):
        z0, z1 = (z.detach().clone() for z in oracles.views(4, 3, torch.float32))
        z0[1] = 0
        z0.requires_grad_()
        loss = vf.nt_xent(z0, z1, negatives=kind, decoupled=decoupled)
        loss.backward()
        assert loss.isfinite()
        assert torch.equal(z0.grad[1], torch.zeros(3))
        assert z0.grad.isfinite().all()
        with pytest.raises(ValueError, match="z0 has 1 of 4 rows of length zero"):
            vf.nt_xent(z0, z1, check=True)

    def test_check_names_rows_that_are_not_finite(self):
        z0, z1 = (z.detach().clone() for z in oracles.views(4, 3))
        z1[2, 0] = math.nan
        z1[3, 1] = math.inf
        with pytest.raises(ValueError, match="z1 has 2 of 4 rows with NaN or infinite"):
            vf.nt_xent(z0, z1, check=True)
