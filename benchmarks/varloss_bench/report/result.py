"""What `report` read and wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from varloss_bench.report.groups import Found
from varloss_bench.report.rows import rows
from varloss_bench.report.sections import Section

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Report:
    """What `report` read and wrote.

    Attributes:
        folder: Of the files.
        found: The records, and the files that were left out with the reason.
        sections: One per set of comparable trials.
    """

    folder: Path
    found: Found
    sections: Sequence[Section]

    @property
    def rows(self) -> "DataFrame":
        """One row per trial: configuration, metrics, seconds, environment."""
        return pd.DataFrame(rows(self.found.trials))

    @property
    def verdict(self) -> str:
        """The answer of each section in a few sentences."""
        return "\n\n".join("\n".join(section.verdict) for section in self.sections)

    @property
    def page(self) -> Path:
        """The page with every figure, one HTML file."""
        return self.folder / "report.html"
