"""What is measured, by name: metrics and the constants of their definition. Imports nothing, so that tables can."""

from dataclasses import dataclass

KNN_K, KNN_TEMPERATURE = 20, 0.1
# Labels per class of the two few-label probes, each the mean of so many draws of the labels.
FEW_LABELS, FEWEST_LABELS, FEW_LABEL_DRAWS = 10, 3, 5
# The regression of a probe is cut off here; how many it took is recorded.
PROBE_ITERATIONS = 500
HISTOGRAM_BINS = 80  # of similarities, over [-1, 1]
MAX_PLOTTED_IMAGES = 500
# Similarities of held-out pairs are taken over at most this many images: all pairs of 2000 images are 4 million.
MAX_SIMILARITY_IMAGES = 2000
# Blocks of both views above this size are augmented piece by piece instead of a whole epoch at once.
MAX_BLOCK_BYTES = 2**30


@dataclass(frozen=True)
class Metric:
    """A column of the results.

    Attributes:
        title: For tables and figures.
        unit: `"%"` (accuracy, more is better) or `""` (a similarity or another property of the embeddings).
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
    "fewest_label_probe": Metric(f"linear probe, {FEWEST_LABELS} labels per class", "%", 2),
    "retrieval": Metric("retrieval of the other view", "%", 2),
    "alignment": Metric("alignment", "", 3),
    "uniformity": Metric("uniformity", "", 3),
    "tolerance": Metric("tolerance", "", 3),
    "feature_rank": Metric("effective rank, backbone", "", 1),
    "projection_rank": Metric("effective rank, projection", "", 1),
    "within_negative_variance": Metric("variance of held-out within-view negatives", "", 4),
    "within_negative_mean": Metric("mean of held-out within-view negatives", "", 3),
}
# The accuracies that arms are compared in. The others are described, not tested: each test costs all others some power.
ACCURACIES = ("few_label_probe", "linear_probe", "knn", "projection_knn")
# What weight and temperature may be chosen by: more is better, which cannot be said of every metric.
SELECTABLE = ("few_label_probe", "fewest_label_probe", "linear_probe", "knn", "projection_knn")
