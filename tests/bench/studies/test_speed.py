"""`varloss-bench study speed`: what it times is right, and what it writes can be read again."""

from __future__ import annotations

import csv
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from support import oracles
from typer.testing import CliRunner

import varloss
from varloss_bench.cli import app
from varloss_bench.studies.speed import before, losses, measure, report, run
from varloss_bench.studies.speed.losses import GROUPS, NUM_SAMPLES, TEMPERATURE, WEIGHT


def test_papers_mask_and_solo_learns_formula_equal_the_loops():
    z = oracles.views(6, 4)
    delta = -1 / (NUM_SAMPLES - 1)
    torch.testing.assert_close(losses.mask_vrn(*z), oracles.vrn(*z, delta, "cross", 2))
    expected = oracles.nt_xent(*z, TEMPERATURE, "both", False)
    torch.testing.assert_close(losses.indexed_formula(*z), expected)
    torch.testing.assert_close(losses.plain_formula(*z), expected)
    ours, without, lightly = (who.build()(*z) for who in GROUPS["NT-Xent + VRN"][:3])
    torch.testing.assert_close(losses.plain_formula_with_vrn(*z), ours)
    torch.testing.assert_close(without, expected)
    torch.testing.assert_close(ours, expected + WEIGHT * oracles.vrn(*z, delta, "cross", 2))
    torch.testing.assert_close(lightly, ours)


@pytest.mark.parametrize("group", GROUPS)
def test_all_that_are_here_agree(group):
    first, *others = losses.contenders(group, "cpu")
    assert first.name == "varloss"
    for other in others:
        if not other.is_reference:
            assert losses.disagreement(first.build(), other.build(), 17, 8, "cpu") < 1e-4, other.name


def test_memeff_is_timed_with_the_gradient_of_the_formula(monkeypatch):
    """Its default scales the gradient by sqrt(N / t)."""
    made = []
    monkeypatch.setitem(
        sys.modules, "memeff", SimpleNamespace(MemoryEfficientCLIPLoss=lambda **given: made.append(given))
    )
    losses._memeff()
    assert made == [{"temperature": TEMPERATURE, "stable": False}]


def test_siglip_kernel_is_given_unit_rows_and_the_logarithm_of_the_scale(monkeypatch):
    def fused(u, v, log_scale, bias, backend):
        assert backend == "chunked"
        signs = 2 * torch.eye(len(u)) - 1
        return -torch.nn.functional.logsigmoid(signs * (u @ v.T * log_scale.exp() + bias)).sum() / len(u)

    monkeypatch.setitem(sys.modules, "siglip_kernel", SimpleNamespace(fused_siglip_loss=fused))
    ours, _, theirs = GROUPS["sigmoid"]
    assert losses.disagreement(ours.build(), theirs.build(), 9, 4, "cpu") < 1e-5


def test_the_compiled_formulas_agree(monkeypatch):
    """They run on a GPU only; here without the compiler's own kernels."""
    monkeypatch.setattr(torch, "compile", lambda formula, dynamic: formula)
    for group in ("NT-Xent", "NT-Xent + VRN"):
        (theirs,) = (who for who in GROUPS[group] if who.name == "compiled formula")
        assert losses.disagreement(GROUPS[group][0].build(), theirs.build(), 9, 4, "cpu") < 1e-5


def test_a_gpu_takes_larger_matrices():
    who = losses.Contender("a", lambda: losses.mask_vrn, largest=64, largest_on_cuda=256)
    assert [who.takes(n, device) for n, device in ((64, "cpu"), (256, "cpu"), (256, "cuda"), (257, "cuda"))] == [
        True,
        False,
        True,
        False,
    ]


def test_disagreement_sees_a_wrong_gradient():
    right = GROUPS["VRN"][1].build()
    wrong = [lambda a, b: right(a, b).detach() + 0 * a.sum() + 0 * b.sum(), lambda a, b: right(a, b) * 1.01]
    for other in wrong:
        assert losses.disagreement(right, other, 9, 4, "cpu") > 5e-3


