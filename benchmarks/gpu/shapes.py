"""The shapes of tiles that are tried for both Triton kernels, and how a kernel is called with one."""

# The kernels' module has no types.
# mypy: disable-error-code="no-untyped-call,attr-defined,import-untyped,import-not-found,unused-ignore"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

SUMS, GRADIENT = "sums", "gradient"
# Rows, columns, warps. 64x64 with 8 warps is what was used before: two groups of warps compute the same weights there.
TILES = {
    SUMS: ((64, 64, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8), (64, 128, 4)),
    GRADIENT: ((64, 64, 4), (64, 32, 4), (128, 64, 8), (128, 32, 8), (64, 64, 8)),
}
STAGES = (2, 3, 4)
# What Triton takes for NVIDIA's cards where nothing is asked for, as the package does.
DEFAULT_STAGES = 3
DIMS = (128, 64, 256)
SIZES = (8192, 2048)
DTYPES = ("bfloat16", "float16")


class Case(NamedTuple):
    """One kernel for one kind of rows."""

    kernel: str
    dim: int
    dtype: str
    vrn: bool

    def __str__(self) -> str:
        return f"{self.kernel}, D = {self.dim}, {self.dtype}, {'VRN cross' if self.vrn else 'no VRN'}"


class Shape(NamedTuple):
    """How a block is cut and shared out."""

    rows: int
    columns: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns} w{self.warps} s{self.stages}"


def cases(dtype: str, rehearse: bool) -> Iterator[Case]:
    """The cases of one type; the interpreter multiplies fp16 alone, and slowly."""
    for dim in (16,) if rehearse else DIMS:
        for vrn in (True,) if rehearse else (False, True):
            for kernel in (GRADIENT, SUMS):
                yield Case(kernel, dim, dtype, vrn)


def dtypes(rehearse: bool) -> tuple[str, ...]:
    """The types, the more important one first."""
    return ("float16",) if rehearse else DTYPES


def sizes(rehearse: bool) -> tuple[int, ...]:
    """Rows of a view."""
    return (70,) if rehearse else SIZES


def default(case: Case) -> Shape:
    """What the package takes."""
    from varloss._kernels import triton as kernels  # noqa: PLC0415  (Triton is not on every machine)

    tile = kernels.tile_sizes(case.dim)[jitted(case)]
    return Shape(tile["ROWS"], tile["COLUMNS"], int(kernels.OPTIONS["num_warps"]), DEFAULT_STAGES)


def candidates(case: Case, rehearse: bool) -> list[Shape]:
    """The default first, then the others."""
    ours = default(case)
    others = [Shape(*tile, stages) for tile in TILES[case.kernel] for stages in STAGES]
    found = [ours, *(shape for shape in others if shape != ours)]
    return found[:2] if rehearse else found


def jitted(case: Case) -> Any:
    """The kernel as Triton has it."""
    from varloss._kernels import triton as kernels  # noqa: PLC0415

    return kernels._sums_kernel if case.kernel == SUMS else kernels._gradient_kernel


def options(case: Case, shape: Shape) -> dict[str, Any]:
    """The keyword arguments of a launch."""
    from varloss._kernels import triton as kernels  # noqa: PLC0415

    constants = {"dim": case.dim, "DIM": max(16, case.dim), "ROWS": shape.rows, "COLUMNS": shape.columns}
    kinds = {"CROSS": True, "WITHIN": True, "VRN_CROSS": case.vrn, "VRN_WITHIN": False}
    return {**constants, **kinds, **kernels.OPTIONS, "num_warps": shape.warps, "num_stages": shape.stages}


def mock_arguments(case: Case) -> tuple[Any, ...]:
    """Arguments that only have types, to compile for."""
    half, fp32 = getattr(torch, case.dtype), torch.float32
    numbers = (8192, -0.1, 2.0) if case.kernel == SUMS else (8192, -0.1, 2.0, 0.5, 4096.0)
    return (half, fp32, fp32, fp32, *numbers)


class Problem:
    """Rows on the device, and a launch of a kernel on them with any shape."""

    def __init__(self, case: Case, n: int, device: str) -> None:
        from varloss._kernels import triton as kernels  # noqa: PLC0415

        self.case, self.n = case, n
        generator = torch.Generator().manual_seed(n)
        views = torch.randn(2 * n, case.dim, generator=generator).to(device, getattr(torch, case.dtype))
        self.z, self.scale, _ = kernels._near_one(views)
        self.kernel = jitted(case)
        self.first, self.second = self.scale.new_zeros(2 * n), self.scale.new_zeros(2 * n)
        self.gradient = self.scale.new_zeros(2 * n, case.dim)
        # About what the sums are at a temperature of 1/2.
        self.reciprocal = self.scale.new_full((2 * n,), 1 / (2 * n))

    def launch(self, shape: Shape) -> Any:
        """One call of the kernel; returns what Triton compiled."""
        grid = (-(-self.n // shape.rows), 2)
        target, inverse_t = -1 / 49_999, 2.0
        if self.case.kernel == SUMS:
            given = (self.z, self.scale, self.first, self.second, self.n, target, inverse_t)
        else:
            vrn = 12.0 / self.n if self.case.vrn else 0.0
            tensors = (self.z, self.scale, self.reciprocal, self.gradient)
            given = (*tensors, self.n, target, inverse_t, vrn, float(min(2 * self.n, 4096)))  # type: ignore[assignment]
        return self.kernel[grid](*given, **options(self.case, shape))

    def found(self) -> Tensor:
        """A copy of what the kernel wrote last."""
        return torch.cat([self.first, self.second]) if self.case.kernel == SUMS else self.gradient.clone()
