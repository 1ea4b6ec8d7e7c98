"""Run trials in parallel in worker processes with one thread each. If a worker dies, no finished trial is lost.

This process names what the workers run and does not import it: it needs none of the packages that train.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from varloss_bench.config import TrialConfig
from varloss_bench.datasets import DATASETS, Dataset
from varloss_bench.methods import METHODS, Method, load
from varloss_bench.records.claims import ELSEWHERE

# A trial whose worker died is tried once more (the machine may have been short of memory) and then given up.
MAX_ATTEMPTS = 2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SPAWN = multiprocessing.get_context("spawn")
# Interval at which to check whether that process has finished or died.
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """Progress of a trial: the finished `fraction`, or the `status` and `reason` of its new record."""

    config: TrialConfig
    fraction: float
    status: str | None = None
    reason: str | None = None


class Worker:
    """A process that runs the trials that it receives."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = spawn("varloss_bench.execution.execute:work", theirs, folder, command)
        theirs.close()
        self.config: TrialConfig | None = None

    def give(self, config: TrialConfig) -> None:
        """Start a trial. If the worker died while idle, this is noticed when its answer is awaited."""
        self.config = config
        with suppress(OSError):
            self.connection.send(config)

    def stop(self) -> None:
        """End the process in any state."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def run_trials(configs: Sequence[TrialConfig], folder: Path, command: list[str], workers: int) -> Iterator[Event]:
    """Run trials in worker processes, in the given order, and yield events.

    A worker that dies (killed, out of memory) is replaced, and its trial is tried once more. Closing the iterator, as an
    exception in the caller's loop does, ends the workers; finished trials are on disk. Trials that other processes run in the
    same folder are not run again; their results are used. If such a process dies, its trial runs here.
    """
    waiting = deque((config, 1) for config in configs)
    attempts: dict[Worker, int] = {}
    # Trials that other processes run, with the time of the next check. They are checked last, when they may have a result.
    elsewhere: dict[TrialConfig, float] = {}
    noted: set[TrialConfig] = set()
    pool = [Worker(folder, command) for _ in range(min(workers, len(configs)))]
    try:
        while waiting or attempts or elsewhere:
            for worker in pool:
                if worker.config is None and (waiting or _due(elsewhere)):
                    if waiting:
                        config, attempts[worker] = waiting.popleft()
                    else:
                        config, attempts[worker] = _due(elsewhere)[0], 1
                        del elsewhere[config]
                    worker.give(config)
            ready = wait([worker.connection for worker in attempts], _LOOK_AGAIN_SECONDS if elsewhere else None)
            for worker in [worker for worker in attempts if worker.connection in ready]:
                running = worker.config
                assert running is not None
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    worker.stop()
                    reason = f"worker process died (exit code {worker.process.exitcode})"
                    attempt = attempts.pop(worker)
                    pool[pool.index(worker)] = Worker(folder, command)
                    if attempt < MAX_ATTEMPTS:
                        waiting.appendleft((running, attempt + 1))
                        yield Event(running, 0.0, reason=f"{reason}; trying once more")
                    else:
                        yield Event(running, 1.0, "crashed", f"{reason}, {attempt} times")
                    continue
                if isinstance(message, float):
                    yield Event(running, message)
                    continue
                del attempts[worker]
                worker.config = None
                if message[0] != ELSEWHERE:
                    yield Event(running, 1.0, *message)
                    continue
                elsewhere[running] = time.monotonic() + _LOOK_AGAIN_SECONDS
                if running not in noted:
                    noted.add(running)
                    yield Event(running, 0.0, reason="another process is running it; its result will be used")
    finally:
        for worker in pool:
            worker.stop()


def _due(elsewhere: dict[TrialConfig, float]) -> list[TrialConfig]:
    """Trials of other processes that are due for a check."""
    return [config for config, at in elsewhere.items() if at <= time.monotonic()]


def send(connection: Connection, message: object) -> None:
    """Send to the parent. Without a parent this process ends: an exception would become the record of its trial."""
    try:
        connection.send(message)
    except OSError:
        os._exit(1)


def spawn(body: str, *arguments: Any) -> SpawnProcess:
    """Start a process that runs `body`, named as `"package.module:function"`, with one thread, and ends with this process."""
    rows = dict(METHODS), dict(DATASETS)
    process = SPAWN.Process(target=_prepared, args=(*rows, body, arguments), daemon=True, name="varloss-bench")
    with one_thread_each(), ignore_sigint(), unimported_main():
        process.start()
    return process


def _prepared(methods: dict[str, Method], datasets: dict[str, Dataset], body: str, arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    METHODS.update(methods)  # including the rows that the calling script has added
    DATASETS.update(datasets)
    torch.set_num_threads(1)
    load(body)(*arguments)


def die_with_parent() -> None:
    """End this process when the parent is gone, even after kill -9; an orphan would continue unnoticed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def unimported_main() -> Iterator[None]:
    """Context in which processes that multiprocessing spawns do not import this process's `__main__`.

    Importing it would run a script again that has no `if __name__ == "__main__"`, and would fail for a script from stdin.
    Workers only run code of this package, so they do not need `__main__`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def ignore_sigint() -> Iterator[None]:
    """Context in which new processes ignore Ctrl-C from their start; it reaches them too, but the parent handles it.

    If a worker set this itself, Ctrl-C would print a traceback until torch is imported there.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may set the handler, and only it receives Ctrl-C
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Context in which new processes have one thread: BLAS and OpenMP read the environment once, at import."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
