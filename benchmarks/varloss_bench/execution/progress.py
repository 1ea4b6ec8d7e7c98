"""Progress of a sweep: on a terminal a bar with the time left, otherwise one line per trial."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from varloss_bench.config import TrialConfig
from varloss_bench.execution.workers import Event
from varloss_bench.messages import say
from varloss_bench.methods import METHODS


def cost(config: TrialConfig) -> float:
    """Relative duration of a trial within one sweep: a step costs as much as its own images plus 64 more."""
    factor = METHODS[config.method].cost
    if config.steps:
        return config.steps / 100 * factor * (config.batch_size + 64)
    return max(1, config.epochs) * factor * (1 + 64 / config.batch_size)


class SweepProgress:
    """Context manager that shows events of `workers.run_trials`."""

    def __init__(self, console: Console, configs: Sequence[TrialConfig]) -> None:
        self._console = console
        self._total = len(configs)
        self._fractions = {config.key(): 0.0 for config in configs}
        self._costs = {config.key(): cost(config) for config in configs}
        self._finished = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[finished]} trials"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            # The speed is averaged over this many seconds, because workers take time to start and trials differ.
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("training", total=sum(self._costs.values()), finished=f"0/{self._total}")

    def __enter__(self) -> "SweepProgress":
        """Show the bar."""
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._console.is_terminal:
            self._progress.stop()

    def update(self, event: Event) -> None:
        """Show one event."""
        key, arm = event.config.key(), event.config.arm.label()
        self._fractions[key] = event.fraction
        if event.status:
            self._finished += 1
        if event.reason:
            say(self._console, f"{arm}, seed {event.config.seed}: {event.status or 'note'}: {event.reason}")
        elif event.status and not self._console.is_terminal:
            say(self._console, f"{self._finished}/{self._total} {arm}, seed {event.config.seed}")
        done = sum(self._fractions[k] * self._costs[k] for k in self._fractions)
        self._progress.update(self._task, completed=done, finished=f"{self._finished}/{self._total}", description=arm)
