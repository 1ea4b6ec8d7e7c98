"""Results committed in this repository keep their names and can still be read."""

import json
from pathlib import Path

import pandas as pd
import pytest

from varloss_bench.config import TrialConfig
from varloss_bench.records.planned import check_config
from varloss_bench.records.store import Store

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
RECORDS = sorted(RESULTS.glob("*/trials/*.json"))
TABLES = sorted(path for pattern in ("*/rows.csv", "*/rows.parquet") for path in RESULTS.glob(pattern))


def test_records_are_found_under_the_keys_of_their_configurations():
    assert len(RECORDS) >= 32
    for path in RECORDS:
        record = json.loads(path.read_text())
        config = TrialConfig.from_dict(record["config"])
        assert config.key() == record["key"], path
        assert path.stem == config.file_stem(), path
        # A sweep looks trials up in this form; in another form it would not find the record.
        assert config.canonical() == config, path
        check_config(config)
        assert Store(path.parents[1]).load([config]).done(config), path


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_rows_of_tables_have_the_keys_of_their_configurations(path):
    rows = pd.read_csv(path, dtype_backend="numpy_nullable") if path.suffix == ".csv" else pd.read_parquet(path)
    if "key" not in rows:
        pytest.skip("not a table of trials")
    kinds = TrialConfig.__annotations__
    for row in rows.to_dict("records"):
        values = {name: None for name in kinds if TrialConfig.__dataclass_fields__[name].default is None}
        for column, value in row.items():
            name = column.removeprefix("config.")
            # An empty cell is None, or a field that did not exist yet.
            if name != column and not pd.isna(value):
                (kind,) = {bool, int, float, str} & {kinds[name], *getattr(kinds[name], "__args__", ())}
                values[name] = kind(value)
        assert TrialConfig.from_dict(values).key(row["protocol"]) == row["key"], row["file"]
