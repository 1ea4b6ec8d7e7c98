"""The metrics by name, and the constants of their definitions. It imports nothing, so that any module can import it."""

from dataclasses import dataclass

KNN_K, KNN_TEMPERATURE = 20, 0.1
# Labels per class of the two few-label probes, and the number of draws of the labels that each is the mean of.
FEW_LABELS, FEWEST_LABELS, FEW_LABEL_DRAWS = 10, 3, 5
# Most iterations of a probe's regression; the number of iterations is recorded.
PROBE_ITERATIONS = 500
HISTOGRAM_BINS = 80  # histograms of similarities over [-1, 1]
MAX_PLOTTED_IMAGES = 500
# Most images for the similarities of held-out pairs; 2000 images have 4 million pairs.
MAX_SIMILARITY_IMAGES = 2000
# Most bytes of both views that are augmented at once; larger epochs are augmented in blocks.
MAX_BLOCK_BYTES = 2**30


@dataclass(frozen=True)
class Metric:
    """A column of the results.

    Attributes:
        title: Name in tables and figures.
        unit: `"%"` (accuracy, more is better) or `""` (a similarity or another property of the embeddings).
        digits: Number of decimals.
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
# The metrics in which arms are compared. Other metrics are described but not tested, because each test reduces the power of the rest.
ACCURACIES = ("few_label_probe", "linear_probe", "knn", "projection_knn")
# The metrics by which weight and temperature may be chosen; for these, larger is better.
SELECTABLE = ("few_label_probe", "fewest_label_probe", "linear_probe", "knn", "projection_knn")
