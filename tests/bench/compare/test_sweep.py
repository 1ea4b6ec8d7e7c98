"""Whole sweeps through the command, with real worker processes: resume after kill -9, Ctrl-C, corrupt files, errors."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from varloss_bench.cli import COMMANDS, STUDIES, app
from varloss_bench.compare import present, sweep
from varloss_bench.config import TrialConfig
from varloss_bench.execution import workers
from varloss_bench.records.store import Loaded, Store

pytestmark = pytest.mark.usefixtures("quick_workers")

TINY = ["compare", "--method", "simclr", "--epochs", "2", "--batch-size", "64", "--seeds", "2"]
NUM_TRIALS = 2 * (2 + 3)


def start(*arguments, folder: Path, **options) -> "subprocess.Popen[str]":
    # A separate process group, so that a signal to the group reaches the workers and not the tests.
    return subprocess.Popen(
        [sys.executable, "-m", "varloss_bench", *arguments, "--output", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "COLUMNS": "200"}, **options,
    )  # fmt: skip


def run_here(*arguments, folder: Path) -> tuple[int, str]:
    """The same in this process, which has imported everything; workers are still processes."""
    result = CliRunner().invoke(app, [*arguments, "--output", str(folder)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def results(folder: Path) -> dict[str, object]:
    """All numbers of a sweep; times and machine states left out."""
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name] for name in ("rows", "comparisons", "seeds")}


def table(folder: Path) -> str:
    """The printed text of a sweep without speeds and without the command, which names the folder."""
    _command, _, rest = (folder / "table.txt").read_text().partition("\n")
    return rest.partition("\nSpeed (")[0]


def trial_files(folder: Path) -> list[Path]:
    return sorted((folder / "trials").glob("*.json"))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def processes_of_session(leader: int) -> list[int]:
    """Processes of the session that `start` opened (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(*TINY, folder=folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return folder, output


def test_a_sweep_leaves_table_figure_and_records(undisturbed):
    folder, output = undisturbed
    assert len(trial_files(folder)) == NUM_TRIALS
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert f"One page with every figure: {folder}/report.html" in output
    assert "10 trials, 0 of them already in" in output
    for phrase in ("SimCLR, B=64", "raw-pixels", "random-init", "VRN 3, t=0.5 − t=0.2", "settled", "Equal epochs (2)"):
        assert phrase in output
        assert phrase in (folder / "table.txt").read_text()
    # The output has no messages of Lightning and no warnings.
    assert not re.search(r"GPU available|litlogger|Warning|Traceback", output), output
    rows = {(row["method"], row["temperature"], row["weight"]): row for row in results(folder)["rows"]}
    variance = {key: row["metrics"].get("negative_variance", {}).get("mean") for key, row in rows.items()}
    assert variance["simclr", 0.5, 3.0] < variance["simclr", 0.5, 0.0]


def test_a_second_run_runs_nothing(undisturbed):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in trial_files(folder)}
    expected = results(folder)
    code, output = run_here(*TINY, folder=folder)
    assert code == 0
    assert "10 of them already in" in output
    assert "0 trials run" in output
    assert {path: path.stat().st_mtime_ns for path in trial_files(folder)} == before
    assert results(folder) == expected


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills"), [(7, 1), *(pytest.param(seed, 3, marks=pytest.mark.exhaustive) for seed in range(4))]
)
def test_kill_9_at_any_moment_and_resume_give_the_undisturbed_table(seed, kills, undisturbed, tmp_path):
    moments = random.Random(seed)
    for _ in range(kills):
        process = start(*TINY, folder=tmp_path)
        kept = {path: path.stat().st_mtime_ns for path in trial_files(tmp_path)}
        wait_for(lambda: process.poll() is not None or len(trial_files(tmp_path)) > len(kept))  # noqa: B023
        time.sleep(moments.uniform(0, 0.7))
        children = [found for found in processes_of_session(process.pid) if found != process.pid]
        for victim in (*moments.sample(children, min(1, len(children))), process.pid):
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            time.sleep(moments.uniform(0, 0.3))
        process.communicate(timeout=60)
        wait_for(lambda: not processes_of_session(process.pid), seconds=30)  # noqa: B023  (no orphan goes on)
        assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    kept = {path: path.stat().st_mtime_ns for path in trial_files(tmp_path)}
    assert len(kept) >= kills
    code, output = run_here(*TINY, folder=tmp_path)
    assert code == 0
    assert f"{len(kept)} of them already in" in output
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert results(tmp_path) == results(undisturbed[0])
    assert table(tmp_path) == table(undisturbed[0])
    assert len(table(tmp_path).splitlines()) > 40


