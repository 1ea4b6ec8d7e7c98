"""The Triton kernels beside the tiles: also run in a child whose Triton interprets them."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from support import oracles
from varloss._kernels import tiles
from varloss._kernels.problem import Problem

KINDS = ("cross", "within", "both")
CASES = [
    (kind, decoupled, pairs, shape)
    for kind, decoupled, pairs in itertools.product(KINDS, (False, True), (None, *KINDS))
    if pairs is None or kind in ("both", pairs)
    # More rows than a block, not a multiple of one; fewer rows and dimensions than any block has.
    for shape in ((70, 20), (5, 3))
]


def errors(case: tuple[str, bool, str | None, tuple[int, int]], dtype: torch.dtype, device: str) -> list[float]:
    """Largest difference of value and gradient from the tiles in float64 on the same rows, relative to the largest entry.

    One row is zero; row lengths run over the dtype's range, where products of raw rows would overflow.
    """
    from varloss._kernels import triton as triton_kernels

    kind, decoupled, pairs, shape = case
    z0, z1 = (z.detach() for z in oracles.views(*shape))
    z0[1] = 0
    largest = torch.finfo(dtype).max / 16
    lengths = torch.logspace(-2, 0, shape[0], dtype=torch.float64).unsqueeze(1) * largest
    z = [(x * lengths / x.abs().amax()).to(device, dtype) for x in (z0, z1)]
    problem = Problem(0.3, kind, decoupled, 3.0 if pairs else 0.0, -1 / 19, pairs or "cross")
    expected = tiles.value_and_gradient(*(x.double() for x in z), problem, True)
    found = triton_kernels.value_and_gradient(*z, problem, True)
    alone, nothing = triton_kernels.value_and_gradient(*z, problem, False)
    assert torch.equal(alone, found[0])
    assert nothing is None
    assert not found[1][0, 1].any()
    # Rows differ in length by a hundred, and the gradient with 1 / length: compared times length.
    length = torch.stack(z).double().norm(dim=2, keepdim=True)
    pairs_of = ((found[0], expected[0]), (found[1] * length, expected[1] * length))
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs_of]


def error_at_the_largest_scale() -> float:
    """Largest relative error of a gradient whose weights are split at the scale that large batches have; infinite for NaN.

    A sample whose views are two of one direction, among orthogonal rows, has the largest weight there is.
    """
    from varloss._kernels import triton as triton_kernels

    worst = 0.0
    for temperature in (0.05, 0.03, 0.02):
        for decoupled in (False, True):
            rows = torch.eye(128)
            z0, z1 = rows[:64].clone(), rows[64:].clone()
            z0[1] = z0[0]
            z = [z0.half(), z1.half()]
            problem = Problem(temperature, "both", decoupled, 3.0, -1 / 999, "cross")
            with mock.patch.object(triton_kernels, "min", lambda _, largest: largest, create=True):
                gradient = triton_kernels.value_and_gradient(*z, problem, True)[1]
            expected = tiles.value_and_gradient(*(x.double() for x in z), problem, True)[1]
            error = ((gradient - expected).abs().max() / expected.abs().max()).item()
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def compiled(capability: int, dtype: str, dim: int, cell: tuple[str, str | None]) -> list[Any]:
    """Both kernels for a card that need not be here, as a launch compiles them: pointers are multiples of 16 bytes there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from varloss._kernels import triton as triton_kernels

    kind, pairs = cell
    flags = {
        "CROSS": kind != "within",
        "WITHIN": kind != "cross",
        "VRN_CROSS": pairs in ("cross", "both"),
        "VRN_WITHIN": pairs in ("within", "both"),
    }
    made = []
    for kernel, tile in triton_kernels.tile_sizes(dim).items():
        constants = {"dim": dim, "DIM": dim, **tile, **flags}
        pointers = {"z": f"*{dtype}"} | dict.fromkeys(("scale", "sums", "squares", "reciprocal", "gradient"), "*fp32")
        kinds = {**dict.fromkeys(constants, "constexpr"), **pointers, "n": "i32"}
        signature = {name: kinds.get(name, "fp32") for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in pointers}
        source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
        made.append(
            compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=dict(triton_kernels.OPTIONS))
        )
    return made


def spilled_bytes(ptx: str, capability: int, folder: Path) -> int:
    """Bytes that a kernel's registers spill, by NVIDIA's assembler, which comes with Triton."""
    import triton

    source = folder / "kernel.ptx"
    source.write_text(ptx)
    options = [
        "-v",
        f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}",
        source,
        "-o",
        folder / "kernel.cubin",
    ]
    # From Triton 3.5 on there are two, and only the newer one reads the PTX of newer cards.
    for assembler in sorted((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*")):
        done = subprocess.run([assembler, *options], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return sum(int(found) for found in re.findall(r"(\d+) bytes spill stores", done.stderr))
    raise AssertionError(done.stdout + done.stderr)


def computes_twice(ttgir: str) -> bool:
    """Whether two groups of warps compute the exponentials of the same rows: 16 rows a warp of a layout, more than there are."""
    warps = dict(re.findall(r"(#\w+) = #ttg\.nvidia_mma<\{[^}]*warpsPerCTA = \[(\d+), \d+\]", ttgir))
    exponentials = re.findall(r"math\.exp2? .*?: tensor<(\d+)x\d+xf32, (#\w+)>", ttgir)
    assert exponentials
    return any(layout in warps and int(warps[layout]) * 16 > int(rows) for rows, layout in exponentials)
