"""Table, CSV and picture of `varloss-bench study simulate`."""

import csv
import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from varloss_bench.report.figures.style import COLOURS, GREY
from varloss_bench.report.text import table_of_numbers
from varloss_bench.statistics import inference
from varloss_bench.studies.simulate.run import LOOKS, Result
from varloss_bench.studies.simulate.tables import TEST_IMAGES

# A nominal rate of 5% may be estimated this high: the estimate has noise, and accuracies are not normal.
LIMIT = 0.06


def too_many(results: Sequence[Result]) -> list[Result]:
    """False-positive rates above the limit, among sweeps that are looked at once."""
    return [r for r in results if r.question == "false positives" and r.rate > LIMIT]


def to_csv(results: Sequence[Result]) -> str:
    """All rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(results[0].to_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.to_dict() for result in results)
    return text.getvalue()


def plain_text(results: Sequence[Result]) -> str:
    """The table without colours, for a file."""
    console = Console(width=120, color_system=None, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(render(results))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def render(results: Sequence[Result]) -> Group:
    """Two tables and what they say."""
    nulls = [r for r in results if r.question != "power"]
    found = [r for r in results if r.question == "power"]
    return Group(_false_positives(nulls), _power(found), Padding(Text("\n".join(verdict(results))), (0, 1)))


def _false_positives(results: Sequence[Result]) -> Table:
    table = table_of_numbers(
        "False positives: sweeps that call something settled that has no effect",
        (
            "truth",
            "compari-\nsons",
            "seeds",
            "sweeps",
            "false\npositive",
            "95%\ninterval",
            "uncor-\nrected",
        ),
    )
    for r in results:
        table.add_row(
            r.setting,
            str(r.comparisons),
            str(r.seeds),
            str(r.sweeps),
            f"{r.rate:.1%}",
            f"{100 * r.low:.1f}-{r.high:.1%}",
            f"{r.uncorrected:.0%}",
        )
    return table


def _power(results: Sequence[Result]) -> Table:
    table = table_of_numbers(
        "Power: sweeps that call a planted effect on the 10-label probe settled",
        ("effect", "compari-\nsons", "seeds", "sweeps", "found", "95%\ninterval", "predicted"),
    )
    for r in results:
        where = ", embeddings" if r.predicted is None else ""
        table.add_row(
            f"{r.effect:.2f} points{where}",
            str(r.comparisons),
            str(r.seeds),
            str(r.sweeps),
            f"{r.rate:.0%}",
            f"{100 * r.low:.0f}-{r.high:.0%}",
            "-" if r.predicted is None else f"{r.predicted:.0%}",
        )
    return table


def verdict(results: Sequence[Result]) -> list[str]:
    """What the rates say."""
    once = [r for r in results if r.question == "false positives"]
    again = [r for r in results if r.question == "false positives, looking again"]
    worst, above = max(once, key=lambda r: r.rate), too_many(results)
    lines = [
        f"Looks: after {', '.join(map(str, LOOKS))} seeds. Test sets have {TEST_IMAGES} images unless another number is given. "
        f"Embeddings: the factor is the distance of the classes with VRN over that without; the effect is the probe's mean gain.",
        f"One look: at most {worst.rate:.1%} of {worst.sweeps} sweeps without an effect call something settled "
        f"({worst.setting}, {worst.comparisons} comparisons, {worst.seeds} seeds); "
        + (f"{len(above)} of {len(once)} rates are ABOVE {LIMIT:.0%}." if above else f"none is above {LIMIT:.0%}."),
    ]
    if again:
        most = max(again, key=lambda r: r.rate)
        lines.append(
            f"Several looks until something is settled: up to {most.rate:.1%} ({most.comparisons} comparisons). The correction covers "
            "one look."
        )
    lines.append(
        f"Predicted: power of a t test at the level 0.05 / comparisons (Holm's first step). `compare` computes the seeds needed "
        f"from it, for {inference.POWER:.0%} power. Holm's later steps add to it."
    )
    return lines


def draw(results: Sequence[Result]) -> bytes:
    """Left: false-positive rates with intervals. Right: power over the number of seeds, measured and predicted."""
    figure = Figure(figsize=(13.5, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _draw_rates(left, [r for r in results if r.question != "power"])
    _draw_power(right, [r for r in results if r.question == "power" and r.predicted is not None])
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5)
    if right.get_legend_handles_labels()[0]:
        figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize=8.5, frameon=False)
    sweeps = max(r.sweeps for r in results)
    figure.suptitle(f"Verdicts on simulated sweeps: up to {sweeps} sweeps each", fontsize=12.5, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_rates(axis: Axes, results: Sequence[Result]) -> None:
    labels = []
    for y, r in enumerate(results):
        colour = COLOURS[1] if r.question != "false positives" else COLOURS[0]
        axis.errorbar(
            100 * r.rate,
            y,
            xerr=[[100 * (r.rate - r.low)], [100 * (r.high - r.rate)]],
            fmt="o",
            ms=4.5,
            capsize=3,
            color=colour,
        )
        labels.append(f"{r.setting}, {r.comparisons} comparisons, {r.seeds} seeds")
    axis.axvline(100 * (1 - inference.LEVEL), color=GREY, lw=1, zorder=0)
    axis.axvline(100 * LIMIT, color=GREY, lw=1, ls="--", zorder=0)
    axis.set_yticks(range(len(results)), labels, fontsize=7.5)
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("sweeps with a false positive, % (lines: 5% and 6%)", fontsize=8.5)
    axis.set_title("No effect: how often is something settled?", fontsize=10.5, loc="left", fontweight="bold")


def _draw_power(axis: Axes, results: Sequence[Result]) -> None:
    effects = sorted({r.effect for r in results})
    families = list(dict.fromkeys(r.family for r in results))
    for effect, colour in zip(effects, COLOURS, strict=False):
        for family, marker in zip(families, "os", strict=False):
            line = [r for r in results if (r.effect, r.family) == (effect, family)]
            seeds = [r.seeds for r in line]
            axis.errorbar(
                seeds,
                [100 * r.rate for r in line],
                yerr=[[100 * (r.rate - r.low) for r in line], [100 * (r.high - r.rate) for r in line]],
                fmt=marker,
                mfc=colour if marker == "o" else "white",
                ms=5,
                capsize=3,
                color=colour,
                label=f"{effect:g} points, {line[0].comparisons} comparisons",
            )
            axis.plot(
                seeds, [100 * (r.predicted or 0.0) for r in line], color=colour, lw=1, ls="-" if marker == "o" else "--"
            )
    axis.axhline(100 * inference.POWER, color=GREY, lw=1, zorder=0)
    axis.set_ylim(-2, 102)
    axis.set_xlabel("seeds (lines: predicted at Holm's first step)", fontsize=8.5)
    axis.set_ylabel("sweeps that settle it, %", fontsize=8.5)
    axis.set_title("Planted gain: how often is it settled?", fontsize=10.5, loc="left", fontweight="bold")
