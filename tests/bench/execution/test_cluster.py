"""Trials as jobs: with submitit's real local executor, and with fake Slurm commands that run the scripts of `sbatch`."""

import dataclasses
import itertools
import json
import random
import re
import socket
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.config import TrialConfig
from varloss_bench.execution import cluster
from varloss_bench.execution.cluster import Cluster, parse_slurm
from varloss_bench.records.store import Store

submitit = pytest.importorskip("submitit", reason="the extra 'cluster' is not installed")
COMMAND = ["varloss-bench", "compare"]
RAW = TrialConfig(method="raw-pixels", epochs=0)
SEEDS = [dataclasses.replace(RAW, seed=seed) for seed in (0, 1)]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with Slurm's commands; returns the folder of their state."""
    state, commands = tmp_path / "slurm", tmp_path / "bin"
    (state / "scripts").mkdir(parents=True)
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct"):
        path = commands / name
        path.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "fake_slurm.py").read_text())
        path.chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(state))
    submitit.SlurmJob.watcher.clear()  # it caches jobs by number, and every test starts to count from the beginning
    monkeypatch.setattr(submitit.SlurmJob.watcher, "_delay_s", 1)  # by default it queries less and less often
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:/usr/bin:/bin")
    return state


@pytest.fixture
def port(slurm, monkeypatch):
    """The port of the first job's nodes, which follows from its number: one that is free, also of tests at the same time."""
    while True:
        found = random.randrange(21000, 30000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", found))
            monkeypatch.setenv("FAKE_SLURM_FIRST", str(found - 20000))
            return found


def run(where: Cluster, trials, folder) -> list:
    return list(where.run(trials, folder, COMMAND, workers=2))


def test_local_jobs_leave_the_records_of_workers(tmp_path):
    events = run(Cluster("local", {}), SEEDS, tmp_path)
    assert {(event.config, event.status) for event in events} == {(trial, "finished") for trial in SEEDS}
    loaded = Store(tmp_path).load(SEEDS)
    assert all(loaded.done(trial) for trial in SEEDS)
    assert {record["command"][0] for record in loaded.records.values()} == {"varloss-bench"}
    assert not list(tmp_path.glob("trials/.*"))  # no claim stays behind


def test_slurm_runs_an_array_with_what_was_asked_for(tmp_path, slurm):
    where = Cluster("slurm", parse_slurm("partition=gpu,time=2:00:30,cpus=3,mem=16GB,account=us"))
    events = run(where, SEEDS, tmp_path / "results")
    assert {(event.config, event.status) for event in events} == {(trial, "finished") for trial in SEEDS}
    (script,) = (path.read_text() for path in (slurm / "scripts").iterdir())
    for line in ("partition=gpu", "time=121", "cpus-per-task=3", "mem=16GB", "account=us", "array=0-1%2", "nodes=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert "--kill-on-bad-exit=1" in script
    ledger = json.loads((tmp_path / "results" / "jobs" / "submitted.json").read_text())
    assert ledger == {SEEDS[0].key(): "1000_0", SEEDS[1].key(): "1000_1"}


def test_what_is_pending_is_waited_for_and_not_submitted_again(tmp_path, slurm):
    folder, where = tmp_path / "results", Cluster("slurm", {})
    (slurm / "hold").touch()
    (folder / "jobs").mkdir(parents=True)
    where._submit(SEEDS, folder, COMMAND, 2)
    assert where.pending(SEEDS, folder) == ["1000_0", "1000_1"]
    events = where.run(SEEDS, folder, COMMAND, workers=2)
    assert [next(events).reason for _ in SEEDS] == ["is job 1000_0 already", "is job 1000_1 already"]
    for trial in SEEDS:
        cluster.execute(trial, folder, COMMAND)  # as the jobs do when they start
    assert {event.status for event in events} == {"finished"}
    assert len(list((slurm / "scripts").iterdir())) == 1
    # Cancelled jobs are not pending, so their trials are submitted again.
    for path in slurm.glob("*.state"):
        path.write_text("CANCELLED by 0")
    assert where.pending(SEEDS, folder) == []


def test_a_job_without_a_result_is_a_crash_with_its_last_words(tmp_path, slurm):
    (event,) = run(Cluster("slurm", {"setup": ["echo out of nodes >&2", "exit 3"]}), SEEDS[:1], tmp_path / "results")
    assert event.status == "crashed"
    assert "left no result" in event.reason


def test_trials_of_different_sizes_are_arrays_of_their_own(tmp_path, slurm):
    trials = [SEEDS[0], TrialConfig(devices=2, nodes=2, batch_size=64), SEEDS[1]]
    (slurm / "hold").touch()
    where = Cluster("slurm", {})
    monitor = where.run(trials, tmp_path / "results", COMMAND, workers=2)
    for trial in SEEDS:
        cluster.execute(trial, tmp_path / "results", COMMAND)  # as the jobs do when they start
    assert {next(monitor).config for _ in SEEDS} == set(SEEDS)
    monitor.close()
    scripts = [path.read_text() for path in sorted((slurm / "scripts").iterdir())]
    assert [[f"#SBATCH --nodes={n}\n" in script for n in (1, 2)] for script in scripts] == [
        [True, False],
        [False, True],
    ]
    assert ["#SBATCH --cpus-per-task=2\n" in script for script in scripts] == [False, True]


def test_arrays_of_different_sizes_do_not_run_side_by_side(tmp_path, slurm):
    """Each array has its own limit, so two would run twice as many jobs; jobs of an earlier call count too."""
    log = tmp_path / "log"
    log.touch()
    setup = [f"echo 1 >> {log}", "sleep 0.5", f"echo -1 >> {log}", "exit 3"]
    larger = [TrialConfig(devices=2, batch_size=64, seed=seed) for seed in (0, 1)]
    where = Cluster("slurm", {"setup": setup, "dependency": "afterok:7"})
    (tmp_path / "results" / "jobs").mkdir(parents=True)
    where._submit(SEEDS, tmp_path / "results", COMMAND, 2)
    events = run(where, [*SEEDS, TrialConfig(nodes=2, batch_size=64), *larger], tmp_path / "results")
    assert {event.reason for event in events[:2]} == {"is job 1000_0 already", "is job 1000_1 already"}
    assert [event.status for event in events[2:]] == ["crashed"] * 5
    steps = [int(step) for step in log.read_text().split()]
    assert len(steps) == 10
    assert max(itertools.accumulate(steps)) == 2
    scripts = [path.read_text() for path in sorted((slurm / "scripts").iterdir())]
    asked = [re.findall(r"^#SBATCH --dependency=(.+)$", script, re.MULTILINE) for script in scripts]
    assert asked == [["afterok:7"], ["afterany:1000,afterok:7"], ["afterany:1000:1100,afterok:7"]]


@pytest.fixture
def login_node(slurm, tmp_path, monkeypatch):
    """A machine with Slurm's commands and no GPU; returns a call of `compare` there, for the GPUs of the cluster."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--device", "cuda", "--cluster", "slurm", "--method", "simclr", "--epochs", "2", "--batch-size", "64"]

    def compare(*more):
        return CliRunner().invoke(app, ["compare", *words, "--output", str(tmp_path / "results"), *more])

    return compare


def test_a_login_node_lists_the_steps_that_it_cannot_time(login_node, tmp_path):
    result = login_node("--seeds", "3", "--dry-run")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert re.search(r"SimCLR, B=64, t=0.5 \+ VRN 3 +0,1,2 +2 epochs +30 *\n", result.output)  # 997 // 64 x 2
    assert "270 steps. How long they take cannot be measured here: this machine has no CUDA device." in text
    assert "--dry-run on a node that has one, with --cluster local or without --cluster, measures it." in text
    assert "minutes" not in text
    assert text.endswith("Nothing was run.")
    assert not (tmp_path / "results").exists()


def test_a_selection_on_a_login_node_goes_on_to_its_first_phase(login_node, monkeypatch):
    dry = login_node("--select", "--seeds", "2", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert dry.output.count("cannot be measured here") == 2  # of either phase
    submitted = []

    def interrupted(self, configs, folder, command, workers):
        submitted.extend(configs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "run", interrupted)
    result = login_node("--select", "--seeds", "2")
    assert result.exit_code == 130, result.output
    assert "Phase 1 of 2" in result.output
    assert {(trial.device, trial.evaluate_on) for trial in submitted} == {("cuda", "val")}


def test_a_second_node_does_not_wait_for_the_first_one_of_a_trial_that_is_done(tmp_path, monkeypatch):
    trial = TrialConfig(batch_size=64, nodes=2)
    started = []
    monkeypatch.setattr(cluster.ranks, "run_trial", lambda config, **_: started.append(config))
    second = types.SimpleNamespace(hostnames=["127.0.0.1"], raw_job_id="7", node=1)
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: second)
    cluster.job(trial.to_dict(), str(tmp_path), COMMAND)
    assert started == [trial]
    Store(tmp_path).write(trial, {"config": trial.to_dict(), "status": "diverged", "reason": None, "environment": {}})
    cluster.job(trial.to_dict(), str(tmp_path), COMMAND)
    assert started == [trial]


@pytest.mark.slow
def test_a_first_node_that_fails_ends_the_others(tmp_path, slurm, port):
    """If the first node's port is in use, the other node would wait for half an hour."""
    trial, folder = TrialConfig(batch_size=64, steps=2, epochs=0, nodes=2), tmp_path / "results"
    (folder / "jobs").mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        Cluster("slurm", {})._submit([trial], folder, COMMAND, 1)
        deadline = time.monotonic() + 150
        while (state := (slurm / f"{port - 20000}.state").read_text()) == "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.2)
    assert state == "FAILED"
    record = Store(folder).load([trial]).records[trial.key()]
    assert record["status"] == "crashed"
    assert "EADDRINUSE" in record["reason"]


def test_a_failure_without_a_reason_is_taken_all_the_same(tmp_path):
    trial = SEEDS[0]
    Store(tmp_path).write(trial, {"config": trial.to_dict(), "status": "diverged", "reason": None, "environment": {}})
    assert cluster.execute(trial, tmp_path, COMMAND) == ("diverged", None)
    assert cluster._event(Store(tmp_path), trial, None) == cluster.Event(trial, 1.0, "diverged", None)


@pytest.mark.slow
@pytest.mark.usefixtures("port")
def test_two_nodes_share_a_trial(tmp_path, slurm):
    trial = TrialConfig(method="moco", batch_size=64, steps=2, epochs=0, nodes=2)
    (event,) = run(Cluster("slurm", {}), [trial], tmp_path / "results")
    assert (event.status, event.reason) == ("finished", None)
    (script,) = (path.read_text() for path in (slurm / "scripts").iterdir())
    assert "#SBATCH --nodes=2\n" in script
    record = Store(tmp_path / "results").load([trial]).records[trial.key()]
    assert record["confounds"]["batch_norm_statistics"] == "of each of 2 ranks' rows"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition", "--slurm takes key=value separated by commas, got 'partition'"),
        ("partitoin=gpu", "unknown key 'partitoin'; close to it: partition"),
        ("time=soon", "--slurm time must be minutes, H:MM:SS or D-HH:MM:SS, got 'soon'"),
        ("time=0", "--slurm time must be at least a minute, got '0'"),
        ("gpus=one", "--slurm gpus must be a whole number, got 'one'"),
    ],
)
def test_parameters_that_slurm_would_refuse(text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_slurm(text)


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("1:30:00", 90), ("1-0:00:00", 1440), ("0:00:01", 1)])
def test_time_is_in_minutes(text, minutes):
    assert parse_slurm(f"time={text}") == {"time": minutes}


def test_clusters_that_are_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="there is no srun on this machine"):
        Cluster("slurm", {})
    with pytest.raises(ValueError, match="--slurm requires --cluster slurm, got --cluster local"):
        Cluster("local", {"time": 5})
