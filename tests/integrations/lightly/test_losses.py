"""varloss_lightly against lightly: same values, same gradients, same signatures, and the additions of varloss."""

from __future__ import annotations

import inspect
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import lightly.loss
import pytest
import torch
from support import oracles

import varloss_lightly
from varloss import functional as vf

PAIRS = [
    (name, getattr(lightly.loss, name), getattr(varloss_lightly, name))
    for name in ("NTXentLoss", "DCLLoss", "DCLWLoss")
]
each_loss = pytest.mark.parametrize(("name", "theirs", "ours"), PAIRS, ids=[pair[0] for pair in PAIRS])


def value_and_gradients(loss_fn, z0, z1):
    z = [x.detach().clone().requires_grad_() for x in (z0, z1)]
    with warnings.catch_warnings():
        # lightly's DCLW wraps a tensor in torch.tensor(), which torch warns about.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        loss = loss_fn(*z)
    loss.backward()
    return loss.detach(), *(x.grad for x in z)


@each_loss
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.07}, {"temperature": 2.0}])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (16, 32), (33, 8)])
def test_values_and_gradients_are_lightlys(name, theirs, ours, dtype, relative, options, n, d):
    z = oracles.views(n, d, dtype)
    for mine, reference in zip(
        value_and_gradients(ours(**options), *z), value_and_gradients(theirs(**options), *z), strict=True
    ):
        scale = reference.abs().max().item()
        torch.testing.assert_close(mine, reference, rtol=relative, atol=relative * scale)


@each_loss
def test_signatures_begin_with_lightlys(name, theirs, ours):
    reference = list(inspect.signature(theirs).parameters.values())
    mine = list(inspect.signature(ours).parameters.values())
    assert [(p.name, p.default) for p in mine[: len(reference)]] == [(p.name, p.default) for p in reference]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in mine[len(reference) :])
    assert list(inspect.signature(ours.forward).parameters)[1:] == ["out0", "out1"]


@pytest.mark.parametrize("n", [1, 3])
def test_weight_functions_see_unit_rows_of_both_directions(n):
    def weight(a, b):
        return (a[:, 0] - 2 * b[:, 1]).detach() + a.norm(dim=1)

    z = oracles.views(n + 1, 4)
    ours = value_and_gradients(varloss_lightly.DCLLoss(0.3, weight), *z)
    theirs = value_and_gradients(lightly.loss.DCLLoss(0.3, weight), *z)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_one_sample_gives_zero_as_lightly_does():
    z = [torch.randn(1, 4, requires_grad=True) for _ in range(2)]
    loss = varloss_lightly.NTXentLoss(vrn_weight=3, num_samples=9)(*z)
    loss.backward()
    assert loss.item() == lightly.loss.NTXentLoss()(*z).item() == 0
    assert torch.equal(z[0].grad, torch.zeros(1, 4))
    # lightly's DCL of one sample is infinite.
    assert varloss_lightly.DCLLoss()(*z).item() == 0
    assert lightly.loss.DCLLoss()(*z).isinf()


@pytest.mark.parametrize(
    ("z0", "z1", "error"),
    [
        (torch.randn(1, 8), torch.randn(4, 8), ValueError),
        (torch.randn(1, 8), torch.randn(1, 1), ValueError),
        (torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long), TypeError),
    ],
)
def test_one_sample_is_checked_like_any_batch(z0, z1, error):
    with pytest.raises(error):
        varloss_lightly.NTXentLoss()(z0, z1)
    half = torch.randn(1, 8, dtype=torch.float16)
    assert varloss_lightly.NTXentLoss()(half, half).dtype == torch.float32


