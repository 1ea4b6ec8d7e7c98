"""Several ranks with different rows, and different numbers of rows, give the same results as one process with all rows."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from support import oracles, ranks

import varloss

ROWS = 12
SPLITS = {
    1: {"even": [12], "uneven": [12]},
    2: {"even": [6, 6], "uneven": [5, 7]},
    3: {"even": [4, 4, 4], "uneven": [7, 0, 5]},
    4: {"even": [3, 3, 3, 3], "uneven": [1, 5, 2, 4]},
}
BATCH = tuple(z.detach() for z in oracles.views(ROWS, 5))
LABELS = torch.arange(ROWS) % 3


@pytest.fixture(scope="module", params=SPLITS)
def processes(request, tmp_path_factory):
    """The number of ranks, the results of each rank, and the errors on the other ranks after rank 1 died."""
    world = request.param
    folder = tmp_path_factory.mktemp("ranks")
    finale = ranks.rank_1_dies if world > 1 else None
    results = ranks.run(world, folder, ranks.everything, *BATCH, LABELS, SPLITS[world], finale=finale)
    return world, results, ranks.errors_of_others(folder)


@pytest.fixture
def found(processes):
    return processes[:2]


@functools.cache
def one_process(name):
    return ranks.one_step(name, *BATCH, None)


@pytest.mark.parametrize("split", ["even", "uneven"])
@pytest.mark.parametrize("name", ranks.losses())
def test_ranks_equal_one_process(name, split, found):
    """Mean of values; input gradient times the number of ranks; parameter gradient through DistributedDataParallel."""
    world, results = found
    ranks.assert_is_one_process(world, [result["losses"][split][name] for result in results], one_process(name))


@pytest.mark.parametrize("name", ["queue", "lightly-queue"])
def test_gathered_bank_is_the_same_on_every_rank_and_that_of_one_process(name, found):
    _, results = found
    loss_fn = ranks.losses()[name]()
    for step in range(3):
        loss_fn.memory_bank.enqueue(BATCH[0][:, :4] + step)
    for result in results:
        for key, value in loss_fn.memory_bank.state_dict().items():
            torch.testing.assert_close(result["banks"][name][key], value)


def test_collectives_differentiate_twice(found):
    world, results = found
    whole = BATCH[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(world * (whole.pow(3).sum() + whole.sum().pow(3)), whole, create_graph=True)
    expected = torch.autograd.grad(grad.sum(), whole)[0]
    # One process sums nothing over ranks, so the second derivative has no factor either.
    torch.testing.assert_close(torch.cat([r["second order"] for r in results]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_rows_are_summed_in_fp32(dtype, found):
    """One ulp, for any number of ranks."""
    world, results = found
    exact = [z.to(dtype).double().requires_grad_() for z in BATCH]
    value = varloss.WithVRN(varloss.NTXentLoss(), weight=2, num_samples=50)(*exact)
    truth = torch.stack(torch.autograd.grad(2**8 * world * value, exact))
    ours = torch.cat([result["half"][str(dtype)] for result in results], dim=1)
    ulp = truth.abs().max() * torch.finfo(dtype).eps
    assert (ours.double() - truth).abs().max() <= ulp


def test_metrics_are_those_of_all_samples(found):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from support import metric_ranks

    world, results = found
    batches = [
        part
        for rows in zip(*(z.split(SPLITS[world]["uneven"]) for z in (*BATCH, LABELS)), strict=True)
        for part in zip(*(z.split(metric_ranks.batches(len(z))) for z in rows), strict=True)
    ]
    for name, metric in metric_ranks.all_metrics(5).items():
        for batch in batches:
            metric_ranks.update(metric, *batch)
        value = metric.compute()
        value = torch.stack(list(value.values())) if isinstance(value, dict) else value
        for result in results:
            torch.testing.assert_close(result["metrics"][name], value, rtol=1e-10, atol=1e-13)


def test_ranks_whose_rows_do_not_match_raise(found):
    world, results = found
    for result in results:
        errors = result["errors"]
        assert errors["views"] == "z0 and z1 must have the same shape; got (3, 4) and (2, 4)."
        assert errors["none"] == ""
        if world == 1:  # there is no other rank
            assert errors["width"] == errors["dtype"] == errors["half"] == ""
            continue
        widths, dtypes = (", ".join(each) for each in (map(str, range(4, 4 + world)), ["torch.float32"] * world))
        assert errors["width"].endswith(f"one dtype; got, in rank order, {widths} numbers a row of {dtypes}.")
        for key, first, others in (("dtype", "float32", "float64"), ("half", "float16", "bfloat16")):
            dtypes = ", ".join([f"torch.{first}"] + [f"torch.{others}"] * (world - 1))
            assert errors[key].endswith(f" numbers a row of {dtypes}.")


def test_assuming_equal_batches_saves_the_exchange_of_sizes(found):
    world, results = found
    for result in results:
        seen = result["without sizes"]
        torch.testing.assert_close(seen["value"], seen["usual value"], rtol=0, atol=0)
        names = [[name for name, _ in seen[key]] for key in ("usual", "promised")]
        assert names == ([["allgather_"] * 2, ["allgather_"]] if world > 1 else [[], []])


def test_sizes_are_exchanged_on_hosts_if_the_group_takes_no_cpu_tensors(found):
    world, results = found
    for result in results:
        assert result["group of hosts"] == [[2 + rank for rank in range(world)]] * 2


def test_vrn_exchanges_gram_matrices_instead_of_rows(found):
    """2 D² + 2 D + 7 numbers for any batch size, forward and backward; otherwise the rows of both views."""
    world, results = found
    n, d = ranks.PAYLOAD_ROWS, ranks.PAYLOAD_DIM
    gram, rows = 4 * (2 * d * d + 2 * d + 7), 4 * 2 * n * d
    for result in results:
        if world == 1:
            assert not any(result["payload"].values())
            continue
        assert result["payload"]["gram"] == [("allgather_", 8 * 8), *[("allreduce_", gram)] * 2]
        sizes, *of_rows = result["payload"]["rows"]
        assert sizes == ("allgather_", 8 * 8)
        assert of_rows == [("allgather_", rows), ("allreduce_", world * rows)]


def test_evaluating_a_queue_uses_no_collectives(found):
    """A single rank can evaluate."""
    for result in found[1]:
        assert result["payload"]["queue"] == result["payload"]["lightly-queue"] == []


def test_collectives_are_part_of_a_compiled_graph(found):
    world, results = found
    for result in results:
        assert bool(result["compiled"]) == (world == 2)
        for rows in (ROWS, ROWS - 1) if result["compiled"] else ():
            graph, eager = (result["compiled"][f"{how} {rows}"] for how in ("graph", "eager"))
            torch.testing.assert_close(graph, eager)


def assert_all_raised(errors, others, least, most):
    assert sorted(errors) == others
    for text in errors.values():
        seconds, reason = text.split("\n", 1)
        assert least <= float(seconds) < most
        assert reason


def test_other_ranks_raise_at_once_if_a_rank_dies(processes):
    """The connection breaks, so this takes much less than the process group's timeout of three minutes."""
    world, _, errors = processes
    assert_all_raised(errors, [rank for rank in range(world) if rank != 1 and world > 1], 0, 60)