@pytest.fixture
def hears_ctrl_c():
    """A shell's background jobs ignore Ctrl-C, and the sweeps that they start inherit this."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_proc
@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    process = start(*TINY, "--epochs", "200", folder=tmp_path)
    wait_for(lambda: len(trial_files(tmp_path)) >= 2)  # the untrained rows
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "every finished trial is in" in output
    assert "Traceback" not in output
    wait_for(lambda: not processes_of_session(process.pid), seconds=30)
    assert len(trial_files(tmp_path)) >= 2


def test_rows_made_by_other_code_are_announced(undisturbed):
    folder, output = undisturbed
    announcement = "not all made by the same versions"
    assert announcement not in output
    changed = trial_files(folder)[0]
    good = changed.read_text()
    record = json.loads(good)
    assert re.fullmatch("[0-9a-f]{12}", record["environment"]["varloss_source"])
    record["environment"]["varloss_source"] = "0" * 12
    changed.write_text(json.dumps(record))
    _, output = run_here(*TINY, folder=folder)
    changed.write_text(good)
    assert announcement in output


def test_rows_of_unknown_origin_are_told_from_known_ones():
    known = {"environment": {"versions": {"torch": "2.4.0"}, "varloss_source": "0" * 12, "machine": {"cores": 2}}}
    older = {"environment": {"versions": {"torch": "2.4.0"}, "machine": {"cores": 2}}}
    newer, other = (
        {"environment": {**known["environment"], "varloss_bench_source": digest}} for digest in ("1" * 12, "2" * 12)
    )
    assert not present._environments_differ(Loaded({"a": known, "b": known}))
    assert not present._environments_differ(Loaded({"a": older, "b": older}))
    assert present._environments_differ(Loaded({"a": known, "b": older}))
    assert not present._environments_differ(Loaded({"a": newer, "b": newer}))
    assert present._environments_differ(Loaded({"a": newer, "b": other}))
    solo, other = ({"environment": {**newer["environment"], "varloss_solo_source": d}} for d in ("3" * 12, "4" * 12))
    assert not present._environments_differ(Loaded({"a": solo, "b": newer}))  # a row without training
    assert present._environments_differ(Loaded({"a": solo, "b": newer, "c": other}))


def test_a_corrupt_result_is_named_and_made_again(undisturbed):
    folder, _ = undisturbed
    expected = results(folder)
    broken = trial_files(folder)[0]
    good = json.loads(broken.read_text())
    broken.write_text('{"schema": 1, "config": {')
    code, output = run_here(*TINY, folder=folder)
    assert code == 0
    assert f"corrupt result, will be run again: {broken}" in output
    assert "1 trial run" in output
    assert json.loads(broken.read_text())["metrics"] == good["metrics"]
    assert results(folder) == expected


def test_nan_trials_are_failures_with_a_reason_and_the_sweep_goes_on(tmp_path):
    code, output = run_here(*TINY, "--base-lr", "1e30", "--control-temperature", "", folder=tmp_path)
    assert code == 0, output
    assert output.count("diverged: mean training loss of epoch 1 is nan") == 4
    assert len(trial_files(tmp_path)) == 8
    rows = {row["method"]: row for row in results(tmp_path)["rows"]}
    assert rows["simclr"]["seeds_diverged"] == [0, 1]
    assert rows["raw-pixels"]["metrics"]["knn"]["seeds"] == 2


@needs_proc
def test_a_killed_worker_is_replaced_and_its_trial_tried_once_more(tmp_path):
    import multiprocessing

    trials = [TrialConfig(seed=seed, epochs=2, batch_size=64) for seed in (0, 1)]
    events, killed = [], False
    for event in workers.run_trials(trials, tmp_path, ["varloss-bench"], workers=1):
        events.append(event)
        if not killed and event.fraction == 0.5:
            killed = True
            (child,) = multiprocessing.active_children()
            os.kill(child.pid, signal.SIGKILL)
    retried = [event for event in events if event.reason]
    assert [event.config for event in retried] == [trials[0]]
    assert "exit code -9" in retried[0].reason
    assert [event.config for event in events if event.status == "finished"] == trials
    assert all(Store(tmp_path).load(trials).done(trial) for trial in trials)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "998"], "--batch-size must be from 2 to the 997 training samples of digits, got 998"),
        (["--batch-size", "x"], "--batch-size takes int values separated by commas, got 'x'"),
        (["--batch-size", ""], "--batch-size needs at least one value"),
        (["--backbone", "resnet19"], "unknown backbone 'resnet19'"),
        (["--method", "byol"], "--method must be one of simclr, dcl, dhel, moco, got 'byol'"),
        (["--method", "raw-pixels"], "--method must be one of simclr, dcl, dhel, moco, got 'raw-pixels'"),
        (["--method", "simclr,random-init"], "--method must be one of simclr, dcl, dhel, moco, got 'random-init'"),
        (["--seeds", "1"], "an interval needs at least 2 seeds, got --seeds 1"),
        (["--seeds", "0", "--no-interval"], "--seeds must be at least 1, got 0"),
        (["--temperature", "0"], "--temperature must be greater than 0, got 0"),
        (["--weight", "nan"], "--weight must be a finite number at least 0, got nan"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--data", "imagenet"], "unknown data set 'imagenet'; known data sets: digits, fashion-mnist"),
        (
            ["--data", "fashion-mnist", "--data-dir", "/proc/nowhere"],
            "Fashion-MNIST (train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz) is not in /proc/nowhere, and it could not",
        ),
        (
            ["--method", "moco", "--queue-size", "600"],
            "queue_size must be at most half of the 997 training samples, got 600",
        ),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--device", "tpu"], "--device must be one of auto, cpu, cuda, got 'tpu'"),
        (["--output", "/proc/nowhere"], "results cannot be kept in /proc/nowhere"),
    ],
)
def test_bad_input_is_an_error_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "run_trials", None)  # must not be reached
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert result.exit_code == 2, result.output
    assert f"error: {message}" in result.output
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.usefixtures("trains")
def test_dry_run_lists_and_estimates_and_runs_nothing(tmp_path):
    result = CliRunner().invoke(app, [*TINY, "--dry-run", "--output", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert "SimCLR, B=64, t=0.5 + VRN 3" in result.output
    assert re.search(r"About \d+\.\d minutes with 2 workers", result.output)
    assert not (tmp_path / "new").exists()


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = ["varloss-bench", "compare"]
from varloss_bench.__main__ import main
main()
"""


