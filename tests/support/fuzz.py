"""Losses that hypothesis draws: options, every way to call a loss with them, and the parts its formula has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import varloss
import varloss_lightly
import varloss_metric_learning
from support import bounds, oracles
from support.batches import Batch, kinds, temperatures
from support.bounds import Part
from varloss import functional as vf

Call = Callable[..., Tensor]


@dataclass
class Loss:
    """``function(z0, z1, gathered=..., **options)``, other ``faces`` of the same loss, and what it is made of."""

    function: Call
    options: dict[str, Any]
    parts: list[Part]
    faces: dict[str, Call] = field(default_factory=dict)
    rounded: int = 1  # how often half-precision gradients are
    # Of each face: numbers with gradient, see bounds.assert_right.
    learned: dict[str, list[tuple[Tensor, float, float]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{self.function.__name__}(**{self.options}), {[*self.faces]}"


def softmax_part(terms: Callable[[Any], Tensor], t: float, count: int) -> Part:
    """Sums of ``count`` exponentials: errors of the sum and of its logarithm, as errors of the logits."""
    return Part(terms, 1 / t, 4 + abs(t) * (math.log(max(count, 1)) + bounds.add(count) + 4))


def times(factor: float, parts: Sequence[Part]) -> list[Part]:
    def scaled(part: Part) -> Part:
        documented = part.documented
        return replace(
            part,
            terms=lambda s: factor * part.terms(s),
            absolute=abs(factor) * part.absolute,
            documented=None if documented is None else lambda x: factor * documented(x / factor) if factor else 0.0,
        )

    return [scaled(part) for part in parts]


def by_labels(loss: Any) -> Call:
    """A loss of pytorch-metric-learning, which takes the views as rows of one batch with labels."""

    def call(z0: Tensor, z1: Tensor) -> Tensor:
        found: Tensor = loss(torch.cat([z0, z1]), torch.arange(len(z0)).repeat(2))
        return found

    return call


def to_dtype(module: Any, batch: Batch) -> Any:
    """What is learned has the digits of the computation, as its start."""
    module.to(batch.inside).reset_parameters()
    return module


@st.composite
def hard(draw: st.DrawFn, available: int) -> tuple[dict[str, Any], int | None]:
    """Options that choose hard negatives, and how many they keep."""
    how = draw(st.sampled_from(["all", "all", "fraction", "count"]))
    if how == "fraction":
        fraction = draw(st.sampled_from([0.1, 0.5, 1.0]) | st.floats(0.01, 1))
        kept = math.ceil(round(fraction * available, 9))
        return {"hard_fraction": fraction}, kept
    if how == "count":
        kept = draw(st.integers(1, 20))
        return {"hard_count": kept}, kept
    return {}, None


@st.composite
def nt_xent(draw: st.DrawFn, batch: Batch, others: int, plain: bool = False) -> Loss:
    """``plain`` without the options that VRN in one pass does without."""
    t, negatives, decoupled = draw(temperatures), draw(kinds), draw(st.booleans())
    count = others * (2 if negatives == "both" else 1)
    chosen, kept = ({}, None) if plain else draw(hard(count))
    options: dict[str, Any] = {"negatives": negatives, "decoupled": decoupled, **chosen}
    n = batch.rows
    shape = None if plain else draw(st.sampled_from([None, None, (), (n,), (2, n)]))
    factors, parts = None, []
    if shape is not None:
        factors = torch.tensor(draw(st.integers(-4, 12))) / 3 + torch.arange(math.prod(shape)).view(shape) / 7
        factors = factors.to(batch.inside)
        options["positive_weight"] = factors if shape else factors.item()
        full = factors.expand(2, n).double()
        parts.append(Part(lambda s: oracles.positive_terms(s, t, full)))
    parts.append(softmax_part(lambda s: oracles.nt_xent_terms(s, t, negatives, decoupled, kept), t, count))
    learned = not plain and draw(st.booleans())
    forms = ["auto", "dense"] + ["linear"] * (kept is None and not learned)
    options["form"] = "auto" if plain else draw(st.sampled_from(forms))
    given_t = torch.tensor(t, dtype=batch.inside, requires_grad=True) if learned else t
    by_face: dict[str, Any] = {"function": [(given_t, -1 / t, 0.0)] if learned else []}
    faces: dict[str, Call] = {}
    cell = {"negatives": negatives, "decoupled": decoupled}
    if options["form"] == "auto" and factors is None and (t > 0 or not learned):
        module = varloss.NTXentLoss(temperature=t, learnable_temperature=learned, **cell, **chosen)
        faces["module"] = to_dtype(module, batch)
        if learned:
            by_face["module"] = [(module.log_temperature, -1.0, 0.0)]
        if negatives == "cross" and not decoupled:
            faces["InfoNCE"] = varloss.InfoNCELoss(temperature=t, **chosen)
        if not chosen:
            faces["lightly"] = varloss_lightly.NTXentLoss(t, **cell)
            if decoupled:
                faces["lightly's DCL"] = varloss_lightly.DCLLoss(t, negatives=negatives)
            if negatives == "both":
                if decoupled:
                    faces["DCL"] = varloss.DCLLoss(temperature=t)
                if n:
                    loss = varloss_metric_learning.NTXentLoss(t, decoupled=decoupled)
                    faces["pytorch-metric-learning"] = by_labels(loss)
    if shape == (n,) and decoupled and not chosen:
        faces["lightly's weights"] = varloss_lightly.DCLLoss(
            t, lambda u, v: options["positive_weight"], negatives=negatives
        )
    return Loss(vf.nt_xent, {"temperature": given_t, **options}, parts, faces, learned=by_face)


@st.composite
def dhel(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    t, scale = draw(temperatures), draw(st.sampled_from(["paper", "official"]))
    options = {"temperature": t, "scale": scale}
    if scale == "paper":
        parts = [softmax_part(lambda s: oracles.nt_xent_terms(s, t, "within", True), t, others)]
    else:  # computed in two steps, whose positive terms partly cancel
        parts = [softmax_part(lambda s: oracles.dhel_terms(s, t), t, others), Part(lambda s: 0 * s.positive)]
    faces = {"module": varloss.DHELLoss(**options), "lightly": varloss_lightly.DHELLoss(t, scale=scale)}
    return Loss(vf.dhel, options, parts, faces)


@st.composite
def kcl(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    options = {"gamma": draw(st.floats(0, 50)), "t": draw(st.floats(0.01, 20))}
    return Loss(
        vf.kcl,
        options,
        [Part(lambda s: oracles.kcl_terms(s, **options))],
        {"module": varloss.KCLLoss(**options)},
    )


@st.composite
def sigmoid(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    scale, bias = draw(st.floats(0.01, 300)), draw(st.floats(-20, 20))
    negatives = draw(kinds)
    faces: dict[str, Call] = {"module": varloss.SigmoidLoss(scale=scale, bias=bias, negatives=negatives)}
    options: dict[str, Any] = {"scale": scale, "bias": bias, "negatives": negatives}
    faces["learned"] = module = to_dtype(varloss.SigmoidLoss(learnable=True, **options), batch)
    by_face = {"learned": [(module.log_scale, 1.0, 0.0), (module.bias, 0.0, 1 / scale)]}
    terms = partial(oracles.sigmoid_terms, scale=scale, bias=bias, negatives=negatives)
    return Loss(vf.sigmoid_loss, options, [Part(terms, roundings=8 + 4 * abs(bias) / scale)], faces, learned=by_face)


def squares(batch: Batch, others: int, delta: float, kind: str, p: float, closed: bool | None) -> Part:
    """VRN; ``closed`` by Gram matrices, where its docstring states the error, and None where either may be taken."""
    part = Part(lambda s: oracles.vrn_terms(s, delta, kind, p))
    if closed is not False:
        eps = torch.finfo(batch.inside).eps
        # Each kind's pairs count by the number there are in the batch.
        pairs = max(batch.rows * others, 1)
        part.absolute = 2 * (1 + abs(delta)) / pairs
        loose = 0.0 if closed else 8 * (batch.dim + 8) * eps
        part.documented = lambda x: (16 * eps + loose) * (x + delta**2 + 1 / max(others, 1)) / bounds.SLACK
    return part


def aims(draw: st.DrawFn) -> tuple[dict[str, Any], float]:
    if draw(st.booleans()):
        target = draw(st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-1, 1))
        return {"target": target}, target
    number = draw(st.integers(2, 10**6))
    return {"num_samples": number}, -1 / (number - 1)


@st.composite
def vrn(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    (aim, delta), kind = aims(draw), draw(kinds)
    p = draw(st.sampled_from([2, 2, 1, 1.5, 3]))
    form = draw(st.sampled_from(["auto", "dense", "linear"] if p == 2 else ["auto", "dense"]))
    cheaper = (batch.rows + others + 1) * batch.dim < batch.rows * (others + 1)
    closed = p == 2 and (form == "linear" or (form == "auto" and cheaper))
    parts = [squares(batch, others, delta, kind, p, closed)]
    faces: dict[str, Call] = {}
    if form == "auto":
        options = {"weight": 1.0, **aim, "exponent": p}
        faces = {
            "module": varloss.VRNRegularizer(pairs=kind, **options),
            "lightly": varloss_lightly.VRNRegularizer(pairs=kind, **options),
        }
        if kind == "cross" and not closed and batch.rows:
            regularizer = varloss_metric_learning.VRNRegularizer(**options)

            def with_references(z0: Tensor, z1: Tensor) -> Tensor:
                ids = torch.arange(len(z0))
                found: Tensor = regularizer(z0, ids, ref_emb=z1, ref_labels=ids)
                return found

            faces["pytorch-metric-learning"] = with_references
    return Loss(vf.vrn, {**aim, "pairs": kind, "exponent": p, "form": form}, parts, faces)


@st.composite
def spectral(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    kind = draw(kinds)
    cheaper = (batch.rows + others + 1) * batch.dim < batch.rows * (others + 1)
    factor = 2 if kind == "both" else 1
    parts = times(factor, [squares(batch, others, 0.0, kind, 2, cheaper)])
    parts.append(Part(lambda s: -s.positive / max(s.n, 1)))
    return Loss(vf.spectral_loss, {"negatives": kind}, parts, {"module": varloss.SpectralLoss(negatives=kind)})


@st.composite
def simple(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    kind = draw(kinds)
    chosen, kept = draw(hard(others * (2 if kind == "both" else 1)))
    options = {"negatives": kind, "weight": draw(st.none() | st.floats(0, 5)), **chosen}
    part = Part(lambda s: oracles.simple_terms(s, options["weight"], kind, kept))
    return Loss(vf.simple_loss, options, [part], {"module": varloss.SimpleLoss(**options)})


def with_vrn(z0: Tensor, z1: Tensor, *, loss: Call, gathered: None = None) -> Tensor:
    del gathered
    return loss(z0, z1)


def aims_and_pairs(draw: st.DrawFn) -> tuple[dict[str, Any], float, str]:
    aim, delta = aims(draw)
    return {**aim, "pairs": (kind := draw(kinds))}, delta, kind


@st.composite
def with_vrn_in_one_pass(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    """NT-Xent and VRN of pairs that are among its negatives."""
    base, weight = draw(nt_xent(batch, others, plain=True)), draw(st.floats(0.5, 50))
    aim, delta, kind = aims_and_pairs(draw)
    if base.options["negatives"] != "both":
        aim["pairs"] = kind = base.options["negatives"]
    loss = varloss.WithVRN(base.faces["module"], weight=weight, **aim)
    parts = [*base.parts, *times(weight, [squares(batch, others, delta, kind, 2, None)])]
    return Loss(with_vrn, {"loss": loss}, parts)


@st.composite
def with_vrn_in_two_passes(draw: st.DrawFn, batch: Batch, others: int) -> Loss:
    """``WithVRN`` around any loss, or lightly's loss with a weight."""
    weight, (aim, delta, kind) = draw(st.floats(0, 50)), aims_and_pairs(draw)
    p = draw(st.sampled_from([2, 2, 2, 3]))
    base = draw(nt_xent(batch, others) | dhel(batch, others) | sigmoid(batch, others))
    part = squares(batch, others, delta, kind, p, None if p == 2 else False)
    name = draw(st.sampled_from(sorted(base.faces))) if base.faces else None
    inner = base.faces[name] if name else partial(base.function, **base.options)
    if name and name.startswith("lightly") and p == 2:
        inner.regularizer = varloss.VRNRegularizer(weight=weight, **aim)  # as the constructor does
        loss: Call = inner
    else:
        loss = varloss.WithVRN(draw(st.sampled_from([inner, partial(inner)])), weight=weight, **aim, exponent=p)
    return Loss(with_vrn, {"loss": loss}, [*base.parts, *times(weight, [part])], rounded=3)


