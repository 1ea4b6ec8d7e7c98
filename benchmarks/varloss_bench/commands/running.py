"""The options that say how a command runs: its processes and its folder."""

from dataclasses import dataclass
from pathlib import Path

from varloss_bench.options import Option, Range, documented, setting

_PANEL = "Running"
CLUSTERS = ("local", "slurm")


@documented
@dataclass(frozen=True, kw_only=True)
class Running:
    """How a command runs. These options change no number."""

    workers: int = setting(
        2,
        Option(
            "Number of trials, or searches, that run in parallel with one thread each.", _PANEL, within=Range(least=1)
        ),
    )
    cluster: str | None = setting(
        None,
        Option(
            "Run trials as jobs through submitit, at most --workers at a time. Default: processes of this command.",
            _PANEL,
            choices=CLUSTERS,
        ),
    )
    slurm: str = setting(
        "",
        Option(
            "Parameters of each job: `partition=gpu,time=2:00:00,gpus=1,cpus=4,mem=16GB` and other parameters of submitit.",
            _PANEL,
        ),
    )
    name: str | None = setting(
        None,
        Option(
            "Results are stored in ./varloss-runs/NAME. Default: the data set; DATA-tune for a search.",
            _PANEL,
            metavar="NAME",
        ),
    )
    output: Path | None = setting(None, Option("Folder of the results, instead of ./varloss-runs/NAME.", _PANEL))
    resume: bool = setting(
        True,
        Option(
            "Keep the trials in the folder and run the others, or refuse a folder that has trials.",
            _PANEL,
            switch=("resume", "fresh"),
            of_the_call=True,
        ),
    )

    def folder(self, default: str) -> Path:
        """The folder of the results; `default` is the name if none is given."""
        return Path(self.output) if self.output else Path("varloss-runs") / (self.name or default)
