"""Runs that are killed, on a full disk, or in one folder at the same time; and files from untrusted sources."""

import ast
import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.config import TrialConfig
from varloss_bench.execution import workers
from varloss_bench.execution.execute import execute
from varloss_bench.records import claims
from varloss_bench.records.claims import ELSEWHERE
from varloss_bench.records.store import Store
from varloss_bench.tune import processes
from varloss_bench.tune import run as tune
from varloss_bench.tune.options import Search
from varloss_bench.tune.search import Candidate, Outcome

ROOT = Path(__file__).parents[3]
RAW = TrialConfig(method="raw-pixels", epochs=0)


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _write_for_ever(file: int) -> None:
    while True:
        os.write(file, b"0" * 4096)


def fill(folder: Path) -> Path:
    path = folder / "filler"
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        _write_for_ever(file)
    os.close(file)
    return path


def test_a_full_disk_is_a_reason_and_what_is_there_stays(small_disk):
    first, second = RAW, dataclasses.replace(RAW, seed=1)
    assert execute(first, small_disk, [])[0] == "finished"
    kept = Store(small_disk).path(first).read_bytes()
    filler = fill(small_disk)
    status, reason = execute(second, small_disk, [])
    assert status == "crashed"
    assert "could not be stored: OSError: [Errno 28] No space left on device" in reason
    assert Store(small_disk).path(first).read_bytes() == kept
    assert not list(small_disk.glob("trials/.*.tmp"))
    loaded = Store(small_disk).load([first, second])
    assert (loaded.done(first), loaded.done(second), loaded.corrupt) == (True, False, {})
    filler.unlink()
    assert execute(second, small_disk, []) == ("finished", None)


def test_a_sweep_on_a_full_disk_says_what_to_do(small_disk, monkeypatch):
    fill(small_disk)
    monkeypatch.setattr(workers, "run_trials", lambda *_: iter(()))
    result = CliRunner().invoke(app, ["compare", "--seeds", "2", "--output", str(small_disk)])
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    assert "No space left on device" in text
    assert "Free disk space there and run the same command again; it resumes." in text
    assert "Traceback" not in text


@pytest.mark.usefixtures("quick_workers")
def test_a_search_on_a_full_disk_ends_with_that_error(small_disk):
    """The search runs in its own process; the net is trained up to the first score, which cannot be stored."""
    fill(small_disk)
    base = TrialConfig(batch_size=128, epochs=2, evaluate_on="val", seed=100)
    tasks = tune.make_tasks(base, Search(seeds=1, rungs=[1], metric="knn", budget=1))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$") as raised:
        list(processes.run_all({"with VRN": tasks["with VRN"]}, small_disk, [], workers=1))
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("when", ["searching", "presenting"])
def test_tune_on_a_full_disk_says_what_to_do(when, small_disk, monkeypatch):
    filler = fill(small_disk)

    def search(tasks, *_):
        if when == "searching":
            raise OSError(errno.ENOSPC, "No space left on device", "rungs/some.json")
        for name, weight in (("with VRN", 3.0), ("without VRN", 0.0)):
            outcome = Outcome(Candidate(weight, 0.5), (90.0,), 20, "finished")
            yield processes.Event(name, outcome=outcome)

    monkeypatch.setattr(tune, "show_cost", lambda *_: None)
    monkeypatch.setattr(processes, "run_all", search)
    result = CliRunner().invoke(app, ["tune", "--output", str(small_disk)])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    text = " ".join(result.output.split())
    assert "error: " in text
    assert "No space left on device" in text
    assert f"Finished trainings are in {small_disk}. Free disk space there" in text
    assert not list(small_disk.glob("tune*"))
    if when == "presenting":
        filler.unlink()
        assert CliRunner().invoke(app, ["tune", "--output", str(small_disk)]).exit_code == 0
        assert (small_disk / "tune.json").exists()


@pytest.mark.parametrize("command", ["compare", "tune"])
def test_room_is_asked_for_only_where_it_lacks(command, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "trials")

    monkeypatch.setattr(tune, "show_cost", lambda *_: None)
    monkeypatch.setattr(processes, "run_all", refused)
    monkeypatch.setattr(workers, "run_trials", refused)
    result = CliRunner().invoke(app, [command, "--seeds", "2", "--output", str(tmp_path)])
    text = " ".join(result.output.split())
    assert result.exit_code == 1, text
    assert "error: [Errno 13] Permission denied: 'trials'" in text
    assert f" in {tmp_path}. Fix the problem and run the same command again; it resumes." in text
    assert "Free disk space" not in text


