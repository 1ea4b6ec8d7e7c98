"""Find solo-learn, check that it can run with varloss, and read its versions. This module does not import solo-learn."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT_VARIABLE, PYTHON_VARIABLE = "SOLO_LEARN_ROOT", "SOLO_LEARN_PYTHON"
_CLONE = "git clone https://github.com/vturrisi/solo-learn"
_DISTRIBUTIONS = ("varloss", "torch", "torchvision", "lightning", "hydra-core", "timm")
# The first digest is the one of `provenance`: solo-learn may use another copy of varloss than the harness.
_VERSIONS = f"""
import hashlib, importlib.metadata, importlib.util, json, pathlib, platform
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
def digest(package, *suffixes):
    sha = hashlib.sha256()
    for folder in importlib.util.find_spec(package).submodule_search_locations:
        for path in sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix in suffixes):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:12]
sources = {{"varloss_source": digest("varloss", ".py"), "varloss_solo_source": digest("varloss_solo", ".py", ".yaml")}}
versions = {{"python": platform.python_version()}} | {{name: version(name) for name in {_DISTRIBUTIONS}}}
print(json.dumps({{"versions": versions, **sources}}))
"""


@dataclass(frozen=True)
class SoloLearn:
    """A checkout of solo-learn and the interpreter that runs it.

    Attributes:
        root: Folder of main_pretrain.py.
        python: Interpreter of an environment with solo-learn's requirements and varloss.
    """

    root: Path
    python: str

    @classmethod
    def from_variables(cls, variables: Mapping[str, str] = os.environ) -> "SoloLearn":
        """The checkout SOLO_LEARN_ROOT with the interpreter SOLO_LEARN_PYTHON (by default this interpreter).

        Raises:
            ValueError: SOLO_LEARN_ROOT is unset or not a checkout.
        """
        given = variables.get(ROOT_VARIABLE)
        if not given:
            raise ValueError(
                f"--framework solo needs a checkout of solo-learn: {_CLONE}, then set {ROOT_VARIABLE} to its folder "
                f"and {PYTHON_VARIABLE} to the Python of its environment (docs/solo-learn.md)"
            )
        root = Path(given).resolve()
        if not (root / "main_pretrain.py").is_file() or not (root / "solo" / "methods").is_dir():
            raise ValueError(
                f"{ROOT_VARIABLE}={given} is not a checkout of solo-learn: main_pretrain.py or solo/methods is missing"
            )
        return cls(root, variables.get(PYTHON_VARIABLE) or sys.executable)

    def check(self) -> None:
        """Run `varloss-solo doctor` in that environment, without its training step.

        Raises:
            ValueError: solo-learn would not run there, or would run without varloss; the message says what to do.
        """
        done = self._ask("-m", "varloss_solo", "doctor", "--no-run", "--root", str(self.root))
        if "No module named varloss_solo" in done.stderr:
            raise ValueError(
                f"varloss is not installed for {self.python}, which would run solo-learn; install it there "
                f"(docs/solo-learn.md), or set {PYTHON_VARIABLE} to another interpreter"
            )
        if done.returncode:
            failed = _failures(done.stdout) or done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ValueError(f"solo-learn cannot run in {self.root} with {self.python}:\n" + "\n".join(failed))

    def described(self) -> dict[str, Any]:
        """Commit of the checkout, and versions and digests of its environment, for the record."""
        return _described(self)

    def command(self, *arguments: str) -> list[str]:
        """Command line of main_pretrain.py; run it in `root`."""
        return [self.python, "main_pretrain.py", *arguments]

    def _ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                [self.python, *arguments], env=environment(), capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise ValueError(f"{PYTHON_VARIABLE}={self.python} cannot be run: {error}") from error


def environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment; Python writes no compiled files into the checkout."""
    own = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if threads is not None:
        own |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return own


@lru_cache(maxsize=1)
def _described(solo: SoloLearn) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(solo._ask("-c", _VERSIONS).stdout)
    return {"git": _git(solo.root), **found}


def _git(root: Path) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _failures(report: str) -> list[str]:
    """The doctor's lines about failures, each with the command that fixes it."""
    found: list[str] = []
    for line in report.splitlines():
        if line.startswith("[FAIL] "):
            found.append(line.removeprefix("[FAIL] "))
        elif found and line.strip().startswith("type: ") and "; type: " not in found[-1]:
            found[-1] += f"; type: {line.strip().removeprefix('type: ')}"
    return found
