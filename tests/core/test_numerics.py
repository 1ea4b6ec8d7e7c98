"""Precision and hostile input: the table and the figures of docs/numerics.md equal the measurements."""

from __future__ import annotations

import contextlib
import functools
import math
import threading

import numpy as np
import pytest
import torch
from support import numerics, oracles

import varloss
from varloss import functional as vf
from varloss._core import numerics as numerics_of_core
from varloss._core.numerics import unit
from varloss.distributed import Gathered, GatheredRows


def test_table_is_what_is_measured():
    """All losses, all precisions, all conditions: ``PYTHONPATH=tests python -m support.numerics`` writes the table anew."""
    assert numerics.MARKED.findall(numerics.PAGE.read_text()) == [numerics.table()]


# ---- flags of the process


@pytest.fixture
def lowered_products():
    """Products of fp32 numbers may be in less than fp32, as many training scripts set it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("lowered_products")
@pytest.mark.parametrize("order", ["the first leaves first", "the last leaves first"])
def test_no_thread_lowers_the_precision_of_another(order):
    """Two losses at once: whoever leaves first, the other goes on at full precision. Then the flags are as they were."""
    entered = [threading.Event() for _ in range(2)]
    leave = [threading.Event() for _ in range(2)]
    exact = {}

    def multiply(which):
        with numerics_of_core.full_precision("cpu"):
            entered[which].set()
            leave[which].wait()
            exact[which] = numerics_of_core._products_are_ieee()

    threads = [threading.Thread(target=multiply, args=(which,)) for which in range(2)]
    for thread, event in zip(threads, entered, strict=True):
        thread.start()
        event.wait()
    for which in (0, 1) if order == "the first leaves first" else (1, 0):
        leave[which].set()
        threads[which].join()
    assert exact == {0: True, 1: True}
    assert not numerics_of_core._products_are_ieee()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("lowered_products")
def test_flags_are_put_back_after_an_error():
    with pytest.raises(RuntimeError, match="within"), numerics_of_core.full_precision("cpu"):
        raise RuntimeError("within")
    assert not numerics_of_core._products_are_ieee()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("lowered_products")
def test_who_comes_while_flags_are_raised_or_put_back_waits(monkeypatch):
    """Between two threads' steps: somebody who looks then must not multiply without entering."""
    alone = []
    for name in ("_raise_precision", "_put_back"):
        step = getattr(numerics_of_core, name)

        def look(*given, step=step):
            alone.append(isinstance(numerics_of_core.full_precision("cpu"), contextlib.nullcontext))
            done = step(*given)
            alone.append(isinstance(numerics_of_core.full_precision("cpu"), contextlib.nullcontext))
            return done

        monkeypatch.setattr(numerics_of_core, name, look)
    with numerics_of_core.full_precision("cpu"):
        pass
    assert alone == [False] * 4


@pytest.mark.usefixtures("lowered_products")
def test_who_raises_flags_while_another_looks_is_seen(monkeypatch):
    looks = numerics_of_core._products_are_ieee

    def look():
        with numerics_of_core._ieee_products("cpu"):
            return looks()

    monkeypatch.setattr(numerics_of_core, "_products_are_ieee", look)
    assert not isinstance(numerics_of_core.full_precision("cpu"), contextlib.nullcontext)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one flag")
def test_a_flag_that_follows_that_of_all_backends_goes_on_to_do_so(monkeypatch):
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    for backend in (torch.backends, cuda, cpu):
        monkeypatch.setattr(backend, "fp32_precision", "none" if backend is not torch.backends else "tf32")
    with numerics_of_core.full_precision("cpu"):
        assert (cuda.fp32_precision, cpu.fp32_precision) == ("ieee", "ieee")
    assert (cuda.fp32_precision, cpu.fp32_precision) == ("tf32", "tf32")
    torch.backends.fp32_precision = "ieee"
    assert (cuda.fp32_precision, cpu.fp32_precision) == ("ieee", "ieee")
    cuda.fp32_precision = "tf32"  # a flag of its own stays one
    with numerics_of_core.full_precision("cpu"):
        assert cuda.fp32_precision == "ieee"
    assert (cuda.fp32_precision, cpu.fp32_precision) == ("tf32", "ieee")


def test_the_operator_of_products_has_both_derivatives():
    """Float64 does without it outside torch.compile, so other tests differentiate it in fp32 alone."""
    a, b = oracles.views(5, 3)
    torch.autograd.gradcheck(numerics_of_core._products, (a, b[:4].detach().requires_grad_()))
    torch.autograd.gradgradcheck(numerics_of_core._products, (a, b[:4].detach().requires_grad_()))


@pytest.mark.parametrize("route", ["whole", "linear", "dense", "gathered"])
def test_no_digit_of_a_large_loss_is_lost(route):
    """log(1 + e^30) - 30 is 9e-14, which float64 holds; a softplus that turns linear at 20 does not."""
    u = torch.eye(2, dtype=torch.float64)
    v = u.flip(0)  # positives at 0, the negative at 1
    options = (
        {"gathered": Gathered((u, v), 0)} if route == "gathered" else {"form": "auto" if route == "whole" else route}
    )
    value = vf.nt_xent(u, v, temperature=1 / 30, negatives="cross", **options).item()
    assert value - 30 == pytest.approx(math.log1p(math.exp(-30)), abs=2e-14)


