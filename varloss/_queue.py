"""Contrast with a queue of past keys (MoCo), and the ring that holds them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from varloss import _checks, _formulas
from varloss._numerics import masked_logsumexp, products, unit, wide
from varloss._vrn import valid_slots


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
    The naive program::

        q, k = normalize(query), normalize(key)
        logits = cat([(q * k).sum(1, keepdim=True), q @ queue[valid].T], 1) / temperature
        loss = cross_entropy(logits, zeros(N, dtype=long))

    Enqueue the keys AFTER this call, and with a symmetric loss after both directions: a key that is already in the queue
    is a negative of its own query.

    Args:
        query: (N, D) projections of the query encoder, of any length.
        key: (N, D) projections of the momentum encoder for the other view.
        queue: (K, D) past keys of unit length, used as they are.
        temperature: divides the cosine similarities.
        valid: (K,) booleans: the slots that hold a key. All by default.
        check: look at the values too (synchronises).

    Returns:
        A scalar in nats, at least float32, the mean over local queries.

    Raises:
        TypeError, ValueError: as :func:`nt_xent`, and for a queue of another dimension.

    At the edge: 0, attached to the graph, while no slot is valid.

    Source: He et al. 2020 (MoCo, arXiv 1911.05722) eq. 1.
    """
    _checks.embeddings(query=query, key=key, queue=queue)
    _checks.same_precision(query=query, key=key)
    if query.shape != key.shape:
        raise ValueError(f"query and key must have the same shape; got {tuple(query.shape)} and {tuple(key.shape)}.")
    if query.shape[0] == 0:
        raise ValueError("query is empty: a batch needs at least one sample.")
    _checks.temperature(temperature)
    keep = valid_slots(valid, queue)
    if check:
        _checks.rows_are_sound(query=query, key=key)
    q, k = unit(query), unit(key)
    positive = (q * k).sum(dim=1) / temperature
    logits = products(q / temperature, wide(queue.detach()).to(q.dtype))
    log_negatives, some = masked_logsumexp(logits, keep.expand_as(logits))
    return _formulas.excess(log_negatives, positive, decoupled=False).masked_fill(~some, 0).mean()


class MemoryBank(nn.Module):
    """A first-in-first-out ring of unit keys that never makes the host wait.

    Buffers, all in ``state_dict``: ``bank`` (num, dim) keys, ``ptr`` the slot written next, ``filled`` how many slots hold
    a key. A batch may wrap around the end or be larger than the ring, which then keeps its last ``num`` keys.

    Args:
        num: number of slots K.
        dim: dimension D of a key.

    Raises:
        TypeError, ValueError: for sizes below 1, and keys of another dimension.
    """

    bank: Tensor
    ptr: Tensor
    filled: Tensor

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.num = _checks.whole("number of slots", num, 1)
        self.dim = _checks.whole("dimension of the bank", dim, 1)
        self.register_buffer("bank", torch.zeros(self.num, self.dim))
        self.register_buffer("ptr", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        """Size of the ring, for ``print(module)``."""
        return f"num={self.num}, dim={self.dim}"

    def valid(self) -> Tensor:
        """(num,) mask of the slots that hold a key."""
        return torch.arange(self.num, device=self.bank.device) < self.filled

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrites the oldest slots with ``keys`` (N, dim), normalised here."""
        _checks.embeddings(keys=keys)
        if keys.shape[1] != self.dim:
            raise ValueError(f"the bank holds keys of dimension {self.dim}; got {keys.shape[1]}.")
        count = keys.shape[0]
        kept = unit(keys[-self.num :]).to(self.bank.dtype)
        first = self.ptr + (count - kept.shape[0])
        slots = (first + torch.arange(kept.shape[0], device=self.bank.device)) % self.num
        self.bank.index_copy_(0, slots, kept)
        self.ptr.copy_((self.ptr + count) % self.num)
        self.filled.copy_((self.filled + count).clamp_max(self.num))

    def _load_from_state_dict(  # noqa: PLR0917  (torch's signature)
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
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
            error_msgs.append(
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
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
