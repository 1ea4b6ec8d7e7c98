"""The ring that holds past keys (MoCo)."""

import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varloss._core import checks
from varloss._core.numerics import follows_operations, is_transformed, unit

# Calls that a checkpoint may run again: more than the losses of one step.
_REMEMBERED = 16
_NO_BACKWARD_PASS = -1


@dataclass
class Call:
    """A forward pass against the bank: its rows, how often the bank had been written, and what it did."""

    query: Tensor
    key: Tensor
    written: int
    updated: bool = False
    repeated: bool = False

    def resembles(self, other: "Call") -> bool:
        """Whether the rows are the same."""
        return _alike(self.query, other.query) and _alike(self.key, other.key)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether rows are the same, but for what kernels with atomics change from run to run."""
    return a.shape == b.shape and bool((a - b).nan_to_num().norm() <= 0.01 * b.nan_to_num().norm())


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
        self._calls: deque[Call] = deque(maxlen=_REMEMBERED)
        # Slots, what they held, and how many were filled, before each of the last writings.
        self._overwritten: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_REMEMBERED)
        self._written = 0
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

    def checked(self, keys: Tensor, name: str = "keys") -> Tensor:
        """``keys``; raises TypeError or ValueError for what is no (N, dim) embeddings."""
        checks.embeddings(mixed=True, **{name: keys})  # as in alike
        if keys.shape[1] != self.dim:
            raise ValueError(f"the bank holds keys of dimension {self.dim}; got {keys.shape[1]}.")
        return keys

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrites the oldest slots with ``keys`` (N, dim), normalised here.

        A key that is not finite leaves a zero row, which has similarity 0 to every query, until its slot is written again.
        Raises RuntimeError inside a transform of ``torch.func``, which would lose what is written, and where a checkpoint
        enqueues the keys a second time.
        """
        self.checked(keys)
        if is_transformed():
            raise RuntimeError(
                "a memory bank cannot be written inside a transform of torch.func: call varloss.QueueInfoNCELoss with "
                "update=False there, and its enqueue(key) outside."
            )
        if self.repeats(keys):
            raise RuntimeError(
                "a checkpoint enqueues these keys a second time, and its loss has seen them in the bank: keep the bank outside "
                "of the checkpoint, or call varloss.QueueInfoNCELoss there."
            )
        compiling = torch.compiler.is_compiling()
        if not compiling and self.bank.is_inference() and not torch.is_inference_mode_enabled():
            # Copied in inference mode, and then written in it alone.
            self.bank, self.ptr, self.filled = self.bank.clone(), self.ptr.clone(), self.filled.clone()
        count, kept = keys.shape[0], self._kept(keys)
        first = self.ptr + (count - kept.shape[0])
        slots = (first + torch.arange(kept.shape[0], device=self.bank.device)) % self.num
        if not compiling:
            self._overwritten.append((slots, self.bank.index_select(0, slots), self.filled.clone()))
            self._written += 1
        self.bank.index_copy_(0, slots, kept)
        self.ptr.copy_((self.ptr + count) % self.num)
        self.filled.copy_((self.filled + count).clamp_max(self.num))

    def _kept(self, keys: Tensor) -> Tensor:
        """What the ring holds of keys: the last ``num``, of unit length, and zero rows for those that are not finite."""
        # The length of a row that is not finite is NaN or infinite: all its entries become NaN or 0.
        return unit(keys[-self.num :]).nan_to_num_().to(self.bank.dtype)

    @torch.no_grad()
    def repeats(self, keys: Tensor) -> bool:
        """Whether these keys are among those enqueued last, and a backward pass runs: a checkpoint computes something again."""
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == _NO_BACKWARD_PASS:
            return False
        kept = self._kept(keys)
        return any(_alike(self.bank[slots], kept) for slots, _, _ in self._overwritten)

    def call(self, query: Tensor, key: Tensor) -> Call:
        """One forward pass against the bank. A checkpoint runs it again in the backward pass, and gets that of the first time."""
        made = Call(query.detach(), key.detach(), self._written)
        if torch.compiler.is_compiling() or follows_operations(query):
            return made
        if torch._C._current_graph_task_id() == _NO_BACKWARD_PASS:
            self._calls.append(made)
            return made
        oldest = self._written - len(self._overwritten)
        known = [call for call in self._calls if call.resembles(made) and call.written >= oldest]
        if not known:
            raise RuntimeError(
                f"a loss with a memory bank runs in a backward pass, as in a checkpoint, and is not one of its last {_REMEMBERED} "
                "calls: the bank of its first time is lost. Keep this loss outside of the checkpoint."
            )
        # Backward passes go from the last call to the first.
        call = next((call for call in reversed(known) if not call.repeated), known[-1])
        call.repeated = True
        return call

    @torch.no_grad()
    def at(self, call: Call) -> tuple[Tensor, Tensor]:
        """The keys (num, dim) and the mask of the slots that held one at that call, as copies: the ring is written in place."""
        bank, filled = self.bank.clone(), self.filled
        for back in range(1, self._written - call.written + 1):
            slots, rows, filled = self._overwritten[-back]
            bank.index_copy_(0, slots, rows)
        return bank, torch.arange(self.num, device=bank.device) < filled

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
