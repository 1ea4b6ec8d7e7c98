"""What the theory speaks about, measured: similarity statistics, alignment, uniformity, tolerance, rank, hardness.

Every function takes raw (unnormalised) projections, one row per sample, and normalises inside unless it says otherwise.
Work is done in float64 wherever the device has it (float32 on MPS), whatever the dtype of the input and whatever
autocast says: the variances of interest are differences of nearly equal sums. Results are 0-dim tensors of that wide
dtype on the input's device. What the shapes decide raises ``ValueError``; rows that are not finite give a result
that is not finite, because looking at them would synchronise the device.
"""

from varloss.metrics.embeddings import (
    alignment,
    effective_rank,
    relative_penalty_entropy,
    sphere_cosine_quantile,
    tolerance,
    tolerance_from_sums,
    tolerance_sums,
    uniformity,
    wasserstein_uniformity,
)
from varloss.metrics.statistics import (
    SimilarityStatistics,
    moments_from_grams,
    similarity_grams,
    similarity_moments,
    similarity_statistics,
    statistics_from_moments,
)

__all__ = [
    "SimilarityStatistics",
    "alignment",
    "effective_rank",
    "moments_from_grams",
    "relative_penalty_entropy",
    "similarity_grams",
    "similarity_moments",
    "similarity_statistics",
    "sphere_cosine_quantile",
    "statistics_from_moments",
    "tolerance",
    "tolerance_from_sums",
    "tolerance_sums",
    "uniformity",
    "wasserstein_uniformity",
]