def test_other_ranks_raise_after_the_timeout_if_a_rank_hangs(tmp_path):
    """The timeout is five seconds."""
    ranks.rank_1_hangs(2, tmp_path)
    assert_all_raised(ranks.errors_of_others(tmp_path), [0], 4, 60)


def test_without_a_process_group_gathering_is_the_identity():
    z = torch.randn(3, 2, requires_grad=True)
    assert varloss.distributed.all_reduce_sum(z) is z
    assert varloss.distributed.gather_views(z, z) is None
    assert (varloss.distributed.rank(), varloss.distributed.world_size()) == (0, 1)
    gathered, local = (varloss.NTXentLoss(gather_distributed=flag)(z, z) for flag in (True, False))
    assert torch.equal(gathered, local)


@pytest.mark.parametrize(
    "build",
    [
        lambda: varloss.NTXentLoss(gather_distributed=True),
        lambda: varloss.DHELLoss(gather_distributed=True),
        lambda: varloss.VRNRegularizer(weight=1, num_samples=9, gather_distributed=True),
        lambda: varloss.QueueInfoNCELoss(memory_bank_size=(4, 2), gather_distributed=True),
    ],
)
def test_gathering_needs_a_build_with_distributed_support(build, monkeypatch):
    build()
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch\.distributed is not available"):
        build()


def test_a_build_without_distributed_support_computes_losses():
    """Such a build lacks the types of torch.distributed, too."""
    script = """
import torch, torch.distributed as dist
dist.is_available = lambda: False
for name in ("ProcessGroup", "GroupMember", "ProcessGroupGloo"):
    delattr(dist, name)
import varloss
varloss.NTXentLoss()(*torch.randn(2, 5, 4))
varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))(*torch.randn(2, 5, 4))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
