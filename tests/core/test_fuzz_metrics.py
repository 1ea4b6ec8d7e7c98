"""Metrics on batches that nobody would write down, against loops in float64 or wider, to the digit that is documented."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import bounds, oracles
from support.batches import batches, kinds
from support.exhaustive import examples

from varloss import metrics

EPS = torch.finfo(torch.float64).eps


def units(batch, dtype=torch.float64):
    return [oracles.unit_rows(z.double(), dtype) for z in batch.views]


def off_diagonal(s):
    return s[~torch.eye(len(s), dtype=torch.bool)]


def error(batch):
    """Of a similarity in float64, in which the formula and the metric are computed."""
    return 2 * bounds.similarity_error(batch.dim, EPS)


def extended(z):
    """Unit rows with 64 bits of mantissa."""
    rows = z.double().numpy().astype(np.longdouble)
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return rows / np.where((length > 1e-152) & (length < 1e154), length, np.inf)


@examples(200)
@given(batch=batches(rows=st.integers(2, 9)), cut=st.integers(1, 8))
def test_similarity_statistics_have_the_error_that_is_documented(batch, cut):
    """Below 1e-14, as one batch and as sums of Gram matrices of its parts."""
    u, v = (extended(z) for z in batch.views)
    others = ~np.eye(batch.rows, dtype=bool)
    within = np.concatenate([(u @ u.T)[others], (v @ v.T)[others]])
    sets = ((u * v).sum(axis=1), (u @ v.T)[others], within)
    expected = [float(f(x)) for x in sets for f in (np.mean, np.var)]
    found = metrics.similarity_statistics(*batch.views)
    np.testing.assert_allclose([x.item() for x in found], expected, rtol=0, atol=1e-14)
    parts = [
        metrics.Grams.of(*(z[part] for z in batch.views), dtype=torch.float64).pack()
        for part in (slice(cut), slice(cut, None))
    ]
    grams = metrics.Grams.unpack(sum(parts), batch.dim)
    found = metrics.SimilaritySums.of_grams(grams).statistics()
    np.testing.assert_allclose([x.item() for x in found], expected, rtol=0, atol=1e-14)


@examples(100)
@given(batch=batches(rows=st.integers(1, 9)), cut=st.integers(0, 9), kind=kinds, target=st.floats(-1, 1))
def test_gram_matrices_of_parts_give_vrn_of_the_whole(batch, cut, kind, target):
    s = oracles.TwoViews.of(*units(batch, batch.inside))
    expected = oracles.vrn_terms(s, target, kind, 2).sum().item()
    parts = [metrics.Grams.of(*(z[part] for z in batch.views)).pack() for part in (slice(cut), slice(cut, None))]
    found = metrics.Grams.unpack(sum(parts), batch.dim).vrn(target=target, pairs=kind)
    allowed = 16 * torch.finfo(batch.inside).eps * (expected + target**2 + 1 / max(batch.rows - 1, 1))
    assert abs(found.item() - expected) <= 2 * allowed


@examples(60)
@given(batch=batches(rows=st.integers(1, 9)), alpha=st.sampled_from([1.0, 2.0, 2.5, 4.0]))
def test_alignment_is_its_formula(batch, alpha):
    u, v = units(batch)
    expected = (u - v).norm(dim=1).pow(alpha).mean()
    assert abs(metrics.alignment(*batch.views, alpha=alpha) - expected) <= alpha * 2**alpha * error(batch)


@examples(60)
@given(batch=batches(rows=st.integers(2, 9)), t=st.floats(0.01, 200))
def test_uniformity_is_its_formula(batch, t):
    x = units(batch)[0]
    expected = (off_diagonal(2 * t * (x @ x.T) - 2 * t)).logsumexp(0) - np.log(batch.rows * (batch.rows - 1))
    allowed = 2 * t * error(batch) + 64 * EPS * (1 + 4 * t)
    assert abs(metrics.uniformity(batch.views[0], t=t) - expected) <= allowed


@examples(60)
@given(batch=batches(rows=st.integers(2, 9)), data=st.data())
def test_tolerance_is_its_formula(batch, data):
    labels = torch.tensor(data.draw(st.lists(st.sampled_from([-3, 0, 7]), min_size=batch.rows, max_size=batch.rows)))
    same = labels.unsqueeze(1) == labels
    same.fill_diagonal_(False)
    assume(bool(same.any()))
    x = units(batch)[0]
    # A square of a sum, less the squares: a difference of numbers up to N^2, over the number of pairs.
    allowed = batch.rows**2 / same.sum() * error(batch)
    assert abs(metrics.tolerance(batch.views[0], labels) - (x @ x.T)[same].mean()) <= allowed


@examples(60)
@given(batch=batches(rows=st.integers(2, 9)), t=st.floats(0.003, 50), kind=kinds)
def test_relative_penalty_entropy_is_its_formula(batch, t, kind):
    s = oracles.TwoViews.of(*units(batch))
    logs = [(s.negatives(view, i, kind) / t).log_softmax(0) for view, i in s.anchors()]
    expected = -torch.stack([(x.exp() * x).sum() for x in logs]).mean()
    # A logit's error moves a share r by r times it, and r log r by r (1 + |log r|) times it; |log r| is at most 2/t + log K.
    most = 1 + 2 / t + np.log(2 * batch.rows)
    allowed = 2 * (error(batch) + 4 * EPS) / t * most + 64 * EPS * most
    assert abs(metrics.relative_penalty_entropy(*batch.views, temperature=t, negatives=kind) - expected) <= allowed


@examples(30)
@given(batch=batches(rows=st.integers(2, 9)))
def test_wasserstein_uniformity_is_its_formula(batch):
    assume(batch.dim > 1)
    x = units(batch)[0]
    above = torch.ones(batch.rows, batch.rows, dtype=torch.bool).triu(1)
    cosines = np.sort((x @ x.T)[above].numpy())
    levels = (np.arange(len(cosines)) + 0.5) / len(cosines)
    shape = (batch.dim - 1) / 2
    expected = np.abs(cosines - (2 * scipy.stats.beta.ppf(levels, shape, shape) - 1)).mean()
    assert metrics.wasserstein_uniformity(batch.views[0]).item() == pytest.approx(expected, abs=2e-10)
