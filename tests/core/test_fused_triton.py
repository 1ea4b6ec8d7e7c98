"""The Triton kernels: interpreted against the tiles, compiled for GPUs that are not here, and run where one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import oracles, triton_cases
from support.triton_cases import CASES, KINDS, errors

from varloss import functional
from varloss._kernels import autograd

errors_of_triton = pytest.importorskip("triton.runtime.errors", reason="Triton is not installed")
triton_kernels = pytest.importorskip("varloss._kernels.triton")
VERSION = tuple(map(int, triton_kernels.triton.__version__.split(".")[:2]))


@pytest.mark.skipif(VERSION == (3, 3), reason="Triton 3.3's interpreter cannot combine a comparison with a constant")
def test_interpreted_kernels_equal_the_tiles():
    """In fp16 alone: Triton's interpreter multiplies the bits of bf16 numbers as integers."""
    program = (
        "import json, torch; from support.triton_cases import CASES, errors, error_at_the_largest_scale; "
        "print(json.dumps([[errors(case, torch.float16, 'cpu') for case in CASES], error_at_the_largest_scale()]))"
    )
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, at_the_largest_scale = json.loads(done.stdout)
    for case, (value, gradient) in zip(CASES, found, strict=True):
        assert value < 1e-6, case
        assert gradient < 3e-6, case
    # As at N >= 8192 with duplicates and a low temperature; NaN where the scaled weights leave fp16.
    assert at_the_largest_scale < 3e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_any_length_are_brought_near_one_exactly(dtype):
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


SUPPORTED = pytest.mark.skipif(not triton_kernels.is_supported(), reason="varloss does without a Triton this old")
# Measured: 52 on sm_80 with Triton 3.5, 36 with 3.6 to 3.9, none on other cards. 3.3 and 3.4 spill at D = 256, for one card 580.
MOST_SPILLED_BYTES = 52 if VERSION >= (3, 5) else 580
# Capability -> shared memory that a multiprocessor lends to one block.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
ALL_CELLS = [(kind, pairs) for kind in KINDS for pairs in (None, *KINDS) if pairs is None or kind in ("both", pairs)]
FEW_CELLS = [("both", None), ("both", "cross")]


def compilations(dims, cells):
    return [
        (capability, dtype, dim, cell)
        for capability in SHARED
        for dtype in ("bf16", "fp16")
        for dim in dims
        for cell in cells
    ]


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "cell"),
    [
        *(made for made in compilations([autograd.TRITON_MAX_DIM], FEW_CELLS) if made[1] == "bf16"),
        (90, "fp16", 128, ("within", None)),
        *(pytest.param(*made, marks=pytest.mark.exhaustive) for made in compilations([64, 128, 256], ALL_CELLS)),
    ],
)
@SUPPORTED
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's CUDA assembler comes with its Linux wheels")
def test_kernels_compile_for_cards_that_are_not_here(capability, dtype, dim, cell, tmp_path, capfd):
    """What no interpreter sees: tiles fit, nothing is computed twice, hardly a register is spilled, nothing is printed."""
    for compiled in triton_cases.compiled(capability, dtype, dim, cell):
        assert compiled.metadata.shared <= SHARED[capability] * 1024
        assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]
        assert not triton_cases.computes_twice(compiled.asm["ttgir"])
        assert triton_cases.spilled_bytes(compiled.asm["ptx"], capability, tmp_path) <= MOST_SPILLED_BYTES
    assert capfd.readouterr().err == ""


def test_an_odd_last_batch_compiles_nothing_anew():
    for kernel in (triton_kernels._sums_kernel, triton_kernels._gradient_kernel):
        assert {p.name for p in kernel.params if p.do_not_specialize} == {"n"}


@pytest.fixture
def asks_triton(monkeypatch):
    """Batches on the CPU count as such that suit Triton, which is new enough, and nothing failed before."""
    monkeypatch.setattr(triton_kernels.triton, "__version__", "3.8.0")
    monkeypatch.setattr(autograd, "_suits_triton", lambda *_: True)
    monkeypatch.setattr(autograd, "WHOLE_ELEMENTS", {"cuda": 0})
    monkeypatch.setattr(autograd, "_triton_failed", False)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler"),
        subprocess.CalledProcessError(1, "gcc"),
        ImportError("libcuda.so"),
        AssertionError("libcuda.so cannot found!"),
        OSError("no room in the cache"),
        errors_of_triton.OutOfResources(115712, 101376, "shared memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_working_triton_the_tiles_go_on(error, asks_triton, monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        raise error

    monkeypatch.setattr(triton_kernels, "value_and_gradient", fail)
    z = [x.requires_grad_() for x in oracles.views(9, 4)]
    with pytest.warns(UserWarning, match=f"does without its Triton kernels.*{type(error).__name__}"):
        ours = functional.nt_xent(*z)
    again = functional.nt_xent(*z)  # a second warning would be an error
    assert calls == [1]
    expected = functional.nt_xent(*z, form="dense")
    for found in (ours, again):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z, retain_graph=True))


def test_triton_that_aborts_on_hopper_is_not_asked(asks_triton, monkeypatch):
    monkeypatch.setattr(triton_kernels.triton, "__version__", "3.2.0")
    monkeypatch.setattr(triton_kernels, "value_and_gradient", None)
    with pytest.warns(UserWarning, match=r"it is older than version 3\.3"):
        functional.nt_xent(*oracles.views(9, 4))


def test_memory_that_runs_out_is_not_taken_for_a_broken_triton(asks_triton, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(triton_kernels, "value_and_gradient", fail)
    with pytest.raises(torch.OutOfMemoryError):
        functional.nt_xent(*oracles.views(9, 4))


@SUPPORTED
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case, dtype):
    value, gradient = errors(case, dtype, "cuda")
    assert value < 1e-6
    assert gradient < 3e-5


@SUPPORTED
@pytest.mark.cuda
def test_large_half_precision_batches_take_it(monkeypatch):
    calls = []
    genuine = triton_kernels.value_and_gradient
    monkeypatch.setattr(triton_kernels, "value_and_gradient", lambda *a: calls.append(1) or genuine(*a))
    z = [x.detach().cuda().bfloat16() for x in oracles.views(2000, 64)]
    ours = functional.nt_xent(*z)
    assert calls
    torch.testing.assert_close(ours, functional.nt_xent(*z, form="linear"))
    assert len(calls) == 1


@SUPPORTED
@pytest.mark.cuda
def test_odd_and_even_batches_share_what_is_compiled():
    z = [x.detach().cuda().bfloat16().requires_grad_() for x in oracles.views(2048, 64)]
    kept = []
    for rows in (2000, 2001, 2016):
        functional.nt_xent(*(x[:rows] for x in z)).backward()
        caches = (kernel.device_caches[0][0] for kernel in triton_kernels.tile_sizes(64))
        kept.append([len(cache) for cache in caches])
    assert kept[0] == kept[1] == kept[2]
