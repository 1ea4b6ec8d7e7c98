"""Break varloss or its harness in one place at a time and see whether the tests notice: a random sample of mutants, as a CSV.

    pip install cosmic-ray && python tests/project/mutation/run.py --sample 70 --seed 0 --output mutants.csv

cosmic-ray makes the mutants (an operator replaced, a number moved by one, a condition negated, a loop emptied, ...);
those inside annotations, docstrings and error messages are left out, as no run can tell them from the original. Each is
written into the working tree, tested and taken back, so this refuses to start in a tree with uncommitted changes: use a
clone of its own. Tests that are about the module come first; the first failure ends a mutant. Rows are appended as they
come, and the same command goes on where it was interrupted: a larger sample of the same seed holds the smaller ones.
"""

import argparse
import ast
import csv
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[3]
COLUMNS = ("module", "operator", "occurrence", "line", "outcome", "seconds", "original", "mutant", "commit")

# What is about a module and so most likely to notice, by its path, then the tests that follow where nothing has noticed.
# Of the harness: what computes published numbers.
CORE = [
    *(f"core/test_{name}.py" for name in ("nt_xent", "vrn", "additive", "grams", "memory_bank", "metrics", "numerics")),
    *(f"core/test_{name}.py" for name in ("state", "recorded_values", "fused", "conventions")),
    "integrations/lightly/test_losses.py",
    "integrations/metric_learning/test_losses.py",
    "conformance",
]
TRAINING = ["bench/training/test_trial.py", "bench/statistics"]
STATISTICS = ["bench/statistics", "bench/report/test_verdict.py"]
TESTS: dict[str, tuple[list[str], list[str]]] = {
    "varloss": (["core/test_conventions.py"], CORE),
    "varloss/_core": (["core/test_fuzz.py", "core/test_numerics.py", "core/test_conventions.py"], CORE),
    "varloss/_core/grams.py": (["core/test_grams.py", "core/test_fuzz.py", "core/test_metrics.py"], CORE),
    "varloss/_core/ranks.py": (["core/test_distributed.py", "core/test_process_groups.py"], CORE),
    "varloss/_kernels": (["core/test_fuzz.py", "core/test_fused.py"], CORE),
    "varloss/_kernels/triton.py": (["core/test_fused_triton.py"], []),
    "varloss/distributed.py": (["core/test_distributed.py"], CORE),
    "varloss/losses": (["core/test_fuzz.py", "core/test_conventions.py"], CORE),
    "varloss/losses/memory_bank.py": (["core/test_memory_bank.py"], CORE),
    "varloss/metrics": (["core/test_metrics.py", "core/test_fuzz.py"], CORE),
    "benchmarks/varloss_bench/training/evaluate.py": (
        ["bench/training/test_evaluate.py", "bench/training/test_timing.py"],
        TRAINING,
    ),
    "benchmarks/varloss_bench/training/timing.py": (["bench/training/test_timing.py"], TRAINING),
    "benchmarks/varloss_bench/statistics/best.py": (["bench/statistics/test_best.py"], STATISTICS),
    "benchmarks/varloss_bench/statistics/inference.py": (["bench/statistics/test_inference.py"], STATISTICS),
    "benchmarks/varloss_bench/statistics/selection.py": (["bench/statistics/test_selection.py"], STATISTICS),
    "benchmarks/varloss_bench/statistics/summary.py": (["bench/statistics/test_summary.py"], STATISTICS),
}
LIMIT = 3600  # seconds for all tests of a mutant


