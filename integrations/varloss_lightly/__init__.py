"""lightly's contrastive losses with within-view negatives and variance reduction: change the import, keep the code.

``from lightly.loss import NTXentLoss`` becomes ``from varloss_lightly import NTXentLoss``. The package imports torch and varloss;
only :mod:`varloss_lightly.methods` imports lightly.
"""

from varloss_lightly.losses import DCLLoss, DCLWLoss, DHELLoss, NTXentLoss, VRNRegularizer

__all__ = ["DCLLoss", "DCLWLoss", "DHELLoss", "NTXentLoss", "VRNRegularizer"]
