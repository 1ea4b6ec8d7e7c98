"""Every loss on batches that nobody would write down, against its formula in float64, to the digit that its arithmetic allows."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import bounds, fuzz, oracles
from support.batches import Batch, batches, temperatures
from support.exhaustive import examples

import varloss_lightly
from varloss import functional as vf
from varloss._kernels import autograd, gathered, tiles
from varloss.distributed import Gathered, GatheredRows

# Modules that add VRN to a loss gather by themselves.
OF_GATHERED_ROWS = [name for name in fuzz.LOSSES if not name.startswith("with_vrn")]


@contextlib.contextmanager
def small_limits(wanted: bool) -> Iterator[None]:
    """Tiles of a few rows for all but the smallest batches, and panels of two."""
    if not wanted:
        yield
        return
    with (
        mock.patch.dict(autograd.WHOLE_ELEMENTS, cpu=8),
        mock.patch.multiple(tiles, CPU_TILE=(2, 3), KEPT_PER_ROW=2, KEPT_BYTES=(0, 64)),
        mock.patch.dict(gathered.PANEL_ELEMENTS, cpu=8),
        mock.patch.object(gathered, "MIN_HEIGHT", 2),
    ):
        yield


def exact(loss, batch, inputs, build, share=1.0):
    """The formula's value, gradients and errors; ``inputs`` are the tensors that ``build`` takes the unit rows of."""
    parts = fuzz.times(share, loss.parts) if share != 1 else loss.parts
    return bounds.formula(parts, build, inputs, batch.inside)


def assert_equals_formula(loss, call, batch, inputs, build, share=1.0, face="function"):
    found = exact(loss, batch, inputs, build, share)
    value = call()
    if found.unsure:  # rounding decides which negatives tie
        fewest = exact(loss, batch, inputs, lambda *units: replace(build(*units), fewest=True), share)
        low, high = sorted([fewest.value, found.value])
        error = fewest.value_error + found.value_error
        assert low - error <= value.item() <= high + error
        return
    bounds.assert_right(value, inputs, found, batch.inside, rounded=loss.rounded, learned=loss.learned.get(face, ()))


def two_views(batch, offset=0):
    return lambda *units: replace(oracles.TwoViews.of(*units, offset=offset), blur=batch.blur)


@pytest.mark.parametrize("name", fuzz.LOSSES)
@examples(250)
@given(data=st.data())
def test_losses_of_two_views_are_their_formulas(name, data):
    batch: Batch = data.draw(batches())
    loss = data.draw(fuzz.LOSSES[name](batch, max(batch.rows - 1, 0)))
    face = data.draw(st.sampled_from(["function", *loss.faces]))
    small = data.draw(st.booleans())
    # Modules with VRN warn of one view without gradient.
    one_alone = ("first", "second") if face == "function" and name in OF_GATHERED_ROWS else ()
    learn = data.draw(st.sampled_from(["both", "both", *one_alone]))
    views = [
        z.detach().requires_grad_(learn in ("both", which))
        for z, which in zip(batch.views, ("first", "second"), strict=True)
    ]

    def call():
        with small_limits(small):
            if face == "function":
                return loss.function(*views, **loss.options)
            return loss.faces[face](*views)

    assert_equals_formula(loss, call, batch, views, two_views(batch), face=face)


@pytest.mark.parametrize("name", OF_GATHERED_ROWS)
@examples(60)
@given(data=st.data())
def test_losses_of_gathered_rows_are_their_formulas(name, data):
    """One rank's rows against the rows of all, in any place among them, with gradient or without."""
    everything: Batch = data.draw(batches(rows=st.integers(1, 9)))
    local = data.draw(st.integers(1, everything.rows))
    offset = data.draw(st.integers(0, everything.rows - local))
    own = slice(offset, offset + local)
    batch = replace(everything, views=(everything.views[0][own], everything.views[1][own]))
    loss = data.draw(fuzz.LOSSES[name](batch, everything.rows - 1))
    share = data.draw(st.sampled_from([1.0, 0.5, 1.25]))
    learn_keys = data.draw(st.booleans())
    views = [z.detach().requires_grad_() for z in batch.views]
    keys = [z.detach().requires_grad_(learn_keys) for z in everything.views]
    small = data.draw(st.booleans())

    def call():
        with small_limits(small):
            return loss.function(*views, **loss.options, gathered=Gathered((keys[0], keys[1]), offset, share))

    assert_equals_formula(loss, call, batch, [*views, *keys], two_views(batch, offset), share)


