"""Tests in a short form by default and in full with ``pytest -m exhaustive``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings

# Set by conftest.py before any test module is imported.
WANTED = False


def examples(number: int) -> Callable[..., Any]:
    """Hypothesis tries ``number`` examples, or 30 times as many in the exhaustive run."""
    return settings(deadline=None, max_examples=30 * number if WANTED else number)
