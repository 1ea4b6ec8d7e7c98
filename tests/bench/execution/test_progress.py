"""The progress bar of a sweep, on a fake clock."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from varloss_bench.config import TrialConfig
from varloss_bench.execution.progress import SweepProgress, cost
from varloss_bench.execution.workers import Event


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("length", [{"epochs": 10}, {"epochs": 0, "steps": 300}])
def test_the_time_left_is_the_time_it_takes(length):
    """Two workers, small and large batches; a trial takes as long as its cost says, an epoch at a time."""
    trials = [TrialConfig(seed=seed, batch_size=size, **length) for seed in range(4) for size in (16, 256)]
    second = cost(trials[0]) / 20  # the small ones take 20 s
    total = sum(cost(trial) for trial in trials) / second / 2
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=True, width=150, get_time=clock)
    with SweepProgress(console, trials) as progress:
        for first, other in zip(trials[::4] + trials[1::4], trials[2::4] + trials[3::4], strict=True):
            for part in range(1, 11):
                clock.now += cost(first) / second / 10
                status = "finished" if part == 10 else None
                for trial in (first, other):
                    progress.update(Event(trial, part / 10, status))
                task = progress._progress.tasks[0]
                if clock.now > 20:  # before, a few updates decide
                    assert task.time_remaining == pytest.approx(total - clock.now, rel=0.15, abs=2), clock.now
            progress._progress.refresh()
    assert clock.now == pytest.approx(total)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "8/8 trials" in shown
    assert re.search(r"left 0:00:\d\d", shown)


def test_reasons_stand_in_the_output_and_elsewhere_there_is_a_line_per_trial():
    trials = [TrialConfig(seed=seed) for seed in range(2)]
    file = io.StringIO()
    with SweepProgress(Console(file=file, width=150), trials) as progress:
        progress.update(Event(trials[0], 0.0, reason="another process is running it; its result will be used"))
        progress.update(Event(trials[1], 1.0, "diverged", "mean training loss of epoch 1 is nan"))
        progress.update(Event(trials[0], 1.0, "finished"))
    assert file.getvalue().splitlines() == [
        "SimCLR, B=16, t=0.5, seed 0: note: another process is running it; its result will be used",
        "SimCLR, B=16, t=0.5, seed 1: diverged: mean training loss of epoch 1 is nan",
        "2/2 SimCLR, B=16, t=0.5, seed 0",
    ]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "reason",
    [
        "OSError: /data/[/a].png cannot be read",
        "RankError: [rank0]: RuntimeError: [enforce fail at alloc.cpp:117] . [bold]err[/bold] :x: ==",
    ],
)
def test_a_reason_is_shown_as_it_is(reason, terminal):
    """For rich the first has an unmatched closing tag, and the second has tags and an emoji."""
    trial, file = TrialConfig(), io.StringIO()
    with SweepProgress(Console(file=file, force_terminal=terminal, width=150), [trial]) as progress:
        progress.update(Event(trial, 1.0, "crashed", reason))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert f"SimCLR, B=16, t=0.5, seed 0: crashed: {reason}\n" in shown.replace("\r", "")


def test_smaller_batches_cost_more_at_equal_epochs_and_less_at_equal_steps():
    small, large = TrialConfig(batch_size=16), TrialConfig(batch_size=256)
    assert cost(small) > cost(large)
    stepped = [dataclasses.replace(trial, epochs=0, steps=100) for trial in (small, large)]
    assert cost(stepped[0]) < cost(stepped[1])