LOSSES: dict[str, Callable[[Batch, int], st.SearchStrategy[Loss]]] = {
    "nt_xent": nt_xent,
    "dhel": dhel,
    "kcl": kcl,
    "sigmoid_loss": sigmoid,
    "spectral_loss": spectral,
    "simple_loss": simple,
    "vrn": vrn,
    "with_vrn_in_one_pass": with_vrn_in_one_pass,
    "with_vrn_in_two_passes": with_vrn_in_two_passes,
}


@st.composite
def by_index(draw: st.DrawFn, name: str, batch: Batch, rows: int) -> Loss:
    kind = draw(kinds)
    if name == "vrn_indexed":
        (aim, delta), p = aims(draw), draw(st.sampled_from([2, 1, 3]))
        part = Part(lambda s: oracles.vrn_indexed_terms(s, delta, kind, p))
        return Loss(vf.vrn_indexed, {**aim, "pairs": kind, "exponent": p}, [part])
    t, decoupled = draw(temperatures), draw(st.booleans())
    positives = draw(st.sampled_from(["inside", "outside"]))
    part = softmax_part(lambda s: oracles.nt_xent_indexed_terms(s, t, kind, decoupled, positives), t, rows)
    options = {"temperature": t, "negatives": kind, "decoupled": decoupled, "positives": positives}
    return Loss(vf.nt_xent_indexed, options, [part])


@st.composite
def against_queue(draw: st.DrawFn, name: str, batch: Batch, slots: int) -> Loss:
    if name == "vrn_queue":
        (aim, delta), p = aims(draw), draw(st.sampled_from([2, 1, 3]))
        part = Part(lambda s: oracles.vrn_queue_terms(s, delta, p))
        if p == 2:  # by Gram matrices where that is cheaper
            part.absolute = 2 * (1 + abs(delta)) / max(batch.rows * slots, 1)
        return Loss(vf.vrn_queue, {**aim, "exponent": p}, [part])
    t = draw(temperatures)
    part = softmax_part(lambda s: oracles.queue_terms(s, t), t, slots)
    faces: dict[str, Call] = {}
    if slots:
        size = (slots, batch.dim)
        faces = {"module": varloss.QueueInfoNCELoss(temperature=t, memory_bank_size=size).to(batch.inside)}
        faces["lightly"] = varloss_lightly.NTXentLoss(t, size).to(batch.inside)
    return Loss(vf.queue_info_nce, {"temperature": t}, [part], faces)
