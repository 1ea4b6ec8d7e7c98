"""Run both searches in parallel, each in a process with one thread. The number of workers changes no result."""

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from varloss_bench.execution.workers import SPAWN, send, spawn
from varloss_bench.training.trial import quieten
from varloss_bench.tune.search import Outcome, Space, search
from varloss_bench.tune.train import Plan, Trainings


@dataclass(frozen=True)
class Task:
    """One search."""

    space: Space
    plan: Plan
    budget: int
    seed: int


@dataclass(frozen=True)
class Event:
    """Progress of a search: epochs trained, a finished candidate, or the end."""

    search: str
    epochs: int = 0
    outcome: Outcome | None = None
    finished: bool = False


class SearchCrashedError(RuntimeError):
    """The process of a search failed or died."""


def run(task: Task, folder: Path, command: list[str], tell: Any) -> None:
    """Run one search in this process; `tell` takes the fields of an `Event` by name."""
    trainings = Trainings(task.plan, folder, command, lambda epochs: tell(epochs=epochs))
    search(
        task.space, task.plan.costs, task.budget, trainings.evaluate, seed=task.seed, report=lambda o: tell(outcome=o)
    )
    tell(finished=True)


def run_all(tasks: Mapping[str, Task], folder: Path, command: list[str], workers: int) -> Iterator[Event]:
    """Run all searches, at most `workers` at a time, and yield events. Closing the iterator ends the searches.

    Raises:
        SearchCrashedError: A search failed; finished trainings are on disk.
        OSError: A search could not write its results or read its data; finished trainings are on disk.
    """
    waiting = list(tasks.items())
    running: dict[Connection, tuple[str, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, task = waiting.pop(0)
                ours, theirs = SPAWN.Pipe(duplex=False)
                process = spawn("varloss_bench.tune.processes:work", theirs, task, folder, command)
                theirs.close()
                running[ours] = name, process
            for connection in [c for c in wait(list(running)) if isinstance(c, Connection)]:
                name, process = running[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    raise SearchCrashedError(f"the search {name} died (exit code {process.exitcode})") from None
                if isinstance(message, OSError):
                    raise message
                if isinstance(message, str):
                    raise SearchCrashedError(f"the search {name} failed:\n{message}")
                event = Event(name, **message)
                if event.finished:
                    process.join()
                    connection.close()
                    del running[connection]
                yield event
    finally:
        for connection, (_, process) in running.items():
            process.terminate()
            process.join()
            connection.close()


def work(connection: Connection, task: Task, folder: Path, command: list[str]) -> None:
    """Body of a process."""
    quieten()
    try:
        run(task, folder, command, lambda **fields: send(connection, fields))
    except OSError as error:
        # The error itself may not be picklable, or may lose its file name when it is pickled.
        text = str(error)
        plain = OSError(error.errno, text.removeprefix(f"[Errno {error.errno}] ")) if error.errno else OSError(text)
        send(connection, plain)
    except Exception:
        send(connection, traceback.format_exc())
