"""Fixtures of the solo-learn tests, and the count of those that ran against the real one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support.solo.runs import STANDIN, Run, drive

_COUNT = {"run": 0, "skipped": 0}

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
