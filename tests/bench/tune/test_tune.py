"""`varloss-bench tune` with real trainings: rungs change nothing, results are kept, and the command works end to end."""

import dataclasses
import json
import re
import shlex

import pytest
import torch
from typer.testing import CliRunner

from varloss_bench.cli import app, load
from varloss_bench.commands import checks
from varloss_bench.config import TrialConfig
from varloss_bench.records.store import Store
from varloss_bench.training.trial import run_trial
from varloss_bench.tune import processes
from varloss_bench.tune import report as tune_report
from varloss_bench.tune import run as tune
from varloss_bench.tune.options import Search
from varloss_bench.tune.search import Candidate, CandidateFailedError, Outcome
from varloss_bench.tune.train import Look, Looks, Plan, Trainings, _Rungs

BASE = TrialConfig(batch_size=128, epochs=4, evaluate_on="val", seed=100)
PLAN = Plan(BASE, 2, (1, 2), "few_label_probe")
SHORT = dataclasses.replace(BASE, epochs=2)
CANDIDATE = Candidate(3.0, 0.5)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tasks(**changes):
    return tune.make_tasks(changes.pop("base", BASE), Search(**{"seeds": 2, "rungs": [1, 2], "budget": 4} | changes))


@pytest.mark.usefixtures("trains")
def test_looking_changes_nothing():
    config = dataclasses.replace(PLAN, base=SHORT).trial(CANDIDATE, 0)
    seen = {}
    watched = run_trial(config, callbacks=[_Rungs(config, "few_label_probe", (1, 2), seen.__setitem__)])
    alone = run_trial(config)
    for name in ("metrics", "epoch_losses", "paired", "drawn"):
        assert watched[name] == alone[name]
    assert list(seen) == [1, 2]
    # The last score is of the net that is evaluated at the end.
    assert seen[2].score == alone["metrics"]["few_label_probe"]
    assert seen[1].score != seen[2].score
    assert -1 <= seen[2].mean_similarity <= 1


class Interrupted(BaseException):
    """The exception with which a test ends a search; nothing in between may catch it."""


@pytest.mark.usefixtures("trains")
def test_an_interrupted_search_resumes_to_the_undisturbed_result(tmp_path):
    (task, _) = tasks(base=SHORT, rungs=[1], budget=3).values()

    def collect(folder, kill_after=None):
        outcomes, epochs = [], 0

        def tell(**fields):
            nonlocal epochs
            epochs += fields.get("epochs", 0)
            if kill_after is not None and epochs >= kill_after:
                raise Interrupted
            outcomes.extend([fields["outcome"]] if "outcome" in fields else [])

        processes.run(task, folder, ["varloss-bench"], tell)
        return outcomes, epochs

    undisturbed, trained = collect(tmp_path / "a")
    assert {outcome.state for outcome in undisturbed} >= {"finished"}
    assert trained == sum(outcome.epochs for outcome in undisturbed) <= 6
    for kill_after in (1, 3):
        with pytest.raises(Interrupted):
            collect(tmp_path / "b", kill_after)
    resumed, again = collect(tmp_path / "b")
    assert resumed == undisturbed
    assert again < trained
    assert collect(tmp_path / "b") == (undisturbed, 0)
    # A finished trial is the same as one by `compare`.
    finished = next(outcome for outcome in undisturbed if outcome.state == "finished").candidate
    record = Store(tmp_path / "b").load([config := task.plan.trial(finished, 0)]).records[config.key()]
    assert record["status"] == "finished"
    assert all(Store(tmp_path / "b").load([task.plan.trial(finished, number)]).records for number in (0, 1))


def looks_at(tmp_path, *means, scores=(90.0, 91.0)):
    looks = {epoch: Look(score, mean) for epoch, score, mean in zip(PLAN.rungs, scores, means, strict=True)}
    Looks(tmp_path, PLAN.metric).write(PLAN.trial(CANDIDATE, 0), looks)


