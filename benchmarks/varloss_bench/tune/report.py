"""The result of a pair of searches in words: the choice, the baseline, and the command that tests the choice."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from varloss_bench.commands.config_file import command_words
from varloss_bench.commands.running import Running
from varloss_bench.compare.options import Grid
from varloss_bench.config import TrialConfig
from varloss_bench.measures import METRICS
from varloss_bench.tune.search import Outcome, best
from varloss_bench.tune.train import Plan

WITH_VRN, BASELINE = "with VRN", "without VRN"
TEST_SEEDS = 10


def table(title: str, outcomes: Sequence[Outcome], costs: Sequence[int]) -> Table:
    """All candidates of a search in order, with their scores at the rungs."""
    result = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    result.add_column("#", justify="right")
    result.add_column("VRN", justify="right")
    result.add_column("t", justify="right")
    for epochs in costs:
        result.add_column(f"{epochs} ep.", justify="right")
    result.add_column("")
    chosen = best(outcomes)
    for number, outcome in enumerate(outcomes, 1):
        scores = [f"{score:.2f}" for score in outcome.scores] + [""] * (len(costs) - len(outcome.scores))
        result.add_row(
            str(number),
            f"{outcome.candidate.weight:g}",
            f"{outcome.candidate.temperature:g}",
            *scores,
            Text(outcome.state + (f": {outcome.reason}" if outcome.reason else "")),
            style="bold" if outcome is chosen else "",
        )
    return result


def words(outcomes: Mapping[str, Sequence[Outcome]], plan: Plan, budget: int) -> list[str]:
    """The result, without claims that a search on a few validation seeds cannot support."""
    lines = []
    chosen = {name: best(found) for name, found in outcomes.items()}
    for name, outcome in chosen.items():
        if outcome is None:
            lines.append(f"{name}: no candidate finished, so nothing is chosen.")
            continue
        candidate = outcome.candidate
        what = f"weight {candidate.weight:g}, " if candidate.weight else ""
        lines.append(
            f"{name}: {what}temperature {candidate.temperature:g} gives {outcome.score:.2f} "
            f"({METRICS[plan.metric].title}, %, mean of {plan.seeds} validation seed{'s' if plan.seeds > 1 else ''})."
        )
    treated, plain = chosen[WITH_VRN], chosen[BASELINE]
    if treated and plain:
        numbers = [sum(o.state == "finished" for o in outcomes[name]) for name in (WITH_VRN, BASELINE)]
        lines.append(
            f"Difference {treated.score - plain.score:+.2f} points: the best of {numbers[0]} finished candidates against the "
            f"best of {numbers[1]} on the seeds that chose them. This is not a test."
        )
    spent = ", ".join(f"{name} {sum(o.epochs for o in found)}" for name, found in outcomes.items())
    lines.append(f"Epochs spent of {budget} each: {spent}.")
    return lines


def compare_command(base: TrialConfig, treated: Outcome, plain: Outcome, seeds: int) -> list[str]:
    """The command that tests the choice on new seeds, against its own and the tuned temperature without VRN."""
    grid = Grid(
        methods=[base.method],
        batch_sizes=[base.batch_size],
        weights=[treated.candidate.weight],
        temperatures=[treated.candidate.temperature],
        control_temperatures=[plain.candidate.temperature],
        seeds=TEST_SEEDS,
        first_seed=0 if base.seed >= TEST_SEEDS else base.seed + seeds,
    )
    # The device is always given, because by default `compare` uses a GPU if there is one, even if the search did not.
    trial = dataclasses.replace(base, evaluate_on="test")
    name = f"{base.data.partition(':')[0]}-tuned"
    return ["varloss-bench", "compare", *command_words(grid, trial, Running(name=name))]


def to_dict(outcomes: Mapping[str, Sequence[Outcome]], plan: Plan, budget: int) -> dict[str, Any]:
    """The same as plain values, for a file."""
    chosen = {name: best(found) for name, found in outcomes.items()}
    treated, plain = chosen[WITH_VRN], chosen[BASELINE]
    return {
        "metric": plan.metric,
        "rungs": list(plan.costs),
        "budget_epochs_each": budget,
        "searches": {
            name: [
                {
                    **dataclasses.asdict(o.candidate),
                    "scores": list(o.scores),
                    "epochs": o.epochs,
                    "state": o.state,
                    "reason": o.reason,
                    "score": None if math.isnan(o.score) else o.score,
                }
                for o in found
            ]
            for name, found in outcomes.items()
        },
        "chosen": {name: dataclasses.asdict(o.candidate) if o else None for name, o in chosen.items()},
        "test_with": shlex.join(compare_command(plan.base, treated, plain, plan.seeds)) if treated and plain else None,
    }
