"""Break varloss or its harness in one place at a time and see whether the tests notice: a random sample of mutants, as a CSV.

    pip install cosmic-ray && python tests/project/mutation/run.py --sample 200 --seed 0 --output mutants.csv

cosmic-ray makes the mutants (an operator replaced, a number moved by one, a condition negated, a loop emptied, ...);
those inside annotations, docstrings and error messages are left out, as no run can tell them from the original. Each is
written into the working tree, tested and taken back, so this refuses to start in a tree with uncommitted changes: use a
clone of its own. Tests that are about the module come first; the first failure ends a mutant. Rows are appended as they
come, and the same command goes on where it was interrupted.
"""

import argparse
import ast
import csv
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
COLUMNS = ("module", "operator", "occurrence", "line", "outcome", "seconds", "original", "mutant")

# What is most likely to notice, first; everything in EVERYWHERE follows.
ABOUT = {
    "_core": ["test_nt_xent", "test_vrn", "test_memory_bank", "test_additive"],
    "_kernels": ["test_fused", "test_fused_triton"],
    "distributed": ["test_distributed"],
    "losses": ["test_nt_xent", "test_vrn", "test_additive", "test_memory_bank"],
    "metrics": ["test_metrics"],
}
# Of the harness: what computes numbers, and the tests that are about it.
BENCH = {
    "benchmarks/varloss_bench/training/evaluate.py": [
        "bench/training/test_evaluate.py",
        "bench/training/test_timing.py",
    ],
    "benchmarks/varloss_bench/statistics/inference.py": ["bench/statistics"],
    "benchmarks/varloss_bench/statistics/selection.py": ["bench/statistics"],
    "benchmarks/varloss_bench/statistics/summary.py": ["bench/statistics"],
}
EVERYWHERE = ["test_conventions", "test_fused", "test_distributed", "test_metrics"]


def main() -> None:
    """Run the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="mutants to test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("mutants.csv"), help="rows (default: %(default)s)")
    arguments = parser.parse_args()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if changed:
        sys.exit(f"refusing to mutate a tree with uncommitted changes:\n{changed}")
    population = sorted(mutants())
    chosen = random.Random(arguments.seed).sample(population, min(arguments.sample, len(population)))
    done = read(arguments.output)
    print(f"{len(population)} mutants in all, {len(chosen)} in the sample, {len(done)} of them done")
    for number, (module, operator, occurrence, line) in enumerate(chosen, 1):
        if (module, operator, str(occurrence)) in done:
            continue
        row = {"module": module, "operator": operator, "occurrence": occurrence, "line": line}
        row |= judge(ROOT / module, operator, occurrence, line)
        append(arguments.output, row)
        print(f"{number}/{len(chosen)} {module}:{line} {operator}: {row['outcome']} ({row['seconds']} s)", flush=True)
    outcomes = [row["outcome"] for row in read(arguments.output).values()]
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})


def mutants() -> Iterator[tuple[str, str, int, int]]:
    """Module, operator, occurrence and line of every mutant that a run could tell from the original."""
    for path in sorted([*(ROOT / "varloss").rglob("*.py"), *(ROOT / name for name in BENCH)]):
        source = path.read_text()
        tree, silent = get_ast(source), silent_places(source)
        for name in cosmic_ray.plugins.operator_names():
            kind = cosmic_ray.plugins.get_operator(name)
            if kind.arguments():
                continue
            operator = kind()
            positions = [start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]
            for occurrence, start in enumerate(positions):
                if not any(first <= start < last for first, last in silent):
                    yield str(path.relative_to(ROOT)), name, occurrence, start[0]


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
    files = [f"tests/{name}" for name in BENCH.get(path.relative_to(ROOT).as_posix(), [])]
    if not files:
        names = dict.fromkeys([*ABOUT.get(path.stem, ABOUT.get(path.parent.name, [])), *EVERYWHERE])
        files = [f"tests/core/{name}.py" for name in names]
    # Bytecode is trusted by time and size, and a mutant may have both of its predecessor's.
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
    }
    # In one process: a mutant that hangs is killed with it, and would live on in a worker.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "--no-header", "-p", "no:cacheprovider", *files]
    try:
        tests = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        return "hung"
    return "killed" if tests.returncode else "survived"


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
