"""The tables of a sweep and the notes below them."""

import io
import json

import pytest
from rich.console import Console
from support.sweeps import BASE, PLAIN, VRN, change, in_memory, summarise

from varloss_bench import measures
from varloss_bench.report.figures.sweep import sweep_png
from varloss_bench.report.text import plain_text, render
from varloss_bench.statistics import summary


def text_of(trials, records):
    return plain_text(summarise(trials, records), next(t for t in trials if t.arm.trained))


def test_missing_trials_are_named():
    trials, records = in_memory()
    for trial in trials:
        if trial.arm == PLAIN and trial.seed in (1, 3):
            del records[trial.key()]
    assert "no result for seeds 1, 3; run the command again" in " ".join(text_of(trials, records).split())


def test_nothing_at_all_is_still_a_table():
    trials, _ = in_memory()
    assert "no result for seeds 0, 1, 2, 3" in " ".join(text_of(trials, {}).split())
    sweep_png(summarise(trials, {}), trials[2])


def test_rows_below_a_baseline_are_named():
    trials, records = in_memory(effect={"few_label_probe": -10.0})
    assert "Not above random-init (90.00) on the 10-label probe: SimCLR, B=16, t=0.5 + VRN 3" in " ".join(
        text_of(trials, records).split()
    )


def test_the_text_claims_no_more_than_the_run():
    text = " ".join(text_of(*in_memory()).split())
    for phrase in ("Equal epochs (20)", "redraws split", "held-out", "Holm's correction over all 20 comparisons", "level 0.05/20",
                   "estimated from 4 paired seeds. The estimate is rough: the true number is 0.32 to 14 times as large",
                   "The correction covers one look"):  # fmt: skip
        assert phrase in text


def test_tables_fit_eighty_columns():
    trials, records = in_memory(effect=dict.fromkeys(measures.ACCURACIES, -1.0))
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(render(summarise(trials, records), trials[2]))
    assert "…" not in console.file.getvalue()


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_narrow_table_wraps_its_labels_and_loses_no_mark(width):
    trials, records = in_memory(effect={"negative_variance": -0.1}, seeds=2)
    for arm in (VRN, PLAIN):
        for seed in range(2):
            metrics = {**BASE, **dict.fromkeys(measures.ACCURACIES, 50.0 * seed + 50 * bool(arm.weight))}
            change(trials, records, arm, seed, collapsed=bool(arm.weight), metrics=metrics)
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(summarise(trials, records), trials[2]))
    lines = console.file.getvalue().splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= width
    whole = plain_text(summarise(trials, records), trials[2])
    # The legend names every mark once; all others are those of comparisons.
    for mark in "✓~·✗=":
        assert "".join(lines).count(mark) == whole.count(mark)
    assert whole.count("✗") == 2 * 5 + 1
    if width == 80:
        assert "collapsed)" in "".join(lines)


def test_a_single_seed_is_said_to_have_no_interval():
    text = " ".join(text_of(*in_memory(seeds=1)).split())
    assert "a single seed: no interval" in text
    assert "over 1 seeds" not in text


def test_summary_has_no_nan():
    trials, records = in_memory(seeds=1)
    json.dumps(summary.to_dict(summarise(trials, records)), allow_nan=False)
