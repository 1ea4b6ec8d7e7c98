"""varloss's losses with pytorch-metric-learning's interface, against the library's own losses."""

from __future__ import annotations

import copy
import pickle

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
        with pytest.raises(ValueError, match="plain CosineSimilarity"):
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


def pairs_of_losses():
    """Ours beside the library's loss that it stands for, on labels with one positive per row."""
    return [(NTXentLoss(0.2), losses.NTXentLoss(0.2)), (NTXentLoss(0.2), losses.SupConLoss(temperature=0.2))]


LABEL_DTYPES = [
    getattr(torch, name) for name in ("uint8", "int8", "int16", "uint16", "uint32", "uint64", "int32", "int64")
]
LABEL_DTYPES += [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_labels_may_have_any_real_dtype(dtype):
    for labels in (TWO_VIEWS, TWO_VIEWS // 3, torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0])):
        z = rows()
        theirs = losses.SupConLoss(temperature=0.2)
        (ours, our_gradient), (expected, gradient) = both(NTXentLoss(0.2), theirs, labels.to(dtype), z)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-8, atol=1e-12)
        vrn = VRNRegularizer(weight=2, num_samples=9)
        as_integers = labels.to(dtype).long()
        assert vrn(z, labels.to(dtype)) == vrn(z, as_integers)
        ref = {"ref_emb": rows(seed=1), "ref_labels": labels.to(dtype)}
        assert vrn(z, labels, **ref) == vrn(z, labels, ref_emb=ref["ref_emb"], ref_labels=as_integers)


def test_float_labels_are_compared_not_rounded():
    z, labels = rows(), torch.tensor([0.25, 0.5, 0.75, 0.25, 0.5, 0.75] * 2)
    ids = (4 * labels).long()
    assert NTXentLoss()(z, labels) == NTXentLoss()(z, ids)
    vrn = VRNRegularizer(weight=1, num_samples=9)
    assert vrn(z, labels) == vrn(z, ids)
    ref = {"ref_emb": rows(seed=1), "ref_labels": labels.flip(0)}
    assert vrn(z, labels, **ref) == vrn(z, ids, ref_emb=ref["ref_emb"], ref_labels=ids.flip(0))
    # A label that is missing is nobody else's.
    missing, alone = labels.clone(), ids.clone()
    missing[3:5], alone[3:5] = torch.nan, torch.tensor([7, 8])
    assert NTXentLoss()(z, missing) == NTXentLoss()(z, alone)
    with pytest.raises(TypeError, match="must have an integer dtype"):
        NTXentLoss()(z, labels.to(torch.complex64))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("labelled", [torch.zeros_like, torch.arange], ids=["one label", "all different"])
def test_a_last_small_batch_has_the_librarys_value(count, labelled):
    """0, attached to the graph, where there is no pair."""
    labels = torch.arange(count) if labelled is torch.arange else torch.zeros(count, dtype=torch.long)
    for ours, theirs in pairs_of_losses():
        z = rows(count)
        (value, gradient), (expected, their_gradient) = both(ours, theirs, labels, z)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, their_gradient)
    z = rows(count)
    vrn = VRNRegularizer(weight=3, num_samples=10)
    regularized = NTXentLoss(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.25)
    for loss in (vrn(z, labels), losses.MultipleLosses([NTXentLoss(), vrn])(z, labels), regularized(z, labels)):
        assert loss.requires_grad
        (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_small_batch_of_two_views_has_the_librarys_value(count):
    z0, z1 = rows(count), rows(count, seed=1)
    ours, theirs = (losses.SelfSupervisedLoss(kind(0.2))(z0, z1) for kind in (NTXentLoss, losses.NTXentLoss))
    torch.testing.assert_close(ours, theirs)
    for found, expected in zip(*(torch.autograd.grad(loss, (z0, z1)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("count", "refs"), [(0, 0), (0, 3), (3, 0), (1, 1), (1, 3), (3, 1)])
def test_vrn_against_few_references(count, refs):
    z0, z1 = rows(count), rows(refs, seed=1)
    value = VRNRegularizer(weight=2, target=0.0)(z0, torch.arange(count), ref_emb=z1, ref_labels=torch.arange(refs))
    unit0, unit1 = (torch.nn.functional.normalize(z) for z in (z0, z1))
    pairs = [(i, j) for i in range(count) for j in range(refs) if i != j]
    expected = 2 * sum((unit0[i] @ unit1[j]) ** 2 for i, j in pairs) / max(len(pairs), 1)
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=torch.float64))
    assert value.requires_grad


def test_references_made_in_inference_mode():
    z, labels = rows(), torch.arange(12) % 4
    with torch.inference_mode():
        frozen, frozen_labels = rows(seed=1) * 1, labels.clone()
    vrn = VRNRegularizer(weight=2, num_samples=50)
    for ref, ref_labels in ((frozen, frozen_labels), (frozen.clone(), labels)):
        value = vrn(z, labels, ref_emb=ref, ref_labels=ref_labels)
        assert torch.autograd.grad(value, z)[0].norm() > 0
    two_views = NTXentLoss()(z, TWO_VIEWS)
    with torch.inference_mode():
        labels_of_inference = TWO_VIEWS.clone()
    torch.testing.assert_close(NTXentLoss()(z, labels_of_inference), two_views)


def test_the_same_rows_with_other_labels_are_references():
    """The library tells by the labels, too, whether a batch is compared with itself."""
    z, labels = rows(), torch.arange(12) % 4
    vrn = VRNRegularizer(weight=2, num_samples=50)
    assert vrn(z, labels, ref_emb=z, ref_labels=labels) == vrn(z, labels)
    others = labels.roll(1)
    assert vrn(z, labels, ref_emb=z, ref_labels=others) == vrn(z, labels, ref_emb=z.clone(), ref_labels=others)
    with pytest.raises(ValueError, match="takes no ref_emb"):
        NTXentLoss()(z, labels, ref_emb=z, ref_labels=others)


class Scaled(distances.CosineSimilarity):
    def forward(self, *args):
        return 2 * super().forward(*args)


def patched():
    distance = distances.CosineSimilarity()
    distance.forward = lambda *args: 2
    return distance


def hooked():
    distance = distances.CosineSimilarity()
    distance.register_forward_hook(lambda *args: 2)
    return distance


@pytest.mark.parametrize(
    "build", [Scaled, patched, hooked, lambda: distances.CosineSimilarity(p=1), distances.LpDistance]
)
def test_a_distance_that_would_be_ignored_is_refused(build):
    """At construction, and at the call where it was put in later."""
    for make in (NTXentLoss, lambda **options: VRNRegularizer(weight=1, num_samples=9, **options)):
        with pytest.raises(ValueError, match="plain CosineSimilarity"):
            make(distance=build())
        loss = make()
        loss.distance = build()
        with pytest.raises(ValueError, match="plain CosineSimilarity"):
            loss(rows(), TWO_VIEWS)


class Doubled(NTXentLoss):
    def value(self, *args):
        return 2 * super().value(*args)


def test_subclasses_patches_and_hooks_are_called():
    z, seen = rows(), []
    plain = NTXentLoss(0.3)(z, TWO_VIEWS)
    assert Doubled(0.3)(z, TWO_VIEWS) == 2 * plain
    loss = NTXentLoss(0.3)
    loss.register_forward_pre_hook(lambda module, args: seen.append("before"))
    loss.register_forward_hook(lambda module, args, value: seen.append("after"))
    loss.register_full_backward_hook(lambda module, grads, outputs: seen.append("backward"))
    value = loss(z, TWO_VIEWS)
    (gradient,) = torch.autograd.grad(value, z)
    assert (value, seen) == (plain, ["before", "after", "backward"])
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, z)[0])
    forward = loss.forward
    loss.forward = lambda *args: 3 * forward(*args)
    assert loss(z, TWO_VIEWS) == 3 * plain


