"""The results of every loss in every precision for hostile input, which are the table of docs/numerics.md.

``PYTHONPATH=tests python -m support.numerics`` writes it; a test measures it again. The reference is the naive formula in
float64 on the same rounded rows; it shares no code with varloss.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support import oracles
from support.cases import nt_xent_with_vrn
from varloss import functional as vf

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"
KINDS = ("cross", "within", "both")
N, DIM, SAMPLES, T = 8, 6, 100, 0.5
DELTA = -1 / (SAMPLES - 1)
SLOTS = torch.nn.functional.normalize(torch.sin(torch.arange(12.0 * DIM, dtype=torch.float64)).view(12, DIM), dim=1)

Loss = Callable[[Tensor, Tensor, float], Tensor]


# --- The naive formulas, of unit rows in float64. ---------------------------------------------------------------------------


def units(z: Tensor) -> Tensor:
    length = z.square().sum(1, keepdim=True).sqrt()
    return torch.where(length > 0, z / torch.where(length > 0, length, 1), 0 * z)


def pairs(u: Tensor, v: Tensor, kind: str) -> list[Tensor]:
    """Each anchor's negatives, (N, N-1) or (N, 2N-2), for the anchors of both views."""
    others = ~torch.eye(len(u), dtype=torch.bool)

    def negatives(a: Tensor, b: Tensor) -> Tensor:
        cross, within = ((a @ c.T)[others].view(len(a), -1) for c in (b, a))
        return {"cross": cross, "within": within, "both": torch.cat([cross, within], 1)}[kind]

    return [negatives(u, v), negatives(v, u)]


def hard(negatives: Tensor, kept: float) -> Tensor:
    """1 for an anchor's hardest negatives, including ties with the last of them, and 0 for the others."""
    count = math.ceil(kept * negatives.shape[1])
    return (negatives >= negatives.detach().sort(1, descending=True).values[:, count - 1 : count] - 1e-12).double()


def nt_xent(
    u: Tensor, v: Tensor, t: float, kind: str, decoupled: bool = False, kept: float = 1, share: float = 1
) -> Tensor:
    positive = (u * v).sum(1) / t
    losses = []
    for negatives in pairs(u, v, kind):
        total = ((negatives / t).exp() * hard(negatives, kept)).sum(1) + (0 if decoupled else positive.exp())
        losses.append(share * total.log() - positive)
    return torch.stack(losses).mean()


def simple(u: Tensor, v: Tensor, kind: str, kept: float = 1) -> Tensor:
    both = [(s * hard(s, kept)).sum(1).mean() / math.ceil(kept * s.shape[1]) for s in pairs(u, v, kind)]
    return torch.stack(both).mean() - (u * v).sum(1).mean()


def vrn(u: Tensor, v: Tensor, kind: str, p: float = 2) -> Tensor:
    """``"both"`` is the mean over both kinds, which have equal numbers."""
    return torch.stack([(s - DELTA).abs().pow(p).mean() for s in pairs(u, v, kind)]).mean()


def queue(u: Tensor, v: Tensor, t: float) -> Tensor:
    positive = ((u * v).sum(1) / t).exp()
    return -(positive / (positive + (u @ SLOTS.T / t).exp().sum(1))).log().mean()


def sigmoid(u: Tensor, v: Tensor, kind: str) -> Tensor:
    negatives = torch.stack([(1 + (10 * s - 10).exp()).log().sum(1).mean() for s in pairs(u, v, kind)]).mean()
    return (1 + (10 - 10 * (u * v).sum(1)).exp()).log().mean() + negatives


def spectral(u: Tensor, v: Tensor, kind: str) -> Tensor:
    squares = torch.stack([s.square().mean() for s in pairs(u, v, kind)]).mean()
    return (2 if kind == "both" else 1) * squares - (u * v).sum(1).mean()


def kcl(u: Tensor, v: Tensor) -> Tensor:
    energy = torch.stack([(-4 * (1 - s)).exp().mean() for s in pairs(u, v, "within")]).sum()
    return 16 * energy - 2 * (-4 * (1 - (u * v).sum(1))).exp().mean()


# --- The losses, in families that behave alike. -----------------------------------------------------------------------------


def indexed(function: Callable[..., Tensor], **options: Any) -> Loss:
    tempered = function is vf.nt_xent_indexed

    def loss(z0: Tensor, z1: Tensor, t: float) -> Tensor:
        index, views = torch.arange(len(z0)).repeat(2), torch.arange(2).repeat_interleave(len(z0))
        more = {"temperature": t} if tempered else {}
        return function(torch.cat([z0, z1]), index, views=views, **more, **options)

    return loss


def slots(like: Tensor) -> Tensor:
    return SLOTS.to(torch.promote_types(like.dtype, torch.float32))