def main() -> None:
    """Run the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="mutants to test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("mutants.csv"), help="rows (default: %(default)s)")
    arguments = parser.parse_args()
    if changed := git("status", "--porcelain", "--untracked-files=no"):
        sys.exit(f"refusing to mutate a tree with uncommitted changes:\n{changed}")
    population = sorted(mutants())
    random.Random(arguments.seed).shuffle(population)
    chosen = population[: arguments.sample]
    done = read(arguments.output)
    left = [mutant for mutant in chosen if name(*mutant) not in done]
    commit = git("rev-parse", "--short", "HEAD").strip()
    print(f"{len(population)} mutants in all, {len(chosen)} in the sample, {len(chosen) - len(left)} of them done")
    for number, (module, operator, occurrence, line) in enumerate(left, 1):
        row = {"module": module, "operator": operator, "occurrence": occurrence, "line": line}
        row |= judge(ROOT / module, operator, occurrence, line) | {"commit": commit}
        append(arguments.output, row)
        print(f"{number}/{len(left)} {module}:{line} {operator}: {row['outcome']} ({row['seconds']} s)", flush=True)
    rows = read(arguments.output)
    killed = sum(rows[name(*mutant)]["outcome"] != "survived" for mutant in chosen)
    low, high = wilson(killed, len(chosen))
    print(f"{killed} of {len(chosen)} killed: {killed / len(chosen):.1%}, 95% interval {low:.1%} to {high:.1%}")


def git(*arguments: str) -> str:
    """What git says of the working tree."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def name(module: str, operator: str, occurrence: int, line: int) -> tuple[str, str, str]:
    """What tells a mutant from others in the rows."""
    del line
    return module, operator, str(occurrence)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z = 1.959964
    middle = (hits + z**2 / 2) / (trials + z**2)
    half = z / (trials + z**2) * math.sqrt(hits * (trials - hits) / trials + z**2 / 4)
    return middle - half, middle + half


def mutants() -> Iterator[tuple[str, str, int, int]]:
    """Module, operator, occurrence and line of every mutant that a run could tell from the original."""
    for path in sorted(
        [*(ROOT / "varloss").rglob("*.py"), *(ROOT / name for name in TESTS if name.startswith("benchmarks"))]
    ):
        source = path.read_text()
        tree, silent = get_ast(source), silent_places(source)
        for operator_name in cosmic_ray.plugins.operator_names():
            kind = cosmic_ray.plugins.get_operator(operator_name)
            if kind.arguments():
                continue
            operator = kind()
            positions = [start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]
            for occurrence, start in enumerate(positions):
                if not any(first <= start < last for first, last in silent):
                    yield str(path.relative_to(ROOT)), operator_name, occurrence, start[0]


def silent_places(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change has no effect on values: annotations and what is raised."""
    places = []
    for node in ast.walk(ast.parse(source)):
        silent = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise):
            silent.append(node.exc)
        if isinstance(node, ast.Assign) and "Literal" in ast.dump(node.value):
            silent.append(node.value)
        places += [
            ((part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0))
            for part in silent
            if isinstance(part, ast.expr)
        ]
    return places


def judge(path: Path, operator: str, occurrence: int, line: int) -> dict[str, object]:
    """Write one mutant, run the tests, put the original back."""
    original = path.read_text()
    mutant = mutate_code(original, cosmic_ray.plugins.get_operator(operator)(), occurrence)
    assert mutant is not None, (path, operator, occurrence)
    before, after = original.splitlines(), mutant.splitlines()
    places = [i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new] or [line - 1]
    started = time.monotonic()
    try:
        path.write_text(mutant)
        outcome = run_tests(path)
    finally:
        path.write_text(original)
    return {
        "outcome": outcome,
        "seconds": round(time.monotonic() - started),
        "original": before[places[0]].strip(),
        "mutant": after[places[0]].strip(),
    }


def run_tests(path: Path) -> str:
    """`killed` by a failing test, `hung` (killed, too), or `survived`."""
    module = path.relative_to(ROOT)
    place = next(str(part) for part in (module, *module.parents) if str(part) in TESTS)
    # Bytecode is trusted by time and size, and a mutant may have both of its predecessor's.
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "integrations", "benchmarks")),
        "VARLOSS_TEST_EXAMPLES": "0.3",
    }
    # In one process: a mutant that hangs is killed with it, and would live on in a worker.
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "--no-header", "-p", "no:cacheprovider"]
    started = time.monotonic()
    for files in TESTS[place]:
        left = LIMIT - (time.monotonic() - started)
        command = [*pytest, "--timeout=300", *(f"tests/{file}" for file in files)]
        try:
            tests = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, timeout=max(left, 1), check=False
            )
        except subprocess.TimeoutExpired:
            return "hung"
        if tests.returncode:
            return "killed"
    return "survived"


def read(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows so far."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row["module"], row["operator"], row["occurrence"]): row for row in csv.DictReader(file)}


def append(path: Path, row: dict[str, object]) -> None:
    """Add a row, and the heading if it is the first."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
