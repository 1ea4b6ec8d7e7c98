"""Contrast with a queue of past keys (MoCo), VRN against it, and the ring that holds the keys."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varloss import distributed
from varloss._core import checks
from varloss._core.grams import RowSums
from varloss._core.numerics import masked_logsumexp, mean, products, unit, wide
from varloss._kernels import dense, gram
from varloss.losses.base import TwoViewLoss


def queue_info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: float | Tensor = 0.2,
    valid: Tensor | None = None,
    check: bool = False,
) -> Tensor:
    r"""InfoNCE of queries against their keys, with the negatives in a queue.

    .. math:: -\log\frac{e^{q \cdot k/t}}{e^{q \cdot k/t} + \sum_{j \le K} e^{q \cdot m_j/t}}

    averaged over queries. The queue gets no gradient; MoCo's keys come without one (``QueueInfoNCELoss`` detaches them).
    Equivalent to::

        q, k = normalize(query), normalize(key)
        logits = cat([(q * k).sum(1, keepdim=True), q @ queue[valid].T], 1) / temperature
        loss = cross_entropy(logits, zeros(N, dtype=long))

    Enqueue the keys AFTER this call, and with a symmetric loss after both directions: a key that is already in the queue
    is a negative of its own query.

    Args:
        query: (N, D) projections of the query encoder, of any length.
        key: (N, D) projections of the momentum encoder for the other view.
        queue: (K, D) past keys of unit length, used as they are.
        temperature, check: as :func:`nt_xent`.
        valid: (K,) booleans: the slots that hold a key. All by default.

    Returns a scalar in nats, at least float32, the mean over local queries.
    Raises as :func:`nt_xent`, and ValueError for a queue of another dimension.
    Edge cases: 0, attached to the graph, while no slot is valid.
    Source: He et al. 2020 (MoCo, arXiv 1911.05722) eq. 1.

    Example:
        >>> import torch, varloss
        >>> query, key, queue = torch.nn.functional.normalize(torch.randn(3, 16, 128), dim=2)
        >>> loss = varloss.functional.queue_info_nce(query, key, queue, temperature=0.1)
    """
    checks.alike(query=query, key=key)
    temperature = checks.temperature(temperature)
    keep = _valid_slots(query, queue, valid)
    if check:
        checks.rows_are_sound(query=query, key=key)
    # Both kinds of logits from one scaled query, so that a negative equal to the key gets the positive's logit.
    q, k = unit(query) / temperature, unit(key)
    positive = (q * k).sum(dim=1)
    logits = products(q, wide(queue.detach()).to(q.dtype))
    log_negatives, some = masked_logsumexp(logits, keep.expand_as(logits))
    return mean(dense.excess(log_negatives, positive, decoupled=False).masked_fill(~some, 0))


def vrn_queue(
    query: Tensor,
    queue: Tensor,
    *,
    num_samples: int | None = None,
    target: float | None = None,
    exponent: float = 2,
    valid: Tensor | None = None,
    check: bool = False,
) -> Tensor:
    r"""VRN of queries against a queue of past keys.

    .. math:: \frac{1}{N K}\sum_{i,k} |q_i \cdot m_k - \delta|^p

    The gradient goes to the query alone. With the gradient on one side, queries are pushed away from keys that follow them:
    in half of our runs of MoCo with keys on the other side every embedding ended up the same
    (``benchmarks/results/moco-one-sided``), so no adapter uses it by default. Prefer :func:`vrn` between two views of the
    query encoder. Equivalent to::

        loss = (normalize(query) @ queue[valid].T - delta).abs().pow(p).mean()

    Args:
        query, queue, valid: as :func:`queue_info_nce`; the queue gets no gradient.
        num_samples, target, exponent, check: as :func:`vrn`.

    Returns a scalar; 0, attached to the graph, while no slot is valid.
    Raises as :func:`vrn`, and ValueError for a queue of another dimension.

    Example:
        >>> import torch, varloss
        >>> query, queue = torch.nn.functional.normalize(torch.randn(2, 16, 128), dim=2)
        >>> loss = varloss.functional.vrn_queue(query, queue, num_samples=50_000)
    """
    delta, p = checks.delta(num_samples, target), checks.exponent(exponent)
    keep = _valid_slots(query, queue, valid)
    if check:
        checks.rows_are_sound(query=query)
    q, memory = unit(query), wide(queue.detach()).to(wide(query).dtype)
    pairs = max(q.shape[0], 1) * keep.sum().clamp_min(1)
    if p == 2 and gram.is_cheaper(*query.shape[:1], *queue.shape):
        kept = memory * keep.unsqueeze(1)
        total = RowSums.of(q).pairs_with(RowSums.of(kept, keep.sum())).squared_gaps(delta)
        return (total / pairs).to(q.dtype)
    gap = (products(q, memory) - delta).masked_fill(~keep, 0)
    return dense.power(gap, p).sum() / pairs


def _valid_slots(query: Tensor, queue: Tensor, valid: Tensor | None) -> Tensor:
    """(K,) mask of the slots of ``queue`` that hold a key: ``valid``, or all. Checks the three."""
    checks.embeddings(mixed=True, query=query, queue=queue)
    if valid is None:
        return torch.ones(queue.shape[0], dtype=torch.bool, device=queue.device)
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"valid must be a boolean tensor; got {getattr(valid, 'dtype', type(valid).__name__)}.")
    if valid.shape != queue.shape[:1]:
        raise ValueError(f"valid must have one entry for each of the {queue.shape[0]} slots; got {tuple(valid.shape)}.")
    return valid


class MemoryBank(nn.Module):
    """A first-in-first-out ring of ``num`` unit keys of dimension ``dim`` that never makes the host wait.

    Buffers, all in ``state_dict``: ``bank`` (num, dim) keys, ``ptr`` the slot written next, ``filled`` how many slots hold
    a key. A batch may wrap around the end or be larger than the ring, which then keeps its last ``num`` keys.
    Raises TypeError or ValueError for sizes below 1, and for keys of another dimension.

    Example:
        >>> import torch, varloss
        >>> bank = varloss.MemoryBank(num=64, dim=128)
        >>> bank.enqueue(torch.randn(16, 128))
        >>> int(bank.valid().sum())
        16
    """

    bank: Tensor
    ptr: Tensor
    filled: Tensor

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.num = checks.whole("number of slots", num, 1)
        self.dim = checks.whole("dimension of the bank", dim, 1)
        with torch.inference_mode(False):  # or the ring could be written in inference mode alone
            self.register_buffer("bank", torch.zeros(self.num, self.dim))
            self.register_buffer("ptr", torch.zeros((), dtype=torch.long))
            self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Empties the ring, as after ``to_empty`` of a module that was built on the meta device."""
        for buffer in (self.bank, self.ptr, self.filled):
            buffer.zero_()

    def extra_repr(self) -> str:
        """Size of the ring, for ``print(module)``."""
        return f"num={self.num}, dim={self.dim}"

    def valid(self) -> Tensor:
        """(num,) mask of the slots that hold a key."""
        return torch.arange(self.num, device=self.bank.device) < self.filled

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrites the oldest slots with ``keys`` (N, dim), normalised here.

        A key that is not finite leaves a zero row, which has similarity 0 to every query, until its slot is written again.
        """
        checks.embeddings(keys=keys)
        if keys.shape[1] != self.dim:
            raise ValueError(f"the bank holds keys of dimension {self.dim}; got {keys.shape[1]}.")
        if not torch.compiler.is_compiling() and self.bank.is_inference() and not torch.is_inference_mode_enabled():
            # Copied in inference mode, and then written in it alone.
            self.bank, self.ptr, self.filled = self.bank.clone(), self.ptr.clone(), self.filled.clone()
        count = keys.shape[0]
        kept = unit(keys[-self.num :])
        kept = kept.masked_fill(~kept.isfinite().all(dim=1, keepdim=True), 0).to(self.bank.dtype)
        first = self.ptr + (count - kept.shape[0])
        slots = (first + torch.arange(kept.shape[0], device=self.bank.device)) % self.num
        self.bank.index_copy_(0, slots, kept)
        self.ptr.copy_((self.ptr + count) % self.num)
        self.filled.copy_((self.filled + count).clamp_max(self.num))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Loads the ring, also of a checkpoint that lacks a part of it, which is not an error; another size is one."""
        bank = state_dict.get(f"{prefix}bank")
        if bank is None:
            warnings.warn(
                f"the state_dict holds no memory bank ({prefix}bank, ptr, filled): it was saved by a loss that does not "
                "keep one. Training goes on with the bank as initialised; the first few steps contrast with few or "
                "random negatives.",
                stacklevel=2,
            )
            # All three: a pointer without its bank says nothing.
            for name in ("bank", "ptr", "filled"):
                state_dict[prefix + name] = getattr(self, name).clone()
        elif bank.shape != self.bank.shape:
            rest[-1].append(  # torch's error_msgs
                f"{prefix}bank holds {bank.shape[0]} keys of dimension {tuple(bank.shape[1:])} in the state_dict and "
                f"{self.num} of dimension ({self.dim},) here: build the loss with the size it was saved with, or leave the "
                f"entries {prefix}bank, ptr and filled out of the state_dict to start with an empty bank."
            )
            return
        else:
            # A slot that was never written is zero, and a key is not.
            state_dict.setdefault(f"{prefix}filled", (bank != 0).any(dim=1).sum())
            if f"{prefix}ptr" not in state_dict:
                warnings.warn(
                    f"the state_dict does not say which slot of {prefix}bank is the oldest ({prefix}ptr): the keys are "
                    "overwritten from the first free slot on, or from slot 0.",
                    stacklevel=2,
                )
                state_dict[f"{prefix}ptr"] = state_dict[f"{prefix}filled"] % self.num
        super()._load_from_state_dict(state_dict, prefix, *rest)


