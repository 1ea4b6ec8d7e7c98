"""`varloss-bench report`: what is read, what is left out, what may stand beside what, and the page itself."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.compare import sweep
from varloss_bench.config import PROTOCOL, Arm, TrialConfig, grid
from varloss_bench.execution import workers as runner
from varloss_bench.measures import HISTOGRAM_BINS
from varloss_bench.records import planned
from varloss_bench.records.store import Store
from varloss_bench.report import figures as report_figures
from varloss_bench.report import groups as report_records
from varloss_bench.report import heat as report_heat
from varloss_bench.report import page as report_page
from varloss_bench.report import text as report_text
from varloss_bench.statistics.summary import Pair, grid_pairs, summarise

BASE = {"few_label_probe": 95.0, "linear_probe": 98.0, "knn": 97.0, "projection_knn": 96.0,
        "negative_variance": 0.18, "negative_mean": 0.01, "positive_mean": 0.7}  # fmt: skip
ENVIRONMENT = {"versions": {"torch": "2.9"}, "varloss_source": "abc", "machine": {"cpu": "a"}, "git": None}
# One arm with VRN and one without.
SMALL = {"methods": ["simclr"], "batch_sizes": [16], "weights": [3.0], "temperatures": [0.5], "control_temperatures": [],
         "seeds": [0, 1]}  # fmt: skip
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>|$\\frac$&"


def record_of(config, rng, **changes):
    metrics = {name: value + 0.1 * rng.normal() for name, value in BASE.items()}
    metrics["few_label_probe"] += 2.0 * (config.weight == 3)
    trained = config.arm.trained
    drawn = {
        "similarity_histograms": {"positives": [1] * HISTOGRAM_BINS, "negatives": [2] * HISTOGRAM_BINS},
        "principal_components": {"points": [[0.1, 0.2], [-0.3, 0.4]], "labels": [0, 1]},
    }
    record = {
        "key": config.key(), "config": config.to_dict(), "environment": ENVIRONMENT, "status": "finished",
        "reason": None, "collapsed": False, "metrics": metrics, "seconds": {"train": 2.0, "evaluate": 0.1},
        "command": ["varloss-bench", "compare"], "finished_at": "2026-01-01T00:00:00+00:00",
        "confounds": {"equal": config.equal} if trained else None,
    }  # fmt: skip
    if trained:
        record |= {"drawn": drawn, "epoch_losses": [3.0, 2.0, 1.5]}
    return record | changes


@pytest.fixture
def folder(tmp_path):
    """Writes a sweep into a folder and returns the folder; `changes(config)` are laid over the record."""

    def write(base=None, *, changes=lambda config: {}, into=tmp_path, **axes):
        asked = {"methods": ["simclr", "moco"], "batch_sizes": [16, 64], "weights": [1.0, 3.0], "temperatures": [0.2, 0.5],
                 "control_temperatures": [0.1], "seeds": range(3)} | axes  # fmt: skip
        rng = np.random.default_rng(0)
        for config in grid(base or TrialConfig(), **asked):
            Store(into).write(config, record_of(config, rng, **changes(config)))
        return into

    return write


def run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


class Page(HTMLParser):
    """Tags, attributes and text of a page; opening and closing tags must match."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input", "image", "use", "path"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def visible(folder):
    text = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", (folder / "report.html").read_text(), flags=re.DOTALL)
    return " ".join(re.sub("<[^>]+>", " ", text).replace("&#39;", "'").split())


