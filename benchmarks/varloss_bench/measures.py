"""What is measured, by name: metrics and the constants of their definition. Imports nothing, so that tables can."""

from dataclasses import dataclass

KNN_K, KNN_TEMPERATURE = 20, 0.1
FEW_LABELS, FEW_LABEL_DRAWS = 10, 5
# Similarities of held-out pairs are taken over at most this many images: all pairs of 2000 images are 4 million.
MAX_SIMILARITY_IMAGES = 2000
# Blocks of both views above this size are augmented piece by piece instead of a whole epoch at once.
MAX_BLOCK_BYTES = 2**30


@dataclass(frozen=True)
class Metric:
    """A column of the results.

    Attributes:
        title: For tables and figures.
        unit: `"%"` (accuracy, more is better) or `""` (a similarity).
        digits: Digits after the point.
    """

    title: str
    unit: str
    digits: int


METRICS = {
    "few_label_probe": Metric(f"linear probe, {FEW_LABELS} labels per class", "%", 2),
    "linear_probe": Metric("linear probe, all labels", "%", 2),
    "knn": Metric("kNN, backbone", "%", 2),
    "projection_knn": Metric("kNN, projection", "%", 2),
    "negative_variance": Metric("variance of held-out negatives", "", 4),
    "negative_mean": Metric("mean of held-out negatives", "", 3),
    "positive_mean": Metric("mean of held-out positives", "", 3),
}
ACCURACIES = tuple(name for name, metric in METRICS.items() if metric.unit == "%")
