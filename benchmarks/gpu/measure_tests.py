"""The tests that need a CUDA device, each a cell: a crash in one of them leaves the others to the next process."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest

from gpu.measure_ceilings import unfit
from gpu.progress import repair
from gpu.steps import Visit

ROOT = Path(__file__).parents[2]
FOLDER = "tests/core"
MARKER = "mark.cuda"
# Each has a CUDA context of its own.
MOST_WORKERS = 8
# A warning of a newer torch or a missing plugin is no finding here; that the kernels are given up is one.
WARNINGS = ("default", "error:varloss does without its Triton kernels")


def work(visit: Visit) -> int:
    """Run the step."""
    if code := unfit(visit):
        return code
    repair(visit.folder / "progress.csv")
    found = [path for path in sorted((ROOT / FOLDER).glob("test_*.py")) if MARKER in path.read_text(encoding="utf-8")]
    if visit.rehearse:
        found = found[-1:]
    report = visit.folder / "tests.part"
    arguments = [*map(str, found), "-m", "cuda", "-v", "--tb=short", f"--junitxml={report}", f"--rootdir={ROOT}"]
    # The project's own options name plugins that a bare machine lacks.
    arguments += ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider"]
    arguments += ["-p", "gpu.pytest_cells", f"--cells-in={visit.folder}"]
    if find_spec("xdist") is not None:
        arguments += ["-n", str(0 if visit.rehearse else max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // 2)))]
    for warning in WARNINGS:
        arguments += ["-W", warning]
    code = int(pytest.main(arguments))
    _join(report, visit.folder / "tests.xml")
    # Failed tests are rows. Where nothing is left to run, nothing is collected.
    good = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}
    return 0 if code in good else code


def _join(report: Path, path: Path) -> None:
    """Add a session's suites to those of earlier ones."""
    if not report.exists():
        return
    new = ET.parse(report).getroot()
    if path.exists():
        whole = ET.parse(path).getroot()
        whole.extend(suite for suite in new if suite.get("tests") != "0")
        new = whole
    report.write_bytes(ET.tostring(new))
    report.replace(path)
