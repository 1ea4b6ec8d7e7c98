"""The ring that holds past keys (MoCo)."""

import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varloss._core import checks
from varloss._core.numerics import follows_operations, is_transformed, unit

# How many calls and writings back a checkpoint may run a loss again.
_REMEMBERED = 16
_COLUMNS = 8
# Kernels with atomics do not give the same bits twice.
_NEARLY = 0.01
_NO_BACKWARD_PASS = -1


@dataclass
class Call:
    """A forward pass against the bank: a part of its rows, how often the bank had been written before, and what followed."""

    query: Tensor
    key: Tensor
    written: int
    updated: bool = False
    repeated: bool = False

    @classmethod
    def of(cls, query: Tensor, key: Tensor, written: int) -> "Call":
        """Some columns are enough to know the rows again, and as copies they keep no batch alive."""
        return cls(query.detach()[:, :_COLUMNS].clone(), key.detach()[:, :_COLUMNS].clone(), written)

    def is_like(self, other: "Call", tolerance: float) -> bool:
        """Whether the rows are the same, up to ``tolerance`` of their length."""
        return _alike(self.query, other.query, tolerance) and _alike(self.key, other.key, tolerance)


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.nan_to_num(), b.nan_to_num()
    return bool((a - b).norm() <= tolerance * b.norm())


class MemoryBank(nn.Module):
    """A first-in-first-out ring of ``num`` unit keys of dimension ``dim`` that never makes the host wait.

    Buffers, all in ``state_dict``: ``bank`` (num, dim) keys, ``ptr`` the slot written next, ``filled`` how many slots hold
    a key. A batch may wrap around the end or be larger than the ring, which then keeps its last ``num`` keys. For checkpoints the
    ring remembers what its last 16 calls and writings did.
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
        self._forget()
        with torch.inference_mode(False):  # or the ring could be written in inference mode alone
            self.register_buffer("bank", torch.zeros(self.num, self.dim))
            self.register_buffer("ptr", torch.zeros((), dtype=torch.long))
            self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Empties the ring, as after ``to_empty`` of a module that was built on the meta device."""
        for buffer in (self.bank, self.ptr, self.filled):
            buffer.zero_()
        self._forget()

    def _forget(self) -> None:
        """Starts the journal of calls anew: they were made against another ring, or on another device."""
        self._calls: deque[Call] = deque(maxlen=_REMEMBERED)
        # Slots, what they held, and how many were filled, before each of the last writings.
        self._overwritten: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_REMEMBERED)
        self._written = 0

    def _apply(self, *arguments: Any, **options: Any) -> "MemoryBank":
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        self._forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the journal, which belongs to a step that runs."""
        left_out = ("_calls", "_overwritten", "_written", "_compiled_call_impl")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget()

    def extra_repr(self) -> str:
        """Size of the ring, for ``print(module)``."""
        return f"num={self.num}, dim={self.dim}"

    def valid(self) -> Tensor:
        """(num,) mask of the slots that hold a key."""
        return torch.arange(self.num, device=self.bank.device) < self.filled

    def _checked(self, keys: Tensor, name: str = "keys") -> Tensor:
        """``keys``; raises TypeError or ValueError unless they are (N, dim) embeddings."""
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
        self._checked(keys)
        if is_transformed():
            raise RuntimeError(
                "a memory bank cannot be written inside a transform of torch.func: call varloss.QueueInfoNCELoss with "
                "update=False there, and its enqueue(key) outside."
            )
        if self._repeats(keys):
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
    def _repeats(self, keys: Tensor) -> bool:
        """Whether these keys are among those enqueued last, and a backward pass runs: a checkpoint computes something again."""
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == _NO_BACKWARD_PASS:
            return False
        kept = self._kept(keys)
        return any(_alike(self.bank[slots], kept, _NEARLY) for slots, _, _ in self._overwritten)

    def _call(self, query: Tensor, key: Tensor) -> Call:
        """One forward pass against the bank. A checkpoint runs it again in the backward pass, and gets that of the first time."""
        if torch.compiler.is_compiling() or follows_operations(query):
            return Call(query, key, self._written)
        made = Call.of(query, key, self._written)
        if torch._C._current_graph_task_id() == _NO_BACKWARD_PASS:
            self._calls.append(made)
            return made
        call = self._first_time(made)
        call.repeated = True
        return call

    def _first_time(self, again: Call) -> Call:
        """The call that a checkpoint runs again. Raises RuntimeError where it is not known which."""
        oldest = self._written - len(self._overwritten)
        calls = [call for call in self._calls if call.written >= oldest]
        for tolerance in (0.0, _NEARLY):
            for repeated in (False, True):  # a graph that is retained runs backwards twice
                found = [call for call in calls if call.repeated == repeated and call.is_like(again, tolerance)]
                if found and len({call.written for call in found}) == 1:
                    return found[-1]
                if found:
                    raise RuntimeError(
                        "a checkpoint runs a loss with a memory bank again, and several of its calls had these rows: the bank "
                        "of the first time cannot be told. Keep this loss outside of the checkpoint."
                    )
        raise RuntimeError(
            f"a loss with a memory bank runs in a backward pass, as in a checkpoint, and is not one of its last {_REMEMBERED} "
            "calls: the bank of its first time is lost. Keep this loss outside of the checkpoint."
        )

    @torch.no_grad()
    def _at(self, call: Call) -> tuple[Tensor, Tensor]:
        """The keys (num, dim) and the mask of the slots that held one at that call, as copies: the ring is written in place."""
        bank, filled = self.bank.clone(), self.filled
        for back in range(1, self._written - call.written + 1):
            slots, rows, filled = self._overwritten[-back]
            bank.index_copy_(0, slots, rows)
        return bank, torch.arange(self.num, device=bank.device) < filled

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Loads the ring, also of a checkpoint that lacks a part of it, which is not an error; another size is one."""
        self._forget()
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
