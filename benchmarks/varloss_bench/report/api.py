"""`varloss_bench.report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varloss_bench.report.result import Report


def report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the results of a folder as one page, Markdown, CSV and Parquet: `varloss-bench report`.

    Args:
        folder: What `compare` wrote; its records are in `trials`.
        output: Folder of the report's files; by default `folder` itself.

    Raises:
        ValueError: There are no records.
        OSError: The report cannot be written.

    Example::

        import varloss_bench as vb

        found = vb.report("comparison")
        print(found.verdict)
        print(found.page)
    """
    from varloss_bench.report import files, groups
    from varloss_bench.report.result import Report

    target = Path(output or folder)
    words = ["varloss-bench", "report", str(folder), *(["--output", str(output)] if output else [])]
    found = groups.read(Path(folder))
    return Report(target, found, files.write(found, Path(folder), target, words))
