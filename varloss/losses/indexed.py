"""Losses by sample index: several crops of an image, duplicates in a batch, or labels in place of indices."""

from typing import Literal

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import group_sizes, joint_labels, masked_logsumexp, own_columns, products, unit
from varloss._core.pairs import PAIRS, Pairs
from varloss._kernels import dense
from varloss.distributed import GatheredRows

Positives = Literal["inside", "outside"]


def nt_xent_indexed(
    z: Tensor,
    index: Tensor,
    *,
    views: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    negatives: Pairs = "both",
    decoupled: bool = False,
    positives: Positives = "inside",
    gathered: GatheredRows | None = None,
    check: bool = False,
) -> Tensor:
    r"""NT-Xent by sample index: several crops of an image, duplicates in a batch, or labels in place of indices.

    Rows with the same index are positives of each other, rows with different indices are negatives. For anchor a with
    positives P and chosen negatives Q, similarities :math:`s`, and the bracket absent when ``decoupled``:

    .. math::
        \text{inside: } -\log\sum_{p \in P} e^{s_p/t} + \log\Big(\Big[\sum_{p \in P} e^{s_p/t}\Big] + \sum_{q \in Q} e^{s_q/t}\Big)

    .. math::
        \text{outside: } -\frac{1}{|P|}\sum_{p \in P} s_p/t + \log\Big(\Big[\sum_{p \in P} e^{s_p/t}\Big] + \sum_{q \in Q} e^{s_q/t}\Big)

    Equivalent to, for ``positives="inside"`` and ``negatives="both"`` (solo-learn's ``simclr_loss_func``)::

        sim = exp(normalize(z) @ normalize(z).T / temperature)
        pos = (sim * ((index == index[:, None]) & ~eye(R))).sum(1)
        loss = -log(pos / (pos + (sim * (index != index[:, None])).sum(1))).mean()

    With two crops and distinct indices both forms are :func:`nt_xent`.

    Args:
        z: (R, D) projections of all crops, of any length.
        index: (R,) integers: the sample each row belongs to, or its label (supervised contrastive learning).
        views: (R,) integers: the view each row belongs to. Needed unless ``negatives="both"``.
        temperature: as :func:`nt_xent`.
        negatives: ``"cross"`` rows of other samples in other views, ``"within"`` in the anchor's own view, ``"both"``.
        decoupled: leaves the positives out of the denominator.
        positives: where the sum over positives stands: ``"inside"`` or ``"outside"`` the logarithm (Khosla et al.'s
            L_in, here without its constant log|P|, and L_out).
        gathered: rows of all ranks with their ids, see :func:`varloss.distributed.gather_rows`. Anchors stay local.
        check: as :func:`nt_xent`; raises for anchors without positives or negatives too.

    Returns a scalar in nats, the mean over the anchors that have a positive and a negative. With ``gathered``, the mean over
    ranks of the results is the value of one process on all rows, also where ranks differ in how many anchors count.
    Raises as :func:`nt_xent`, and TypeError or ValueError for ids of the wrong dtype or shape.
    Edge cases: an anchor without a positive or without a negative contributes 0 and leaves the mean; where none is left
    the result is 0, attached to the graph.
    Sources: Khosla et al. 2020 (SupCon, arXiv 2004.11362) eqs. 2 and 3; Lee et al. 2025 (arXiv 2506.09781) Def. 3.1.

    Example:
        >>> import torch, varloss
        >>> z, labels = torch.randn(6, 16), torch.tensor([0, 0, 1, 1, 2, 2])
        >>> loss = varloss.functional.nt_xent_indexed(z, labels, temperature=0.1, positives="outside")
    """
    checks.embeddings(z=z)
    checks.one_of(negatives, PAIRS, "negatives")
    checks.one_of(positives, ("inside", "outside"), "positives")
    temperature = checks.temperature(temperature)
    rows = IndexedRows(z, index, views, gathered, negatives)
    if check:
        checks.rows_are_sound(z=z)
        rows.require_pairs()
    u = unit(z)
    logits = products(u / temperature, u if gathered is None else unit(gathered.keys))
    log_negatives, has_negative = masked_logsumexp(logits, rows.negative)
    positive = rows.positive()
    log_positives, has_positive = masked_logsumexp(logits, positive)
    if positives == "inside":
        loss = dense.excess(log_negatives, log_positives, decoupled)
    else:
        count = positive.sum(dim=1).clamp_min(1)
        mean_positive = logits.masked_fill(~positive, 0).sum(dim=1) / count
        denominator = log_negatives if decoupled else torch.logaddexp(log_negatives, log_positives)
        loss = denominator - mean_positive
    loss = loss.masked_fill(~(has_negative & has_positive), 0)
    return rows.mean(loss.sum(), rows.counted_anchors())