def test_writes_page_text_and_tables(folder):
    path = folder()
    result = run(path)
    assert result.exit_code == 0, result.output
    page = Page((path / "report.html").read_text())
    # 2 methods x 2 temperatures in 3 figures over batch size, 2 x 2 histograms, 2 x 2 losses, 2 x 2 planes
    assert page.tags.count("svg") == 12 + 4 + 4 + 4
    assert sum(tag == "table" for tag in page.tags) >= 12  # 2 methods x 2 batch sizes x 3 heat maps
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert "script" not in page.tags
    shown = visible(path)
    assert shown.index("Question") < shown.index("Verdict") < shown.index("Accuracy against") < shown.index("Details")
    for phrase in (
        "settled in favour of VRN",
        "equal epochs (20)",
        "Control temperatures",
        "seeds needed",
        "varloss-bench compare",
        # 2 methods x 2 batch sizes x 2 weights x 2 temperatures x (the same temperature, the control) x 5 metrics
        "What was planned for these trials is not recorded here",
        "corrects over all 160:",
    ):
        assert phrase in shown
    text = (path / "report.md").read_text()
    assert "settled in favour of VRN" in text
    assert (path / "report.html").stat().st_size < 5e6


@pytest.mark.parametrize(
    ("base", "words"),
    [(TrialConfig(epochs=7), "equal epochs (7)"), (TrialConfig(epochs=0, steps=90), "equal steps (90)")],
)
@pytest.mark.parametrize("batch_sizes", [[16], [16, 64]])
def test_every_figure_says_what_was_equal(folder, base, words, batch_sizes):
    (section,) = report_page.sections(report_records.read(folder(base, methods=["simclr"], batch_sizes=batch_sizes)))
    assert len(section.figures) == 7
    for figure in section.figures:
        assert words in figure.caption
        assert all(words in panel.svg for _, panels in figure.parts for panel in panels)


def test_tables_have_a_row_per_trial_and_agree(folder):
    path = folder()
    run(path)
    number = len(list((path / "trials").iterdir()))
    csv, parquet = pd.read_csv(path / "rows.csv"), pd.read_parquet(path / "rows.parquet")
    assert len(csv) == len(parquet) == number == 2 * 2 * 7 * 3 + 2 * 3
    for column in (
        "config.weight",
        "config.seed",
        "metrics.few_label_probe",
        "environment.versions.torch",
        "final_loss",
        "command",
    ):
        assert column in csv.columns
        assert column in parquet.columns
    assert np.allclose(csv["metrics.few_label_probe"], parquet["metrics.few_label_probe"].astype(float))
    one = json.loads((path / "trials" / parquet["file"][5]).read_text())
    assert parquet["metrics.few_label_probe"][5] == one["metrics"]["few_label_probe"]
    assert parquet["config.batch_size"][5] == one["config"]["batch_size"]


@pytest.mark.parametrize("change", [{"epochs": 30}, {"evaluate_on": "val"}, {"data": "fashion-mnist"}, {"base_lr": 0.3},
                                    {"steps": 50, "epochs": 0}, {"fused": False}])  # fmt: skip
def test_what_differs_in_more_than_the_arm_is_not_mixed(folder, change):
    folder()
    path = folder(dataclasses.replace(TrialConfig(), **change))
    found = report_records.read(path)
    assert len(found.groups) == 2
    for group in found.groups:
        assert len([t for t in group.trials if t.config.arm.trained]) == 2 * 2 * 7 * 3
        assert len([t for t in group.trials if not t.config.arm.trained]) == 2 * 3
    assert not found.left_out


def test_groups_are_told_apart_by_what_they_differ_in(folder):
    moco = SMALL | {"methods": ["moco"]}
    for base in (TrialConfig(), TrialConfig(base_lr=0.3), TrialConfig(vrn_against="queue"), TrialConfig(epochs=7)):
        path = folder(base, **moco)
    plain, rate, queue, short = sorted(
        report_page.sections(report_records.read(path)),
        key=lambda s: ("(7)" in s.title, "queue" in s.title, "0.3" in s.title),
    )
    assert plain.title == (
        "digits, test split, equal epochs (20), 3-convolution net, base_lr 0.15, vrn_against queries"
    )
    assert rate.title == plain.title.replace("0.15", "0.3")
    assert queue.title == plain.title.replace("queries", "queue")
    assert short.title == plain.title.replace("(20)", "(7)")
    assert ("base_lr", "0.3") in rate.asked
    assert ("vrn_against", "queue") in queue.asked
    (alone,) = report_page.sections(report_records.read(folder(into=path / "other", **moco)))
    assert "base_lr" not in alone.title + str(alone.asked)


