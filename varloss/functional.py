"""The losses as pure functions: tensors in, a scalar tensor out."""

from varloss._additive import kcl, sigmoid_loss, spectral_loss
from varloss._hard import simple_loss
from varloss._nt_xent import dclw_weights, dhel, nt_xent, nt_xent_indexed
from varloss._queue import queue_info_nce
from varloss._vrn import nt_xent_with_vrn, vrn, vrn_from_moments, vrn_indexed, vrn_moments, vrn_queue

__all__ = [
    "dclw_weights",
    "dhel",
    "kcl",
    "nt_xent",
    "nt_xent_indexed",
    "nt_xent_with_vrn",
    "queue_info_nce",
    "sigmoid_loss",
    "simple_loss",
    "spectral_loss",
    "vrn",
    "vrn_from_moments",
    "vrn_indexed",
    "vrn_moments",
    "vrn_queue",
]
