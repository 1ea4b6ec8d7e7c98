"""varloss under pytorch-metric-learning's call: embeddings and labels, wrappers, reducers' dictionaries, ``MultipleLosses``."""

from varloss_metric_learning.losses import NTXentLoss, VRNRegularizer

__all__ = ["NTXentLoss", "VRNRegularizer"]