def test_the_planned_section_comes_first(folder):
    folder(TrialConfig(evaluate_on="val"), **GRID | {"weights": [1.0], "methods": ["moco"]})
    folder(TrialConfig(data="fashion-mnist"), **SMALL)
    path = folder(**GRID)
    present(path, grid(TrialConfig(), **GRID), TUNED)
    titles = [section.title for section in report_page.sections(report_records.read(path))]
    assert titles[0] == "digits, test split, equal epochs (20), 3-convolution net"
    assert len(titles) == len(set(titles)) == 3


def test_numbers_of_things_are_grammar(folder):
    failing = {Arm("simclr", 16, 0.5, 3.0): {"collapsed": True}, Arm("simclr", 16, 0.2, 3.0): {"status": "diverged"},
               Arm("simclr", 16, 0.5, 1.0): {"status": "diverged"}}  # fmt: skip
    path = folder(**GRID, changes=lambda config: failing.get(config.arm, {}))
    (section,) = report_page.sections(report_records.read(path))
    endings = [line.split("which wins nothing")[1] for line in section.verdict if "wins nothing" in line]
    assert sorted(endings) == [": 1 arm.", ": 2 arms."]


def test_a_sweep_counts_trials_and_jobs_in_grammar(tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    jobs = SimpleNamespace(run=interrupted, pending=lambda *_: ["5"])
    console = Console(file=io.StringIO())
    with pytest.raises(typer.Exit):
        sweep.run_sweep([TrialConfig()], tmp_path, pairs=[], workers=1, dry_run=False, console=console, cluster=jobs)
    shown = console.file.getvalue()
    assert shown.startswith("1 trial, 0 of them already in ")
    assert "\n1 job still queued or running; " in shown


def test_sweeps_of_other_arms_and_seeds_are_one_group(folder):
    folder(seeds=range(2))
    path = folder(methods=["dcl"], batch_sizes=[32], seeds=range(2, 5))
    (group,) = report_records.read(path).groups
    assert len(group.trials) == 2 * 2 * 7 * 2 + 7 * 3 + 2 * 5


GRID = {"methods": ["simclr"], "batch_sizes": [16], "weights": [1.0, 3.0], "temperatures": [0.2, 0.5],
        "control_temperatures": [], "seeds": range(4)}  # fmt: skip
TUNED = [
    Pair(Arm("simclr", 16, 0.5, 3.0), Arm("simclr", 16, 0.2, 0.0), "tuned baseline"),
    Pair(Arm("simclr", 16, 0.5, 3.0), Arm("simclr", 16, 0.5, 0.0), "same temperature"),
]


def present(path, trials, pairs, effect_points=0.5):
    """What is left of a sweep where all that could be run was run; writes the page as well."""
    planned.write(path, trials, pairs, effect_points)
    console = Console(file=io.StringIO())
    how = {"pairs": pairs, "command": ["x"], "ran": 0, "seconds": 0.0, "effect_points": effect_points}
    return sweep.present(trials, Store(path), console, **how)


def test_compares_what_the_sweep_had_planned(folder):
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID)
    present(path, trials, TUNED, effect_points=0.25)
    (section,) = report_page.sections(report_records.read(path))
    table = json.loads((path / "summary.json").read_text())
    assert len(table["comparisons"]) == len(section.comparisons) == 2 * 5
    asked = summarise(trials, Store(path).load(trials).records, TUNED, effect_points=0.25)
    assert [row[4] for row in section.comparisons] == [report_text.in_words(c) for c in asked.comparisons]
    assert [c["p_value_holm"] for c in table["comparisons"]] == [c.adjusted_p for c in asked.comparisons]
    shown = visible(path)
    assert "the same family of 10 comparisons as in its table.txt" in shown
    assert "t=0.2 (tuned baseline)" in shown
    assert "for 0.25 points of accuracy" in shown
    # Without the plan it would have been another family: 4 arms with VRN, and no control.
    (path / "plan.json").unlink()
    (guessed,) = report_page.sections(report_records.read(path))
    assert len(guessed.comparisons) == 4 * 5


