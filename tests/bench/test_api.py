"""Functions do the same as commands: in a script without a guard, from stdin, and in a notebook."""

import subprocess
import sys
import textwrap

import pytest
from support.sweeps import SMALL, write_sweep

import varloss_bench
from varloss_bench import Grid, Running, Search, TrialConfig


def example(function) -> str:
    """The code of a docstring's `Example::`."""
    return textwrap.dedent(function.__doc__.partition("Example::")[2]).strip() + "\n"


@pytest.mark.slow
def test_the_example_of_compare_runs_once(tmp_path):
    """A script without `if __name__ == "__main__"` is not run again by the workers, and need not be a file."""
    code = "print('started')\n" + example(varloss_bench.compare)
    (tmp_path / "script.py").write_text(code)
    for words, typed in ((["script.py"], ""), (["-"], "exec(open('script.py').read())")):
        done = subprocess.run(
            [sys.executable, *words], input=typed, capture_output=True, text=True, cwd=tmp_path,
            timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("started") == 1
        assert "Variance of held-out negatives" in done.stdout
        assert "metrics.knn.mean" in done.stdout
        assert (tmp_path / "comparison" / "figure.png").exists()
        # The second way needs a worker too, for one trial.
        next((tmp_path / "comparison" / "trials").glob("raw-pixels*.json")).unlink()
    assert (tmp_path / "comparison" / "table.txt").read_text().startswith("$ varloss-bench compare --method simclr ")


@pytest.mark.slow
def test_the_example_of_tune_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-"], input=example(varloss_bench.tune), capture_output=True, text=True, cwd=tmp_path,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "with VRN: weight 3, temperature 0.5 gives" in done.stdout
    assert "without VRN" in done.stdout
    assert (tmp_path / "search" / "tune.json").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda to: varloss_bench.compare(TrialConfig(method="dcl"), running=to), "method of the trial: set it in the grid"),
        (lambda to: varloss_bench.compare(grid=Grid(seeds=1), running=to), "an interval needs at least 2 seeds, got --seeds 1"),
        (lambda to: varloss_bench.compare(grid=Grid(methods=["byol"]), running=to), "--method must be one of simclr"),
        (lambda to: varloss_bench.compare(grid=Grid(methods="simclr"), running=to), "--method takes a list of values, got 'simclr'"),
        (lambda to: varloss_bench.compare(TrialConfig(steps=3), running=to), "exclude each other, got 20 and 3: set one to 0"),
        (lambda to: varloss_bench.tune(TrialConfig(steps=3, epochs=0), running=to), "steps of the trial: tune does not accept"),
        (lambda to: varloss_bench.tune(search=Search(weight_range=[3, 1]), running=to), "--weight-range must be two increasing numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_a_value_error_that_names_the_option(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(Running(output=tmp_path / "out"))
    assert not list(tmp_path.rglob("*.json"))


def test_report_writes_and_returns_what_a_folder_holds(tmp_path):
    folder = tmp_path / "sweep"
    write_sweep(folder, **SMALL)
    found = varloss_bench.report(folder, tmp_path)
    assert found.page.read_text().startswith("<!doctype html>")
    assert len(found.rows) == len(list((folder / "trials").glob("*.json")))
    assert "Variance of held-out negatives" in found.verdict
    with pytest.raises(ValueError, match="none"):
        varloss_bench.report(tmp_path / "none")


def test_importing_the_package_is_light():
    code = (
        "import sys\n"
        "from varloss_bench import Grid, Running, Search, Selection, TrialConfig, compare, report, tune\n"
        "assert not {'torch', 'typer', 'rich', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
