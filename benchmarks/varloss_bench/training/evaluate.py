"""Metrics of a trained net, computed once, after the last epoch."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightly.utils.benchmarking.knn import knn_predict
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from varloss import metrics
from varloss_bench.config import MAX_EPOCHS
from varloss_bench.data.loading import Source, Split, as_float, few_labels
from varloss_bench.measures import (
    FEW_LABEL_DRAWS,
    FEW_LABELS,
    FEWEST_LABELS,
    HISTOGRAM_BINS,
    KNN_K,
    KNN_TEMPERATURE,
    MAX_PLOTTED_IMAGES,
    MAX_SIMILARITY_IMAGES,
    PROBE_ITERATIONS,
)
from varloss_bench.training import augment

ENCODE_BATCH = 512


@torch.no_grad()
def encode(net: nn.Module, images: Tensor) -> Tensor:
    """Outputs (N, D) of a net in evaluation mode; the net's mode is restored afterwards."""
    was_training = net.training
    net.eval()
    try:
        return torch.cat([net(as_float(part)) for part in torch.split(images, ENCODE_BATCH)]).float()
    finally:
        net.train(was_training)


def knn_accuracy(train: Tensor, train_labels: Tensor, held_out: Tensor, labels: Tensor, num_classes: int) -> float:
    """Accuracy in percent of a weighted kNN on unit vectors (lightly's `knn_predict`)."""
    bank = nn.functional.normalize(train, dim=1).T.contiguous()
    predicted = knn_predict(
        nn.functional.normalize(held_out, dim=1),
        bank,
        train_labels,
        num_classes=num_classes,
        knn_k=min(KNN_K, len(train)),
        knn_t=KNN_TEMPERATURE,
    )
    return 100.0 * float((predicted[:, 0] == labels).double().mean())


def probe_accuracy(
    train: Tensor, train_labels: Tensor, held_out: Tensor, labels: Tensor, *, iterations: list[int] | None = None
) -> float:
    """Accuracy in percent of scikit-learn's logistic regression (C = 1) on standardised features.

    The number of solver iterations is appended to `iterations`. The solver stops at `PROBE_ITERATIONS` or at its own tolerance.
    Predictions near a boundary may not have converged: on pixels of Fashion-MNIST a tolerance a hundred times smaller changed
    up to 22 of 2000 predictions, and the accuracy by 0.2 points.
    """
    regression = LogisticRegression(max_iter=PROBE_ITERATIONS)
    classifier = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # it would appear once per fit; the record has the number instead
        classifier.fit(_numpy(train), _numpy(train_labels))
    if iterations is not None:
        iterations.append(int(regression.n_iter_.max()))
    return 100.0 * float(np.mean(classifier.predict(_numpy(held_out)) == _numpy(labels)))


def feature_metrics(
    train: Tensor,
    held_out: Tensor,
    train_split: Split,
    held_out_split: Split,
    seed: int,
    *,
    iterations: dict[str, list[int]] | None = None,
) -> dict[str, float]:
    """Accuracies on frozen features (N, D). The seed draws the labelled subsets; a few-label accuracy is the mean over them.

    `iterations` receives the solver iterations of each probe's fits, by the name of its accuracy.
    """
    measures = _feature_measures(train, held_out, train_split, held_out_split, seed, iterations=iterations)
    return {name: measure() for name, measure in measures.items()}


def feature_metrics_seconds(
    train: Tensor, held_out: Tensor, train_split: Split, held_out_split: Split, seed: int, *, sizes: tuple[int, int]
) -> float:
    """Estimated seconds of the feature metrics on `sizes` training and held-out samples, from fewer samples.

    Each metric is timed on the given samples and scaled with its amount of work. kNN and rank of projections are counted with
    the time they take on features, which are wider. Statistics of similarities (products of at most `MAX_SIMILARITY_IMAGES`
    rows) and tolerance are not counted. The regression on all labels needs more iterations on more samples, up to 500. This is
    not modelled: the estimate from 1000 images was 1.5 times too small for 5000 images of Fashion-MNIST.
    """
    trained, evaluated = sizes[0] / len(train), sizes[1] / len(held_out)
    growth = {"linear_probe": trained, "knn": 2 * trained * evaluated, "feature_rank": 2 * evaluated}
    total = 0.0
    for name, measure in _feature_measures(train, held_out, train_split, held_out_split, seed).items():
        started = time.perf_counter()
        measure()
        total += (time.perf_counter() - started) * growth.get(name, 1.0)
    return total