def test_a_plan_that_an_older_version_did_not_keep_is_said_to_be_unknown(folder):
    path = folder(**GRID)
    present(path, grid(TrialConfig(), **GRID), TUNED)
    (path / "plan.json").unlink()
    result = run(path)
    assert "left out" not in result.output.replace("0 files left out", "")
    shown = visible(path)
    assert "What was planned for these trials is not recorded here" in shown
    assert "Compared is what the sweep had planned" not in shown


def test_nothing_is_said_of_comparisons_where_there_are_none(folder):
    path = folder(**SMALL | {"weights": []})
    (section,) = report_page.sections(report_records.read(path))
    assert section.verdict == ("Nothing is compared: no arm with VRN has its arm without VRN here.",)
    assert not any("planned" in note or "comparisons" in note or "compares" in note for note in section.notes)


def test_other_sweeps_in_the_folder_have_a_section_of_their_own(folder):
    path = folder(**GRID | {"seeds": range(6)})
    trials = grid(TrialConfig(), **GRID)
    present(path, trials, TUNED)
    last, everything = report_page.sections(report_records.read(path))
    assert len(last.trials) == len(trials)
    assert len(everything.trials) == len(trials) * 6 // 4
    assert everything.title == f"{last.title}: all sweeps with these options"
    assert len(last.comparisons) == 10
    assert len(everything.comparisons) == 20
    assert len(report_records.read(path).trials) == len(everything.trials)


def test_a_sweep_that_is_cut_short_has_its_plan(folder, monkeypatch):
    """Its survivors are no result: 4 of 6 seeds are there when it is stopped."""
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID | {"seeds": range(6)})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_trials", interrupted)
    how = {"workers": 1, "dry_run": False, "console": Console(file=io.StringIO())}
    with pytest.raises(typer.Exit):
        sweep.run_sweep(trials, path, pairs=grid_pairs(trials, []), **how)
    (section,) = report_page.sections(report_records.read(path))
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
    (section,) = report_page.sections(report_records.read(path))
    words = [row[4] for row in section.comparisons]
    assert len(words) == len(verdicts) == 4 * 5
    assert [text.startswith("no comparison") for text in words] == [verdict == "crashed" for verdict in verdicts]
    assert [", settled at" in text for text in words] == [verdict == "settled" for verdict in verdicts]
    assert verdicts.count("crashed") == (5 if lost else 20)
    assert (verdicts.count("settled") > 0) is bool(lost)  # the same weight at the other temperature
    number = len(list((path / "trials").glob("*"))) - len(report_records.read(path).left_out)
    assert f"No readable record of {len(trials) - number} of the {len(trials)} planned trials" in section.warnings[0]
    assert [row[2] for row in section.trials].count("no readable record") == len(trials) - number
    shown = visible(path)
    assert "the same family of 20 comparisons as in its table.txt" in shown
    assert ("No comparison could be made" in shown) is (not lost)


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


def test_gain_over_a_tuned_baseline_at_the_same_temperature_is_drawn(folder):
    path, trials = folder(**SMALL | {"seeds": range(4)}), grid(TrialConfig(), **SMALL | {"seeds": range(4)})
    pair = Pair(Arm("simclr", 16, 0.5, 3.0), Arm("simclr", 16, 0.5, 0.0), "tuned baseline")
    present(path, trials, [pair])
    (section,) = report_page.sections(report_records.read(path))
    assert section.settled[0].startswith("SimCLR, B=16, t=0.5 + VRN 3 against the tuned baseline, t=0.5: ")
    (gain,) = (figure for figure in section.figures if figure.anchor.startswith("gain"))
    assert "This is the tuned baseline as well: SimCLR, B=16, t=0.5." in gain.caption
    assert not any("gained" in line for line in section.missing_figures)


