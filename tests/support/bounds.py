"""A loss in float64 by its formula, and how far a computation in fewer digits may be from it.

The bounds follow from four facts about a computation with rounding ``eps``:

- A unit row has ``eps`` of its length (a length, a division), or ``D/4 + 2`` of them in float64, whose squares are added in
  float64. The product of two has D/2 more. So a similarity is off by ``e = (D + 4) eps``.
- A sum of K numbers is off by ``add(K) eps`` of the sum of their sizes: torch adds in blocks, whose results it adds in blocks.
- What is smaller than the smallest normal number may be lost.
- A loss is a sum of terms of similarities. Value and gradient are off by what ``e`` makes of them, which the formula itself
  tells: by its derivative ``c`` by each similarity, and by how much c differs at similarities that are ``e`` larger or
  smaller. That is all for terms of one similarity each, whose c is monotone. A softmax changes c by at most a factor
  exp(2 e / t).

A gradient by a row adds one vector of length 1 for each similarity, c times; its part along the row is taken off, and it is
divided by the row's length. The order of the operations differs from route to route: ``SLACK`` times the bound is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support import oracles

SLACK = 2.0

Similarities = Any  # oracles.TwoViews or oracles.Rows


@dataclass
class Part:
    """Terms whose sum is the loss, or a part of it that is computed by itself.

    ``slope`` is that of a softmax's logits by the similarities, 1/t; 0 where each term depends on one similarity.
    ``roundings`` is what evaluating a term costs, as an error of its similarities in eps. ``absolute`` is, for a difference of
    large numbers, their size for each similarity's derivative, and ``documented`` what the docstring says of the value.
    """

    terms: Callable[[Similarities], Tensor]
    slope: float = 0.0
    roundings: float = 4.0
    absolute: float = 0.0
    documented: Callable[[float], float] | None = None


@dataclass
class Exact:
    value: float
    value_error: float
    gradients: list[Tensor]
    gradient_errors: list[Tensor]  # for each row, times its length
    sizes: list[Tensor]  # of what is added up, for each row, times its length
    by_factor: float  # the derivative by a factor on all similarities, at 1
    by_shift: float  # the derivative by a number added to all of them
    shift_error: float  # of both
    unsure: bool = False


def add(count: int) -> float:
    return min(count, 16 + math.log2(count)) if count > 1 else 0.0


def similarity_error(dim: int, eps: float) -> float:
    return (dim + 4) * eps


def formula(
    parts: Sequence[Part],
    build: Callable[..., Similarities],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    constants: Sequence[Tensor] = (),
) -> Exact:
    """The loss ``sum of parts`` of ``build(*unit rows of inputs, *constants)``, for a computation in ``dtype``."""
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    leaves = [z.detach().double().requires_grad_() for z in inputs]
    units = [oracles.unit_rows(z, dtype) for z in leaves]
    similarities = build(*units, *constants)
    value = sum((part.terms(similarities).sum() for part in parts), torch.zeros((), dtype=torch.float64))
    gradients = list(_gradients(value, leaves))
    error, of_similarities, sizes = 0.0, [], []
    by_factor, by_shift, shift_error = 0.0, 0.0, 0.0
    dim, columns = leaves[0].shape[1], similarities.matrix.shape[1]
    for part in parts:
        e = similarity_error(dim, eps) + part.roundings * eps
        terms, slopes = _slopes(part, similarities)
        largest = [slope.abs() for slope in slopes]
        if part.slope:
            changes = [slope * math.expm1(2 * abs(part.slope) * e) for slope in largest]
        else:
            moved = [_slopes(part, similarities, by)[1] for by in (e, -e)]
            changes = [torch.maximum(*((m - s).abs() for m in pair)) for s, *pair in zip(slopes, *moved, strict=True)]
        if part.absolute:
            largest = [torch.where(change > 0, part.absolute, 0.0).double() for change in changes]
        if part.documented is not None:
            error += part.documented(terms.sum().item())
        else:
            error += sum(
                (slope * e + change * e / 2).sum().item() for slope, change in zip(largest, changes, strict=True)
            )
            error += (add(terms.numel()) + 4) * eps * terms.abs().sum().item() + 4 * tiny
        lost = 4 * tiny * (1 + abs(part.slope))
        relative = (dim + 2 * add(columns) + 16) * eps
        of_similarities.append([s * relative + c + lost for s, c in zip(largest, changes, strict=True)])
        sizes.append(largest)
        for slope, size, off, x in zip(slopes, largest, of_similarities[-1], _leaves(similarities), strict=True):
            by_factor += (slope * x).sum().item()
            by_shift += slope.sum().item()
            shift_error += (off + size * e).sum().item()
    return Exact(
        value.item(),
        SLACK * error,
        gradients,
        [SLACK * x for x in _by_rows(of_similarities, build, units, constants)],
        _by_rows(sizes, build, units, constants),
        by_factor,
        by_shift,
        SLACK * shift_error,
        getattr(similarities, "unsure", False),
    )


def _gradients(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(torch.zeros_like(z) for z in inputs)
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)


def _leaves(similarities: Similarities) -> tuple[Tensor, Tensor]:
    return similarities.positive.detach(), similarities.matrix.detach()


def _slopes(part: Part, similarities: Similarities, by: float = 0.0) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A part's terms and its derivative by each similarity, at similarities moved by ``by``."""
    leaves = [(x + by).requires_grad_() for x in _leaves(similarities)]
    moved = type(similarities)(**{**vars(similarities), "positive": leaves[0], "matrix": leaves[1]})
    terms = part.terms(moved)
    return terms.detach(), _gradients(terms.sum(), leaves)  # type: ignore[return-value]


