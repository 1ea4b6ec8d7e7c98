"""The Triton kernels: interpreted against the tiles, compiled for GPUs that are not here, and run where one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import oracles
from support.triton_cases import CASES, errors

from varloss._kernels import autograd

pytest.importorskip("triton", reason="Triton is not installed")


def test_interpreted_kernels_equal_the_tiles():
    """In fp16 alone: Triton's interpreter multiplies the bits of bf16 numbers as integers."""
    program = (
        "import json, torch; from support.triton_cases import CASES, errors; "
        "print(json.dumps([errors(case, torch.float16, 'cpu') for case in CASES]))"
    )
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for case, (value, gradient) in zip(CASES, json.loads(done.stdout), strict=True):
        assert value < 1e-6, case
        assert gradient < 3e-6, case


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_any_length_are_brought_near_one_exactly(dtype):
    from varloss._kernels import triton as triton_kernels

    limits = torch.finfo(dtype)
    directions = oracles.views(6, 4)[0].detach()
    directions = directions / directions.abs().amax(dim=1, keepdim=True)
    z = torch.stack(
        [d * s for d, s in zip(directions, (0, limits.tiny * 64, 1e-2, 1, 3e4, limits.max / 4), strict=True)]
    )
    z = z.to(dtype)
    rows, scale, length = triton_kernels._near_one(z)
    exact = z.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(length[1:], exact[1:].float())
    assert (length[0].item(), scale[0].item()) == (torch.inf, 0)
    # Short of the scale, which is rounded to fp32, not a digit is lost: ratios of entries are those given.
    torch.testing.assert_close(rows.double() * exact.log2().floor().add(1).exp2(), z.double(), rtol=0, atol=0)
    torch.testing.assert_close((rows.float() * scale.unsqueeze(1))[1:], (z.double() / exact)[1:].float())


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's CUDA assembler comes with its Linux wheels")
def test_kernels_compile_for_tensor_cores(capability, dtype):
    """For the widest rows they take: what no interpreter sees is whether tiles fit and which instructions are used."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from varloss._kernels import triton as triton_kernels

    kinds = {"CROSS": True, "WITHIN": True, "VRN_CROSS": True, "VRN_WITHIN": False}
    dim = autograd.TRITON_MAX_DIM
    constants = {"dim": dim, "DIM": dim, "ROWS": triton_kernels.ROWS, "COLUMNS": triton_kernels.COLUMNS, **kinds}
    arguments = {
        triton_kernels._sums_kernel: (["scale", "sums", "squares"], ["target", "inverse_t"]),
        triton_kernels._gradient_kernel: (
            ["scale", "reciprocal", "gradient"],
            ["target", "inverse_t", "vrn", "split_scale"],
        ),
    }
    for kernel, (pointers, numbers) in arguments.items():
        signature = {"z": f"*{dtype}", **dict.fromkeys(pointers, "*fp32"), "n": "i32", **dict.fromkeys(numbers, "fp32")}
        signature |= dict.fromkeys(constants, "constexpr")
        options = {**triton_kernels.OPTIONS, "num_warps": triton_kernels.WARPS[kernel]}
        compiled = compile_kernel(
            ASTSource(kernel, signature, constexprs=constants),
            target=GPUTarget("cuda", capability, 32),
            options=options,
        )
        # What an SM of these generations lends to one block, the smallest of them (8.6) included.
        assert compiled.metadata.shared <= 99 * 1024
        assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case, dtype):
    value, gradient = errors(case, dtype, "cuda")
    assert value < 1e-6
    assert gradient < 3e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_large_half_precision_batches_take_it(monkeypatch):
    from varloss import functional
    from varloss._kernels import triton as triton_kernels

    calls = []
    genuine = triton_kernels.value_and_gradient
    monkeypatch.setattr(triton_kernels, "value_and_gradient", lambda *a: calls.append(1) or genuine(*a))
    z = [x.detach().cuda().bfloat16() for x in oracles.views(2000, 64)]
    ours = functional.nt_xent(*z)
    assert calls
    torch.testing.assert_close(ours, functional.nt_xent(*z, form="linear"))
    assert len(calls) == 1