def test_a_net_that_gathers_in_one_point_is_stopped_and_one_that_starts_there_is_not(tmp_path):
    looks_at(tmp_path, 0.5, 0.95)
    with pytest.raises(CandidateFailedError, match=r"mean similarity 0\.950 and rising, epoch 2") as caught:
        Trainings(PLAN, tmp_path, []).evaluate(CANDIDATE, lambda score: True)
    assert caught.value.state == "collapsed"
    looks_at(tmp_path, 0.99, 0.95)
    decided = []
    Trainings(PLAN, tmp_path, []).evaluate(CANDIDATE, lambda score: decided.append(score) or len(decided) < 2)
    assert decided == [90.0, 91.0]  # both from disk: nothing was trained


@pytest.mark.parametrize(
    ("changes", "state"),
    [({"status": "diverged", "reason": "loss is nan"}, "diverged"), ({"collapsed": True}, "collapsed")],
)
def test_a_known_failure_is_not_trained_again(tmp_path, changes, state):
    looks_at(tmp_path, 0.1, 0.1)
    config = PLAN.trial(CANDIDATE, 0)
    record = {"config": config.to_dict(), "key": config.key(), "environment": {}, "status": "finished", "reason": None,
              "collapsed": False, "seconds": {"train": 1.0}, "metrics": {"few_label_probe": 99.0, "negative_mean": 0.97}}  # fmt: skip
    Store(tmp_path).write(config, record | changes)
    with pytest.raises(CandidateFailedError) as caught:
        Trainings(PLAN, tmp_path, []).evaluate(CANDIDATE, lambda score: True)
    assert caught.value.state == state


@pytest.mark.usefixtures("trains")
def test_a_training_that_diverges_is_recorded_and_fails_the_candidate(tmp_path, monkeypatch):
    plan = dataclasses.replace(PLAN, base=dataclasses.replace(BASE, base_lr=1e30))
    with pytest.raises(CandidateFailedError) as caught:
        Trainings(plan, tmp_path, []).evaluate(CANDIDATE, lambda score: True)
    assert caught.value.state == "diverged"
    config = plan.trial(CANDIDATE, 0)
    assert Store(tmp_path).load([config]).records[config.key()]["status"] == "diverged"
    assert not Looks(tmp_path, plan.metric).read(config)  # before the first rung
    monkeypatch.setattr("varloss_bench.training.trial.run_trial", None)  # and is not trained again
    with pytest.raises(CandidateFailedError, match="not finite"):
        Trainings(plan, tmp_path, []).evaluate(CANDIDATE, lambda score: True)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "[" * 100_000, '{"schema": 1, "looks": {"1": [NaN, 0]}}', '{"schema": 1, "looks": {"1": ["x", 0]}}',
     '{"schema": 1, "key": "0", "metric": "few_label_probe", "looks": {"1": [99, 0]}}'],
)  # fmt: skip
def test_a_broken_file_of_looks_counts_as_absent(tmp_path, content):
    looks_at(tmp_path, 0.1, 0.1)
    config = PLAN.trial(CANDIDATE, 0)
    (file,) = (tmp_path / "rungs").iterdir()
    assert Looks(tmp_path, PLAN.metric).read(config) == {1: Look(90.0, 0.1), 2: Look(91.0, 0.1)}
    assert Looks(tmp_path, "knn").read(config) == {}
    for key in ('"key": "0"', "NaN", '"x"'):
        if key in content and "key" not in key:
            content = content.replace(
                '{"schema": 1,', f'{{"schema": 1, "key": "{config.key()}", "metric": "few_label_probe",'
            )
    file.write_text(content)
    assert Looks(tmp_path, PLAN.metric).read(config) == {}


