"""Every public loss of the package, one entry each, and the losses of the libraries beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

import varloss
from support.conformance.subject import Subject
from varloss import functional as vf

SLOTS, DIM = 9, 5
VRN = {"weight": 2.0, "num_samples": 50}


def filled(loss: Any) -> Any:
    """The loss with keys in five of nine slots of its bank."""
    (loss if isinstance(loss, varloss.MemoryBank) else loss.memory_bank).enqueue(torch.randn(5, DIM))
    return loss


def against_bank(bank: varloss.MemoryBank, z0: Tensor, z1: Tensor) -> Tensor:
    loss = vf.queue_info_nce(z0, z1.detach(), bank.bank.clone(), valid=bank.valid())
    if z0.requires_grad:
        bank.enqueue(z1)
    return loss


def one_batch(z0: Tensor, z1: Tensor) -> Tensor:
    if z0.layout == torch.sparse_csr:  # torch does not join these
        return torch.cat([z0.to_dense(), z1.to_dense()]).to_sparse_csr()
    return torch.cat([z0, z1])


def by_index(function: Callable[..., Tensor], **options: Any) -> Callable[[], Callable[[Tensor, Tensor], Tensor]]:
    """The function by sample index on two views of N samples."""

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        index = torch.arange(z0.shape[0], device=z0.device).repeat(2)
        views = torch.arange(2, device=z0.device).repeat_interleave(z0.shape[0])
        return function(one_batch(z0, z1), index, views=views, **options)

    return lambda: loss


def to_slots(z0: Tensor, z1: Tensor) -> Tensor:
    """VRN of queries against fixed keys; the second view stands by with a gradient of zero."""
    slots = torch.sin(torch.arange(SLOTS * DIM, dtype=torch.float64, device=z0.device)).view(SLOTS, DIM)
    slots = nnf.normalize(slots, dim=1).to(torch.float64 if z0.dtype == torch.float64 else torch.float32)
    return vf.vrn_queue(z0, slots, num_samples=50) + 0 * z1.sum()


def dclw(z0: Tensor, z1: Tensor) -> Tensor:
    return vf.nt_xent(z0, z1, decoupled=True, positive_weight=vf.dclw_weights(z0, z1))


def labelled(loss: Any, z0: Tensor, z1: Tensor) -> Tensor:
    """pytorch-metric-learning's call: one batch, and labels."""
    return loss(one_batch(z0, z1), torch.arange(z0.shape[0], device=z0.device).repeat(2))


