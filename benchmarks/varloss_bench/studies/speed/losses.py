"""The losses that `varloss-bench study speed` compares, in groups that compute the same value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import varloss

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE = 0.5
WEIGHT, NUM_SAMPLES = 3.0, 50_000
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0
# A GPU with 80 GB holds what the formulas on the whole matrix keep at this N.
ON_A_GPU = 16384


@dataclass(frozen=True)
class Contender:
    """One implementation of a group's loss.

    Attributes:
        name: As in tables and rows.
        build: Makes the loss; other packages are imported then.
        needs: The package it comes from; None if torch is enough.
        largest: Largest N it is run at, because of memory or time.
        largest_on_cuda: Larger N that a GPU takes; a contender that runs out of memory there is left out.
        only_cuda: Whether it only has CUDA kernels.
        tolerance: Largest allowed difference of value and gradient from ours in fp32.
        is_reference: Whether it computes something else and is timed for reference; it need not agree with ours.
    """

    name: str
    build: Callable[[], Loss]
    needs: str | None = None
    largest: int = 8192
    largest_on_cuda: int = 0
    only_cuda: bool = False
    tolerance: float = 2e-4
    is_reference: bool = False

    def is_here(self, device: str) -> bool:
        """Whether it can run on this machine."""
        return (self.needs is None or find_spec(self.needs) is not None) and (device == "cuda" or not self.only_cuda)

    def takes(self, n: int, device: str) -> bool:
        """Whether it is run at N rows a view."""
        return n <= max(self.largest, self.largest_on_cuda if device == "cuda" else 0)


def _ours_with_vrn() -> Loss:
    return varloss.WithVRN(varloss.NTXentLoss(temperature=TEMPERATURE), weight=WEIGHT, num_samples=NUM_SAMPLES)


def _ours(**options: Any) -> Callable[[], Loss]:
    def build() -> Loss:
        return varloss.NTXentLoss(temperature=TEMPERATURE, **options)

    return build


def _ours_vrn() -> Loss:
    return varloss.VRNRegularizer(weight=1, num_samples=NUM_SAMPLES)


def _ours_sigmoid() -> Loss:
    return varloss.SigmoidLoss(scale=SIGMOID_SCALE, bias=SIGMOID_BIAS)


def _lightly(name: str) -> Callable[[], Loss]:
    def build() -> Loss:
        made: Loss = getattr(import_module("lightly.loss"), name)(temperature=TEMPERATURE)
        return made

    return build


def mask_vrn(z0: Tensor, z1: Tensor) -> Tensor:
    """VRN as in the paper's code: the N x N matrix and a boolean mask."""
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
    similarities = u @ v.T
    off_diagonal = ~torch.eye(u.shape[0], dtype=torch.bool, device=u.device)
    return (similarities[off_diagonal] + 1 / (NUM_SAMPLES - 1)).pow(2).mean()


def _lightly_with_mask_vrn() -> Loss:
    base = _lightly("NTXentLoss")()
    return lambda z0, z1: base(z0, z1) + WEIGHT * mask_vrn(z0, z1)


def indexed_formula(z0: Tensor, z1: Tensor) -> Tensor:
    """SimCLR's loss by sample index, the formula of solo-learn: exponentials, two masks, log of a ratio."""
    z = torch.nn.functional.normalize(torch.cat([z0, z1]), dim=1)
    index = torch.arange(z0.shape[0], device=z.device).repeat(2)
    exponentials = torch.exp(torch.einsum("if,jf->ij", z, z) / TEMPERATURE)
    same = index.unsqueeze(0) == index.unsqueeze(1)
    positive = torch.sum(exponentials * (same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)), 1)
    negative = torch.sum(exponentials * ~same, 1)
    return -torch.mean(torch.log(positive / (positive + negative)))


def plain_formula(z0: Tensor, z1: Tensor) -> Tensor:
    """SimCLR's loss as most people write it: one matrix, its diagonal filled, cross-entropy with the other view's rows."""
    z = torch.nn.functional.normalize(torch.cat([z0, z1]), dim=1)
    logits = z @ z.T / TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -math.inf)
    other = torch.arange(len(z), device=z.device).roll(z0.shape[0])
    return torch.nn.functional.cross_entropy(logits, other)


def plain_formula_with_vrn(z0: Tensor, z1: Tensor) -> Tensor:
    """``plain_formula``, and VRN without a boolean mask: the sum over the matrix less that of its diagonal."""
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
    gaps = (u @ v.T + 1 / (NUM_SAMPLES - 1)).square()
    n = z0.shape[0]
    return plain_formula(z0, z1) + WEIGHT * (gaps.sum() - gaps.diagonal().sum()) / (n * (n - 1))


