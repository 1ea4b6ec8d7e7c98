"""Metrics of a trained net, against numpy and loops that share no code with the harness."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from varloss_bench import measures
from varloss_bench.data import loading
from varloss_bench.data.types import Split
from varloss_bench.training import augment, evaluate

FEATURES, CLASSES = 6, 3


@pytest.fixture(scope="module")
def clouds():
    """Overlapping classes in features of very different scales: training split, 60 samples, and held-out split, 400."""
    generator = np.random.default_rng(8)
    centres = generator.normal(size=(CLASSES, FEATURES))
    scales = np.logspace(-2, 2, FEATURES)

    def draw(number, shift):
        labels = np.arange(number) % CLASSES
        rows = (centres[labels] + 1.5 * generator.normal(size=(number, FEATURES)) + shift) * scales
        return Split(torch.tensor(rows, dtype=torch.float32), torch.tensor(labels))

    # Shifted, so that the result depends on the split of mean and standard deviation.
    return draw(60, 0.0), draw(400, 0.8)


def by_neighbours(train, labels, held_out, expected, *, k=20, temperature=0.1):
    """Accuracy in percent of a vote of the k nearest rows by angle, each with weight exp(cosine / temperature)."""
    right = 0
    for row, label in zip(held_out, expected, strict=True):
        cosines = [float(row @ other / np.linalg.norm(row) / np.linalg.norm(other)) for other in train]
        votes = np.zeros(max(labels) + 1)
        for index in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            votes[labels[index]] += math.exp(cosines[index] / temperature)
        right += int(votes.argmax()) == label
    return 100 * right / len(expected)


def by_regression(train, labels, held_out, expected, *, c=1.0, scaled=True, scale_by=None):
    """Accuracy in percent of the softmax regression that minimises c * sum of log losses + |weights|^2 / 2, intercepts free."""
    if scaled:
        mean, deviation = (
            statistic(train if scale_by is None else scale_by, axis=0) for statistic in (np.mean, np.std)
        )
        train, held_out = (train - mean) / deviation, (held_out - mean) / deviation
    number, width = len(set(labels)), train.shape[1]
    truth = np.eye(number)[labels]

    def objective(flat):
        weights, intercepts = flat[: number * width].reshape(number, width), flat[number * width :]
        scores = train @ weights.T + intercepts
        scores -= scores.max(1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        residue = np.exp(logs) - truth
        gradient = np.concatenate([(c * residue.T @ train + weights).ravel(), c * residue.sum(0)])
        return -c * (truth * logs).sum() + 0.5 * (weights**2).sum(), gradient

    found = minimize(objective, np.zeros(number * (width + 1)), jac=True, method="BFGS", options={"gtol": 1e-7})
    weights, intercepts = found.x[: number * width].reshape(number, width), found.x[number * width :]
    return 100 * float(np.mean((held_out @ weights.T + intercepts).argmax(1) == expected))


def arrays(*splits):
    return [values for split in splits for values in (split.images.double().numpy(), split.labels.numpy())]


def test_knn_is_a_vote_of_twenty_weighted_by_similarity(clouds):
    train, held_out = clouds
    # By angle the features' scales decide; these leave all six a part.
    scales = torch.logspace(2, -2, FEATURES)
    train, held_out = (dataclasses.replace(split, images=split.images * scales * 2) for split in (train, held_out))
    measured = evaluate.knn_accuracy(train.images, train.labels, held_out.images, held_out.labels, CLASSES)
    asked = arrays(train, held_out)
    assert measured == pytest.approx(by_neighbours(*asked))
    for other in ({"k": 1}, {"k": 19}, {"k": 21}, {"temperature": 0.05}, {"temperature": 0.2}, {"temperature": 1.0}):
        assert by_neighbours(*asked, **other) != pytest.approx(measured), other


def test_knn_of_fewer_than_twenty_takes_all(clouds):
    train, held_out = clouds
    few = Split(train.images[:7], train.labels[:7])
    measured = evaluate.knn_accuracy(few.images, few.labels, held_out.images, held_out.labels, CLASSES)
    assert measured == pytest.approx(by_neighbours(*arrays(few, held_out), k=7))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_a_regression_on_features_standardised_by_the_training_split(clouds, classes):
    train, held_out = (Split(s.images[s.labels < classes], s.labels[s.labels < classes]) for s in clouds)
    measured = evaluate.probe_accuracy(train.images, train.labels, held_out.images, held_out.labels)
    asked = arrays(train, held_out)
    one = 100 / len(held_out)
    if classes == 2:  # two classes share one weight vector: the penalty on a pair of opposite ones is half as large
        assert measured == pytest.approx(by_regression(*asked, c=0.5), abs=1.01 * one)
        return
    assert measured == pytest.approx(
        by_regression(*asked), abs=1.01 * one
    )  # a sample on the boundary may be in either class
    for other in ({"c": 0.1}, {"c": 10.0}, {"scaled": False}, {"scale_by": asked[2]}):
        assert abs(by_regression(*asked, **other) - measured) > 2 * one, other


def draws(labels, per_class, seed, number):
    """The labelled subsets: for each draw one order of all samples, and of each class the first ones in it."""
    generator = torch.Generator().manual_seed(seed)
    subsets = []
    for _ in range(number):
        order = torch.randperm(len(labels), generator=generator).tolist()
        taken = {
            label: [index for index in order if labels[index] == label][:per_class] for label in sorted(set(labels))
        }
        subsets.append([index for indices in taken.values() for index in indices])
    return subsets


def test_measures_of_features_are_of_the_splits_and_the_draws_they_are_named_after(clouds):
    train, held_out = clouds
    fits: dict[str, list[int]] = {}
    measured = evaluate.feature_metrics(train.images, held_out.images, train, held_out, 3, iterations=fits)
    assert {name: len(counts) for name, counts in fits.items()} == {
        "few_label_probe": 5,
        "fewest_label_probe": 5,
        "linear_probe": 1,
    }
    x, labels, y, expected = arrays(train, held_out)
    one = 100 / len(held_out)

    def few_label_probe(per_class, number=5, seed=3):
        subsets = draws(labels.tolist(), per_class, seed, number)
        return float(np.mean([by_regression(x[subset], labels[subset], y, expected) for subset in subsets]))

    for name, per_class in (("few_label_probe", 10), ("fewest_label_probe", 3)):
        assert measured[name] == pytest.approx(few_label_probe(per_class), abs=one / 4)
        for other in ({"seed": 4}, {"per_class": per_class - 1}):
            assert abs(few_label_probe(**{"per_class": per_class, **other}) - measured[name]) > one / 4, (name, other)
    assert measured["linear_probe"] == pytest.approx(by_regression(x, labels, y, expected), abs=1.01 * one)
    assert measured["knn"] == pytest.approx(by_neighbours(x, labels, y, expected))
    shares = np.linalg.svd(y, compute_uv=False)
    shares = shares / shares.sum()
    assert measured["feature_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_measures_of_projections_by_loops():
    generator = np.random.default_rng(0)
    number, width = 14, 4
    labels = np.arange(number) % 4
    held_out = generator.normal(size=(number, width)) + labels[:, None]
    first = held_out + 0.3 * generator.normal(size=(number, width))
    second = held_out + 0.6 * generator.normal(size=(number, width))
    train = generator.normal(size=(30, width)) + (np.arange(30) % 4)[:, None]
    splits = Split(torch.zeros(30, 1), torch.arange(30) % 4), Split(torch.zeros(number, 1), torch.tensor(labels))
    train_rows, held_out_rows, z0, z1 = (torch.tensor(rows) for rows in (train, held_out, first, second))
    measured = evaluate.embedding_metrics(train_rows, held_out_rows, (z0, z1), *splits)

    u, v, w = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second, held_out))
    different = [(i, j) for i in range(number) for j in range(number) if i != j]
    cross = [float(u[i] @ v[j]) for i, j in different]
    within = [float(rows[i] @ rows[j]) for rows in (u, v) for i, j in different]
    alike = [float(w[i] @ w[j]) for i, j in different if labels[i] == labels[j]]
    shares = np.linalg.svd(held_out, compute_uv=False)
    shares = shares / shares.sum()
    assert measured == pytest.approx(
        {
            "projection_knn": by_neighbours(train, (np.arange(30) % 4).tolist(), held_out, labels),
            "negative_variance": np.var(cross),
            "negative_mean": np.mean(cross),
            "positive_mean": np.mean([float(u[i] @ v[i]) for i in range(number)]),
            "within_negative_variance": np.var(within),
            "within_negative_mean": np.mean(within),
            "retrieval": 100 * np.mean([int(np.argmax(v @ u[i])) == i for i in range(number)]),
            "alignment": np.mean([((u[i] - v[i]) ** 2).sum() for i in range(number)]),
            "uniformity": math.log(np.mean([math.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i, j in different])),
            "tolerance": np.mean(alike),
            "projection_rank": math.exp(-(shares * np.log(shares)).sum()),
        },
        rel=1e-6,
    )
    # Retrieval is not symmetric: the first view is the query, the second is searched.
    assert measured["retrieval"] != 100 * np.mean([int(np.argmax(u @ v[i])) == i for i in range(number)])


def test_similarities_and_pictures_are_of_the_first_held_out_images(monkeypatch):
    source = loading.load("digits")
    splits = loading.split(source, 0)
    assert (measures.MAX_SIMILARITY_IMAGES, measures.MAX_PLOTTED_IMAGES, measures.HISTOGRAM_BINS) == (2000, 500, 80)
    monkeypatch.setattr(evaluate, "MAX_SIMILARITY_IMAGES", 30)
    monkeypatch.setattr(evaluate, "MAX_PLOTTED_IMAGES", 20)
    measured, drawn = evaluate.projection_metrics(nn.Flatten(), source, splits.train, splits.test, 0)
    assert sum(drawn["similarity_histograms"]["positives"]) == 30
    assert sum(drawn["similarity_histograms"]["negatives"]) == 30 * 29
    assert drawn["principal_components"]["labels"] == splits.test.labels[:20].tolist()
    # kNN and rank use all of them.
    x, labels, y, expected = (
        values
        for split in (splits.train, splits.test)
        for values in (split.images.flatten(1).double().numpy(), split.labels.tolist())
    )
    assert measured["projection_knn"] == pytest.approx(by_neighbours(x, labels, y[:500], expected))


def test_histograms_count_positives_and_negatives_in_eighty_bins_from_minus_one_to_one():
    z0 = torch.eye(3)
    z1 = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]])
    counts = evaluate.similarity_histograms(z0, z1)
    positives, negatives = [0] * 80, [0] * 80
    # Bins are 0.025 wide: 1 is in the last, 0.8 in the 73rd, 0 in the 41st, -1 in the first.
    positives[79] = positives[72] = positives[40] = 1
    negatives[64], negatives[0], negatives[40] = 1, 1, 4
    assert counts == {"positives": positives, "negatives": negatives}


def test_principal_components_are_the_two_widest_directions_of_unit_rows():
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(9, 4)) * [3.0, 1.0, 0.5, 0.1] + 1.0
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centred = units - units.mean(0)
    _, _, directions = np.linalg.svd(centred)
    points = np.array(evaluate.principal_components(torch.tensor(rows)))
    for axis in (0, 1):
        expected = centred @ directions[axis]
        sign = np.sign(expected @ points[:, axis])
        np.testing.assert_allclose(points[:, axis], sign * expected, atol=5.1e-4)  # rounded to 3 digits


def test_evaluation_leaves_the_mode_and_counts_right():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    images = torch.eye(4).reshape(4, 1, 2, 2)
    encoded = evaluate.encode(net.train(), images)
    assert torch.equal(encoded, torch.eye(4))
    assert net.training
    labels = torch.tensor([0, 0, 1, 1])
    moved = encoded * 3.0 + 0.01
    assert evaluate.knn_accuracy(encoded, labels, moved, labels, num_classes=2) == 100.0
    assert evaluate.probe_accuracy(encoded, labels, moved, labels) == 100.0
    assert evaluate.probe_accuracy(encoded, labels, moved, 1 - labels) == 0.0


def test_knn_is_by_angle():
    bank = torch.tensor([[1.0, 0.0]] * 20 + [[0.0, 1.0]] * 20)
    labels = torch.tensor([0] * 20 + [1] * 20)
    queries = torch.tensor([[100.0, 1.0], [0.01, 0.02], [3.0, 4.0], [4.0, 3.0]])
    assert evaluate.knn_accuracy(bank, labels, queries, torch.tensor([0, 1, 1, 1]), 2) == 75.0


def test_similarities_are_of_held_out_pairs():
    """An encoder that ignores its input has mean 1 and variance 0; pixels as embeddings have neither."""
    source = loading.load("digits")
    splits = loading.split(source, 0)

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 4)

    constant, _ = evaluate.projection_metrics(Constant(), source, splits.train, splits.test, 0)
    assert constant["negative_mean"] == pytest.approx(1.0)
    assert constant["negative_variance"] == pytest.approx(0.0, abs=1e-10)
    pixels, drawn = evaluate.projection_metrics(nn.Flatten(), source, splits.train, splits.test, 0)
    u, v = (
        nn.functional.normalize(view.flatten(1).double(), dim=1)
        for view in augment.two_views(
            splits.test.images, augment.build_augmentation(source), augment.epoch_seed(0, 9999)
        )
    )
    negatives = (u @ v.T)[~torch.eye(500, dtype=torch.bool)]
    assert pixels["negative_variance"] == pytest.approx(float(negatives.var(correction=0)), rel=1e-4)
    assert pixels["positive_mean"] == pytest.approx(float((u * v).sum(1).mean()), rel=1e-4)
    hits = sum(int((v @ row).argmax()) == i for i, row in enumerate(u))
    assert pixels["retrieval"] == pytest.approx(100 * hits / 500)
    assert 0 < hits < 500
    expected = {"positives": (u * v).sum(1), "negatives": negatives}
    for kind, values in expected.items():
        counts, _ = np.histogram(values.numpy(), bins=measures.HISTOGRAM_BINS, range=(-1, 1))
        # A similarity on the edge of a bin may round into the next one.
        assert np.abs(np.subtract(drawn["similarity_histograms"][kind], counts)).sum() <= 1e-4 * len(values) + 2
    points = torch.tensor(drawn["principal_components"]["points"])
    clean = nn.functional.normalize(splits.test.images.flatten(1).double(), dim=1)
    variances = torch.linalg.svdvals(clean - clean.mean(0)).square()[:2]
    torch.testing.assert_close(points.double().square().sum(0), variances, rtol=1e-2, atol=0)
    assert drawn["principal_components"]["labels"] == splits.test.labels.tolist()


def test_a_few_images_of_as_many_classes_are_evaluated_without_tolerance():
    """Such a trial once crashed at the end of the training."""
    z, generator = torch.eye(10), torch.Generator().manual_seed(0)
    split = loading.Split(torch.randn(10, 1, generator=generator), torch.arange(10))
    measured = evaluate.embedding_metrics(z, z, (z, z.flip(0)), split, split)
    assert "tolerance" not in measured
    twice = dataclasses.replace(split, labels=torch.arange(10) // 2)
    assert measured.keys() | {"tolerance"} == evaluate.embedding_metrics(z, z, (z, z.flip(0)), twice, twice).keys()


def test_dead_features_have_rank_zero():
    splits = loading.split(loading.load("digits"), 0)
    dead = torch.zeros(len(splits.train), 8), torch.zeros(len(splits.test), 8)
    measured = evaluate.feature_metrics(*dead, splits.train, splits.test, 0)
    assert measured["feature_rank"] == 0
    assert measured["linear_probe"] == pytest.approx(10, abs=4)