def own() -> list[Subject]:
    return [
        Subject("NTXentLoss", varloss.NTXentLoss, representative=True),
        Subject(
            "NTXentLoss, learned temperature",
            partial(varloss.NTXentLoss, learnable_temperature=True),
            representative=True,
        ),
        Subject("NTXentLoss, hard negatives", partial(varloss.NTXentLoss, hard_fraction=0.5), representative=True),
        Subject("NTXentLoss, many rows", varloss.NTXentLoss, rows=(190, 5)),
        Subject("InfoNCELoss", partial(varloss.InfoNCELoss, temperature=0.1)),
        Subject("DCLLoss", varloss.DCLLoss),
        Subject("DHELLoss", varloss.DHELLoss),
        Subject("DHELLoss, official scale", partial(varloss.DHELLoss, scale="official")),
        Subject("KCLLoss", varloss.KCLLoss, alone=lambda s: -2 * (4 * (s - 1)).exp()),
        Subject("SigmoidLoss", varloss.SigmoidLoss, alone=lambda s: nnf.softplus(10 - 10 * s)),
        Subject(
            "SigmoidLoss, learned",
            partial(varloss.SigmoidLoss, learnable=True),
            alone=lambda s: nnf.softplus(10 - 10 * s),
            representative=True,
        ),
        Subject("SimpleLoss", varloss.SimpleLoss, alone=lambda s: -s),
        Subject("SpectralLoss", varloss.SpectralLoss, alone=lambda s: -s),
        Subject(
            "QueueInfoNCELoss",
            lambda: filled(varloss.QueueInfoNCELoss(memory_bank_size=(SLOTS, DIM))),
            alone=None,
            representative=True,
        ),
        Subject(
            "MemoryBank",
            lambda: filled(varloss.MemoryBank(SLOTS, DIM)),
            against_bank,
            functions=("queue_info_nce",),
            alone=None,
        ),
        Subject("VRNRegularizer", partial(varloss.VRNRegularizer, **VRN), representative=True),
        Subject("VRNRegularizer, closed form", partial(varloss.VRNRegularizer, **VRN), rows=(13, 5)),
        Subject("VRNRegularizer, both kinds", partial(varloss.VRNRegularizer, **VRN, pairs="both")),
        Subject("VRNRegularizer, exponent 1", partial(varloss.VRNRegularizer, **VRN, exponent=1)),
        Subject("WithVRN(NTXentLoss)", lambda: varloss.WithVRN(varloss.NTXentLoss(), **VRN), representative=True),
        Subject(
            "WithVRN(SigmoidLoss)",
            lambda: varloss.WithVRN(varloss.SigmoidLoss(learnable=True), **VRN),
            alone=lambda s: nnf.softplus(10 - 10 * s),
        ),
        Subject(
            "WithVRN(function)",
            lambda: varloss.WithVRN(vf.kcl, **VRN),
            alone=lambda s: -2 * (4 * (s - 1)).exp(),
        ),
        Subject("nt_xent_indexed", by_index(vf.nt_xent_indexed), functions=("nt_xent_indexed",), representative=True),
        Subject(
            "nt_xent_indexed, outside",
            by_index(vf.nt_xent_indexed, positives="outside"),
            functions=("nt_xent_indexed",),
        ),
        Subject("vrn_indexed", by_index(vf.vrn_indexed, num_samples=50), functions=("vrn_indexed",)),
        Subject("vrn_queue", lambda: to_slots, functions=("vrn_queue",), alone=None),
        Subject("dclw_weights", lambda: dclw, functions=("dclw_weights",), stops=True),
    ]


def of_adapters() -> list[Subject]:
    import varloss_lightly as ll
    import varloss_metric_learning as ml

    lightly, metric = partial(Subject, package="varloss_lightly"), partial(Subject, package="varloss_metric_learning")
    on = {"vrn_weight": 2.0, "num_samples": 50}
    return [
        lightly("lightly.NTXentLoss", ll.NTXentLoss),
        lightly("lightly.NTXentLoss with VRN", lambda: ll.NTXentLoss(**on), representative=True),
        lightly("lightly.NTXentLoss with a bank", lambda: ll.NTXentLoss(memory_bank_size=(SLOTS, DIM)), alone=None),
        lightly("lightly.DCLLoss with VRN", lambda: ll.DCLLoss(**on)),
        lightly("lightly.DCLWLoss", ll.DCLWLoss, stops=True),
        lightly("lightly.DHELLoss with VRN", lambda: ll.DHELLoss(**on)),
        lightly("lightly.VRNRegularizer", lambda: ll.VRNRegularizer(2.0, num_samples=50)),
        metric("metric_learning.NTXentLoss", lambda: ml.NTXentLoss(0.5), labelled),
        metric("metric_learning.VRNRegularizer", lambda: ml.VRNRegularizer(**VRN), labelled),
    ]


def emptied(loss: Any) -> Any:
    """lightly's pointer into its bank is memory as it was before the first batch."""
    loss.memory_bank.bank_ptr.zero_()
    return loss


def neighbours() -> list[Subject]:
    """What users would call without varloss."""
    import lightly.loss as ll
    import pytorch_metric_learning.losses as ml

    lightly, metric = partial(Subject, package="lightly"), partial(Subject, package="pytorch-metric-learning")
    size = (SLOTS, DIM)
    return [
        lightly("NTXentLoss of lightly", lambda: emptied(ll.NTXentLoss())),
        lightly("NTXentLoss of lightly with a bank", lambda: emptied(ll.NTXentLoss(memory_bank_size=size)), alone=None),
        lightly("DCLLoss of lightly", ll.DCLLoss),
        lightly("DCLWLoss of lightly", ll.DCLWLoss, stops=True),
        metric("NTXentLoss of pytorch-metric-learning", lambda: ml.NTXentLoss(0.5), labelled),
        metric("SupConLoss of pytorch-metric-learning", lambda: ml.SupConLoss(0.5), labelled),
    ]
