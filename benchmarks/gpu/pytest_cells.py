"""Plugin of pytest: each test is a cell of the step `tests`, and those that are settled are left out. With xdist or without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu.progress import DONE, FAILED, Progress
from gpu.steps import BROKEN, complain, is_lost


def pytest_addoption(parser: pytest.Parser) -> None:
    """The folder of the rows."""
    parser.addoption("--cells-in", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """A worker of xdist leaves tests out; the process that hears of all results writes them."""
    config.pluginmanager.register(_Cells(config.getoption("--cells-in"), writes=not hasattr(config, "workerinput")))


class _Cells:
    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.progress, self.writes = Progress(folder, "tests"), writes
        self.found: dict[str, tuple[str, str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        settled = self.progress.settled()
        items[:] = [item for item in items if item.nodeid not in settled]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.writes:
            self.progress.began(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self.writes:
            return
        if report.failed:
            self.progress.settle(report.nodeid, FAILED, _reason(report.longreprtext))
            self.found[report.nodeid] = (FAILED, "")
            if is_lost(RuntimeError(report.longreprtext)):
                # No other test can pass in this process.
                complain(f"{report.nodeid} lost the CUDA context")
                os._exit(BROKEN)
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.found[report.nodeid] = (DONE, f"skipped: {why.removeprefix('Skipped: ')}")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        state, note = self.found.get(nodeid, (DONE, ""))
        if self.writes and state == DONE:
            self.progress.settle(nodeid, DONE, note)


def _reason(text: str) -> str:
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return errors[0] if errors else (text.strip().splitlines() or ["no reason given"])[-1]
