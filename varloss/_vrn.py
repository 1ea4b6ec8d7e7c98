"""Variance reduction of negative-pair similarities (VRN): direct, closed-form, by index, and over a queue."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from varloss import _checks, _formulas, _fused
from varloss._checks import Form, Negatives
from varloss._kernels.common import Problem
from varloss._nt_xent import IndexedRows, nt_xent
from varloss._numerics import products, unit, wide, widest


def vrn(
    z0: Tensor,
    z1: Tensor,
    *,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Negatives = "cross",
    exponent: float = 2,
    form: Form = "auto",
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""Variance auxiliary loss: pulls the similarity of every negative pair to the value of the full-batch optimum.

    .. math:: \frac{1}{N(N-1)} \sum_{i \ne j} |S_{ij} - \delta|^p, \qquad \delta = -\frac{1}{n-1}

    for ``pairs="cross"``, :math:`S_{ij} = u_i \cdot v_j`; ``"within"`` takes the mean over the pairs inside view 0 and inside
    view 1, ``"both"`` half of each. For p = 2 it is the population variance of the negative similarities plus the square
    of their mean's distance from :math:`\delta`. The naive program::

        s = normalize(z0) @ normalize(z1).T
        loss = (s[~eye(N, dtype=bool)] - delta).pow(2).mean()

    For p = 2 there is a closed form with O(N D^2) work and O(D^2) memory,
    :math:`\sum_{i,j}(S_{ij}-\delta)^2 = \langle U^\top U, V^\top V\rangle_F - 2\delta\,(\sum_i u_i)\cdot(\sum_j v_j) + N^2\delta^2`,
    less the N diagonal terms. It is used where it is cheaper, N > 2 D. Its error is a few eps of the value plus a few
    eps/(N-1), which counts where the value is tiny: the final difference is taken in float64.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1.
        num_samples: n, the number of TRAINING samples (not the batch), at least 2. Give this or ``target``.
        target: :math:`\delta` itself, in [-1, 1].
        pairs: which negative pairs. Cross alone with a large weight can destroy alignment when D < n - 1: shrinking
            :math:`S_{ij}` is cheapest by moving the views into different subspaces. ``"both"`` does not.
        exponent: p >= 1.
        form: ``"dense"`` (N x N), ``"closed"`` (p = 2 only), or ``"auto"``, by cost.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar, at least float32, also under autocast; not multiplied by a weight (see ``VRNRegularizer``).

    Raises:
        TypeError, ValueError: as :func:`nt_xent`; for neither or both of ``num_samples`` and ``target``; for the closed
            form of p != 2.

    At the edge: 0 where every negative similarity is :math:`\delta`; rounding leaves up to some 1e-6 in fp32, in the closed
    form also below 0. Finite, not 0, for collapsed embeddings.

    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 5.7; the closed form is this package's own.
    """
    _checks.two_views(z0, z1, keys, offset)
    _checks.one_of(pairs, _checks.KINDS, "pairs")
    _checks.one_of(form, ("auto", "dense", "closed"), "form")
    delta, p = _checks.delta(num_samples, target), _checks.exponent(exponent)
    if form == "closed" and p != 2:
        raise ValueError(f"the closed form needs exponent 2; got {exponent}. Use form='dense' or 'auto'.")
    if check:
        _checks.rows_are_sound(z0=z0, z1=z1)
    rows, total = z0.shape[0], z0.shape[0] if keys is None else keys[0].shape[0]
    closed = form == "closed" or (form == "auto" and p == 2 and _closed_is_cheaper(rows, total, z0.shape[1]))
    # One step of autograd; torch.compile fuses what it sees well enough, and an operator would hide it.
    if p == 2 and keys is None and not torch.compiler.is_compiling():
        dense = partial(_of_inputs, delta, pairs, closed)
        return _fused.vrn(z0, z1, Problem(1.0, pairs, True, 1.0, delta, pairs), closed=closed, dense=dense)
    return _formulas.vrn(z0, z1, delta, p, pairs, closed=closed, keys=keys, offset=offset)


