"""Tables and figures of `varloss-bench study trends`: means over seeds, and whether each trend appears."""

import io
import itertools
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from varloss_bench.config import TrialConfig
from varloss_bench.report.figures.style import COLOURS
from varloss_bench.report.labels import equal_words
from varloss_bench.studies.trends.run import BATCH_SIZES, TEMPERATURES, WEIGHTS

Row = dict[str, Any]


def _of(rows: list[Row], name: str, key: Callable[[Row], bool]) -> list[float]:
    return [row[name] for row in rows if key(row)]


def _at_batch(rows: list[Row], name: str, batch_size: int, weight: float) -> list[float]:
    def fits(row: Row) -> bool:
        config = row["config"]
        return row["trend"] == "batch size" and (config["batch_size"], config["weight"]) == (batch_size, weight)

    return _of(rows, name, fits)


def _at_temperature(rows: list[Row], name: str, temperature: float) -> list[float]:
    return _of(rows, name, lambda row: row["trend"] == "temperature" and row["config"]["temperature"] == temperature)


def _cell(values: Sequence[float], digits: int = 4) -> str:
    spread = f" ±{stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def _monotone(means: Sequence[float], rising: bool) -> bool:
    return all(a < b if rising else a > b for a, b in itertools.pairwise(means))


def _verdict(question: str, appeared: bool) -> str:
    return f"{'APPEARS' if appeared else 'DOES NOT APPEAR'}: {question}"


def table(rows: list[Row]) -> str:
    """Both tables as plain text, and for each trend whether the means over seeds follow it."""
    lines = ["Batch size, t = 0.5, equal steps (means over seeds ± standard deviation; all held-out pairs)"]
    lines.append(
        f"{'B':>4} {'VRN':>4} {'steps':>6} {'epochs':>6}  {'var negatives':>17} {'mean negatives':>17} "
        f"{'mean positives':>17} {'linear probe':>14}"
    )
    for weight, size in itertools.product(WEIGHTS, BATCH_SIZES):
        lines.append(
            f"{size:>4} {weight:>4g} {_at_batch(rows, 'steps', size, weight)[0]:>6} "
            f"{_at_batch(rows, 'epochs', size, weight)[0]:>6}  "
            + " ".join(
                f"{_cell(_at_batch(rows, name, size, weight)):>17}"
                for name in ("cross_var", "cross_mean", "positive_mean")
            )
            + f" {_cell(_at_batch(rows, 'linear_probe', size, weight), 2):>14}"
        )
    for weight in WEIGHTS:
        means = [fmean(_at_batch(rows, "cross_var", size, weight)) for size in BATCH_SIZES]
        lines.append(
            _verdict(f"variance falls as the batch grows, VRN weight {weight:g}", _monotone(means, rising=False))
        )
    lower = all(
        fmean(_at_batch(rows, "cross_var", size, 3.0)) < fmean(_at_batch(rows, "cross_var", size, 0.0))
        for size in BATCH_SIZES
    )
    lines += [_verdict("VRN lowers the variance at every batch size", lower), ""]
    lines.append(
        "Temperature, B = 64 (-uniformity is -log E exp(-2|x-y|²), larger = more uniform; entropy over 126 negatives)"
    )
    lines.append(f"{'t':>5}  {'-uniformity':>17} {'tolerance':>17} {'penalty entropy':>17} {'linear probe':>14}")
    for t in TEMPERATURES:
        lines.append(
            f"{t:>5g}  "
            + " ".join(
                f"{_cell(_at_temperature(rows, name, t)):>17}"
                for name in ("uniformity", "tolerance", "penalty_entropy")
            )
            + f" {_cell(_at_temperature(rows, 'linear_probe', t), 2):>14}"
        )
    for name, title, rising in (
        ("uniformity", "-uniformity falls with the temperature", False),
        ("tolerance", "tolerance rises with the temperature", True),
        ("penalty_entropy", "penalty entropy rises with the temperature", True),
    ):
        means = [fmean(_at_temperature(rows, name, t)) for t in TEMPERATURES]
        lines.append(_verdict(title, _monotone(means, rising)))
    return "\n".join(lines)


def _points(axis: Axes, x: Sequence[float], values: list[list[float]], label: str, colour: str) -> None:
    axis.plot(x, [fmean(v) for v in values], "-", color=colour, label=label, lw=1.6)
    for at, of_seeds in zip(x, values, strict=True):
        axis.plot([at] * len(of_seeds), of_seeds, "o", color=colour, ms=4, mfc="white")


def _finish(figure: Figure, axes: Sequence[Axes], ticks: Sequence[float], xlabel: str, caption: str) -> Figure:
    FigureCanvasAgg(figure)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(list(ticks))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(xlabel, fontsize=9.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    figure.supxlabel(caption, fontsize=8.5, x=0.01, ha="left", color="#404040")
    return figure


def figures(rows: list[Row]) -> dict[str, bytes]:
    """PNGs by name."""
    found = {}
    for name, figure in build(rows).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        found[name] = buffer.getvalue()
    return found


def build(rows: list[Row]) -> dict[str, Figure]:
    """Figures by name. Lines are means over seeds, circles are seeds."""
    first = Figure(figsize=(9.5, 4.2), dpi=150, layout="constrained")
    left, right = first.subplots(1, 2)
    for weight, colour in zip(WEIGHTS, COLOURS, strict=False):
        label = f"VRN weight {weight:g}" if weight else "without VRN"
        for axis, name in ((left, "cross_var"), (right, "cross_mean")):
            _points(axis, BATCH_SIZES, [_at_batch(rows, name, b, weight) for b in BATCH_SIZES], label, colour)
    left.set_title("variance of held-out negatives", fontsize=10, loc="left")
    right.set_title("mean of held-out negatives", fontsize=10, loc="left")
    left.legend(fontsize=8.5, frameon=False)
    note = (
        "Digits, SimCLR, t = 0.5, equal steps and one learning rate, so a small batch sees less data. Circles: seeds."
    )
    batch = _finish(first, (left, right), BATCH_SIZES, "batch size", note)

    second = Figure(figsize=(11, 3.8), dpi=150, layout="constrained")
    panels = second.subplots(1, 3)
    titles = {"uniformity": "-uniformity", "tolerance": "tolerance", "penalty_entropy": "penalty entropy, nats"}
    for axis, (name, title), colour in zip(panels, titles.items(), COLOURS[:3], strict=True):
        _points(axis, TEMPERATURES, [_at_temperature(rows, name, t) for t in TEMPERATURES], name, colour)
        axis.set_title(title, fontsize=10, loc="left")
    lengths = dict.fromkeys(
        equal_words(TrialConfig.from_dict(row["config"])) for row in rows if row["trend"] == "temperature"
    )
    note = f"Digits, SimCLR, B = 64, {', '.join(lengths)}, without VRN, held-out images. Circles: seeds."
    return {
        "batch-size": batch,
        "temperature": _finish(second, panels, TEMPERATURES, "temperature", note),
    }
