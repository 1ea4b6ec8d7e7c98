"""Tests in a short form by default and in full with ``pytest -m exhaustive``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings

# Set by conftest.py before any test module is imported.
WANTED = False

# All hypothesis tests together may take two minutes of one core by default, and an hour in the exhaustive run.
TIMES_AS_MANY = 60
# A part of the examples, for the mutants of tests/project/mutation.
PART = float(os.environ.get("VARLOSS_TEST_EXAMPLES", "1"))


def examples(number: int) -> Callable[..., Any]:
    """Hypothesis tries ``number`` examples, the same ones in every run, or in the exhaustive run many more, at random.

    A failure prints the example, and the ``@reproduce_failure`` line that repeats it. The exhaustive run keeps what failed in
    ``.hypothesis``, and tries that first.
    """
    if WANTED:
        return settings(deadline=None, print_blob=True, max_examples=TIMES_AS_MANY * number)
    return settings(deadline=None, print_blob=True, derandomize=True, max_examples=max(1, round(PART * number)))
