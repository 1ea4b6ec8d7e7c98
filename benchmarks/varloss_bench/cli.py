"""The `varloss-bench` command: a registry and nothing else.

Each command lives in its own module and is added here with `app.command()`. Those modules import torch, lightning and the
like inside the function that needs them, so that `--help` answers at once and a missing extra is reported by name.
"""

import typer

from varloss_bench.compare.command import compare
from varloss_bench.report.command import report
from varloss_bench.studies.simulate.command import simulate
from varloss_bench.studies.speed.command import speed
from varloss_bench.studies.theory.command import theory
from varloss_bench.studies.trends.command import trends
from varloss_bench.tune.command import tune

app = typer.Typer(
    name="varloss-bench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Does variance reduction (VRN) help on MY data at MY batch size? Measure it, with paired seeds and intervals.

    Start with `varloss-bench compare` (no arguments, no network, under three minutes on two cores).
    """


app.command("compare")(compare)
app.command("report")(report)
app.command("simulate")(simulate)
app.command("speed")(speed)
app.command("theory")(theory)
app.command("trends")(trends)
app.command("tune")(tune)
