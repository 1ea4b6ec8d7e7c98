"""What is read off a trained net, once, after the last epoch."""

import warnings

import numpy as np
import torch
from lightly.utils.benchmarking.knn import knn_predict
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from varloss.metrics import similarity_statistics
from varloss_bench import augment
from varloss_bench.data import Source, Split, few_labels
from varloss_bench.measures import FEW_LABEL_DRAWS, FEW_LABELS, KNN_K, KNN_TEMPERATURE, MAX_SIMILARITY_IMAGES

ENCODE_BATCH = 512


@torch.no_grad()
def encode(net: nn.Module, images: Tensor) -> Tensor:
    """Outputs (N, D) of a net in evaluation mode, whose mode is put back afterwards."""
    was_training = net.training
    net.eval()
    try:
        return torch.cat([net(part) for part in torch.split(images, ENCODE_BATCH)]).float()
    finally:
        net.train(was_training)


def knn_accuracy(train: Tensor, train_labels: Tensor, held_out: Tensor, labels: Tensor, num_classes: int) -> float:
    """Percent right of a weighted kNN on unit vectors (lightly's `knn_predict`)."""
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


def probe_accuracy(train: Tensor, train_labels: Tensor, held_out: Tensor, labels: Tensor) -> float:
    """Percent right of scikit-learn's logistic regression (C = 1) on standardised features."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    with warnings.catch_warnings():
        # On separable features the last digits of the loss still move after 500 steps; the predictions do not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(_numpy(train), _numpy(train_labels))
    return 100.0 * float(np.mean(classifier.predict(_numpy(held_out)) == _numpy(labels)))


def feature_metrics(
    train: Tensor, held_out: Tensor, train_split: Split, held_out_split: Split, seed: int
) -> dict[str, float]:
    """Accuracies on frozen features (N, D); the labelled subsets are drawn by the seed and averaged over."""
    num_classes = int(torch.cat([train_split.labels, held_out_split.labels]).max()) + 1
    labels, held_out_labels = train_split.labels, held_out_split.labels
    subsets = few_labels(labels.cpu(), FEW_LABELS, seed, FEW_LABEL_DRAWS)
    few = [probe_accuracy(train[subset], labels[subset], held_out, held_out_labels) for subset in subsets]
    return {
        "few_label_probe": float(np.mean(few)),
        "linear_probe": probe_accuracy(train, labels, held_out, held_out_labels),
        "knn": knn_accuracy(train, labels, held_out, held_out_labels, num_classes),
    }


def projection_metrics(
    encoder: nn.Module, source: Source, train_split: Split, held_out_split: Split, seed: int
) -> dict[str, float]:
    """KNN in projection space, and similarities of two augmented views of the held-out images (evaluation mode).

    Augmented by a seed of its own, the same for all arms. Negatives are all cross-view pairs of different images, of the
    same class too: labels play no part in the loss.
    """
    num_classes = int(torch.cat([train_split.labels, held_out_split.labels]).max()) + 1
    train, held_out = encode(encoder, train_split.images), encode(encoder, held_out_split.images)
    images = held_out_split.images[:MAX_SIMILARITY_IMAGES]
    views = augment.two_views(images, augment.build_augmentation(source), augment.epoch_seed(seed, 9999))
    statistics = similarity_statistics(encode(encoder, views[0]), encode(encoder, views[1]))
    return {
        "projection_knn": knn_accuracy(train, train_split.labels, held_out, held_out_split.labels, num_classes),
        "negative_variance": float(statistics.cross_var),
        "negative_mean": float(statistics.cross_mean),
        "positive_mean": float(statistics.positive_mean),
        "within_negative_variance": float(statistics.within_var),
        "within_negative_mean": float(statistics.within_mean),
    }


def _numpy(values: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    return values.cpu().numpy()