def test_a_disagreement_stops_the_run(monkeypatch, tmp_path):
    wrong = losses.Contender("wrong", lambda: lambda a, b: 2 * losses.mask_vrn(a, b))
    monkeypatch.setitem(GROUPS, "VRN", [GROUPS["VRN"][0], wrong])
    result = CliRunner().invoke(app, ["study", "speed", "--groups", "VRN", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "VRN: wrong differs from varloss by" in result.output.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_where_it_is_not_strict_the_disagreeing_one_is_left_out(monkeypatch, tmp_path):
    wrong = losses.Contender("wrong", lambda: lambda a, b: 2 * losses.mask_vrn(a, b))
    monkeypatch.setitem(GROUPS, "VRN", [GROUPS["VRN"][0], wrong])
    plan = run.Plan([4], [4], ["VRN"], 1, "cpu", torch.float32, 0.001, memory=False)
    (message,) = run.run(plan, tmp_path / "rows.csv", Console(), strict=False)
    assert message.startswith("VRN: wrong is left out at d = 4: it differs from varloss by")
    with (tmp_path / "rows.csv").open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["varloss", "floor"]


def test_who_ends_the_cuda_context_is_named_and_can_be_left_out(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("an illegal memory access")

    broken = losses.Contender("broken", lambda: fail, needs="torch")
    monkeypatch.setitem(GROUPS, "VRN", [*GROUPS["VRN"], broken])
    built = {who.name: (who, who.build()) for who in (GROUPS["VRN"][0], broken)}
    monkeypatch.setattr(run, "disagreement", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(run.LostContextError, match=r"^broken: CUDA error: an illegal memory access"):
        run._check("VRN", built, 4, "cuda", leave_out=lambda *_: None, strict=False)
    monkeypatch.undo()
    monkeypatch.setitem(GROUPS, "VRN", [*GROUPS["VRN"], broken])
    plan = run.Plan([4], [4], ["VRN"], 1, "cpu", torch.float32, 0.001, memory=False)
    assert run.run(plan, tmp_path / "rows.csv", Console(), without={"broken"}) == []


def test_two_checkouts_are_timed_by_turns(monkeypatch, tmp_path):
    """Here a checkout against itself with a slower and another SimpleLoss; a loss that one of them lacks is left out."""
    root = Path(varloss.__file__).parents[1]
    other = tmp_path / "other"
    shutil.copytree(root / "varloss", other / "varloss", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "varloss" / "__init__.py").open("a") as file:
        file.write("import time\nclass SimpleLoss:\n    def __call__(self, a, b):\n")
        file.write("        [sum(range(1000)) for _ in range(300)]\n        return (a * b).sum()\n")
    chosen = {name: before.LOSSES[name] for name in ("NTXentLoss", "SimpleLoss")}
    monkeypatch.setattr(before, "LOSSES", {**chosen, "new": "varloss.NewLoss()"})
    arguments = ["study", "speed", "--before", str(other), "--sizes", "8", "--dims", "4", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "new, N = 8, d = 4 is left out: AttributeError" in result.output.replace("\n", " ")
    with (tmp_path / "before.csv").open(newline="") as file:
        rows = {row["loss"]: row for row in csv.DictReader(file)}
    assert rows.keys() == chosen.keys()
    assert {row["before"] for row in rows.values()} == {""}  # no checkout of git
    assert float(rows["NTXentLoss"]["difference"]) == 0
    assert 0.3 < float(rows["NTXentLoss"]["ratio"]) < 3
    assert float(rows["SimpleLoss"]["difference"]) > 0.01
    assert float(rows["SimpleLoss"]["ratio"]) < 0.5


def test_what_is_no_checkout_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["study", "speed", "--before", str(tmp_path)])
    assert result.exit_code == 2
    assert "--before takes a checkout of varloss, got" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "Triplet"], "unknown group 'Triplet'; there are NT-Xent + VRN"),
        (["--sizes", "8,x"], "--sizes takes int values separated by commas, got '8,x'"),
        (["--sizes", "1"], "--sizes takes numbers of at least 2, got 1"),
        (["--threads", "0"], "--threads takes numbers of at least 1, got 0"),
        (["--dtype", "int8"], "--dtype must be float32, bfloat16 or float16, got 'int8'"),
        (["--clock", "sun"], "--clock must be wall or thread, got 'sun'"),
        (["--clock", "thread", "--threads", "2", "--device", "cpu"], "for one thread on the CPU, got 2 on cpu"),
        (["--full", "--sizes", "8"], "give --full or --sizes, not both"),
    ],
)
def test_bad_options_are_named(arguments, message):
    result = CliRunner().invoke(app, ["study", "speed", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_floor_does_the_products_it_says(monkeypatch):
    monkeypatch.setattr(measure, "FLOOR_ROWS", 4)
    seen = []
    genuine = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append((*a.shape, b.shape[1])) or genuine(a, b, out=out))
    measure.floor(5, 3, "cpu")()
    assert seen == [(4, 3, 10), (4, 10, 3)] * 2 + [(2, 3, 10), (2, 10, 3)]


def test_actions_take_turns_and_the_first_of_a_block_is_not_counted(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) / 1000)
    order = []
    first, second = measure.interleaved([lambda: order.append("a"), lambda: order.append("b")], 0.05, "cpu")
    # One call takes a millisecond of this clock: 20 to a block of 20 ms, and one before them.
    assert "".join(order[4:]).startswith("a" * 21 + "b" * 21 + "a" * 21)
    assert len(first) == len(second) == 60