IDS = st.sampled_from([0, 1, 2, 3, -1, -(2**63), 2**63 - 1, 10**12])


@pytest.mark.parametrize("name", ["nt_xent_indexed", "vrn_indexed"])
@examples(120)
@given(data=st.data())
def test_losses_by_index_are_their_formulas(name, data):
    """Any ids, in any numbers; against the rows themselves, or a part of them against all."""
    batch: Batch = data.draw(batches())
    z = torch.cat(batch.views).detach()
    rows = len(z)
    index = data.draw(st.lists(IDS, min_size=rows, max_size=rows))
    views = data.draw(st.lists(st.sampled_from([0, 1, 5, -7]), min_size=rows, max_size=rows))
    local = data.draw(st.none() | st.integers(1, rows)) if rows else None
    offset = data.draw(st.integers(0, rows - local)) if local else 0
    loss = data.draw(fuzz.by_index(name, batch, rows))
    ids = torch.tensor(index, dtype=torch.long), torch.tensor(views, dtype=torch.long)
    if local is None:
        inputs, given_rows, share = [z.requires_grad_()], None, 1.0
    else:
        share = data.draw(st.sampled_from([1.0, 0.5]))
        keys = z.clone().requires_grad_(data.draw(st.booleans()))
        inputs, given_rows = (
            [z[offset : offset + local].requires_grad_(), keys],
            GatheredRows(keys, *ids, offset, share),
        )
        ids = ids[0][offset : offset + local], ids[1][offset : offset + local]

    def build(u, keys=None):
        return oracles.Rows(u @ (u if keys is None else keys).T, index, views, offset)

    def call():
        return loss.function(inputs[0], ids[0], views=ids[1], **loss.options, gathered=given_rows)

    assert_equals_formula(loss, call, batch, inputs, build, share)


@pytest.mark.parametrize("name", ["queue_info_nce", "vrn_queue"])
@examples(120)
@given(data=st.data())
def test_losses_against_a_queue_are_their_formulas(name, data):
    """Any slots valid, keys of the queue of length 1 or none, in any precision."""
    batch: Batch = data.draw(batches())
    slots = data.draw(st.integers(0, 12))
    dtype = (
        torch.float64 if batch.inside == torch.float64 else data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    queue = torch.nn.functional.normalize(
        torch.randn(slots, batch.dim, generator=generator, dtype=torch.float64), dim=1
    )
    queue = (queue * torch.randint(0, 4, (slots, 1), generator=generator).clamp_max(1)).to(dtype)
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots)), dtype=torch.bool)
    loss = data.draw(fuzz.against_queue(name, batch, slots))
    face = data.draw(st.sampled_from(["function", *loss.faces]))
    views = [z.detach().requires_grad_() for z in batch.views]
    inputs = views if name == "queue_info_nce" else views[:1]
    if face != "function":
        module = loss.faces[face]
        kept = queue[valid]
        bank = module.memory_bank
        bank.reset_parameters()
        bank.filled.zero_()
        bank.ptr.zero_()
        bank.bank[: len(kept)] = kept
        bank.filled.fill_(len(kept))
        views[1].requires_grad_(face == "lightly")

    def call():
        if face != "function":
            return loss.faces[face](*inputs)
        return loss.function(*inputs, queue, valid=valid, **loss.options)

    def build(query, *more):
        *key, kept = more
        positive = (query * key[0]).sum(1) if key else query[:0].sum(1)
        return oracles.Rows(query @ kept.T, positive=positive)

    found = bounds.formula(loss.parts, build, inputs, batch.inside, [queue[valid].double()])
    bounds.assert_right(call(), inputs, found, batch.inside)


def only(loss, own):
    """The options of a part of the rows: weights are those of its samples."""
    return {name: x[..., own] if isinstance(x, torch.Tensor) and x.ndim else x for name, x in loss.options.items()}