def _feature_measures(
    train: Tensor,
    held_out: Tensor,
    train_split: Split,
    held_out_split: Split,
    seed: int,
    *,
    iterations: dict[str, list[int]] | None = None,
) -> dict[str, Callable[[], float]]:
    counts: dict[str, list[int]] = {} if iterations is None else iterations
    num_classes = int(torch.cat([train_split.labels, held_out_split.labels]).max()) + 1
    labels, held_out_labels = train_split.labels, held_out_split.labels

    def probe(name: str, subset: Tensor | slice) -> float:
        fits = counts.setdefault(name, [])
        return probe_accuracy(train[subset], labels[subset], held_out, held_out_labels, iterations=fits)

    def few_label_probe(name: str, per_class: int) -> float:
        subsets = few_labels(labels.cpu(), per_class, seed, FEW_LABEL_DRAWS)
        return float(np.mean([probe(name, subset) for subset in subsets]))

    return {
        "few_label_probe": lambda: few_label_probe("few_label_probe", FEW_LABELS),
        "fewest_label_probe": lambda: few_label_probe("fewest_label_probe", FEWEST_LABELS),
        "linear_probe": lambda: probe("linear_probe", slice(None)),
        "knn": lambda: knn_accuracy(train, labels, held_out, held_out_labels, num_classes),
        "feature_rank": lambda: _rank(held_out),
    }


def projection_metrics(
    encoder: nn.Module, source: Source, train_split: Split, held_out_split: Split, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics in projection space: kNN, and similarities of two augmented views of the held-out images.

    The augmentations have a separate seed, which is the same for all arms. The net is in evaluation mode. Negatives are all
    cross-view pairs of different images, also of the same class, because the loss does not use labels.

    Returns:
        Metrics by name, and data for figures: histograms of the similarities over [-1, 1], and the first two principal
        components of some projections.
    """
    train, held_out = encode(encoder, train_split.images), encode(encoder, held_out_split.images)
    images = held_out_split.images[:MAX_SIMILARITY_IMAGES]
    views = augment.two_views(images, augment.build_augmentation(source), augment.epoch_seed(seed, MAX_EPOCHS))
    z0, z1 = encode(encoder, views[0]), encode(encoder, views[1])
    measured = embedding_metrics(train, held_out, (z0, z1), train_split, held_out_split)
    shown, labels = held_out[:MAX_PLOTTED_IMAGES], held_out_split.labels[:MAX_PLOTTED_IMAGES]
    drawn = {
        "similarity_histograms": similarity_histograms(z0, z1),
        "principal_components": {"points": principal_components(shown), "labels": labels.tolist()},
    }
    return measured, drawn


def embedding_metrics(
    train: Tensor, held_out: Tensor, views: tuple[Tensor, Tensor], train_split: Split, held_out_split: Split
) -> dict[str, float]:
    """Metrics of projections (N, D) of the training and held-out images, and of two views (M, D) of the held-out images.

    Tolerance is over pairs with the same label; it is missing if all held-out labels differ.
    """
    labels, held_out_labels, (z0, z1) = train_split.labels, held_out_split.labels, views
    num_classes = int(torch.cat([labels, held_out_labels]).max()) + 1
    statistics = metrics.similarity_statistics(z0, z1)
    repeated = len(set(held_out_labels.tolist())) < len(held_out_labels)
    return {
        "projection_knn": knn_accuracy(train, labels, held_out, held_out_labels, num_classes),
        "negative_variance": float(statistics.cross_var),
        "negative_mean": float(statistics.cross_mean),
        "positive_mean": float(statistics.positive_mean),
        "within_negative_variance": float(statistics.within_var),
        "within_negative_mean": float(statistics.within_mean),
        "retrieval": retrieval_accuracy(z0, z1),
        "alignment": float(metrics.alignment(z0, z1)),
        "uniformity": float(metrics.uniformity(z0)),
        **({"tolerance": float(metrics.tolerance(held_out, held_out_labels))} if repeated else {}),
        "projection_rank": _rank(held_out),
    }


def _rank(z: Tensor) -> float:
    """Effective rank; 0 if every entry is 0, as in the output of a net whose last ReLUs have died."""
    return float(metrics.effective_rank(z)) if bool(z.any()) else 0.0


def retrieval_accuracy(z0: Tensor, z1: Tensor) -> float:
    """Percent of images whose first view is most similar to their own second view, among those of all images."""
    nearest = (nn.functional.normalize(z0, dim=1) @ nn.functional.normalize(z1, dim=1).T).argmax(1)
    return 100.0 * float((nearest == torch.arange(len(z0), device=z0.device)).double().mean())


def similarity_histograms(z0: Tensor, z1: Tensor) -> dict[str, list[int]]:
    """Counts of the cosine similarities of positive pairs and of cross-view negatives, in equal bins over [-1, 1]."""
    similarities = nn.functional.normalize(z0, dim=1) @ nn.functional.normalize(z1, dim=1).T
    own = torch.eye(len(z0), dtype=torch.bool, device=z0.device)

    def counts(values: Tensor) -> list[int]:
        # Rounding can make a cosine larger than 1, and histc would drop it.
        return [int(count) for count in torch.histc(values.clamp(-1, 1).cpu(), HISTOGRAM_BINS, -1, 1)]

    return {"positives": counts(similarities[own]), "negatives": counts(similarities[~own])}


def principal_components(z: Tensor) -> list[list[float]]:
    """Unit rows of (N, D), projected on the two directions of their largest variance: N points in the plane."""
    rows = nn.functional.normalize(z.double(), dim=1)
    centred = rows - rows.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)
    return [[round(x, 3), round(y, 3)] for x, y in (centred @ directions).tolist()]


def _numpy(values: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    return values.cpu().numpy()