def families() -> dict[str, list[tuple[Loss, Loss]]]:
    """Column of the table -> losses of ours, each with the formula it equals. All behave alike in every cell."""
    coupled: list[tuple[Loss, Loss]] = []
    decoupled: list[tuple[Loss, Loss]] = []
    by_index: list[tuple[Loss, Loss]] = []
    hard: list[tuple[Loss, Loss]] = []
    of_vrn: list[tuple[Loss, Loss]] = []
    with_vrn: list[tuple[Loss, Loss]] = []
    additive: list[tuple[Loss, Loss]] = []
    for k in KINDS:
        for form in ("auto", "linear", "dense"):
            for cell, column in ((False, coupled), (True, decoupled)):
                ours = partial(vf.nt_xent, negatives=k, decoupled=cell, form=form)
                column.append(
                    (
                        lambda a, b, t, f=ours: f(a, b, temperature=t),
                        lambda u, v, t, k=k, c=cell: nt_xent(u, v, t, k, c),
                    )
                )
            with_vrn.append(
                (
                    lambda a, b, t, k=k, f=form: nt_xent_with_vrn(
                        a, b, weight=3, num_samples=SAMPLES, pairs=k, temperature=t, form=f
                    ),
                    lambda u, v, t, k=k: nt_xent(u, v, t, "both") + 3 * vrn(u, v, k),
                )
            )
        by_index += [
            (indexed(vf.nt_xent_indexed, negatives=k, positives=where), lambda u, v, t, k=k: nt_xent(u, v, t, k))
            for where in ("inside", "outside")
        ]
        by_index.append((indexed(vf.vrn_indexed, pairs=k, num_samples=SAMPLES), lambda u, v, t, k=k: vrn(u, v, k)))
        hard.append(
            (
                lambda a, b, t, k=k: vf.nt_xent(a, b, temperature=t, negatives=k, hard_fraction=0.5),
                lambda u, v, t, k=k: nt_xent(u, v, t, k, kept=0.5),
            )
        )
        hard.append(
            (
                lambda a, b, t, k=k: vf.simple_loss(a, b, negatives=k, hard_fraction=0.5),
                lambda u, v, t, k=k: simple(u, v, k, 0.5),
            )
        )
        of_vrn += [
            (
                lambda a, b, t, k=k, f=form: vf.vrn(a, b, num_samples=SAMPLES, pairs=k, form=f),
                lambda u, v, t, k=k: vrn(u, v, k),
            )
            for form in ("dense", "linear")
        ]
        of_vrn.append(
            (
                lambda a, b, t, k=k: vf.vrn(a, b, num_samples=SAMPLES, pairs=k, exponent=3),
                lambda u, v, t, k=k: vrn(u, v, k, 3),
            )
        )
        for ours, theirs in ((vf.sigmoid_loss, sigmoid), (vf.spectral_loss, spectral), (vf.simple_loss, simple)):
            additive.append(
                (lambda a, b, t, k=k, f=ours: f(a, b, negatives=k), lambda u, v, t, k=k, f=theirs: f(u, v, k))
            )
    additive.append((lambda a, b, t: vf.kcl(a, b), lambda u, v, t: kcl(u, v)))
    for scale, share in (("paper", 1.0), ("official", 2.0)):
        decoupled.append(
            (
                lambda a, b, t, s=scale: vf.dhel(a, b, temperature=t, scale=s),
                lambda u, v, t, s=share: nt_xent(u, v, t, "within", True, share=s),
            )
        )
    of_queue: list[tuple[Loss, Loss]] = [
        (lambda a, b, t: vf.queue_info_nce(a, b, slots(a), temperature=t), queue),
        (
            lambda a, b, t: vf.vrn_queue(a, slots(a), num_samples=SAMPLES),
            lambda u, v, t: (u @ SLOTS.T - DELTA).square().mean(),
        ),
    ]
    return {
        "NT-Xent, InfoNCE": coupled,
        "DCL, DHEL": decoupled,
        "VRN": of_vrn,
        "NT-Xent with VRN": with_vrn,
        "hard negatives": hard,
        "SigLIP, spectral, simple, KCL": additive,
        "by index": by_index,
        "queue": of_queue,
    }


# --- Hostile input. ---------------------------------------------------------------------------------------------------------

PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float64": (torch.float64, False),
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "autocast bf16": (torch.bfloat16, True),
    "autocast fp16": (torch.float16, True),
}


def batch(rows: int = N) -> tuple[Tensor, Tensor]:
    z0, z1 = oracles.views(rows, DIM, grad=False)
    return z0, z1


