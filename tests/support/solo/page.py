"""The commands that docs/solo-learn.md shows."""

from __future__ import annotations

import re
import shlex

from support.doc_examples import ROOT, blocks

PAGE = ROOT / "docs" / "solo-learn.md"


def on_the_page() -> list[list[str]]:
    """Words of every main_pretrain.py command in a block, with continued lines joined."""
    lines = [line for block in blocks(PAGE, "bash") for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python main_pretrain.py")]
