"""NT-Xent and its relatives: which negatives, and whether the positive pair stands in the denominator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from varloss import _checks, _formulas, _fused
from varloss._checks import Negatives
from varloss._fused import Form
from varloss._kernels.common import Problem
from varloss._numerics import (
    group_sizes,
    joint_labels,
    masked_logsumexp,
    own_columns,
    products,
    unit,
    wide,
)

Positives = Literal["inside", "outside"]


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    negatives: Negatives = "both",
    decoupled: bool = False,
    positive_weight: float | Tensor | None = None,
    hard_fraction: float | None = None,
    hard_count: int | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    form: Form = "auto",
    check: bool = False,
) -> Tensor:
    r"""The normalised-temperature cross entropy of two views, with a choice of negatives.

    With unit rows :math:`u_i, v_i`, :math:`S_{ij} = u_i \cdot v_j`, :math:`A_{ij} = u_i \cdot u_j`, the anchors of view 0 give

    .. math:: -S_{ii}/t + \log\Big([e^{S_{ii}/t}] + \sum_{j \ne i} e^{S_{ij}/t} + \sum_{j \ne i} e^{A_{ij}/t}\Big)

    and the loss is the mean over these and the anchors of view 1. ``negatives`` picks the sums, ``decoupled`` drops the
    bracket. The six cells have names: InfoNCE or CLIP (cross), NT-Xent of SimCLR (both), DCL (both, decoupled), DHEL in the
    scale of Lee et al. (within, decoupled).

    The naive program it equals, for ``negatives="both", decoupled=False``::

        z = normalize(cat([z0, z1]))
        logits = (z @ z.T / temperature).fill_diagonal_(-inf)
        loss = cross_entropy(logits, cat([arange(N, 2 * N), arange(N)]))

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1; row i is the positive of row i of ``z0``.
        temperature: divides the cosine similarities; a 0-dim tensor where it is learned. One below 0 is taken as it is, and
            turns the loss around: it pulls negatives together.
        negatives: ``"cross"`` the other samples in the other view, ``"within"`` in the anchor's own view, ``"both"``.
        decoupled: leaves the positive pair out of the denominator.
        positive_weight: factor on the positive term alone: a number, (N,) for both views' anchors, or (2, N).
        hard_fraction: keep, for each anchor, only this upper share, in (0, 1], of its negatives (rounded up): the hard
            contrastive loss. The rest gets no gradient; negatives that tie with the last one kept stay.
        hard_count: or keep this many.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's. Anchors stay local.
        offset: row of ``keys`` where this rank's rows start.
        form: ``"dense"`` keeps the similarity matrix for the backward pass; ``"tiled"`` computes the gradient along with
            the value, tile by tile, in memory linear in N. ``"auto"`` is the fused computation too, the whole matrix at
            once where the batch is small, and dense where an option needs it: a temperature that is a tensor, or hard
            negatives.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar in nats, float64 for float64 input and float32 otherwise, also under autocast. The mean over local
        anchors: averaged over ranks of equal size it is the single-process value, and over others where each is multiplied
        by ``distributed.share``, as the modules do.

    Raises:
        TypeError: for what is not a floating-point tensor or not a number.
        ValueError: for shapes, devices or options that do not fit, temperature 0, or one sample without gathered keys.

    At the edge: a zero row has similarity 0 to everything and gets a zero gradient; so does, without a word unless
    ``check``, a row whose length leaves the range of fp32 (below 1.2e-38 or above 3.4e38). The loss of a perfectly
    separated batch underflows to 0 gracefully, without cancellation. The backward pass with ``create_graph=True`` takes the
    dense formula whatever ``form`` says. The transforms of ``torch.func`` are not supported.

    Sources: Chen et al. 2020 (SimCLR, arXiv 2002.05709) eq. 1; Yeh et al. 2022 (DCL, arXiv 2110.06848) eq. 6; Lee et al.
    2025 (arXiv 2506.09781) Def. 3.1; Wang & Liu 2021 (arXiv 2012.09740) section 3 for hard negatives.
    """
    _checks.two_views(z0, z1, keys, offset)
    _checks.one_of(negatives, _checks.KINDS, "negatives")
    _checks.temperature(temperature)
    _checks.one_of(form, _fused.FORMS, "form")
    if check:
        _checks.rows_are_sound(z0=z0, z1=z1)
    needs_dense = {
        "a temperature that is a tensor": isinstance(temperature, Tensor),
        "hard negatives": hard_fraction is not None or hard_count is not None,
    }
    if form != "dense" and not isinstance(temperature, Tensor) and not any(needs_dense.values()):
        problem = Problem(float(temperature), negatives, decoupled)
        if positive_weight is None:
            return _fused.nt_xent(z0, z1, problem, form, keys=keys, offset=offset)
        # The loss is affine in the weight. Widened once: half-precision gradients are summed before they are rounded.
        z0, z1 = wide(z0), wide(z1)
        loss = _fused.nt_xent(z0, z1, problem, form, keys=keys, offset=offset)
        return loss + _formulas.lighter(positive_weight, (unit(z0) * unit(z1)).sum(dim=1) / temperature).mean()
    if form == "tiled":
        reasons = [name for name, needed in needs_dense.items() if needed]
        raise ValueError(f"form='tiled' does not go with {' and '.join(reasons)}; use form='dense' or 'auto'.")

    return _formulas.nt_xent(
        z0,
        z1,
        temperature=temperature,
        negatives=negatives,
        decoupled=decoupled,
        positive_weight=positive_weight,
        hard_fraction=hard_fraction,
        hard_count=hard_count,
        keys=keys,
        offset=offset,
    )


def nt_xent_indexed(
    z: Tensor,
    index: Tensor,
    *,
    views: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    negatives: Negatives = "both",
    decoupled: bool = False,
    positives: Positives = "inside",
    keys: Tensor | None = None,
    keys_index: Tensor | None = None,
    keys_views: Tensor | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""NT-Xent by sample index: several crops of an image, duplicates in a batch, or labels in place of indices.

    Rows with the same index are positives of each other, rows with different indices are negatives. For anchor a with
    positives P and chosen negatives Q, similarities :math:`s`, and the bracket absent when ``decoupled``:

    .. math::
        \text{inside: } -\log\sum_{p \in P} e^{s_p/t} + \log\Big(\Big[\sum_{p \in P} e^{s_p/t}\Big] + \sum_{q \in Q} e^{s_q/t}\Big)

    .. math::
        \text{outside: } -\frac{1}{|P|}\sum_{p \in P} s_p/t + \log\Big(\Big[\sum_{p \in P} e^{s_p/t}\Big] + \sum_{q \in Q} e^{s_q/t}\Big)

    The naive program, for ``positives="inside"`` and ``negatives="both"`` (solo-learn's ``simclr_loss_func``)::

        sim = exp(normalize(z) @ normalize(z).T / temperature)
        pos = (sim * ((index == index[:, None]) & ~eye(R))).sum(1)
        loss = -log(pos / (pos + (sim * (index != index[:, None])).sum(1))).mean()

    With two crops and distinct indices both forms are :func:`nt_xent`.

    Args:
        z: (R, D) projections of all crops, of any length.
        index: (R,) integers: the sample each row belongs to, or its label (supervised contrastive learning).
        views: (R,) integers: the view each row belongs to. Needed unless ``negatives="both"``.
        temperature: divides the cosine similarities.
        negatives: ``"cross"`` rows of other samples in other views, ``"within"`` in the anchor's own view, ``"both"``.
        decoupled: leaves the positives out of the denominator.
        positives: where the sum over positives stands: ``"inside"`` or ``"outside"`` the logarithm (Khosla et al.'s
            L_in, here without its constant log|P|, and L_out).
        keys: (M, D) rows of all ranks, that contain this rank's.
        keys_index: (M,) indices of ``keys``; given with ``keys``.
        keys_views: (M,) views of ``keys``; given with ``keys`` where ``views`` is.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises): raises for rows that are zero or not finite and for anchors without
            positives or negatives.

    Returns:
        A scalar in nats, the mean over the anchors that have a positive and a negative. Under ranks of equal size the
        mean over ranks is the single-process value, also where the ranks differ in how many anchors count; under others,
        of values times ``distributed.share``.

    Raises:
        TypeError, ValueError: as :func:`nt_xent`, and for ids of the wrong shape or dtype.

    At the edge: an anchor without a positive or without a negative contributes 0 and leaves the mean; where none is left
    the result is 0, attached to the graph.

    Sources: Khosla et al. 2020 (SupCon, arXiv 2004.11362) eqs. 2 and 3; Lee et al. 2025 (arXiv 2506.09781) Def. 3.1.
    """
    _checks.embeddings(z=z)
    _checks.one_of(negatives, _checks.KINDS, "negatives")
    _checks.one_of(positives, ("inside", "outside"), "positives")
    _checks.temperature(temperature)
    rows = IndexedRows(
        z, index, views, keys=keys, keys_index=keys_index, keys_views=keys_views, offset=offset, kind=negatives
    )
    if check:
        _checks.rows_are_sound(z=z)
        rows.raise_for_lonely_anchors()
    u = unit(z)
    logits = products(u / temperature, u if keys is None else unit(keys))
    log_negatives, has_negative = masked_logsumexp(logits, rows.negative)
    log_positives, has_positive = masked_logsumexp(logits, rows.positive)
    if positives == "inside":
        loss = _formulas.excess(log_negatives, log_positives, decoupled)
    else:
        count = rows.positive.sum(dim=1).clamp_min(1)
        mean_positive = logits.masked_fill(~rows.positive, 0).sum(dim=1) / count
        denominator = log_negatives if decoupled else torch.logaddexp(log_negatives, log_positives)
        loss = denominator - mean_positive
    loss = loss.masked_fill(~(has_negative & has_positive), 0)
    return rows.mean_over_anchors(loss.sum())


