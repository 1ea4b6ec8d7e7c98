"""Runs of main_pretrain.py, of the stand-in beside this file or of a real checkout, and the count of the latter."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
STANDIN = HERE / "standin"
_COUNT = {"run": 0, "skipped": 0}


@dataclass(frozen=True)
class Run:
    """One finished run and the folder it wrote to."""

    rc: int
    out: str
    err: str
    folder: Path

    @property
    def said(self) -> list[str]:
        """The lines that varloss printed."""
        return [line for line in self.out.splitlines() if line.startswith("varloss: ")]

    @property
    def rows(self) -> list[dict[str, str]]:
        """Logged numbers as text, so that equal means equal to the last digit."""
        (path,) = self.folder.rglob("metrics.csv")
        with path.open() as file:
            return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]

    def steps(self, name: str) -> list[float]:
        """The values of one metric, step by step."""
        return [float(row[f"{name}_step"]) for row in self.rows if f"{name}_step" in row]

    @property
    def after(self) -> dict[str, Any]:
        """What the stand-in left about its model and configuration."""
        found: dict[str, Any] = json.loads((self.folder / "after.json").read_text())
        return found


def environment(**extra: str) -> dict[str, str]:
    """Ours, with one thread, full Hydra tracebacks and no compiled files in a checkout."""
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HYDRA_FULL_ERROR": "1"}
    return {**os.environ, **fixed, **extra}


def drive(root: Path, python: str, folder: Path, lines: Mapping[str, list[str]]) -> dict[str, Run]:
    """Runs the command lines (name -> arguments) of ``root``'s main_pretrain.py in one interpreter.

    ``{out}`` in an argument stands for the run's own folder.
    """
    folders = {name: folder / name for name in lines}
    for place in folders.values():
        place.mkdir(parents=True)
    asked = [[part.replace("{out}", str(folders[name])) for part in parts] for name, parts in lines.items()]
    report = folder / "report.json"
    command = [python, str(HERE / "driver.py"), str(root), str(report)]
    done = subprocess.run(
        command, input=json.dumps(asked), cwd=root, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(report.read_text())
    return {name: Run(folder=folders[name], **said) for name, said in zip(lines, reports, strict=True)}


Standin = Callable[[Mapping[str, list[str]]], dict[str, Run]]


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Standin:
    """Runs the stand-in with its small configuration."""

    def run(lines: Mapping[str, list[str]]) -> dict[str, Run]:
        always = ["--config-path", str(STANDIN), "--config-name", "mini.yaml", "out={out}"]
        asked = {name: [*always, *parts] for name, parts in lines.items()}
        return drive(STANDIN, sys.executable, tmp_path_factory.mktemp("standin"), asked)

    return run


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The solo-learn checkout that SOLO_LEARN_ROOT names."""
    root = os.environ.get("SOLO_LEARN_ROOT")
    if not root:
        pytest.skip("SOLO_LEARN_ROOT names no solo-learn checkout")
    found = Path(root).resolve()
    assert (found / "main_pretrain.py").is_file(), f"SOLO_LEARN_ROOT={root} is no solo-learn checkout"
    return found


@pytest.fixture(scope="session")
def solo_python() -> str:
    """The interpreter of the environment in which solo-learn runs."""
    return os.environ.get("SOLO_LEARN_PYTHON", sys.executable)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts the tests against the real solo-learn."""
    if "solo_root" in report.keywords:
        if report.skipped:
            _COUNT["skipped"] += 1
        elif report.when == "call":
            _COUNT["run"] += 1


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Says at the very end, after pytest's own last line, how many ran: a skip must not go unnoticed."""
    if not any(_COUNT.values()):
        return
    if _COUNT["skipped"]:
        print("!!! The tests against the real solo-learn DID NOT ALL RUN. Set SOLO_LEARN_ROOT to a checkout, and")
        print("!!! SOLO_LEARN_PYTHON to the interpreter of its environment: see docs/solo-learn.md.")
    print(f"solo-learn: {_COUNT['run']} run, {_COUNT['skipped']} skipped", flush=True)
