"""The whole similarity matrix at once, for small batches: as few calls as possible, since calls are what they cost."""

import torch
from torch import Tensor

from varloss._kernels.problem import Problem, anchor_losses, to_raw_rows, unit_rows


def value_and_gradient(z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """For problems that fit without a shift."""
    n, t = z0.shape[0], problem.temperature
    z, length = unit_rows(z0, z1)
    layout = LAYOUTS[problem.negatives](z, n)
    logits = layout.logits(1 / t)
    positive = layout.positives(logits, 1 / t)
    if problem.has_vrn:
        slope = problem.slope(n)
        exponentials = logits.exp()
        # From here on ``logits`` holds gaps (P - target) / t, and 0 where there is no pair of negatives.
        layout.not_negative(logits.sub_(problem.target / t)).zero_()
        gaps = _vrn_block(logits, problem, n)
    else:
        exponentials = logits.exp_()
    layout.not_negative(exponentials).zero_()

    sums = layout.sums(exponentials)
    gap = sums.log().sub_(positive)
    value = anchor_losses(gap, problem.decoupled).mean()
    if problem.has_vrn:
        value.add_(gaps.square().sum(), alpha=slope * t**2 * layout.share_of_pairs)
    if not need_gradient:
        return value, None

    # Weights of the rows in the gradient, all short of the factor ``scale`` that the last product puts in.
    scale = 1 / (2 * n * t)
    reciprocal = (sums if problem.decoupled else sums.add_(positive.exp())).reciprocal_()
    weights = exponentials.mul_(layout.outer_sum(reciprocal))
    if problem.has_vrn:
        _vrn_block(weights, problem, n).add_(gaps, alpha=slope * t / scale)
    pull = 2.0 if problem.decoupled else gap.sigmoid_().sum(0)
    return value, to_raw_rows(layout.gradient(weights, pull, scale), z, length).view(2, n, -1)


def vrn_value_and_gradient(
    z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """VRN alone, ``problem.vrn_weight`` times."""
    n, slope = z0.shape[0], problem.slope(z0.shape[0])
    z, length = unit_rows(z0, z1)
    layout = LAYOUTS[problem.pairs](z, n)
    gaps = layout.logits(1.0).sub_(problem.target)
    layout.not_negative(gaps).zero_()
    value = gaps.square().sum().mul_(slope * layout.share_of_pairs)
    if not need_gradient:
        return value, None
    return value, to_raw_rows(layout.gradient(gaps, 0.0, slope), z, length).view(2, n, -1)


def _vrn_block(x: Tensor, problem: Problem, n: int) -> Tensor:
    """The part of ``x``, of the layout's shape, that holds VRN's pairs."""
    if problem.pairs == problem.negatives:
        return x
    # The quadrants off (cross) or on (within) the diagonal of the layout that has both.
    step, start = (2 * n * n - n, n) if problem.pairs == "cross" else (2 * n * n + n, 0)
    return x.as_strided((2, n, n), (step, 2 * n, 1), start)


class _Both:
    """One (2N, 2N) matrix."""

    share_of_pairs = 0.25

    def __init__(self, z: Tensor, n: int) -> None:
        self.z, self.n = z, n

    def logits(self, inverse_t: float) -> Tensor:
        z = self.z
        x = z.new_empty(2 * self.n, 2 * self.n)
        return torch.addmm(x, z, z.t(), beta=0, alpha=inverse_t, out=x)

    def positives(self, logits: Tensor, inverse_t: float) -> Tensor:
        return logits.diagonal(self.n).clone()

    def not_negative(self, x: Tensor) -> Tensor:
        n = self.n
        return x.as_strided((2, 2, n), (2 * n * n, n, 2 * n + 1))

    def sums(self, exponentials: Tensor) -> Tensor:
        return exponentials.sum(1).view(2, self.n)

    def outer_sum(self, r: Tensor) -> Tensor:
        return r.view(-1, 1) + r.view(1, -1)

    def gradient(self, weights: Tensor, pull: Tensor | float, scale: float) -> Tensor:
        n = self.n
        weights.as_strided((2, n), (2 * n * n - n, 2 * n + 1), n).sub_(pull)
        g = torch.empty_like(self.z)
        return torch.addmm(g, weights, self.z, beta=0, alpha=scale, out=g)


class _Cross:
    """(N, N): rows of view 0, columns of view 1."""

    share_of_pairs = 0.5

    def __init__(self, z: Tensor, n: int) -> None:
        self.z, self.n = z, n
        self.u, self.v = z[:n], z[n:]

    def logits(self, inverse_t: float) -> Tensor:
        x = self.z.new_empty(self.n, self.n)
        return torch.addmm(x, self.u, self.v.t(), beta=0, alpha=inverse_t, out=x)

    def positives(self, logits: Tensor, inverse_t: float) -> Tensor:
        return logits.diagonal().clone()

    def not_negative(self, x: Tensor) -> Tensor:
        return x.diagonal()

    def sums(self, exponentials: Tensor) -> Tensor:
        return torch.stack([exponentials.sum(1), exponentials.sum(0)])

    def outer_sum(self, r: Tensor) -> Tensor:
        return r[0].unsqueeze(1) + r[1]

    def gradient(self, weights: Tensor, pull: Tensor | float, scale: float) -> Tensor:
        weights.diagonal().sub_(pull)
        g, n = torch.empty_like(self.z), self.n
        torch.addmm(g[:n], weights, self.v, beta=0, alpha=scale, out=g[:n])
        torch.addmm(g[n:], weights.t(), self.u, beta=0, alpha=scale, out=g[n:])
        return g


class _Within:
    """(2, N, N): a matrix for each view. The positives stand in neither."""

    share_of_pairs = 0.25

    def __init__(self, z: Tensor, n: int) -> None:
        self.z, self.n = z, n
        self.views = z.view(2, n, -1)

    def logits(self, inverse_t: float) -> Tensor:
        x = self.z.new_empty(2, self.n, self.n)
        return torch.baddbmm(x, self.views, self.views.mT, beta=0, alpha=inverse_t, out=x)

    def positives(self, logits: Tensor, inverse_t: float) -> Tensor:
        return (self.views[0] * self.views[1]).sum(1).mul_(inverse_t)

    def not_negative(self, x: Tensor) -> Tensor:
        return x.diagonal(0, 1, 2)

    def sums(self, exponentials: Tensor) -> Tensor:
        return exponentials.sum(2)

    def outer_sum(self, r: Tensor) -> Tensor:
        return r.unsqueeze(2) + r.unsqueeze(1)

    def gradient(self, weights: Tensor, pull: Tensor | float, scale: float) -> Tensor:
        other_view = self.views.flip(0).mul_(pull.unsqueeze(1) if isinstance(pull, Tensor) else pull)
        g = torch.baddbmm(other_view, weights, self.views, beta=-scale, alpha=scale)
        return g.view(2 * self.n, -1)


LAYOUTS: dict[str, type[_Both | _Cross | _Within]] = {"both": _Both, "cross": _Cross, "within": _Within}