class TestBank:
    def pair(self, size):
        theirs = lightly.loss.NTXentLoss(0.2, size)
        ours = varloss_lightly.NTXentLoss(0.2, size)
        with torch.no_grad():
            ours.memory_bank.bank.copy_(theirs.memory_bank.bank)
        return theirs, ours

    def test_steps_are_lightlys_until_a_batch_wraps(self):
        theirs, ours = self.pair((12, 4))
        for seed in range(4):
            z = oracles.views(3, 4, torch.float32, seed)
            for a, b in zip(value_and_gradients(ours, *z), value_and_gradients(theirs, *z), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
        assert int(ours.memory_bank.ptr) == int(theirs.memory_bank.bank_ptr) == 0

    def test_a_batch_that_wraps_is_kept_whole(self):
        theirs, ours = self.pair((5, 4))
        z0, z1 = (z.detach() for z in oracles.views(3, 4, torch.float32))
        for step in range(2):
            for loss_fn in (theirs, ours):
                loss_fn((z0 + step).requires_grad_(), z1 + step)
        unit = torch.nn.functional.normalize(z1 + 1, dim=1)
        torch.testing.assert_close(ours.memory_bank.bank[0], unit[2])
        assert not torch.allclose(theirs.memory_bank.bank[0], unit[2])

    def test_is_left_alone_in_evaluation(self):
        loss_fn = varloss_lightly.NTXentLoss(memory_bank_size=(8, 4))
        before = loss_fn.memory_bank.bank.clone()
        loss_fn(torch.randn(3, 4), torch.randn(3, 4))
        assert torch.equal(loss_fn.memory_bank.bank, before)

    def test_is_in_the_state_dict_and_resumes_bit_by_bit(self):
        torch.manual_seed(0)
        first = varloss_lightly.NTXentLoss(memory_bank_size=(7, 4))
        first(torch.randn(3, 4, requires_grad=True), torch.randn(3, 4))
        second = varloss_lightly.NTXentLoss(memory_bank_size=(7, 4))
        second.load_state_dict(first.state_dict())
        query, key = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
        assert torch.equal(first(query, key), second(query, key))
        assert torch.equal(first.memory_bank.bank, second.memory_bank.bank)

    def test_loads_lightlys_checkpoint_with_a_warning(self):
        loss_fn = varloss_lightly.NTXentLoss(memory_bank_size=(8, 4))
        with pytest.warns(UserWarning, match="holds no memory bank"):
            loss_fn.load_state_dict(lightly.loss.NTXentLoss(memory_bank_size=(8, 4)).state_dict())

    def test_takes_half_precision(self):
        loss_fn = varloss_lightly.NTXentLoss(memory_bank_size=(8, 4))
        query = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
        loss_fn(query, torch.randn(3, 4, dtype=torch.bfloat16)).backward()
        assert query.grad.dtype == torch.bfloat16

    def test_vrn_against_keys_warns_with_the_way_out(self):
        with pytest.warns(
            UserWarning,
            match=r"collapsed to a single point in 2 of 4 runs.*VRNRegularizer\(weight, num_samples=n\)\(query0, query1\)",
        ):
            loss_fn = varloss_lightly.NTXentLoss(memory_bank_size=(8, 4), vrn_weight=3, num_samples=9)
        query, key = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
        bank = loss_fn.memory_bank.bank.clone()
        expected = vf.queue_info_nce(query, key, bank, temperature=0.5) + 3 * vf.vrn(query, key, num_samples=9)
        torch.testing.assert_close(loss_fn(query, key), expected)

    def test_a_warm_up_from_zero_warns_when_the_term_sets_in(self):
        loss_fn = varloss_lightly.NTXentLoss(memory_bank_size=(8, 4), num_samples=9)
        query, key = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
        loss_fn(query, key)
        loss_fn.regularizer.weight = 3.0
        with pytest.warns(UserWarning, match="only one carries a gradient"):
            loss_fn(query, key)

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (8, r"pass \(8, dim\), or 0 for no bank"),
            ((8,), r"must be 0 or a pair .*; got \(8,\)"),
            ((8, 4, 2), r"got \(8, 4, 2\)"),
            ((-8, 4), r"got \(-8, 4\)"),
        ],
    )
    def test_bad_sizes_are_refused(self, size, message):
        with pytest.raises(ValueError, match=message):
            varloss_lightly.NTXentLoss(memory_bank_size=size)

    @pytest.mark.parametrize("size", [0, (0, 4), [0, 4]])
    def test_size_zero_is_no_bank(self, size):
        assert varloss_lightly.NTXentLoss(memory_bank_size=size).memory_bank is None

    def test_bank_of_another_dimension_is_refused(self):
        loss_fn = varloss_lightly.NTXentLoss(memory_bank_size=(8, 4))
        with pytest.raises(ValueError, match="the bank holds keys of dimension 4; got 5"):
            loss_fn(torch.randn(3, 5), torch.randn(3, 5))

    @pytest.mark.parametrize("options", [{"negatives": "within"}, {"decoupled": True}])
    def test_other_negatives_are_refused(self, options):
        with pytest.raises(ValueError, match="its entries are the only negatives"):
            varloss_lightly.NTXentLoss(memory_bank_size=(8, 4), **options)


