"""The ranks of a process group, and what they tell each other before rows cross: sizes, and what is wrong on one of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed import ProcessGroup
else:

    class ProcessGroup:  # type: ignore[no-redef]
        """What a build of torch without distributed support lacks."""


__all__ = [
    "Agreed",
    "HeldGroup",
    "Parts",
    "ProcessGroup",
    "agree",
    "assume_equal_batches",
    "one_agreement",
    "rank",
    "world_size",
]

Parts = Sequence[Tensor | None]

# Names cross as their places in this list: all ranks run one build of torch.
_DTYPES = sorted({str(x) for x in vars(torch).values() if isinstance(x, torch.dtype)})
_MOST_PARTS = 3
_NOTHING = -1
# A rank's state: its rows are refused; or whether rows require a gradient, plus 2 where autograd is on.
_REFUSED = -1
_LONGEST_MESSAGE = 4096

_equal_batches = False
# For each process group that takes no CPU tensors the one of the same ranks over which their hosts talk.
_host_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def world_size(process_group: ProcessGroup | None = None) -> int:
    """Number of processes in the group, by default in the world; 1 where torch.distributed is not initialised.

    Raises ValueError on a rank that is not a member, and for a group that torch.distributed does not know.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    if process_group is not None:
        check_group(process_group)
        if dist.get_rank(process_group) < 0:
            raise ValueError(
                "this rank is not a member of the process group: call the loss on the members of its process_group only."
            )
    return dist.get_world_size(process_group)


def check_group(process_group: Any) -> None:
    """Raises TypeError unless it is None or what ``torch.distributed.new_group`` returns, on members and on other ranks."""
    known = process_group is None or isinstance(process_group, ProcessGroup)
    if not known and not (dist.is_available() and process_group == dist.GroupMember.NON_GROUP_MEMBER):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup, for a DeviceMesh mesh.get_group(name); "
            f"got {type(process_group).__name__}."
        )


def rank(process_group: ProcessGroup | None = None) -> int:
    """Rank of this process in the group, 0 where :func:`world_size` is 1."""
    return dist.get_rank(process_group) if world_size(process_group) > 1 else 0


class HeldGroup:
    """The process group of a module. Copies of the module share it; a pickle keeps only that there was one.

    A group is a connection of running processes and cannot be pickled. The module must not use the world in its place.
    """

    def __init__(self, process_group: ProcessGroup | None, lost: bool = False) -> None:
        check_group(process_group)
        self._process_group, self._lost = process_group, lost

    def get(self) -> ProcessGroup | None:
        if self._lost and world_size() > 1:
            raise ValueError(
                "the process group of this loss was not kept when it was pickled: set its attribute process_group, None for "
                "all ranks."
            )
        return self._process_group

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeldGroup":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldGroup, (None, self._lost or self._process_group is not None)

    def __str__(self) -> str:
        if self._lost:
            return "not kept by pickle"
        if not isinstance(self._process_group, ProcessGroup):
            return "None" if self._process_group is None else "not a member"
        with contextlib.suppress(KeyError):
            return f"ranks {dist.get_process_group_ranks(self._process_group)}"
        return "destroyed"

    def __bool__(self) -> bool:
        return self._lost or self._process_group is not None


def assume_equal_batches(equal: bool = True) -> None:
    """Declares that all ranks have batches of one size (``drop_last=True``): sizes are then not exchanged.

    This saves one small collective of the hosts for each gathering. It holds for the whole process, and must be called on all
    ranks. Where batches differ all the same, or one rank raises, the collective of the others hangs or fails without a message
    of this package.

    ``equal=False`` takes the declaration back.

    Example:
        >>> import varloss
        >>> varloss.distributed.assume_equal_batches()
        >>> varloss.distributed.assume_equal_batches(False)
    """
    global _equal_batches  # noqa: PLW0603  (a fact about the process's data, not about any one loss)
    _equal_batches = equal


class Agreed(NamedTuple):
    """What :func:`agree` returns: this rank's tensors, all ranks' numbers of rows, whether rows of any rank are trained."""

    parts: Parts
    rows: tuple[int, ...]
    trained: bool


class _Call:
    """A call in which the ranks of a group meet more than once. They agree the first time they do."""

    def __init__(self, check: Callable[[], object], process_group: ProcessGroup | None) -> None:
        self.check, self.process_group = check, process_group
        self.met = False
        self.agreed: list[Agreed] = []


_calls: ContextVar[tuple[_Call, ...]] = ContextVar("_calls", default=())


@contextlib.contextmanager
def one_agreement(check: Callable[[], object], process_group: ProcessGroup | None) -> Iterator[None]:
    """Inside, ranks agree once about the same tensors: for a loss and VRN of one batch. ``check`` is a part of it.

    An error inside, before ranks have agreed, is raised on every rank. Not for torch.compile.
    """
    call = _Call(check, process_group)
    token = _calls.set((*_calls.get(), call))
    try:
        yield
    except Exception as error:
        if call.met or not _exchanges(process_group):
            raise
        _raise_everywhere(_tell([_REFUSED], process_group), error, process_group)
    finally:
        _calls.reset(token)


