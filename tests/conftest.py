"""Configuration of the suite: one thread per process, selection of tests, their workers, and the summary after a run."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache

# Set before torch is imported, here and in every process that a test starts, because pytest-xdist runs one worker per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from support import exhaustive

# Marker of tests that need a checkout of another repository -> how to run them.
CHECKOUTS = {
    "lightly_root": "lightly's own tests: set LIGHTLY_ROOT to a checkout of lightly",
    "solo_root": "tests against the real solo-learn: set SOLO_LEARN_ROOT and SOLO_LEARN_PYTHON, see docs/solo-learn.md",
}
_outcomes: Counter[tuple[str, str]] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    """Runs before test modules are imported, because they read the number of examples."""
    exhaustive.WANTED = "exhaustive" in config.option.markexpr


def pytest_report_header() -> str | None:
    return None if exhaustive.WANTED else "exhaustive tests are left out: pytest -m exhaustive runs them"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect exhaustive tests by default, group tests that share fixtures for pytest-xdist, and start slow tests first."""
    for item in items:
        if exhaustive.WANTED and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("exhaustive")  # the same test, with more examples
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
        if item.get_closest_marker("cuda") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if not exhaustive.WANTED:
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        # If a slow test starts last, the other workers wait for it.
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """A pytest that pytest-xdist cannot group tests under would make their fixtures once for each worker, and say nothing."""
    if hasattr(session.config, "workerinput") and session.config.getoption("loadgroup"):
        alone = [
            item.nodeid for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid
        ]
        assert not alone, f"pytest-xdist does not keep together what belongs together, such as {alone[0]}"


@cache
def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _group(item: pytest.Item) -> str | None:
    """Tests that share a fixture of their module or session run on one worker, so that the fixture is made once."""
    if item.get_closest_marker("xdist_group") or not isinstance(item, pytest.Function):
        return None
    definitions = item._fixtureinfo.name2fixturedefs
    shared = {
        name for name, found in definitions.items() if found[-1].scope in ("module", "session") and found[-1].baseid
    }
    if not shared:
        return None
    # A fixture with parameters is made once for each parameter.
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return "-".join([item.path.stem, *(str(parameters[name]) for name in sorted(shared & parameters.keys()))])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for marker in CHECKOUTS.keys() & report.keywords.keys():
        if report.skipped:
            _outcomes[marker, "skipped"] += 1
        elif report.when == "call":
            _outcomes[marker, "run"] += 1


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the tests that did not run after pytest's own last line, so that skips are noticed."""
    if hasattr(config, "workerinput"):
        return
    for marker, remedy in CHECKOUTS.items():
        run, skipped = (_outcomes[marker, outcome] for outcome in ("run", "skipped"))
        if skipped:
            print(f"!!! NOT ALL RUN: {remedy}")
        if run or skipped:
            print(f"{marker}: {run} run, {skipped} skipped", flush=True)
