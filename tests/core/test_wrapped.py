"""A loss with what it learns inside DistributedDataParallel and FSDP: values and gradients are those without a wrapper."""

from __future__ import annotations

import pytest
from support import group_ranks, ranks, wrapped_ranks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run(2, tmp_path_factory.mktemp("wrapped"), wrapped_ranks.everything, timeout=group_ranks.TIMEOUT)


@pytest.mark.parametrize("calls", wrapped_ranks.CALLS)
@pytest.mark.parametrize("wrapper", wrapped_ranks.WRAPPERS)
def test_wrapped_loss_is_the_loss(wrapper, calls, found):
    cells = [
        (cell, outcome) for result in found for cell, outcome in result.items() if f"{wrapper} / {calls} /" in cell
    ]
    assert cells
    if all(outcome.startswith("not run") for _, outcome in cells):
        pytest.skip(f"this torch does not run it on CPUs: {cells[0][1]}")
    assert {cell: outcome for cell, outcome in cells if outcome != "right"} == {}
