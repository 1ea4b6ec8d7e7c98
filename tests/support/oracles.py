"""Slow references: loops over scalars, straight from the papers, sharing no code with varloss.

Everything is a torch scalar in the dtype of its input (use float64), so that autograd differentiates the loops too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def unit_rows(z: Tensor) -> list[Tensor]:
    return [row / (row * row).sum().sqrt() for row in z]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def total(terms: list[Tensor]) -> Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def nt_xent(
    z0: Tensor, z1: Tensor, temperature: float, negatives: str, decoupled: bool, weights: Tensor | None = None
) -> Tensor:
    """Lee et al. Def. 3.1 with psi = log(1+x) or log x, written out. ``weights`` (2, N) multiply the positive."""
    views = [unit_rows(z0), unit_rows(z1)]
    n = len(views[0])
    losses = []
    for view in (0, 1):
        for i in range(n):
            anchor = views[view][i]
            positive = dot(anchor, views[1 - view][i]) / temperature
            denominator = [] if decoupled else [positive.exp()]
            for j in range(n):
                if j == i:
                    continue
                if negatives in ("cross", "both"):
                    denominator.append((dot(anchor, views[1 - view][j]) / temperature).exp())
                if negatives in ("within", "both"):
                    denominator.append((dot(anchor, views[view][j]) / temperature).exp())
            weight = 1.0 if weights is None else weights[view][i]
            losses.append(-weight * positive + total(denominator).log())
    return total(losses) / len(losses)


def nt_xent_indexed(
    z: Tensor, index: list[int], views: list[int], temperature: float, negatives: str, decoupled: bool, positives: str
) -> Tensor:
    u = unit_rows(z)
    losses = []
    for a in range(len(u)):
        others = [b for b in range(len(u)) if b != a]
        pos = [dot(u[a], u[b]) / temperature for b in others if index[b] == index[a]]
        neg = []
        for b in others:
            if index[b] == index[a]:
                continue
            if negatives == "within" and views[b] != views[a]:
                continue
            if negatives == "cross" and views[b] == views[a]:
                continue
            neg.append((dot(u[a], u[b]) / temperature).exp())
        if not pos or not neg:
            continue
        exponentials = [p.exp() for p in pos]
        denominator = total(neg) if decoupled else total(neg) + total(exponentials)
        numerator = total(exponentials).log() if positives == "inside" else total(pos) / len(pos)
        losses.append(denominator.log() - numerator)
    return total(losses) / len(losses) if losses else (z * 0).sum()


def queue_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    losses = []
    for q, k in zip(unit_rows(query), unit_rows(key), strict=True):
        positive = (dot(q, k) / temperature).exp()
        negative = [(dot(q, m) / temperature).exp() for m in queue]
        losses.append(-(positive / total([positive, *negative])).log())
    return total(losses) / len(losses)


def vrn(z0: Tensor, z1: Tensor, delta: float, pairs: str, p: float) -> Tensor:
    u, v = unit_rows(z0), unit_rows(z1)
    n = len(u)

    def mean(a: list[Tensor], b: list[Tensor]) -> Tensor:
        terms = [(dot(a[i], b[j]) - delta).abs() ** p for i in range(n) for j in range(n) if i != j]
        return total(terms) / len(terms)

    cross, within = mean(u, v), (mean(u, u) + mean(v, v)) / 2
    return {"cross": cross, "within": within, "both": (cross + within) / 2}[pairs]


def vrn_indexed(z: Tensor, index: list[int], views: list[int], delta: float, pairs: str, p: float) -> Tensor:
    u = unit_rows(z)
    kinds = ["cross", "within"] if pairs == "both" else [pairs]
    means = []
    for kind in kinds:
        terms = [
            (dot(u[a], u[b]) - delta).abs() ** p
            for a in range(len(u))
            for b in range(len(u))
            if index[a] != index[b] and (views[a] == views[b]) == (kind == "within")
        ]
        means.append(total(terms) / len(terms) if terms else (z * 0).sum())
    return total(means) / len(means)


def vrn_queue(query: Tensor, queue: Tensor, delta: float, p: float) -> Tensor:
    terms = [(dot(q, m) - delta).abs() ** p for q in unit_rows(query) for m in queue]
    return total(terms) / len(terms)


def dclw_weights(z0: Tensor, z1: Tensor, sigma: float) -> list[float]:
    """Yeh et al. section 3.2."""
    exponentials = [float((dot(a, b) / sigma).exp()) for a, b in zip(unit_rows(z0), unit_rows(z1), strict=True)]
    return [2 - len(exponentials) * e / sum(exponentials) for e in exponentials]


def dhel_official(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The authors' code: alignment, plus the log-sum over each view."""
    u, v = unit_rows(z0), unit_rows(z1)
    n = len(u)
    losses = []
    for i in range(n):
        inside = [total([(dot(x[i], x[j]) / temperature).exp() for j in range(n) if j != i]).log() for x in (u, v)]
        losses.append(-dot(u[i], v[i]) / temperature + total(inside))
    return total(losses) / n


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
