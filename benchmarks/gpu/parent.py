"""The process that a visit is started as: it gives each step a process, watches over it, and prints a line for each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpu import summary, wheels
from gpu.progress import BEGAN, DONE, FAILED, WHOLE, Progress, read, repair
from gpu.steps import BROKEN, NO_DEVICE, OTHER_CARD, Step

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1
# Kept back for the summary, and for a process to die in.
SPARE_SECONDS = 4.0
# What a step gets at least, where there is so much.
LEAST_SECONDS = 2.0

_MESSAGES = {
    NO_DEVICE: "torch finds no CUDA device here (--rehearse runs everything on the CPU)",
    OTHER_CARD: "the folder of --out holds rows of another card: give each card its own folder",
}


@dataclass(frozen=True)
class Plan:
    """What the command line asks for; ``until`` is by ``time.monotonic()``."""

    folder: Path
    until: float
    steps: Sequence[Step]
    rehearse: bool
    wheels: Path
    retry: bool

    def seconds_left(self) -> float:
        """Time left for steps."""
        return self.until - time.monotonic() - SPARE_SECONDS


@dataclass
class Outcome:
    """How a step went.

    Attributes:
        state: complete, cut off, failed, or complete before.
        seconds: What it took.
        trouble: Sentences on processes that died or hung.
        fatal: The exit code that ends the visit, or 0.
    """

    state: str = ""
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)
    fatal: int = 0


def visit(plan: Plan) -> int:
    """Run the steps; returns 0, 1 where anything failed or was cut off, 2 where nothing can run, 130 after Ctrl-C or SIGTERM."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    for path in plan.folder.glob("*.csv"):
        repair(path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trouble: list[str] = []
    try:
        code = _visit(plan, trouble)
    except KeyboardInterrupt:
        trouble.append("the visit was interrupted")
        code = 130
    failed = summary.write(plan.folder, trouble)
    print(f"\n{(plan.folder / 'summary.txt').read_text(encoding='utf-8')}", flush=True)
    return code or int(failed > 0)


def _visit(plan: Plan, trouble: list[str]) -> int:
    complete = True
    with tempfile.TemporaryDirectory(prefix="varloss-gpu-") as temporary:
        trouble += wheels.install(plan.wheels, Path(temporary))
        for sentence in trouble:
            print(sentence, flush=True)
        environment = _environment(Path(temporary), plan.rehearse)
        for number, step in enumerate(plan.steps):
            print(f"{step.name:9} ", end="", flush=True)
            share = step.share / sum(other.share for other in plan.steps[number:])
            outcome = _Runner(plan, step, environment).run(
                min(plan.seconds_left(), max(LEAST_SECONDS, plan.seconds_left() * share))
            )
            if outcome.fatal:
                print(f"\nerror: {_MESSAGES[outcome.fatal]}", file=sys.stderr)
                return 2
            print(_line(plan.folder, step, outcome), flush=True)
            complete &= outcome.state.startswith("complete")
            trouble += outcome.trouble
            # Whoever ends this process now still finds tables.
            summary.write(plan.folder, trouble)
    return 0 if complete else 1


def _environment(installed: Path, rehearse: bool) -> dict[str, str]:
    """Of the steps' processes: the checkout's folders and the installed wheels go before all else on the path."""
    paths = [*(str(ROOT / name) for name in ("", "integrations", "benchmarks")), str(installed)]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if rehearse:
        # Compiling for a CPU would take longer than all the rest.
        environment |= {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    return environment


class _Runner:
    """One step: its process, and the next one where that died or hung in a cell."""

    def __init__(self, plan: Plan, step: Step, environment: dict[str, str]) -> None:
        self.plan, self.step, self.environment = plan, step, environment
        self.progress = Progress(plan.folder, step.name)
        self.outcome = Outcome()

    def run(self, seconds: float) -> Outcome:
        """Run it, for so many seconds at most."""
        started = time.monotonic()
        entries = self.progress.entries()
        self.progress.reopen(BEGAN)
        again = self.progress.reopen(FAILED) if self.plan.retry else 0
        if not again and WHOLE in entries and entries[WHOLE].state == DONE:
            self.outcome.state = "complete before"
            return self.outcome
        while not self.outcome.state:
            left = started + seconds - time.monotonic()
            if left <= 0:
                self.outcome.state = "cut off"
                break
            before = len(self.progress.settled())
            self._go(left)
            if not self.outcome.state and len(self.progress.settled()) == before:
                self.outcome.state = "failed"
        self.outcome.seconds = time.monotonic() - started
        if self.outcome.state == "complete":
            self.progress.began(WHOLE)
            self.progress.settle(WHOLE, DONE)
        return self.outcome

    def _go(self, seconds: float) -> None:
        """One process. It sets the outcome's state, or leaves it empty where another process can go on."""
        until = time.monotonic() + seconds
        with (self.plan.folder / "visit.log").open("a", encoding="utf-8") as log:
            log.write(f"--- {self.step.name}\n")
            log.flush()
            command = [sys.executable, str(Path(__file__).parent), "--work", self.step.name]
            command += ["--out", str(self.plan.folder.resolve()), "--seconds", f"{seconds:.1f}"]
            command += ["--rehearse"] if self.plan.rehearse else []
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True, cwd=ROOT
            )
            try:
                hung = self._wait(process, until)
            finally:
                _kill(process)
        if hung is not None:
            self._blame(hung, f"it hung: more than {self.step.cell_seconds:g} s")
        elif process.returncode == 0:
            self.outcome.state = "complete"
        elif time.monotonic() >= until:
            self.outcome.state = "cut off"
        elif process.returncode in _MESSAGES:
            self.outcome.state, self.outcome.fatal = "failed", process.returncode
        elif process.returncode != BROKEN:
            self._blame(self.progress.running(), f"its process died: {_cause(process.returncode)}")

    def _wait(self, process: subprocess.Popen[bytes], until: float) -> str | None:
        """Until the process or its time is over; the cell that hangs, if one does."""
        watched: tuple[str | None, int] = (None, 0)
        since = time.monotonic()
        while process.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            size = self.progress.path.stat().st_size if self.progress.path.exists() else 0
            if size != watched[1]:
                watched, since = (self.progress.running(), size), time.monotonic()
            if watched[0] is not None and time.monotonic() - since > self.step.cell_seconds:
                return watched[0]
        return None

    def _blame(self, cell: str | None, reason: str) -> None:
        if cell is not None:
            self.progress.settle(cell, FAILED, reason)
        self.outcome.trouble.append(f"{self.step.name}: {cell or 'before any cell'}: {reason}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _line(folder: Path, step: Step, outcome: Outcome) -> str:
    entries = {cell: entry for cell, entry in Progress(folder, step.name).entries().items() if cell != WHOLE}
    states = [entry.state for entry in entries.values()]
    counts = f"{states.count(DONE)} done, {states.count(FAILED)} failed"
    rows = len(read(folder / f"{step.name}.csv"))
    counts += f", {rows} rows" if rows else ""
    open_ = len(states) - states.count(DONE) - states.count(FAILED)
    counts += f", {open_} unfinished" if open_ else ""
    return f"{outcome.state}: {counts}, {outcome.seconds:.1f} s"