def agree(look: Callable[[], Parts], process_group: ProcessGroup | None = None) -> Agreed:
    """What ranks tell each other before rows cross. A collective: every rank of the group must call it.

    ``look`` checks what this rank has, and returns up to three tensors (N, ...) of as many rows, None for one that is not
    there. Where it raises, every rank raises that type and message, with the rank's number. Every rank raises ValueError
    where ranks differ in the width or the dtype of rows, or where one runs without autograd while rows of others require a
    gradient. A rank may have no rows.

    The numbers travel between hosts, over the process group itself where it takes CPU tensors and over a gloo group made on
    the first call where it does not (NCCL): no host waits for its device. Under torch.compile, and after
    :func:`assume_equal_batches`, nothing travels and all ranks are taken to be like this one.
    """
    if not _exchanges(process_group):
        parts = look()
        return Agreed(parts, (_rows(parts),) * world_size(process_group), _state(parts) % 2 == 1)
    calls = [call for call in _calls.get() if call.process_group is process_group]
    error: Exception | None = None
    try:
        parts = look()
        for known in calls[-1].agreed if calls else ():
            # The very same tensors, which every rank sees alike. Shapes may differ between ranks.
            if len(known.parts) == len(parts) and all(a is b for a, b in zip(known.parts, parts, strict=True)):
                return known
        for call in calls:
            call.check()
        mine = [_state(parts), _rows(parts), *(number for part in parts for number in _kind(part))]
    except Exception as raised:
        error, mine = raised, [_REFUSED]
    for call in calls:
        call.met = True
    numbers = _tell(mine, process_group)
    _raise_everywhere(numbers, error, process_group)
    states, rows = ([each[place] for each in numbers] for place in (0, 1))
    agreed = Agreed(parts, tuple(rows), any(state % 2 for state in states))
    for call in calls:
        call.agreed.append(agreed)
    return agreed


def _exchanges(process_group: ProcessGroup | None) -> bool:
    return not (_equal_batches or torch.compiler.is_compiling()) and world_size(process_group) > 1


def _rows(parts: Parts) -> int:
    return cast(Tensor, parts[0]).shape[0]


def _state(parts: Parts) -> int:
    return any(part is not None and part.requires_grad for part in parts) + 2 * torch.is_grad_enabled()


def _kind(part: Tensor | None) -> tuple[int, int]:
    return (_NOTHING, _NOTHING) if part is None else (part.shape[1:].numel(), _DTYPES.index(str(part.dtype)))


def _tell(mine: list[int], process_group: ProcessGroup | None) -> list[list[int]]:
    """The numbers of every rank, in rank order."""
    unused = [_NOTHING] * (2 + 2 * _MOST_PARTS - len(mine))
    # device: a default one (torch.set_default_device) may be the accelerator, whose numbers the hosts' group does not take.
    return [part.tolist() for part in _between_hosts(torch.tensor(mine + unused, device="cpu"), process_group)]


def _known(process_group: ProcessGroup | None) -> Any:
    return dist.group.WORLD if process_group is None else process_group


def _between_hosts(mine: Tensor, process_group: ProcessGroup | None) -> list[Tensor]:
    """A CPU tensor of every rank, in rank order."""
    group = _known(process_group)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    hosts = group if "cpu:" in dist.get_backend_config(group) else _group_of_hosts(group)
    hosts.allgather([parts], [mine]).wait()
    return parts


def _group_of_hosts(group: Any) -> Any:
    """A gloo group of the group's ranks, made by them alone and dropped with the group.

    torch.distributed.new_group is a collective of the world, and with use_local_synchronization it counts groups on the
    members alone: the next group of the world would then have another name on every rank outside, and hang.
    """
    if group not in _host_groups:
        ranks = dist.get_process_group_ranks(group)
        name = f"varloss/{'_'.join(map(str, ranks))}/{group.group_name}"
        store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
        _host_groups[group] = dist.ProcessGroupGloo(store, dist.get_rank(group), len(ranks))
    return _host_groups[group]


def _raise_everywhere(numbers: list[list[int]], error: Exception | None, process_group: ProcessGroup | None) -> None:
    """Raises on every rank what is wrong on one of them, or between them."""
    states = [each[0] for each in numbers]
    names = dist.get_process_group_ranks(_known(process_group))
    if _REFUSED in states:
        text = "" if error is None else f"{_type_of(error).__name__}\n{error}"
        mine = torch.zeros(_LONGEST_MESSAGE, dtype=torch.uint8, device="cpu")
        encoded = text.encode()[:_LONGEST_MESSAGE]
        mine[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8, device="cpu")
        texts = [
            bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in _between_hosts(mine, process_group)
        ]
        first = next(text for text in texts if text)
        where = [name for name, text in zip(names, texts, strict=True) if text == first]
        kind, message = first.split("\n", 1)
        raise _TYPES[kind](message if len(where) == len(names) else f"{_on(where)}: {message}") from error
    for part in range(_MOST_PARTS):
        kinds = [tuple(each[2 + 2 * part : 4 + 2 * part]) for each in numbers]
        if len(set(kinds)) > 1:
            widths = ", ".join("no" if width == _NOTHING else str(width) for width, _ in kinds)
            dtypes = ", ".join("None" if dtype == _NOTHING else _DTYPES[dtype] for _, dtype in kinds)
            raise ValueError(
                "all ranks must gather rows of one shape and one dtype; got, in rank order, "
                f"{widths} numbers a row of {dtypes}."
            )
    if 3 in states and min(states) < 2:
        where = [name for name, state in zip(names, states, strict=True) if state < 2]
        raise ValueError(
            f"{_on(where)}: autograd is off (torch.no_grad), while rows of other ranks require a gradient. Their backward "
            "pass would wait for this one: call the loss in the same way on all ranks."
        )


_TYPES = {kind.__name__: kind for kind in (TypeError, ValueError, RuntimeError)}


def _type_of(error: Exception) -> type[Exception]:
    return next((kind for kind in _TYPES.values() if isinstance(error, kind)), RuntimeError)


def _on(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
