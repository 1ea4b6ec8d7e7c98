"""The files of a report."""

import shlex
from pathlib import Path

from varloss_bench.records.store import write_atomically
from varloss_bench.report import page
from varloss_bench.report.groups import Found
from varloss_bench.report.rows import tables
from varloss_bench.report.sections import Section, sections

FILES = ("report.html", "report.md", "rows.csv", "rows.parquet")


def write(found: Found, folder: Path, target: Path, command: list[str]) -> list[Section]:
    """Make all files, then write them: an error while they are made leaves the earlier files as they are."""
    words = shlex.join(command)
    parts = sections(found)
    csv, parquet = tables(found.trials)
    contents: tuple[str | bytes, ...] = (
        page.html(found, parts, folder, words),
        page.markdown(found, parts, folder, words),
        csv,
        parquet,
    )
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(target / name, content)
    return parts
