"""`compare --select`: the choice on validation, the comparison on test, and the warning if the choice changes."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.compare import cost
from varloss_bench.compare import select as select_run
from varloss_bench.compare.sweep import Execution
from varloss_bench.config import Arm, TrialConfig
from varloss_bench.execution import workers
from varloss_bench.grid import grid
from varloss_bench.records.store import Store
from varloss_bench.report.selection import in_words
from varloss_bench.statistics import selection as select_cells

LEVELS = {"few_label_probe": 90.0, "fewest_label_probe": 80.0, "linear_probe": 98.0, "knn": 97.0, "projection_knn": 96.0,
          "negative_variance": 0.1, "negative_mean": 0.0, "positive_mean": 0.8}  # fmt: skip


def arm(temperature, weight, batch_size=16):
    return Arm("simclr", batch_size, temperature, weight)


def plan(**changes):
    axes = {
        "methods": ["simclr"], "batch_sizes": [16], "weights": [0.0, 1.0, 3.0], "temperatures": [0.5, 0.1],
        "control_temperatures": [0.2],
    }  # fmt: skip
    axes |= {name: changes.pop(name) for name in axes.keys() & changes}
    values = {
        "base": TrialConfig(), "metric": "few_label_probe", "validation_seeds": [100, 101], "test_seeds": range(4),
    }  # fmt: skip
    return select_cells.Plan(axes=axes, **{**values, **changes})


# Means 93 (t=0.1) and 94 (t=0.5, weight 1) are the highest.
SCORES = {
    arm(0.5, 0.0): (90, 92), arm(0.5, 1.0): (94, 94), arm(0.5, 3.0): (97, 90), arm(0.1, 0.0): (92, 94),
    arm(0.1, 1.0): (92, 92), arm(0.1, 3.0): (91, 91), arm(0.2, 0.0): (92, 93),
}  # fmt: skip


def record(trial, score=None, **changes):
    metrics = {**LEVELS, **({} if score is None else {"few_label_probe": float(score)})}
    return {"config": trial.to_dict(), "status": "finished", "reason": None, "environment": {}, "collapsed": False,
            "metrics": metrics, "seconds": {"train": 1.0, "evaluate": 0.1}, **changes}  # fmt: skip


def validation_records(of_plan, scores=SCORES, failed=None):
    records = {}
    for trial in of_plan.validation_trials():
        score = scores[arm(trial.temperature, trial.weight)][of_plan.validation_seeds.index(trial.seed)]
        changes = (failed or {}).get((trial.temperature, trial.weight, trial.seed), {})
        records[trial.key()] = record(trial, score, **changes)
    return records


def chosen(of_plan, records):
    return select_cells.choose(of_plan.validation_trials(), records, of_plan.metric)


def test_the_best_mean_with_and_without_vrn_is_chosen():
    (group,) = chosen(plan(), validation_records(plan())).groups
    assert group.chosen == (arm(0.1, 0.0), arm(0.5, 1.0))
    assert (group.baseline.candidates, group.vrn.candidates) == (3, 4)  # the control competes, for the baseline only
    assert group.baseline.runner_up.arm == arm(0.2, 0.0)
    assert group.baseline.lead.mean == pytest.approx(0.5)
    assert group.vrn.runner_up.arm == arm(0.5, 3.0)
    assert group.vrn.lead.mean == pytest.approx(0.5)
    assert group.vrn.lead.half_width == pytest.approx(12.7062 * 3.5, rel=1e-4)  # of -3 and 4
    text = in_words(chosen(plan(), validation_records(plan())), range(4))
    assert (
        "VRN: t=0.5 + VRN 1, 94.00 on validation, best of 4 cells; runner-up t=0.5 + VRN 3, 0.50±44.47 behind" in text
    )
    assert "per class over seeds 100 to 101. Confirmed on the test split with seeds 0 to 3" in text


@pytest.mark.parametrize("official", [False, True])
def test_images_that_served_the_choice_are_in_a_drawn_test_split_only(official):
    of_plan = plan(base=TrialConfig(data="cifar10", official_test=official))
    text = in_words(chosen(of_plan, validation_records(of_plan)), range(4))
    assert ("an image used for the choice can be in the test split" in text) != official


def test_of_equal_cells_the_smaller_weight_then_the_smaller_temperature():
    scores = dict.fromkeys(SCORES, (93, 93))
    selection = chosen(plan(), validation_records(plan(), scores))
    assert selection.chosen == [(arm(0.1, 0.0), arm(0.1, 1.0))]
    assert selection.groups[0].vrn.tied
    assert "t=0.5 + VRN 1 has the same score; the smaller weight or temperature is taken" in in_words(selection, [0])


@pytest.mark.parametrize(
    ("failure", "word"), [({"collapsed": True}, "collapsed"), ({"status": "diverged", "metrics": {}}, "diverged")]
)
def test_a_cell_with_a_failed_seed_is_out_with_the_reason(failure, word):
    records = validation_records(plan(), failed={(0.5, 1.0, 101): failure})
    selection = chosen(plan(), records)
    assert selection.chosen == [(arm(0.1, 0.0), arm(0.5, 3.0))]
    assert f"excluded: t=0.5 + VRN 1 ({word} at seed 101)" in in_words(selection, range(4))
    stored = select_cells.to_dict(plan(), selection, plan().validation_trials())
    cells = {(cell["temperature"], cell["weight"]): cell["out"] for cell in stored["groups"][0]["cells"]}
    assert cells[0.5, 1.0] == word
    assert set(cells.values()) == {word, None}


def test_only_what_was_chosen_runs_on_test_and_is_the_whole_family():
    wide = plan(batch_sizes=[16, 64])
    selection = select_cells.Selection("knn", (100,), (), True)
    assert selection.pairs() == []
    pairs_of = [(arm(0.1, 0.0), arm(0.5, 1.0)), (arm(0.5, 0.0, 64), arm(0.5, 3.0, 64))]
    trials = wide.test_trials(pairs_of)
    assert {trial.evaluate_on for trial in trials} == {"test"}
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)
    trained = {trial.arm for trial in trials if trial.arm.trained}
    assert trained == {arm(0.1, 0.0), arm(0.5, 0.0), arm(0.5, 1.0), arm(0.5, 0.0, 64), arm(0.5, 3.0, 64)}
    assert {trial.method for trial in trials if not trial.arm.trained} == {"raw-pixels", "random-init"}
    assert len(trials) == 4 * (5 + 2)
    assert len({trial.arm for trial in wide.most_test_trials()}) == 2 * 3 + 2


def test_validation_trials_are_those_of_compare_on_val():
    """The same keys: a grid that was run with `--evaluate-on val` is not run again."""
    trials = grid(
        TrialConfig(evaluate_on="val"), methods=["simclr"], batch_sizes=[16], weights=[1.0, 3.0], temperatures=[0.5, 0.1],
        control_temperatures=[0.2], seeds=[100, 101],
    )  # fmt: skip
    assert [t.key() for t in plan().validation_trials()] == [t.key() for t in trials if t.arm.trained]


def fill(folder, of_plan, scores):
    """Records of validation trials by score, and of every possible test trial, in which VRN is a point better."""
    store = Store(folder)
    for key, content in validation_records(of_plan, scores).items():
        trial = TrialConfig.from_dict(content["config"])
        assert trial.key() == key
        store.write(trial, content)
    for trial in grid(of_plan.base, **of_plan.axes, seeds=of_plan.test_seeds):
        score = 90 + trial.seed + trial.temperature + (1 + 0.01 * trial.seed if trial.weight else 0)
        store.write(trial, record(trial, score))


def run_planted(of_plan, folder):
    """Run both phases on existing records; returns the printed text and the stored summary."""
    console, where = Console(width=400, file=io.StringIO(), color_system=None), Execution(folder=folder, command=["x"])
    cost.show_phases(of_plan, where, console)
    select_run.run_select(of_plan, where, console, effect_points=0.5)
    return console.file.getvalue(), json.loads((folder / "summary.json").read_text())


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(workers, "run_trials", lambda *_: pytest.fail("something ran"))


@pytest.mark.usefixtures("nothing_runs")
def test_images_that_changed_between_choice_and_test_are_announced(tmp_path):
    """Each phase is consistent in itself, but the choice was made with different images."""
    fill(tmp_path, plan(), SCORES)
    printed, summary = run_planted(plan(), tmp_path)
    assert "NOT THE SAME IMAGES" not in printed
    assert summary["data_differ"] == []
    for path in (tmp_path / "trials").iterdir():
        content = json.loads(path.read_text())
        digest = "before" if content["config"]["evaluate_on"] == "val" else "after"
        path.write_text(json.dumps({**content, "data_digest": digest}))
    printed, summary = run_planted(plan(), tmp_path)
    _, _, second = printed.partition("Phase 2")
    assert second.count("NOT THE SAME IMAGES") == printed.count("NOT THE SAME IMAGES") == 1
    assert sorted(entry["value"] for entry in summary["data_differ"]) == ["after", "before"]


@pytest.mark.usefixtures("nothing_runs")
def test_the_test_table_has_the_chosen_and_compares_them_with_the_tuned_baseline_first(tmp_path):
    fill(tmp_path, plan(), SCORES)
    output, stored = run_planted(plan(), tmp_path)
    rows = {(row["temperature"], row["weight"]) for row in stored["rows"] if row["method"] == "simclr"}
    assert rows == {(0.1, 0.0), (0.5, 1.0), (0.5, 0.0)}
    pairs = [(c["base_is"], c["base"]["temperature"], c["treated"]["weight"]) for c in stored["comparisons"]]
    assert pairs == [("tuned baseline", 0.1, 1.0)] * 5 + [("same temperature", 0.5, 1.0)] * 5
    assert stored["comparisons_in_family"] == 10
    assert stored["selection"]["groups"][0]["vrn"]["weight"] == 1.0
    assert stored["selection"]["earlier"] == []
    probe = stored["comparisons"][0]
    assert probe["difference"]["mean"] == pytest.approx(1.0 + 0.4 + 0.015, abs=1e-3)
    for text in (output, (tmp_path / "table.txt").read_text()):
        flat = " ".join(text.split())
        assert "SimCLR, B=16: t=0.5 + VRN 1 against the tuned baseline, t=0.1" in flat
        assert "baseline: t=0.1, 93.00 on validation" in flat
        assert "WARNING" not in flat
    assert "t=0.5 + VRN 1      94.00±0.00  <- chosen" in output
    assert "Phase 1: 14 trials on val, 0 to run. Phase 2: 0 to run." in output
    # A repeated call prints the same.
    again, stored_again = run_planted(plan(), tmp_path)
    assert stored_again["selection"] == stored["selection"]
    assert "WARNING" not in again


@pytest.mark.usefixtures("nothing_runs")
def test_a_choice_that_changed_after_test_was_read_is_announced_and_never_mixed(tmp_path):
    fill(tmp_path, plan(), SCORES)
    run_planted(plan(), tmp_path)
    more = plan(validation_seeds=[100, 101, 102])
    # A third seed for which weight 3 at t=0.5 is best.
    fill(tmp_path, more, {cell: (*scores, 99 if cell.weight == 3 else 91) for cell, scores in SCORES.items()})
    for _ in range(2):  # a repeated call is not a third choice
        _, stored = run_planted(more, tmp_path)
        assert {c["treated"]["weight"] for c in stored["comparisons"]} == {3.0}
        assert stored["comparisons_in_family"] == 10
        (before,) = stored["selection"]["earlier"]
        assert before["validation_seeds"] == [100, 101]
        assert before["test_cells"]["simclr, B=16"]["vrn"] == {"temperature": 0.5, "weight": 1.0}
        flat = " ".join((tmp_path / "table.txt").read_text().split())
        assert (
            "WARNING: the test split was read before for 1 other choice, the last made with validation seeds 100, 101"
            in flat
        )
        assert "(simclr, B=16: t=0.1 and t=0.5 + VRN 1)" in flat
    assert select_cells.what_was_chosen(json.loads((tmp_path / "selection.json").read_text()))["test_cells"] == {
        "simclr, B=16": {"baseline": {"temperature": 0.1, "weight": 0.0}, "vrn": {"temperature": 0.5, "weight": 3.0}}
    }


@pytest.mark.usefixtures("nothing_runs")
def test_more_validation_seeds_that_choose_the_same_are_no_other_choice(tmp_path):
    fill(tmp_path, plan(), SCORES)
    run_planted(plan(), tmp_path)
    more = plan(validation_seeds=[100, 101, 102])
    fill(tmp_path, more, {cell: (*scores, sum(scores) / 2) for cell, scores in SCORES.items()})
    output, stored = run_planted(more, tmp_path)
    assert stored["selection"]["earlier"] == []
    assert stored["selection"]["validation_seeds"] == [100, 101, 102]
    assert "WARNING" not in output


@pytest.mark.usefixtures("nothing_runs")
def test_arms_that_differ_by_batch_size_make_a_table_and_a_figure(tmp_path):
    wide = plan(batch_sizes=[16, 64])
    fill(tmp_path, wide, SCORES)
    store = Store(tmp_path)
    for trial in wide.validation_trials():
        if trial.batch_size == 64 and (trial.temperature, trial.weight) in {(0.5, 0.0), (0.5, 3.0)}:
            store.write(trial, record(trial, 99))
    output, stored = run_planted(wide, tmp_path)
    pairs = {
        (c["treated"]["batch_size"], c["treated"]["weight"], c["base"]["temperature"]) for c in stored["comparisons"]
    }
    assert pairs == {(16, 1.0, 0.1), (16, 1.0, 0.5), (64, 3.0, 0.5)}
    assert stored["comparisons_in_family"] == 15
    assert "SimCLR, B=64: t=0.5 + VRN 3 against the tuned baseline, t=0.5" in output
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_test_waits_for_a_cell_without_a_result(tmp_path, monkeypatch):
    fill(tmp_path, plan(), SCORES)
    store = Store(tmp_path)
    crashed = next(trial for trial in plan().validation_trials() if trial.arm == arm(0.5, 3.0))
    store.write(crashed, record(crashed, status="crashed", metrics={}))
    tried = []
    monkeypatch.setattr(workers, "run_trials", lambda trials, *_: tried.extend(trials) or iter(()))
    console = Console(width=400, file=io.StringIO(), color_system=None)
    with pytest.raises(select_run.NothingChosenError):
        select_run.run_select(plan(), Execution(folder=tmp_path, command=["x"]), console, effect_points=0.5)
    assert tried == [crashed]
    assert "t=0.5 + VRN 3: no result for seeds 100." in console.file.getvalue()
    assert not (tmp_path / "selection.json").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.usefixtures("nothing_runs")
def test_where_every_cell_of_a_side_failed_test_is_not_read(tmp_path):
    fill(tmp_path, plan(), SCORES)
    store = Store(tmp_path)
    for trial in plan().validation_trials():
        if trial.weight:
            store.write(trial, record(trial, collapsed=True))
    console = Console(width=400, file=io.StringIO(), color_system=None)
    with pytest.raises(select_run.NothingChosenError):
        select_run.run_select(plan(), Execution(folder=tmp_path, command=["x"]), console, effect_points=0.5)
    assert "VRN: none; every cell failed" in console.file.getvalue()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}'])
def test_a_selection_file_that_cannot_be_read_is_not_overwritten(tmp_path, content):
    fill(tmp_path, plan(), SCORES)
    (tmp_path / "selection.json").write_text(content)
    with pytest.raises(ValueError, match=r"selection.json cannot be read .* move it away to continue without it"):
        run_planted(plan(), tmp_path)
    assert (tmp_path / "selection.json").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select-first-seed", "2"], "cells are chosen with other seeds than they are tested with, got 2, 3 in both"),
        (["--select-seeds", "0"], "--select-seeds must be at least 1, got 0"),
        (["--select-by", "uniformity"], "--select-by must be one of few_label_probe, "),
        (["--weight", "0"], "--select needs a --weight above 0 to choose from"),
        (
            ["--evaluate-on", "val"],
            "--select chooses on val and then evaluates on test; with --evaluate-on val there is no",
        ),
        (["--effect", "0"], "--effect must be greater than 0, got 0"),
        (["--num-val", "0"], "there is nothing to evaluate on: the val split has fewer than 2 samples, got 0"),
    ],
)
@pytest.mark.usefixtures("nothing_runs")
def test_bad_input_is_an_error_before_anything_runs(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["compare", "--select", *arguments, "--output", str(tmp_path / "new")])
    assert result.exit_code == 2, result.output
    assert f"error: {message}" in result.output
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.usefixtures("trains", "quick_workers")
def test_both_phases_for_real_and_again(tmp_path):
    """Tiny trainings: the choice is the best of the validation records, the test has other seeds, nothing runs twice."""
    command = ["compare", "--select", "--method", "simclr", "--epochs", "2", "--batch-size", "64", "--temperature", "0.5",
               "--weight", "3", "--select-seeds", "1", "--seeds", "2", "--workers", "1", "--output", str(tmp_path)]  # fmt: skip
    dry = CliRunner().invoke(app, [*command, "--dry-run"], env={"COLUMNS": "200"})
    assert dry.exit_code == 0, dry.output
    assert "Phase 1: 3 trials on val, 3 to run. Phase 2: at most 10 to run." in dry.output
    assert len(re.findall(r"About \d+\.\d minutes with 1 workers", dry.output)) == 2
    assert not list(tmp_path.iterdir())

    first = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    trials = [json.loads(path.read_text()) for path in (tmp_path / "trials").glob("*.json")]
    val, test = ([t for t in trials if t["config"]["evaluate_on"] == split] for split in ("val", "test"))
    assert {t["config"]["seed"] for t in val} == {10000}
    assert {t["config"]["seed"] for t in test} == {0, 1}
    vrn_failed = next(t for t in val if t["config"]["weight"])["collapsed"]
    plain = [t for t in val if not t["config"]["weight"] and not t["collapsed"]]
    assert plain, "too short a training to choose from; lengthen it"
    assert not vrn_failed, "too short a training to choose from; lengthen it"
    assert first.exit_code == 0, first.output
    selection = json.loads((tmp_path / "selection.json").read_text())
    best = max(plain, key=lambda t: t["metrics"]["few_label_probe"])
    assert selection["groups"][0]["baseline"]["temperature"] == best["config"]["temperature"]
    assert {t["config"]["temperature"] for t in test if t["config"]["method"] == "simclr"} == {
        0.5, best["config"]["temperature"]
    }  # fmt: skip
    assert "Phase 2 of 2" in first.output

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*.json")}
    table = (tmp_path / "table.txt").read_text()
    second = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert second.exit_code == 0, second.output
    assert "Phase 1: 3 trials on val, 0 to run. Phase 2: 0 to run." in second.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*.json")} == before
    assert (tmp_path / "table.txt").read_text().splitlines()[1:] == table.splitlines()[1:]