def one_row(value: float) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    def build(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        del dtype
        z0, z1 = batch()
        if value == 0:
            z0[2] = 0
        else:
            z0[2, 1] = value
        return z0, z1

    return build


def duplicates(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    del dtype
    z0, z1 = batch()
    z0[5], z1[5], z0[6] = z0[1], z1[1], z1[3]
    return z0, z1


def all_equal(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    del dtype
    # Four entries of -1 or 1, so that the products of unit rows are exact. Otherwise a processor's rounding may split ties.
    row = batch()[0][:1].sign()
    row[:, 4:] = 0
    return row.expand(N, DIM).clone(), row.expand(N, DIM).clone()


def scaled(scale: float, in_fp16: float) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    """Ordinary rows times a factor. Their largest entry is 4.5; times 1.4e4 it is 6.3e4, just inside fp16."""

    def build(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        z0, z1 = batch()
        factor = in_fp16 if dtype == torch.float16 else scale
        return z0 * factor, z1 * factor

    return build


# Name -> rows, given the dtype they will be rounded to, and the temperature of the losses that have one.
CONDITIONS: dict[str, tuple[Callable[[torch.dtype], tuple[Tensor, Tensor]], float]] = {
    "ordinary rows": (lambda dtype: batch(), T),
    "t = 0.005": (lambda dtype: batch(), 0.005),
    "t = 10": (lambda dtype: batch(), 10.0),
    "a zero row": (one_row(0), T),
    "duplicate rows": (duplicates, T),
    "all rows equal": (all_equal, T),
    "N = 2": (lambda dtype: batch(2), T),
    "N = 1": (lambda dtype: batch(1), T),
    "entries near 1e30; 6e4 in fp16": (scaled(1e30, 1.4e4), T),
    "entries near 1e-30; 1e-6 in fp16": (scaled(1e-30, 1e-6), T),
    "a NaN in one row": (one_row(math.nan), T),
    "an infinity in one row": (one_row(math.inf), T),
}


def outcome(ours: Loss, naive: Loss, condition: str, precision: str) -> str:
    """A short description of a loss's result: ``right``, or what it is instead."""
    dtype, cast = PRECISIONS[precision]
    build, t = CONDITIONS[condition]
    rounded = [z.to(dtype) for z in build(dtype)]
    z = [x.clone().requires_grad_() for x in rounded]
    context = torch.autocast("cpu", dtype=dtype) if cast else contextlib.nullcontext()
    try:
        with context:
            value = ours(*z, t)
            grads = torch.autograd.grad(value, z, allow_unused=True, materialize_grads=True)
    except ValueError:
        return "ValueError"
    if not torch.isfinite(value):
        return "NaN" if all(g.isnan().any() for g in grads[:1]) else f"value {value.item()}"
    exact = [x.double().requires_grad_() for x in rounded]
    if condition == "N = 1" and len(pairs(*exact, "cross")[0][0]) == 0 and value.item() == 0:
        return "0" if all((g == 0).all() for g in grads) else "0, with a gradient"
    truth = naive(units(exact[0]), units(exact[1]), t)
    truths = torch.autograd.grad(truth, exact, allow_unused=True, materialize_grads=True)
    relative = 1e-5 + (0 if dtype == torch.float64 else 8 * torch.finfo(torch.float32).eps / t)
    if abs(value.item() - truth.item()) > relative * max(1.0, abs(truth.item())):
        return f"value {value.item()} for {truth.item()}"
    largest = torch.finfo(dtype).max
    lengths = torch.cat(exact).detach().norm(dim=1)
    # If a gradient is small because terms of this size cancel, their rounding errors remain.
    one = 1 / (t * lengths[lengths > 0].min().item())
    for g, expected in zip(grads, truths, strict=True):
        inside = expected.abs() < largest
        if not torch.isfinite(g[inside]).all():
            return "gradient not finite"
        scale = expected.abs().max().item()
        scale = one if scale < 1e-10 * one else max(scale, 1e-2 * one)
        ulp = expected.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        if ((g.double() - expected).abs() > relative * scale + ulp)[inside].any():
            return "wrong gradient"
    beyond = [(g.isinf() & (e.abs() > largest / 2)).any() for g, e in zip(grads, truths, strict=True)]
    return "right, gradient inf" if any(beyond) else "right"


def cell(losses: list[tuple[Loss, Loss]], condition: str) -> str:
    """One description if all precisions agree, otherwise also those that differ from fp32."""
    precisions: dict[str, list[str]] = {}
    for precision in ("fp32", *(name for name in PRECISIONS if name != "fp32")):
        found = {outcome(ours, naive, condition, precision) for ours, naive in losses}
        # Within a family some gradients are just inside the range.
        precisions.setdefault(" / ".join(sorted(found - {"right"} or found)), []).append(precision)
    usual, *others = precisions
    return "; ".join([usual, *(f"{', '.join(precisions[found])}: {found}" for found in others)])


def table() -> str:
    columns = families()
    lines = [" | ".join(["", "", *columns]).strip() + " |", "|---" * (len(columns) + 1) + "|"]
    for condition in CONDITIONS:
        cells = [cell(losses, condition) for losses in columns.values()]
        lines.append("| " + " | ".join([condition, *cells]) + " |")
    return "\n".join(lines)


MARKED = re.compile(r"(?<=<!-- measured by tests/support/numerics.py -->\n\n).*?(?=\n\n<!-- end -->)", re.DOTALL)

if __name__ == "__main__":
    PAGE.write_text(MARKED.sub(lambda _: table(), PAGE.read_text()))
