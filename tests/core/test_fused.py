"""The fused computation of NT-Xent (and VRN) against the dense formula: values, gradients, precision, memory, routing."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from support import oracles
from support.cases import FAKE_DEVICE, KINDS, nt_xent_with_vrn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import varloss
from varloss import functional as vf
from varloss._kernels import autograd, gathered, tiles, whole
from varloss._kernels.problem import Problem
from varloss.distributed import Gathered

CELLS = list(itertools.product(KINDS, (False, True)))
# No VRN, and VRN on every kind of pair the cell's similarities hold.
VRN = [
    (kind, decoupled, pairs)
    for kind, decoupled in CELLS
    for pairs in (None, *KINDS)
    if pairs in (None, kind) or kind == "both"
]
DELTA = -1 / 19


def dense(z0, z1, problem, gathered=None):
    """Value and gradients by autograd through the dense formula."""
    inputs = [z0, z1, *(gathered.keys if gathered else ())]
    value = vf.nt_xent(
        z0,
        z1,
        temperature=problem.temperature,
        negatives=problem.negatives,
        decoupled=problem.decoupled,
        gathered=gathered,
        form="dense",
    )
    if problem.vrn_weight:
        regularizer = vf.vrn(z0, z1, target=problem.target, pairs=problem.pairs, form="dense")
        value = value + problem.vrn_weight * regularizer
    return value.detach(), torch.autograd.grad(value, inputs)


def problem(kind, decoupled, pairs=None, temperature=0.5):
    return Problem(temperature, kind, decoupled, 0.0 if pairs is None else 3.0, DELTA, pairs or "cross")


def assert_close(value, gradients, expected, relative):
    torch.testing.assert_close(value, expected[0], rtol=relative, atol=0)
    for mine, theirs in zip(gradients, expected[1], strict=True):
        assert (mine - theirs).abs().max() <= relative * theirs.abs().max()


@pytest.mark.parametrize(("kind", "decoupled", "pairs"), VRN)
@pytest.mark.parametrize("temperature", [0.5, 0.07, -0.5])
def test_whole_matrix_equals_dense(kind, decoupled, pairs, temperature):
    z = oracles.views(9, 5)
    the = problem(kind, decoupled, pairs, temperature)
    raw = [x.detach() for x in z]
    value, gradient = whole.value_and_gradient(*raw, the, True)
    assert_close(value, gradient, dense(*z, the), 1e-12)
    alone, nothing = whole.value_and_gradient(*raw, the, False)
    assert torch.equal(alone, value)
    assert nothing is None


# At 25 dimensions VRN is a part of 13 rows' tiles, at 5 it comes from Gram matrices.
VRN_IN_TILES = [(*case, 25) for case in VRN if case[2]]


# One tile; a last tile of one row; tiles wider than high; as high as wide, several on the diagonal.
@pytest.mark.parametrize("tile", [(64, 64), (12, 12), (4, 7), (5, 5)])
@pytest.mark.parametrize(("kind", "decoupled", "pairs", "dim"), [(*case, 5) for case in VRN] + VRN_IN_TILES)
# The two smallest need a running maximum, in float64 too.
@pytest.mark.parametrize("temperature", [0.5, -0.5, 0.001, -0.0005])
def test_tiles_equal_dense(kind, decoupled, pairs, dim, temperature, tile):
    z = oracles.views(13, dim)
    the = problem(kind, decoupled, pairs, temperature)
    assert the.fits_without_shift(torch.float64) == (abs(temperature) > 0.01)
    raw = [x.detach() for x in z]
    value, gradient = tiles.value_and_gradient(*raw, the, True, tile)
    assert_close(value, gradient, dense(*z, the), 1e-10)
    alone, nothing = tiles.value_and_gradient(*raw, the, False, tile)
    torch.testing.assert_close(alone, value, rtol=1e-14, atol=0)
    assert nothing is None


@pytest.mark.parametrize("height", [1, 3, 50])
@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
@pytest.mark.parametrize("temperature", [0.5, -0.5, 0.001])
def test_gathered_rows_equal_dense(kind, decoupled, temperature, height):
    keys = tuple(oracles.views(11, 4, seed=1))
    z = tuple(k.detach()[3:8].clone().requires_grad_() for k in keys)
    the = problem(kind, decoupled, temperature=temperature)
    raw, raw_keys = (tuple(x.detach() for x in pair) for pair in (z, keys))
    value, gradient, key_gradient = gathered.value_and_gradient(raw, raw_keys, 3, the, True, height=height)
    assert_close(value, [*gradient, *key_gradient], dense(*z, the, Gathered(keys, 3)), 1e-10)
    assert torch.equal(gathered.value_and_gradient(raw, raw_keys, 3, the, False, height=height)[0], value)


@pytest.mark.parametrize("budget", [0, 100, 10**9])
def test_what_is_kept_between_the_passes_changes_nothing(budget, monkeypatch):
    z = [x.detach() for x in oracles.views(13, 25)]
    the = problem("both", False, "cross")
    plain = tiles.value_and_gradient(*z, the, True, (4, 7))
    monkeypatch.setattr(tiles, "KEPT_PER_ROW", 0)
    monkeypatch.setattr(tiles, "KEPT_BYTES", (budget, budget))
    again = tiles.value_and_gradient(*z, the, True, (4, 7))
    torch.testing.assert_close(again, plain, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("computation", [whole, tiles])
def test_every_similarity_that_is_not_a_negative_stays_out(computation):
    """Positives and self-similarities at 1 against negatives at 0: one that slips in shows at low temperature."""
    z = torch.eye(6, dtype=torch.float64)
    for kind, negatives in (("cross", 5), ("within", 5), ("both", 10)):
        value, _ = computation.value_and_gradient(z, z.clone(), problem(kind, True, temperature=0.05), False)
        assert value.item() == pytest.approx(-20 + torch.tensor(float(negatives)).log().item(), rel=1e-7)


ROUTES = {
    "small": vf.nt_xent,
    "linear": lambda z0, z1, **o: vf.nt_xent(z0, z1, form="linear", **o),
    "gathered": lambda z0, z1, **o: vf.nt_xent(z0, z1, gathered=Gathered((z0, z1), 0), **o),
}


@pytest.mark.parametrize("route", ROUTES)
class TestAutograd:
    def test_upstream_gradient_multiplies(self, route):
        z = oracles.views(6, 4)
        loss = ROUTES[route](*z)
        once = torch.autograd.grad(loss, z, retain_graph=True)
        thrice = torch.autograd.grad(loss, z, torch.tensor(3.0, dtype=torch.float64))
        for a, b in zip(once, thrice, strict=True):
            torch.testing.assert_close(3 * a, b)

    def test_second_derivatives_are_right(self, route):
        assert torch.autograd.gradgradcheck(ROUTES[route], oracles.views(4, 3))

    def test_one_tensor_given_as_both_views(self, route):
        z = oracles.views(5, 4)[0]
        ours = torch.autograd.grad(ROUTES[route](z, z, temperature=0.3), z, create_graph=True)[0]
        expected = torch.autograd.grad(vf.nt_xent(z, z, temperature=0.3, form="dense"), z, create_graph=True)[0]
        torch.testing.assert_close(ours, expected)
        seconds = [torch.autograd.grad(g.square().sum(), z)[0] for g in (ours, expected)]
        torch.testing.assert_close(*seconds)

    def test_only_what_is_asked_for_gets_a_gradient(self, route):
        z0, z1 = oracles.views(5, 4)
        (alone,) = torch.autograd.grad(ROUTES[route](z0, z1.detach()), z0)
        expected = torch.autograd.grad(vf.nt_xent(z0, z1.detach(), form="dense"), z0)[0]
        torch.testing.assert_close(alone, expected)
        with torch.no_grad():
            assert not ROUTES[route](z0, z1).requires_grad
        assert not ROUTES[route](z0.detach(), z1.detach()).requires_grad

    def test_views_of_different_precision(self, route):
        z0, z1 = oracles.views(5, 4)
        half = z0.detach().half().requires_grad_()
        single = z1.detach().float().requires_grad_()
        loss = ROUTES[route](half, single)
        loss.backward()
        assert (loss.dtype, half.grad.dtype, single.grad.dtype) == (torch.float32, torch.float16, torch.float32)

    def test_loss_scaling_reaches_half_precision_before_rounding(self, route):
        """A gradient of 1e-9 is 0 in fp16; scaled by 2^16, as GradScaler does, it is not."""
        z = [(1e4 * x.detach()).half().requires_grad_() for x in oracles.views(6, 4)]
        (ROUTES[route](*z) * 2.0**16).backward()
        assert z[0].grad.abs().max() > 0
        assert torch.autograd.grad(ROUTES[route](*z) * 1e-3, z[0])[0].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
class TestGatheredRowsUnder:
    """Conventions of gathered rows: in the table of cases the views' gradients would be rounded once for each role."""

    def test_compilation(self, kind):
        keys = tuple(oracles.views(6, 4, torch.float32))
        z = tuple(k.detach()[2:5].clone().requires_grad_() for k in keys)

        def loss(*inputs):
            return vf.nt_xent(*inputs[:2], negatives=kind, gathered=Gathered(inputs[2:], 2))

        torch._dynamo.reset()
        values = [torch.compile(loss, fullgraph=True, backend="aot_eager")(*z, *keys), loss(*z, *keys)]
        torch.testing.assert_close(*values)
        for a, b in zip(*(torch.autograd.grad(v, [*z, *keys]) for v in values), strict=True):
            torch.testing.assert_close(a, b)

    def test_fake_tensors(self, kind):
        with FakeTensorMode():
            z0, z1 = (torch.empty(4, 8, device=FAKE_DEVICE, requires_grad=True) for _ in range(2))
            keys = tuple(torch.empty(9, 8, device=FAKE_DEVICE, requires_grad=True) for _ in range(2))
            loss = vf.nt_xent(z0, z1, negatives=kind, gathered=Gathered(keys, 3))
        assert (loss.shape, loss.device.type, loss.requires_grad) == ((), FAKE_DEVICE, True)

    def test_autocast(self, kind):
        keys = tuple(oracles.views(6, 4, torch.float32))
        plain = vf.nt_xent(*keys, negatives=kind, gathered=Gathered(keys, 0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = vf.nt_xent(*keys, negatives=kind, gathered=Gathered(keys, 0))
        assert torch.equal(plain, cast)


class TestRouting:
    """The choice between the forms, recognised by the name of autograd's last step."""

    @staticmethod
    def step(loss):
        return type(loss.grad_fn).__name__

    @pytest.mark.parametrize("kind", KINDS)
    def test_small_batches_take_the_whole_matrix_and_large_ones_tiles(self, kind, monkeypatch):
        small, large = (oracles.views(n, 4, torch.float32) for n in (8, 400))
        tiled = []
        monkeypatch.setattr(
            tiles, "value_and_gradient", lambda *a, f=tiles.value_and_gradient: tiled.append(1) or f(*a)
        )
        vf.nt_xent(*small, negatives=kind)
        assert not tiled
        vf.nt_xent(*large, negatives=kind)
        assert len(tiled) == 1
        # If the exponentials of a temperature overflow fp32, the tiles' running maximum is needed.
        vf.nt_xent(*small, negatives=kind, temperature=0.01)
        assert len(tiled) == 2
        for form in ("auto", "linear"):
            torch.testing.assert_close(
                vf.nt_xent(*large, negatives=kind, form=form), vf.nt_xent(*large, negatives=kind, form="dense")
            )

    def test_options_that_need_it_take_the_dense_form(self):
        z = oracles.views(6, 4)
        for options in (
            {"temperature": torch.tensor(0.5, dtype=torch.float64)},
            {"hard_count": 2},
            {"hard_fraction": 0.5},
        ):
            assert self.step(vf.nt_xent(*z, **options)) == "MeanBackward0"
            with pytest.raises(ValueError, match="form='linear' does not go with"):
                vf.nt_xent(*z, form="linear", **options)
        with pytest.raises(ValueError, match="form must be one of 'auto', 'dense', 'linear'; got 'fast'"):
            vf.nt_xent(*z, form="fast")

    @pytest.mark.parametrize(("kind", "decoupled"), CELLS)
    @pytest.mark.parametrize("form", ["auto", "linear"])
    def test_positive_weights_need_no_matrix(self, kind, decoupled, form, monkeypatch):
        """The positive's weight is added outside: value and gradient are the dense form's, without its graph."""
        z = oracles.views(40, 4)
        weights = torch.linspace(-0.5, 1.9, 80, dtype=torch.float64).view(2, 40)
        options = {"temperature": 0.3, "negatives": kind, "decoupled": decoupled}
        fused = []
        monkeypatch.setattr(autograd, "nt_xent", lambda *a, f=autograd.nt_xent, **k: fused.append(1) or f(*a, **k))
        for weight in (0.5, weights[0], weights, torch.tensor(-1.0)):
            expected = vf.nt_xent(*z, positive_weight=weight, form="dense", **options)
            ours = vf.nt_xent(*z, positive_weight=weight, form=form, **options)
            torch.testing.assert_close(ours, expected)
            for a, b in zip(*(torch.autograd.grad(loss, z) for loss in (ours, expected)), strict=True):
                torch.testing.assert_close(a, b)
        assert len(fused) == 4

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_with_a_positive_weight_is_rounded_once(self, dtype):
        z = [x.detach().to(dtype).requires_grad_() for x in oracles.views(12, 6)]
        whole = [x.detach().double().requires_grad_() for x in z]
        ours = torch.autograd.grad(256 * vf.nt_xent(*z, positive_weight=0.5), z)
        truth = torch.autograd.grad(256 * vf.nt_xent(*whole, positive_weight=0.5), whole)
        for a, b in zip(ours, truth, strict=True):
            assert (a.double() - b).abs().max() <= b.abs().max() * torch.finfo(dtype).eps / 2 * 1.01

    @pytest.mark.parametrize(("kind", "decoupled"), CELLS)
    @pytest.mark.parametrize("pairs", KINDS)
    def test_with_vrn_is_the_sum(self, kind, decoupled, pairs):
        z = oracles.views(6, 4)
        options = {"temperature": 0.3, "negatives": kind, "decoupled": decoupled}
        expected = vf.nt_xent(*z, form="dense", **options) + 2.5 * vf.vrn(*z, num_samples=20, pairs=pairs)
        for form in ("auto", "dense", "linear"):
            ours = nt_xent_with_vrn(*z, weight=2.5, num_samples=20, pairs=pairs, form=form, **options)
            fused = form != "dense" and kind in ("both", pairs)
            assert (self.step(ours) == "AddBackward0") != fused
            torch.testing.assert_close(ours, expected)
            for a, b in zip(
                torch.autograd.grad(ours, z), torch.autograd.grad(expected, z, retain_graph=True), strict=True
            ):
                torch.testing.assert_close(a, b)

    def test_weight_zero_leaves_the_loss(self):
        z = oracles.views(6, 4)
        assert torch.equal(nt_xent_with_vrn(*z, weight=0, num_samples=9), vf.nt_xent(*z))

    def test_wrapped_module_is_fused_where_nothing_else_has_to_be_called(self):
        z = oracles.views(6, 4)
        expected = vf.nt_xent(*z) + 3 * vf.vrn(*z, num_samples=20)

        def build(base=None, **options):
            return varloss.WithVRN(base or varloss.NTXentLoss(), weight=3, num_samples=20, **options)

        assert self.step(build()(*z)) == "_FusedBackward"
        hooked = build()
        seen = []
        hooked.base.register_forward_hook(lambda *_: seen.append("base"))
        own_forward = type(
            "Own", (varloss.NTXentLoss,), {"forward": lambda self, a, b: self._with_regularizer(None, a, b)}
        )
        weighted = type("Weighted", (varloss.NTXentLoss,), {"positive_weight": lambda *_: 1.0})
        for module in (hooked, build(own_forward()), build(weighted()), build(vf.nt_xent), build(varloss.DHELLoss())):
            assert self.step(module(*z)) == "AddBackward0"
            if not isinstance(module.base, varloss.DHELLoss):
                torch.testing.assert_close(module(*z), expected)
        torch.testing.assert_close(build()(*z), expected)
        assert seen
        assert self.step(build(exponent=3)(*z)) == "AddBackward0"

    @pytest.mark.parametrize("base", [varloss.NTXentLoss, varloss.DHELLoss])
    def test_a_weight_set_later_is_checked(self, base):
        module = varloss.WithVRN(base(), weight=1, num_samples=20)
        with pytest.raises(ValueError, match="weight must not be negative; got -1"):
            module.regularizer.weight = -1
        assert module.regularizer.weight == 1

    def test_weight_set_later_is_used(self):
        z = oracles.views(6, 4)
        module = varloss.WithVRN(varloss.NTXentLoss(), weight=0, num_samples=20)
        without = module(*z)
        module.regularizer.weight = 2.0
        torch.testing.assert_close(module(*z), without + 2 * vf.vrn(*z, num_samples=20))


@pytest.mark.parametrize(("kind", "decoupled"), CELLS)
@pytest.mark.parametrize("form", ["auto", "linear"])
def test_error_is_that_of_the_dense_formula(kind, decoupled, form):
    """The documented promise: over 200 draws, the 95th percentile is at most twice the dense fp32 formula's, plus 4 ulp."""
    errors = {"dense": ([], []), form: ([], [])}
    generator = torch.Generator().manual_seed(1)
    options = {"negatives": kind, "decoupled": decoupled}
    for _ in range(200):
        exact = [torch.randn(24, 16, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
        temperature = float(torch.empty(()).uniform_(0.05, 1.0, generator=generator))
        rounded = [x.detach().float().requires_grad_() for x in exact]
        exact = [x.detach().double().requires_grad_() for x in rounded]

        def run(inputs, form, temperature=temperature):
            terms = {"weight": 3, "num_samples": 500, "pairs": "cross" if kind == "both" else kind}
            value = nt_xent_with_vrn(*inputs, temperature=temperature, form=form, **terms, **options)
            return value.item(), torch.stack(torch.autograd.grad(value, inputs)).double()

        truth, true_gradient = run(exact, "dense")
        for name, (values, gradients) in errors.items():
            value, gradient = run(rounded, name)
            values.append(abs(value - truth) / abs(truth))
            gradients.append(((gradient - true_gradient).abs().max() / true_gradient.abs().max()).item())
    ulp = torch.finfo(torch.float32).eps
    for ours, theirs in zip(errors[form], errors["dense"], strict=True):
        ninety_five = [torch.tensor(e).quantile(0.95).item() for e in (ours, theirs)]
        assert ninety_five[0] <= 2 * ninety_five[1] + 4 * ulp


def test_compiled_warm_up_of_the_weight():
    z = oracles.views(6, 4, torch.float32)
    module = varloss.WithVRN(varloss.NTXentLoss(), weight=0.5, num_samples=20)
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    # To torch 2.4 every number is a constant: it compiles for each, until it has done so a few times and compiles no more,
    # which fullgraph=True would make an error.
    numbers_are_constants = getattr(torch._dynamo.config, "specialize_float", False)
    compiled = torch.compile(module, fullgraph=not numbers_are_constants, backend=graphs)
    for step in range(1, 12):
        module.regularizer.weight = 0.1 * step
        torch.testing.assert_close(compiled(*z), module(*z))
    # Otherwise as a constant at first, as a symbol once it has changed.
    assert (graphs.frame_count > 2) == numbers_are_constants


def test_compiled_batches_of_many_sizes_share_a_graph():
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(vf.nt_xent, fullgraph=True, backend=graphs)
    # From the whole matrix at once to tiles: the operator decides when it runs.
    for n in (8, 9, 200, 300):
        z = oracles.views(n, 4, torch.float32)
        torch.testing.assert_close(compiled(*z), vf.nt_xent(*z))
    assert graphs.frame_count == 2


LAUNCH_NOTHING = {
    *("as_strided", "detach", "diagonal", "select", "slice", "t", "transpose", "unbind", "unsqueeze", "view"),
    *("empty_like", "new_empty", "promote_types"),
}


class _Operations(TorchDispatchMode):
    """Counts what would be launched on a GPU: neither views nor allocations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in LAUNCH_NOTHING
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("loss", "most"),
    [
        (varloss.NTXentLoss(), 29),
        (varloss.WithVRN(varloss.NTXentLoss(), weight=3, num_samples=100), 35),
        (varloss.VRNRegularizer(weight=1, num_samples=100), 22),
    ],
    ids=["nt_xent", "with_vrn", "vrn"],
)
def test_small_batches_take_few_operations(loss, most):
    """At N = 32 the number of operations determines the time of a step. lightly's NT-Xent with a mask for VRN takes 177."""
    z = oracles.views(32, 16, torch.float32)
    with _Operations() as operations:
        loss(*z).backward()
    assert operations.count <= most


MEMORY = """
import sys, torch, varloss
torch.set_num_threads(1)
loss = varloss.WithVRN(varloss.NTXentLoss(), weight=3, num_samples=50_000)
def run(n):
    z = [torch.randn(n, 64, requires_grad=True) for _ in range(2)]
    loss(*z).backward()
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
run(64)
before = peak()
run(int(sys.argv[1]))
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM from /proc/self/status")
@pytest.mark.slow
def test_memory_grows_linearly():
    """MiB above a warm process. Four times the rows: four times the memory, not sixteen. The dense form takes 600 at 4096."""
    used = []
    for n in (1024, 4096):
        command = [sys.executable, "-c", MEMORY, str(n)]
        used.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert used[1] < 60
    assert used[1] < 6 * used[0]


# The whole matrix at once, VRN in tiles, VRN from Gram matrices, Triton where it is installed.
CUDA_ROUTES = [
    (32, 64, torch.float32),
    (1100, 160, torch.float32),
    (1500, 64, torch.float32),
    (1500, 64, torch.bfloat16),
]


def on_cuda(n, d, dtype):
    """A loss, two views there, and how to compare value and gradients with those of the host's on the same rows."""
    z = [x.detach().to("cuda", dtype).requires_grad_() for x in oracles.views(n, d, torch.float32)]
    loss = varloss.WithVRN(varloss.NTXentLoss(), weight=3, num_samples=1000)

    def compare(value, gradients):
        on_host = [x.detach().cpu().requires_grad_() for x in z]
        expected = loss(*on_host)
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=0)
        for ours, theirs in zip(gradients, torch.autograd.grad(expected, on_host), strict=True):
            # To the last bit of bf16, where that is their type.
            largest = theirs.abs().max().item()
            torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=largest * max(1e-5, torch.finfo(dtype).eps))

    return loss, z, compare


@pytest.mark.cuda
@pytest.mark.parametrize(("n", "d", "dtype"), CUDA_ROUTES)
def test_cuda_agrees_and_never_waits_for_the_device(n, d, dtype):
    loss, z, compare = on_cuda(n, d, dtype)
    loss(*z).backward()  # libraries are loaded and kernels compiled now
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(*z)
        gradients = torch.autograd.grad(value, z)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    compare(value.detach(), gradients)


@pytest.mark.cuda
@pytest.mark.parametrize(("n", "d", "dtype"), CUDA_ROUTES)
def test_a_cuda_graph_holds_a_step(n, d, dtype):
    loss, z, compare = on_cuda(n, d, dtype)

    def step():
        value = loss(*z)
        return value.detach(), torch.autograd.grad(value, z)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradients = step()
    # Other rows in the same place: what comes out is computed by the replay.
    with torch.no_grad():
        for x in z:
            x.copy_(x.roll(1, 1) * torch.linspace(0.5, 2, n, device="cuda", dtype=dtype).unsqueeze(1))
        z[1].copy_(z[1].flip(0))
    graph.replay()
    torch.cuda.synchronize()
    compare(value, gradients)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program_exported_without_gradients_trains(dynamic):
    z0, z1 = (z.detach() for z in oracles.views(6, 5, torch.float32))
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(
        varloss.NTXentLoss(), (z0, z1), dynamic_shapes=({0: rows}, {0: rows}) if dynamic else None
    )
    z0, z1 = z0.clone().requires_grad_(), z1.clone().requires_grad_()
    ours = torch.autograd.grad(program.module()(z0, z1), (z0, z1))
    torch.testing.assert_close(ours, torch.autograd.grad(varloss.NTXentLoss()(z0, z1), (z0, z1)))


CHANGING = {
    "temperature": (varloss.NTXentLoss, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    "hard_fraction": (lambda: varloss.NTXentLoss(hard_fraction=0.5), [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    "scale": (varloss.SigmoidLoss, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    "weight": (lambda: varloss.VRNRegularizer(weight=1, num_samples=50), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    "exponent": (lambda: varloss.VRNRegularizer(weight=1, target=0.1, exponent=1.1), [1.2, 1.3, 1.4, 1.5, 1.6, 1.7]),
}


@pytest.mark.skipif(torch.__version__ < "2.8", reason="torch before 2.8 does not tell changing numbers from constants")
@pytest.mark.parametrize("name", CHANGING)
def test_a_number_that_changes_costs_two_compilations(name):
    build, values = CHANGING[name]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    loss_fn, plain = build(), build()
    compiled = torch.compile(loss_fn, fullgraph=True, backend=counter)
    for value in values:
        setattr(loss_fn, name, value)
        setattr(plain, name, value)
        z = [z.detach().float().requires_grad_() for z in oracles.views(6, 5)]
        ours, expected = compiled(*z), plain(*z)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z))
    assert counter.frame_count <= 2
