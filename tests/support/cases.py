"""Every two-view loss of the package under one name each: the conventions are tested over this table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import varloss
from varloss import functional
from varloss._core.numerics import follows_operations, nothing, wide
from varloss._core.pairs import check_two_views
from varloss._kernels import autograd
from varloss._kernels.problem import Problem

TwoViewLoss = Callable[[Tensor, Tensor], Tensor]
KINDS = ("cross", "within", "both")
# Nine crops: sample and view of each, with repeats within a view and a sample that stands alone.
INDEX = [7, -2, 10**12, 5, 7, -2, 10**12, 7, -2]
VIEWS = [0, 1, 0, 0, 1, 0, 2, 2, 2]
# Fake tensors have no data on any device, so that .item(), nonzero and boolean indexing fail on them. On a machine without a
# GPU torch before 2.6 crashes the interpreter on fake CUDA tensors.
FAKE_DEVICE = "cuda" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6) else "cpu"


def _indexed(function: Callable[..., Tensor], **options: object) -> TwoViewLoss:
    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        n = z0.shape[0]
        index = torch.arange(n, device=z0.device).repeat(2)
        views = torch.arange(2, device=z0.device).repeat_interleave(n)
        return function(torch.cat([z0, z1]), index, views=views, **options)

    return loss


def _queue(function: Callable[..., Tensor], with_key: bool, **options: object) -> TwoViewLoss:
    """The queue holds fixed unit rows, a third of them not valid."""

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        d = z0.shape[1]
        slots = torch.sin(torch.arange(12 * d, device=z0.device, dtype=torch.float64)).view(12, d)
        slots = torch.nn.functional.normalize(slots, dim=1)
        slots = slots.to(torch.promote_types(z0.dtype, torch.float32))
        valid = torch.arange(12, device=z0.device) < 8
        return (
            function(z0, z1, slots, valid=valid, **options) if with_key else function(z0, slots, valid=valid, **options)
        )

    return loss


def _dclw(z0: Tensor, z1: Tensor) -> Tensor:
    return functional.nt_xent(z0, z1, decoupled=True, positive_weight=functional.dclw_weights(z0, z1))


def nt_xent_with_vrn(
    z0: Tensor,
    z1: Tensor,
    *,
    weight: float,
    num_samples: int,
    pairs: functional.Pairs = "cross",
    temperature: float = 0.5,
    negatives: functional.Pairs = "both",
    decoupled: bool = False,
    form: str = "auto",
) -> Tensor:
    """NT-Xent with VRN as ``WithVRN`` computes it, by its tiles at any size, or as the sum of the dense formulas."""
    cell = {"temperature": temperature, "negatives": negatives, "decoupled": decoupled}
    if form == "dense":
        z0, z1 = wide(z0), wide(z1)
        term = functional.vrn(z0, z1, num_samples=num_samples, pairs=pairs, form="dense")
        return functional.nt_xent(z0, z1, form="dense", **cell) + weight * term
    plain = torch.compiler.is_compiling() or follows_operations(z0)
    if form == "linear" and negatives in ("both", pairs) and not plain:
        if not check_two_views(z0, z1, None):
            return nothing(z0, z1)
        problem = Problem(temperature, negatives, decoupled, weight, -1 / (num_samples - 1), pairs)
        return autograd.nt_xent(z0, z1, problem, force_tiles=True)
    return varloss.WithVRN(varloss.NTXentLoss(**cell), weight=weight, num_samples=num_samples, pairs=pairs)(z0, z1)


def takes_two_views_alone(function: object) -> bool:
    """Whether a loss, or the module of one, is complete without options."""
    given = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    names = [parameter.name for parameter in given if parameter.default is parameter.empty]
    return names == ([] if inspect.isclass(function) else ["z0", "z1"])


def table() -> dict[str, TwoViewLoss]:
    """Rows by hand for options; a function of two views without one has a row of its own."""
    cases: dict[str, TwoViewLoss] = {"dclw_weights": _dclw}
    for kind in KINDS:
        for decoupled in (False, True):
            name = f"nt_xent-{kind}-{'decoupled' if decoupled else 'coupled'}"
            cases[name] = lambda a, b, k=kind, d=decoupled: functional.nt_xent(a, b, negatives=k, decoupled=d)
        cases[f"nt_xent_indexed-{kind}"] = _indexed(functional.nt_xent_indexed, negatives=kind)
        for form in ("dense", "linear"):
            cases[f"vrn-{kind}-{form}"] = lambda a, b, k=kind, f=form: functional.vrn(
                a, b, num_samples=100, pairs=k, form=f
            )
        cases[f"vrn-{kind}-p3"] = lambda a, b, k=kind: functional.vrn(a, b, num_samples=100, pairs=k, exponent=3)
        for name in ("sigmoid_loss", "spectral_loss", "simple_loss"):
            cases[f"{name}-{kind}"] = partial(getattr(functional, name), negatives=kind)
        for name in ("nt_xent", "simple_loss"):
            cases[f"{name}-{kind}-hard"] = partial(getattr(functional, name), negatives=kind, hard_fraction=0.5)
        cases[f"vrn_indexed-{kind}"] = _indexed(functional.vrn_indexed, num_samples=100, pairs=kind)
        cases[f"nt_xent-{kind}-linear"] = lambda a, b, k=kind: functional.nt_xent(a, b, negatives=k, form="linear")
        cases[f"nt_xent-{kind}-dense"] = lambda a, b, k=kind: functional.nt_xent(a, b, negatives=k, form="dense")
        for form in ("auto", "linear"):
            cases[f"nt_xent_with_vrn-{kind}-{form}"] = partial(
                nt_xent_with_vrn, weight=3, num_samples=100, pairs=kind, form=form
            )
    cases["nt_xent_indexed-outside"] = _indexed(functional.nt_xent_indexed, positives="outside")
    for scale in ("paper", "official"):
        cases[f"dhel-{scale}"] = lambda a, b, s=scale: functional.dhel(a, b, scale=s)
    cases["queue_info_nce"] = _queue(functional.queue_info_nce, with_key=True)
    cases["vrn_queue"] = _queue(functional.vrn_queue, with_key=False, num_samples=100)
    for name in functional.__all__:
        if inspect.isfunction(function := getattr(functional, name)) and not any(key.startswith(name) for key in cases):
            assert takes_two_views_alone(function), f"tests/support/cases.py needs a row for {name} with its options"
            cases[name] = function
    return cases


CASES = table()
# Losses that read the views in turn: exchanging the views changes nothing. The others take queries and keys.
SYMMETRIC = [name for name in CASES if "queue" not in name]
