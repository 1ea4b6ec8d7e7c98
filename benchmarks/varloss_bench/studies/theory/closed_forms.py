"""The theory's own numbers: configurations, bounds and optima to hold a measurement against.

All of it speaks of FREE unit vectors, in full batches or fixed mini-batches. A network is neither free nor sees fixed batches:
no default of this package is derived from here.
"""

from varloss_bench.studies.theory.bounds import (
    SplitOptimum,
    VarianceBounds,
    VRNEquilibrium,
    alignment_bound,
    fixed_batch_variance_bounds,
    rotated_batch_variance,
    siglip_optimum,
    symmetric_dhel,
    symmetric_nt_xent,
    symmetric_sigmoid,
    symmetric_spectral,
    symmetric_vrn,
    uniform_sphere_uniformity,
    vrn_equilibrium,
    vrn_rank_floor,
)
from varloss_bench.studies.theory.configurations import batch_simplices, equiangular, simplex, split_simplex
from varloss_bench.studies.theory.free_vectors import optimize_free_vectors, vrn_alignment

__all__ = [
    "SplitOptimum",
    "VRNEquilibrium",
    "VarianceBounds",
    "alignment_bound",
    "batch_simplices",
    "equiangular",
    "fixed_batch_variance_bounds",
    "optimize_free_vectors",
    "rotated_batch_variance",
    "siglip_optimum",
    "simplex",
    "split_simplex",
    "symmetric_dhel",
    "symmetric_nt_xent",
    "symmetric_sigmoid",
    "symmetric_spectral",
    "symmetric_vrn",
    "uniform_sphere_uniformity",
    "vrn_alignment",
    "vrn_equilibrium",
    "vrn_rank_floor",
]