class QueueInfoNCELoss(TwoViewLoss):
    """:func:`varloss.functional.queue_info_nce` with a memory bank of its own (MoCo).

    Args:
        memory_bank_size: (K, D), number of keys kept and their dimension. A ring larger than half the data set holds
            samples' own keys.
        temperature: as the function.
        gather_distributed: enqueues the keys of all ranks: the bank is the same on each. Ranks may differ in batch size.

    Example:
        >>> import torch, varloss
        >>> loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(64, 128))
        >>> loss = loss_fn(torch.randn(16, 128), torch.randn(16, 128))
    """

    _shown = ("temperature",)

    def __init__(
        self, *, memory_bank_size: Sequence[int], temperature: float = 0.2, gather_distributed: bool = False
    ) -> None:
        super().__init__(gather_distributed)
        checks.temperature(temperature)
        if not isinstance(memory_bank_size, Sequence) or len(memory_bank_size) != 2:
            raise ValueError(f"memory_bank_size must be a pair (number of keys, dimension); got {memory_bank_size}.")
        self.temperature = temperature
        self.memory_bank = MemoryBank(*memory_bank_size)

    def forward(self, query: Tensor, key: Tensor, *, update: bool | None = None) -> Tensor:
        """Loss of queries against their keys, each (N, D), and the bank as it was; then enqueues the keys.

        ``update`` is whether to enqueue, by default where ``query`` requires a gradient. For a symmetric loss pass False and
        call :meth:`enqueue` once after both directions.
        """
        bank = self.memory_bank
        # A copy, since the backward pass needs the bank as it was and the ring is written in place.
        loss = queue_info_nce(query, key.detach(), bank.bank.clone(), temperature=self.temperature, valid=bank.valid())
        # Not where nothing is trained: a rank that evaluates by itself must not wait for the others.
        if self.gather_distributed and query.requires_grad:
            loss = distributed.as_share(loss, query)
        if query.requires_grad if update is None else update:
            self.enqueue(key)
        return loss

    def enqueue(self, key: Tensor) -> None:
        """Puts keys (N, D), of all ranks where ``gather_distributed``, into the bank."""
        checks.embeddings(key=key)
        key = key.detach()
        self.memory_bank.enqueue(distributed.gather(key) if self.gather_distributed else key)