class Tagged(torch.Tensor):
    """A subclass that does nothing, as those of monai and torchvision."""


def test_embeddings_may_be_a_subclass_of_tensor():
    z, labels = rows(), torch.arange(12) % 4
    vrn = VRNRegularizer(weight=2, num_samples=50)
    for loss in (NTXentLoss(0.3), vrn):
        for ids in (labels, TWO_VIEWS):
            torch.testing.assert_close(
                torch.Tensor(loss(z.as_subclass(Tagged), ids).detach()).double(), loss(z, ids).detach()
            )
            tagged = loss(z.as_subclass(Tagged), ids.as_subclass(Tagged))
            torch.testing.assert_close(
                torch.autograd.grad(tagged, z)[0].as_subclass(Tensor), torch.autograd.grad(loss(z, ids), z)[0]
            )


def test_copies_are_independent_and_equal():
    z = rows()
    for loss in (NTXentLoss(0.3, decoupled=True), VRNRegularizer(weight=2, num_samples=50)):
        for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert copied(z, TWO_VIEWS) == loss(z, TWO_VIEWS)
        assert not loss.state_dict()


def test_labels_are_moved_to_the_embeddings():
    """On the meta device: it has no values, so the labels cannot be read there."""
    z = torch.empty(12, 5, device="meta", requires_grad=True)
    for loss in (NTXentLoss(), VRNRegularizer(weight=1, num_samples=9)):
        value = loss(z, TWO_VIEWS)
        assert (value.device.type, value.shape) == ("meta", ())
