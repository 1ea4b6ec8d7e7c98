"""The command line of a visit."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gpu import parent, wheels
from gpu.steps import BY_NAME, STEPS, Visit, end_with_parent

WHEELS = Path(__file__).parent / "wheels"

_EXAMPLES = """\
examples:
  python benchmarks/gpu --prepare                                   before the visit, with a network: packages to compare with
  python benchmarks/gpu --out varloss-runs/rehearsal --rehearse             before the visit, on a CPU: everything, at tiny sizes
  python benchmarks/gpu --out results --minutes 9                   the visit
  python benchmarks/gpu --out results --minutes 5                   the same once more: goes on where the first ended
  python benchmarks/gpu --out results --minutes 2 --steps tests,launches --retry

files in the folder of --out:
  progress.csv   what is done and what failed, for every test, loss and shape of tiles
  ceilings.csv, launches.csv, speed.csv, tune.csv   one row for each measurement, written as soon as it is known
  tests.xml      the tests as JUnit XML       visit.log   what the steps printed       summary.txt   the tables
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    given = _parser().parse_args(arguments)
    if given.work:
        return _work(given)
    if given.prepare:
        return _prepare(given.wheels)
    if given.out is None:
        print("error: --out is missing (or --prepare); --help has examples", file=sys.stderr)
        return 2
    names = [name.strip() for name in given.steps.split(",")]
    if unknown := [name for name in names if name not in BY_NAME]:
        print(f"error: there is no step {unknown[0]!r}; there are {', '.join(BY_NAME)}", file=sys.stderr)
        return 2
    plan = parent.Plan(
        folder=given.out,
        until=time.monotonic() + given.minutes * 60,
        steps=[step for step in STEPS if step.name in names],
        rehearse=given.rehearse,
        wheels=given.wheels,
        retry=given.retry,
    )
    return parent.visit(plan)


def _work(given: argparse.Namespace) -> int:
    """A step's own process."""
    end_with_parent()
    visit = Visit(given.out, given.rehearse, time.monotonic() + given.seconds)
    if given.part:
        part, parts = map(int, given.part.split("/"))
        return int(import_module("gpu.compiling").work(visit, given.wave, part, parts))
    return int(import_module(f"gpu.measure_{given.work}").work(visit))


def _prepare(folder: Path) -> int:
    missing = wheels.prepare(folder)
    for path in sorted(folder.glob("*.whl")):
        print(path)
    for name in missing:
        print(f"could not download {name}", file=sys.stderr)
    return 1 if missing else 0


def _parser() -> argparse.ArgumentParser:
    steps = "\n".join(f"  {number}. {step.name:9} {step.about}" for number, step in enumerate(STEPS))
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu",
        description=f"Measure varloss on a GPU in a few minutes. Steps, most valuable first:\n{steps}\n\n"
        "Each step runs in a process of its own with a time limit, so a crash or a hang of one ends that step's piece\n"
        "only. The same command resumes: what is settled is not done again. No network, no installation is needed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="folder of the rows")
    parser.add_argument("--minutes", type=_minutes, default=9.0, help="time for everything together (default: 9)")
    parser.add_argument("--steps", default=",".join(BY_NAME), help="steps to run, comma-separated (default: all)")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes on the CPU, kernels in Triton's interpreter"
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed in an earlier call")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="folder of wheels (default: benchmarks/gpu/wheels)")
    parser.add_argument("--prepare", action="store_true", help="download the wheels into that folder, and end")
    # A step's process: its name, its time, and for compilers their part of the work.
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--wave", default="", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 24 * 60:
        raise argparse.ArgumentTypeError(f"takes minutes above 0, got {text}")
    return value
