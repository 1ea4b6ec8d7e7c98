"""The losses as pure functions: tensors in, a scalar tensor out."""

from varloss._core.pairs import Pairs
from varloss.losses.dhel import dhel
from varloss.losses.indexed import nt_xent_indexed, vrn_indexed
from varloss.losses.kcl import kcl
from varloss.losses.nt_xent import dclw_weights, nt_xent
from varloss.losses.queue import queue_info_nce, vrn_queue
from varloss.losses.sigmoid import sigmoid_loss
from varloss.losses.simple import simple_loss
from varloss.losses.spectral import spectral_loss
from varloss.losses.vrn import vrn

__all__ = [
    "Pairs",
    "dclw_weights",
    "dhel",
    "kcl",
    "nt_xent",
    "nt_xent_indexed",
    "queue_info_nce",
    "sigmoid_loss",
    "simple_loss",
    "spectral_loss",
    "vrn",
    "vrn_indexed",
    "vrn_queue",
]
