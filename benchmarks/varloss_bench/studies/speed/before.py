"""`varloss-bench study speed --before CHECKOUT`: each loss of this package against itself in another checkout.

Both run in processes of their own and take turns of a few hundredths of a second, so that a busy machine slows both alike.
What is compared is the processor time of one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import varloss
from varloss_bench.messages import say
from varloss_bench.records import provenance
from varloss_bench.studies.speed.rows import append
from varloss_bench.studies.speed.run import Plan, source

TURN_SECONDS = 0.03
TURNS = 15
# A step this long needs no more turns.
LONG_SECONDS, FEW_TURNS = 1.0, 5

_INDEX = "torch.arange(len(a)).repeat(2)"
_VIEWS = "torch.arange(2).repeat_interleave(len(a))"
# Name -> expression that makes a loss of two views, in the words of both checkouts.
LOSSES = {
    "NTXentLoss": "varloss.NTXentLoss()",
    "NTXentLoss + VRN": "varloss.WithVRN(varloss.NTXentLoss(), weight=3, num_samples=50_000)",
    "learned temperature": "varloss.NTXentLoss(learnable_temperature=True)",
    "hard negatives": "varloss.NTXentLoss(hard_fraction=0.5)",
    "InfoNCELoss": "varloss.InfoNCELoss()",
    "DCLLoss": "varloss.DCLLoss()",
    "DCLW": "lambda a, b: functional.nt_xent(a, b, decoupled=True, positive_weight=functional.dclw_weights(a, b))",
    "DHELLoss": "varloss.DHELLoss()",
    "DHELLoss, official": "varloss.DHELLoss(scale='official')",
    "VRNRegularizer": "varloss.VRNRegularizer(weight=3, num_samples=50_000)",
    "VRNRegularizer, both": "varloss.VRNRegularizer(weight=3, num_samples=50_000, pairs='both')",
    "VRNRegularizer, p = 1": "varloss.VRNRegularizer(weight=3, num_samples=50_000, exponent=1)",
    "SigmoidLoss": "varloss.SigmoidLoss()",
    "SpectralLoss": "varloss.SpectralLoss()",
    "KCLLoss": "varloss.KCLLoss()",
    "SimpleLoss": "varloss.SimpleLoss()",
    "QueueInfoNCELoss": "varloss.QueueInfoNCELoss(memory_bank_size=(4096, d))",
    "nt_xent, dense": "lambda a, b: functional.nt_xent(a, b, form='dense')",
    "nt_xent_indexed": f"lambda a, b: functional.nt_xent_indexed(torch.cat([a, b]), {_INDEX})",
    "vrn_indexed": f"lambda a, b: functional.vrn_indexed(torch.cat([a, b]), {_INDEX}, views={_VIEWS}, num_samples=50_000)",
    "similarity_statistics": "lambda a, b: sum(x.sum() for x in varloss.metrics.similarity_statistics(a, b))",
}


class Checkout:
    """A process that times the losses of one checkout."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the folder holds no varloss."""
        self.package = folder.resolve() / "varloss" / "__init__.py"
        if not self.package.is_file():
            raise ValueError(f"--before takes a checkout of varloss, got {folder}, which has no varloss/__init__.py")
        self.folder = self.package.parents[1]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("steps.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        found = Path(self._answer()["file"])
        if not found.is_relative_to(self.folder):
            self.__exit__()
            raise RuntimeError(f"{self.folder} was to be timed, but Python imports {found}")

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:  # closes the pipes
            self.process.kill()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Time some steps, of the loss asked for last where the request names none."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that times {self.folder} died (exit code {self.process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run(before: Path, plan: Plan, path: Path, console: Console) -> None:
    """Time every loss in both checkouts at the plan's sizes, append each row as it is known, and print the table.

    Raises:
        ValueError: `before` is no checkout.
    """
    with ExitStack() as stack:
        checkouts = [stack.enter_context(Checkout(folder)) for folder in (before, Path(varloss.__file__).parents[1])]
        origin = {**source(plan), "before": provenance.commit(checkouts[0].package)}
        cells = [(name, n, d) for name in LOSSES for d in plan.dims for n in plan.sizes]
        rows = []
        for cell in track(cells, "Timing", console=console, transient=True):
            if row := _compare(checkouts, *cell, console):
                rows.append({**origin, **row})
                append(path, rows[-1])
    console.print(_table(rows))
    say(console, f"rows: {path}")


def _compare(checkouts: list[Checkout], name: str, n: int, d: int, console: Console) -> dict[str, Any] | None:
    """The row of a cell; none where one of the two cannot compute it, and the reason is printed."""
    loss = {"loss": LOSSES[name], "n": n, "d": d}
    for _ in range(2):
        first = [checkout.ask(**loss, steps=1) for checkout in checkouts]
        for checkout, answer in zip(checkouts, first, strict=True):
            if "error" in answer:
                say(console, f"{name}, N = {n}, d = {d} is left out: {answer['error']} ({checkout.folder})", "yellow")
                return None
    slowest = max(answer["seconds"] for answer in first)
    steps = max(1, round(TURN_SECONDS / slowest))
    pairs = []
    for turn in range(FEW_TURNS if slowest > LONG_SECONDS else TURNS):
        # Neither is always the first.
        order = (0, 1) if turn % 2 else (1, 0)
        seconds = {which: checkouts[which].ask(steps=steps)["seconds"] for which in order}
        pairs.append((seconds[0], seconds[1]))
    low, middle, high = statistics.quantiles([after / before for before, after in pairs], n=4, method="inclusive")
    old, new = (answer["found"] for answer in first)
    return {
        "loss": name,
        "n": n,
        "d": d,
        "before_s": f"{statistics.median(before for before, _ in pairs):.4g}",
        "after_s": f"{statistics.median(after for _, after in pairs):.4g}",
        "ratio": f"{middle:.3f}",
        "lower_quartile": f"{low:.3f}",
        "upper_quartile": f"{high:.3f}",
        "difference": f"{max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(new, old, strict=True)):.1e}",
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Forward + backward; the ratio is this checkout's time over the other's", box=None)
    for title in ("loss", "d", "N", "now", "ratio", "quartiles", "values differ by"):
        table.add_column(title, justify="left" if title == "loss" else "right", no_wrap=title != "values differ by")
    for row in rows:
        quartiles = f"{row['lower_quartile']}-{row['upper_quartile']}"
        now = f"{float(row['after_s']) * 1e3:.3g} ms"
        table.add_row(row["loss"], str(row["d"]), str(row["n"]), now, row["ratio"], quartiles, row["difference"])
    return table