def vrn_indexed(
    z: Tensor,
    index: Tensor,
    *,
    views: Tensor | None = None,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Pairs = "cross",
    exponent: float = 2,
    gathered: GatheredRows | None = None,
    check: bool = False,
) -> Tensor:
    r"""VRN by sample index: rows that share an index (crops, duplicates, one label) are not negatives.

    .. math:: \frac{1}{|Q|}\sum_{(a, b) \in Q} |s_{ab} - \delta|^p, \qquad Q = \{(a, b): \text{index}_a \ne \text{index}_b\}

    where Q keeps the pairs of different views (``"cross"``) or of one view (``"within"``); ``"both"`` averages the two.
    Equivalent to, for cross pairs::

        s = normalize(z) @ normalize(z).T
        loss = (s - delta).abs().pow(p)[(index[:, None] != index) & (views[:, None] != views)].mean()

    Args:
        z, index, views, gathered: as :func:`nt_xent_indexed`.
        num_samples, target, exponent, check: as :func:`vrn`; n counts classes where ``index`` holds labels.
        pairs: which pairs of views; all three choices need ``views``.

    Returns a scalar. With ``gathered``, the mean over ranks of the results is the value of one process on all rows.
    Raises as :func:`vrn`, and for ids of the wrong shape or dtype or missing views.
    Edge cases: a kind of pair that does not occur contributes 0, attached to the graph.
    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 5.7.

    Example:
        >>> import torch, varloss
        >>> z, index, views = torch.randn(6, 16), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> loss = varloss.functional.vrn_indexed(z, index, views=views, num_samples=50_000)
    """
    checks.embeddings(z=z)
    checks.one_of(pairs, PAIRS, "pairs")
    delta, p = checks.delta(num_samples, target), checks.exponent(exponent)
    kinds: tuple[Pairs, ...] = ("cross", "within") if pairs == "both" else (pairs,)
    ids = [IndexedRows(z, index, views, gathered, kind) for kind in kinds]
    if check:
        checks.rows_are_sound(z=z)
    u = unit(z)
    cost = dense.power(products(u, u if gathered is None else unit(gathered.keys)) - delta, p)
    terms = [rows.mean(cost.masked_fill(~rows.negative, 0).sum(), rows.negatives_of_each_key()) for rows in ids]
    return torch.stack(terms).mean()


class IndexedRows:
    """(R, M) masks ``positive`` and ``negative``: this rank's rows against the rows of all ranks, from ids alone.

    Counts over ALL ranks' rows come from sorted ids, so that no collective is needed to divide by them.
    """

    def __init__(
        self, z: Tensor, index: Tensor, views: Tensor | None, gathered: GatheredRows | None, kind: Pairs
    ) -> None:
        index = checks.ids("index", index, z, "z")
        views = _views_to_compare("views", views, z, "z", kind)
        total, offset, share = z.shape[0], 0, 1.0
        keys_index, keys_views = index, views
        if gathered is not None:
            if not isinstance(gathered, GatheredRows):
                raise TypeError(f"gathered must be GatheredRows or None; got {type(gathered).__name__}.")
            keys, _, _, offset, share = gathered
            checks.embeddings(z=z, keys=keys)
            total = keys.shape[0]
            checks.rows_inside(z.shape[0], total, offset)
            keys_index = checks.ids("keys_index", gathered.keys_index, keys, "keys")
            keys_views = _views_to_compare("keys_views", gathered.keys_views, keys, "keys", kind)
        same_sample = index.unsqueeze(1) == keys_index
        self._same_sample, self._place = same_sample, (total, offset)
        self.negative = ~same_sample
        if views is not None and keys_views is not None:
            same_view = views.unsqueeze(1) == keys_views
            self.negative = self.negative & (same_view if kind == "within" else ~same_view)
        self._kind, self._keys_index, self._keys_views = kind, keys_index, keys_views
        # A sum over R of M rows is the global sum's part that a rank of average size would have: see Gathered.scale.
        self._scale = share * total / max(z.shape[0], 1)

    def positive(self) -> Tensor:
        """(R, M) mask of the other rows of an anchor's sample. VRN does without."""
        rows, device = self._same_sample.shape[0], self._same_sample.device
        return self._same_sample & ~own_columns(rows, *self._place, device)

    def negatives_of_each_key(self) -> Tensor:
        """(M,) number of negatives that each row of all ranks has."""
        total, same_sample = self._keys_index.shape[0], group_sizes(self._keys_index)
        if self._keys_views is None:
            return total - same_sample
        same_view = group_sizes(self._keys_views)
        same_both = group_sizes(joint_labels(self._keys_index, self._keys_views))
        within = same_view - same_both
        return within if self._kind == "within" else total - same_sample - within

    def counted_anchors(self) -> Tensor:
        """(M,) mask of the rows of all ranks that have a positive and a negative."""
        return (self.negatives_of_each_key() > 0) & (group_sizes(self._keys_index) > 1)

    def mean(self, total: Tensor, counts: Tensor) -> Tensor:
        """This rank's sum as its share of the mean over the ``counts.sum()`` terms of all ranks."""
        # The ratio multiplies ``total`` and not the count: an integer tensor times a float is fp32 even among float64.
        return total * self._scale / counts.sum().clamp_min(1)

    def require_pairs(self) -> None:
        """Raises where an anchor has no positive or no negative. Synchronises with the device."""
        for name, mask in (("positive", self.positive()), ("negative", self.negative)):
            if without := int((~mask.any(dim=1)).sum()):
                raise ValueError(f"{without} of {mask.shape[0]} anchors have no {name}.")


def _views_to_compare(name: str, views: Tensor | None, z: Tensor, z_name: str, kind: Pairs) -> Tensor | None:
    """The views of ``z``, checked; None where pairs of every kind count alike."""
    if views is not None:
        checks.ids(name, views, z, z_name)
    elif kind != "both":
        raise ValueError(f"{name} must be given to tell {kind!r} pairs apart; only 'both' does without.")
    return None if kind == "both" else views
