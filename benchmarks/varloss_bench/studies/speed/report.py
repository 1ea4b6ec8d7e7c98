"""Rows of `varloss-bench study speed` as a table and figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from varloss_bench.messages import say
from varloss_bench.report.figures.style import COLOURS
from varloss_bench.studies.speed.losses import GROUPS
from varloss_bench.studies.speed.run import FLOOR

_COLOURS = {
    "varloss": COLOURS[0],
    "varloss without VRN": "#7FB8D8",
    "lightly": COLOURS[1],
    "lightly + mask VRN": COLOURS[1],
    "solo-learn's formula": COLOURS[2],
    "pytorch-metric-learning": COLOURS[3],
    "boolean mask": COLOURS[4],
    "inf-cl": COLOURS[5],
    "memeff": "#F0E442",
    "siglip-kernel": "#F0E442",
    "compiled formula": "#7A5195",
    "plain formula": COLOURS[2],
    FLOOR: "#888888",
}


def latest(path: Path) -> pd.DataFrame:
    """The latest row of each loss, size, dimension, type and device; a missing memory is taken from an earlier row."""
    rows = pd.read_csv(path)
    keys = ["group", "loss", "n", "d", "dtype", "device", "threads"]
    rows["peak_extra_mib"] = rows.groupby(keys)["peak_extra_mib"].ffill()
    rows = rows.drop_duplicates(keys, keep="last")
    rows["group"] = pd.Categorical(rows["group"], list(GROUPS), ordered=True)
    return rows.sort_values(["d", "group", "n"], kind="stable")


def report(folder: Path, console: Console) -> None:
    """Print the table and write one figure per dimension."""
    rows = latest(folder / "rows.csv")
    console.print(_table(rows))
    for path in _draw(rows, folder):
        say(console, f"figure: {path}")


def _table(rows: pd.DataFrame) -> Table:
    table = Table(title="Forward + backward; 'times varloss' and 'times floor' are ratios of medians")
    for title in ("loss", "by", "d", "N", "median", "times varloss", "times floor", "peak extra"):
        table.add_column(title, justify="left" if title in ("loss", "by") else "right")
    previous = None
    for row in rows.itertuples():
        if previous not in (None, (row.group, row.n)):
            table.add_section()
        previous = (row.group, row.n)
        table.add_row(
            row.group,
            row.loss,
            str(row.d),
            str(row.n),
            f"{row.median_s * 1e3:.3g} ms",
            f"{row.over_varloss:.2f}",
            f"{row.over_floor:.2f}",
            "" if pd.isna(row.peak_extra_mib) else f"{row.peak_extra_mib:.0f} MiB",
        )
    return table


def _draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure per dimension: time above, memory below, a column per group."""
    written = []
    for d, of_dimension in rows.groupby("d"):
        groups = [g for g in dict.fromkeys(of_dimension["group"]) if (of_dimension["group"] == g).any()]
        figure = Figure(figsize=(3.4 * len(groups) + 0.6, 6.2), layout="constrained")
        axes = figure.subplots(2, len(groups), squeeze=False, sharex="col", sharey="row")
        for column, group in enumerate(groups):
            chosen = of_dimension[of_dimension["group"] == group]
            for name, line in chosen.groupby("loss", sort=False):
                style = {"color": _COLOURS[str(name)], "marker": "" if name == FLOOR else "o", "ms": 4}
                style["ls"] = "--" if name == FLOOR else "-"
                axes[0][column].plot(line["n"], line["median_s"] * 1e3, label=name, **style)
                if name != FLOOR and line["peak_extra_mib"].notna().any():
                    axes[1][column].plot(line["n"], line["peak_extra_mib"].clip(lower=0.1), **style)
            axes[0][column].set_title(group)
            axes[0][column].legend(fontsize=8, frameon=False)
            axes[1][column].set_xlabel("N, rows per view")
            for axis in axes[:, column]:
                axis.set_xscale("log", base=2)
                axis.set_yscale("log")
                axis.grid(alpha=0.25)
        axes[0][0].set_ylabel("forward + backward, ms")
        axes[1][0].set_ylabel("peak memory above inputs, MiB")
        first = of_dimension.iloc[-1]
        unit = "thread" if first["threads"] == 1 else "threads"
        figure.suptitle(f"d = {d}, {first['dtype']}, {first['device']}, {first['threads']} CPU {unit}", fontsize=10)
        path = folder / f"speed-d{d}.png"
        figure.savefig(path, dpi=130)
        written.append(path)
    return written
