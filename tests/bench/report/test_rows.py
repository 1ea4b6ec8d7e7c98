"""One row per trial, as CSV and as Parquet."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from support.sweeps import report

from varloss_bench.report.groups import read
from varloss_bench.report.rows import tables

pytestmark = pytest.mark.usefixtures("no_figures")


def test_tables_have_a_row_per_trial_and_agree(folder):
    path = folder()
    report(path)
    number = len(list((path / "trials").iterdir()))
    csv, parquet = pd.read_csv(path / "rows.csv"), pd.read_parquet(path / "rows.parquet")
    assert len(csv) == len(parquet) == number == 2 * 2 * 7 * 3 + 2 * 3
    for column in (
        "config.weight",
        "config.seed",
        "metrics.few_label_probe",
        "environment.versions.torch",
        "final_loss",
        "command",
    ):
        assert column in csv.columns
        assert column in parquet.columns
    assert np.allclose(csv["metrics.few_label_probe"], parquet["metrics.few_label_probe"].astype(float))
    one = json.loads((path / "trials" / parquet["file"][5]).read_text())
    assert parquet["metrics.few_label_probe"][5] == one["metrics"]["few_label_probe"]
    assert parquet["config.batch_size"][5] == one["config"]["batch_size"]


def test_columns_of_mixed_kinds_are_text(folder):
    kinds = iter([1, "one", None, 2.5, True] * 100)
    path = folder(seeds=[0], changes=lambda config: {"note": next(kinds)})
    _csv, parquet = tables(read(path).trials)
    assert {"1", "one", "2.5", "True"} <= set(pd.read_parquet(io.BytesIO(parquet))["note"].dropna())
