"""Warnings of third parties that training in this process raises (everywhere else a warning is an error); a server of files."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support import forked

from varloss_bench.execution import workers

TRAINING_WARNINGS = (
    # Lightning: our loader hands out finished batches of tensors, workers would only copy them.
    "ignore:.*does not have many workers.*",
    # Lightning 2.6 against newer torch pytrees.
    "ignore:.*isinstance\\(treespec, LeafSpec\\).*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Apply them to the tests marked `trains` by their fixture."""
    for item in items:
        if "trains" in getattr(item, "fixturenames", ()):
            for warning in TRAINING_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture
def trains() -> None:
    """The test trains in this process."""


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of this process start at once. Tests that run the command as a process see how they are spawned."""
    monkeypatch.setattr(workers, "SPAWN", forked.context())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """A server that writes nothing to stderr."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a local server for its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
