"""`varloss_bench.tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varloss_bench.commands.running import Running
from varloss_bench.config import TrialConfig
from varloss_bench.tune.options import Search

if TYPE_CHECKING:
    from varloss_bench.tune.result import Tuning


def tune(
    trial: TrialConfig | None = None,
    search: Search | None = None,
    running: Running | None = None,
    *,
    quiet: bool = False,
) -> Tuning:
    """Find a VRN weight and a temperature on the validation split: `varloss-bench tune`.

    Searches run in worker processes, like the trials of `varloss_bench.compare`. The same call again resumes.

    Args:
        trial: The trial to tune: data, method, batch size, backbone, epochs. By default SimCLR on digits.
        search: Ranges, budget, validation seeds.
        running: Number of processes, folder of the results.
        quiet: Print nothing.

    Raises:
        ValueError: An option is out of range or conflicts with another; the message names the option.
        SearchCrashedError: A search failed; finished trainings are kept.
        OSError: Results cannot be written; finished trainings are kept.

    Example::

        import varloss_bench as vb

        found = vb.tune(
            trial=vb.TrialConfig(epochs=2, batch_size=128),
            search=vb.Search(budget=1, seeds=1, rungs=[1]),
            running=vb.Running(output="search"),
            quiet=True,
        )
        print(found.verdict)
        print(found.rows[["search", "weight", "temperature", "score"]])
    """
    from rich.console import Console

    from varloss_bench.tune import run

    prepared = run.prepare(trial or TrialConfig(device="auto"), search or Search(), running or Running())
    return run.run(prepared, Console(quiet=quiet))
