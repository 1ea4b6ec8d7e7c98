"""Tiles of the similarity matrix in two passes: sums first, gradient second. Linear memory, and symmetry used.

Of a symmetric block only the tiles on and above the diagonal are computed: two passes over half of the matrix cost what one
pass over all of it does. What the first pass made of some tiles is kept for the second, as many as stay within a share of
memory that grows with N alone. For middling batches that saves the second product.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from varloss._kernels import gram
from varloss._kernels.problem import Problem, anchor_losses, pull_positives, to_raw_rows, unit_rows

# Two or three buffers of this shape in fp32, with the rows they belong to, stay in a CPU core's second-level cache; fewer
# rows, and the calls begin to cost. A GPU needs tiles that keep it busy.
CPU_TILE = (256, 256)
GPU_TILE = (2048, 4096)
# How much may be kept: this many numbers for each row, and this many bytes at least and at most.
KEPT_PER_ROW = 640
KEPT_BYTES = (8 * 2**20, 64 * 2**20)


@dataclass(frozen=True, slots=True)  # there are many: 65 000 at N = 65536
class Tile:
    """A rectangle of similarities, ``height`` x ``width``, between rows of the two views stacked, (2N, D)."""

    top: int
    height: int
    left: int
    width: int
    square: int  # leading columns that are the rows themselves: there, both orders of each pair are present
    own: int | None  # the diagonal on which a sample meets itself, which is no negative; None where it passes by
    has_vrn: bool

    @property
    def later(self) -> int:
        """How many columns are other rows than the tile's own: there, each pair comes in one order alone."""
        return self.width - self.square

    def without_square(self, x: Tensor) -> Tensor:
        """The part of ``x``, of the tile's shape, in these columns."""
        return x[:, self.square :] if self.square else x

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
                square = bottom - top if within and left == top else 0
                own = top - left if left < bottom and top < right else None
                place = (rows_at + top, bottom - top, columns_at + left, right - left)
                result.append(Tile(*place, square, own, has_vrn))
    return result