class IndexedRows:
    """Which pairs of anchor row and key row are positives and negatives, from ids alone.

    ``negative`` and ``positive`` are (R, M) masks. Counts over ALL ranks' rows come from sorted ids, so that a rank
    knows its share of the global mean without another collective.
    """

    def __init__(
        self,
        z: Tensor,
        index: Tensor,
        views: Tensor | None,
        *,
        keys: Tensor | None,
        keys_index: Tensor | None,
        keys_views: Tensor | None,
        offset: int,
        kind: Negatives,
    ) -> None:
        index = _checks.ids("index", index, z, "z")
        views = _known_views(views, z, "views", "z", kind)
        if keys is None:
            if offset != 0 or keys_index is not None or keys_views is not None:
                raise ValueError("offset, keys_index and keys_views describe keys: give them with keys only.")
            keys, keys_index, keys_views = z, index, views
        else:
            _checks.embeddings(z=z, keys=keys)
            _checks.same_precision(z=z, keys=keys)
            keys_index = _checks.ids("keys_index", keys_index, keys, "keys")
            keys_views = _known_views(keys_views, keys, "keys_views", "keys", kind)
            _checks.rows_inside(z.shape[0], keys.shape[0], offset)
        if z.shape[0] == 0:
            raise ValueError("z is empty: a batch needs at least one row.")
        if keys.shape[0] < 2:
            raise ValueError("one row has neither positives nor negatives: give at least 2 rows (or gathered keys).")

        self._rows, self._total = z.shape[0], keys.shape[0]
        self._kind = kind
        self._keys_index, self._keys_views = keys_index, keys_views
        same_sample = index.unsqueeze(1) == keys_index
        self.positive = same_sample & ~own_columns(self._rows, self._total, offset, z.device)
        self.negative = ~same_sample
        if views is not None and keys_views is not None and kind != "both":
            same_view = views.unsqueeze(1) == keys_views
            self.negative = self.negative & (same_view if kind == "within" else ~same_view)

    def negatives_of_each_key(self) -> Tensor:
        """(M,) number of negatives that each row of all ranks has."""
        same_sample = group_sizes(self._keys_index)
        if self._keys_views is None or self._kind == "both":
            return self._total - same_sample
        same_view = group_sizes(self._keys_views)
        same_both = group_sizes(joint_labels(self._keys_index, self._keys_views))
        within = same_view - same_both
        return within if self._kind == "within" else self._total - same_sample - within

    def mean_over_anchors(self, total: Tensor) -> Tensor:
        """``total`` over this rank's share, R/M, of the number of anchors in the global mean; at least that of one."""
        counts = (self.negatives_of_each_key() > 0) & (group_sizes(self._keys_index) > 1)
        return self._mean(total, counts)

    def mean_over_pairs(self, total: Tensor) -> Tensor:
        """``total`` over this rank's share, R/M, of the number of negative pairs in the global mean; at least that of one."""
        return self._mean(total, self.negatives_of_each_key())

    def _mean(self, total: Tensor, counts: Tensor) -> Tensor:
        # The ratio multiplies ``total`` and not the count: an integer tensor times a float is fp32 even among float64.
        return total * (self._total / self._rows) / counts.sum().clamp_min(1)

    def raise_for_lonely_anchors(self) -> None:
        """``check=True``: raises where an anchor has no positive or no negative. Synchronises with the device."""
        for name, mask in (("positive", self.positive), ("negative", self.negative)):
            lonely = int((~mask.any(dim=1)).sum())
            if lonely:
                raise ValueError(f"{lonely} of {self._rows} anchors have no {name}.")


