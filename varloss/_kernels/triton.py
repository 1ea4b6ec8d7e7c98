"""Triton kernels for large batches of half-precision rows on CUDA: tensor cores at full precision, no tile leaves the chip.

Half-precision rows are exact as they stand, and so are their products in fp32: similarities are products of RAW rows times
both rows' reciprocal lengths. Unit rows would have to be rounded. In the gradient a weight is split in two half-precision
numbers, which together hold it to 2^-16 or better.

Three products rather than the two of ``tiles``, since a row block looks at all columns and nothing is added up across
blocks: no atomics, the same result each time.
"""

# Kernels are a language of their own: no annotations, and arguments by position.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped, import-not-found"
# ruff: noqa: PLR0917

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from varloss._core.numerics import lengths, wide
from varloss._kernels.problem import Problem, anchor_losses, pull_positives, to_raw_rows

# Triton 3.0 to 3.2 abort the process where they compile the gradient for Hopper.
OLDEST = (3, 3)
# Set here because Triton 3.10 changes the default.
OPTIONS = {"enable_fp_fusion": True, "num_warps": 4}
# A weight times its column's scale is below 4, and VRN adds to it: scaled by this it fits into fp16.
MAX_SPLIT_SCALE = 2**12


def is_supported() -> bool:
    """Whether this Triton compiles the kernels for every card that they are for."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= OLDEST


def tile_sizes(dim: int) -> dict[Any, dict[str, int]]:
    """Rows and columns of each kernel's tiles for rows of dimension ``dim``.

    Compiled for 8.0, 8.6, 8.9, 9.0 and 12.0, a block fits into the 99 KiB of the smaller cards, and no two groups of warps
    compute the same weights, as 8 warps on 64 rows do on Hopper. From Triton 3.5 on at most 52 bytes are spilled.
    """
    return {
        _sums_kernel: {"ROWS": 64, "COLUMNS": 64},
        _gradient_kernel: {"ROWS": 64, "COLUMNS": 64 if dim <= 128 else 32},
    }


@triton.jit
def _logits(rows, columns, row_scale, column_scale):
    products = tl.dot(rows, tl.trans(columns), input_precision="ieee")
    return products * row_scale[:, None] * column_scale[None, :]


@triton.jit
def _block(z, scale, index, valid, dim: tl.constexpr, DIM: tl.constexpr):
    """Rows at ``index`` of z, zero where not ``valid``, with their scale."""
    d = tl.arange(0, DIM)
    rows = tl.load(z + index[:, None] * dim + d[None, :], mask=valid[:, None] & (d[None, :] < dim), other=0.0)
    return rows, tl.load(scale + index, mask=valid, other=0.0)


# An odd last batch must not compile them anew.
@triton.jit(do_not_specialize=["n"])
def _sums_kernel(
    z, scale, sums, squares, n, target, inverse_t,
    dim: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CROSS: tl.constexpr, WITHIN: tl.constexpr, VRN_CROSS: tl.constexpr, VRN_WITHIN: tl.constexpr,
):  # fmt: skip
    """Per anchor: the sum of exponentials over its negatives, and of squared gaps over VRN's pairs."""
    view = tl.program_id(1)
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = sample < n
    rows, row_scale = _block(z, scale, view * n + sample, here, dim, DIM)
    total = tl.zeros([ROWS], dtype=tl.float32)
    square = tl.zeros([ROWS], dtype=tl.float32)
    for other in tl.static_range(2):
        same_view = other == view
        if (same_view & WITHIN) | ((not same_view) & CROSS):
            for start in range(0, n, COLUMNS):
                partner = start + tl.arange(0, COLUMNS)
                there = partner < n
                columns, column_scale = _block(z, scale, other * n + partner, there, dim, DIM)
                p = _logits(rows, columns, row_scale, column_scale)
                pair = (sample[:, None] != partner[None, :]) & there[None, :]
                total += tl.sum(tl.where(pair, tl.exp(p * inverse_t), 0.0), axis=1)
                if (same_view & VRN_WITHIN) | ((not same_view) & VRN_CROSS):
                    gap = tl.where(pair, p - target, 0.0)
                    square += tl.sum(gap * gap, axis=1)
    tl.store(sums + view * n + sample, total, mask=here)
    tl.store(squares + view * n + sample, square, mask=here)