def test_a_worker_that_has_just_started_ignores_ctrl_c(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    worker = workers.Worker(tmp_path, [])
    os.kill(worker.process.pid, signal.SIGINT)
    worker.give(RAW)
    while isinstance(answer := worker.connection.recv(), float):
        pass
    worker.stop()
    assert answer == ("finished", None)
    assert signal.getsignal(signal.SIGINT) is before  # and this process is what it was


# ---- two at a time


def test_a_trial_that_is_claimed_is_left_alone_and_then_not_run_again(tmp_path):
    path = Store(tmp_path).path(RAW)
    with claims.claim(path) as ours:
        assert ours
        # Locks belong to open files, not to processes, so this process can act as both.
        assert execute(RAW, tmp_path, []) == (ELSEWHERE, None)
        assert not path.exists()
    assert execute(RAW, tmp_path, ["first"]) == ("finished", None)
    written = path.stat().st_mtime_ns
    assert execute(RAW, tmp_path, ["second"]) == ("finished", None)
    assert path.stat().st_mtime_ns == written
    assert json.loads(path.read_text())["command"] == ["first"]
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_claim_goes_with_its_process(tmp_path):
    path = Store(tmp_path).path(RAW)
    code = (
        "import sys, time; from pathlib import Path; from varloss_bench.records.claims import claim\n"
        "with claim(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with claims.claim(path) as ours:
        assert not ours
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with claims.claim(path) as ours:
        assert ours


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_results_of_another_process_are_taken(tmp_path):
    """If the other process ends without a result, the trial runs here."""
    theirs, abandoned = RAW, dataclasses.replace(RAW, seed=1)
    held = {trial: claims.claim(Store(tmp_path).path(trial)) for trial in (theirs, abandoned)}
    for claim in held.values():
        assert claim.__enter__()
    events = workers.run_trials([theirs, abandoned], tmp_path, ["ours"], workers=1)
    shown = [next(events) for _ in held]
    assert {event.config for event in shown} == set(held)
    assert {event.reason for event in shown} == {"another process is running it; its result will be used"}
    elsewhere = tmp_path / "elsewhere"
    execute(theirs, elsewhere, ["theirs"])
    os.replace(Store(elsewhere).path(theirs), Store(tmp_path).path(theirs))
    for claim in held.values():
        claim.__exit__(None, None, None)
    assert {(event.config, event.status) for event in events} == {(theirs, "finished"), (abandoned, "finished")}
    made_by = [Store(tmp_path).load([trial]).records[trial.key()]["command"] for trial in held]
    assert made_by == [["theirs"], ["ours"]]
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_two_sweeps_in_one_folder_share_the_work(tmp_path):
    arguments = ["compare", "--method", "simclr", "--batch-size", "128", "--seeds", "2", "--steps", "5"]
    sweeps = [
        subprocess.Popen(
            [sys.executable, "-m", "varloss_bench", *arguments, "--output", str(tmp_path), "--workers", "1"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    written: dict[Path, set[int]] = {}
    while any(sweep.poll() is None for sweep in sweeps):
        for path in tmp_path.glob("trials/*.json"):
            written.setdefault(path, set()).add(path.stat().st_mtime_ns)
        time.sleep(0.02)
    outputs = [sweep.communicate()[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert len(written) == 10
    assert all(len(times) == 1 for times in written.values())  # nothing was made twice
    records = [json.loads(path.read_text()) for path in written]
    assert {record["status"] for record in records} == {"finished"}
    assert not list(tmp_path.glob("trials/.*"))


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_nobody_listens_to_ends_without_a_record(tmp_path):
    """As between the end of a sweep and that of its workers: what it cannot send is no failure of the trial."""
    ours, theirs = workers.SPAWN.Pipe()
    process = workers.spawn("varloss_bench.execution.execute:work", theirs, tmp_path, ["varloss-bench"])
    theirs.close()
    ours.send(TrialConfig(epochs=1, batch_size=128))
    ours.close()
    process.join(60)
    assert process.exitcode == 1
    assert not list(tmp_path.glob("trials/*.json"))


# ---- untrusted files

SOURCES = ("varloss", "integrations", "benchmarks")
# Without the source the tests have nothing to read. If one source exists and another is missing, that is a failure.
in_a_checkout = pytest.mark.skipif(
    not any((ROOT / folder).is_dir() for folder in SOURCES), reason="reads the sources of a checkout"
)
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
# Called attribute -> the argument that makes it safe, or None if nothing does.
UNPICKLING = {"torch.load": "weights_only=True", "yaml.load": None, "yaml.unsafe_load": None, "yaml.full_load": None}
UNPICKLING |= {"pandas.read_pickle": None, "pd.read_pickle": None}


def unpickles(source: str) -> list[str]:
    """Calls in a module that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLERS:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called, said = ast.unparse(node.func), [ast.unparse(keyword) for keyword in node.keywords]
            if called in UNPICKLING and UNPICKLING[called] not in said:
                found.append(ast.unparse(node))
            if any(word.startswith("allow_pickle=") and word != "allow_pickle=False" for word in said):
                found.append(ast.unparse(node))
    return found


@in_a_checkout
@pytest.mark.parametrize("folder", SOURCES)
def test_no_file_is_ever_unpickled(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"{folder} has no source: this test looks in the wrong place"
    found = {str(path.relative_to(ROOT)): unpickles(path.read_text()) for path in paths}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import torch; torch.load(p)", "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)", "np.load(p, allow_pickle=flag)", "yaml.load(text, Loader)", "pd.read_pickle(p)",
    ],
)  # fmt: skip
def test_what_unpickles_is_seen(source):
    assert unpickles(source)


def test_what_does_not_is_let_through():
    assert not unpickles("torch.load(p, weights_only=True); np.load(p); yaml.safe_load(text); json.load(file)")


@in_a_checkout
def test_results_of_jobs_are_not_unpickled():
    """submitit returns results as pickles; the harness reads its results from the folder."""
    path = ROOT / "benchmarks" / "varloss_bench" / "execution" / "cluster.py"
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & {"result", "results", "exception", "submission"}


def test_a_foreign_file_among_the_results_is_left_alone(tmp_path):
    store = Store(tmp_path)
    execute(RAW, tmp_path, [])
    for number, content in enumerate((b"\x80\x04\x95", b"PK\x03\x04", b"not ours")):
        (store.trials / f"foreign{number}.json").write_bytes(content)
    loaded = store.load([RAW])
    assert loaded.done(RAW)
    assert not loaded.corrupt
    truncated = store.path(RAW).read_bytes()
    for length in itertools.chain(range(0, 40), range(40, len(truncated) - 1, 997)):
        store.path(RAW).write_bytes(truncated[:length])
        assert list(store.load([RAW]).corrupt) == [store.path(RAW)], length
