"""Time and memory of one loss, forward and backward."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from varloss_bench.studies.speed.losses import GROUPS, Loss

# Length of a block of calls to one loss before the next loss has its turn. It is long enough that the caches hold the data of
# the timed loss, as in training, and short enough that a busy machine slows all losses alike.
BLOCK_SECONDS = 0.02
LONG_SECONDS = 20.0
FLOOR_ROWS = 256


def views(n: int, d: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two batches of random rows that require gradients."""
    made = [torch.randn(n, d).to(device, dtype).requires_grad_() for _ in range(2)]
    return made[0], made[1]


def step(loss: Loss, z0: Tensor, z1: Tensor) -> None:
    """Forward and backward from raw rows to their gradients."""
    z0.grad = z1.grad = None
    loss(z0, z1).backward()  # type: ignore[no-untyped-call]


def floor(n: int, d: int, device: str) -> Callable[[], None]:
    """The work of any method that computes each similarity once: ``Z Z'`` by blocks of rows, exp in place, ``W Z``.

    Memory is allocated before; symmetry is not used.
    """
    z = torch.nn.functional.normalize(torch.randn(2 * n, d, device=device), dim=1)
    block, gradient = z.new_empty(min(FLOOR_ROWS, 2 * n), 2 * n), torch.empty_like(z)

    def run() -> None:
        for rows, out in zip(torch.split(z, FLOOR_ROWS), torch.split(gradient, FLOOR_ROWS), strict=True):
            exponentials = block[: len(rows)]
            torch.mm(rows, z.T, out=exponentials)
            exponentials.exp_()
            torch.mm(exponentials, z, out=out)

    return run


def interleaved(
    actions: Sequence[Callable[[], None]], seconds: float, device: str, *, of_thread: bool = False
) -> list[list[float]]:
    """Seconds of single calls of each action. Actions take turns in blocks, until each has ``seconds`` and three blocks.

    The first call of each action is not counted, nor the first call of each block with several. If a first call takes longer
    than LONG_SECONDS, warming up does not matter and only the first calls are timed. ``of_thread`` counts the processor time
    of this thread.
    """
    clock = time.thread_time if of_thread else time.perf_counter
    first = [_timed(action, device, clock) for action in actions]
    if max(first) > LONG_SECONDS:
        return [[took] for took in first]
    lengths = [max(1, round(BLOCK_SECONDS / _timed(action, device, clock))) for action in actions]
    times: list[list[float]] = [[] for _ in actions]
    done = 0
    while done < 3 or min(map(sum, times)) < seconds:
        for action, length, found in zip(actions, lengths, times, strict=True):
            if length > 1:
                action()
            found.extend(_timed(action, device, clock) for _ in range(length))
        done += 1
    return times


def _timed(action: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def peak_memory(group: str, name: str, n: int, d: int, threads: int) -> float | None:
    """Peak memory of one step in MiB, above that of inputs and a warm process, in a separate process; None if unknown."""
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", __name__, group, name, str(n), str(d), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def peak_memory_cuda(loss: Loss, z0: Tensor, z1: Tensor) -> float:
    """Peak memory of one step in MiB, above that of the inputs."""
    z0.grad = z1.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss, z0, z1)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _high_water_mark() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _measure_in_this_process(group: str, name: str, n: str, d: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    loss = next(c for c in GROUPS[group] if c.name == name).build()
    inputs = views(int(n), int(d), "cpu", torch.float32)
    step(loss, *views(64, int(d), "cpu", torch.float32))
    # 5 resets the mark to the current use; imports may have used more before.
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")
    before = _high_water_mark()
    step(loss, *inputs)
    print((_high_water_mark() - before) / 1024)


if __name__ == "__main__":
    _measure_in_this_process(*sys.argv[1:])
