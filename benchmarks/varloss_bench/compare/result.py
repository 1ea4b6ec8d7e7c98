"""The result of `compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from varloss_bench.report.verdict import summary_lines
from varloss_bench.statistics import summary

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        folder: Folder of records, table, figure and page.
        summary: Rows and comparisons as objects, with every seed's value.
    """

    folder: Path
    summary: summary.Summary

    @property
    def rows(self) -> "DataFrame":
        """One row per arm: method, batch size, temperature, weight, failures, and mean and interval of each metric."""
        return pd.json_normalize(summary.to_dict(self.summary)["rows"])

    @property
    def comparisons(self) -> "DataFrame":
        """One row per pair of arms and metric: the difference, its interval, the corrected p value and the verdict."""
        return pd.json_normalize(summary.to_dict(self.summary)["comparisons"])

    @property
    def verdict(self) -> str:
        """The answer in a few sentences."""
        return "\n".join(summary_lines(self.summary))

    @property
    def figure(self) -> Path:
        """The figure of the sweep, a PNG file."""
        return self.folder / "figure.png"

    @property
    def crashed(self) -> int:
        """Number of trials without a result."""
        return sum(len(row.crashed) for row in self.summary.rows)
