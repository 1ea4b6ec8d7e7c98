"""NT-Xent and VRN as losses of pytorch-metric-learning: they map (embeddings, labels) to varloss's functions."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

import varloss
from varloss import functional
from varloss._core import checks
from varloss._core.numerics import follows_operations
from varloss.functional import Pairs
from varloss.losses.base import NumericOptions


class _CosineLoss(NumericOptions, BaseMetricLossFunction):  # type: ignore[misc]  # the library has no types
    """Checks that both losses share: cosine similarity, labels, and no pairs selected by a miner."""

    distance: Any
    add_to_recordable_attributes: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._check_distance()

    def _check_distance(self) -> None:
        """Raises for a distance that gives something else than cosines, because it is not called."""
        given = self.distance
        changed = any(callable(value) for value in vars(given).values())
        hooked = any(
            getattr(given, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
        )
        if type(given) is not CosineSimilarity or (given.power, given.p) != (1, 2) or changed or hooked:
            raise ValueError(
                f"{type(self).__name__} computes cosine similarities itself and takes only a plain CosineSimilarity(), without "
                f"other options, methods or hooks; got distance={given}."
            )

    def get_default_distance(self) -> CosineSimilarity:
        """The only supported distance."""
        return CosineSimilarity()

    def value(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None) -> Tensor:
        """The loss as a scalar. Labels are int64; the last two are None if the embeddings are compared with themselves."""
        raise NotImplementedError

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> dict[str, dict[str, Any]]:
        """Called by the library, which passes ``embeddings`` as ``ref_emb`` if none was given."""
        if indices_tuple is not None:
            raise ValueError(
                f"{type(self).__name__} is a mean over ALL negative pairs and takes no indices_tuple: do not use a miner, "
                "in MultipleLosses pass miners=[miner, None]. CrossBatchMemory also passes one and is not supported."
            )
        if labels is None:
            raise ValueError(
                f"{type(self).__name__} needs labels: rows with different labels are negatives of each other."
            )
        self._check_distance()
        checks.embeddings(mixed=True, embeddings=embeddings)
        if ref_emb is embeddings and ref_labels is labels:
            loss = self.value(embeddings, _as_ids(labels), None, None)
        elif ref_labels is None:
            raise ValueError(f"{type(self).__name__} needs ref_labels with ref_emb.")
        else:
            ids = _as_ids(labels, ref_labels)
            loss = self.value(embeddings, ids[: len(labels)], ref_emb, ids[len(labels) :])
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


class NTXentLoss(_CosineLoss):
    """NT-Xent by labels, in memory of at most O(N²); ``pytorch_metric_learning.losses.NTXentLoss`` needs O(N³).

    If every row has one positive, as in ``SelfSupervisedLoss(NTXentLoss())``, values and gradients equal the library's
    NTXentLoss. Two views in the same order take the fused computation, in memory linear in N. If rows have several positives,
    values and gradients equal the library's ``SupConLoss``: one softmax per row. (The library's NTXentLoss then has one softmax
    per positive PAIR. This class does not have that form.)

    Each call reads the labels to tell the two cases apart. With labels on a GPU it waits for the GPU. Under torch.compile, where labels
    cannot be read, memory is O(N²) in both cases.

    Args:
        temperature: divides the cosine similarities.
        decoupled: leaves the positives out of the denominator (DCL).
        **kwargs: the library's ``embedding_regularizer``, ``embedding_reg_weight``, ``collect_stats``.

    Raises:
        ValueError: for a distance other than a plain ``CosineSimilarity()``, and at the call for an ``indices_tuple``, ``ref_emb`` or
            no labels. TypeError for complex labels.

    Edge cases: labels may have any real dtype; those that are NaN differ from all others. A row without a positive or without a
    negative is excluded from the mean. The mean of no rows is 0, attached to the graph, also for batches of 0 and 1 rows.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import SelfSupervisedLoss
        >>> from varloss_metric_learning import NTXentLoss
        >>> loss = SelfSupervisedLoss(NTXentLoss(temperature=0.5))(torch.randn(16, 128), torch.randn(16, 128))
    """

    def __init__(self, temperature: float = 0.07, *, decoupled: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The module checks the temperature at construction, not at the first batch.
        self.temperature = varloss.NTXentLoss(temperature=temperature).temperature
        self.decoupled = decoupled
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)

    def value(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None) -> Tensor:
        """NT-Xent of the batch with itself."""
        del ref_labels
        if ref_emb is not None:
            raise ValueError(
                "NTXentLoss compares a batch with itself and takes no ref_emb: give both views as one batch, as "
                "SelfSupervisedLoss(NTXentLoss(), symmetric=True) does."
            )
        if _is_two_views(labels):
            z0, z1 = embeddings.chunk(2)
            return functional.nt_xent(z0, z1, temperature=self.temperature, decoupled=self.decoupled)
        return functional.nt_xent_indexed(
            embeddings, labels, temperature=self.temperature, decoupled=self.decoupled, positives="outside"
        )


class VRNRegularizer(_CosineLoss):
    """``weight`` times VRN over the pairs of different labels; add it to any of the library's losses.

    With ``ref_emb`` a pair is a row of ``embeddings`` and a row of ``ref_emb`` (the paper's cross-view pairs). Without it all
    pairs of the batch count.

    Args:
        weight: factor on the term; a plain attribute that a warm-up may set. See :class:`varloss.VRNRegularizer`.
        num_samples: n, the number of CLASSES if labels are classes, the number of training samples if labels are sample
            indices; give it or ``target``.
        target: the similarity that negatives are pulled to, instead of -1/(n-1).
        exponent: p ≥ 1.
        **kwargs: the library's ``embedding_regularizer``, ``embedding_reg_weight``, ``collect_stats``.

    Raises:
        ValueError: for a distance other than a plain ``CosineSimilarity()``, and at the call for an ``indices_tuple`` or no labels.
            TypeError for complex labels.

    Edge cases: labels may have any real dtype; those that are NaN differ from all others. A batch with a single label, or of 0 or
    1 rows, has no such pair and gives 0, attached to the graph.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultipleLosses, TripletMarginLoss
        >>> from varloss_metric_learning import VRNRegularizer
        >>> loss_fn = MultipleLosses([TripletMarginLoss(), VRNRegularizer(weight=3, num_samples=100)])
        >>> loss = loss_fn(torch.randn(16, 128), torch.arange(16) % 4)
    """

    def __init__(
        self,
        *,
        weight: float,
        num_samples: int | None = None,
        target: float | None = None,
        exponent: float = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checked = varloss.VRNRegularizer(weight=weight, num_samples=num_samples, target=target, exponent=exponent)
        self.weight, self.exponent = checked.weight, checked.exponent
        self.num_samples, self.target = num_samples, target
        self.add_to_recordable_attributes(list_of_names=["weight"], is_stat=False)

    def value(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None) -> Tensor:
        """VRN, weighted."""
        z, ids, views = embeddings, labels, torch.zeros_like(labels)
        kind: Pairs = "within"
        if ref_emb is not None and ref_labels is not None:
            z, ids, kind = torch.cat([embeddings, ref_emb]), torch.cat([labels, ref_labels]), "cross"
            views = torch.cat([views, torch.ones_like(ref_labels)])
        return self.weight * functional.vrn_indexed(
            z,
            ids,
            views=views,
            pairs=kind,
            num_samples=self.num_samples,
            target=self.target,
            exponent=self.exponent,
        )


def _as_ids(*labels: Tensor) -> Tensor:
    """Labels of any real dtype, one after the other, as int64 that are equal where they are. A NaN equals no other label.

    For floats it waits for the device.
    """
    together = torch.cat([part if part.is_floating_point() or part.is_complex() else part.long() for part in labels])
    return torch.unique(together, return_inverse=True)[1] if together.is_floating_point() else together


def _is_two_views(labels: Tensor) -> bool:
    """Whether the labels are N different ones, repeated in the same order. Waits for the device.

    False where labels cannot be read: the losses by label have the same value there, in memory of O(N²).
    """
    if type(labels) is not Tensor or torch.compiler.is_compiling() or follows_operations(labels):
        return False
    half = labels.shape[0] // 2
    first = labels[:half]
    return bool(
        half > 1
        and not labels.is_meta
        and labels.shape[0] == 2 * half
        and torch.equal(first, labels[half:])
        and len(set(first.tolist())) == half
    )
