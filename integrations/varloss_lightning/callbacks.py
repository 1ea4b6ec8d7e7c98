"""`SimilarityMonitor` for `lightning`."""

from lightning.pytorch import Callback

from varloss_lightning._monitor import SimilarityMonitorMixin

__all__ = ["SimilarityMonitor"]


class SimilarityMonitor(SimilarityMonitorMixin, Callback):
    """The callback of `SimilarityMonitorMixin`, where it is described, for `lightning`."""
