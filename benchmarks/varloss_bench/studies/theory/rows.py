"""Rows that compare a prediction of the theory with free unit vectors optimised with the real losses; groups of rows.

Every optimum is found by minimising the real losses of `varloss` in float64 (`free_vectors.optimize_free_vectors`).
Batches are fixed partitions; only the group `reshuffled_batches` reshuffles them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from varloss.metrics import SimilarityStatistics, similarity_statistics
from varloss_bench.studies.theory import free_vectors

Loss = Callable[[Tensor, Tensor], Tensor]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One prediction against one measurement.

    Attributes:
        name: The quantity.
        predicted: The theory's value.
        measured: The measured value.
        tolerance: Largest absolute difference; for a bound, the largest excess over it.
        relation: "=": the measurement equals the prediction. "<=", ">=": the prediction is an upper, a lower bound.
    """

    name: str
    predicted: float
    measured: float
    tolerance: float
    relation: Literal["=", "<=", ">="] = "="

    @property
    def ok(self) -> bool:
        """Whether the measurement is within the tolerance; False for NaN."""
        excess = {
            "=": abs(self.measured - self.predicted),
            "<=": self.measured - self.predicted,
            ">=": self.predicted - self.measured,
        }[self.relation]
        return excess <= self.tolerance


@dataclass(frozen=True)
class Group:
    """Rows of one part of the theory, and the curves its figure shows.

    Attributes:
        key: Short name, also of the figure's file.
        title: The statement of the theory.
        rows: The predictions.
        curves: By label, points (x, y) of the figure.
    """

    key: str
    title: str
    rows: list[Row]
    curves: dict[str, Curve] = field(default_factory=dict)


def seeded(seed: int) -> torch.Generator:
    """A separate generator, so that rows do not depend on their order."""
    return torch.Generator().manual_seed(seed)


def optimum(
    loss: Loss, n: int, dim: int, *, batches: list[Tensor] | None = None, seed: int = 0, steps: int = 500
) -> tuple[SimilarityStatistics, Tensor, Tensor]:
    """Statistics of all pairs at a minimum of the loss, and the unit vectors."""
    u, v = free_vectors.optimize_free_vectors(
        loss, num_samples=n, dim=dim, batches=batches, steps=steps, generator=seeded(seed)
    )
    return similarity_statistics(u, v), u, v


def number(value: Tensor) -> float:
    """A 0-dim tensor as a number."""
    return float(value)


def partition(n: int, m: int) -> list[Tensor]:
    """Fixed batches of m of n samples."""
    return list(torch.arange(n).view(-1, m))
