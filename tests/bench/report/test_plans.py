"""A section compares what its sweep planned, and says so."""

import io
import json

import pytest
from rich.console import Console
from support.sweeps import GRID, SMALL, TUNED, present, report, visible

from varloss_bench.compare.sweep import Execution, run_missing
from varloss_bench.config import PROTOCOL, TrialConfig
from varloss_bench.execution import workers
from varloss_bench.grid import grid
from varloss_bench.records import planned
from varloss_bench.records.store import Store
from varloss_bench.report.groups import read
from varloss_bench.report.sections import sections
from varloss_bench.report.verdict import in_words
from varloss_bench.statistics import summary
from varloss_bench.statistics.summary import grid_pairs

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_planned_section_comes_first(folder):
    folder(TrialConfig(evaluate_on="val"), **GRID | {"weights": [1.0], "methods": ["moco"]})
    folder(TrialConfig(data="fashion-mnist"), **SMALL)
    path = folder(**GRID)
    present(path, grid(TrialConfig(), **GRID), TUNED)
    titles = [section.title for section in sections(read(path))]
    assert titles[0] == "digits, test split, equal epochs (20), 3-convolution net"
    assert len(titles) == len(set(titles)) == 3


def test_compares_what_the_sweep_had_planned(folder):
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID)
    present(path, trials, TUNED, effect_points=0.25)
    (section,) = sections(read(path))
    table = json.loads((path / "summary.json").read_text())
    assert len(table["comparisons"]) == len(section.comparisons) == 2 * 5
    asked = summary.summarise(trials, Store(path).load(trials).records, TUNED, effect_points=0.25)
    assert [row[4] for row in section.comparisons] == [in_words(c) for c in asked.comparisons]
    assert [c["p_value_holm"] for c in table["comparisons"]] == [c.adjusted_p for c in asked.comparisons]
    shown = visible(path)
    assert "the same family of 10 comparisons as in its table.txt" in shown
    assert "t=0.2 (tuned baseline)" in shown
    assert "to settle 0.25 points of accuracy" in shown
    # Without the plan the family would be different: 4 arms with VRN, and no control.
    (path / "plan.json").unlink()
    (guessed,) = sections(read(path))
    assert len(guessed.comparisons) == 4 * 5


def test_a_plan_that_an_older_version_did_not_keep_is_said_to_be_unknown(folder):
    path = folder(**GRID)
    present(path, grid(TrialConfig(), **GRID), TUNED)
    (path / "plan.json").unlink()
    result = report(path)
    assert "left out" not in result.output.replace("0 files left out", "")
    shown = visible(path)
    assert "The plan of these trials is not recorded here" in shown
    assert "The comparisons are those that the sweep planned" not in shown


def test_nothing_is_said_of_comparisons_where_there_are_none(folder):
    path = folder(**SMALL | {"weights": []})
    (section,) = sections(read(path))
    assert section.verdict == ("Nothing is compared: no arm with VRN has its arm without VRN here.",)
    assert not any("planned" in note or "comparisons" in note or "compares" in note for note in section.notes)


def test_other_sweeps_in_the_folder_have_a_section_of_their_own(folder):
    path = folder(**GRID | {"seeds": range(6)})
    trials = grid(TrialConfig(), **GRID)
    present(path, trials, TUNED)
    last, everything = sections(read(path))
    assert len(last.trials) == len(trials)
    assert len(everything.trials) == len(trials) * 6 // 4
    assert everything.title == f"{last.title}: all sweeps with these options"
    assert len(last.comparisons) == 10
    assert len(everything.comparisons) == 20
    assert len(read(path).trials) == len(everything.trials)


def test_a_sweep_that_is_cut_short_has_its_plan(folder, monkeypatch):
    """The remaining seeds are not a result: when the sweep is stopped, 4 of 6 seeds exist."""
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID | {"seeds": range(6)})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "run_trials", interrupted)
    where, console = Execution(folder=path, command=["x"]), Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        run_missing(trials, where, console, pairs=grid_pairs(trials, []))
    (section,) = sections(read(path))
    assert len(section.comparisons) == 20
    assert all(row[4].startswith("no comparison") for row in section.comparisons)


