"""`python benchmarks/gpu`: a rehearsal of the whole command, and what it does about steps that die, hang or take too long."""

from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
STEPS = ("ceilings", "tests", "launches", "speed", "tune")
# A step with a few cells; each is a line of code.
FAKE = """
import os, time
from gpu.progress import Progress, repair
from gpu.steps import Visit, run_cells
from varloss_bench.studies.speed.rows import append

BODIES = {bodies!r}

def work(visit):
    path = visit.folder / "rows-{step}.csv"
    repair(path, Progress(visit.folder, {step!r}).settled())

    def cell(name, body):
        def run():
            exec(body, {{**globals(), "visit": visit}})
            append(path, {{"cell": name, "value": 1}})
            return ""
        return run

    return run_cells(visit, {step!r}, {{name: cell(name, body) for name, body in BODIES.items()}})
"""
QUICK = {"a": "pass", "b": "pass"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def states(out: Path) -> dict[tuple[str, str], str]:
    """The latest state of each cell."""
    return {(row["step"], row["cell"]): row["state"] for row in rows(out / "progress.csv")}


def start(gpu: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(gpu), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(gpu: Path, out: Path, *arguments: str) -> tuple[int, str]:
    with start(gpu, out, *arguments) as process:
        printed, _ = process.communicate(timeout=240)
    return process.returncode, printed


@pytest.fixture
def fake(tmp_path):
    """A copy of the folder whose steps have these cells, for those named; all others have two that do nothing."""

    def made(cell_seconds: float = 60, **bodies: dict[str, str]) -> Path:
        folder = tmp_path / "benchmarks" / "gpu"
        shutil.copytree(GPU, folder, ignore=shutil.ignore_patterns("__pycache__", "wheels"))
        for step in STEPS:
            code = FAKE.format(step=step, bodies=bodies.get(step, QUICK))
            (folder / f"measure_{step}.py").write_text(code)
        source = (folder / "steps.py").read_text()
        shortened = re.sub(r'(Step\("\w+", \d+), \d+,', rf"\1, {cell_seconds},", source)
        assert shortened.count(f", {cell_seconds},") == len(STEPS)
        (folder / "steps.py").write_text(shortened)
        return folder

    return made


def wait_for(out: Path, step: str, cell: str, state: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "progress.csv").exists() and states(out).get((step, cell)) == state:
            return
        time.sleep(0.05)
    raise AssertionError((out / "visit.log").read_text())


def test_a_killed_visit_goes_on_after_its_last_row(fake, tmp_path):
    """Killed with its children alive: they end by themselves, and no row is lost or there twice."""
    beats = "while not visit.rehearse: (visit.folder / 'heart').write_text(str(time.time())); time.sleep(0.05)"
    slow = {"a": "pass", "b": beats, "c": "pass"}
    gpu, out = fake(tests=slow), tmp_path / "out"
    process = start(gpu, out)
    wait_for(out, "tests", "b", "began")
    process.kill()
    process.communicate()
    with (out / "rows-tests.csv").open("a") as file:
        file.write("b,1\nc,")  # a row of the cell that has no end, and a torn one
    time.sleep(1)
    assert time.time() - (out / "heart").stat().st_mtime > 0.3
    (out / "heart").unlink()
    code, printed = run(gpu, out, "--rehearse")
    assert code == 0, printed
    assert re.search(r"^ceilings +complete before: 2 done", printed, flags=re.MULTILINE)
    assert re.search(r"^tests +complete: 3 done, 0 failed", printed, flags=re.MULTILINE)
    assert [row["cell"] for row in rows(out / "rows-tests.csv")] == ["a", "b", "c"]
    for step in set(STEPS) - {"tests"}:
        assert [row["cell"] for row in rows(out / f"rows-{step}.csv")] == ["a", "b"]
    code, printed = run(gpu, out)
    assert code == 0
    assert len(re.findall(r"complete before", printed)) == len(STEPS)


def test_what_dies_hangs_or_raises_fails_alone(fake, tmp_path):
    gpu = fake(
        cell_seconds=2,
        ceilings={"a": "pass", "aborts": "os.abort()", "b": "pass"},
        tests={"hangs": "time.sleep(60)", "b": "pass"},
        launches={"lost": "raise RuntimeError('CUDA error: an illegal memory access')", "b": "pass"},
        speed={"raises": "raise ValueError('no such thing')", "again": "assert (visit.folder / 'mended').exists()"},
    )
    (gpu / "measure_tune.py").write_text("raise ImportError('no such module')\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "memeff-0.3.1-py3-none-any.whl").write_text("not a wheel")
    out = tmp_path / "out"
    code, printed = run(gpu, out, "--wheels", str(wheels))
    assert code == 1
    assert re.search(r"memeff is missing, its rows are left out: ERROR: .*memeff", printed)
    failed = {cell for cell, state in states(out).items() if state == "failed"}
    assert failed == {
        ("ceilings", "aborts"),
        ("tests", "hangs"),
        ("launches", "lost"),
        ("speed", "raises"),
        ("speed", "again"),
    }
    for step, cells in {"ceilings": "ab", "tests": "b", "launches": "b"}.items():
        assert [row["cell"] for row in rows(out / f"rows-{step}.csv")] == list(cells)
    summary = (out / "summary.txt").read_text()
    assert summary in printed
    for sentence in (
        "ceilings: aborts: its process died: SIGABRT",
        "tests: hangs: it hung: more than 2 s",
        "launches: lost: RuntimeError: CUDA error",
        "speed: raises: ValueError: no such thing",
        "tune: before any cell: its process died: exit code 1",
    ):
        assert sentence in summary
    assert "no such module" in (out / "visit.log").read_text()
    # What failed is left alone, unless it is asked for.
    (out / "mended").touch()
    assert ("speed", "again") in failed
    run(gpu, out, "--steps", "speed")
    assert states(out)["speed", "again"] == "failed"
    run(gpu, out, "--steps", "speed", "--retry")
    assert states(out)["speed", "again"] == "done"
    assert states(out)["speed", "raises"] == "failed"


def test_the_time_is_kept(fake, tmp_path):
    """A step that would take for ever is cut off, and what a quick one leaves goes to the others."""
    endless = {str(number): "time.sleep(0.2)" for number in range(1000)}
    gpu, out = fake(tests=endless, tune=endless), tmp_path / "out"
    started = time.monotonic()
    code, printed = run(gpu, out, "--minutes", "0.15")
    assert time.monotonic() - started < 9 + 1
    assert code == 1
    for step, state in dict(
        zip(STEPS, ("complete", "cut off", "complete", "complete", "cut off"), strict=True)
    ).items():
        assert re.search(rf"^{step} +{state}: \d+ done", printed, flags=re.MULTILINE), printed
    # `tune` has a share of 30%, and what `launches` and `speed` do not need.
    entries = [row for row in rows(out / "progress.csv") if row["step"] == "tune" and row["state"] == "done"]
    assert sum(float(row["seconds"]) for row in entries) > 0.3 * (9 - 4)


def test_an_interrupted_visit_has_its_tables(fake, tmp_path):
    gpu, out = fake(tests={"a": "time.sleep(60)"}), tmp_path / "out"
    process = start(gpu, out)
    wait_for(out, "tests", "a", "began")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "- the visit was interrupted" in printed
    assert (out / "summary.txt").read_text() in printed


@pytest.mark.parametrize(
    ("code", "message"),
    [("NO_DEVICE", "torch finds no CUDA device here"), ("OTHER_CARD", "holds rows of another card")],
)
def test_without_a_device_or_on_another_card_it_ends(code, message, fake, tmp_path):
    gpu, out = fake(), tmp_path / "out"
    (gpu / "measure_tests.py").write_text(f"from gpu.steps import {code}\n\ndef work(visit):\n    return {code}\n")
    status, printed = run(gpu, out)
    assert status == 2
    assert message in printed
    assert {step for step, _ in states(out)} == {"ceilings"}


TESTS = """
import os, pytest

def test_right(): pass

def test_wrong():
    assert 1 == 2, "no"

@pytest.mark.skip(reason="no such thing")
def test_left_out(): pass

def test_counts():
    with open(os.environ["COUNTS"], "a") as file:
        file.write("x")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_each_test_is_a_cell_and_runs_once(workers, tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    out = tmp_path / "out"
    out.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(GPU.parent),
        "COUNTS": str(tmp_path / "counts"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "gpu.pytest_cells", f"--cells-in={out}", "-n", str(workers)]
    command += ["-p", "xdist", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path / "test_it.py")]
    for _ in range(2):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        found = {row["cell"].split("::")[1]: row for row in rows(out / "progress.csv")}
        assert {name.removeprefix("test_"): row["state"] for name, row in found.items()} == {
            "right": "done",
            "wrong": "failed",
            "left_out": "done",
            "counts": "done",
        }, done.stdout + done.stderr
        assert found["test_wrong"]["note"].startswith("AssertionError: no")
        assert found["test_left_out"]["note"] == "skipped: no such thing"
        assert (tmp_path / "counts").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--steps", "sums"], "there is no step 'sums'; there are ceilings, tests"),
        (["--out", "x", "--minutes", "0"], "takes minutes above 0, got 0"),
    ],
)
def test_bad_options_are_named(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, str(GPU), *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_teaches():
    done = subprocess.run([sys.executable, str(GPU), "--help"], capture_output=True, text=True, check=True)
    for words in (*STEPS, "--rehearse", "--prepare", "resumes", "summary.txt", "--minutes 9"):
        assert words in done.stdout


def test_a_peer_that_ends_processes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(GPU.parent))
    progress = importlib.import_module("gpu.progress").Progress(tmp_path, "speed")
    for group, n, note in (
        ("InfoNCE", 32, "LostContextError: inf-cl: CUDA error: an illegal memory access"),
        ("InfoNCE", 128, "it hung: more than 45 s"),
        ("sigmoid", 32, "it hung: more than 45 s"),
        ("sigmoid", 128, "its process died: SIGABRT"),
        ("VRN", 32, "ValueError: no"),
        ("VRN", 128, "ValueError: no"),
    ):
        progress.settle(f"{group}, N = {n}, d = 128, bfloat16", "failed", note)
    assert importlib.import_module("gpu.measure_speed")._culprits(progress) == ({"inf-cl"}, {"sigmoid"})


def test_a_summary_is_made_of_rows_of_a_gpu(tmp_path, monkeypatch):
    """Of rows as a GPU gives them: bounds, the best shapes, what the default is worth, and failures."""
    monkeypatch.syspath_prepend(str(GPU.parent))
    summary = importlib.import_module("gpu.summary")
    append = importlib.import_module("gpu.progress").append
    for name, value, unit in (("card", "H100", ""), ("copy", "3000", "GB/s"), ("bf16", "800", "TFLOP/s")):
        append(tmp_path / "ceilings.csv", {"cell": name, "name": name, "value": value, "unit": unit})
    speed = {"group": "NT-Xent", "loss": "varloss", "n": 16384, "d": 128, "dtype": "bfloat16", "median_s": "0.00103"}
    append(tmp_path / "speed.csv", {**speed, "over_varloss": "1.000", "peak_extra_mib": "20.0"})
    case = {"kernel": "gradient", "dim": 128, "dtype": "bfloat16", "vrn": "", "n": 8192, "rows": 64, "columns": 64}
    for warps, stages, default, us in ((4, 3, 1, "300"), (8, 2, 0, "250"), (4, 4, 0, "")):
        row = {**case, "warps": warps, "stages": stages, "default": default, "us": us}
        append(tmp_path / "tune.csv", {"cell": f"{warps} {stages}", **row})
    assert summary.write(tmp_path, ["memeff is missing"]) == 0
    text = (tmp_path / "summary.txt").read_text()
    # 12 N^2 D operations at 800 TFLOP/s take 0.515 ms.
    assert re.search(r"^NT-Xent +varloss +bfloat16 +128 +16384 +1.03 +1.000 +2.00 +20.0", text, flags=re.MULTILINE)
    assert re.search(r"VRN none +8192 +64x64 w8 s2 250 +64x64 w4 s3\* 300", text)
    assert re.search(r"VRN none +8192 +300 +250 +1.20 +64x64 w8 s2", text)
    assert "- memeff is missing" in text
    # Rows of another making are named, and the other tables stand.
    (tmp_path / "launches.csv").write_text("a\n1\n")
    assert summary.write(tmp_path, []) == 0
    assert "no table launches" in (tmp_path / "summary.txt").read_text()
    assert "Default against best" in (tmp_path / "summary.txt").read_text()


@pytest.mark.exhaustive  # a minute; a visit begins with the same
def test_rehearsal(tmp_path):
    """All steps at tiny sizes, killed in the middle of one and resumed."""
    out, wheels = tmp_path / "out", tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "memeff-0.3.1-py3-none-any.whl").write_text("not a wheel")
    arguments = ("--rehearse", "--minutes", "4", "--wheels", str(wheels))
    process = start(GPU, out, *arguments)
    wait_for(out, "launches", "NTXentLoss, N = 8, float32", "began")
    process.kill()
    process.communicate()
    time.sleep(0.5)
    code, printed = run(GPU, out, *arguments)
    assert code == 0, printed + (out / "visit.log").read_text()
    assert re.search(r"^tests +complete before", printed, flags=re.MULTILINE)
    assert "memeff is missing" in printed
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["ceilings.csv", "launches.csv", "progress.csv", "speed.csv", "summary.txt", "tests.xml", "visit.log"]
        + (["tune.csv"] if find_spec("triton") else [])
    )
    found = states(out)
    assert set(found.values()) == {"done"}
    assert {step for step, cell in found if cell == "*"} == set(STEPS)
    suites = ET.parse(out / "tests.xml").getroot()
    tests = [cell for step, cell in found if step == "tests" and cell != "*"]
    assert sum(int(suite.get("tests", 0)) for suite in suites) == len(tests) > 50
    launches = [(row["loss"], row["n"], row["dtype"]) for row in rows(out / "launches.csv")]
    assert len(set(launches)) == len(launches) >= 10
    assert {row["counts"] for row in rows(out / "launches.csv")} == {"operators"}
    speed = rows(out / "speed.csv")
    assert {(row["group"], row["n"], row["dtype"]) for row in speed} == {
        (group, n, dtype) for group, dtype in (("VRN", "bfloat16"), ("NT-Xent + VRN", "float32")) for n in ("8", "12")
    }
    assert "study speed --sizes 8 --dims 8 --groups VRN --dtype bfloat16" in speed[0]["command"]
    if find_spec("triton"):
        tuned = rows(out / "tune.csv")
        assert [row["default"] for row in tuned] == ["1", "0"] * 2
        assert all(float(row["us"]) > 0 and float(row["differs"]) < 1e-5 for row in tuned)
        assert re.search(r"^4 compiled by 2 processes", (out / "visit.log").read_text(), flags=re.MULTILINE)
    for title in ("Steps", "Machine and ceilings", "One forward and backward pass", "Speed;"):
        assert title in printed
