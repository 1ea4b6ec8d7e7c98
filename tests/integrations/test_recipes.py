"""The recipes' losses against the losses of their libraries, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from support import ranks, recipe_ranks
from support.doc_examples import ROOT, blocks, skip_without
from torch import nn

import varloss
from varloss import functional


def recipe(page: str, name: str):
    """The class of that name that the page's first block defines."""
    namespace: dict[str, type[nn.Module]] = {"__name__": "recipe"}
    exec(blocks(ROOT / "docs" / "recipes" / page, "python")[0], namespace)
    return namespace[name]


def raw_views() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def towers() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Leaves, and the unit features that CLIP's towers make of theirs: gradients are compared before normalisation."""
    leaves = raw_views()
    return leaves, [torch.nn.functional.normalize(z) for z in leaves]


def compare(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, other)


class TestOpenClip:
    @pytest.fixture(autouse=True)
    def library(self):
        self.open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed (extra: recipes)")

    @pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
    def test_equals_clip_loss(self, scale):
        leaves, (image, text) = towers()
        logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        ours = recipe("open_clip.md", "ClipLoss")()(image, text, logit_scale)
        compare(ours, self.open_clip.ClipLoss()(image, text, logit_scale), [*leaves, logit_scale])

    def test_a_bias_on_all_logits_changes_nothing(self):
        _, (image, text) = towers()
        logit_scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -10.0))
        loss = recipe("open_clip.md", "ClipLoss")()(image, text, logit_scale, bias)
        torch.testing.assert_close(loss, self.open_clip.ClipLoss()(image, text, logit_scale, bias))
        assert torch.autograd.grad(loss, bias)[0] == 0

    def test_dictionary_has_open_clips_key_and_adds_up(self):
        _, (image, text) = towers()
        regularizer = varloss.VRNRegularizer(weight=3, num_samples=100)
        loss = recipe("open_clip.md", "ClipLoss")(regularizer)
        parts = loss(image_features=image, text_features=text, logit_scale=torch.tensor(14.3), output_dict=True)
        theirs = self.open_clip.ClipLoss()(image, text, torch.tensor(14.3), output_dict=True)
        torch.testing.assert_close(parts["contrastive_loss"], theirs["contrastive_loss"])
        torch.testing.assert_close(parts["vrn_loss"], regularizer(image, text))
        torch.testing.assert_close(loss(image, text, torch.tensor(14.3)), sum(parts.values()))

    def test_equals_clip_loss_on_two_ranks(self, tmp_path):
        results = ranks.run(2, tmp_path, recipe_ranks.clip_losses)
        assert results[0][0]["value"] != results[1][0]["value"]
        for ours, theirs in results:
            torch.testing.assert_close(ours, theirs)

    def test_sigmoid_loss_equals_siglip_loss(self):
        leaves, (image, text) = towers()
        scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -8.0))
        ours = functional.sigmoid_loss(image, text, scale=scale, bias=bias)
        compare(ours, self.open_clip.loss.SigLipLoss()(image, text, scale, bias), [*leaves, scale, bias])


class Encoder(nn.Module):
    """The part of a model that a loss of sentence-transformers uses: features to a dictionary with sentence embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 5, dtype=torch.float64)

    def forward(self, inputs):
        return {"sentence_embedding": self.table(inputs["input_ids"]).mean(dim=1)}


def sentences() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(20, (6, 4), generator=generator)} for _ in range(2)]


class TestSentenceTransformers:
    @pytest.fixture(autouse=True)
    def library(self):
        skip_without({"sentence_transformers"})
        self.losses = pytest.importorskip(
            "sentence_transformers.losses", reason="sentence-transformers is not installed (extra: recipes)"
        )

    def losses_of(self, scale):
        model = Encoder()
        ours = recipe("sentence-transformers.md", "TwoViewLoss")(model, varloss.InfoNCELoss(temperature=1 / scale))
        theirs = self.losses.MultipleNegativesRankingLoss(
            model, scale=scale, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )
        return model, ours, theirs

    @pytest.mark.parametrize("scale", [20.0, 3.0])
    def test_equals_the_ranking_loss_of_both_directions(self, scale):
        model, ours, theirs = self.losses_of(scale)
        values = [loss(iter(sentences()), labels=None) for loss in (ours, theirs)]
        compare(*values, list(model.parameters()))

    def test_ranking_loss_is_one_direction_of_it(self):
        model, ours, _ = self.losses_of(20.0)
        there = self.losses.MultipleNegativesRankingLoss(model, scale=20.0)
        directions = [there(pairs, None) for pairs in (sentences(), sentences()[::-1])]
        torch.testing.assert_close(ours(sentences()), sum(directions) / 2)


def test_stable_pretrainings_loss_is_ours():
    """Its SimCLR calls ``simclr_loss(z0, z1)``; docs/start/stable-pretraining.md trains with it."""
    skip_without({"stable_pretraining"})
    import stable_pretraining as library

    z0, z1 = raw_views()
    theirs = library.losses.NTXEntLoss(temperature=0.2)(z0, z1)
    compare(varloss.NTXentLoss(temperature=0.2)(z0, z1), theirs, [z0, z1])