def sigmoid_formula(z0: Tensor, z1: Tensor) -> Tensor:
    """SigLIP's loss as its paper prints it, on the whole matrix."""
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
    signs = 2 * torch.eye(len(u), dtype=u.dtype, device=u.device) - 1
    return -torch.nn.functional.logsigmoid(signs * (SIGMOID_SCALE * u @ v.T + SIGMOID_BIAS)).sum() / len(u)


def compiled(formula: Loss) -> Callable[[], Loss]:
    """The formula under torch.compile, for all sizes at once: else each size would be compiled anew, seconds each."""

    def build() -> Loss:
        made: Loss = torch.compile(formula, dynamic=True)
        return made

    return build


def _metric_learning() -> Loss:
    losses = import_module("pytorch_metric_learning.losses")
    made: Loss = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=TEMPERATURE))
    return made


def _inf_cl() -> Loss:
    cal_inf_loss = import_module("inf_cl").cal_inf_loss

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
        # The rows are divided by the temperature; its own argument for it is for several ranks.
        total: Tensor = sum(
            cal_inf_loss(a / TEMPERATURE, b, head_dim=min(256, a.shape[1])) for a, b in ((u, v), (v, u))
        )
        return total / 2

    return loss


def _memeff() -> Loss:
    # Its default, stable=True, scales the gradient by sqrt(N / t) in place of 1 / t.
    made: Loss = import_module("memeff").MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)
    return made


@cache
def _number(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device)


def _siglip_kernel() -> Loss:
    fused = import_module("siglip_kernel").fused_siglip_loss

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
        # Its own choice for fp32 tunes fifteen shapes for each size, a minute each time.
        backend = "chunked" if u.dtype == torch.float32 else "auto"
        numbers = (_number(value, u.device) for value in (math.log(SIGMOID_SCALE), SIGMOID_BIAS))
        made: Tensor = fused(u, v, *numbers, backend=backend)
        return made

    return loss


# These multiply in TF32, with a mantissa of 10 bits.
TF32_TOLERANCE = 5e-3

# The first of each group is ours; ratios are times over its time.
GROUPS: dict[str, list[Contender]] = {
    "NT-Xent + VRN": [
        Contender("varloss", _ours_with_vrn, largest=65536),
        Contender("varloss without VRN", _ours(), largest=65536, is_reference=True),
        Contender("lightly + mask VRN", _lightly_with_mask_vrn, "lightly", largest_on_cuda=ON_A_GPU),
        Contender("compiled formula", compiled(plain_formula_with_vrn), "triton", ON_A_GPU, only_cuda=True),
    ],
    "NT-Xent": [
        Contender("varloss", _ours(), largest=65536),
        Contender("lightly", _lightly("NTXentLoss"), "lightly", 4096, ON_A_GPU),
        Contender("solo-learn's formula", lambda: indexed_formula, largest=4096),
        Contender("compiled formula", compiled(plain_formula), "triton", ON_A_GPU, only_cuda=True),
        # O(N^3) in memory.
        Contender("pytorch-metric-learning", _metric_learning, "pytorch_metric_learning", 256),
    ],
    "DCL": [
        Contender("varloss", _ours(decoupled=True), largest=65536),
        Contender("lightly", _lightly("DCLLoss"), "lightly", 4096),
    ],
    "VRN": [
        Contender("varloss", _ours_vrn, largest=65536),
        Contender("boolean mask", lambda: mask_vrn),
    ],
    "InfoNCE": [
        Contender("varloss", _ours(negatives="cross"), largest=65536),
        Contender("inf-cl", _inf_cl, "inf_cl", 65536, only_cuda=True, tolerance=TF32_TOLERANCE),
        Contender("memeff", _memeff, "memeff", 65536, only_cuda=True, tolerance=TF32_TOLERANCE),
    ],
    "sigmoid": [
        Contender("varloss", _ours_sigmoid, largest_on_cuda=ON_A_GPU),
        Contender("plain formula", lambda: sigmoid_formula, largest=4096, largest_on_cuda=ON_A_GPU),
        Contender("siglip-kernel", _siglip_kernel, "siglip_kernel", ON_A_GPU, only_cuda=True, tolerance=TF32_TOLERANCE),
    ],
}


def contenders(group: str, device: str) -> list[Contender]:
    """The implementations of a group that run on this machine; ours first."""
    return [c for c in GROUPS[group] if c.is_here(device)]


def disagreement(ours: Loss, theirs: Loss, n: int, d: int, device: str) -> float:
    """Largest difference of value and gradient, relative to the largest entry, on a random batch in fp32."""
    generator = torch.Generator().manual_seed(n)
    views = [torch.randn(n, d, generator=generator).to(device) for _ in range(2)]

    def run(loss: Loss) -> tuple[Tensor, Tensor]:
        inputs = [z.clone().requires_grad_() for z in views]
        value = loss(*inputs)
        return value.detach(), torch.stack(torch.autograd.grad(value, inputs))

    pairs = list(zip(run(ours), run(theirs), strict=True))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
