"""Variance-reduced contrastive losses for small batches.

The losses are functions in :mod:`varloss.functional` and modules here. Imports torch and nothing else.
"""

from varloss import distributed, functional, metrics
from varloss._named_modules import DCLLoss, InfoNCELoss, KCLLoss, SigmoidLoss, SimpleLoss, SpectralLoss
from varloss._queue import MemoryBank
from varloss.modules import DHELLoss, NTXentLoss, QueueInfoNCELoss, VRNLoss, VRNRegularizer, WithVRN

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
    "VRNLoss",
    "VRNRegularizer",
    "WithVRN",
    "__version__",
    "distributed",
    "functional",
    "metrics",
]
