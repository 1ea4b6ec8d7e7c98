"""The `varloss-bench` command: a registry and nothing else.

Each command lives in its own module and is added here with `app.command()`. Those modules import torch, lightning and the
like inside the function that needs them, so that `--help` answers at once and a missing extra is reported by name.
"""

import typer

from varloss_bench.compare import compare
from varloss_bench.report import report
from varloss_bench.simulate import simulate
from varloss_bench.speed import speed
from varloss_bench.theory import theory
from varloss_bench.trends import trends
from varloss_bench.tune import tune

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