def test_gain_over_a_tuned_baseline_at_another_temperature_has_a_figure_of_its_own(folder):
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID)
    present(path, trials, TUNED)
    same, tuned = (
        figure
        for figure in report_page.sections(report_records.read(path))[0].figures
        if figure.anchor.startswith("gain")
    )
    assert "to the same temperature without VRN" in same.caption
    assert "tuned baseline" not in same.title + same.caption
    assert tuned.title == "Accuracy gained over the tuned baseline"
    assert "At another temperature than the arm with VRN: SimCLR, B=16, t=0.2." in tuned.caption
    result = summarise(trials, Store(path).load(trials).records, TUNED)
    (arm,) = {pair.treated for pair in TUNED}
    for over_tuned, base in ((False, 0.5), (True, 0.2)):
        drawn = report_figures.gains(result, "simclr", report_heat.SCORE, over_tuned=over_tuned).of[arm]
        means = [result.row(a).mean(report_heat.SCORE) for a in (arm, Arm("simclr", 16, base, 0.0))]
        assert drawn.mean == pytest.approx(means[0] - means[1])


CROSSES = re.compile(r'xlink:href="#(\w+)"')


def crosses(panel):
    """How many markers of the form x a panel has."""
    definitions = dict(re.findall(r'<path id="(\w+)" d="([^"]*)"', panel.svg))
    paths = [" ".join(definitions[name].split()) for name in CROSSES.findall(panel.svg) if name in definitions]
    return sum(path == "M -3 3 L 3 -3 M -3 -3 L 3 3" for path in paths)


@pytest.mark.parametrize("batch_sizes", [[64], [16, 64]])
@pytest.mark.parametrize(("weight", "failure"), [(3.0, "collapsed"), (3.0, "diverged"), (0.0, "collapsed")])
def test_a_failed_arm_is_a_cross_in_the_figures(folder, batch_sizes, weight, failure):
    arm = Arm("simclr", 64, 0.5, weight)

    def fail(config):
        if config.arm != arm or config.seed:
            return {}
        # The smallest variance there is, if it counted.
        failed = {"collapsed": True} if failure == "collapsed" else {"status": "diverged"}
        return failed | {"metrics": {**BASE, "negative_variance": 0.0001, "negative_mean": 0.99}}

    axes = SMALL | {"batch_sizes": batch_sizes, "seeds": range(3)}
    (section,) = report_page.sections(report_records.read(folder(changes=fail, **axes)))
    for figure in section.figures:
        if figure.anchor in ("accuracy", "variance"):
            ((_, (panel,)),) = figure.parts
            assert crosses(panel) == 1
            assert figure.legend[-1].glyph == "✕"
            assert figure.legend[-1].label.startswith(failure)
            assert (f"({failure})" in panel.svg) is (len(batch_sizes) == 1)  # beside its name


@pytest.mark.parametrize("failed", [False, True])
def test_a_failed_arm_interrupts_the_dotted_line_of_a_control(folder, failed):
    def fail(config):
        return {"collapsed": True} if failed and config.arm == Arm("simclr", 64, 0.1, 0.0) else {}

    axes = SMALL | {"batch_sizes": [16, 64, 256], "control_temperatures": [0.1]}
    (section,) = report_page.sections(report_records.read(folder(changes=fail, **axes)))
    (accuracy,) = (figure for figure in section.figures if figure.anchor == "accuracy")
    ((_, (panel,)),) = accuracy.parts
    (dotted,) = re.findall(r'<path d="([^"]*)"[^>]*stroke-dasharray[^>]*var\(--plain\)', panel.svg)
    assert dotted.count("L") == (0 if failed else 2)