class TestAdditions:
    @pytest.mark.parametrize(
        ("build", "base"),
        [
            (varloss_lightly.NTXentLoss, lambda a, b: vf.nt_xent(a, b, temperature=0.5)),
            (varloss_lightly.DCLLoss, lambda a, b: vf.nt_xent(a, b, temperature=0.1, decoupled=True)),
            (
                varloss_lightly.DCLWLoss,
                lambda a, b: vf.nt_xent(a, b, temperature=0.1, decoupled=True, positive_weight=vf.dclw_weights(a, b)),
            ),
            (varloss_lightly.DHELLoss, lambda a, b: vf.dhel(a, b, temperature=0.5)),
        ],
    )
    @pytest.mark.parametrize("pairs", ["cross", "both"])
    def test_vrn_is_added_with_its_weight(self, build, base, pairs):
        z = oracles.views(6, 4)
        expected = base(*z) + 3 * oracles.vrn(*z, -1 / 49, pairs, 2)
        torch.testing.assert_close(build(vrn_weight=3, num_samples=50, vrn_pairs=pairs)(*z), expected)
        torch.testing.assert_close(build(vrn_weight=3, target=-1 / 49, vrn_pairs=pairs)(*z), expected)

    def test_weight_zero_is_the_plain_loss_and_can_be_warmed_up(self):
        z = oracles.views(6, 4)
        plain = varloss_lightly.NTXentLoss()(*z)
        loss_fn = varloss_lightly.NTXentLoss(vrn_weight=0, num_samples=50)
        assert torch.equal(loss_fn(*z), plain)
        loss_fn.regularizer.weight = 2.0
        torch.testing.assert_close(loss_fn(*z), plain + 2 * vf.vrn(*z, num_samples=50))

    @pytest.mark.parametrize(("kind", "decoupled"), [("within", False), ("cross", True)])
    def test_negatives_are_chosen(self, kind, decoupled):
        z = oracles.views(5, 4)
        ours = varloss_lightly.NTXentLoss(0.3, negatives=kind, decoupled=decoupled)(*z)
        torch.testing.assert_close(ours, oracles.nt_xent(*z, 0.3, kind, decoupled))

    def test_dhel_has_both_scales(self):
        z = oracles.views(5, 4)
        torch.testing.assert_close(varloss_lightly.DHELLoss(0.3, scale="official")(*z), oracles.dhel_official(*z, 0.3))

    def test_regularizer_is_added_as_lightlys_are(self):
        z = oracles.views(5, 4)
        regularizer = varloss_lightly.VRNRegularizer(3, num_samples=50)
        torch.testing.assert_close(regularizer(*z), 3 * oracles.vrn(*z, -1 / 49, "cross", 2))
        assert regularizer(*z).requires_grad

    @pytest.mark.parametrize("build", [*(pair[2] for pair in PAIRS), varloss_lightly.DHELLoss])
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"temperature": 0}, ValueError, "temperature must not be 0"),
            ({"temperature": math.nan}, ValueError, "temperature must be finite"),
            ({"vrn_weight": 3}, ValueError, "exactly one of num_samples .* and target"),
            ({"vrn_weight": -1, "num_samples": 9}, ValueError, "^vrn_weight must not be negative; got -1"),
            ({"vrn_weight": "3"}, TypeError, "^vrn_weight must be"),
            ({"vrn_pairs": "all"}, ValueError, "^vrn_pairs must be one of 'cross', 'within', 'both'; got 'all'"),
            ({"num_samples": 1}, ValueError, "num_samples must be at least 2; got 1"),
        ],
    )
    def test_bad_options_are_named(self, build, options, error, message):
        with pytest.raises(error, match=message):
            build(**options)


def test_package_needs_lightly_for_its_methods_only():
    code = "import sys, varloss_lightly; print([m for m in ('lightly', 'torchvision', 'pytorch_lightning') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def _lightlys_test_file(name: str) -> str:
    """lightly's own test of a loss, with varloss's loss imported instead.

    Files from before 1.6 have bank sizes without a dimension, which 1.6 itself refuses; the dimension is added.
    """
    text = (Path(os.environ["LIGHTLY_ROOT"]) / "tests" / "loss" / name).read_text()
    text, count = re.subn(
        r"from lightly\.loss(\.dcl_loss)? import (NTXentLoss|DCLLoss, DCLWLoss)",
        r"from varloss_lightly import \2",
        text,
    )
    assert count == 1, "lightly's test file no longer imports the losses in the way this test replaces"
    text = text.replace(
        "DCLWLoss, negative_mises_fisher_weights",
        "DCLWLoss\nfrom lightly.loss.dcl_loss import negative_mises_fisher_weights",
    )
    text = text.replace(
        "memory_bank_size=memory_bank_size", "memory_bank_size=memory_bank_size and (memory_bank_size, 2)"
    )
    return text.replace("memory_bank_size=64", "memory_bank_size=(64, 32)")


@pytest.mark.lightly_root
@pytest.mark.skipif(not os.environ.get("LIGHTLY_ROOT"), reason="LIGHTLY_ROOT names no checkout of lightly")
@pytest.mark.parametrize(("name", "least"), [("test_ntx_ent_loss.py", 190), ("test_dcl_loss.py", 50)])
def test_lightlys_own_tests_pass(name, least, tmp_path):
    (tmp_path / name).write_text(_lightlys_test_file(name))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path / name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= least
