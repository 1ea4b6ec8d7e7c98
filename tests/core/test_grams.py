"""The Gram-matrix identity, and that VRN over ranks, VRN's closed form and the similarity statistics are one and the same."""

from __future__ import annotations

import pytest
import torch
from support import oracles
from support.agreement import assert_same
from support.cases import KINDS

from varloss import functional as vf
from varloss import metrics
from varloss._core.grams import Grams, RowSums
from varloss.distributed import Gathered

RANKS = (slice(0, 1), slice(1, 6), slice(6, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_grams_of_unequal_ranks_add_up_to_the_whole(kind):
    z = oracles.views(9, 4)
    packed = sum(Grams.of(z[0][rows], z[1][rows]).pack() for rows in RANKS)
    assert_same(Grams.unpack(packed, 4).vrn(num_samples=40, pairs=kind), oracles.vrn(*z, -1 / 39, kind, 2), z)


@pytest.mark.parametrize("spread", [1.0, 1e-2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_identity_serves_ranks_closed_form_and_statistics(kind, spread):
    z0, z1 = oracles.cluster(9, 4, spread, torch.float64)
    delta = 0.25
    packed = sum(Grams.of(z0[rows], z1[rows]).pack() for rows in RANKS)
    found = metrics.similarity_statistics(z0, z1)
    cross = found.cross_var + (found.cross_mean - delta) ** 2
    within = found.within_var + (found.within_mean - delta) ** 2
    of_statistics = {"cross": cross, "within": within, "both": (cross + within) / 2}[kind]
    of_ranks = Grams.unpack(packed, 4).vrn(target=delta, pairs=kind)
    kernel = vf.vrn(z0, z1, target=delta, pairs=kind, form="linear")
    formula = vf.vrn(z0, z1, target=delta, pairs=kind, form="linear", gathered=Gathered((z0, z1), 0))
    truth = ((oracles.exact_similarities(z0, z1, "cross") - delta) ** 2).mean()
    for value in (of_statistics, of_ranks, kernel, formula):
        torch.testing.assert_close(value, of_ranks, rtol=0, atol=1e-14)
        assert kind != "cross" or abs(value.item() - float(truth)) < 1e-14


def test_one_sample_gives_an_attached_zero():
    z = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    loss = Grams.of(z, z.detach()).vrn(num_samples=10)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert z.grad.abs().max() < 1e-12


def test_no_samples_are_the_zero_of_the_sum():
    assert torch.equal(Grams.of(torch.ones(0, 4), torch.ones(0, 4)).pack(), torch.zeros(Grams.length(4)))


def test_packed_grams_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"grams of dimension 4 have shape \(47,\); got \(46,\)"):
        Grams.unpack(torch.zeros(46), 4)


def test_sums_in_another_dtype_are_those_of_the_rounded_rows():
    z = [z.detach().bfloat16() for z in oracles.views(6, 4)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = Grams.of(*z, dtype=torch.float64).pack()
    torch.testing.assert_close(ours, Grams.of(*(x.double() for x in z)).pack(), rtol=1e-13, atol=1e-15)
    assert Grams.of(*z).pack().dtype == torch.float32


def test_sums_over_pairs_of_fp32_rows_are_formed_in_float64():
    """The pairs of a row with itself are taken off them: what is left may be smaller than fp32's rounding of the whole."""
    first, second = (RowSums.of(torch.nn.functional.normalize(z.detach().float())) for z in oracles.views(40, 6))
    found = first.pairs_with(second)
    squares = (first.gram.double() * second.gram.double()).sum()
    total = first.sum.double() @ second.sum.double()
    torch.testing.assert_close((found.squares, found.total), (squares, total), rtol=1e-14, atol=0)
