"""One flat row per trial, as CSV and as Parquet."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow  # noqa: F401  (imported here, its absence is an error that names the package)

from varloss_bench.report.groups import Trial, flat

# Not columns of a table of trials: data of figures and the text of an exception.
_NO_COLUMNS = ("drawn", "epoch_losses", "traceback", "schema")


def rows(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """One flat row per trial: configuration, metrics, seconds, environment, confounds, file.

    Names of nested values are joined by dots. Lists (the command) are JSON. A value that a record lacks is missing.
    """
    return [
        {
            "file": trial.file,
            "protocol": trial.protocol,
            **flat({name: value for name, value in trial.record.items() if name not in _NO_COLUMNS}),
            **({"final_loss": losses[-1]} if (losses := trial.record.get("epoch_losses")) else {}),
        }
        for trial in trials
    ]


def tables(trials: Iterable[Trial]) -> tuple[str, bytes]:
    """The rows as CSV and as Parquet. A column with several types of values becomes text."""
    frame = pd.DataFrame(rows(trials)).convert_dtypes()
    for column in frame:
        if frame[column].dtype == object:
            frame[column] = frame[column].map(str, na_action="ignore").astype("string")
    return str(frame.to_csv(index=False)), bytes(frame.to_parquet(index=False, engine="pyarrow"))
