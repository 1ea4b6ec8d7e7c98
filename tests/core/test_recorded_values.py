"""The value and gradient of every loss equal those at commit 52e175e.

``recorded_values.json`` was written by running this table of cases on the code of that commit in float64, with that
code's names for the arguments. Each entry holds the value, then for each input of the case the norm of its gradient and
its projections on two fixed directions. That commit's own fp32 results are within ``FP32`` of these numbers too. The inputs are
made from integers, so that they are the same numbers on every machine and in fp32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import varloss
from varloss import functional as vf
from varloss import metrics
from varloss.distributed import Gathered, GatheredRows

RECORD = Path(__file__).with_name("recorded_values.json")
KINDS = ("cross", "within", "both")
# (N, D): one pair of negatives, N < D, N > 2 D where Gram matrices are cheaper, and more rows than the whole matrix takes.
SIZES = ((2, 3), (13, 25), (40, 6), (200, 8))
# Of the value, and of the gradient's norm. Sums of a few hundred terms of mixed sign are in them.
FP64, FP32 = 1e-10, 2e-5

Result = tuple[Tensor, list[Tensor]]


def gathered(keys: tuple[Tensor, Tensor], offset: int) -> dict[str, object]:
    return {"gathered": Gathered(keys, offset)}


def gathered_rows(keys: Tensor, index: Tensor, views: Tensor, offset: int) -> dict[str, object]:
    return {"gathered": GatheredRows(keys, index, views, offset)}


LINEAR_NT_XENT, LINEAR_VRN = "linear", "linear"


def numbers(rows: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 1/4096 in [-1/2, 1/2), scattered by a congruence."""
    x = torch.arange(rows * columns) + 100_003 * seed + 1
    for _ in range(3):
        x = (x * 48_271 + 11) % 2_147_483_647
    return ((x % 4096) / 4096 - 0.5).to(dtype).view(rows, columns)