def value_and_gradient(
    z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool, tile: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """For any temperature. ``tile`` is the largest tile, rows and columns."""
    n, t = z0.shape[0], problem.temperature
    z, length = unit_rows(z0, z1)
    u, v = z[:n], z[n:]
    closed = problem.has_vrn and gram.costs_less_than_tiles(*z0.shape)
    in_tiles = problem._replace(vrn_weight=0.0) if closed else problem
    parts = tiles(n, in_tiles, tile or (CPU_TILE if z.device.type == "cpu" else GPU_TILE))
    positive = (u * v).sum(1).mul_(1 / t)
    log_sums, squared_gaps, gradient = _both_passes(z, positive, in_tiles, parts, need_gradient)
    value = anchor_losses(log_sums - positive, problem.decoupled).mean()
    if closed:
        value.add_(gram.add_to(gradient, z, problem, 2 * n * t))
    elif problem.has_vrn:
        value.add_(squared_gaps, alpha=problem.slope(n) / 2 * t**2)
    if gradient is None:
        return value, None
    pull_positives(gradient, z, log_sums, positive, problem.decoupled)
    # Not by the lengths, which may be near the largest number.
    return value, to_raw_rows(gradient.mul_(1 / (2 * n * t)), z, length).view(2, n, -1)


def _both_passes(
    z: Tensor, positive: Tensor, problem: Problem, parts: list[Tile], need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logarithms of the sums (2, N), the sum of squared gaps, and 2 N t times the negatives' share of the gradient.

    A function of its own so that its buffers, most of the memory in use, are gone before normalisation needs some.
    """
    n, t = z.shape[0] // 2, problem.temperature
    work = _Work(z, 1 / t, parts, keep=need_gradient)
    sums = (_PlainSums if problem.fits_without_shift(z.dtype) else _ShiftedSums)(work, problem)
    squared_gaps = z.new_zeros(())
    for index, part in enumerate(parts):
        logits = work.logits(index, part)
        sums.add(part, logits)
        if part.has_vrn and not need_gradient:
            _to_gaps(part, logits, problem, squared_gaps)
    log_sums = sums.log()
    if not need_gradient:
        return log_sums, squared_gaps, None

    gradient = torch.zeros_like(z)
    by_rows = _ranges(gradient)
    sums.prepare_weights(log_sums, positive)
    for index, part in enumerate(parts):
        kept = work.kept(index)
        x = work.logits(index, part) if kept is None else kept
        weights = sums.weights(part, x, fresh=kept is None)
        if part.has_vrn:
            gaps = _to_gaps(part, x, problem, squared_gaps)
            weights.add_(gaps, alpha=problem.slope(n) * t * (2 * n * t))
        rows, columns = work.rows(part.top, part.height), work.rows(part.left, part.width)
        by_rows(part.top, part.height).addmm_(weights, columns)
        if part.later:
            by_rows(part.left + part.square, part.later).addmm_(part.without_square(weights).t(), rows)
    return log_sums, squared_gaps, gradient


def _to_gaps(part: Tile, logits: Tensor, problem: Problem, squared_gaps: Tensor) -> Tensor:
    """Turns logits into gaps (P - target) / t, 0 where a sample meets itself, and adds their squares, each pair once."""
    gaps = part.without_own(logits.sub_(problem.target / problem.temperature))
    # By row norms: no squares are written, and each sum stays short.
    for columns, share in ((gaps[:, : part.square], 0.5), (part.without_square(gaps), 1.0)):
        if columns.shape[1]:
            squared_gaps.add_(torch.linalg.vector_norm(columns, dim=1).square_().sum(), alpha=share)
    return gaps


def _ranges(x: Tensor) -> Callable[[int, int], Tensor]:
    """``(first, count)``: that many rows of ``x`` from the first on. Tiles share them, and each is made once."""
    return functools.cache(lambda first, count: x.narrow(0, first, count))


def _shapes(x: Tensor) -> Callable[[int, int], Tensor]:
    """``(height, width)``: the start of a buffer as a matrix; each is made once."""
    return functools.cache(lambda height, width: x[: height * width].view(height, width))


class _Work:
    """Buffers that every tile uses again, and what is kept from the first pass for the second: one allocation."""

    def __init__(self, z: Tensor, inverse_t: float, parts: list[Tile], keep: bool) -> None:
        self.z, self.rows, self._inverse_t = z, _ranges(z), inverse_t
        sizes = [part.height * part.width for part in parts]
        least, most = (bound // z.element_size() for bound in KEPT_BYTES)
        budget = min(max(KEPT_PER_ROW * z.shape[0], least), most) if keep else 0
        count = 0
        while count < len(sizes) and sizes[count] <= budget:
            budget -= sizes[count]
            count += 1
        memory = z.new_empty(sum(sizes[:count]) + 3 * max(sizes))
        *kept, first, second, third = torch.split(memory, [*sizes[:count], *3 * [max(sizes)]])
        self._kept = [x.view(part.height, part.width) for x, part in zip(kept, parts, strict=False)]
        self._logits, self.second, self.third = _shapes(first), _shapes(second), _shapes(third)

    def logits(self, index: int, part: Tile) -> Tensor:
        """The logits of the tile ``parts[index]``, computed; where it is to be kept, into the place where it is."""
        kept = self.kept(index)
        x = self._logits(part.height, part.width) if kept is None else kept
        rows, columns = self.rows(part.top, part.height), self.rows(part.left, part.width)
        return torch.addmm(x, rows, columns.t(), beta=0, alpha=self._inverse_t, out=x)

    def kept(self, index: int) -> Tensor | None:
        """What the first pass made of the logits of ``parts[index]``, where that is kept."""
        return self._kept[index] if index < len(self._kept) else None


class _PlainSums:
    """Sums of exponentials over each anchor's negatives, and the weights they give each pair in the gradient.

    For all but extreme temperatures: nothing to keep from overflowing.
    """

    def __init__(self, work: _Work, problem: Problem) -> None:
        self._work, self._decoupled = work, problem.decoupled
        z = work.z
        self._sums = z.new_zeros(z.shape[0])
        self._by_rows = _ranges(self._sums)

    def _exponentials(self, part: Tile, logits: Tensor) -> Tensor:
        return part.without_own(
            torch.exp(logits, out=self._work.second(part.height, part.width) if part.has_vrn else logits)
        )

    def add(self, part: Tile, logits: Tensor) -> None:
        """Adds a tile to its rows' sums and, for pairs that come in no other order, to its columns'.

        Keeps the logits of tiles that need them for VRN; of others it leaves what :meth:`weights` can start from.
        """
        exponentials = self._exponentials(part, logits)
        self._by_rows(part.top, part.height).add_(exponentials.sum(1))
        if part.later:
            self._by_rows(part.left + part.square, part.later).add_(part.without_square(exponentials).sum(0))

    def log(self) -> Tensor:
        return self._sums.log().view(2, -1)

    def prepare_weights(self, log_sums: Tensor, positive: Tensor) -> None:
        if not self._decoupled:
            self._sums.view(2, -1).add_(positive.exp())
        self._sums.reciprocal_()

    def weights(self, part: Tile, x: Tensor, fresh: bool) -> Tensor:
        """``exp(x_ab) (1/den_a + 1/den_b)`` of a tile, 0 where a sample meets itself.

        From its logits where ``fresh``, else from what :meth:`add` left. Keeps the logits of tiles that need them for VRN.
        """
        exponentials = self._exponentials(part, x) if fresh or part.has_vrn else x
        by_row, by_column = self._by_rows(part.top, part.height), self._by_rows(part.left, part.width)
        both = torch.add(by_row.unsqueeze(1), by_column, out=self._work.third(part.height, part.width))
        return both.mul_(exponentials)


class _ShiftedSums:
    """As :class:`_PlainSums` for extreme temperatures: a running maximum for each anchor. Keeps the logits of all tiles."""

    def __init__(self, work: _Work, problem: Problem) -> None:
        self._work, self._decoupled = work, problem.decoupled
        self._sums = work.z.new_zeros(work.z.shape[0])
        # Below every logit and finite, so that no difference of infinities arises.
        self._top = torch.full_like(self._sums, -2 / abs(problem.temperature))

    def add(self, part: Tile, logits: Tensor) -> None:
        part.without_own(logits, -math.inf)
        self._add(part.top, logits)
        if part.later:
            self._add(part.left + part.square, part.without_square(logits).t())

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

    def weights(self, part: Tile, x: Tensor, fresh: bool) -> Tensor:
        part.without_own(x, -math.inf)
        by_row = self._log_denominators[part.top : part.top + part.height].unsqueeze(1)
        by_column = self._log_denominators[part.left : part.left + part.width]
        second, third = self._work.second(part.height, part.width), self._work.third(part.height, part.width)
        weights = torch.sub(x, by_row, out=second).exp_()
        return weights.add_(torch.sub(x, by_column, out=third).exp_())