def compare_command(**changes):
    base = dataclasses.replace(BASE, **changes)
    treated, plain = (Outcome(c, (95.0,), 8, "finished") for c in (Candidate(2.4, 0.31), Candidate(0.0, 0.17)))
    return tune_report.compare_command(base, treated, plain, seeds=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"epochs": 4, "fused": None}),
        ({"fused": False, "backbone": "resnet18"}, {"fused": False, "backbone": "resnet18"}),
        (
            {"data": "fashion-mnist", "data_dir": "/a b", "weight_warmup": 0.5},
            {"data": "fashion-mnist", "weight_warmup": 0.5},
        ),
        ({"head_batch_norm": False, "negatives": "cross"}, {"head_batch_norm": False, "negatives": "cross"}),
        ({"base_lr": 0.123456789, "weight_decay": 1e-5}, {"base_lr": 0.123456789, "weight_decay": 1e-5}),
        # By default `compare` uses a GPU if there is one.
        ({"device": "cpu"}, {"device": "cpu"}),
        ({"device": "cuda"}, {"device": "cuda"}),
        ({"seed": 3}, {"first_seed": 5}),
    ],
)
def test_the_command_at_the_end_is_one_that_compare_understands(changes, expected):
    words = shlex.split(shlex.join(compare_command(**changes)))
    assert words[:2] == ["varloss-bench", "compare"]
    parameters = load("compare").make_context("compare", words[2:]).params
    expected = {"method": "simclr", "weight": "2.4", "temperature": "0.31", "control_temperature": "0.17", "batch_size": "128",
                "seeds": 10, "first_seed": 0, "evaluate_on": "test"} | expected  # fmt: skip
    assert {name: parameters[name] for name in expected} == expected
    tested = set(range(parameters["first_seed"], parameters["first_seed"] + 10))
    assert not tested & {changes.get("seed", 100), changes.get("seed", 100) + 1}


# Options that `tune` lacks: it sets the arm and the split, rungs are epochs, and one process on this machine trains.
NOT_TUNED = {"seed", "temperature", "weight", "evaluate_on", "steps", "framework", "devices", "nodes", "strategy"}


def test_tune_has_every_option_of_compare_that_says_what_is_trained():
    fields = {field.name for field in dataclasses.fields(TrialConfig)}
    of_compare, of_tune = ({found.name for found in load(name).params} for name in ("compare", "tune"))
    assert (of_compare & fields) - of_tune == NOT_TUNED - {"seed"}
    assert of_tune <= of_compare | {"weight_range", "temperature_range", "budget", "rungs", "metric", "search_seed"}


@pytest.fixture
def checked(monkeypatch):
    """The trials that a command is about to check; the command then ends."""
    found = []

    def check(trials):
        found[:] = trials
        raise ValueError("seen enough")

    monkeypatch.setattr(checks, "check_trials", check)
    return found


OTHER = ["--data", "imagefolder:pictures", "--image-size", "48", "--num-train", "300", "--num-val", "40", "--num-test", "50",
         "--official-test", "--data-dir", "files", "--backbone", "resnet18", "--epochs", "7", "--base-lr", "0.0123456789",
         "--lr-rule", "sqrt", "--warmup", "0.05", "--weight-decay", "1e-05", "--hidden-dim", "128", "--output-dim", "32",
         "--weight-warmup", "0.5", "--split", "--precision", "bf16-mixed", "--device", "cpu", "--batch-size", "32"]  # fmt: skip


