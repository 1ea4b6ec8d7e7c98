"""Losses minimised over free unit vectors, without a network and without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from varloss import functional
from varloss.functional import Pairs
from varloss.metrics import SimilarityStatistics, similarity_statistics
from varloss_bench.studies.theory import arguments


def optimize_free_vectors(
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_samples: int,
    dim: int,
    batches: Sequence[Tensor] | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int = 500,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimises a two-view loss over 2 n free unit vectors, in float64 on the CPU, by L-BFGS with a line search.

    The objective is the mean of ``loss(z0[batch], z1[batch])`` over fixed batches, so it is deterministic. With several minima
    the result depends on the start; try several generators.

    Args:
        loss: of two (m, dim) views, a scalar.
        num_samples: n.
        dim: dimension of the vectors.
        batches: index tensors of the fixed batches; by default one batch of all samples.
        start: two (n, dim) matrices; by default Gaussian from ``generator``.
        steps: most iterations of L-BFGS; it stops earlier where the gradient is 0 to rounding.
        generator: of the random start.

    Returns:
        The unit vectors of both views, each (n, dim), without gradient.

    Raises:
        ValueError: for numbers or shapes out of range, or a loss that became NaN or infinite.
    """
    shape = (arguments.at_least("num_samples", num_samples, 2), arguments.at_least("dim", dim, 1))
    if start is None:
        start = (
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.randn(shape, generator=generator, dtype=torch.float64),
        )
    elif any(z.shape != shape for z in start):
        raise ValueError(f"start must be two matrices of shape {shape}; got {[tuple(z.shape) for z in start]}.")
    z0, z1 = (
        nnf.normalize(z.detach().double()).clone(memory_format=torch.contiguous_format).requires_grad_() for z in start
    )
    parts = [torch.arange(num_samples)] if batches is None else list(batches)
    optimizer = torch.optim.LBFGS(
        [z0, z1],
        max_iter=arguments.at_least("steps", steps, 1),
        max_eval=2 * steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = torch.stack([loss(z0[part], z1[part]) for part in parts]).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    u, v = nnf.normalize(z0.detach()), nnf.normalize(z1.detach())
    if not bool(torch.isfinite(u).all() and torch.isfinite(v).all()):
        raise ValueError("the loss became NaN or infinite while free vectors were optimised.")
    return u, v


def vrn_alignment(
    *,
    num_samples: int,
    dim: int,
    temperature: float,
    weight: float,
    negatives: Pairs = "cross",
    pairs: Pairs = "cross",
    restarts: int = 4,
    steps: int = 500,
    seed: int = 0,
) -> SimilarityStatistics:
    """The cost of VRN in alignment: similarity statistics at the full-batch optimum of NT-Xent + weight x VRN.

    With dim < n - 1 and a large weight, cross-view VRN moves the two views into different subspaces, which reduces u_i . v_j at
    the least cost; ``positive_mean`` then falls far below 1. With ``pairs="both"`` it stays at 1. There are several minima and
    no closed form; the best of a few random starts is returned. Takes seconds for a few dozen samples.

    Args:
        num_samples: n, all in one batch.
        dim: dimension of the vectors.
        temperature: of NT-Xent.
        weight: of VRN, >= 0.
        negatives: of NT-Xent; ``"cross"`` is InfoNCE.
        pairs: of VRN.
        restarts: number of random starts.
        steps: most iterations from each.
        seed: of the first start.

    Returns:
        Statistics at the lowest minimum found; 1 - ``positive_mean`` is the alignment cost.

    Raises:
        ValueError: for numbers out of range.

    Source: measured by optimisation in this package; no theorem is known.
    """

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        contrastive = functional.nt_xent(z0, z1, temperature=temperature, negatives=negatives)
        return contrastive + weight * functional.vrn(z0, z1, num_samples=num_samples, pairs=pairs)

    arguments.not_negative("weight", weight)
    minima = [
        optimize_free_vectors(
            loss,
            num_samples=num_samples,
            dim=dim,
            steps=steps,
            generator=torch.Generator().manual_seed(seed + restart),
        )
        for restart in range(arguments.at_least("restarts", restarts, 1))
    ]
    return similarity_statistics(*min(minima, key=lambda views: loss(*views).item()))
