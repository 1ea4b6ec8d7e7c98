"""The pages of the documentation, and the code they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "benchmarks/README.md",
        "benchmarks/recipes/README.md",
        "benchmarks/gpu/README.md",
        "benchmarks/results/*/README.md",
        "integrations/*.md",
    )
    for page in ROOT.glob(pattern)
)

# What the tests' extra leaves out, because of all it brings along.
TOO_HEAVY = {"stable_pretraining": "pip install stable-pretraining"}


def skip_without(modules: set[str]) -> None:
    """Skips the test, with what to do, where one of these libraries cannot be had."""
    if "sentence_transformers" in modules and torch.__version__ < (2, 6):
        pytest.skip(f"sentence_transformers: its transformers needs torch 2.6, and this is {torch.__version__}")
    for module in sorted(modules & TOO_HEAVY.keys()):
        pytest.importorskip(module, reason=f"{module} is not installed: {TOO_HEAVY[module]}")


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's fenced blocks of these languages, in order."""
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [text for language, text in fences if language in languages]
