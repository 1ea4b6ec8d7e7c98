"""The examples of the loss pages run as they stand, and every loss has its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import varloss

PAGES = sorted((Path(__file__).parent.parent / "docs" / "losses").glob("[a-z]*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        values = [value for value in names.values() if isinstance(value, torch.Tensor) and value.ndim == 0]
        assert values
        assert all(value.isfinite() for value in values)


def test_every_loss_module_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    losses = [name for name in varloss.__all__ if name.endswith("Loss") and name != "VRNLoss"]
    assert len(losses) >= 9
    assert [name for name in losses if f"varloss.{name}(" not in text] == []
