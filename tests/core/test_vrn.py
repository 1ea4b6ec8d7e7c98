"""VRN against loops, its identity with mean and variance, and the closed form against the direct one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import oracles
from support.agreement import assert_same
from support.cases import INDEX, KINDS, VIEWS

from varloss import functional as vf
from varloss._core.numerics import unit
from varloss._kernels.gram import is_cheaper
from varloss.distributed import Gathered, GatheredRows


@pytest.mark.parametrize("form", ["dense", "linear"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 2), (9, 4)])
def test_squared_equals_the_loops(kind, form, n, d):
    z = oracles.views(n, d)
    ours = vf.vrn(*z, num_samples=40, pairs=kind, form=form)
    assert_same(ours, oracles.vrn(*z, -1 / 39, kind, 2), z)


@pytest.mark.parametrize("p", [1, 1.5, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_other_exponents_equal_the_loops(kind, p):
    z = oracles.views(5, 3)
    assert_same(vf.vrn(*z, target=0.1, pairs=kind, exponent=p), oracles.vrn(*z, 0.1, kind, p), z)


@pytest.mark.parametrize("p", [2, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_indexed_equals_the_loops(kind, p):
    z = torch.cat(oracles.views(5, 4)).detach()[:9].requires_grad_()
    ours = vf.vrn_indexed(z, torch.tensor(INDEX), views=torch.tensor(VIEWS), num_samples=40, pairs=kind, exponent=p)
    assert_same(ours, oracles.vrn_indexed(z, INDEX, VIEWS, -1 / 39, kind, p), [z])


@pytest.mark.parametrize("kind", KINDS)
def test_gathered_indexed_rows_average_to_the_whole_when_ranks_differ(kind):
    z = torch.cat(oracles.views(5, 4)).detach()[:8]
    index, views = torch.tensor([0, 0, 0, 1, 2, 0, 3, 4]), torch.tensor(VIEWS[:8])
    parts = [
        vf.vrn_indexed(
            z[rows],
            index[rows],
            views=views[rows],
            num_samples=40,
            pairs=kind,
            gathered=GatheredRows(z, index, views, rows.start),
        )
        for rows in (slice(0, 4), slice(4, 8))
    ]
    whole = vf.vrn_indexed(z, index, views=views, num_samples=40, pairs=kind)
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["dense", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_local_rows_against_gathered_keys_average_to_the_whole(kind, form):
    z0, z1 = (z.detach() for z in oracles.views(6, 4))
    options = {"num_samples": 40, "pairs": kind, "form": form}
    parts = [vf.vrn(z0[i : i + 1], z1[i : i + 1], gathered=Gathered((z0, z1), i), **options) for i in range(6)]
    torch.testing.assert_close(sum(parts) / 6, vf.vrn(z0, z1, **options), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["dense", "linear"])
def test_is_variance_plus_squared_distance_of_the_mean(form):
    z0, z1 = (z.detach() for z in oracles.views(8, 5))
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
    negatives = (u @ v.T)[~torch.eye(8, dtype=torch.bool)]
    identity = negatives.var(unbiased=False) + (negatives.mean() - 0.2) ** 2
    torch.testing.assert_close(vf.vrn(z0, z1, target=0.2, form=form), identity)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_error_is_absolute_and_small(kind):
    """Near-orthogonal rows: the value is 1e-8 or less, the closed form a difference of numbers near 1/N."""
    torch.manual_seed(0)
    n, d = 400, 512
    basis = torch.linalg.qr(torch.randn(d, n, dtype=torch.float64)).Q.T
    z0, z1 = ((basis + 1e-5 * torch.randn(n, d, dtype=torch.float64)).float() for _ in range(2))
    exact = vf.vrn(z0.double(), z1.double(), num_samples=50_000, pairs=kind, form="dense")
    closed = vf.vrn(z0, z1, num_samples=50_000, pairs=kind, form="linear")
    assert exact < 1e-8
    assert abs(closed.item() - exact.item()) < 20 * torch.finfo(torch.float32).eps / (n - 1)
    assert closed.item() != 0


@pytest.mark.parametrize("target", [-1 / 49_999, 0.5, 1.0])
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(256, 32), (1000, 16)])
def test_closed_form_of_clusters_errs_by_what_it_says(dtype, spread, target, n, d):
    """A target inside the cluster leaves a value down to 1e-24, the difference of sums near target^2."""
    z0, z1 = oracles.cluster(n, d, spread, dtype)
    gaps = oracles.exact_similarities(z0, z1, "cross") - np.longdouble(target)
    exact = float((gaps * gaps).mean())
    closed = vf.vrn(z0, z1, target=target, form="linear").item()
    eps = torch.finfo(dtype).eps
    assert abs(closed - exact) < 16 * eps * (exact + target**2 + 1 / (n - 1))
    direct = vf.vrn(z0, z1, target=target, form="dense").item()
    # Each similarity is off by some eps, and so is the root of their mean square.
    assert abs(math.sqrt(direct) - math.sqrt(exact)) < 6 * eps


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_closed_form_is_right_to_a_few_eps_where_it_is_chosen(shift):
    """Many more rows than dimensions, spread out and all in one corner."""
    torch.manual_seed(0)
    z0, z1 = torch.randn(2, 4096, 16) + shift
    assert is_cheaper(4096, 4096, 16)
    exact = vf.vrn(z0.double(), z1.double(), num_samples=50_000, form="dense")
    closed = vf.vrn(z0, z1, num_samples=50_000)
    assert closed.item() == pytest.approx(exact.item(), rel=20 * torch.finfo(torch.float32).eps)


def test_form_is_chosen_by_cost():
    assert not is_cheaper(256, 256, 128)
    assert is_cheaper(257, 257, 128)
    assert not is_cheaper(32, 65536, 128)
    torch.manual_seed(0)
    z0, z1 = torch.randn(2, 300, 8)
    auto, direct, closed = (vf.vrn(z0, z1, num_samples=500, form=form) for form in ("auto", "dense", "linear"))
    assert auto.item() == closed.item()
    torch.testing.assert_close(closed, direct)
    cubed = vf.vrn(z0, z1, num_samples=500, exponent=3)
    torch.testing.assert_close(cubed, vf.vrn(z0, z1, num_samples=500, exponent=3, form="dense"), rtol=0, atol=0)


@pytest.mark.parametrize("exponent", [2, 3])
@pytest.mark.parametrize("slots", [2, 200])
def test_queue_equals_the_loops(exponent, slots):
    """200 slots of dimension 2 take the closed form, 2 the direct one."""
    query = oracles.views(7, 2)[0]
    queue = torch.nn.functional.normalize(torch.randn(slots, 2, dtype=torch.float64), dim=1)
    assert is_cheaper(7, slots, 2) == (slots == 200)
    ours = vf.vrn_queue(query, queue, num_samples=40, exponent=exponent)
    assert_same(ours, oracles.vrn_queue(query, queue, -1 / 39, exponent), [query])
    valid = torch.arange(slots) % 3 != 0
    ours = vf.vrn_queue(query, queue, num_samples=40, exponent=exponent, valid=valid)
    assert_same(ours, oracles.vrn_queue(query, queue[valid], -1 / 39, exponent), [query])


@pytest.mark.parametrize("slots", [2, 200])
def test_empty_queue_gives_an_attached_zero(slots):
    query = torch.randn(7, 2, requires_grad=True)
    loss = vf.vrn_queue(query, torch.zeros(slots, 2), num_samples=9, valid=torch.zeros(slots, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros(7, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_that_do_not_occur_give_an_attached_zero(kind):
    z = torch.randn(4, 3, requires_grad=True)
    loss = vf.vrn_indexed(z, torch.zeros(4, dtype=torch.long), views=torch.arange(4), num_samples=9, pairs=kind)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros(4, 3))


def test_collapse_is_finite_and_not_zero():
    z = torch.ones(6, 4)
    assert vf.vrn(z, z, num_samples=11).item() == pytest.approx((1 + 0.1) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_target(dtype):
    """Rows whose similarities are 1e-5, against a target of -2e-5: half-precision similarities would round both away."""
    n = 50_000
    angle = torch.tensor(1e-5, dtype=torch.float64)
    z0 = torch.eye(4, 8, dtype=torch.float64)
    z1 = torch.eye(4, 8, dtype=torch.float64)
    z1[:, :4] += angle * (1 - torch.eye(4, dtype=torch.float64))
    z0, z1 = z0.to(dtype), z1.to(dtype)
    for kind in KINDS:
        exact = oracles.vrn(z0.double(), z1.double(), -1 / (n - 1), kind, 2)
        ours = vf.vrn(z0, z1, num_samples=n, pairs=kind, form="dense")
        assert ours.item() == pytest.approx(exact.item(), rel=1e-5)
        assert ours.item() != pytest.approx(oracles.vrn(z0.double(), z1.double(), 0.0, kind, 2).item(), rel=1e-2)


@pytest.mark.parametrize("pairs", KINDS)
@pytest.mark.parametrize("form", ["auto", "dense", "linear"])
def test_keys_without_gradient_give_none(pairs, form):
    """The same gradient by every form: of the anchors alone, for gathered rows that are detached."""
    z = oracles.views(9, 4)
    keys = tuple(x.detach() for x in z)

    def mean(rows, others):
        gaps = (unit(rows) @ unit(others).T - 0.1).square()
        return gaps.masked_fill(torch.eye(9, dtype=torch.bool), 0).sum() / 72

    cross, within = mean(z[0], keys[1]), (mean(z[0], keys[0]) + mean(z[1], keys[1])) / 2
    expected = {"cross": cross, "within": within, "both": (cross + within) / 2}[pairs]
    ours = vf.vrn(*z, target=0.1, pairs=pairs, form=form, gathered=Gathered(keys, 0))
    assert_same(ours, expected, z)