@pytest.mark.parametrize("package", ["typer", "kornia", "lightly", "pytorch_lightning", "sklearn"])
def test_a_missing_extra_is_answered_with_the_pip_line(package, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(package=package)],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert f"needs the package '{package}'" in result.stderr
    assert 'pip install "varloss[bench]"' in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_module_of_our_own_keeps_its_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(package="nonexistent").replace("'nonexistent'", "'secrets'")],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    "words", [[], ["study"], *([name] for name in COMMANDS), *(["study", name] for name in STUDIES)]
)
def test_help_is_quick_and_imports_no_torch(words):
    code = (
        "import sys; from typer.testing import CliRunner; from varloss_bench.cli import app\n"
        "result = CliRunner().invoke(app, [*sys.argv[1:], '--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=60)


def test_the_process_of_a_sweep_needs_nothing_of_what_trains():
    code = (
        "import sys, varloss_bench; from varloss_bench.compare import run; from varloss_bench.execution import workers\n"
        "assert not {'pytorch_lightning', 'lightly', 'kornia', 'sklearn', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_names_what_a_user_needs_and_keeps_the_studies_behind_one_word():
    listed = CliRunner().invoke(app, ["--help"]).output
    assert all(re.search(rf"^│ {name} ", listed, re.MULTILINE) for name in (*COMMANDS, "study"))
    assert not any(re.search(rf"^│ {name} ", listed, re.MULTILINE) for name in STUDIES)
    listed = CliRunner().invoke(app, ["study", "--help"]).output
    assert all(re.search(rf"^│ {name} ", listed, re.MULTILINE) for name in STUDIES)


def test_a_sweep_counts_trials_and_jobs_in_grammar(tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    jobs = types.SimpleNamespace(run=interrupted, pending=lambda *_: ["5"])
    console = Console(file=io.StringIO())
    where = sweep.Execution(folder=tmp_path, command=["x"], cluster=jobs)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_missing([TrialConfig()], where, console)
    shown = console.file.getvalue()
    assert shown.startswith("1 trial, 0 of them already in ")
    assert "\n1 job still queued or running; " in shown