@pytest.mark.parametrize("lose", [lambda file: file.unlink(), lambda file: file.write_text("{")])
@pytest.mark.parametrize("lost", ["t0.5-w3-s1-", "t0.5-w3-", ""])
def test_planned_trials_without_a_record_win_nothing(folder, lose, lost):
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID)
    for file in (path / "trials").glob(f"simclr-b16-{lost}*"):
        lose(file)
    present(path, trials, grid_pairs(trials, []))
    verdicts = [c["verdict"] for c in json.loads((path / "summary.json").read_text())["comparisons"]]
    (section,) = sections(read(path))
    words = [row[4] for row in section.comparisons]
    assert len(words) == len(verdicts) == 4 * 5
    assert [text.startswith("no comparison") for text in words] == [verdict == "crashed" for verdict in verdicts]
    assert [", settled at" in text for text in words] == [verdict == "settled" for verdict in verdicts]
    assert verdicts.count("crashed") == (5 if lost else 20)
    assert (verdicts.count("settled") > 0) is bool(lost)  # the same weight at the other temperature
    number = len(list((path / "trials").glob("*"))) - len(read(path).left_out)
    assert f"No readable record of {len(trials) - number} of the {len(trials)} planned trials" in section.warnings[0]
    assert [row[2] for row in section.trials].count("no readable record") == len(trials) - number
    shown = visible(path)
    assert "the same family of 20 comparisons as in its table.txt" in shown
    assert ("No comparison is possible" in shown) is (not lost)


def test_a_plan_is_read_as_it_was_made_and_is_small():
    base = TrialConfig(data="cifar10", head_batch_norm=True, temperature=1, steps=10, epochs=0)
    axes = GRID | {"methods": ["simclr", "moco", "dcl"], "batch_sizes": [16, 64], "seeds": range(20)}
    trials = grid(base, **axes)
    plan = planned.to_dict(trials, [], 0.5)
    assert len(trials) == 20 * len(plan["trials"])  # an entry for all seeds of an arm
    assert sum(map(len, plan["trials"])) <= 6 * len(plan["trials"])  # which says how it differs from most others
    read = planned.read_plan(json.loads(json.dumps(plan)))
    assert {config.key() for config in read.configs} == {trial.key() for trial in trials} == read.keys
    assert list(dict.fromkeys(c.arm for c in read.configs)) == list(dict.fromkeys(t.arm for t in trials))


PLANS = {
    "half": lambda plan: None,
    "no table": lambda plan: [1],
    "seeds": lambda plan: {**plan, "trials": "all"},
    "no seeds": lambda plan: {**plan, "trials": [{"method": "simclr"}]},
    "kind of a field": lambda plan: {**plan, "common": {**plan["common"], "temperature": "0.5"}},
    "range of a field": lambda plan: {**plan, "common": {**plan["common"], "batch_size": 0}},
    "unknown field": lambda plan: {**plan, "common": {**plan["common"], "<script>": 0}},
    "no protocol": lambda plan: {name: value for name, value in plan.items() if name != "protocol"},
    "protocol": lambda plan: {**plan, "protocol": PROTOCOL + 1},
    "nothing trained": lambda plan: {**plan, "pairs": [], "trials": [e for e in plan["trials"] if "random" in str(e)]},
    "arm of no trial": lambda plan: {
        **plan,
        "pairs": [{**plan["pairs"][0], "base": {**plan["pairs"][0]["base"], "weight": 7.0}}],
    },
    "role": lambda plan: {**plan, "pairs": [{**plan["pairs"][0], "base_is": "better"}]},
    "arm": lambda plan: {**plan, "pairs": [{**plan["pairs"][0], "base": {"method": "simclr"}}]},
    "numbers": lambda plan: {
        **plan,
        "pairs": [{**plan["pairs"][0], "base": {**plan["pairs"][0]["base"], "weight": "0"}}],
    },
    "method": lambda plan: {**plan, "pairs": [{**plan["pairs"][0], "base": {**plan["pairs"][0]["base"], "method": 1}}]},
    "effect": lambda plan: {**plan, "effect_points": -1},
    "no effect": lambda plan: {**plan, "effect_points": None},
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_that_is_none_is_left_out(folder, kind):
    path = folder(**GRID)
    write_broken_plan(path, PLANS[kind])
    found = read(path)
    assert found.left_out["plan.json"].startswith("corrupt: ")
    (group,) = found.groups
    assert group.plan is None


def test_a_plan_that_is_left_out_is_named(folder):
    path = folder(**GRID)
    write_broken_plan(path, PLANS["role"])
    result = report(path)
    assert result.exit_code == 0, result.output
    assert "left out: plan.json: corrupt: " in result.output
    (section,) = sections(read(path))
    assert len(section.comparisons) == 20


def write_broken_plan(path, break_it):
    planned.write(path, grid(TrialConfig(), **GRID), TUNED, 0.5)
    broken = break_it(json.loads((path / "plan.json").read_text()))
    (path / "plan.json").write_text(json.dumps(broken) if broken is not None else "{")