def test_clock_of_the_thread_leaves_waiting_out(monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)  # blocks of one call
    ((waited, *_),) = measure.interleaved([lambda: time.sleep(0.03)], 0.0, "cpu", of_thread=True)
    assert waited < 0.01
    ((waited, *_),) = measure.interleaved([lambda: time.sleep(0.03)], 0.0, "cpu")
    assert waited >= 0.03


def test_a_long_action_is_timed_once(monkeypatch):
    clock = iter(range(0, 10**6, 30))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    calls = []
    assert measure.interleaved([lambda: calls.append(1)] * 2, 5.0, "cpu") == [[30], [30]]
    assert len(calls) == 2


def test_a_package_that_cannot_run_here_is_left_out_and_named(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no kernel for this device")

    broken = losses.Contender("broken", lambda: fail, needs="torch")
    monkeypatch.setitem(GROUPS, "VRN", [GROUPS["VRN"][0], broken])
    arguments = [
        "study",
        "speed",
        "--groups",
        "VRN",
        "--sizes",
        "4",
        "--dims",
        "4",
        "--seconds",
        "0.001",
        "--no-memory",
    ]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    output = " ".join(result.output.split())
    assert "VRN: broken is left out at d = 4: RuntimeError: no kernel for this device" in output
    with (tmp_path / "rows.csv").open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["varloss", "floor"]


COMMITTED = Path(__file__).parents[3] / "benchmarks" / "results" / "speed" / "rows.csv"


def test_rows_table_and_picture(tmp_path):
    """One run with memory, then a larger one without; memory takes a process for each loss and size."""
    arguments = ["study", "speed", "--dims", "4", "--seconds", "0.01", "--output", str(tmp_path)]
    for extra in (
        ["--groups", "VRN", "--sizes", "8"],
        ["--groups", "VRN,NT-Xent + VRN", "--sizes", "8,16", "--no-memory"],
    ):
        result = CliRunner().invoke(app, [*arguments, *extra], catch_exceptions=False)
        assert result.exit_code == 0
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 2 * (3 + 4)
    with COMMITTED.open() as file:
        assert list(rows[0]) == csv.DictReader(file).fieldnames
    ours = [row for row in rows if row["loss"] == "varloss"]
    assert all(float(row["over_varloss"]) == 1 for row in ours)
    assert all(float(row["over_floor"]) == 1 for row in rows if row["loss"] == "floor")
    assert f"torch={torch.__version__.partition('+')[0]}" in rows[0]["versions"]
    assert {"date", "device", "threads", "command"} <= {key for key, value in rows[0].items() if value}
    assert [row["peak_extra_mib"] != "" for row in ours] == [True, False, False, False, False]
    # Of each loss and size the last row counts, with the memory of an earlier one.
    latest = report.latest(tmp_path / "rows.csv")
    assert len(latest) == 14
    assert latest["peak_extra_mib"].notna().sum() == 2
    assert (tmp_path / "speed-d4.png").stat().st_size > 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM from /proc/self/status")
def test_memory_of_a_matrix_is_seen():
    """The mask keeps several N x N matrices of 16 MiB; the closed form none."""
    ours, mask = (measure.peak_memory("VRN", who.name, 2048, 16, 1) for who in GROUPS["VRN"])
    assert ours < 16
    assert mask > 64
