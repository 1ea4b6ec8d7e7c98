"""The `varloss-bench` command: a table of names.

A command's module is imported when the command runs or shows its help, so `varloss-bench --help` is fast.
To add a command, write its function and add a line to a table.
"""

from importlib import import_module
from typing import Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand

_MARKUP: Literal["markdown"] = "markdown"


class Target(NamedTuple):
    """The location of a command's function, and its description in the list of commands."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "compare": Target(
        "varloss_bench.compare.command",
        "compare",
        "Train with and without VRN and test whether the difference is significant.",
    ),
    "tune": Target(
        "varloss_bench.tune.command", "tune", "Find a VRN weight and a temperature on validation seeds, then test them."
    ),
    "report": Target(
        "varloss_bench.report.command",
        "report",
        "Write the results of a folder as one page, Markdown, CSV and Parquet.",
    ),
}
STUDIES = {
    "simulate": Target(
        "varloss_bench.studies.simulate.command",
        "simulate",
        "Estimate the false-positive rate and the power of compare.",
    ),
    "speed": Target(
        "varloss_bench.studies.speed.command", "speed", "Measure time and memory of the losses against other packages."
    ),
    "theory": Target(
        "varloss_bench.studies.theory.command",
        "theory",
        "Check the theory's predictions against unit vectors optimised with the real loss.",
    ),
    "trends": Target(
        "varloss_bench.studies.trends.command", "trends", "Show two trends of the papers on embeddings of digits."
    ),
}


def load(name: str) -> Any:
    """The command of this name with its options; imports its module."""
    target = {**COMMANDS, **STUDIES}[name]
    single = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
    single.command(name)(getattr(import_module(target.module), target.function))
    return typer.main.get_command(single)


class _Later(TyperCommand):
    """Placeholder in the list of commands for a command whose module is not imported yet."""

    def make_context(self, info_name: str | None, *arguments: Any, **options: Any) -> Any:
        return load(str(self.name)).make_context(info_name, *arguments, **options)


def _group(name: str, table: dict[str, Target]) -> typer.Typer:
    group = typer.Typer(
        name=name,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=_MARKUP,
        pretty_exceptions_enable=False,
    )
    for command, target in table.items():
        group.command(command, cls=_Later, short_help=target.summary)(lambda: None)
    return group


app = _group("varloss-bench", COMMANDS)
study = _group("study", STUDIES)


@app.callback()
def root() -> None:
    """Does variance reduction (VRN) help on MY data at MY batch size? Measure it, with paired seeds and intervals.

    Start with `varloss-bench compare` (no arguments, no network, under three minutes on two cores).
    """


@study.callback()
def studies() -> None:
    """Studies of the package itself, for its maintainers: are the verdicts, the speed and the theory right?"""


app.add_typer(study, rich_help_panel="For maintainers")