def _known_views(views: Tensor | None, z: Tensor, name: str, z_name: str, kind: Negatives) -> Tensor | None:
    if views is None:
        if kind != "both":
            raise ValueError(f"{name} must be given to tell {kind!r} pairs apart; only 'both' does without.")
        return None
    return _checks.ids(name, views, z, z_name)


def dclw_weights(
    z0: Tensor,
    z1: Tensor,
    *,
    sigma: float = 0.5,
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Negative von Mises-Fisher weights of DCLW's positive term.

    .. math:: w_i = 2 - M \operatorname{softmax}_i(S_{ii}/\sigma)

    over the M samples of the whole batch, without gradient: pass them to :func:`nt_xent` as ``positive_weight``. The naive
    program::

        w = 2 - N * softmax((normalize(z0) * normalize(z1)).sum(1) / sigma, 0)

    Args:
        z0: (N, D) projections of view 0.
        z1: (N, D) projections of view 1.
        sigma: temperature of the weights.
        keys: rows of all ranks for the two views, each (M, D): the softmax runs over the global batch.
        offset: row of ``keys`` where this rank's rows start.

    Returns:
        (N,) weights that average to 1 over the global batch; no gradient.

    Raises:
        TypeError, ValueError: as :func:`nt_xent`.

    At the edge: with identical similarities every weight is 1, which is DCL.

    Source: Yeh et al. 2022 (arXiv 2110.06848) section 3.2.
    """
    _checks.two_views(z0, z1, keys, offset)
    _checks.positive("sigma", sigma)
    with torch.no_grad():
        k0, k1 = (z0, z1) if keys is None else keys
        positive = (unit(k0) * unit(k1)).sum(dim=1)
        weights = 2 - positive.shape[0] * torch.softmax(positive / sigma, dim=0)
        return weights[offset : offset + z0.shape[0]]


def dhel(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    scale: Literal["paper", "official"] = "paper",
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""Decoupled hyperspherical energy loss, in either of the two scales in circulation.

    .. math:: \frac{1}{N}\sum_i -S_{ii}/t + c \log\sum_{j \ne i} e^{A_{ij}/t} + c \log\sum_{j \ne i} e^{B_{ij}/t}

    with c = 1/2 for ``scale="paper"`` (Lee et al. and their code: this is ``nt_xent(negatives="within",
    decoupled=True)``) and c = 1 for ``scale="official"`` (the authors of DHEL). They weigh alignment differently; no constant
    factor turns one into the other. The naive program, official scale::

        u, v = normalize(z0), normalize(z1)
        a, b = ((x @ x.T / temperature).fill_diagonal_(-inf) for x in (u, v))
        loss = (-(u * v).sum(1) / temperature + a.logsumexp(1) + b.logsumexp(1)).mean()

    Args, returns, errors and edges as :func:`nt_xent`.

    Sources: Koromilas et al. 2024 (arXiv 2405.18045); Lee et al. 2025 (arXiv 2506.09781) Def. 3.1.
    """
    _checks.one_of(scale, ("paper", "official"), "scale")
    # 2 (-S/2t + mean of the two log-sums) is the official scale: half the weight on the positive, then twice the whole.
    factor = 1.0 if scale == "paper" else 2.0
    loss = nt_xent(
        z0,
        z1,
        temperature=temperature,
        negatives="within",
        decoupled=True,
        positive_weight=None if scale == "paper" else 1 / factor,
        keys=keys,
        offset=offset,
        check=check,
    )
    return factor * loss
