"""The result of `tune`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from varloss_bench.tune import report
from varloss_bench.tune.search import Outcome
from varloss_bench.tune.train import Plan

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        folder: Folder of trials, tune.txt and tune.json.
        outcomes: All candidates of both searches.
        plan: How they were trained.
        budget: Epochs of each search.
    """

    folder: Path
    outcomes: Mapping[str, Sequence[Outcome]]
    plan: Plan
    budget: int

    @property
    def rows(self) -> "DataFrame":
        """One row per candidate: search, weight, temperature, score (of the last rung, if it finished), state."""
        searches = report.to_dict(self.outcomes, self.plan, self.budget)["searches"]
        return pd.DataFrame([{"search": name, **row} for name, rows in searches.items() for row in rows])

    @property
    def verdict(self) -> str:
        """The choice and the baseline in a few sentences."""
        return "\n".join(report.words(self.outcomes, self.plan, self.budget))

    @property
    def test_with(self) -> str | None:
        """The command that tests the choice on new seeds; None if nothing was chosen."""
        found: str | None = report.to_dict(self.outcomes, self.plan, self.budget)["test_with"]
        return found
