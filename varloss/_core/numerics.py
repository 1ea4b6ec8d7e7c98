"""Arithmetic shared by every loss: at least fp32, also under autocast; no TF32; one masked log-sum-exp."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


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


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` records: numbers that come from shapes are then tensors."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call,no-any-return]


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` runs."""
    if torch.compiler.is_compiling() and _VERSION < (2, 5):  # which cannot trace the question
        return False
    return torch._C._are_functorch_transforms_active()


def follows_operations(z: Tensor) -> bool:
    """Whether forward-mode AD, ``torch.func``, ``torch.jit.trace`` or the meta device looks at each operation on ``z``.

    Only plain formulas give them derivatives, batched values, records and shapes.
    """
    return (
        forward_ad._current_level >= 0  # no public function tells
        or is_transformed()
        or is_traced()
        or z.device.type == "meta"
    )


_Rows = TypeVar("_Rows", Tensor, Tensor | None)


def savable(z: _Rows) -> _Rows:
    """``z``, or a copy of rows made in inference mode, which autograd cannot save for a backward pass."""
    if z is None or torch.compiler.is_compiling() or not z.is_inference() or not torch.is_grad_enabled():
        return z
    return z.clone()


def is_symbol(value: float) -> bool:
    """Whether a compiled graph holds for any value of the number. torch before 2.8 does not tell."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental import symbolic_shapes  # noqa: PLC0415  (imported by torch.compile, and slow)

    return hasattr(symbolic_shapes, "has_static_value") and not symbolic_shapes.has_static_value(value)


def symbol(value: float, device: torch.device | str) -> Tensor | None:
    """A number that changes between calls of a compiled graph, as a tensor; None for one that does not, and in eager mode.

    torch.compile makes it a symbol once it has changed. As a constant it would cost a compilation for each value.
    """
    return as_tensor(value, device) if is_symbol(value) else None


def as_tensor(value: float, device: torch.device | str) -> Tensor:
    """A number as a 0-dim tensor, by the one operation that keeps a symbol symbolic: its product with a tensor."""
    return widest(torch.ones((), device=device)) * value


def no_autocast(device_type: str) -> contextlib.AbstractContextManager[None]:
    """No autocast, also on devices that have none, such as meta."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Full fp32 products: no autocast, no TF32 on CUDA, no bf16 on CPUs whose matmul precision was lowered.

    Nothing is entered where nothing lowers the precision: the contexts cost as much as five operations.
    """
    entered = _flags.entered
    # Another thread may raise the flags and put them back between these reads and the product of the caller.
    alone = entered == _flags.left and _products_are_ieee() and entered == _flags.entered
    if alone and not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
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
        with no_autocast(device_type):
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


# An operator rather than ``a @ b.mT``: torch.compile sees one opaque node, so that the precision holds in compiled code too.
@torch.library.custom_op("varloss::products", mutates_args=())
def _products(a: Tensor, b: Tensor) -> Tensor:
    return _plain_products(a, b)


@_products.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-2])


def _save_factors(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def _products_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    need_a, need_b = ctx.needs_input_grad
    # Again with the precision of the value, so that the gradient can itself be differentiated.
    return (products(grad, b.mT) if need_a else None, products(grad.mT, a.mT) if need_b else None)


_products.register_autograd(_products_backward, setup_context=_save_factors)


class _Products(torch.autograd.Function):
    """The operator for eager mode: less to dispatch, and forward-mode AD and ``torch.func`` have their rules."""

    generate_vmap_rule = True
    forward = staticmethod(_plain_products)
    setup_context = staticmethod(_save_factors)
    backward = staticmethod(_products_backward)

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor | None, tangent_b: Tensor | None) -> Tensor | None:
        a, b = ctx.saved_tensors
        parts = [products(tangent_a, b)] if tangent_a is not None else []
        parts += [products(a, tangent_b)] if tangent_b is not None else []
        return sum(parts[1:], parts[0]) if parts else None


def products(a: Tensor, b: Tensor) -> Tensor:
    """All inner products ``a @ b.mT`` of rows of ``a`` and rows of ``b``, (..., N, D) and (..., M, D) -> (..., N, M)."""
    if torch.compiler.is_compiling() and not is_transformed():
        return _products(a, b)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling() or is_traced():  # a graph and a record hold plain operations
        return a @ b.mT
    if not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return _plain_products(a, b)
    a, b = savable(a), savable(b)
    if a.dtype == torch.float64:  # nothing lowers its precision
        return a @ b.mT
    return _Products.apply(a, b)  # type: ignore[no-any-return]


def masked_logsumexp(logits: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the last axis of the entries that ``keep`` selects, and which rows have any.

    Masked before the maximum is taken, so that no excluded entry can overflow the sum. A row with nothing to keep yields
    a finite number that the caller must discard (``-inf`` would turn its zero gradient into NaN).
    """
    some = keep.any(dim=-1)
    return torch.logsumexp(logits.masked_fill(~keep & some.unsqueeze(-1), -math.inf), dim=-1), some


def mean(x: Tensor) -> Tensor:
    """Mean over all entries; 0, attached to the graph, where there are none."""
    return x.sum() / max(x.numel(), 1)


def nothing(*parts: Tensor | float | None) -> Tensor:
    """The mean over no pairs: 0, attached to the graph of every tensor given, so that no gradient is waited for."""
    return torch.stack([wide(x.reshape(-1)[:0]).sum() for x in parts if isinstance(x, Tensor)]).sum()


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