@pytest.mark.parametrize("name", OF_GATHERED_ROWS)
@examples(40)
@given(data=st.data())
def test_the_mean_over_ranks_is_the_value_of_one_process(name, data):
    """Whoever holds which rows, with the gradient that ranks send each other. In float64, to three digits less than it has."""
    batch: Batch = data.draw(batches(rows=st.integers(1, 9), dtypes=[(torch.float64, torch.float64)]))
    loss = data.draw(fuzz.LOSSES[name](batch, batch.rows - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, batch.rows - 1)))) if batch.rows > 1 else []
    small = data.draw(st.booleans())
    views = [z.detach().requires_grad_() for z in batch.views]
    values = []
    for start, stop in pairwise([0, *cuts, batch.rows]):
        own = slice(start, stop)
        share = (stop - start) * (len(cuts) + 1) / batch.rows
        with small_limits(small):
            rows = Gathered((views[0], views[1]), start, share)
            values.append(loss.function(*(z[own] for z in views), **only(loss, own), gathered=rows))
    found = exact(loss, batch, views, two_views(batch))
    if not found.unsure:
        found.value_error *= 1e3
        found.gradient_errors = [1e3 * errors for errors in found.gradient_errors]
        bounds.assert_right(torch.stack(values).mean(), views, found, batch.inside)


@pytest.mark.parametrize("name", ["nt_xent", "with_vrn_in_one_pass", "vrn"])
@examples(4)
@given(data=st.data())
def test_large_batches_are_their_formulas(name, data):
    """Beyond the size up to which similarities are one matrix, and beyond one panel of gathered rows."""
    batch: Batch = data.draw(batches(rows=st.sampled_from([181, 183, 257, 363])))
    loss = data.draw(fuzz.LOSSES[name](batch, batch.rows - 1))
    views = [z.detach().requires_grad_() for z in batch.views]
    face = data.draw(st.sampled_from(["function", *loss.faces]))
    call = partial(loss.function, **loss.options) if face == "function" else loss.faces[face]
    assert_equals_formula(loss, lambda: call(*views), batch, views, two_views(batch))


@examples(60)
@given(batch=batches(rows=st.integers(1, 9)), sigma=st.floats(0.02, 50), data=st.data())
def test_weights_of_the_positives_are_their_formula(batch, sigma, data):
    """And the loss that they are for, by lightly's name."""
    start = data.draw(st.integers(0, batch.rows - 1))
    own = slice(start, data.draw(st.integers(start + 1, batch.rows)))
    u, v = (oracles.unit_rows(z.double(), batch.inside) for z in batch.views)
    weights = 2 - batch.rows * ((u * v).sum(1) / sigma).softmax(0)
    local = [z[own] for z in batch.views]
    found = vf.dclw_weights(*local, sigma=sigma, gathered=Gathered(batch.views, start))
    eps = torch.finfo(batch.inside).eps
    logit_error = bounds.similarity_error(batch.dim, eps) / sigma + 2 * eps / sigma
    allowed = (2 - weights) * (2 * logit_error + 16 * eps) + 2 * eps
    assert bool(((found - weights[own]).abs() <= bounds.SLACK * allowed[own]).all())
    views = [z.detach().requires_grad_() for z in batch.views]
    t = data.draw(temperatures)
    factors = weights.expand(2, -1)
    count = 2 * (batch.rows - 1)
    parts = [
        fuzz.softmax_part(lambda s: oracles.nt_xent_terms(s, t, "both", True), t, count),
        bounds.Part(lambda s: oracles.positive_terms(s, t, factors)),
    ]
    right = bounds.formula(parts, two_views(batch), views, batch.inside)
    # A weight's error times its similarity, and times its derivative, whose partner has length 1.
    of_weights = bounds.SLACK * allowed / batch.rows / abs(t) * (batch.rows > 1)
    right.value_error += of_weights.sum().item()
    right.gradient_errors = [errors + of_weights for errors in right.gradient_errors]
    bounds.assert_right(varloss_lightly.DCLWLoss(t, sigma)(*views), views, right, batch.inside)


def test_every_loss_is_drawn():
    drawn = {*OF_GATHERED_ROWS, "nt_xent_indexed", "vrn_indexed", "queue_info_nce", "vrn_queue", "dclw_weights"}
    functions = {name for name in vf.__all__ if inspect.isfunction(getattr(vf, name))}
    assert drawn == functions, "tests/support/fuzz.py draws every loss with its options"
