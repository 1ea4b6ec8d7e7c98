"""The Triton kernels beside the tiles: also run in a child whose Triton interprets them."""

from __future__ import annotations

import itertools

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