def _of_inputs(delta: float, pairs: Negatives, closed: bool, inputs: _fused.Inputs) -> Tensor:
    return _formulas.vrn(inputs[0], inputs[1], delta, 2, pairs, closed=closed)


def nt_xent_with_vrn(
    z0: Tensor,
    z1: Tensor,
    *,
    weight: float,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Negatives = "cross",
    temperature: float | Tensor = 0.5,
    negatives: Negatives = "both",
    decoupled: bool = False,
    form: _fused.Form = "auto",
    check: bool = False,
) -> Tensor:
    r"""NT-Xent plus ``weight`` times VRN: their sum, from one computation of the similarities.

    .. math:: L_\text{NT-Xent} + \text{weight} \cdot \frac{1}{N(N-1)} \sum_{i \ne j} (S_{ij} - \delta)^2

    The program it equals::

        loss = nt_xent(z0, z1, temperature=t, negatives=negatives, decoupled=decoupled)
        loss = loss + weight * vrn(z0, z1, num_samples=n, pairs=pairs)

    VRN's derivative by a similarity the loss has computed is one addition, so that the sum costs little more than NT-Xent
    alone. Where the loss does not look at VRN's pairs (``negatives="cross"`` with ``pairs="within"``, say), where it takes the
    dense form, and under torch.compile, the two terms are computed one after the other.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1.
        weight: factor on VRN, see ``VRNRegularizer``.
        num_samples: n, the number of training samples; or
        target: the target similarity.
        pairs: which negative pairs VRN takes.
        temperature: as :func:`nt_xent`.
        negatives: which negatives NT-Xent takes.
        decoupled: as :func:`nt_xent`.
        form: as :func:`nt_xent`.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar, as :func:`nt_xent`.

    Raises:
        TypeError, ValueError: as :func:`nt_xent` and :func:`vrn`, and for a weight that is negative or not finite.

    At the edge: as the two functions. Rows of several ranks are not its business: add an all-reduced VRN there.

    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 5.7.
    """
    # To torch.compile a weight that changes, as in a warm-up, is a symbol: its value cannot be looked at, and as a constant
    # of an operator it would cost a compilation each time.
    compiling = torch.compiler.is_compiling()
    if not compiling:
        weight = _checks.weight(weight)
    delta = _checks.delta(num_samples, target)
    _checks.one_of(pairs, _checks.KINDS, "pairs")
    _checks.two_views(z0, z1, None, 0)
    options: dict[str, Any] = {"negatives": negatives, "decoupled": decoupled, "form": form, "check": check}
    if (
        compiling
        or weight == 0
        or form == "dense"
        or isinstance(temperature, Tensor)
        or not _fused.can_fuse(negatives, pairs)
    ):
        # Widened once: the two terms' gradients are summed before they are rounded to half precision.
        z0, z1 = wide(z0), wide(z1)
        loss = nt_xent(z0, z1, temperature=temperature, **options)
        return loss if weight == 0 else loss + weight * vrn(z0, z1, target=delta, pairs=pairs)
    _checks.one_of(negatives, _checks.KINDS, "negatives")
    _checks.one_of(form, _fused.FORMS, "form")
    _checks.temperature(temperature)
    if check:
        _checks.rows_are_sound(z0=z0, z1=z1)
    problem = Problem(float(temperature), negatives, decoupled, weight, delta, pairs)
    return _fused.nt_xent(z0, z1, problem, form)


def _closed_is_cheaper(rows: int, columns: int, dim: int) -> bool:
    """Two D x D Gram matrices against one N x M product: (N + M) D^2 < N M D."""
    return (rows + columns) * dim < rows * columns