def test_no_cross_where_nothing_failed(folder):
    (section,) = report_page.sections(report_records.read(folder(**SMALL | {"batch_sizes": [16, 64]})))
    assert not any("✕" in key.glyph for figure in section.figures for key in figure.legend)
    assert not any(crosses(panel) for figure in section.figures for _, panels in figure.parts for panel in panels)


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
def test_a_plan_that_is_none_is_named_and_left_out(folder, kind):
    path = folder(**GRID)
    present(path, grid(TrialConfig(), **GRID), TUNED)
    broken_plan = PLANS[kind](json.loads((path / "plan.json").read_text()))
    (path / "plan.json").write_text(json.dumps(broken_plan) if broken_plan is not None else "{")
    result = run(path)
    assert result.exit_code == 0, result.output
    assert "left out: plan.json: corrupt: " in result.output
    (section,) = report_page.sections(report_records.read(path))
    assert len(section.comparisons) == 20


def test_the_arm_without_vrn_stands_beside_vrn_of_either_kind(folder):
    path = folder(**SMALL | {"methods": ["moco"]})
    queue = TrialConfig(method="moco", weight=3.0, vrn_against="queue")
    Store(path).write(queue, record_of(queue, np.random.default_rng(1)))
    groups = report_records.read(path).groups
    assert sorted(len(group.trials) for group in groups) == [1 + 2 + 4, 2 + 2 + 4]
    for group in groups:
        assert {t.config.arm.weight for t in group.trials if t.config.arm.trained} == {0.0, 3.0}
        assert len({t.config.vrn_against for t in group.trials if t.config.weight}) == 1


def test_records_of_an_older_protocol_stand_apart_and_say_so(folder):
    folder(**SMALL)
    path = folder(**SMALL | {"seeds": [7]}, changes=lambda config: {"key": config.key(PROTOCOL - 1)})
    found = report_records.read(path)
    assert [group.protocol for group in found.groups] == [PROTOCOL, PROTOCOL - 1]
    run(path)
    assert f"Made under protocol {PROTOCOL - 1}" in visible(path)


def broken(record, **changes):
    return json.dumps({**record, **changes})