@pytest.mark.parametrize(
    "own",
    [
        ["--method", "dcl", "--negatives", "cross", "--no-head-batch-norm"],
        ["--method", "simclr", "--negatives", "both", "--head-batch-norm"],  # its own choices, said
        ["--method", "moco", "--vrn-against", "queue", "--queue-size", "64", "--key-momentum", "0.9"],
    ],
)
def test_what_was_tuned_is_what_the_command_at_the_end_compares(own, checked, tmp_path, monkeypatch):
    """Every option is set to a value other than its default, on the command line and in a file."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["tune", *OTHER, *own])
    assert "seen enough" in result.output
    base = checked[0]
    tuned = {found.name for found in load("tune").params}
    same = {name for name, value in base.to_dict().items() if value == getattr(TrialConfig(), name)} & tuned
    of_one_method = {"negatives", "head_batch_norm", "vrn_against", "queue_size", "key_momentum"}
    assert same <= {"method", "device"} | of_one_method
    file = tmp_path / "study.yaml"
    pairs = re.findall(r"--(\S+)(?: ([^-]\S*))?", " ".join([*OTHER, *own]))
    flags = {"official-test": "official-test: true", "split": "fused: false"}
    flags |= {"head-batch-norm": "head-batch-norm: true", "no-head-batch-norm": "head-batch-norm: false"}
    file.write_text("\n".join(flags.get(name, f"{name}: {value}") for name, value in pairs))
    assert "seen enough" in CliRunner().invoke(app, ["tune", "--config", str(file)]).output
    assert checked[0] == base
    plan = Plan(base, 2, (1,), "knn")
    treated, plain = (Outcome(c, (95.0,), 8, "finished") for c in (Candidate(2.4, 0.31), Candidate(0.0, 0.17)))
    words = shlex.split(shlex.join(tune_report.compare_command(base, treated, plain, seeds=2)))
    assert "seen enough" in CliRunner().invoke(app, words[1:]).output
    tested = {dataclasses.replace(trial, evaluate_on="val") for trial in checked if trial.arm.trained}
    assert len(checked) == 10 * (3 + 2)
    for outcome in (treated, plain):
        candidate = outcome.candidate
        assert {dataclasses.replace(plan.trial(candidate, 0), seed=seed) for seed in range(10)} <= tested


def test_a_folder_of_images_has_one_key_from_wherever_it_is_named(checked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["tune", "--data", "imagefolder:pictures", "--dry-run"])
    assert "seen enough" in result.output
    folder = tmp_path.resolve() / "pictures"
    assert [(trial.data, trial.seed) for trial in checked] == [(f"imagefolder:{folder}", seed) for seed in (100, 101)]


def test_both_searches_have_the_same_budget_rungs_and_seeds():
    with_vrn, without = tasks().values()
    assert (with_vrn.plan, with_vrn.budget, with_vrn.seed) == (without.plan, without.budget, without.seed)
    assert with_vrn.space.temperature == without.space.temperature
    assert without.space.weight is None
    assert len(with_vrn.space.first) == len(without.space.first)
    assert PLAN.costs == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rungs", "5,3"), "--rungs must increase"),
        (("--rungs", "20"), "--rungs must increase and lie from 1 to below the 20 epochs"),
        (("--metric", "loss"), "--metric must be one of few_label_probe"),
        (("--budget", "1"), "--budget must be at least the 2 full trainings"),
        (("--weight-range", "0,3"), "--weight-range must be two increasing numbers greater than 0"),
        (("--temperature-range", "1"), "--temperature-range must be two increasing numbers"),
        (("--method", "byol"), "--method must be one of"),
        (("--batch-size", "5000"), "--batch-size must be from 2 to"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--method", "moco", "--negatives", "cross"), "--negatives cross is not possible for moco"),
        (("--vrn-against", "queue"), "--vrn-against queue is only for --method moco"),
        (("--precision", "16-mixed", "--device", "cpu"), "--precision 16-mixed needs a CUDA device"),
        (("--num-train", "0"), "--num-train must be at least 2"),
    ],
)
def test_bad_input_is_named_before_anything_runs(tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["tune", *arguments, "--output", str(tmp_path / "x")], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.glob("x/*"))


@pytest.mark.slow
@pytest.mark.usefixtures("trains")
def test_the_command_end_to_end(tmp_path):
    words = ["tune", "--batch-size", "128", "--epochs", "2", "--budget", "2", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    output = " ".join(done.output.split())
    assert "Two searches of 4 epochs each at most" in output
    assert "minutes with 2 worker(s)" in output
    assert "varloss-bench compare --method simclr --batch-size 128" in output
    content = json.loads((tmp_path / "tune.json").read_text())
    for outcomes in content["searches"].values():
        assert 0 < sum(outcome["epochs"] for outcome in outcomes) <= 4
        assert outcomes[0]["state"] == "finished"
    assert content["test_with"] in (tmp_path / "tune.txt").read_text()
    # The trials are stored as by `compare`, so `report` reads them.
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 0
