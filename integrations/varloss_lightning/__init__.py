"""varloss in torchmetrics and Lightning: `Metric` classes, and a callback that monitors similarities during training.

Imports are lazy: metrics need only torchmetrics, and each callback only its own Lightning package.

- `varloss_lightning.metrics`: the torchmetrics classes, which are also attributes of this package.
- `varloss_lightning.callbacks.SimilarityMonitor`: for `lightning`.
- `varloss_lightning.pl_callbacks.SimilarityMonitor`: for `pytorch_lightning`.

The two Lightnings do not accept each other's callbacks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varloss_lightning.metrics import (
        Alignment,
        EffectiveRank,
        RelativePenaltyEntropy,
        SimilarityStatistics,
        Tolerance,
        Uniformity,
        WassersteinUniformity,
    )

__all__ = [
    "Alignment",
    "EffectiveRank",
    "RelativePenaltyEntropy",
    "SimilarityStatistics",
    "Tolerance",
    "Uniformity",
    "WassersteinUniformity",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("varloss_lightning.metrics"), name)
    if name == "SimilarityMonitor":
        raise AttributeError(
            "there are two SimilarityMonitor classes: varloss_lightning.callbacks.SimilarityMonitor for `lightning`, and "
            "varloss_lightning.pl_callbacks.SimilarityMonitor for `pytorch_lightning`."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
