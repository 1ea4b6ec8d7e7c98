"""Losses inside a group of ranks cost the others nothing, and what is wrong on one rank is raised on every rank at once."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from support import group_ranks, oracles, ranks

import varloss

BATCH = tuple(z.detach() for z in oracles.views(12, 5))
SECONDS = 5.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    return ranks.run(3, folder, group_ranks.everything, *BATCH, timeout=group_ranks.TIMEOUT)


@functools.cache
def one_process(name):
    return ranks.one_step(name, *BATCH, None)


@pytest.mark.parametrize("name", ranks.losses())
def test_group_equals_one_process_with_its_rows(name, found):
    """Two of three ranks; with DistributedDataParallel of the same group. The third calls nothing."""
    results = [found[rank]["losses"][name] for rank in group_ranks.MEMBERS]
    ranks.assert_is_one_process(2, results, one_process(name))


def test_group_of_one_rank_is_one_process(found):
    ranks.assert_is_one_process(1, [found[group_ranks.OUTSIDE]["alone"]], one_process("with-vrn"))


def test_group_of_hosts_is_made_by_the_members_alone(found):
    """A group of the world can be made afterwards: torch has counted as many groups on every rank."""
    for rank in group_ranks.MEMBERS:
        assert found[rank]["hosts"] == [[2 + member for member in group_ranks.MEMBERS]] * 2
    assert [int(result["later group"]) for result in found] == [3, 3, 3]


def test_group_is_a_constant_of_a_compiled_graph(found):
    for rank in group_ranks.MEMBERS:
        torch.testing.assert_close(found[rank]["compiled"]["graph"], found[rank]["compiled"]["eager"])


def test_rank_outside_the_group_is_told_so(found):
    assert "not a member of the process group" in found[group_ranks.OUTSIDE]["outside"]
    assert "process_group=not a member" in found[group_ranks.OUTSIDE]["printed outside"]


def test_destroyed_group_is_not_the_world(found):
    assert all("is not registered" in result["destroyed"] for result in found)


def test_copies_share_the_group_and_pickles_say_that_it_is_gone(found):
    for rank, result in enumerate(found):
        copies = result["copies"]
        assert copies["shared"]
        assert copies["set again"]
        shown = "ranks [0, 2]" if rank in group_ranks.MEMBERS else "not a member"
        assert f"process_group={shown}" in copies["printed"]
        assert "process_group=not kept by pickle" in copies["printed unpickled"]
        assert "was not kept when it was pickled" in copies["unpickled"]
        assert copies["unpickled twice"] == copies["unpickled"]


# Another number of keys is no fault.
SOUND = ("enqueue / views of different N",)


def errors(found):
    names = [name for name in found[0]["faults"] if not name.endswith("none") and name not in SOUND]
    return {name: [result["faults"][name] for result in found] for name in names}


def test_what_is_wrong_on_one_rank_is_raised_on_every_rank_at_once(found):
    for name, outcomes in errors(found).items():
        texts = {text for text, _ in outcomes}
        assert len(texts) == 1, (name, texts)
        (text,) = texts
        kind, message = text.split(": ", 1) if text else ("", "")
        assert kind in ("TypeError", "ValueError"), (name, text)
        told = message.startswith("rank 1: ") or "in rank order" in message
        assert told or name == "every rank", (name, text)
        assert max(seconds for _, seconds in outcomes) < SECONDS, name
    assert errors(found)["every rank"][0][0].startswith("ValueError: z0 must be 2-D")


def test_ranks_stay_together_after_an_error(found):
    for result in found:
        for name, (text, seconds) in result["faults"].items():
            if name.endswith("none"):
                assert text == "", name
                assert seconds < SECONDS


def test_rows_without_gradient_on_one_rank_leave_the_gradients_of_the_others(found):
    for rank, result in enumerate(found):
        for name, (usual, constant) in result["constant"].items():
            expected = torch.zeros_like(usual) if rank == group_ranks.FAULTY else usual
            torch.testing.assert_close(constant, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_a_loss_exchanges_sizes_once(found):
    """Eight integers, before anything else."""
    for result in found:
        for name, calls in result["calls"].items():
            assert [size for _, size in calls].count(64) == 1, name
            assert calls[0] == ("allgather_", 64), name


def test_page_shows_a_group_of_a_mesh(found):
    torch.manual_seed(3)
    model = torch.nn.Linear(5, 4, dtype=torch.float64)
    value = varloss.NTXentLoss()(*model(torch.cat(BATCH)).chunk(2))
    value.backward()
    torch.testing.assert_close(torch.stack([r["mesh"]["value"] for r in found]).mean(), value.detach())
    for result in found:
        torch.testing.assert_close(result["mesh"]["weight"], model.weight.grad)


def test_learned_temperature_drifts_beside_ddp_and_not_as_the_page_shows(found):
    beside, inside = ([result["temperatures"][name] for result in found] for name in ("beside", "inside"))
    assert len({tuple(steps) for steps in beside}) == 3
    assert len({tuple(steps) for steps in inside}) == 1


def test_process_group_needs_gather_distributed():
    with pytest.raises(ValueError, match=r"^process_group needs gather_distributed=True"):
        varloss.NTXentLoss(process_group=torch.distributed.GroupMember.NON_GROUP_MEMBER)


def test_mesh_in_place_of_a_group_is_refused():
    with pytest.raises(TypeError, match=r"process_group must be a torch\.distributed\.ProcessGroup"):
        varloss.NTXentLoss(gather_distributed=True, process_group="dp")


def test_module_of_a_group_works_in_one_process_after_pickling():
    loss_fn = varloss.KCLLoss(gather_distributed=True, process_group=torch.distributed.GroupMember.NON_GROUP_MEMBER)
    z = torch.randn(2, 4, 3)
    for twin in (loss_fn, copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        assert torch.equal(twin(*z), varloss.KCLLoss()(*z))
