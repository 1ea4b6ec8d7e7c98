"""Losses that add over pairs, hard negatives and learned temperatures: loops, closed-form values, edges."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracles
from support.agreement import assert_same
from support.cases import KINDS

import varloss
from varloss import functional as vf
from varloss.distributed import Gathered
from varloss_bench.studies.theory import closed_forms, configurations


def softplus(x):
    return (1 + x.exp()).log()


def additive(views, phi, psi, factors):
    """Lee et al. Def. 3.2, written out. ``factors`` are c1 and c2."""
    (z0, z1), (c1, c2) = views, factors
    u, v = oracles.unit_rows(z0), oracles.unit_rows(z1)
    m = len(u)
    pairs = [(i, j) for i in range(m) for j in range(m) if i != j]
    loss = -oracles.total([phi(oracles.dot(u[i], v[i])) for i in range(m)]) / m
    if c1:
        loss = loss + c1 / (m * (m - 1)) * oracles.total([psi(oracles.dot(u[i], v[j])) for i, j in pairs])
    if c2:
        inside = [psi(oracles.dot(u[i], u[j])) + psi(oracles.dot(v[i], v[j])) for i, j in pairs]
        loss = loss + c2 / (2 * m * (m - 1)) * oracles.total(inside)
    return loss


def weights(kind, factor):
    return (0 if kind == "within" else factor), (0 if kind == "cross" else factor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (6, 4), (12, 3)])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 1.5)])
def test_sigmoid_loss_equals_the_loops(kind, n, d, scale, bias):
    z = oracles.views(n, d)
    reference = additive(
        z, lambda s: -softplus(-(scale * s + bias)), lambda s: softplus(scale * s + bias), weights(kind, n - 1)
    )
    assert_same(vf.sigmoid_loss(*z, scale=scale, bias=bias, negatives=kind), reference, z)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (6, 4), (12, 3)])
def test_spectral_loss_equals_the_loops(kind, n, d):
    z = oracles.views(n, d)
    assert_same(vf.spectral_loss(*z, negatives=kind), additive(z, lambda s: s, lambda s: s * s, weights(kind, 1)), z)


def test_kcl_equals_the_loops():
    """exp(-t |x-y|²) over distances, not over similarities as the code has it."""
    z = oracles.views(6, 4)
    u, v = oracles.unit_rows(z[0]), oracles.unit_rows(z[1])

    def kernel(x, y):
        return (-1.3 * ((x - y) ** 2).sum()).exp()

    energy = [kernel(x[i], x[j]) for x in (u, v) for i in range(6) for j in range(i)]
    positive = [kernel(a, b) for a, b in zip(u, v, strict=True)]
    reference = -2 * oracles.total(positive) / 6 + 5.0 * oracles.total(energy) / 15
    assert_same(vf.kcl(*z, gamma=5.0, t=1.3), reference, z)


def hard_oracle(z0, z1, kind, keep, of_anchor):
    """Mean over the 2N anchors of ``of_anchor(positive, list of the keep most similar negatives)``."""
    views = [oracles.unit_rows(z0), oracles.unit_rows(z1)]
    n = len(views[0])
    losses = []
    for a in (0, 1):
        for i in range(n):
            x = views[a][i]
            negatives = []
            for j in range(n):
                if j != i and kind != "within":
                    negatives.append(oracles.dot(x, views[1 - a][j]))
                if j != i and kind != "cross":
                    negatives.append(oracles.dot(x, views[a][j]))
            negatives.sort(key=torch.Tensor.item, reverse=True)
            losses.append(of_anchor(oracles.dot(x, views[1 - a][i]), negatives[:keep]))
    return oracles.total(losses) / len(losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [1, 3, 5])
@pytest.mark.parametrize("decoupled", [False, True])
def test_hard_nt_xent_keeps_the_most_similar_negatives(kind, keep, decoupled):
    z, t = oracles.views(6, 4), 0.3

    def of_anchor(positive, negatives):
        denominator = [(s / t).exp() for s in negatives] + ([] if decoupled else [(positive / t).exp()])
        return oracles.total(denominator).log() - positive / t

    reference = hard_oracle(*z, kind, keep, of_anchor)
    ours = vf.nt_xent(*z, temperature=t, negatives=kind, decoupled=decoupled, hard_count=keep)
    assert_same(ours, reference, z)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "weight"), [(2, None), (2, 0.7), (None, None), (None, 0.0)])
def test_simple_loss_equals_the_loops(kind, keep, weight):
    z = oracles.views(6, 4)
    kept = keep or (10 if kind == "both" else 5)
    factor = 1 / kept if weight is None else weight
    reference = hard_oracle(*z, kind, kept, lambda positive, negatives: factor * oracles.total(negatives) - positive)
    assert_same(vf.simple_loss(*z, negatives=kind, weight=weight, hard_count=keep), reference, z)


@pytest.mark.parametrize("loss", [vf.nt_xent, vf.simple_loss])
@pytest.mark.parametrize("kind", KINDS)
def test_fraction_and_count_are_two_names_of_one_choice(loss, kind):
    z = [z.detach() for z in oracles.views(11, 4)]
    available = 20 if kind == "both" else 10
    everything = loss(*z, negatives=kind)
    assert torch.equal(loss(*z, negatives=kind, hard_fraction=1.0), everything)
    assert torch.equal(loss(*z, negatives=kind, hard_count=available), everything)
    for fraction, count in ((0.3, 3), (0.31, 4), (0.01, 1)):
        count = math.ceil(fraction * available - 1e-9) if kind == "both" else count  # noqa: PLW2901
        by_count = loss(*z, negatives=kind, hard_count=count)
        assert torch.equal(loss(*z, negatives=kind, hard_fraction=fraction), by_count)
        assert by_count != everything


def test_easy_negatives_get_no_gradient():
    """v_1 is the hard negative of u_0; u_0's gradient has nothing along v_2, v_3."""
    v = torch.eye(4, 9, dtype=torch.float64)
    u = torch.zeros(4, 9, dtype=torch.float64)
    for i in range(4):
        u[i, i], u[i, (i + 1) % 4], u[i, (i + 2) % 4], u[i, 5 + i] = 0.6, 0.3, 0.1, math.sqrt(1 - 0.46)
    u.requires_grad_()
    vf.nt_xent(u, v, negatives="cross", hard_count=1).backward()
    # Normalisation adds a multiple of u_0 itself: take it out by the coordinate that only u_0 has.
    gradient = u.grad[0] - u.grad[0, 5] / u[0, 5].detach() * u[0].detach()
    assert gradient[0] < 0 < gradient[1]
    assert gradient[2:5].abs().max() < 1e-15


