"""Arithmetic shared by every loss: at least fp32, also under autocast; no TF32; one masked log-sum-exp."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor


def wide(z: Tensor) -> Tensor:
    """``z`` in fp32 where it was narrower; float64 stays float64.

    A target of -1/(n-1) is about -2e-5 at n = 50 000 and vanishes in fp16 and bf16 similarities.
    """
    return z.to(torch.promote_types(z.dtype, torch.float32))


def widest(z: Tensor) -> Tensor:
    """``z`` in float64 where the device has it: for a final difference of two large numbers."""
    return z if z.device.type == "mps" else z.double()


def lengths(z: Tensor) -> Tensor:
    """(N, 1) lengths of wide rows, infinite for those that count as zero rows; NaN where a row holds one.

    Squares are added in float64, so that fp32 rows of any length from the smallest normal number to the largest keep theirs.
    Shorter ones count as zero rows: devices that flush subnormals see zeros there, and 1/length would overflow. Float64 rows
    (and fp32 ones on MPS, which has no float64) count as zero rows where their squares leave the range.
    """
    squares = z.dtype if z.device.type == "mps" else torch.float64
    tiny = torch.finfo(z.dtype).tiny
    shortest = tiny if squares != z.dtype else 64 * math.sqrt(tiny)
    length: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=squares)
    return torch.threshold(length, shortest, math.inf).to(z.dtype)


def unit(z: Tensor) -> Tensor:
    """Rows of ``z`` scaled to length 1 in at least fp32; a zero row stays zero and gets a zero gradient.

    Dividing by an infinite length gives both; the usual ``max(norm, eps)`` gives a gradient of 1/eps there.
    """
    z = wide(z)
    return z / lengths(z)


def full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Full fp32 products: no autocast, no TF32 on CUDA, no bf16 on CPUs whose matmul precision was lowered.

    Nothing is entered where nothing lowers the precision: the contexts cost as much as five operations.
    """
    entered = _flags.entered
    # Whoever enters between the three looks may raise the flags and put them back while the caller multiplies.
    alone = entered == _flags.left and _products_are_ieee() and entered == _flags.entered
    if alone and not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return _ieee_products(device_type)


def _products_are_ieee() -> bool:
    if not _HAS_BACKENDS:
        return torch.get_float32_matmul_precision() == "highest"
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return cuda.fp32_precision in ("none", "ieee") and cpu.fp32_precision in ("none", "ieee")


@contextlib.contextmanager
def _ieee_products(device_type: str) -> Iterator[None]:
    """The flags belong to the process: the first thread that enters raises them, and the last that leaves puts them back."""
    with _flags.lock:
        _flags.entered += 1
        if _flags.entered == _flags.left + 1:
            _flags.lowered = _raise_precision()
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        with _flags.lock:
            if _flags.entered == _flags.left + 1:
                _put_back(_flags.lowered)
            _flags.left += 1


class _flags:  # noqa: N801  (one of them, for the process)
    lock = threading.Lock()
    entered = left = 0  # how often, in this process
    lowered: ClassVar[list[tuple[Any, str]]] = []


_HAS_BACKENDS = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # since torch 2.9


def _raise_precision() -> list[tuple[Any, str]]:
    """Make fp32 products IEEE; returns the flags that were not, with their values. ``torch`` stands for the one of torch < 2.9."""
    if not _HAS_BACKENDS:
        if (before := torch.get_float32_matmul_precision()) == "highest":
            return []
        torch.set_float32_matmul_precision("highest")
        return [(torch, before)]
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    lowered = [(backend, backend.fp32_precision) for backend in backends]
    lowered = [(backend, precision) for backend, precision in lowered if precision not in ("none", "ieee")]
    for backend, _ in lowered:
        backend.fp32_precision = "ieee"
    return lowered


def _put_back(lowered: list[tuple[Any, str]]) -> None:
    for backend, precision in lowered:
        if backend is torch:
            torch.set_float32_matmul_precision(precision)
            continue
        # "none" follows the flag of all backends. A flag that only followed it goes on to do so.
        backend.fp32_precision = "none"
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision


def _plain_products(a: Tensor, b: Tensor) -> Tensor:
    with full_precision(a.device.type):
        return a @ b.mT


# A custom operator rather than ``a @ b.mT``: torch.compile, autocast and fake tensors see one opaque node, so that the
# precision holds in the backward pass and in compiled code too.
@torch.library.custom_op("varloss::products", mutates_args=())
def _products(a: Tensor, b: Tensor) -> Tensor:
    return _plain_products(a, b)


@_products.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-2])


def _save_factors(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _products_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors  # type: ignore[attr-defined]
    need_a, need_b = ctx.needs_input_grad  # type: ignore[attr-defined]
    # The operator again, so that the gradient is as precise as the value and can itself be differentiated.
    return (products(grad, b.mT) if need_a else None, products(grad.mT, a.mT) if need_b else None)


_products.register_autograd(_products_backward, setup_context=_save_factors)


def products(a: Tensor, b: Tensor) -> Tensor:
    """All inner products ``a @ b.mT`` of rows of ``a`` and rows of ``b``, (..., N, D) and (..., M, D) -> (..., N, M)."""
    compiling = torch.compiler.is_compiling()
    if a.dtype == torch.float64 and not compiling:  # nothing lowers its precision
        return a @ b.mT
    if compiling or (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return _products(a, b)  # type: ignore[no-any-return]
    # Nothing has to look into it, and an operator's dispatch costs as much as ten plain ones.
    return _plain_products(a, b)


def masked_logsumexp(logits: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the last axis of the entries that ``keep`` selects, and which rows have any.

    Masked before the maximum is taken, so that no excluded entry can overflow the sum. A row with nothing to keep yields
    a finite number that the caller must discard (``-inf`` would turn its zero gradient into NaN).
    """
    some = keep.any(dim=-1)
    return torch.logsumexp(logits.masked_fill(~keep & some.unsqueeze(-1), -math.inf), dim=-1), some


def own_columns(rows: int, total: int, offset: int, device: torch.device) -> Tensor:
    """(rows, total) mask that is true where column ``offset + i`` meets row ``i``: a sample and itself."""
    return torch.arange(offset, offset + rows, device=device).unsqueeze(1) == torch.arange(total, device=device)


def group_sizes(labels: Tensor) -> Tensor:
    """How many entries of ``labels`` equal each one: (M,) -> (M,). By sorting: no M x M mask and no host sync."""
    ordered = labels.sort().values
    return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)


def joint_labels(first: Tensor, second: Tensor) -> Tensor:
    """One label for each pair of labels. Ranks are below M, so the product of two cannot overflow as hashes could."""
    rank = [torch.searchsorted(labels.sort().values, labels) for labels in (first, second)]
    return rank[0] * first.shape[0] + rank[1]