def views(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    z0 = numbers(n, d, 0, dtype)
    return [z.requires_grad_() for z in (z0, 0.5 * z0 + numbers(n, d, 1, dtype))]


def two_view_losses() -> dict[str, Callable[..., Tensor]]:
    cases: dict[str, Callable[..., Tensor]] = {}

    def add(name: str, function: Callable[..., Tensor], **options: object) -> None:
        cases[name] = lambda *z, **g: function(*z, **options, **g)

    for kind in KINDS:
        for decoupled in (False, True):
            name, cell = f"nt_xent {kind}{' decoupled' * decoupled}", {"negatives": kind, "decoupled": decoupled}
            for t in (0.5, -0.5, 0.05, 0.001):
                add(f"{name} t={t}", vf.nt_xent, temperature=t, **cell)
            add(f"{name} linear", vf.nt_xent, form=LINEAR_NT_XENT, **cell)
            add(f"{name} dense", vf.nt_xent, form="dense", **cell)
            add(f"{name} hard half", vf.nt_xent, hard_fraction=0.5, **cell)
            add(f"{name} weight", vf.nt_xent, positive_weight=0.3, **cell)
        add(f"nt_xent {kind} hard one", vf.nt_xent, hard_count=1, negatives=kind)
        for p in (1, 2, 2.5):
            add(f"vrn {kind} p={p}", vf.vrn, num_samples=100, pairs=kind, exponent=p)
        add(f"vrn {kind} target", vf.vrn, target=0.2, pairs=kind)
        add(f"vrn {kind} dense", vf.vrn, num_samples=100, pairs=kind, form="dense")
        add(f"vrn {kind} linear", vf.vrn, num_samples=100, pairs=kind, form=LINEAR_VRN)
        add(f"sigmoid {kind}", vf.sigmoid_loss, negatives=kind)
        add(f"sigmoid {kind} steep", vf.sigmoid_loss, scale=60.0, bias=5.0, negatives=kind)
        add(f"spectral {kind}", vf.spectral_loss, negatives=kind)
        add(f"simple {kind}", vf.simple_loss, negatives=kind)
        add(f"simple {kind} weight", vf.simple_loss, negatives=kind, weight=2.0)
        add(f"simple {kind} hard half", vf.simple_loss, negatives=kind, hard_fraction=0.5)
    for scale in ("paper", "official"):
        add(f"dhel {scale}", vf.dhel, scale=scale, temperature=0.2)
    add("kcl", vf.kcl)
    add("kcl wide", vf.kcl, gamma=3.0, t=0.5)
    cases["dclw"] = lambda *z, **g: vf.nt_xent(
        *z, decoupled=True, positive_weight=vf.dclw_weights(*z, sigma=0.3, **g), **g
    )
    return cases


def modules() -> dict[str, Callable[[], torch.nn.Module]]:
    n = {"num_samples": 100}
    cases: dict[str, Callable[[], torch.nn.Module]] = {
        "NTXentLoss": varloss.NTXentLoss,
        "NTXentLoss learned": lambda: varloss.NTXentLoss(temperature=0.2, learnable_temperature=True),
        "NTXentLoss hard": lambda: varloss.NTXentLoss(negatives="within", hard_fraction=0.3),
        "InfoNCELoss": lambda: varloss.InfoNCELoss(temperature=0.07),
        "InfoNCELoss learned": lambda: varloss.InfoNCELoss(learnable_temperature=True, hard_count=1),
        "DCLLoss": varloss.DCLLoss,
        "DHELLoss": varloss.DHELLoss,
        "DHELLoss learned": lambda: varloss.DHELLoss(scale="official", learnable_temperature=True),
        "SigmoidLoss": varloss.SigmoidLoss,
        "SigmoidLoss learned": lambda: varloss.SigmoidLoss(learnable=True, negatives="both"),
        "SpectralLoss": varloss.SpectralLoss,
        "SimpleLoss": varloss.SimpleLoss,
        "SimpleLoss hard": lambda: varloss.SimpleLoss(weight=0.5, hard_count=1),
        "KCLLoss": varloss.KCLLoss,
        "VRNRegularizer": lambda: varloss.VRNRegularizer(weight=3, **n),
        "VRNRegularizer p=3": lambda: varloss.VRNRegularizer(weight=3, exponent=3, pairs="both", **n),
        "WithVRN sigmoid": lambda: varloss.WithVRN(varloss.SigmoidLoss(), weight=0.5, **n),
        "WithVRN learned": lambda: varloss.WithVRN(varloss.NTXentLoss(learnable_temperature=True), weight=2, **n),
        "QueueInfoNCELoss": lambda: Twice(16),
        "QueueInfoNCELoss short": lambda: Twice(1),
    }
    for kind in KINDS:
        for pairs in KINDS:
            cases[f"WithVRN {kind} {pairs}"] = lambda k=kind, p=pairs: varloss.WithVRN(
                varloss.NTXentLoss(negatives=k, decoupled=p == "within"), weight=4, pairs=p, **n
            )
    return cases


class Twice(torch.nn.Module):
    """Two steps of MoCo, so that the second has a queue."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        loss = varloss.QueueInfoNCELoss(memory_bank_size=(self.slots, z0.shape[1])).to(z0.dtype)
        return loss(z0, z1) + loss(z1, z0)


def indexed_losses() -> dict[str, Callable[..., Tensor]]:
    cases: dict[str, Callable[..., Tensor]] = {}
    for kind in KINDS:
        for positives in ("inside", "outside"):
            for decoupled in (False, True):
                cases[f"{kind} {positives}{' decoupled' * decoupled}"] = (
                    lambda z, i, v, k=kind, p=positives, d=decoupled, **g: vf.nt_xent_indexed(
                        z, i, views=v, temperature=0.2, negatives=k, positives=p, decoupled=d, **g
                    )
                )
        for p in (1, 2):
            cases[f"vrn {kind} p={p}"] = lambda z, i, v, k=kind, p=p, **g: vf.vrn_indexed(
                z, i, views=v, num_samples=100, pairs=k, exponent=p, **g
            )
    return cases


def queue_losses() -> dict[str, Callable[..., Tensor]]:
    return {
        "queue_info_nce": lambda q, k, m, valid: vf.queue_info_nce(q, k, m, temperature=0.1, valid=valid),
        "vrn_queue": lambda q, k, m, valid: vf.vrn_queue(q, m, num_samples=100, valid=valid),
        "vrn_queue p=1": lambda q, k, m, valid: vf.vrn_queue(q, m, target=0.1, exponent=1, valid=valid),
    }


def metric_values(z: list[Tensor]) -> dict[str, Tensor]:
    z0, z1 = (x.detach() for x in z)
    labels = torch.arange(z0.shape[0]) % 3
    values = {
        "alignment": metrics.alignment(z0, z1),
        "alignment alpha=1": metrics.alignment(z0, z1, alpha=1.0),
        "uniformity": metrics.uniformity(z0),
        "tolerance": metrics.tolerance(z0, labels),
        "wasserstein_uniformity": metrics.wasserstein_uniformity(z0),
        "effective_rank": metrics.effective_rank(z0),
    }
    values |= {f"similarity_statistics {k}": v for k, v in metrics.similarity_statistics(z0, z1)._asdict().items()}
    for kind in KINDS:
        values[f"penalty entropy {kind}"] = metrics.relative_penalty_entropy(z0, z1, temperature=0.1, negatives=kind)
    return values


def results(dtype: torch.dtype) -> dict[str, Callable[[], Result]]:
    """What can be computed under each name: a value and the inputs by which it is differentiated."""
    entries: dict[str, Callable[[], Result]] = {}
    for n, d in SIZES:
        for name, function in two_view_losses().items():
            # Among 199 similarities two may be equal in fp32: which of them is the hardest is then open.
            if not (n == 200 and "hard one" in name):
                entries[f"{name}, {n}x{d}"] = lambda f=function, n=n, d=d: (f(*(z := views(n, d, dtype))), z)
    for n, d, total, offset in ((1, 3, 2, 1), (7, 10, 13, 3), (40, 5, 90, 50)):
        for name, function in two_view_losses().items():

            def with_keys(f=function, n=n, d=d, total=total, offset=offset) -> Result:
                keys = views(total, d, dtype)
                local = [x[offset : offset + n] for x in keys]
                return f(*local, **gathered((keys[0], keys[1]), offset)), keys

            # The closed form takes anchors' partners from the views, the dense one from the keys: here they are the same.
            if not (name.startswith("vrn") and "linear" in name):
                entries[f"{name}, {n} of {total}x{d}"] = with_keys
    for n, d in ((9, 5), (40, 6)):
        for name, build in modules().items():

            def by_module(build=build, n=n, d=d) -> Result:
                module, z = build().to(dtype), views(n, d, dtype)
                return module(*z), [*z, *module.parameters()]

            entries[f"{name}, {n}x{d}"] = by_module
    index, crops = torch.tensor([7, -2, 10**12, 5, 7, -2, 10**12, 7, -2]), torch.tensor([0, 1, 0, 0, 1, 0, 2, 2, 2])
    for name, function in indexed_losses().items():

        def alone(f=function) -> Result:
            z = numbers(9, 5, 2, dtype).requires_grad_()
            return f(z, index, crops), [z]

        def among_keys(f=function) -> Result:
            keys = numbers(9, 5, 3, dtype).requires_grad_()
            rows = slice(2, 7)
            return f(keys[rows], index[rows], crops[rows], **gathered_rows(keys, index, crops, 2)), [keys]

        entries[f"indexed {name}"] = alone
        entries[f"indexed {name}, 5 of 9"] = among_keys
    for name, function in queue_losses().items():
        for n, d, slots in ((4, 6, 9), (30, 3, 50)):

            def against_queue(f=function, n=n, d=d, slots=slots, some=True) -> Result:
                z = views(n, d, dtype)
                memory = torch.nn.functional.normalize(numbers(slots, d, 4, dtype), dim=1)
                return f(*z, memory, torch.arange(slots) < slots - 3 if some else None), z

            entries[f"{name}, {n}x{d} of {slots} slots"] = against_queue
            entries[f"{name}, {n}x{d} of {slots} full slots"] = lambda f=against_queue: f(some=False)
    for n, d in ((9, 5), (40, 6)):
        for name in metric_values(views(n, d, torch.float64)):
            entries[f"{name}, {n}x{d}"] = lambda n=n, d=d, name=name: (metric_values(views(n, d, dtype))[name], [])
    return entries


def summary(result: Result) -> list[float]:
    """The value, then norm and two projections of each gradient."""
    value, inputs = result
    found = [value.item()]
    if value.requires_grad:
        options = {"allow_unused": True, "materialize_grads": True}
        for gradient in torch.autograd.grad(value, inputs, **options):
            g = gradient.double().reshape(1, -1)
            found += [g.norm().item(), *(g @ numbers(g.shape[1], 2, 5, torch.float64)).flatten().tolist()]
    return found


def misfit(found: list[float], expected: list[float]) -> float:
    """The largest difference, of the value relative to it, of a projection relative to the gradient's norm."""
    assert len(found) == len(expected)
    assert all(map(math.isfinite, found))
    scales = [abs(expected[0])] + [expected[1 + 3 * (k // 3)] for k in range(len(expected) - 1)]
    return max(abs(a - b) / (scale + 1e-3) for a, b, scale in zip(found, expected, scales, strict=True))


RECORDED: dict[str, list[float]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}


def test_every_case_is_recorded():
    assert sorted(results(torch.float64)) == sorted(RECORDED)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_values_and_gradients_are_those_recorded(dtype, bound):
    off = {name: misfit(summary(make()), RECORDED[name]) for name, make in results(dtype).items() if name in RECORDED}
    assert {name: x for name, x in off.items() if not x <= bound} == {}
