"""Tiles of the similarity matrix in two passes: sums first, gradient second. Linear memory, and symmetry used.

Of a symmetric block only the tiles on and above the diagonal are computed, so that two passes over half of the matrix cost
what one pass over all of it does. The logits of some tiles are kept from the first pass for the second, as many as stay
within a share of memory that grows with N alone: for middling batches that saves the second product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from varloss._kernels.common import Problem, anchor_losses, to_raw_rows, unit_rows

# Buffers of this shape in fp32 stay in a CPU core's second-level cache; a GPU needs tiles that keep it busy.
CPU_TILE = (128, 1024)
GPU_TILE = (2048, 4096)
# How much may be kept: this many logits for each row, and this many bytes at least and at most.
KEPT_PER_ROW = 640
KEPT_BYTES = (8 * 2**20, 64 * 2**20)


@dataclass(frozen=True, eq=False)  # eq=False: told apart, and hashed, by identity
class Tile:
    """A rectangle of similarities, ``height`` x ``width``, between rows of the two views stacked, (2N, D)."""

    top: int
    height: int
    left: int
    width: int
    square: int  # leading columns that are the rows themselves: there, both orders of each pair are present
    own: int | None  # the diagonal on which a sample meets itself, which is no negative; None where it passes by
    has_vrn: bool

    def without_own(self, x: Tensor, value: float = 0.0) -> Tensor:
        """``x``, of the tile's shape, with ``value`` where a sample meets itself."""
        if self.own is not None:
            x.diagonal(self.own).fill_(value)
        return x


def tiles(n: int, problem: Problem, largest: tuple[int, int]) -> list[Tile]:
    """The tiles that hold each pair of negatives once, but for the squares on the diagonals of blocks within a view."""
    blocks = {"cross": [(0, n)], "within": [(0, 0), (n, n)], "both": [(0, 0), (n, n), (0, n)]}[problem.negatives]
    height, width = largest[0], max(largest)
    result = []
    for rows_at, columns_at in blocks:
        within = rows_at == columns_at
        has_vrn = problem.has_vrn and problem.pairs in ("within" if within else "cross", "both")
        for top in range(0, n, height):
            bottom = min(top + height, n)
            for left in range(top if within else 0, n, width):
                right = min(left + width, n)
                result.append(
                    Tile(
                        top=rows_at + top,
                        height=bottom - top,
                        left=columns_at + left,
                        width=right - left,
                        square=bottom - top if within and left == top else 0,
                        own=top - left if left < bottom and top < right else None,
                        has_vrn=has_vrn,
                    )
                )
    return result