# ---- rows


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float32, (-37, -30, -20, 0, 20, 30, 37)), (torch.float64, (-150, -100, 0, 100, 150))],
)
def test_rows_of_any_length_keep_their_direction_and_gradient(dtype, exponents):
    directions = torch.nn.functional.normalize(oracles.views(len(exponents), 5, grad=False)[0], dim=1)
    lengths = torch.tensor([[10.0**e] for e in exponents], dtype=torch.float64)
    z = (directions * lengths).to(dtype).requires_grad_()
    u = unit(z)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(u.double(), directions, rtol=0, atol=4 * eps)
    upstream = torch.linspace(-1, 1, 5, dtype=torch.float64).expand_as(directions)
    (grad,) = torch.autograd.grad((u * upstream.to(dtype)).sum(), z)
    expected = upstream - (upstream * directions).sum(1, keepdim=True) * directions
    torch.testing.assert_close(grad.double() * lengths, expected, rtol=0, atol=20 * eps)


def against_queue(z0, z1, t, kind):
    del kind
    return vf.queue_info_nce(z0, z1, unit(z1[:1]), temperature=t)


def by_index(z0, z1, t, kind, gathered=False, positives="inside"):
    z, index, views = torch.cat([z0, z1]), torch.arange(2).repeat(2), torch.arange(2).repeat_interleave(2)
    rows = GatheredRows(z, index, views, 0) if gathered else None
    return vf.nt_xent_indexed(z, index, views=views, temperature=t, negatives=kind, positives=positives, gathered=rows)


def two_views(form, gathered=False, learned=False):
    def loss(z0, z1, t, kind):
        rows = Gathered((z0, z1), 0) if gathered else None
        t = torch.tensor(t) if learned else t
        return vf.nt_xent(z0, z1, temperature=t, negatives=kind, gathered=rows, form=form)

    return loss


KINDS = {"cross": 1, "within": 1, "both": 2}
ROUTES = {
    "dense": two_views("dense"),
    "learned temperature": two_views("dense", learned=True),
    "whole": two_views("auto"),
    "tiles": two_views("linear"),
    "gathered": two_views("auto", gathered=True),
    "gathered, dense": two_views("dense", gathered=True),
    "by index": by_index,
    "by index, gathered": functools.partial(by_index, gathered=True),
    "by index, outside": functools.partial(by_index, positives="outside"),
}


# A product of matrices and the sum of one row add up in different orders. In dimensions 2 and 3 that makes at most one
# rounding, so that what remains is how the two kinds of logits are scaled.
@pytest.mark.parametrize(("dim", "roundings"), [(2, 1), (3, 1), (16, 6), (128, 6)])
@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        pytest.param(against_queue, "cross", id="queue"),
        *(pytest.param(loss, kind, id=f"{name}, {kind}") for name, loss in ROUTES.items() for kind in KINDS),
    ],
)
def test_a_negative_equal_to_the_positive_counts_as_much(loss, kind, dim, roundings):
    """log 2 where there is one, log 3 where there are two, to the last digit of so many ``roundings`` of a logit 1/t."""
    negatives = KINDS[kind]
    expected = math.log(1 + negatives)
    for seed in range(40):
        anchor, other = (row[:1] for row in oracles.views(1, dim, torch.float32, seed, grad=False))
        key = anchor + other / 2
        z0, z1 = (anchor if kind == "cross" else key).repeat(2, 1), key.repeat(2, 1)
        for t in (0.02, 0.05, 0.1, 0.2):
            error = abs(loss(z0, z1, t, kind).item() - expected)
            # The loss's slope by the difference of the logits is the negatives' share of the denominator.
            of_logits = roundings * np.spacing(np.float32(1 / t)) * negatives / (1 + negatives)
            assert error <= of_logits + 2 * np.spacing(np.float32(expected)), f"seed {seed}, temperature {t}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_check_says_what_the_value_hides(bad):
    z0, z1 = (z.detach() for z in oracles.views(4, 3, torch.float32))
    z0[1] = bad
    message = "1 of 4 rows of length zero" if bad == 0 else "1 of 4 rows with NaN or infinite entries"
    with pytest.raises(ValueError, match=message):
        vf.nt_xent(z0, z1, check=True)


def gradient_error(function, dtype):
    """Norm of the error over that of the gradient, over 20 draws, scaled against underflow as GradScaler does."""
    errors, norms = 0.0, 0.0
    exact_loss = varloss.WithVRN(varloss.NTXentLoss(), weight=30, num_samples=50_000)
    for seed in range(20):
        rounded = [z.detach().to(dtype).requires_grad_() for z in oracles.views(32, 64, seed=seed)]
        exact = [z.detach().double().requires_grad_() for z in rounded]
        truth = torch.stack(torch.autograd.grad(2.0**14 * exact_loss(*exact), exact))
        ours = torch.stack(torch.autograd.grad(2.0**14 * function(*rounded), rounded)).double()
        errors += (ours - truth).square().sum().item()
        norms += truth.square().sum().item()
    return (errors / norms) ** 0.5


@pytest.mark.parametrize(
    ("dtype", "once", "twice"), [(torch.float16, 2.1e-4, 3.0e-4), (torch.bfloat16, 1.7e-3, 2.4e-3)]
)
def test_two_terms_added_by_hand_are_rounded_twice(dtype, once, twice):
    """The figures of docs/numerics.md."""
    base, term = varloss.NTXentLoss(), varloss.VRNRegularizer(weight=30, num_samples=50_000)
    hard = varloss.NTXentLoss(hard_fraction=1.0)

    def by_hand(z0, z1):
        return base(z0, z1) + term(z0, z1)

    ways = {
        "WithVRN": varloss.WithVRN(base, weight=30, num_samples=50_000),
        "not in one pass": varloss.WithVRN(hard, weight=30, num_samples=50_000),
        "widened first": lambda a, b: by_hand(a.float(), b.float()),
        "by hand": by_hand,
    }
    errors = {name: gradient_error(function, dtype) for name, function in ways.items()}
    assert errors.pop("by hand") == pytest.approx(twice, rel=0.05)
    assert list(errors.values()) == pytest.approx([once] * 3, rel=0.05)
