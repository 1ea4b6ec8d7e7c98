"""`varloss_bench.compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varloss_bench.commands.running import Running
from varloss_bench.compare.options import Grid, Selection
from varloss_bench.config import TrialConfig

if TYPE_CHECKING:
    from varloss_bench.compare.result import Comparison


def compare(
    trial: TrialConfig | None = None,
    grid: Grid | None = None,
    selection: Selection | None = None,
    running: Running | None = None,
    *,
    quiet: bool = False,
) -> Comparison:
    """Train with and without VRN and test whether the difference is significant: `varloss-bench compare`.

    Trials run in worker processes, which do not import the calling script. Scripts need no `if __name__ == "__main__"`, and
    notebooks work. The result of each trial is stored; the same call again runs only the missing trials.

    Args:
        trial: The options that all trials share: data, backbone, length, device. By default digits, on a GPU if there is one.
        grid: Methods, batch sizes, temperatures, weights and seeds.
        selection: Choose temperature and weight on the validation split first; by default the whole grid is tested.
        running: Number of processes, folder of the results.
        quiet: Print nothing. Otherwise progress, table and verdict are printed as by the command.

    Raises:
        ValueError: An option is out of range or conflicts with another; the message names the option.
        OSError: Results cannot be written; finished trials are kept.

    Example::

        import varloss_bench as vb

        found = vb.compare(
            trial=vb.TrialConfig(epochs=2),
            grid=vb.Grid(methods=["simclr"], batch_sizes=[64], weights=[3], control_temperatures=[], seeds=2),
            running=vb.Running(output="comparison"),
            quiet=True,
        )
        print(found.verdict)
        print(found.rows[["method", "weight", "metrics.knn.mean"]])
    """
    from rich.console import Console

    from varloss_bench.compare import run

    prepared = run.prepare(trial or TrialConfig(device="auto"), grid or Grid(), selection, running or Running())
    return run.run(prepared, Console(quiet=quiet))
