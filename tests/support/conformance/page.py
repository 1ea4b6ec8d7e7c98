"""The tables of docs/conformance.md, from the record.

``PYTHONPATH=tests python -m support.conformance`` measures all cells and writes both; tests hold the three together.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from support.conformance.grid import MECHANISMS
from support.conformance.record import Cells, all_subjects

PAGE = Path(__file__).parents[3] / "docs" / "conformance.md"
MARKED = re.compile(r"(?<=<!-- measured by tests/support/conformance -->\n\n).*?(?=\n\n<!-- end -->)", re.DOTALL)
# Column -> packages.
COLUMNS = {
    "varloss": ("varloss",),
    "its adapters": ("varloss_lightly", "varloss_metric_learning"),
    "lightly": ("lightly",),
    "pytorch-metric-learning": ("pytorch-metric-learning",),
}
SIGNS = {"right": "✓", "error": "!", "not run": "–", "red": "✗"}


def summary(outcomes: list[str]) -> str:
    """One sign and number for each kind of outcome, and what it is where it is not right."""
    found = []
    for outcome, number in Counter(outcomes).most_common():
        state, _, kind = outcome.partition(": ")
        found.append(f"{SIGNS[state]} {number}" + (f" {kind}" if kind else ""))
    return "; ".join(found)


def by_mechanism(cells: Cells) -> str:
    packages = {name: subject.package for name, subject in all_subjects().items()}
    lines = [" | ".join(["|", *COLUMNS]) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    group = ""
    for mechanism in MECHANISMS.values():
        if mechanism.group != group:
            group = mechanism.group
            lines.append(f"| **{group}** |" + " |" * len(COLUMNS))
        texts = [
            summary([found for (m, s), found in cells.items() if m == mechanism.name and packages[s] in of])
            for of in COLUMNS.values()
        ]
        lines.append("| " + " | ".join([mechanism.label, *texts]) + " |")
    return "\n".join(lines)


def by_subject(cells: Cells) -> str:
    states = {"right": "✓ right", "error": "! named error", "not run": "– not run", "red": "✗ wrong"}
    lines = ["| loss | " + " | ".join(states.values()) + " |", "|---" * (len(states) + 1) + "|"]
    for name in all_subjects():
        counts = Counter(found.partition(":")[0] for (_, s), found in cells.items() if s == name)
        lines.append(f"| {name} | " + " | ".join(str(counts[state] or "") for state in states) + " |")
    return "\n".join(lines)


def tables(header: str, cells: Cells) -> str:
    ours = [found for (_, s), found in cells.items() if all_subjects()[s].is_ours]
    right, named, left, red = (sum(f.startswith(state) for f in ours) for state in SIGNS)
    counts = f"{len(ours)} cells of varloss and its adapters: {right} right, {named} a named error, {left} not run here, {red} wrong."
    return "\n\n".join([f"{header}.", counts, by_mechanism(cells), by_subject(cells)])


def write(header: str, cells: Cells) -> None:
    PAGE.write_text(MARKED.sub(lambda _: tables(header, cells), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
