"""`SimilarityMonitor` for `lightning`."""

from lightning.pytorch import Callback

from varloss_lightning._monitor import SimilarityMonitorMixin

__all__ = ["SimilarityMonitor"]


class SimilarityMonitor(SimilarityMonitorMixin, Callback):
    """The callback for `lightning`; `SimilarityMonitorMixin` describes it."""
