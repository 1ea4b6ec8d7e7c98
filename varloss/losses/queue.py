"""Contrast with a queue of past keys (MoCo), and VRN against it."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from varloss import distributed
from varloss._core import checks
from varloss._core.grams import RowSums
from varloss._core.numerics import masked_logsumexp, mean, products, unit, wide
from varloss._core.ranks import Agreed, Parts, ProcessGroup, agree
from varloss._kernels import dense, gram
from varloss.losses.base import TemperedLoss, TwoViewLoss
from varloss.losses.memory_bank import MemoryBank


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


def contrast(
    loss_fn: "QueueInfoNCELoss | TemperedLoss", bank: MemoryBank, query: Tensor, key: Tensor, update: bool | None = None
) -> Tensor:
    """:func:`queue_info_nce` of queries and keys against the bank as it is; then enqueues the keys where ``update``.

    ``update`` is by default whether queries require a gradient on any rank. Temperature and ranks are those of ``loss_fn``.
    """
    group, agreed = loss_fn.process_group, None

    def look() -> Parts:
        loss_fn._check_options()
        checks.alike(query=query, key=key)
        return query, bank._checked(key, "key").detach()

    # Not where nothing is trained: a rank that evaluates by itself must not wait for the others.
    if loss_fn.is_distributed() and (torch.is_grad_enabled() or query.requires_grad):
        agreed = agree(look, group)
        query = distributed.trained(query, agreed)
    if agreed is None:
        look()
    call = bank._call(query, key)
    keys, valid = bank._at(call)
    loss = queue_info_nce(query, key, keys, temperature=loss_fn.temperature, valid=valid)
    if agreed is not None:
        loss = loss * distributed.place(agreed, group)[1]
    trained = query.requires_grad if agreed is None else agreed.trained
    if (trained if update is None else update) and not call.updated:
        call.updated = True
        bank.enqueue(_all_keys(loss_fn, bank, key, agreed))
    return loss


def _all_keys(loss_fn: TwoViewLoss, bank: MemoryBank, key: Tensor, agreed: Agreed | None = None) -> Tensor:
    """The keys of all ranks where ``loss_fn`` is distributed; ``agreed`` where the ranks have agreed on them."""
    if not loss_fn.is_distributed():
        return bank._checked(key, "key").detach()
    group = loss_fn.process_group
    if agreed is None:
        agreed = agree(lambda: (bank._checked(key, "key").detach(),), group)
    return distributed.gather(cast(Tensor, agreed.parts[-1]), agreed, group)


class QueueInfoNCELoss(TwoViewLoss):
    """:func:`varloss.functional.queue_info_nce` with a memory bank of its own (MoCo).

    Args:
        memory_bank_size: (K, D), number of keys kept and their dimension. A ring larger than half the data set holds
            samples' own keys.
        temperature: as the function.
        gather_distributed: enqueues the keys of all ranks: the bank is the same on each. Ranks may differ in batch size.
        process_group: the ranks to gather from, by default the world.

    Example:
        >>> import torch, varloss
        >>> loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(64, 128))
        >>> loss = loss_fn(torch.randn(16, 128), torch.randn(16, 128))
    """

    _shown = ("temperature",)

    def __init__(
        self,
        *,
        memory_bank_size: Sequence[int],
        temperature: float = 0.2,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        checks.temperature(temperature)
        if not isinstance(memory_bank_size, Sequence) or len(memory_bank_size) != 2:
            raise ValueError(f"memory_bank_size must be a pair (number of keys, dimension); got {memory_bank_size}.")
        self.temperature = temperature
        self.memory_bank = MemoryBank(*memory_bank_size)

    def forward(self, query: Tensor, key: Tensor, *, update: bool | None = None) -> Tensor:
        """Loss of queries against their keys, each (N, D), and the bank as it was; then enqueues the keys.

        ``update`` is whether to enqueue, by default where ``query`` requires a gradient, on any rank. For a symmetric loss
        pass False and call :meth:`enqueue` once after both directions. Where autograd is off, no rank waits for another.
        """
        return contrast(self, self.memory_bank, query, key.detach() if isinstance(key, Tensor) else key, update)

    def _check_options(self) -> None:
        checks.temperature(self.temperature)

    def enqueue(self, key: Tensor) -> None:
        """Puts keys (N, D), of all ranks where ``gather_distributed``, into the bank."""
        keys = _all_keys(self, self.memory_bank, key)
        if not self.memory_bank._repeats(keys):
            self.memory_bank.enqueue(keys)
