"""varloss's losses with pytorch-metric-learning's interface, against the library's own losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import varloss
from varloss import functional

pml = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed (extra: recipes)")
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers  # noqa: E402

from varloss_metric_learning import NTXentLoss, VRNRegularizer  # noqa: E402

TWO_VIEWS = torch.arange(6).repeat(2)


def rows(count: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Lengths differ, so that a forgotten normalisation shows.
    z = torch.randn(count, 5, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 3, count)[:, None]
    return z.requires_grad_()


def both(ours, theirs, labels, z):
    """Value and gradient of two losses on the same rows."""
    results = []
    for loss in (ours, theirs):
        value = loss(z, labels)
        results.append((value, torch.autograd.grad(value, z)[0]))
    return results


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_the_librarys_nt_xent_on_two_views(temperature):
    (ours, our_gradient), (theirs, their_gradient) = both(
        NTXentLoss(temperature), losses.NTXentLoss(temperature), TWO_VIEWS, rows()
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-8, atol=1e-12)


def test_order_of_rows_does_not_matter():
    """Shuffled rows do not take the two-view path and give the same result."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    z = rows()
    torch.testing.assert_close(NTXentLoss(0.2)(z, TWO_VIEWS), NTXentLoss(0.2)(z[order], TWO_VIEWS[order]))


def test_takes_the_fused_road_for_two_views_only(mocker):
    fused = mocker.spy(functional, "nt_xent")
    NTXentLoss()(rows(), TWO_VIEWS)
    assert fused.call_count == 1
    for labels in (TWO_VIEWS.sort().values, torch.arange(3).repeat(4), torch.tensor([*range(6), *range(1, 7)])):
        NTXentLoss()(rows(), labels)
    assert fused.call_count == 1


def test_equals_the_librarys_supcon_with_several_positives():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 3, 3])
    (ours, our_gradient), (theirs, their_gradient) = both(
        NTXentLoss(0.1), losses.SupConLoss(temperature=0.1), labels, rows()
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-8, atol=1e-12)


def test_runs_inside_the_librarys_self_supervised_wrapper():
    z0, z1 = rows().chunk(2)
    ours = losses.SelfSupervisedLoss(NTXentLoss(0.5))(z0, z1)
    torch.testing.assert_close(ours, losses.SelfSupervisedLoss(losses.NTXentLoss(0.5))(z0, z1))
    torch.testing.assert_close(ours, varloss.NTXentLoss(temperature=0.5)(z0, z1))


def test_decoupled_is_dcl():
    z0, z1 = rows().chunk(2)
    expected = varloss.DCLLoss(temperature=0.2)(z0, z1)
    torch.testing.assert_close(NTXentLoss(0.2, decoupled=True)(torch.cat([z0, z1]), TWO_VIEWS), expected)


def test_vrn_of_a_batch_is_over_all_pairs_of_different_labels():
    z, labels = rows(), torch.arange(12) % 4
    unit = torch.nn.functional.normalize(z)
    pairs = [(i, j) for i in range(12) for j in range(12) if labels[i] != labels[j]]
    expected = 3 * sum((unit[i] @ unit[j] + 1 / 9) ** 2 for i, j in pairs) / len(pairs)
    torch.testing.assert_close(VRNRegularizer(weight=3, num_samples=10)(z, labels), expected)


def test_vrn_with_ref_emb_is_the_papers():
    z0, z1 = rows().chunk(2)
    labels = torch.arange(6)
    ours = VRNRegularizer(weight=2, num_samples=50)(z0, labels, ref_emb=z1, ref_labels=labels)
    expected = 2 * functional.vrn(z0, z1, num_samples=50)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(value, z0, retain_graph=True)[0] for value in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_adds_up_in_multiple_losses_beside_a_mined_loss():
    z, labels = rows(), torch.arange(12) % 4
    triplet, vrn = losses.TripletMarginLoss(), VRNRegularizer(weight=3, target=0.0)
    miner = miners.MultiSimilarityMiner()
    total = losses.MultipleLosses([triplet, vrn], miners=[miner, None])(z, labels)
    torch.testing.assert_close(total, triplet(z, labels, miner(z, labels)) + vrn(z, labels))


def test_weight_can_be_warmed_up():
    loss = VRNRegularizer(weight=0, num_samples=10)
    assert loss(rows(), TWO_VIEWS) == 0
    loss.weight = 2.0
    assert loss(rows(), TWO_VIEWS) > 0


def test_the_librarys_regularizer_of_embeddings_still_works():
    z = rows()
    plain = NTXentLoss(0.5)(z, TWO_VIEWS)
    regularized = NTXentLoss(0.5, embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.25)
    torch.testing.assert_close(regularized(z, TWO_VIEWS), plain + 0.25 * z.norm(dim=1).mean())


def test_a_batch_without_pairs_gives_zero_with_a_gradient():
    z = rows()
    for loss in (NTXentLoss(), VRNRegularizer(weight=1, num_samples=10)):
        value = loss(z, torch.zeros(12, dtype=torch.long))
        value.backward()
        assert value == 0


def test_says_what_it_does_not_take():
    z, labels = rows(), torch.arange(12) % 4
    with pytest.raises(ValueError, match="takes no indices_tuple"):
        NTXentLoss()(z, labels, indices_tuple=miners.MultiSimilarityMiner()(z, labels))
    with pytest.raises(ValueError, match="takes no ref_emb"):
        NTXentLoss()(z, labels, ref_emb=rows(seed=1), ref_labels=labels)
    with pytest.raises(ValueError, match="needs labels"):
        VRNRegularizer(weight=1, num_samples=10)(z)
    with pytest.raises(ValueError, match="needs ref_labels"):
        VRNRegularizer(weight=1, num_samples=10)(z, labels, ref_emb=rows(seed=1))
    for distance in (distances.LpDistance(), distances.CosineSimilarity(power=2)):
        with pytest.raises(ValueError, match="cosine similarities"):
            NTXentLoss(distance=distance)
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(0.0)
    with pytest.raises(ValueError, match="num_samples"):
        VRNRegularizer(weight=1)


def test_reducers_do_not_apply():
    """The losses are already means, so a reducer other than the mean changes nothing."""
    z = rows()
    torch.testing.assert_close(
        NTXentLoss(reducer=reducers.ThresholdReducer(low=1e9))(z, TWO_VIEWS), NTXentLoss()(z, TWO_VIEWS)
    )