@triton.jit(do_not_specialize=["n"])
def _gradient_kernel(
    z, scale, reciprocal, gradient, n, target, inverse_t, vrn, split_scale,
    dim: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CROSS: tl.constexpr, WITHIN: tl.constexpr, VRN_CROSS: tl.constexpr, VRN_WITHIN: tl.constexpr,
):  # fmt: skip
    """Per anchor: the sum over the other rows of each pair's weight, from both its ends, times the other unit row."""
    view = tl.program_id(1)
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = sample < n
    rows, row_scale = _block(z, scale, view * n + sample, here, dim, DIM)
    row_reciprocal = tl.load(reciprocal + view * n + sample, mask=here, other=0.0)
    total = tl.zeros([ROWS, DIM], dtype=tl.float32)
    for other in tl.static_range(2):
        same_view = other == view
        if (same_view & WITHIN) | ((not same_view) & CROSS):
            for start in range(0, n, COLUMNS):
                partner = start + tl.arange(0, COLUMNS)
                there = partner < n
                columns, column_scale = _block(z, scale, other * n + partner, there, dim, DIM)
                column_reciprocal = tl.load(reciprocal + other * n + partner, mask=there, other=0.0)
                p = _logits(rows, columns, row_scale, column_scale)
                weight = tl.exp(p * inverse_t) * (row_reciprocal[:, None] + column_reciprocal[None, :])
                if (same_view & VRN_WITHIN) | ((not same_view) & VRN_CROSS):
                    weight += vrn * (p - target)
                pair = (sample[:, None] != partner[None, :]) & there[None, :]
                weight = tl.where(pair, weight * column_scale[None, :] * split_scale, 0.0)
                # The upper and the lower half of the weight's digits, each times rows that are exact.
                upper = weight.to(columns.dtype)
                lower = (weight - upper.to(tl.float32)).to(columns.dtype)
                total = tl.dot(upper, columns, acc=total, input_precision="ieee")
                total = tl.dot(lower, columns, acc=total, input_precision="ieee")
    d = tl.arange(0, DIM)
    out = gradient + (view * n + sample)[:, None] * dim + d[None, :]
    tl.store(out, total / split_scale, mask=here[:, None] & (d[None, :] < dim))


def value_and_gradient(z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """For views of one half-precision dtype, D up to 256, and problems that fit fp32 without a shift."""
    # Triton launches on the current device, wherever its arguments are.
    with torch.cuda.device_of(z0):
        return _value_and_gradient(z0, z1, problem, need_gradient)


def _near_one(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows at lengths in [1/2, 1), what makes unit rows of them, (2N,), and :func:`varloss._core.numerics.lengths` of ``z``.

    By powers of two, which changes no digit, so that products of the rows cannot overflow.
    """
    length = lengths(wide(z))
    counts = length < torch.inf
    mantissa, exponent = torch.frexp(torch.where(counts, length, 1.0))
    return torch.ldexp(wide(z), -exponent).to(z.dtype), torch.where(counts, 1 / mantissa, 0.0).squeeze(1), length


def _value_and_gradient(z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    (n, dim), t = z0.shape, problem.temperature
    z, scale, length = _near_one(torch.cat([z0, z1]))
    kinds = {
        "CROSS": problem.negatives != "within",
        "WITHIN": problem.negatives != "cross",
        "VRN_CROSS": problem.has_vrn and problem.pairs != "within",
        "VRN_WITHIN": problem.has_vrn and problem.pairs != "cross",
    }
    width = {"dim": dim, "DIM": max(16, triton.next_power_of_2(dim))}
    sizes = tile_sizes(dim)

    sums, squares = scale.new_empty(2 * n), scale.new_empty(2 * n)
    _sums_kernel[triton.cdiv(n, sizes[_sums_kernel]["ROWS"]), 2](
        z, scale, sums, squares, n, problem.target, 1 / t, **width, **sizes[_sums_kernel], **kinds, **OPTIONS
    )
    unit = wide(z) * scale.unsqueeze(1)
    positive = (unit[:n] * unit[n:]).sum(1).mul_(1 / t)
    log_sums = sums.log().view(2, n)
    value = anchor_losses(log_sums - positive, problem.decoupled).mean()
    slope = problem.slope(n) if problem.has_vrn else 0.0
    if problem.has_vrn:
        # Every pair was met from both its ends.
        value.add_(squares.sum(), alpha=slope / 4)
    if not need_gradient:
        return value, None

    factor = 1 / (2 * n * t)
    if not problem.decoupled:
        sums.view(2, n).add_(positive.exp())
    gradient = torch.empty_like(unit)
    split_scale = float(min(2 * n, MAX_SPLIT_SCALE))
    _gradient_kernel[triton.cdiv(n, sizes[_gradient_kernel]["ROWS"]), 2](
        z, scale, sums.reciprocal_(), gradient, n, problem.target, 1 / t, slope / factor, split_scale,
        **width, **sizes[_gradient_kernel], **kinds, **OPTIONS,
    )  # fmt: skip
    pull_positives(gradient, unit, log_sums, positive, problem.decoupled)
    return value, to_raw_rows(gradient.mul_(factor), unit, length).view(2, n, dim)