def _by_rows(
    of_similarities: list[list[Tensor]], build: Callable[..., Similarities], units: list[Tensor], constants: Any
) -> list[Tensor]:
    """For each row, the sum over its similarities: as rows of one entry, 1, and a constant row's length, would add it up."""
    ones = [z.new_ones(len(z), 1).requires_grad_() for z in units]
    fixed = [x.norm(dim=1, keepdim=True) if isinstance(x, Tensor) and x.ndim == 2 else x for x in constants]
    counts = build(*ones, *fixed)
    summed = sum(
        ((positive * counts.positive).sum() + (matrix * counts.matrix).sum() for positive, matrix in of_similarities),
        torch.zeros((), dtype=torch.float64),
    )
    return [x.squeeze(1) for x in _gradients(summed, ones)]


def assert_right(
    value: Tensor,
    inputs: Sequence[Tensor],
    exact: Exact,
    dtype: torch.dtype,
    *,
    rounded: int = 1,
    learned: Sequence[tuple[Tensor, float, float]] = (),
) -> None:
    """Value and gradients by ``inputs`` are the formula's, up to the bounds; ``rounded`` is how often gradients are.

    ``learned`` are numbers that scale or shift the logits: each with what it multiplies ``by_factor`` and ``by_shift`` by.
    """
    assert value.dtype == dtype
    error = abs(value.item() - exact.value)
    assert error <= exact.value_error, (
        f"value {value.item()!r} for {exact.value!r}: {error:.3g} > {exact.value_error:.3g}"
    )
    wanted = [*(z for z in inputs if z.requires_grad), *(number for number, *_ in learned)]
    gradients = iter(_gradients(value, wanted))
    found = [next(gradients) if z.requires_grad else None for z in inputs]
    inside = torch.finfo(dtype)
    for _, factor, shift in learned:
        slope, right = next(gradients).item(), factor * exact.by_factor + shift * exact.by_shift
        allowed = (abs(factor) + abs(shift)) * exact.shift_error + 8 * inside.eps * abs(right)
        assert abs(slope - right) <= allowed, (
            f"gradient by a learned number {slope!r} for {right!r}, allowed {allowed:.3g}"
        )
    for which, (gradient, right, errors, sizes, z) in enumerate(
        zip(found, exact.gradients, exact.gradient_errors, exact.sizes, inputs, strict=True)
    ):
        if gradient is None:
            continue
        own, mine = torch.finfo(gradient.dtype), gradient.detach().double()
        largest = min(own.max, inside.max)
        length = torch.linalg.vector_norm(z.detach().double(), dim=1, keepdim=True)
        length = torch.where((right == 0).all(1, keepdim=True) & (length == 0), 1, length)
        # What is added up may leave the range although the sum does not.
        beyond = (sizes.unsqueeze(1) / length > largest / 4) & ~mine.isfinite()
        allowed = errors.unsqueeze(1) / length + rounded * (own.eps / 2 * right.abs()) + 4 * inside.tiny
        allowed = allowed + rounded * own.smallest_normal * own.eps
        if own.eps > inside.eps and rounded > 1:
            allowed = allowed + rounded * own.eps / 2 * sizes.unsqueeze(1) / length
        wrong = ~beyond & ~((mine - right).abs() <= allowed)
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise AssertionError(
                f"gradient by input {which}, row {row}, entry {column}: {mine[row, column].item()!r} for "
                f"{right[row, column].item()!r}, allowed {allowed[row, column].item():.3g}"
            )