CORRUPTIONS = {
    "half": lambda r: json.dumps(r)[:300],
    "list": lambda r: "[]",
    "deep": lambda r: "[" * 100_000,
    "nan": lambda r: json.dumps(r).replace('"metrics": {', '"metrics": {"knn": NaN, "x": NaN,', 1),
    "foreign key": lambda r: broken(r, key="0" * 16),
    "text for a number": lambda r: broken(r, config={**r["config"], "batch_size": "16"}),
    "boolean for a number": lambda r: broken(r, config={**r["config"], "weight": True}),
    "unknown method": lambda r: broken(r, config={**r["config"], "method": "<script>"}),
    "no temperature": lambda r: broken(r, config={**r["config"], "temperature": -1.0}),
    "histogram": lambda r: broken(
        r, drawn={**r["drawn"], "similarity_histograms": {"positives": [1], "negatives": []}}
    ),
    "points": lambda r: broken(r, drawn={**r["drawn"], "principal_components": {"points": [[1]], "labels": [1]}}),
    "losses": lambda r: broken(r, epoch_losses=["x"]),
    "command": lambda r: broken(r, command="rm -rf /"),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corrupt_record_is_left_out(folder, kind):
    path = folder(**SMALL)
    victim = sorted((path / "trials").glob("simclr*"))[0]
    victim.write_text(CORRUPTIONS[kind](json.loads(victim.read_text())))
    found = report_records.read(path)
    assert list(found.left_out) == [victim.name]
    assert found.left_out[victim.name].startswith("corrupt: ")
    assert len(found.trials) == 2 * (2 + 2) - 1


def test_what_is_left_out_is_named_everywhere(folder):
    path = folder(**SMALL)
    victim = sorted((path / "trials").glob("simclr*"))[0]
    victim.write_text("{")
    result = run(path)
    assert result.exit_code == 0, result.output
    assert f"left out: {victim.name}: corrupt" in result.output
    assert ", 1 file left out: " in result.output
    assert "; 1 file left out" in visible(path)
    assert victim.name in visible(path)
    assert victim.name in (path / "report.md").read_text().replace("\\", "")
    assert victim.name not in (path / "rows.csv").read_text()


def test_names_are_shown_as_they_are(folder, tmp_path):
    """In rich's eyes they hold tags and an emoji."""
    name = "my[old]:x:set"
    path = folder(**SMALL, into=tmp_path / name)
    (path / "trials" / f"{name}.json").write_text("{")
    shown = run(path).output
    assert f"left out: {name}.json: corrupt" in shown
    assert f"/{name}/" in shown.splitlines()[-1]
    (tmp_path / f"{name}.txt").write_text("")
    assert f"/{name}.txt" in run(path, "--output", tmp_path / f"{name}.txt").output.splitlines()[-1]
    assert f"/{name}.none" in run(tmp_path / f"{name}.none").output


def test_rows_without_training_alone_are_left_out_with_the_reason(folder):
    path = folder(batch_sizes=[], seeds=[0])
    found = report_records.read(path)
    assert not found.groups
    assert all("no trained row" in reason for reason in found.left_out.values())
    assert run(path).exit_code == 1


@pytest.mark.parametrize("make", [lambda path: path / "absent", lambda path: path])
def test_nothing_to_report_is_an_error(tmp_path, make):
    result = run(make(tmp_path))
    assert result.exit_code == 2
    assert "error: " in result.output
    assert not list(tmp_path.iterdir())


def test_only_crashed_trials_are_said_to_be_so(folder):
    crash = {"status": "crashed", "reason": "RuntimeError: out of memory", "metrics": {}}
    path = folder(**SMALL | {"seeds": [0]}, changes=lambda config: crash)
    result = run(path)
    assert result.exit_code == 1
    assert "all of them crashed" in result.output
    assert "No trial has a result: 4 trials crashed" in visible(path)
    assert "out of memory" in visible(path)


def test_only_corrupt_records_are_not_said_to_have_crashed(folder):
    path = folder(**SMALL | {"seeds": [0]})
    for file in (path / "trials").iterdir():
        file.write_text("{")
    result = run(path)
    assert result.exit_code == 1
    assert "there is no readable record" in result.output
    assert "crashed" not in result.output


def test_nothing_out_of_a_record_becomes_markup(folder):
    def hostile(config):
        environment = {**ENVIRONMENT, "machine": {HOSTILE: HOSTILE}, "versions": {"torch": HOSTILE}}
        return {
            "reason": HOSTILE, "command": [HOSTILE], "environment": environment, "confounds": {HOSTILE: HOSTILE},
            **({"status": "crashed"} if config.seed == 1 and config.weight == 3 else {}),
        }  # fmt: skip

    base = TrialConfig(data=HOSTILE, backbone=HOSTILE, device=HOSTILE)
    path = folder(base, changes=hostile, **SMALL)
    (path / "trials" / "<img src=x onerror=alert(3)>.json").write_text("{}")
    result = run(path)
    assert result.exit_code == 0, result.output
    text = (path / "report.html").read_text()
    page = Page(text)
    assert "alert(1)" in text  # it is there, as text
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert "Content-Security-Policy" in text
    markdown = (path / "report.md").read_text()
    assert "<script" not in markdown
    assert "<img" not in markdown


def test_heat_maps_show_the_differences_they_say(folder):
    (group,) = report_records.read(folder()).groups
    result = summarise(group.configs, group.records, grid_pairs(group.configs, [0.1]))
    base = report_heat.tuned_baseline(result, "simclr", 16)
    assert base.arm.weight == 0
    assert base.interval("few_label_probe").mean == max(
        row.interval("few_label_probe").mean
        for row in result.rows
        if row.arm.slug().startswith("simclr-b16") and not row.arm.weight
    )
    score, same, best = report_heat.heat_maps(result, "simclr", 16)
    assert score.temperatures == (0.1, 0.2, 0.5)
    cells = dict(score.rows)[3.0]
    assert cells[0].text == ""  # VRN was not run at the control
    mean = {t: result.row(Arm("simclr", 16, t, 3.0)).interval("few_label_probe").mean for t in (0.2, 0.5)}
    plain = {t: result.row(Arm("simclr", 16, t, 0.0)).interval("few_label_probe").mean for t in (0.2, 0.5)}
    assert cells[1].text == f"{mean[0.2]:.1f}"
    assert dict(same.rows)[3.0][2].text == f"{mean[0.5] - plain[0.5]:+.1f}"
    assert dict(best.rows)[3.0][2].text == f"{mean[0.5] - base.interval('few_label_probe').mean:+.1f}"
    assert dict(best.rows)[0.0][(0.1, 0.2, 0.5).index(base.arm.temperature)].text == "base"
    assert [cell.best for _, row in score.rows for cell in row].count(True) == 1


def test_a_collapsed_arm_has_no_number_and_is_no_baseline(folder):
    def collapse(config):
        # By far the best score without VRN, if it counted.
        gone = config.arm == Arm("simclr", 16, 0.1, 0.0)
        return {"collapsed": True, "metrics": {**BASE, "few_label_probe": 99.0}} if gone else {}

    (group,) = report_records.read(folder(changes=collapse)).groups
    result = summarise(group.configs, group.records, grid_pairs(group.configs, [0.1]))
    assert report_heat.tuned_baseline(result, "simclr", 16).arm.temperature != 0.1
    score, *_ = report_heat.heat_maps(result, "simclr", 16)
    assert dict(score.rows)[0.0][0].text == "collapsed"


def test_cells_are_legible(folder):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    (group,) = report_records.read(folder()).groups
    result = summarise(group.configs, group.records, grid_pairs(group.configs, [0.1]))
    coloured = [
        c for h in report_heat.heat_maps(result, "simclr", 16) for _, row in h.rows for c in row if c.background
    ]
    assert coloured
    for cell in coloured:
        light, dark = sorted((luminance(cell.background), {"#000": 0.0, "#fff": 1.0}[cell.ink]), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_records_without_pictures_still_make_a_report(folder):
    path = folder(**SMALL)
    for file in (path / "trials").iterdir():
        record = json.loads(file.read_text())
        record.pop("drawn", None)
        record.pop("epoch_losses", None)
        file.write_text(json.dumps(record))
    assert run(path).exit_code == 0
    shown = visible(path)
    for words in ("Histograms of similarities: these records hold none", "Training loss: these records hold none"):
        assert words in shown


def test_output_folder_and_unwritable_output(folder, tmp_path):
    path = folder(**SMALL, into=tmp_path / "in")
    assert run(path, "--output", tmp_path / "out").exit_code == 0
    assert not (path / "report.html").exists()
    assert (tmp_path / "out" / "report.html").exists()
    (tmp_path / "file").write_text("")
    result = run(path, "--output", tmp_path / "file")
    assert result.exit_code == 2
    assert "error: " in result.output


def test_pictures_are_the_same_in_every_run(folder):
    path = folder(**SMALL)
    pages = []
    for _ in range(2):
        run(path)
        pages.append((path / "report.html").read_text())
    assert pages[0] == pages[1]


def test_columns_of_mixed_kinds_are_text(folder):
    kinds = iter([1, "one", None, 2.5, True] * 100)
    path = folder(seeds=[0], changes=lambda config: {"note": next(kinds)})
    _csv, parquet = report_records.tables(report_records.read(path))
    assert {"1", "one", "2.5", "True"} <= set(pd.read_parquet(io.BytesIO(parquet))["note"].dropna())
