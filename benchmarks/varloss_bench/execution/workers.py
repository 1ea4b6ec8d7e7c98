"""Run trials in parallel in worker processes with one thread each. If a worker dies, no finished trial is lost."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from varloss_bench.config import TrialConfig
from varloss_bench.datasets import DATASETS, Dataset
from varloss_bench.methods import METHODS, Method
from varloss_bench.records import claims, provenance
from varloss_bench.records.store import Store
from varloss_bench.training import ranks, trial
from varloss_bench.training.errors import TrainingDivergedError

# A trial whose worker died is tried once more (the machine may have been short of memory) and then given up.
MAX_ATTEMPTS = 2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SPAWN = multiprocessing.get_context("spawn")
# Status of a trial that another process is running and that has no record yet.
ELSEWHERE = "elsewhere"
# Interval at which to check whether that process has finished or died.
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """Progress of a trial: the finished `fraction`, or the `status` and `reason` of its new record."""

    config: TrialConfig
    fraction: float
    status: str | None = None
    reason: str | None = None


def execute(
    config: TrialConfig,
    folder: Path,
    command: list[str],
    report: Callable[[float], None] = lambda _: None,
    *,
    wait_for_others: bool = False,
    rendezvous: tuple[str, int] | None = None,
) -> tuple[str, str | None]:
    """Run one trial in this process and store its record, also for a failure. Returns status and reason.

    This is the only function that executors call. A trial that another process is running is not run again: the status is
    then `ELSEWHERE` or, with `wait_for_others`, the status from the other process.

    Args:
        config: What to run.
        folder: Folder of the results.
        command: The user's command line, for the record.
        report: Called with the fraction done.
        wait_for_others: Return only when there is a record.
        rendezvous: Address and port of rank 0, if several nodes share the trial and this is the first node.
    """
    kept = Store(folder)
    try:
        with claims.claim(kept.path(config), wait=wait_for_others) as ours:
            if not ours:
                return ELSEWHERE, None
            loaded = kept.load([config])
            if loaded.done(config):  # another process has finished it
                record = loaded.records[config.key()]
                return record["status"], record["reason"]
            record = _run(config, kept, command, report, rendezvous)
            kept.write(config, record)
            return record["status"], record["reason"]
    except (OSError, ValueError) as error:  # disk full, or a metric that is NaN
        return "crashed", f"the result could not be stored: {type(error).__name__}: {error}"


def _run(
    config: TrialConfig,
    kept: Store,
    command: list[str],
    report: Callable[[float], None],
    rendezvous: tuple[str, int] | None,
) -> dict[str, Any]:
    """Run a trial and return its record; it runs in this process or, if several ranks share it, in new processes."""
    outcome: dict[str, Any] = {}
    try:
        if config.ranks > 1:
            address, port = rendezvous or (ranks.LOCALHOST, None)
            outcome = ranks.run_trial(config, report, address=address, port=port)
        else:
            outcome = trial.run_trial(config, report, log=kept.path(config).with_suffix(".log"))
        status, reason = "finished", None
    except TrainingDivergedError as error:
        status, reason = "diverged", str(error)
    except Exception as error:
        status, reason = "crashed", f"{type(error).__name__}: {error}"
        outcome = {"traceback": traceback.format_exc()}
    return {**provenance.record_of(config, command), "status": status, "reason": reason, **outcome}


class Worker:
    """A process that runs the trials that it receives."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = spawn(_work, theirs, folder, command)
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


def _work(connection: Connection, folder: Path, command: list[str]) -> None:
    """Body of a worker process."""
    tell = partial(send, connection)
    while True:
        try:
            config: TrialConfig = connection.recv()
        except (EOFError, OSError):
            return
        tell(execute(config, folder, command, tell))


def send(connection: Connection, message: object) -> None:
    """Send to the parent. Without a parent this process ends: an exception would become the record of its trial."""
    try:
        connection.send(message)
    except OSError:
        os._exit(1)


def spawn(body: Callable[..., None], *arguments: Any) -> SpawnProcess:
    """Start a process that runs `body`, a function of this package, with one thread, and ends with this process."""
    rows = dict(METHODS), dict(DATASETS)
    process = SPAWN.Process(target=_prepared, args=(*rows, body, arguments), daemon=True, name="varloss-bench")
    with one_thread_each(), ignore_sigint(), unimported_main():
        process.start()
    return process


def _prepared(
    methods: dict[str, Method], datasets: dict[str, Dataset], body: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    die_with_parent()
    METHODS.update(methods)  # including the rows that the calling script has added
    DATASETS.update(datasets)
    torch.set_num_threads(1)
    trial.quieten()
    body(*arguments)


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