def test_ties_with_the_last_kept_negative_stay():
    z = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(vf.nt_xent(z, z, hard_count=2), vf.nt_xent(z, z))


@pytest.mark.parametrize("kind", KINDS)
def test_simple_loss_is_the_limit_of_large_temperatures(kind):
    """t L = const + (K/(K+1)) L_simple as t grows."""
    z = [z.detach() for z in oracles.views(6, 4)]
    k, t = (10 if kind == "both" else 5), 1e6
    ours = t * (vf.nt_xent(*z, temperature=t, negatives=kind) - math.log(k + 1))
    assert ours.item() == pytest.approx(k / (k + 1) * vf.simple_loss(*z, negatives=kind).item(), abs=1e-5)


PAIRWISE = {
    **{f"sigmoid-{k}": lambda *z, k=k, **o: vf.sigmoid_loss(*z, negatives=k, **o) for k in KINDS},
    **{f"spectral-{k}": lambda *z, k=k, **o: vf.spectral_loss(*z, negatives=k, **o) for k in KINDS},
    **{f"simple-{k}": lambda *z, k=k, **o: vf.simple_loss(*z, negatives=k, **o) for k in KINDS},
    **{f"simple-{k}-hard": lambda *z, k=k, **o: vf.simple_loss(*z, negatives=k, hard_count=3, **o) for k in KINDS},
    **{f"nt_xent-{k}-hard": lambda *z, k=k, **o: vf.nt_xent(*z, negatives=k, hard_fraction=0.4, **o) for k in KINDS},
    "kcl": vf.kcl,
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_local_rows_against_gathered_keys_average_to_the_whole(name):
    """Value, and gradient of the rows through anchors and keys, as the ranks' collectives would sum them."""
    z = oracles.views(8, 4)
    whole = PAIRWISE[name](*z)
    parts = [
        PAIRWISE[name](z[0][s : s + 2], z[1][s : s + 2], gathered=Gathered((z[0], z[1]), s)) for s in range(0, 8, 2)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=1e-14)
    for mine, theirs in zip(torch.autograd.grad(mean, z), torch.autograd.grad(whole, z), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("a", [-1 / 5, 0.0, 0.4])
def test_values_at_the_symmetric_point(a):
    z = configurations.equiangular(6, a)
    for kind in KINDS:
        sigmoid = vf.sigmoid_loss(z, z, scale=4.0, bias=-1.0, negatives=kind).item()
        assert sigmoid == pytest.approx(
            closed_forms.symmetric_sigmoid(a, batch_size=6, scale=4.0, bias=-1.0, negatives=kind), rel=1e-12
        )
        spectral = vf.spectral_loss(z, z, negatives=kind).item()
        assert spectral == pytest.approx(closed_forms.symmetric_spectral(a, negatives=kind), rel=1e-12)
        assert vf.simple_loss(z, z, negatives=kind).item() == pytest.approx(-1 + a, abs=1e-12)
    assert vf.kcl(z, z).item() == pytest.approx(-2 + 2 * 16 * math.exp(-4 * (1 - a)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_loss_neither_overflows_nor_loses_digits(dtype):
    z = configurations.simplex(4, dtype=dtype)
    far = vf.sigmoid_loss(z, -z, scale=1000.0, bias=0.0)
    assert far.item() == pytest.approx(1000 + 3 * 1000 / 3, rel=1e-6)
    # softplus(21) is 21 + 7.6e-10.
    ones = torch.ones(4, 3, dtype=dtype)
    value = vf.sigmoid_loss(ones, ones, scale=1.0, bias=20.0).item()
    exact = math.log1p(math.exp(-21)) + 3 * (21 + math.log1p(math.exp(-21)))
    assert value == pytest.approx(exact, rel=1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("name", PAIRWISE)
def test_zero_rows_have_finite_values_and_zero_gradient(name):
    z0, z1 = (z.detach().clone() for z in oracles.views(5, 3, torch.float32))
    z0[1] = 0
    z0.requires_grad_()
    loss = PAIRWISE[name](z0, z1)
    loss.backward()
    assert loss.isfinite()
    assert torch.equal(z0.grad[1], torch.zeros(3))
    assert z0.grad.isfinite().all()
    with pytest.raises(ValueError, match="z0 has 1 of 5 rows of length zero"):
        PAIRWISE[name](z0, z1, check=True)


MODULES = {
    "InfoNCELoss": (
        varloss.InfoNCELoss(temperature=0.3),
        lambda *z: vf.nt_xent(*z, temperature=0.3, negatives="cross"),
    ),
    "InfoNCELoss-hard": (
        varloss.InfoNCELoss(hard_count=2),
        lambda *z: vf.nt_xent(*z, negatives="cross", hard_count=2),
    ),
    "NTXentLoss-hard": (varloss.NTXentLoss(hard_fraction=0.2), lambda *z: vf.nt_xent(*z, hard_fraction=0.2)),
    "DCLLoss": (varloss.DCLLoss(), lambda *z: vf.nt_xent(*z, temperature=0.1, decoupled=True)),
    "SigmoidLoss": (
        varloss.SigmoidLoss(scale=5.0, bias=-2.0, negatives="both"),
        lambda *z: vf.sigmoid_loss(*z, scale=5.0, bias=-2.0, negatives="both"),
    ),
    "SpectralLoss": (varloss.SpectralLoss(negatives="within"), lambda *z: vf.spectral_loss(*z, negatives="within")),
    "SimpleLoss": (
        varloss.SimpleLoss(weight=0.2, negatives="both", hard_count=3),
        lambda *z: vf.simple_loss(*z, weight=0.2, negatives="both", hard_count=3),
    ),
    "KCLLoss": (varloss.KCLLoss(gamma=4.0, t=1.0), lambda *z: vf.kcl(*z, gamma=4.0, t=1.0)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_pass_their_options_on_and_take_vrn(name):
    module, function = MODULES[name]
    z = [z.detach() for z in oracles.views(6, 4)]
    torch.testing.assert_close(module(*z), function(*z), rtol=0, atol=0)
    assert list(module.parameters()) == []
    assert list(module.state_dict()) == []
    with_vrn = varloss.WithVRN(module, weight=2.0, num_samples=60)(*z)
    torch.testing.assert_close(with_vrn, function(*z) + 2 * vf.vrn(*z, num_samples=60), rtol=1e-14, atol=0)
    assert "gather_distributed=False" in repr(module)


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (varloss.NTXentLoss(temperature=0.2, learnable_temperature=True), 1),
        (varloss.InfoNCELoss(temperature=0.2, learnable_temperature=True), 1),
        (varloss.DCLLoss(temperature=0.2, learnable_temperature=True), 1),
        (varloss.DHELLoss(temperature=0.2, learnable_temperature=True), 1),
        (varloss.SigmoidLoss(scale=5.0, bias=-2.0, learnable=True), 2),
    ],
)
def test_learned_hyper_parameters_start_as_given_get_gradients_and_are_saved(module, count):
    z = [z.detach() for z in oracles.views(6, 4)]
    fixed = type(module)(**({"scale": 5.0, "bias": -2.0} if count == 2 else {"temperature": 0.2}))
    torch.testing.assert_close(module(*z), fixed(*z), rtol=1e-6, atol=0)
    assert len(list(module.parameters())) == len(module.state_dict()) == count
    module(*z).backward()
    for parameter in module.parameters():
        step = 1e-3
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(sign * step)
                values.append(module(*z).item())
                parameter.sub_(sign * step)
        assert parameter.grad.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_a_learned_temperature_cannot_be_assigned_and_a_fixed_one_can():
    learned, fixed = varloss.NTXentLoss(learnable_temperature=True), varloss.NTXentLoss()
    with pytest.raises(AttributeError, match="log_temperature"):
        learned.temperature = 0.1
    fixed.temperature = 0.1
    z = [z.detach() for z in oracles.views(6, 4)]
    assert torch.equal(fixed(*z), vf.nt_xent(*z, temperature=0.1))
    with pytest.raises(ValueError, match="temperature must not be 0"):
        fixed.temperature = 0
    assert "temperature=0.5, learnable_temperature=True" in repr(learned)


def test_a_learned_scale_cannot_be_assigned_and_a_fixed_one_can():
    with pytest.raises(AttributeError, match="log_scale"):
        varloss.SigmoidLoss(learnable=True).scale = 3
    fixed = varloss.SigmoidLoss()
    fixed.scale = 3
    z = [z.detach() for z in oracles.views(6, 4)]
    assert torch.equal(fixed(*z), vf.sigmoid_loss(*z, scale=3, bias=-10))
    with pytest.raises(ValueError, match="scale must be positive; got 0"):
        fixed.scale = 0


def test_modules_with_learned_temperature_compile_into_one_graph():
    torch._dynamo.reset()
    z = [z.detach() for z in oracles.views(6, 4, torch.float32)]
    for module in (varloss.NTXentLoss(learnable_temperature=True), varloss.SigmoidLoss(learnable=True)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*z), module(*z))


GOOD = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vf.sigmoid_loss(GOOD, GOOD, negatives="all"), ValueError, "'cross', 'within', 'both'; got 'all'"),
        (lambda: vf.sigmoid_loss(GOOD, GOOD, scale="big"), TypeError, "scale must be a number; got str"),
        (lambda: vf.sigmoid_loss(GOOD, GOOD, bias=torch.ones(2)), ValueError, r"bias must be .*shape \(2,\)"),
        (lambda: vf.sigmoid_loss(GOOD, GOOD[:3]), ValueError, "same shape"),
        (lambda: vf.spectral_loss(GOOD, GOOD, negatives="all"), ValueError, "negatives must be one of"),
        (lambda: vf.spectral_loss(GOOD.long(), GOOD.long()), TypeError, "z0 must have a floating-point dtype"),
        (lambda: vf.kcl(GOOD, GOOD, t=0), ValueError, "t must be positive; got 0"),
        (lambda: vf.kcl(GOOD, GOOD, gamma=-1), ValueError, "gamma must not be negative; got -1"),
        (lambda: vf.kcl(GOOD, GOOD, gamma="big"), TypeError, "gamma must be a number; got str"),
        (lambda: vf.kcl(GOOD, GOOD, kernel="log"), ValueError, "kernel must be one of 'gaussian'; got 'log'"),
        (lambda: vf.simple_loss(GOOD, GOOD, weight=-1), ValueError, "weight must not be negative"),
        (lambda: vf.nt_xent(GOOD, GOOD, hard_count=0), ValueError, "hard_count must be at least 1"),
        (lambda: vf.nt_xent(GOOD, GOOD, hard_count=1.5), TypeError, "hard_count must be an integer"),
        (lambda: vf.nt_xent(GOOD, GOOD, hard_fraction=0.0), ValueError, r"hard_fraction must lie in \(0, 1\]"),
        (lambda: vf.nt_xent(GOOD, GOOD, hard_fraction=1, hard_count=1), ValueError, "not both"),
        (lambda: varloss.NTXentLoss(hard_fraction=2), ValueError, r"hard_fraction must lie in \(0, 1\]; got 2"),
        (lambda: varloss.SimpleLoss(hard_count=-1), ValueError, "hard_count must be at least 1"),
        (lambda: varloss.NTXentLoss(temperature=-1, learnable_temperature=True), ValueError, "must start above 0"),
        (lambda: varloss.SigmoidLoss(scale=0), ValueError, "scale must be positive; got 0"),
        (lambda: varloss.SimpleLoss(weight=-1), ValueError, "weight must not be negative; got -1"),
        (lambda: varloss.KCLLoss(t=-1), ValueError, "t must be positive; got -1"),
        (lambda: varloss.KCLLoss(gamma=-1), ValueError, "gamma must not be negative; got -1"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
