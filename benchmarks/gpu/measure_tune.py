"""Times both Triton kernels with every shape of tiles: what the committed sizes are worth, and which would be better."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec

from gpu import compiling, shapes
from gpu.measure_ceilings import card, seconds_of, unfit
from gpu.progress import Progress, repair
from gpu.shapes import Case, Problem, Shape
from gpu.steps import Visit, complain, is_lost, run_cells
from varloss_bench.studies.speed.rows import append

STEP = "tune"
# Part of the time that is left, for compiling one type.
COMPILE_SHARE = 0.5
SECONDS = 0.02


def work(visit: Visit) -> int:
    """Run the step: compile for one type, time it, then the next type."""
    if code := unfit(visit):
        return code
    if find_spec("triton") is None:
        complain("Triton is not installed: nothing to tune")
        return 0
    if visit.rehearse:
        # Asked for before Triton is imported, which decides then.
        os.environ["TRITON_INTERPRET"] = "1"
    path, progress = visit.folder / "tune.csv", Progress(visit.folder, STEP)
    repair(path, progress.settled())
    for dtype in shapes.dtypes(visit.rehearse):
        cells = {
            f"{case}, N = {n}, {shape}": (case, n, shape)
            for n in shapes.sizes(visit.rehearse)
            for case in shapes.cases(dtype, visit.rehearse)
            for shape in shapes.candidates(case, visit.rehearse)
        }
        if not cells.keys() - progress.settled():
            continue
        complain(compiling.all_at_once(visit, dtype, visit.seconds_left() * COMPILE_SHARE))
        timer = _Timer(visit)
        if code := run_cells(visit, STEP, {name: partial(timer.row, name, *cell) for name, cell in cells.items()}):
            return code
    return 0


class _Timer:
    """Times shapes; rows and the default's result are kept for the next shape of the same case."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.known: tuple[Case, int] | None = None

    def row(self, cell: str, case: Case, n: int, shape: Shape) -> str:
        if self.known != (case, n):
            self.problem = Problem(case, n, self.visit.device)
            self.ours = shapes.default(case)
            self.problem.launch(self.ours)
            self.expected = self.problem.found()
            self.known = (case, n)
        row = {
            "cell": cell,
            "device": card(self.visit),
            "kernel": case.kernel,
            "dim": case.dim,
            "dtype": case.dtype,
            "vrn": "cross" if case.vrn else "",
            "n": n,
            **shape._asdict(),
            "default": int(shape == self.ours),
        }
        try:
            row |= self._measured(shape)
        except Exception as error:
            if is_lost(error):
                raise
            # More shared memory than there is, for example: that is a finding, too.
            row |= dict.fromkeys(("us", "differs", "registers", "spills", "shared"), "")
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        append(self.visit.folder / "tune.csv", row)
        return str(row["error"])

    def _measured(self, shape: Shape) -> dict[str, object]:
        made = self.problem.launch(shape)
        found = self.problem.found()
        differs = float((found - self.expected).abs().max() / self.expected.abs().max())
        if not differs < 1e-3:
            raise ArithmeticError(f"differs from the default's result by {differs:.1e}")
        seconds = 0.001 if self.visit.rehearse else SECONDS
        took = seconds_of(partial(self.problem.launch, shape), self.visit.device, seconds=seconds)
        return {
            "us": f"{took * 1e6:.4g}",
            "differs": f"{differs:.1e}",
            "registers": getattr(made, "n_regs", ""),
            "spills": getattr(made, "n_spills", ""),
            "shared": getattr(getattr(made, "metadata", None), "shared", ""),
            "error": "",
        }
