"""Fixtures of the solo-learn tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support.solo.runs import STANDIN, Run, drive

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
