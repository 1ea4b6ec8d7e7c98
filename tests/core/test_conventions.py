"""Conventions of every loss: precision, autocast, gradients, symmetries, compilation, no host synchronisation, errors."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracles
from support.cases import CASES, FAKE_DEVICE, KINDS, SYMMETRIC
from torch._subclasses.fake_tensor import FakeTensorMode

import varloss
from varloss import functional as vf
from varloss._core.grams import Grams
from varloss.distributed import Gathered, GatheredRows

each_loss = pytest.mark.parametrize("name", CASES)


@each_loss
def test_gradients_are_right_once_and_twice(name):
    z = oracles.views(4, 3)
    queue = "queue" in name
    inputs = z[:1] if queue else z
    function = (lambda a: CASES[name](a, z[1].detach())) if queue else CASES[name]
    # DCLW's weights are constants by definition; finite differences would change them.
    if name != "dclw_weights":
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_its_rounded_inputs(name, dtype):
    """Value to 1e-5, gradient of unrounded rows to 1e-5, gradient returned within one unit in the last place."""
    rounded = [z.detach() for z in oracles.views(8, 6, dtype)]
    half = [z.clone().requires_grad_() for z in rounded]
    exact = [z.double().requires_grad_() for z in rounded]
    inside = [z.float().requires_grad_() for z in rounded]
    value, reference, single = CASES[name](*half), CASES[name](*exact), CASES[name](*inside)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference.item(), rel=1e-5, abs=1e-7)
    options = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad(value, half, **options)
    truths = torch.autograd.grad(reference, exact, **options)
    singles = torch.autograd.grad(single, inside, **options)
    for grad, truth, one in zip(grads, truths, singles, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(one.double(), truth, rtol=1e-5, atol=1e-5 * scale)
        info = torch.finfo(dtype)
        ulp = (truth.abs() * info.eps).clamp_min(info.smallest_normal * info.eps)
        assert ((grad.double() - truth).abs() <= ulp + 1e-5 * scale).all()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(name, dtype):
    z = [z.detach().requires_grad_() for z in oracles.views(8, 6, torch.float32)]
    plain = CASES[name](*z)
    with torch.autocast("cpu", dtype=dtype):
        cast = CASES[name](*z)
        grads = torch.autograd.grad(cast, z[0])
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(grads[0], torch.autograd.grad(plain, z[0])[0])


@each_loss
def test_lowered_matmul_precision_is_not_used(name):
    """TF32 on GPUs, bf16 on CPUs that have it; the previous settings are restored."""
    z = [z.detach().requires_grad_() for z in oracles.views(64, 96, torch.float32)]
    plain = CASES[name](*z)
    gradient = torch.autograd.grad(plain, z[0])[0]
    torch.set_float32_matmul_precision("medium")
    try:
        lowered = CASES[name](*z)
        lowered_gradient = torch.autograd.grad(lowered, z[0])[0]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(lowered, plain)
    assert torch.equal(lowered_gradient, gradient)


@each_loss
def test_runs_on_a_device_that_cannot_be_waited_for(name):
    """Fake tensors have no data: .item(), nonzero and boolean indexing fail on them."""
    with FakeTensorMode():
        z0, z1 = (torch.empty(8, 16, device=FAKE_DEVICE, requires_grad=True) for _ in range(2))
        loss = CASES[name](z0, z1)
    assert loss.shape == ()
    assert loss.device.type == FAKE_DEVICE
    assert loss.requires_grad


@each_loss
def test_compiles_into_one_graph(name):
    if "with_vrn" in name and torch.__version__ < "2.5":
        pytest.skip("torch 2.4 cannot build a module with a __setattr__ of its own inside a compiled function")
    z = [z.detach().requires_grad_() for z in oracles.views(6, 5, torch.float32)]
    torch._dynamo.reset()
    compiled = torch.compile(CASES[name], fullgraph=True, backend="aot_eager")(*z)
    eager = CASES[name](*z)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.autograd.grad(compiled, z[0])[0], torch.autograd.grad(eager, z[0])[0])


@each_loss
def test_order_and_length_of_rows_do_not_matter(name):
    z0, z1 = (z.detach() for z in oracles.views(7, 4))
    value = CASES[name](z0, z1)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(CASES[name](z0[order], z1[order]), value, rtol=1e-12, atol=0)
    lengths = torch.logspace(-6, 6, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(CASES[name](z0 * lengths, z1 * 3), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_views_are_exchangeable(name):
    z0, z1 = (z.detach() for z in oracles.views(7, 4))
    torch.testing.assert_close(CASES[name](z1, z0), CASES[name](z0, z1), rtol=1e-12, atol=0)


@each_loss
def test_inputs_are_left_alone(name):
    z = [z.detach() for z in oracles.views(6, 4, torch.float32)]
    before = [x.clone() for x in z]
    CASES[name](*z)
    assert all(torch.equal(a, b) for a, b in zip(z, before, strict=True))


TWO_VIEWS = {
    "nt_xent": vf.nt_xent,
    "dhel": vf.dhel,
    "vrn": lambda a, b: vf.vrn(a, b, num_samples=10),
    "dclw_weights": vf.dclw_weights,
    "Grams": Grams.of,
    "NTXentLoss": varloss.NTXentLoss(),
    "WithVRN": varloss.WithVRN(varloss.NTXentLoss(), weight=3, num_samples=10),
}
GOOD = torch.ones(4, 3)
IDS = torch.arange(4)


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize(
    ("z0", "z1", "error", "message"),
    [
        (GOOD, torch.ones(5, 3), ValueError, r"same shape; got \(4, 3\) and \(5, 3\)"),
        (GOOD, torch.ones(4, 2), ValueError, r"same embedding dimension; got \(4, 3\) and \(4, 2\)"),
        (torch.ones(4), torch.ones(4), ValueError, r"z0 must be 2-D.*got shape \(4,\)"),
        (torch.ones(4, 3, 1), GOOD, ValueError, r"z0 must be 2-D.*got shape \(4, 3, 1\)"),
        (torch.ones(4, 0), torch.ones(4, 0), ValueError, r"dimension 0"),
        (torch.ones(4, 3, dtype=torch.long), GOOD, TypeError, "z0 must have a floating-point dtype; got torch.int64"),
        (GOOD, [[1.0]], TypeError, "z1 must be a torch.Tensor; got list"),
        (GOOD, GOOD.double(), TypeError, r"float64 or none; got z0 torch\.float32, z1 torch\.float64"),
        (GOOD, torch.ones(4, 3, device="meta"), ValueError, "one device; got cpu and meta"),
    ],
)
def test_bad_views_are_named(name, z0, z1, error, message):
    with pytest.raises(error, match=message):
        TWO_VIEWS[name](z0, z1)


# What is left of a loss that adds a term over negatives to one over positives, of their similarity s.
POSITIVE_TERMS = {
    "sigmoid_loss": lambda s: torch.nn.functional.softplus(10 - 10 * s),
    "spectral_loss": lambda s: -s,
    "simple_loss": lambda s: -s,
    "kcl": lambda s: -2 * torch.exp(4 * (s - 1)),
}


@each_loss
@pytest.mark.parametrize("rows", [0, 1])
def test_a_mean_over_no_negatives_is_zero(name, rows):
    """The last batch of an epoch may hold one sample, or none of this rank."""
    z0, z1 = (z.detach()[:rows].requires_grad_() for z in oracles.views(2, 4))
    loss = CASES[name](z0, z1)
    gradient = torch.autograd.grad(loss, z0)[0]
    assert gradient.isfinite().all()
    positive = (torch.nn.functional.normalize(z0, dim=1) * torch.nn.functional.normalize(z1, dim=1)).sum(1)
    term = next((POSITIVE_TERMS[start] for start in POSITIVE_TERMS if name.startswith(start)), torch.zeros_like)
    if "queue" not in name or rows == 0:  # one query has the negatives of the queue
        torch.testing.assert_close(loss, term(positive).sum(), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(gradient, torch.autograd.grad(term(positive).sum() + 0 * z0.sum(), z0)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature must not be 0"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite; got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number; got str"),
        ({"temperature": torch.ones(2)}, ValueError, r"single number; got a tensor of shape \(2,\)"),
        ({"negatives": "all"}, ValueError, "negatives must be one of 'cross', 'within', 'both'; got 'all'"),
        ({"positive_weight": torch.ones(3)}, ValueError, r"shape \(4,\) or \(2, 4\); got \(3,\)"),
        ({"gathered": (GOOD, GOOD)}, TypeError, "gathered must be a varloss.distributed.Gathered; got tuple"),
        ({"gathered": Gathered((GOOD, GOOD), 1)}, ValueError, "offset 1 does not fit: 4 local rows"),
        ({"gathered": Gathered((GOOD, torch.ones(5, 3)), 0)}, ValueError, "keys of the two views must have the same"),
        ({"gathered": Gathered(GOOD, 0)}, TypeError, "keys must be a pair"),
    ],
)
def test_bad_options_of_nt_xent_are_named(options, error, message):
    with pytest.raises(error, match=message):
        vf.nt_xent(GOOD, GOOD, **options)


VRN_FORMS = {
    "function": lambda **options: vf.vrn(GOOD, GOOD, **options),
    "indexed": lambda **options: vf.vrn_indexed(GOOD, torch.arange(4), views=torch.arange(4), **options),
    "regularizer": lambda **options: varloss.VRNRegularizer(weight=1, **options),
    "wrapper": lambda **options: varloss.WithVRN(vf.nt_xent, weight=1, **options),
}


@pytest.mark.parametrize("form", VRN_FORMS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "exactly one of num_samples .* and target"),
        ({"num_samples": 9, "target": 0.0}, ValueError, "got num_samples=9 and target=0.0"),
        ({"num_samples": 1}, ValueError, "num_samples must be at least 2; got 1"),
        ({"num_samples": 9.0}, TypeError, "num_samples must be an integer; got float"),
        ({"num_samples": True}, TypeError, "num_samples must be an integer; got bool"),
        ({"target": math.nan}, ValueError, "target must be finite; got nan"),
        ({"target": -1.5}, ValueError, r"must lie in \[-1, 1\]; got -1.5"),
        ({"num_samples": 9, "pairs": "some"}, ValueError, "pairs must be one of 'cross', 'within', 'both'; got 'some'"),
        ({"num_samples": 9, "exponent": 0.5}, ValueError, "exponent must be at least 1; got 0.5"),
    ],
)
def test_bad_options_of_vrn_are_named(form, options, error, message):
    with pytest.raises(error, match=message):
        VRN_FORMS[form](**options)


@pytest.mark.parametrize("entry", [2.5e38, 1e-40])
def test_check_notices_rows_too_long_or_short_for_their_dtype(entry):
    z0, z1 = (z.detach() for z in oracles.views(4, 3, torch.float32))
    z0[2] = 0
    as_zero_row = vf.nt_xent(z0, z1)
    z0[2] = entry
    assert torch.equal(vf.nt_xent(z0, z1), as_zero_row)
    with pytest.raises(ValueError, match=r"z0 has 1 of 4 rows whose length leaves the range of torch\.float32"):
        vf.nt_xent(z0, z1, check=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: varloss.VRNRegularizer(weight=3, num_samples=9),
        lambda: varloss.WithVRN(varloss.NTXentLoss(), weight=3, num_samples=9),
        lambda: varloss.WithVRN(varloss.QueueInfoNCELoss(memory_bank_size=(8, 3)), weight=3, num_samples=9),
    ],
)
def test_vrn_with_a_gradient_on_one_side_warns_once(build):
    loss_fn = build()
    query = torch.randn(4, 3, requires_grad=True)
    with pytest.warns(UserWarning, match="only one carries a gradient"):
        loss_fn(query, torch.randn(4, 3))
    # A warning would be an error here: the second time, and for gradients on both sides.
    loss_fn(query, torch.randn(4, 3))
    build()(query, torch.randn(4, 3, requires_grad=True))


def test_closed_form_of_another_exponent_is_refused():
    with pytest.raises(ValueError, match="form='linear' needs exponent 2; got 3"):
        vf.vrn(GOOD, GOOD, num_samples=9, exponent=3, form="linear")
    with pytest.raises(ValueError, match="form must be one of 'auto', 'dense', 'linear'; got 'fast'"):
        vf.vrn(GOOD, GOOD, num_samples=9, form="fast")


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_bad_weights_are_named(weight):
    with pytest.raises(ValueError, match=f"weight must .*; got {weight}"):
        varloss.VRNRegularizer(weight=weight, num_samples=9)


@pytest.mark.parametrize("function", [vf.nt_xent_indexed, lambda z, i, **o: vf.vrn_indexed(z, i, num_samples=9, **o)])
@pytest.mark.parametrize(
    ("index", "options", "error", "message"),
    [
        (torch.arange(3), {}, ValueError, r"one id for each row of z, shape \(4,\); got \(3,\)"),
        (torch.rand(4), {}, TypeError, "index must have an integer dtype; got torch.float32"),
        ([0, 1, 2, 3], {}, TypeError, "index must be a torch.Tensor of integers; got list"),
        (torch.arange(4), {"views": None}, ValueError, "views must be given to tell 'cross' pairs apart"),
        (torch.arange(4), {"gathered": (GOOD, IDS)}, TypeError, "gathered must be GatheredRows or None; got tuple"),
        (torch.arange(4), {"gathered": GatheredRows(GOOD)}, TypeError, "keys_index must be a torch.Tensor of integers"),
        (
            torch.arange(4),
            {"gathered": GatheredRows(GOOD, IDS)},
            ValueError,
            "keys_views must be given to tell 'cross'",
        ),
        (torch.arange(4), {"gathered": GatheredRows(GOOD, IDS, IDS, 1)}, ValueError, "offset 1 does not fit: 4 local"),
    ],
)
def test_bad_ids_are_named(function, index, options, error, message):
    kind = "negatives" if function is vf.nt_xent_indexed else "pairs"
    options = {"views": torch.arange(4), kind: "cross", **options}
    with pytest.raises(error, match=message):
        function(GOOD, index, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_default_form_agrees_for_numpy_like_integers(kind):
    """Sizes of data sets are often NumPy integers."""

    class Count:
        def __index__(self):
            return 9

    torch.testing.assert_close(
        vf.vrn(GOOD, GOOD, num_samples=Count(), pairs=kind), vf.vrn(GOOD, GOOD, num_samples=9, pairs=kind)
    )