def value_and_gradient(
    z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool, tile: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Value and (2, N, D) gradient by the raw rows of both views; the gradient in at least fp32.

    For any temperature. VRN's pairs must be among the negatives. ``tile`` is the largest tile, rows and columns.
    """
    n, t = z0.shape[0], problem.temperature
    z, length = unit_rows(z0, z1)
    u, v = z[:n], z[n:]
    parts = tiles(n, problem, tile or (CPU_TILE if z.device.type == "cpu" else GPU_TILE))
    positive = (u * v).sum(1).div_(t)
    log_sums, squared_gaps, gradient = _both_passes(z, positive, problem, parts, need_gradient)
    value = anchor_losses(log_sums, positive, problem.decoupled).mean()
    if problem.has_vrn:
        value.add_(squared_gaps, alpha=problem.slope(n) / 2 * t**2)
    if gradient is None:
        return value, None
    pull = torch.full_like(positive, 2) if problem.decoupled else torch.sigmoid(log_sums - positive).sum(0)
    gradient[:n].addcmul_(pull.unsqueeze(1), v, value=-1)
    gradient[n:].addcmul_(pull.unsqueeze(1), u, value=-1)
    return value, to_raw_rows(gradient.div_(2 * n * t), z, length).view(2, n, -1)


def _both_passes(
    z: Tensor, positive: Tensor, problem: Problem, parts: list[Tile], need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logarithms of the sums (2, N), the sum of squared gaps, and 2 N t times the negatives' share of the gradient.

    A function of its own so that its buffers, most of the memory in use, are gone before normalisation needs some.
    """
    n, t = z.shape[0] // 2, problem.temperature
    work = _Work(z, 1 / t, parts, keep=need_gradient)
    sums: _Sums = (_PlainSums if problem.fits_without_shift(z.dtype) else _ShiftedSums)(work, problem)
    squared_gaps = z.new_zeros(())
    for part in parts:
        logits = work.logits(part)
        sums.add(part, logits)
        if part.has_vrn and not need_gradient:
            _to_gaps(part, logits, problem, squared_gaps)
    log_sums = sums.log()
    if not need_gradient:
        return log_sums, squared_gaps, None

    gradient = torch.zeros_like(z)
    sums.prepare_weights(log_sums, positive)
    for part in parts:
        logits = work.logits(part)
        weights = part.without_own(sums.weights(part, logits))
        if part.has_vrn:
            gaps = _to_gaps(part, logits, problem, squared_gaps)
            weights.add_(gaps, alpha=problem.slope(n) * t * (2 * n * t))
        rows, columns = z.narrow(0, part.top, part.height), z.narrow(0, part.left, part.width)
        gradient.narrow(0, part.top, part.height).addmm_(weights, columns)
        later = gradient.narrow(0, part.left + part.square, part.width - part.square)
        later.addmm_(weights[:, part.square :].t(), rows)
    return log_sums, squared_gaps, gradient


def _to_gaps(part: Tile, logits: Tensor, problem: Problem, squared_gaps: Tensor) -> Tensor:
    """Turns logits into gaps (P - target) / t, 0 where a sample meets itself, and adds their squares, each pair once."""
    gaps = part.without_own(logits.sub_(problem.target / problem.temperature))
    # By row norms: no squares are written, and each sum stays short.
    for columns, share in ((gaps[:, : part.square], 0.5), (gaps[:, part.square :], 1.0)):
        if columns.shape[1]:
            squared_gaps.add_(torch.linalg.vector_norm(columns, dim=1).square_().sum(), alpha=share)
    return gaps


class _Work:
    """Buffers that every tile uses again, and the logits kept from the first pass for the second: one allocation."""

    def __init__(self, z: Tensor, inverse_t: float, parts: list[Tile], keep: bool) -> None:
        self.z, self._inverse_t = z, inverse_t
        sizes = [part.height * part.width for part in parts]
        least, most = (bound // z.element_size() for bound in KEPT_BYTES)
        budget = min(max(KEPT_PER_ROW * z.shape[0], least), most) if keep else 0
        kept = 0
        while kept < len(sizes) and sizes[kept] <= budget:
            budget -= sizes[kept]
            kept += 1
        memory = z.new_empty(sum(sizes[:kept]) + 3 * max(sizes))
        *keeps, self._first, self._second, self._third = torch.split(memory, [*sizes[:kept], *3 * [max(sizes)]])
        self._kept = dict(zip(parts, keeps, strict=False))
        self._computed: set[Tile] = set()

    def scratch(self, part: Tile, third: bool = False) -> Tensor:
        buffer = self._third if third else self._second
        return buffer[: part.height * part.width].view(part.height, part.width)

    def logits(self, part: Tile) -> Tensor:
        """The tile's logits, for the caller to overwrite. The second call may return those of the first."""
        buffer = self._kept.get(part)
        x = (self._first[: part.height * part.width] if buffer is None else buffer).view(part.height, part.width)
        if part in self._computed:
            return x
        if buffer is not None:
            self._computed.add(part)
        rows, columns = self.z.narrow(0, part.top, part.height), self.z.narrow(0, part.left, part.width)
        return torch.addmm(x, rows, columns.t(), beta=0, alpha=self._inverse_t, out=x)


class _Sums(Protocol):
    """Sums of exponentials over each anchor's negatives, and the weights they give each pair in the gradient."""

    def add(self, part: Tile, logits: Tensor) -> None:
        """Adds a tile to its rows' sums and, for pairs that come in no other order, to its columns'. Keeps the logits."""

    def log(self) -> Tensor:
        """(2, N) logarithms of the sums."""

    def prepare_weights(self, log_sums: Tensor, positive: Tensor) -> None:
        """Goes over from summing to weighting."""

    def weights(self, part: Tile, logits: Tensor) -> Tensor:
        """``exp(x_ab) (1/den_a + 1/den_b)`` of a tile. Keeps the logits of tiles that need them for VRN."""


class _PlainSums:
    """For all but extreme temperatures: nothing to keep from overflowing."""

    def __init__(self, work: _Work, problem: Problem) -> None:
        self._work, self._decoupled = work, problem.decoupled
        self._sums = work.z.new_zeros(work.z.shape[0])

    def add(self, part: Tile, logits: Tensor) -> None:
        exponentials = part.without_own(torch.exp(logits, out=self._work.scratch(part)))
        self._sums.narrow(0, part.top, part.height).add_(exponentials.sum(1))
        later = self._sums.narrow(0, part.left + part.square, part.width - part.square)
        later.add_(exponentials[:, part.square :].sum(0))

    def log(self) -> Tensor:
        return self._sums.log().view(2, -1)

    def prepare_weights(self, log_sums: Tensor, positive: Tensor) -> None:
        del log_sums
        if not self._decoupled:
            self._sums.view(2, -1).add_(positive.exp())
        self._sums.reciprocal_()

    def weights(self, part: Tile, logits: Tensor) -> Tensor:
        by_row = self._sums.narrow(0, part.top, part.height).unsqueeze(1)
        by_column = self._sums.narrow(0, part.left, part.width)
        both = torch.add(by_row, by_column, out=self._work.scratch(part, third=True))
        exponentials = torch.exp(logits, out=self._work.scratch(part)) if part.has_vrn else logits.exp_()
        return exponentials.mul_(both)


class _ShiftedSums:
    """For extreme temperatures: a running maximum for each anchor."""

    def __init__(self, work: _Work, problem: Problem) -> None:
        self._work, self._decoupled = work, problem.decoupled
        self._sums = work.z.new_zeros(work.z.shape[0])
        # Below every logit and finite, so that no difference of infinities arises.
        self._top = torch.full_like(self._sums, -2 / abs(problem.temperature))

    def add(self, part: Tile, logits: Tensor) -> None:
        part.without_own(logits, -math.inf)
        self._add(part.top, logits)
        if part.square < part.width:
            self._add(part.left + part.square, logits[:, part.square :].t())

    def _add(self, first: int, logits: Tensor) -> None:
        """Anchors from ``first`` on in the rows of ``logits``."""
        anchors = slice(first, first + logits.shape[0])
        top = torch.maximum(self._top[anchors], logits.amax(1))
        self._sums[anchors] *= torch.exp(self._top[anchors] - top)
        self._sums[anchors] += (logits - top.unsqueeze(1)).exp_().sum(1)
        self._top[anchors] = top

    def log(self) -> Tensor:
        return self._sums.log().add_(self._top).view(2, -1)

    def prepare_weights(self, log_sums: Tensor, positive: Tensor) -> None:
        denominators = log_sums if self._decoupled else torch.logaddexp(log_sums, positive.expand_as(log_sums))
        self._log_denominators = denominators.flatten()

    def weights(self, part: Tile, logits: Tensor) -> Tensor:
        part.without_own(logits, -math.inf)
        by_row = self._log_denominators[part.top : part.top + part.height].unsqueeze(1)
        by_column = self._log_denominators[part.left : part.left + part.width]
        weights = torch.sub(logits, by_row, out=self._work.scratch(part)).exp_()
        return weights.add_(torch.sub(logits, by_column, out=self._work.scratch(part, third=True)).exp_())
