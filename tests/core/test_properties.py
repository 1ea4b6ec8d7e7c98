"""Properties that hold for any batch, shape, dtype and option; hypothesis searches for counterexamples."""

import math
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import kinds
from support.exhaustive import examples

import varloss
from varloss import functional as vf

SETTINGS = examples(60)


@st.composite
def batches(draw):
    """Two views in float64; rows of very different length, some of them twice."""
    rows, dim = draw(st.integers(2, 7)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    z = z * 10.0 ** torch.randint(-2, 3, (2, rows, 1), generator=generator)
    if draw(st.booleans()):
        z[0, -1] = z[0, 0]
    return z[0].requires_grad_(), z[1].requires_grad_()


options = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 5),
        "negatives": kinds,
        "decoupled": st.booleans(),
    }
)


@SETTINGS
@given(batch=batches(), options=options, seed=st.integers(0, 2**31))
def test_losses_know_neither_lengths_nor_order_nor_axes(batch, options, seed):
    """Rows scaled, samples permuted, the space rotated, the views swapped: the value is the same, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = (z.detach() for z in batch)
    rotation = torch.linalg.qr(torch.randn(z0.shape[1], z0.shape[1], generator=generator, dtype=z0.dtype)).Q
    order = torch.randperm(len(z0), generator=generator)
    lengths = 10 ** (4 * torch.rand(2, len(z0), 1, generator=generator, dtype=z0.dtype) - 2)
    other = (lengths[0] * z1 @ rotation)[order], (lengths[1] * z0 @ rotation)[order]
    for loss in (
        lambda *views: vf.nt_xent(*views, **options),
        lambda *views: vf.dhel(*views, temperature=options["temperature"]),
        lambda *views: vf.vrn(*views, target=-0.1, pairs=options["negatives"]),
        vf.kcl,
        vf.spectral_loss,
    ):
        assert loss(*other).item() == pytest.approx(loss(z0, z1).item(), rel=1e-9, abs=1e-9)


@SETTINGS
@given(batch=batches(), options=options)
def test_gradients_stand_at_right_angles_to_their_rows(batch, options):
    """No loss changes along a row, because the length of a row does not matter."""
    criterion = varloss.WithVRN(varloss.NTXentLoss(**options), weight=2.0, num_samples=50)
    for gradient, row in zip(torch.autograd.grad(criterion(*batch), batch), batch, strict=True):
        along = (gradient * row).sum(1) / row.norm(dim=1)
        assert bool((along.abs() <= 1e-9 * (gradient.norm(dim=1) + 1e-12) + 1e-12).all())


@SETTINGS
@given(
    size=st.integers(1, 9),
    counts=st.lists(st.integers(1, 12), max_size=8),
    seed=st.integers(0, 2**31),
)
def test_a_memory_bank_holds_the_newest_keys(size, counts, seed):
    """Against a deque: for any keys in any numbers, the last `size` keys are valid."""
    generator = torch.Generator().manual_seed(seed)
    bank, kept = varloss.MemoryBank(size, 3), deque(maxlen=size)
    for count in counts:
        keys = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
        bank.enqueue(keys)
        kept.extend(tuple(row) for row in keys.tolist())
    held = {tuple(row) for row in bank.bank[bank.valid()].tolist()}
    assert int(bank.valid().sum()) == len(kept)
    assert all(any(math.dist(row, other) < 1e-6 for other in held) for row in kept)