def vrn_moments(z0: Tensor, z1: Tensor, *, pairs: Negatives = "cross") -> Tensor:
    """Sums over this rank's rows from which :func:`vrn_from_moments` computes VRN: add them over ranks.

    Args:
        z0: (N, D) projections of view 0.
        z1: (N, D) projections of view 1. A rank may have one sample, or another number than the others.
        pairs: which negative pairs.

    Returns:
        A (2 D^2 + 2 D + 5,) vector: both Gram matrices, both sums, sum and sum of squares of the skipped similarities
        (for cross and within pairs), and N. Its size does not depend on N.

    Raises:
        TypeError, ValueError: as :func:`vrn`.
    """
    _checks.embeddings(z0=z0, z1=z1)
    _checks.same_precision(z0=z0, z1=z1)
    if z0.shape != z1.shape:
        raise ValueError(f"z0 and z1 must have the same shape; got {tuple(z0.shape)} and {tuple(z1.shape)}.")
    _checks.one_of(pairs, _checks.KINDS, "pairs")
    u, v = unit(z0), unit(z1)
    first, second = _formulas.Moments.of(u), _formulas.Moments.of(v)
    cross = (u * v).sum(dim=1)
    within = torch.cat([u, v]).square().sum(dim=1)
    skipped = torch.stack([cross.sum(), cross.square().sum(), within.sum(), within.square().sum()])
    count = u.new_full((1,), u.shape[0])
    return torch.cat([first.gram.flatten(), second.gram.flatten(), first.sum, second.sum, skipped, count])


def vrn_from_moments(
    moments: Tensor,
    dim: int,
    *,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Negatives = "cross",
) -> Tensor:
    """VRN (exponent 2) of all the rows whose :func:`vrn_moments` were added up.

    Args:
        moments: the sum over ranks of :func:`vrn_moments`.
        dim: D.
        num_samples: n, the number of training samples; or
        target: the target similarity.
        pairs: which negative pairs.

    Returns:
        A scalar: ``vrn`` of the concatenated batch, to a few eps of the value plus a few eps/(N-1).

    Raises:
        ValueError: for a vector of the wrong length, and as :func:`vrn`.

    At the edge: a global batch of one sample has no negatives; the result is 0, attached to the graph.
    """
    _checks.one_of(pairs, _checks.KINDS, "pairs")
    delta = _checks.delta(num_samples, target)
    sizes = [dim * dim, dim * dim, dim, dim, 4, 1]
    if moments.shape != (sum(sizes),):
        raise ValueError(f"moments of dimension {dim} have shape ({sum(sizes)},); got {tuple(moments.shape)}.")
    gram0, gram1, sum0, sum1, skipped, count = torch.split(widest(moments), sizes)
    n = count.squeeze(0)
    first, second = _formulas.Moments(gram0, sum0, n), _formulas.Moments(gram1, sum1, n)

    def without(total: Tensor, one: Tensor, square: Tensor, terms: Tensor) -> Tensor:
        return total - (square - 2 * delta * one + delta**2 * terms)

    negatives = (n * (n - 1)).clamp_min(1)
    cross = without(first.squared_gaps(second, delta), skipped[0], skipped[1], n) / negatives
    inside = first.squared_gaps(first, delta) + second.squared_gaps(second, delta)
    within = without(inside, skipped[2], skipped[3], 2 * n) / (2 * negatives)
    value = {"cross": cross, "within": within, "both": (cross + within) / 2}[pairs]
    return value.to(moments.dtype)


