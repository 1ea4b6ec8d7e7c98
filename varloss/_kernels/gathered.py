"""Local anchors against the rows of all ranks: panels of whole rows, so that one pass gives sums and gradient."""

import math

import torch
from torch import Tensor

from varloss._kernels.problem import Problem, anchor_losses, pull_positives, to_raw_rows, unit_rows

# Logits held at once: at least MIN_HEIGHT rows, at most MAX_HEIGHT, against all columns.
PANEL_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
MIN_HEIGHT, MAX_HEIGHT = 16, 4096


def value_and_gradient(
    views: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    offset: int,
    problem: Problem,
    need_gradient: bool,
    *,
    height: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """For any temperature, without VRN; also the (2, M, D) gradient by ``keys``. ``height``: number of anchors in a panel."""
    n, m, t = views[0].shape[0], keys[0].shape[0], problem.temperature
    z, length = unit_rows(*views)
    k, key_length = unit_rows(*keys)
    positive = (z[:n] * z[n:]).sum(1).mul_(1 / t)
    shifted = not problem.fits_without_shift(z.dtype)
    gradient, key_gradient = torch.zeros_like(z), torch.zeros_like(k)
    log_sums = z.new_empty(2, n)
    if height is None:
        columns = 2 * m if problem.negatives == "both" else m
        elements = PANEL_ELEMENTS.get(z.device.type, PANEL_ELEMENTS["cuda"])
        height = max(MIN_HEIGHT, min(MAX_HEIGHT, elements // columns))

    for view in (0, 1):
        key_view = view if problem.negatives == "within" else 1 - view
        source = slice(0, 2 * m) if problem.negatives == "both" else slice(key_view * m, key_view * m + m)
        others = k[source]
        for top in range(0, n, height):
            anchors = slice(top, min(top + height, n))
            rows = z[view * n : view * n + n][anchors]
            panel = torch.mm(rows, others.t()).mul_(1 / t)
            # (height, 1 or 2, M): the anchors' own samples stand on a diagonal of each M.
            own = panel.view(rows.shape[0], -1, m).diagonal(offset + top, 0, 2)
            # The largest negative of each anchor where exponentials could overflow; nothing to keep in mind otherwise.
            peak: Tensor | float = 0.0
            if shifted:
                own.fill_(-math.inf)
                peak = panel.amax(1)
                panel.sub_(peak.unsqueeze(1))
            exponentials = panel.exp_()
            own.zero_()
            sums = exponentials.sum(1)
            log_sums[view, anchors] = sums.log() + peak
            if not need_gradient:
                continue
            if not problem.decoupled:
                # Infinite where the positive dwarfs every negative: their weights are then 0.
                sums += (positive[anchors] - peak).exp()
            weights = exponentials.div_(sums.unsqueeze(1))
            torch.mm(weights, others, out=gradient[view * n : view * n + n][anchors])
            key_gradient[source].addmm_(weights.t(), rows)

    value = anchor_losses(log_sums - positive, problem.decoupled).mean()
    if not need_gradient:
        return value, None, None
    scale = 1 / (2 * n * t)
    pull_positives(gradient, z, log_sums, positive, problem.decoupled)
    return (
        value,
        to_raw_rows(gradient.mul_(scale), z, length).view(2, n, -1),
        to_raw_rows(key_gradient.mul_(scale), k, key_length).view(2, m, -1),
    )
