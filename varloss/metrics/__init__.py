"""What the theory speaks about, measured: similarity statistics, alignment, uniformity, tolerance, rank, hardness.

Every function takes raw (unnormalised) projections, one row per sample, and normalises inside unless it says otherwise.
Work is done in float64 where the device has it (float32 on MPS), for every dtype of the input and also under autocast: the
variances of interest are differences of nearly equal sums. Results are 0-dim tensors of that wide dtype on the input's
device. Every function raises ``TypeError`` for what is not a floating-point tensor, and ``ValueError`` for shapes that are
not (N, D) or differ, and for fewer rows than the N it names. Rows that are not finite give a result that is not finite,
because looking at them would synchronise the device.
"""

from varloss._core.grams import Grams
from varloss.metrics.embeddings import (
    ClassSums,
    alignment,
    effective_rank,
    relative_penalty_entropy,
    tolerance,
    uniformity,
    wasserstein_uniformity,
)
from varloss.metrics.statistics import SimilarityStatistics, SimilaritySums, similarity_statistics

__all__ = [
    "ClassSums",
    "Grams",
    "SimilarityStatistics",
    "SimilaritySums",
    "alignment",
    "effective_rank",
    "relative_penalty_entropy",
    "similarity_statistics",
    "tolerance",
    "uniformity",
    "wasserstein_uniformity",
]
