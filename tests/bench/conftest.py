"""Warnings of third parties that training in this process raises; everywhere else a warning is an error."""

import pytest

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
