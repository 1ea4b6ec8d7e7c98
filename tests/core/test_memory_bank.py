"""The queue: its loss against loops, and the ring against a list."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from support import oracles
from support.agreement import assert_same
from support.cases import FAKE_DEVICE
from torch.utils.checkpoint import checkpoint

import varloss
import varloss_lightly
from varloss import functional as vf


def unit(z):
    return torch.nn.functional.normalize(z, dim=1)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_loss_equals_the_loops_and_ignores_unfilled_slots(temperature):
    query, key = oracles.views(5, 4)
    queue = unit(torch.randn(9, 4, dtype=torch.float64))
    ours = vf.queue_info_nce(query, key, queue, temperature=temperature)
    assert_same(ours, oracles.queue_info_nce(query, key, queue, temperature), [query, key])
    valid = torch.arange(9) < 6
    ours = vf.queue_info_nce(query, key, queue, temperature=temperature, valid=valid)
    assert_same(ours, oracles.queue_info_nce(query, key, queue[:6], temperature), [query, key])


def test_queue_gets_no_gradient():
    query, key = oracles.views(3, 4)
    queue = unit(torch.randn(9, 4, dtype=torch.float64)).requires_grad_()
    (vf.queue_info_nce(query, key, queue) + vf.vrn_queue(query, queue, num_samples=9)).backward()
    assert queue.grad is None


def test_empty_queue_gives_an_attached_zero():
    query, key = oracles.views(3, 4)
    loss = vf.queue_info_nce(query, key, torch.zeros(6, 4), valid=torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros_like(query))


@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [7], [8], [17], [2, 17, 3], [5, 7, 1, 30], [1] * 9])
def test_ring_holds_the_last_keys_whatever_the_batch(batches):
    bank, history = varloss.MemoryBank(7, 3), []
    for size in batches:
        keys = torch.randn(size, 3)
        bank.enqueue(keys)
        history += list(unit(keys))
        held = bank.bank[bank.valid()]
        assert int(bank.filled) == min(7, len(history)) == len(held)
        assert int(bank.ptr) == len(history) % 7
        # Slot s holds the latest key whose position is s modulo the size.
        for slot in range(min(7, len(history))):
            latest = max(i for i in range(len(history)) if i % 7 == slot)
            torch.testing.assert_close(bank.bank[slot], history[latest])


def test_ring_takes_half_precision_and_detaches():
    bank = varloss.MemoryBank(4, 3)
    bank.enqueue(torch.randn(2, 3, dtype=torch.float16, requires_grad=True))
    assert bank.bank.dtype == torch.float32
    assert not bank.bank.requires_grad
    with pytest.raises(ValueError, match="keys of dimension 3; got 5"):
        bank.enqueue(torch.randn(2, 5))


def test_ring_does_not_wait_for_the_device():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        bank = varloss.MemoryBank(7, 3).to(FAKE_DEVICE)
        for size in (3, 9):
            bank.enqueue(torch.empty(size, 3, device=FAKE_DEVICE))
        assert bank.valid().device.type == FAKE_DEVICE


def test_module_enqueues_after_the_loss_and_its_backward_sees_the_old_bank():
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4), temperature=0.3)
    first = unit(torch.randn(5, 4))
    loss_fn.enqueue(first)
    query, key = (z.detach().float().requires_grad_() for z in oracles.views(5, 4))
    loss = loss_fn(query, key)
    assert int(loss_fn.memory_bank.filled) == 8
    reference = oracles.queue_info_nce(query.double(), key.double(), first.double(), 0.3)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(query.grad, torch.autograd.grad(reference, query)[0], rtol=1e-4, atol=1e-6)
    assert key.grad is None


@pytest.mark.parametrize(("update", "requires_grad", "filled"), [(None, True, 5), (None, False, 0), (True, False, 5)])
def test_module_enqueues_where_training(update, requires_grad, filled):
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))
    loss_fn(torch.randn(5, 4, requires_grad=requires_grad), torch.randn(5, 4), update=update)
    assert int(loss_fn.memory_bank.filled) == filled


def test_bank_survives_every_way_of_copying():
    original = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))
    original(torch.randn(5, 4, requires_grad=True), torch.randn(5, 4))
    restored = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))
    restored.load_state_dict(original.state_dict())
    for copied in (restored, copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        torch.manual_seed(1)
        query, key = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
        expected = copy.deepcopy(original)
        assert torch.equal(copied(query, key), expected(query, key))
        assert torch.equal(copied.memory_bank.bank, expected.memory_bank.bank)
        assert torch.equal(copied.memory_bank.ptr, expected.memory_bank.ptr)


def test_checkpoint_without_a_bank_loads_with_a_warning():
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))
    with pytest.warns(UserWarning, match="holds no memory bank"):
        loss_fn.load_state_dict({})


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (8, ValueError, r"must be a pair \(number of keys, dimension\); got 8"),
        ((8, 0), ValueError, "dimension of the bank must be at least 1; got 0"),
        ((0, 8), ValueError, "number of slots must be at least 1; got 0"),
        ((2.5, 8), TypeError, "number of slots must be an integer; got float"),
    ],
)
def test_bad_sizes_are_named(size, error, message):
    with pytest.raises(error, match=message):
        varloss.QueueInfoNCELoss(memory_bank_size=size)


def test_bad_keys_are_named_as_the_caller_names_them():
    with pytest.raises(TypeError, match=r"^key must have a floating-point dtype"):
        varloss.QueueInfoNCELoss(memory_bank_size=(8, 4)).enqueue(torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(TypeError, match=r"^keys must have a floating-point dtype"):
        varloss.MemoryBank(8, 4).enqueue(torch.ones(2, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("queue", "valid", "error", "message"),
    [
        (torch.ones(6, 3), None, ValueError, "query and queue must have the same embedding dimension"),
        (torch.ones(6, 4), torch.ones(6), TypeError, "valid must be a boolean tensor; got torch.float32"),
        (torch.ones(6, 4), torch.ones(5, dtype=torch.bool), ValueError, "one entry for each of the 6 slots"),
    ],
)
def test_bad_queues_are_named(queue, valid, error, message):
    z = torch.ones(2, 4)
    with pytest.raises(error, match=message):
        vf.queue_info_nce(z, z, queue, valid=valid)
    with pytest.raises(error, match=message):
        vf.vrn_queue(z, queue, num_samples=9, valid=valid)


def steps_of_moco(build, around, *, wrap):
    """Gradients of four steps, and the bank after them; ``around`` is what the checkpoint holds, ``wrap`` makes it."""
    torch.manual_seed(3)
    encoder, loss_fn = torch.nn.Linear(5, 4), build()
    found = []
    for _ in range(4):
        x0, x1, k0, k1 = torch.randn(4, 6, 5)
        k0, k1 = (torch.nn.functional.normalize(encoder(x).detach() + 0.1, dim=1) for x in (k0, k1))
        x0, x1 = x0.requires_grad_(), x1.requires_grad_()
        if around == "encoder and loss":
            loss = wrap(lambda x, k: loss_fn(encoder(x), k), x0, k0)
        elif around == "loss":
            loss = wrap(loss_fn, encoder(x0), k0)
        else:  # each direction of a symmetric loss
            loss = wrap(loss_fn, encoder(x0), k0) + wrap(loss_fn, encoder(x1), k1)
        encoder.zero_grad()
        loss.backward()
        found.append(encoder.weight.grad.clone())
    return [*found, loss_fn.memory_bank.bank, loss_fn.memory_bank.ptr, loss_fn.memory_bank.filled]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("around", ["loss", "encoder and loss", "two losses"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: varloss.QueueInfoNCELoss(memory_bank_size=(20, 4)),
        lambda: varloss_lightly.NTXentLoss(0.2, memory_bank_size=(20, 4)),
        lambda: varloss_lightly.NTXentLoss(0.2, memory_bank_size=(3, 4)),
    ],
)
def test_a_checkpoint_sees_the_bank_of_the_first_time(build, around, use_reentrant):
    plain = steps_of_moco(build, around, wrap=lambda function, *rows: function(*rows))
    again = steps_of_moco(
        build, around, wrap=lambda function, *rows: checkpoint(function, *rows, use_reentrant=use_reentrant)
    )
    for a, b in zip(again, plain, strict=True):
        assert torch.equal(a, b)


def test_a_call_too_long_ago_for_a_checkpoint_is_named():
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(9, 4))
    query, key = torch.randn(2, 3, 4)
    loss = checkpoint(loss_fn, query.requires_grad_(), key, use_reentrant=False)
    for _ in range(20):
        loss_fn.enqueue(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="Keep this loss outside of the checkpoint"):
        loss.backward()


@pytest.mark.parametrize("after", ["another call", "reset", "load"])
def test_a_checkpoint_that_cannot_know_its_bank_says_so(after):
    """Rows that differ by less than kernels with atomics do, and a ring that is another one by then."""
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(9, 4))
    query, key = torch.ones(4, 4) + 1e-6 * torch.randn(4, 4), torch.ones(4, 4)
    loss = checkpoint(loss_fn, query.requires_grad_(), key, use_reentrant=False)
    if after == "another call":
        with torch.no_grad():
            loss_fn(query, key)
    elif after == "reset":
        loss_fn.memory_bank.reset_parameters()
    else:
        loss_fn.load_state_dict(loss_fn.state_dict())
    with pytest.raises(RuntimeError, match="Keep this loss outside of the checkpoint"):
        loss.backward()


def test_the_journal_is_neither_copied_nor_pickled_and_keeps_no_batch_alive():
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(9, 4))
    empty = len(pickle.dumps(loss_fn))
    for _ in range(20):
        loss_fn(torch.randn(200, 4)[:4].requires_grad_(), torch.randn(200, 4)[:4])
    assert len(pickle.dumps(loss_fn)) <= empty + 64
    for bank in (loss_fn.memory_bank, copy.deepcopy(loss_fn.memory_bank)):
        held = [rows for call in bank._calls for rows in (call.query, call.key)]
        assert all(rows.untyped_storage().nbytes() == 4 * rows.numel() for rows in held)
    assert not copy.deepcopy(loss_fn.memory_bank)._calls
    assert not loss_fn.double().memory_bank._calls


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), -float("inf")])
def test_a_key_that_is_not_finite_leaves_a_neutral_slot(entry):
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))
    keys = torch.randn(3, 4)
    keys[1, 2] = entry
    loss_fn.enqueue(keys)
    assert torch.equal(loss_fn.memory_bank.bank[1], torch.zeros(4))
    assert loss_fn(*torch.randn(2, 3, 4)).isfinite()


def test_a_bank_is_not_written_inside_a_transform():
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(8, 4))
    query, key = torch.randn(2, 3, 4)
    with pytest.raises(RuntimeError, match="inside a transform"):
        torch.func.grad(loss_fn)(query, key)
    loss_fn.enqueue(torch.randn(5, 4))
    gradient = torch.func.grad(partial(loss_fn, update=False))(query, key)
    query.requires_grad_()
    loss_fn(query, key, update=False).backward()
    torch.testing.assert_close(gradient, query.grad)