def vrn_indexed(
    z: Tensor,
    index: Tensor,
    *,
    views: Tensor | None = None,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Negatives = "cross",
    exponent: float = 2,
    keys: Tensor | None = None,
    keys_index: Tensor | None = None,
    keys_views: Tensor | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""VRN by sample index: rows that share an index (crops, duplicates, one label) are not negatives.

    .. math:: \frac{1}{|Q|}\sum_{(a, b) \in Q} |s_{ab} - \delta|^p, \qquad Q = \{(a, b): \text{index}_a \ne \text{index}_b\}

    where Q keeps the pairs of different views (``"cross"``), of one view (``"within"``); ``"both"`` averages the two. The
    naive program, for cross pairs::

        s = normalize(z) @ normalize(z).T
        loss = (s - delta).abs().pow(p)[(index[:, None] != index) & (views[:, None] != views)].mean()

    Args:
        z: (R, D) projections of all crops.
        index: (R,) integers: sample or label of each row.
        views: (R,) integers: view of each row.
        num_samples: n, the number of training samples (of classes, where ``index`` holds labels); or
        target: the target similarity.
        pairs: which pairs of views.
        exponent: p >= 1.
        keys: (M, D) rows of all ranks, that contain this rank's.
        keys_index: (M,) indices of ``keys``; given with ``keys``.
        keys_views: (M,) views of ``keys``; given with ``keys``.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises).

    Returns:
        A scalar. Under ranks of equal size the mean over ranks is the single-process value; under others, of values times
        ``distributed.share``.

    Raises:
        TypeError, ValueError: as :func:`vrn`, and for ids of the wrong shape or dtype or missing views.

    At the edge: a kind of pair that does not occur contributes 0, attached to the graph.

    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 5.7.
    """
    _checks.embeddings(z=z)
    _checks.one_of(pairs, _checks.KINDS, "pairs")
    delta, p = _checks.delta(num_samples, target), _checks.exponent(exponent)
    kinds: tuple[Negatives, ...] = ("cross", "within") if pairs == "both" else (pairs,)
    ids = [
        IndexedRows(z, index, views, keys=keys, keys_index=keys_index, keys_views=keys_views, offset=offset, kind=kind)
        for kind in kinds
    ]
    if check:
        _checks.rows_are_sound(z=z)
    u = unit(z)
    cost = _formulas.power(products(u, u if keys is None else unit(keys)) - delta, p)
    terms = [rows.mean_over_pairs(cost.masked_fill(~rows.negative, 0).sum()) for rows in ids]
    return torch.stack(terms).mean()


def vrn_queue(
    query: Tensor,
    queue: Tensor,
    *,
    num_samples: int | None = None,
    target: float | None = None,
    exponent: float = 2,
    valid: Tensor | None = None,
    check: bool = False,
) -> Tensor:
    r"""VRN of queries against a queue of past keys.

    .. math:: \frac{1}{N K}\sum_{i,k} |q_i \cdot m_k - \delta|^p

    The gradient goes to the query alone. That is why no adapter uses it by default: with the gradient on one side, queries
    are pushed away from keys that follow them, and in half of our runs of MoCo with keys on the other side every embedding
    ended up the same (``benchmarks/results/moco-one-sided``). Prefer :func:`vrn` between two views of the query encoder.
    The naive program::

        loss = (normalize(query) @ queue[valid].T - delta).abs().pow(p).mean()

    Args:
        query: (N, D) projections.
        queue: (K, D) past keys of unit length, used as they are, without gradient.
        num_samples: n, the number of training samples; or
        target: the target similarity.
        exponent: p >= 1.
        valid: (K,) booleans: the slots that hold a key. All by default.
        check: look at the values too (synchronises).

    Returns:
        A scalar; 0, attached to the graph, while no slot is valid.

    Raises:
        TypeError, ValueError: as :func:`vrn`, and for a queue of another dimension.
    """
    _checks.embeddings(query=query, queue=queue)
    delta, p = _checks.delta(num_samples, target), _checks.exponent(exponent)
    keep = valid_slots(valid, queue)
    if check:
        _checks.rows_are_sound(query=query)
    q, memory = unit(query), wide(queue.detach()).to(wide(query).dtype)
    pairs = q.shape[0] * keep.sum().clamp_min(1)
    if p == 2 and _closed_is_cheaper(*query.shape[:1], *queue.shape):
        kept = memory * keep.unsqueeze(1)
        total = _formulas.Moments.of(q).squared_gaps(_formulas.Moments.of(kept, keep.sum()), delta)
        return (total / pairs).to(q.dtype)
    gap = (products(q, memory) - delta).masked_fill(~keep, 0)
    return _formulas.power(gap, p).sum() / pairs


def valid_slots(valid: Tensor | None, queue: Tensor) -> Tensor:
    """(K,) mask of the slots of ``queue`` that hold a key: ``valid``, checked, or all."""
    if valid is None:
        return torch.ones(queue.shape[0], dtype=torch.bool, device=queue.device)
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"valid must be a boolean tensor; got {getattr(valid, 'dtype', type(valid).__name__)}.")
    if valid.shape != queue.shape[:1]:
        raise ValueError(f"valid must have one entry for each of the {queue.shape[0]} slots; got {tuple(valid.shape)}.")
    return valid
