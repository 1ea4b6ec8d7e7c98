"""Options of a trial that are not swept, options from a file, and several processes for one trial."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.commands import checks
from varloss_bench.commands.arguments import resolve_device
from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.execution import workers
from varloss_bench.execution.execute import execute
from varloss_bench.grid import grid
from varloss_bench.records.store import Store
from varloss_bench.report.text import plain_text, render
from varloss_bench.statistics import summary
from varloss_bench.training import fit, modules, ranks
from varloss_bench.training.trial import run_trial

TINY = TrialConfig(epochs=1, batch_size=128)


def build(**changes):
    source = loading.load("digits")
    module, loader, _ = fit.build(dataclasses.replace(TINY, **changes), loading.split(source, 0).train, source)
    return module, loader


def compare(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


# ---- what is trained


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("batch_size", [64, 128])
def test_equal_steps_are_counted_in_steps(batch_size, monkeypatch):
    taken = []
    step = modules.ContrastiveModule.training_step

    def spy(self, batch, batch_idx):
        taken.append(self.global_step)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(modules.ContrastiveModule, "training_step", spy)
    config = dataclasses.replace(TINY, batch_size=batch_size, epochs=0, steps=10)
    fractions = []
    outcome = run_trial(config, fractions.append)
    assert taken == list(range(10))
    assert outcome["steps"] == 10
    assert fractions[-1] == 1.0
    assert len(outcome["epoch_losses"]) == {64: 1, 128: 2}[batch_size]  # 15 or 7 steps make an epoch
    assert outcome["timing"]["seconds_per_step"] * 10 < outcome["seconds"]["train"]
    # Training includes the augmentation, so the augmentation alone is faster.
    assert outcome["timing"]["augmented_images_per_second"] > outcome["timing"]["images_per_second"]


def test_choices_that_change_nothing_do_not_change_the_key():
    own = dataclasses.replace(TINY, negatives="both", head_batch_norm=True, vrn_against="queries")
    assert own.canonical().key() == TINY.key()
    other = dataclasses.replace(TINY, negatives="cross", head_batch_norm=False)
    assert other.canonical() == other
    # Without VRN the option has no effect, so both sweeps share their baselines.
    trials = {
        against: grid(
            TrialConfig(vrn_against=against), methods=["moco"], batch_sizes=[16], weights=[3.0], temperatures=[0.5],
            control_temperatures=[], seeds=[0],
        )
        for against in ("queries", "queue")
    }  # fmt: skip
    shared = set(trials["queries"]) & set(trials["queue"])
    assert {trial.weight for trial in set(trials["queries"]) ^ shared} == {3.0}
    assert {trial.weight for trial in shared} == {0.0}


def test_vrn_against_the_queue_is_of_the_queue_before_this_batch():
    module, loader = build(method="moco", weight=3.0, vrn_against="queue", batch_size=64)
    batches = iter(loader)
    module.contrastive_loss(*next(batches))
    before = module.criterion.memory_bank.bank[module.criterion.memory_bank.valid()].clone()
    assert len(before) == 128
    _, q0, q1 = module.contrastive_loss(*next(batches))
    term = module.vrn_term(q0, q1)
    expected = torch.stack(
        [(torch.nn.functional.normalize(q, dim=1) @ before.T + 1 / 996).square().mean() for q in (q0, q1)]
    ).mean()
    torch.testing.assert_close(term, 3.0 * expected)
    term.backward()
    grad = next(module.backbone.parameters()).grad
    assert grad.isfinite().all()
    assert grad.abs().max() > 0


@pytest.mark.usefixtures("trains")
def test_precision_is_lightnings_and_evaluation_is_not(monkeypatch):
    seen = []
    own_loss = modules.TwoViewModule.own_loss

    def spy(self, z0, *rest):
        seen.append(z0.dtype)
        return own_loss(self, z0, *rest)

    monkeypatch.setattr(modules.TwoViewModule, "own_loss", spy)
    config = dataclasses.replace(TINY, epochs=0, steps=2)
    half = run_trial(dataclasses.replace(config, precision="bf16-mixed"))
    assert seen[:2] == [torch.bfloat16] * 2
    seen.clear()
    whole = run_trial(config)
    assert set(seen) == {torch.float32}
    assert half["metrics"] != whole["metrics"]
    assert half["epoch_losses"] == pytest.approx(whole["epoch_losses"], rel=0.02)


# ---- several processes for one trial


@pytest.mark.slow
@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_two_processes_train_as_one(method):
    """A net without BatchNorm; on a CPU each process would use the statistics of its own rows."""
    alone = TrialConfig(
        method=method,
        backbone="test_efficientnet_gn",
        head_batch_norm=False,
        weight=3.0,
        batch_size=64,
        steps=2,
        epochs=0,
    )
    fractions = []
    together = ranks.run_trial(dataclasses.replace(alone, devices=2), fractions.append)
    expected = run_trial(alone)
    assert together["epoch_losses"] == pytest.approx(expected["epoch_losses"], rel=1e-5)
    for name in ("negative_mean", "negative_variance", "positive_mean"):
        assert together["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-3)
    assert together["paired"] == expected["paired"]
    assert fractions == [1.0]


def test_each_rank_gets_its_part_of_every_batch():
    source = loading.load("digits")
    splits = loading.split(source, 0)
    config = dataclasses.replace(TINY, batch_size=128, devices=2)
    _, whole, _ = fit.build(dataclasses.replace(config, devices=1), splits.train, source)
    parts = [fit.build(config, splits.train, source, rank)[1] for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for view, a, b in zip(batch, first, second, strict=True):
            assert torch.equal(view, torch.cat([a, b]))


@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_nothing_is_left():
    with pytest.raises(ranks.RankError, match=r"rank \d of 2 ended with exit code 1: [\s\S]*no-such-data"):
        ranks.run_trial(TrialConfig(data="no-such-data", devices=2, batch_size=64))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="counts processes with ps")
def test_ranks_end_with_the_process_that_started_them():
    code = (
        "from varloss_bench.training import ranks; from varloss_bench.config import TrialConfig\n"
        "ranks.run_trial(TrialConfig(devices=2, batch_size=64, epochs=500), lambda f: print(f, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout.readline()  # they train

    def alive() -> int:
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-s", str(parent.pid)], capture_output=True, text=True, check=False
        )
        return sum(not state.startswith("Z") for state in listed.stdout.split())

    assert alive() == 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 30
    while alive():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", 3, "--steps", 10], "--epochs and --steps exclude each other, got 3 and 10"),
        (["--steps", 0], "--steps must be at least 1, got 0"),
        (["--negatives", "all"], "--negatives must be one of cross, within, both, got 'all'"),
        (["--negatives", "cross"], "--negatives cross is not possible for moco: its negatives come from the queue"),
        (["--method", "dhel", "--negatives", "cross"], "within-view negatives define it. It is for simclr, dcl"),
        (["--vrn-against", "queue"], "--vrn-against queue is only for --method moco"),
        (["--vrn-against", "keys"], "--vrn-against must be one of queries, queue, got 'keys'"),
        (["--precision", "16-mixed", "--device", "cpu"], "--precision 16-mixed needs a CUDA device"),
        (["--precision", "64"], "--precision must be one of 32, bf16-mixed, 16-mixed, got '64'"),
        (["--devices", 0], "--devices must be at least 1, got 0"),
        (["--devices", 3], "--batch-size is over all 3 ranks and must be a multiple of 3"),
        (["--devices", 16], "with at least 2 samples for each, got 16"),
        (["--nodes", 2], "--nodes 2 needs --cluster slurm"),
        (["--strategy", "ddp"], "--strategy ddp is for several ranks"),
        (
            ["--devices", 2, "--strategy", "fsdp"],
            "--strategy must be one of auto, ddp, ddp_find_unused_parameters_true",
        ),
        (["--slurm", "time=5"], "--slurm requires --cluster slurm"),
        (["--first-seed", 10**10], "--first-seed must be from 0 to below 1e+10, got 1e+10"),
        (["--cluster", "k8s"], "--cluster must be one of local, slurm, got 'k8s'"),
        # Text that rich would treat as markup or an emoji is shown as typed.
        (["--batch-size", "[/b]"], "error: --batch-size takes int values separated by commas, got '[/b]'"),
        (["--data", "imagefolder:/nowhere/my[old]:x:set"], "/nowhere/my[old]:x:set"),
        (["--precision", "[red]64"], "--precision must be one of 32, bf16-mixed, 16-mixed, got '[red]64'"),
    ],
)
def test_bad_choices_are_errors_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "run_trials", None)
    result = compare(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["tune", "--rungs", "[/b]"], "'[/b]'"),
        (["study", "speed", "--groups", "[/b]"], "'[/b]'"),
    ],
)
def test_other_commands_show_what_was_typed_too(words, shown, tmp_path):
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.output
    assert result.output.startswith("error: ")
    assert shown in result.output


@pytest.mark.usefixtures("trains")
def test_a_crash_with_brackets_in_its_reason_does_not_end_the_sweep(tmp_path, monkeypatch):
    reason = "[rank0]: /data/[/a].png cannot be read"

    def cannot_be_read(*_, **__):
        raise OSError(reason)

    def at_once(trials, folder, command, _):
        for trial in trials:
            yield workers.Event(trial, 1.0, *execute(trial, folder, command))

    monkeypatch.setattr("varloss_bench.training.trial.run_trial", cannot_be_read)
    monkeypatch.setattr(workers, "run_trials", at_once)
    folder = tmp_path / "my[old]set"
    result = compare("--method", "simclr", "--control-temperature", "", "--seeds", 2, "--output", folder)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    assert result.output.count(f"crashed: OSError: {reason}\n") == 8  # two arms and the two rows without training
    assert f"8 trials, 0 of them already in {folder}; 8 to run." in result.output
    assert f"records: {folder}/" in result.output


def test_the_table_of_a_folder_with_brackets_says_its_name():
    base = TrialConfig(data="imagefolder:/data/my[old]set/[/b]")
    trials = grid(base, methods=["simclr"], batch_sizes=[16], weights=[3.0], temperatures=[0.5], control_temperatures=[],
                  seeds=[0])  # fmt: skip
    found = summary.summarise(trials, {}, [])
    assert f"Accuracy on {base.data}, test split" in plain_text(found, trials[-1])
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    console.print(render(found, trials[-1]))
    assert f"\x1b[1mAccuracy on {base.data}, test split" in console.file.getvalue()


def test_a_gpu_that_is_asked_for_by_name_may_be_that_of_a_job(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cuda", elsewhere=True) == "cuda"
    assert resolve_device("auto", elsewhere=True) == "cpu"
    with pytest.raises(ValueError, match="--device cuda needs a CUDA device, but torch finds none"):
        resolve_device("cuda", elsewhere=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--devices 2: this machine has 1 CUDA devices"):
        checks.check_cluster(None, "", TrialConfig(device="cuda", devices=2))


def test_fresh_refuses_a_folder_with_results(tmp_path):
    record = tmp_path / "trials" / "some.json"
    record.parent.mkdir()
    record.write_text("{}")
    result = compare("--fresh", "--output", tmp_path)
    assert result.exit_code == 2
    assert "already has 1 trial" in result.output.replace("\n", " ")
    assert record.exists()
    checks.check_fresh(tmp_path / "empty")


# ---- options from a file


def effective(*arguments) -> dict[str, object]:
    result = compare(*arguments, "--dump-config")
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.output)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("batch-size: [16, 64]\nseeds: 7\ncontrol_temperature:\nfused: false\nsteps: 30\nprecision: 32\n")
    plain = effective()
    found = effective("--config", path, "--seeds", 3)
    changed = {name: value for name, value in found.items() if plain.get(name) != value}
    assert changed == {"batch-size": "16,64", "seeds": 3, "fused": False, "steps": 30}
    assert "epochs" not in found
    assert plain["epochs"] == 20
    assert effective("--config", path, "--epochs", 5)["epochs"] == 5


def test_options_reach_the_trials_and_defaults_are_those_of_a_trial(tmp_path, monkeypatch):
    seen = []

    def check(trials):
        seen[:] = trials
        raise ValueError("seen enough")

    monkeypatch.setattr(checks, "check_trials", check)
    monkeypatch.chdir(tmp_path)
    words = ["--method", "simclr", "--seeds", "2", "--device", "cpu"]
    assert "seen enough" in compare(*words).output
    arms = {"methods": ["simclr"], "batch_sizes": [16], "weights": [0.0, 3.0], "temperatures": [0.5]}
    assert seen == grid(TrialConfig(), **arms, control_temperatures=[0.2], seeds=range(2))
    more = ["--framework", "solo", "--data-dir", "files", "--steps", 30, "--evaluate-on", "val", "--devices", 2]
    assert "seen enough" in compare(*words, *more, "--strategy", "ddp", "--num-test", 30).output
    base = TrialConfig(
        framework="solo", backbone="resnet18", fused=False, data_dir=str(tmp_path.resolve() / "files"), steps=30, epochs=0,
        evaluate_on="val", devices=2, strategy="ddp", num_test=30,
    )  # fmt: skip
    assert seen == grid(base, **arms, control_temperatures=[0.2], seeds=range(2))


def test_what_is_dumped_is_read_back(tmp_path):
    path = tmp_path / "again.yaml"
    asked = ["--steps", 50, "--no-head-batch-norm", "--batch-size", "16,32", "--control-temperature", ""]
    first = effective(*asked)
    path.write_text(yaml.safe_dump(first))
    assert effective("--config", path) == first
    assert first["head-batch-norm"] is False
    assert first["control-temperature"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch-sise: 16\n", "unknown option 'batch-sise'; close to it: batch-size"),
        ("batch-size: 16\nbatch_size: 32\n", "batch-size appears twice"),
        ("- 3\n", "must be a table of options"),
        ("", "must be a table of options"),
        ("seeds: {a: 1}\n", "seeds must be a number, a text, true, false or a list of these"),
        ("seeds: four\n", "--seeds"),
        ("seeds: [\n", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
        ("epochs: 3\nsteps: 10\n", "--epochs and --steps exclude each other, got 3 and 10"),
    ],
)
def test_a_file_that_is_wrong_is_an_error_that_says_where(content, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    result = compare("--config", path)
    assert result.exit_code == 2
    # Boxes wrap lines.
    assert message.replace(" ", "") in "".join(result.output.replace("│", "").split()), result.output


def test_a_missing_file_is_named(tmp_path):
    result = compare("--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yamlcannotberead:Nosuchfileordirectory" in "".join(result.output.replace("│", "").split())


@pytest.mark.usefixtures("trains")
def test_the_options_in_effect_lie_beside_the_results(tmp_path, monkeypatch):
    def at_once(trials, folder, command, _):
        for trial in trials:
            yield workers.Event(trial, 1.0, *execute(trial, folder, command))

    monkeypatch.setattr(workers, "run_trials", at_once)
    options = ["--method", "simclr", "--batch-size", 128, "--seeds", 2, "--steps", 3, "--control-temperature", ""]
    result = compare(*options, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (kept["steps"], kept["batch-size"], kept["device"]) == (
        3,
        "128",
        "cpu" if not torch.cuda.is_available() else "cuda",
    )
    table = (tmp_path / "table.txt").read_text()
    assert "Equal steps (3), so smaller batches see less data" in table
    assert "images/s, loss" in table
    records = [json.loads(path.read_text()) for path in (tmp_path / "trials").glob("simclr*.json")]
    assert {record["confounds"]["equal"] for record in records} == {"steps"}
    assert all(0 < record["timing"]["loss_share"] < 1 for record in records)
    assert Store(tmp_path).load([TrialConfig.from_dict(record["config"]) for record in records]).corrupt == {}
