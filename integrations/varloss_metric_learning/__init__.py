"""varloss with pytorch-metric-learning's interface: embeddings and labels, wrappers, reducer dictionaries, ``MultipleLosses``."""

from varloss_metric_learning.losses import NTXentLoss, VRNRegularizer

__all__ = ["NTXentLoss", "VRNRegularizer"]
