"""Print table, verdict and figure of a sweep, and store them in its folder."""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from varloss_bench import messages
from varloss_bench.compare.result import Comparison
from varloss_bench.config import TrialConfig
from varloss_bench.records import provenance, same_data
from varloss_bench.records.store import Loaded, Store, write_atomically
from varloss_bench.report import groups, speed
from varloss_bench.report.figures.sweep import sweep_png
from varloss_bench.report.files import write
from varloss_bench.report.text import plain_text, render
from varloss_bench.statistics import summary

# The page takes about 1.5 s of processor time for 32 trials and 5 s for 210; for more trials than this it is made on request.
_REPORTED_AT_ONCE = 100


def present(
    trials: Sequence[TrialConfig],
    store: Store,
    console: Console,
    *,
    pairs: Sequence[summary.Pair],
    command: list[str],
    ran: int,
    seconds: float,
    effect_points: float = summary.EFFECT_POINTS,
    selection: Mapping[str, Any] | None = None,
    preface: str = "",
    chosen_on: Sequence[TrialConfig] = (),
) -> Comparison:
    """Print and store the summary.

    `selection` describes how the arms were chosen, if they were, and is stored in `summary.json`. `preface` is its text above
    the table. `chosen_on` are the trials by which they were chosen; these must have used the same images.
    """
    loaded = store.load(trials)
    trained = next(trial for trial in trials if trial.arm.trained)
    result = summary.summarise(trials, loaded.records, pairs, effect_points=effect_points)
    looked_at = [*trials, *chosen_on]
    content = {
        "command": command,
        "environment": next((record["environment"] for record in loaded.records.values()), None),
        "confounds": provenance.confounds_by_method(trials),
        "environments_differ": _environments_differ(loaded),
        "data_differ": (data_differ := same_data.differences(looked_at, store.load(looked_at).records)),
        "trials_run": ran,
        "seconds": round(seconds, 1),
        **({"selection": selection} if selection else {}),
        **summary.to_dict(result),
    }
    write_atomically(store.folder / "summary.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    timings = "\n".join(speed.in_words(trials, loaded.records))
    text = plain_text(result, trained) + (f"\n{timings}\n" if timings else "")
    alarm = same_data.in_words(data_differ, command)
    lines = [*alarm, *([""] if alarm else []), *([*preface.splitlines(), ""] if preface else [])]
    above = [textwrap.fill(line, 100, subsequent_indent="    ", break_on_hyphens=False) for line in lines]
    write_atomically(store.folder / "table.txt", "\n".join([f"$ {shlex.join(command)}\n", *above, text]))
    write_atomically(store.folder / "figure.png", sweep_png(result, trained))
    if alarm:
        messages.say(console, "\n".join(alarm), "bold red")
    if preface:
        console.print(Text(preface))
    console.print(render(result, trained))
    if timings:
        messages.say(console, timings, "dim")
    if content["environments_differ"]:
        console.print(
            "[yellow]These rows were not all made by the same versions on the same machine[/yellow] (see each trial's "
            "record); another --name runs all of them again."
        )
    messages.say(
        console, f"{messages.counted(ran, 'trial')} run in {seconds:.0f} s. Table, figure and records: {store.folder}/"
    )
    messages.say(console, _report(store, command))
    return Comparison(store.folder, result)


def _report(store: Store, command: list[str]) -> str:
    """Write the page about the whole folder. For many trials, which take more than three seconds, name the command instead."""
    number = sum(1 for _ in store.trials.glob("*.json"))
    if not 0 < number <= _REPORTED_AT_ONCE:
        return f"One page with every figure: varloss-bench report {shlex.quote(str(store.folder))}"
    write(groups.read(store.folder), store.folder, store.folder, command)
    return f"One page with every figure: {store.folder}/report.html"


def _environments_differ(loaded: Loaded) -> bool:
    """Whether the records come from different versions, sources or machines; different commits alone do not matter.

    A value that an older record lacks counts as equal to other missing values and different from known ones.
    """
    parts = ("versions", "varloss_source", "varloss_bench_source", "machine")
    seen = {
        json.dumps([record["environment"].get(part, "unknown") for part in parts], sort_keys=True)
        for record in loaded.records.values()
    }
    # Only trials that solo-learn trains have it; the untrained rows lack it.
    of_solo = {record["environment"].get("varloss_solo_source") for record in loaded.records.values()} - {None}
    return len(seen) > 1 or len(of_solo) > 1
