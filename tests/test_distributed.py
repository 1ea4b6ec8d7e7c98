"""Several ranks with different rows are one process with all of them."""

from __future__ import annotations

import oracles
import pytest
import ranks
import torch

import varloss


@pytest.fixture(scope="module")
def batch():
    return tuple(z.detach() for z in oracles.views(6, 5))


@pytest.fixture(scope="module", params=[2, 3])
def steps(request, batch, tmp_path_factory):
    """Every loss on 2 and on 3 ranks, one set of processes each."""
    world = request.param
    sizes = [6 // world] * world
    return world, ranks.run(world, tmp_path_factory.mktemp("ranks"), ranks.all_losses, *batch, sizes)


def assert_is_one_process(name, world, results, batch):
    truth = ranks.one_process(name, *batch)
    value = torch.stack([result["value"] for result in results]).mean()
    torch.testing.assert_close(value, truth["value"], rtol=1e-12, atol=1e-14)
    for key in ("grad0", "grad1"):
        whole = torch.cat([result[key] for result in results])
        torch.testing.assert_close(whole, world * truth[key], rtol=1e-10, atol=1e-13)
    for result in results:
        torch.testing.assert_close(result["weight"], truth["weight"], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ranks.losses())
def test_ranks_equal_one_process(name, steps, batch):
    """Mean of values; input gradient times the number of ranks; parameter gradient through DistributedDataParallel."""
    world, results = steps
    assert_is_one_process(name, world, [result[name] for result in results], batch)


def test_vrn_takes_ranks_of_unequal_size(batch, tmp_path):
    results = ranks.run(2, tmp_path, ranks.unequal_vrn, *batch, [5, 1])
    for name in results[0]:
        truth = ranks.one_process(name, *batch)
        for result in results:
            torch.testing.assert_close(result[name]["value"], truth["value"], rtol=1e-12, atol=1e-14)
        whole = torch.cat([result[name]["grad0"] for result in results])
        torch.testing.assert_close(whole, 2 * truth["grad0"], rtol=1e-10, atol=1e-13)


def test_indexed_rows_equal_one_process(tmp_path):
    """Rank 0 holds a sample without a second crop: the ranks' means have different numbers of anchors."""
    x = torch.cat(oracles.views(4, 5)).detach()
    index, views = torch.tensor([0, 1, 0, 5, 2, 1, 2, 3]), torch.tensor([0, 0, 1, 0, 0, 1, 1, 0])
    results = ranks.run(2, tmp_path, ranks.indexed_rows, x, index, views, [4, 4])
    whole = x.clone().requires_grad_()
    for kind in ("cross", "within", "both"):
        for name, truth in {
            f"nt_xent-{kind}": varloss.functional.nt_xent_indexed(whole, index, views=views, negatives=kind),
            f"vrn-{kind}": varloss.functional.vrn_indexed(whole, index, views=views, num_samples=50, pairs=kind),
        }.items():
            mean = sum(result[name][0] for result in results) / 2
            torch.testing.assert_close(mean, truth.detach(), rtol=1e-12, atol=1e-14)
            grad = torch.cat([result[name][1] for result in results])
            torch.testing.assert_close(grad, 2 * torch.autograd.grad(truth, whole)[0], rtol=1e-10, atol=1e-13)


def test_gathered_bank_is_the_same_on_every_rank_and_that_of_one_process(tmp_path):
    x = oracles.views(6, 5)[0].detach()
    results = ranks.run(2, tmp_path, ranks.bank_after_steps, x, [3, 3], 2)
    bank = varloss.MemoryBank(7, 5)
    for step in range(2):
        bank.enqueue(x + step)
    for result in results:
        for name, value in bank.state_dict().items():
            torch.testing.assert_close(result[f"memory_bank.{name}"], value)


def test_collectives_differentiate_twice(tmp_path):
    x = oracles.views(4, 2)[0].detach()
    results = torch.cat(ranks.run(2, tmp_path, ranks.second_order, x, [2, 2]))
    whole = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(2 * (whole.pow(3).sum() + whole.sum().pow(3)), whole, create_graph=True)
    torch.testing.assert_close(results, torch.autograd.grad(grad.sum(), whole)[0], rtol=1e-10, atol=1e-12)


def test_without_a_process_group_gathering_is_the_identity():
    z = torch.randn(3, 2, requires_grad=True)
    assert varloss.distributed.gather(z) is z
    assert varloss.distributed.all_reduce_sum(z) is z
    assert varloss.distributed.gather_two_views(z, z) == (None, 0)
    assert (varloss.distributed.rank(), varloss.distributed.world_size()) == (0, 1)
    gathered, local = (varloss.NTXentLoss(gather_distributed=flag)(z, z) for flag in (True, False))
    assert torch.equal(gathered, local)


@pytest.mark.parametrize(
    "build",
    [
        lambda: varloss.NTXentLoss(gather_distributed=True),
        lambda: varloss.DHELLoss(gather_distributed=True),
        lambda: varloss.VRNLoss(num_samples=9, gather_distributed=True),
        lambda: varloss.QueueInfoNCELoss(memory_bank_size=(4, 2), gather_distributed=True),
    ],
)
def test_gathering_needs_a_build_with_distributed_support(build, monkeypatch):
    build()
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch\.distributed is not available"):
        build()
