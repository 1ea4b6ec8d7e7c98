"""`SimilarityMonitor` for `pytorch_lightning`."""

from pytorch_lightning import Callback

from varloss_lightning._monitor import SimilarityMonitorMixin

__all__ = ["SimilarityMonitor"]


class SimilarityMonitor(SimilarityMonitorMixin, Callback):
    """The callback for `pytorch_lightning`; `SimilarityMonitorMixin` describes it."""
