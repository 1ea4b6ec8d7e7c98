"""Slow references: loops over anchors, straight from the papers, sharing no code with varloss.

A loss is a sum of terms, functions of similarities. :class:`TwoViews` and :class:`Rows` hold the similarities of a batch, so
that a test can ask how a loss depends on each of them (``bounds.py``). Use float64; autograd differentiates the loops too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Lengths beyond which a row counts as a zero row, as docs/numerics.md says.
RANGES = {torch.float32: (1.2e-38, 3.4e38), torch.float64: (1e-152, 1e154)}


def unit_rows(z: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows at length 1, and 0 for those that count as zero rows among rows of ``dtype``. No square overflows."""
    largest = z.detach().abs().amax(1, keepdim=True) if z.numel() else z.new_zeros(len(z), 1)
    largest = torch.where(largest > 0, largest, 1)
    scaled = z / largest
    length = torch.where((z == 0).all(1, keepdim=True), 1, (scaled * scaled).sum(1, keepdim=True)).sqrt()
    shortest, longest = RANGES[torch.promote_types(dtype, torch.float32)]
    counts = (z != 0).any(1, keepdim=True) & (length * largest >= shortest) & (length * largest <= longest)
    return torch.where(counts, scaled / length, 0.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def total(terms: list[Tensor]) -> Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


# --- Losses of two views. ---------------------------------------------------------------------------------------------------


@dataclass
class TwoViews:
    """Similarities of N samples' two rows to each other, and to both rows of M samples, from ``offset`` on the same ones.

    ``matrix`` is (2N, 2M), view 0 first in both. ``blur`` is how far a similarity may be wrong: among hard negatives it
    decides which ones tie. What ties up to ``blur`` is kept, or not where ``fewest`` is set; ``unsure`` notes that it mattered.
    """

    positive: Tensor
    matrix: Tensor
    offset: int = 0
    blur: float = 0.0
    fewest: bool = False
    unsure: bool = False

    @classmethod
    def of(cls, u: Tensor, v: Tensor, k0: Tensor | None = None, k1: Tensor | None = None, offset: int = 0) -> TwoViews:
        anchors = torch.cat([u, v])
        keys = anchors if k0 is None or k1 is None else torch.cat([k0, k1])
        return cls((u * v).sum(1), anchors @ keys.T, offset)

    @property
    def n(self) -> int:
        return len(self.positive)

    @property
    def others(self) -> int:
        return max(self.matrix.shape[1] // 2 - 1, 0)

    def anchors(self) -> list[tuple[int, int]]:
        return [(view, i) for view in (0, 1) for i in range(self.n)]

    def negatives(self, view: int, i: int, kind: str) -> Tensor:
        """The similarities of one anchor to its negatives."""
        m, own = self.matrix.shape[1] // 2, self.offset + i
        parts = []
        for other in {"cross": [1 - view], "within": [view], "both": [1 - view, view]}[kind]:
            row = self.matrix[view * self.n + i, other * m : other * m + m]
            parts += [row[:own], row[own + 1 :]]
        return torch.cat(parts)

    def hardest(self, negatives: Tensor, kept: int | None, sign: float = 1.0) -> Tensor:
        """The ``kept`` largest, and what ties with the last of them; the smallest where a temperature is below 0."""
        if sign < 0:
            return -self.hardest(-negatives, kept)
        if kept is None or kept >= len(negatives):
            return negatives
        ordered = negatives.sort(descending=True).values
        least = ordered[kept - 1].detach()
        self.unsure |= bool(self.blur and (ordered[kept] >= least - 2 * self.blur))
        return ordered[:kept] if self.fewest else ordered[ordered.detach() >= least - 2 * self.blur]


def nt_xent_terms(s: TwoViews, t: float | Tensor, negatives: str, decoupled: bool, kept: int | None = None) -> Tensor:
    """Lee et al. Def. 3.1 with psi = log(1+x) or log x, written out: the mean over anchors."""
    if not s.n or not s.others:
        return s.positive[:0]
    terms = []
    for view, i in s.anchors():
        ratio = ((s.hardest(s.negatives(view, i, negatives), kept, t) - s.positive[i]) / t).exp().sum()
        terms.append(ratio.log() if decoupled else ratio.log1p())
    return torch.stack(terms) / len(terms)


def positive_terms(s: TwoViews, t: float | Tensor, factors: Tensor) -> Tensor:
    """What factors (2, N) on the positive logits add to the loss."""
    if not s.others:
        return s.positive[:0]
    return ((1 - factors) * s.positive / t).flatten() / max(2 * s.n, 1)


def over_pairs(s: TwoViews, kind: str) -> Tensor:
    """Similarities of pairs of different samples: ``"cross"`` of view 0's anchors, ``"within"`` of both views' anchors."""
    views = (0,) if kind == "cross" else (0, 1)
    return torch.cat([s.matrix.flatten()[:0], *(s.negatives(view, i, kind) for view in views for i in range(s.n))])


def vrn_terms(s: TwoViews, delta: float, kind: str, p: float) -> Tensor:
    """Lee et al. Def. 5.7; ``"both"`` is the mean of both kinds' means."""
    if kind == "both":
        return torch.cat([vrn_terms(s, delta, one, p) / 2 for one in ("cross", "within")])
    gaps = over_pairs(s, kind) - delta
    return gaps.abs() ** p / max(len(gaps), 1)


def dhel_terms(s: TwoViews, t: float) -> Tensor:
    """The authors' code: alignment, plus the log-sum over each view."""
    if not s.n or not s.others:
        return s.positive[:0]
    logs = [[(s.negatives(view, i, "within") / t).exp().sum().log() for i in range(s.n)] for view in (0, 1)]
    return torch.stack([a + b - p / t for a, b, p in zip(*logs, s.positive, strict=True)]) / s.n


def kcl_terms(s: TwoViews, gamma: float, t: float) -> Tensor:
    """Koromilas et al.: exp(-t |x - y|^2) for unit rows, whose squared distance is 2 - 2 s."""
    pull, push = ((t * (2 * x - 2)).exp() for x in (s.positive, over_pairs(s, "within")))
    return torch.cat([-2 * pull / max(s.n, 1), 2 * gamma * push / max(len(push), 1)])


def sigmoid_terms(s: TwoViews, scale: float, bias: float, negatives: str) -> Tensor:
    """Zhai et al. section 3.2: softplus of each pair's logit, or of its negative for positive pairs, over N."""
    terms = [_softplus(-(scale * s.positive + bias))]
    if negatives in ("cross", "both"):
        terms.append(_softplus(scale * over_pairs(s, "cross") + bias))
    if negatives in ("within", "both"):
        terms.append(_softplus(scale * over_pairs(s, "within") + bias) / 2)
    return torch.cat(terms) / max(s.n, 1)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def simple_terms(s: TwoViews, weight: float | None, negatives: str, kept: int | None) -> Tensor:
    """Wang & Liu section 3: -positive, plus the weighted sum of the negatives, over all anchors."""
    available = s.others * (2 if negatives == "both" else 1)
    factor = 1 / max(available if kept is None else min(kept, available), 1) if weight is None else weight
    push = [factor * s.hardest(s.negatives(view, i, negatives), kept).sum() for view, i in s.anchors()]
    return torch.cat([-s.positive, *(x.view(1) / 2 for x in push)]) / max(s.n, 1)


def nt_xent(
    z0: Tensor, z1: Tensor, temperature: float, negatives: str, decoupled: bool, weights: Tensor | None = None
) -> Tensor:
    """``weights`` (2, N) multiply the positive."""
    s = TwoViews.of(unit_rows(z0), unit_rows(z1))
    loss = nt_xent_terms(s, temperature, negatives, decoupled).sum()
    return loss if weights is None else loss + positive_terms(s, temperature, weights).sum()


def vrn(z0: Tensor, z1: Tensor, delta: float, pairs: str, p: float) -> Tensor:
    return vrn_terms(TwoViews.of(unit_rows(z0), unit_rows(z1)), delta, pairs, p).sum()


def dhel_official(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    return dhel_terms(TwoViews.of(unit_rows(z0), unit_rows(z1)), temperature).sum()


def dclw_weights(z0: Tensor, z1: Tensor, sigma: float) -> list[float]:
    """Yeh et al. section 3.2."""
    exponentials = [float((dot(a, b) / sigma).exp()) for a, b in zip(unit_rows(z0), unit_rows(z1), strict=True)]
    return [2 - len(exponentials) * e / sum(exponentials) for e in exponentials]


# --- Losses by sample index, and against a queue. ---------------------------------------------------------------------------


@dataclass
class Rows:
    """Similarities (R, M) of rows to rows of known ids, themselves from ``offset`` on; or (N, K) of queries to a queue."""

    matrix: Tensor
    index: Sequence[int] = ()
    views: Sequence[int] | None = None
    offset: int = 0
    positive: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def others(self, own: int, kind: str | None) -> list[int]:
        """The keys that are a key's negatives of a kind; its positives for None."""
        found = []
        for b, label in enumerate(self.index):
            if kind is None:
                wanted = label == self.index[own] and b != own
            else:
                wanted = label != self.index[own]
                if kind != "both" and wanted:
                    wanted = (self.views[b] == self.views[own]) == (kind == "within")
            if wanted:
                found.append(b)
        return found

    def share(self) -> float:
        """All rows over these rows: what turns these rows' share of a mean over all rows into a mean."""
        return self.matrix.shape[1] / max(self.matrix.shape[0], 1)


def nt_xent_indexed_terms(s: Rows, t: float, negatives: str, decoupled: bool, positives: str) -> Tensor:
    """Khosla et al.'s L_in without its log|P|, or L_out: the mean over the anchors that have a positive and a negative.

    These rows' part of it, as a share of all rows' mean: times M/R.
    """
    terms = []
    for a, row in enumerate(s.matrix / t, s.offset):
        pos, neg = row[s.others(a, None)], row[s.others(a, negatives)]
        if not len(pos) or not len(neg):
            continue
        # Everything relative to the first positive, so that nothing is lost where the loss is small.
        first = pos[0].detach()
        positive, negative = (pos - first).exp().sum(), (neg - first).exp().sum()
        if positives == "inside":
            terms.append((negative / positive).log() if decoupled else (negative / positive).log1p())
        else:
            denominator = negative if decoupled else negative + positive
            terms.append(denominator.log() - (pos - first).mean())
    counted = sum(bool(s.others(b, None) and s.others(b, negatives)) for b in range(len(s.index)))
    return torch.stack(terms) * s.share() / counted if terms else s.matrix[0:0].sum(1)


def vrn_indexed_terms(s: Rows, delta: float, kind: str, p: float) -> Tensor:
    if kind == "both":
        return torch.cat([vrn_indexed_terms(s, delta, one, p) / 2 for one in ("cross", "within")])
    found = [row[s.others(a, kind)] for a, row in enumerate(s.matrix, s.offset)]
    counted = sum(len(s.others(b, kind)) for b in range(len(s.index)))
    return (torch.cat([s.matrix[:0].flatten(), *found]) - delta).abs() ** p * s.share() / max(counted, 1)


def queue_terms(s: Rows, t: float) -> Tensor:
    """He et al. eq. 1."""
    if not s.matrix.shape[1]:
        return s.positive[:0]
    ratios = [((row - positive) / t).exp().sum() for row, positive in zip(s.matrix, s.positive, strict=True)]
    return torch.stack([ratio.log1p() for ratio in ratios]) / len(ratios) if ratios else s.positive[:0]


def vrn_queue_terms(s: Rows, delta: float, p: float) -> Tensor:
    gaps = s.matrix.flatten() - delta
    return gaps.abs() ** p / max(len(gaps), 1)


def nt_xent_indexed(
    z: Tensor, index: list[int], views: list[int], temperature: float, negatives: str, decoupled: bool, positives: str
) -> Tensor:
    u = unit_rows(z)
    return nt_xent_indexed_terms(Rows(u @ u.T, index, views), temperature, negatives, decoupled, positives).sum()


def vrn_indexed(z: Tensor, index: list[int], views: list[int], delta: float, pairs: str, p: float) -> Tensor:
    u = unit_rows(z)
    return vrn_indexed_terms(Rows(u @ u.T, index, views), delta, pairs, p).sum()


def queue_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    q = unit_rows(query)
    return queue_terms(Rows(q @ queue.T, positive=(q * unit_rows(key)).sum(1)), temperature).sum()


def vrn_queue(query: Tensor, queue: Tensor, delta: float, p: float) -> Tensor:
    return vrn_queue_terms(Rows(unit_rows(query) @ queue.T), delta, p).sum()


# --- Batches. ---------------------------------------------------------------------------------------------------------------


def views(
    n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0, grad: bool = True
) -> tuple[Tensor, Tensor]:
    """Two views whose rows differ in length and direction, so that every term of a loss differs."""
    generator = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=generator, dtype=torch.float64) * (1 + torch.arange(n).unsqueeze(1) / n)
    z1 = 0.6 * z0 + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z0.to(dtype).requires_grad_(grad), z1.to(dtype).requires_grad_(grad)


def cluster(n: int, d: int, spread: float, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views of rows around one common direction, ``spread`` away from it."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.nn.functional.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0)
    z0, z1 = centre + spread * torch.randn(2, n, d, generator=generator, dtype=torch.float64) / d**0.5
    return z0.to(dtype), z1.to(dtype)


def exact_similarities(z0: Tensor, z1: Tensor, kind: str) -> Any:
    """Similarities of all negative pairs of one kind in extended precision, 64 bits of mantissa, as a NumPy vector."""
    u, v = (z.double().numpy().astype(np.longdouble) for z in (z0, z1))
    u, v = (x / np.sqrt((x * x).sum(axis=1, keepdims=True)) for x in (u, v))
    others = ~np.eye(len(u), dtype=bool)
    blocks = [(u, v)] if kind == "cross" else [(u, u), (v, v)]
    return np.concatenate([(a @ b.T)[others] for a, b in blocks])
