"""Variance-reduced contrastive losses for small batches.

The losses are functions in :mod:`varloss.functional` and modules here. Imports torch and nothing else.
"""

from varloss import distributed, functional, metrics
from varloss.losses.dhel import DHELLoss
from varloss.losses.kcl import KCLLoss
from varloss.losses.memory_bank import MemoryBank
from varloss.losses.nt_xent import DCLLoss, InfoNCELoss, NTXentLoss
from varloss.losses.queue import QueueInfoNCELoss
from varloss.losses.sigmoid import SigmoidLoss
from varloss.losses.simple import SimpleLoss
from varloss.losses.spectral import SpectralLoss
from varloss.losses.vrn import VRNRegularizer
from varloss.losses.with_vrn import WithVRN

__version__ = "0.1.0"

__all__ = [
    "DCLLoss",
    "DHELLoss",
    "InfoNCELoss",
    "KCLLoss",
    "MemoryBank",
    "NTXentLoss",
    "QueueInfoNCELoss",
    "SigmoidLoss",
    "SimpleLoss",
    "SpectralLoss",
    "VRNRegularizer",
    "WithVRN",
    "distributed",
    "functional",
    "metrics",
]
