"""Runs of main_pretrain.py, of the stand-in beside this file or of a real checkout."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STANDIN = HERE / "standin"


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
        """The stand-in's description of its model and configuration."""
        found: dict[str, Any] = json.loads((self.folder / "after.json").read_text())
        return found


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with one thread, full Hydra tracebacks and no compiled files in a checkout."""
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
