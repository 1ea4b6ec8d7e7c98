"""The torchmetrics classes: many batches give the value of all samples together. Several ranks: test_distributed.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import metric_ranks
from torchmetrics import MetricCollection

import varloss_lightning as vl
from varloss import metrics

N, DIM = 10, 4


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(N, DIM, generator=generator, dtype=torch.float64) + 0.3
    return z0, z0 + torch.randn(N, DIM, generator=generator, dtype=torch.float64), torch.arange(N) % 3


def in_batches(z: torch.Tensor) -> list[torch.Tensor]:
    """Batches of several sizes, one of them without a pair."""
    return list(z.split([4, 3, 2, 1]))


def expected(z0: torch.Tensor, z1: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """From the functions: on all rows, or pair by pair inside batches."""
    batches = list(zip(in_batches(z0), in_batches(z1), strict=True))
    packed = sum(metrics.SimilaritySums.of(*batch).pack() for batch in batches)
    entropies = [
        (metrics.relative_penalty_entropy(*batch, temperature=0.3, negatives="both"), len(batch[0]))
        for batch in batches
        if len(batch[0]) > 1
    ]
    return {
        "in-batch": torch.stack(metrics.SimilaritySums.unpack(packed).statistics()),
        "all pairs": torch.stack(metrics.similarity_statistics(z0, z1)),
        "alignment": metrics.alignment(z0, z1, alpha=3.0),
        "entropy": sum(e * n for e, n in entropies) / sum(n for _, n in entropies),
        "tolerance": metrics.tolerance(z0, labels),
        "uniformity": metrics.uniformity(z0, t=1.5),
        "wasserstein": metrics.wasserstein_uniformity(z0),
        "rank": metrics.effective_rank(z0, normalize=True),
    }


def test_in_batch_and_all_pairs_differ_on_this_data(data) -> None:
    values = expected(*data)
    assert (values["in-batch"] - values["all pairs"])[2:].abs().min() > 1e-4


def test_batches_in_one_process_reset_and_start_again(data) -> None:
    reference = expected(*data)
    for name, metric in metric_ranks.all_metrics(DIM).items():
        for _ in range(2):
            for batch in zip(*(in_batches(z) for z in data), strict=True):
                metric_ranks.update(metric, *batch)
            value = metric.compute()
            value = torch.stack(list(value.values())) if isinstance(value, dict) else value
            torch.testing.assert_close(value, reference[name], rtol=1e-10, atol=1e-13)
            metric.reset()


def test_statistics_go_into_a_collection_under_their_names(data) -> None:
    collection = MetricCollection({"similarity": vl.SimilarityStatistics(), "align": vl.Alignment()})
    collection.update(data[0], data[1])
    assert set(collection.compute()) == {*metrics.SimilarityStatistics._fields, "align"}


def test_metrics_carry_no_graph(data) -> None:
    metric = vl.Uniformity()
    metric.update(data[0].requires_grad_())
    assert not metric.compute().requires_grad


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_too_few_samples_say_so(data) -> None:
    one = data[0][:1]
    statistics = vl.SimilarityStatistics()
    with pytest.raises(ValueError, match="need a negative pair"):
        statistics.compute()
    statistics.update(one, one)
    with pytest.raises(ValueError, match="need a negative pair: no batch had two samples"):
        statistics.compute()
    with pytest.raises(ValueError, match="Alignment has seen no sample"):
        vl.Alignment().compute()
    uniformity = vl.Uniformity()
    uniformity.update(one)
    with pytest.raises(ValueError, match="uniformity needs at least 2 rows"):
        uniformity.compute()
    tolerance = vl.Tolerance(10, DIM)
    tolerance.update(data[0], torch.arange(N))
    with pytest.raises(ValueError, match="two samples with the same label; all 10"):
        tolerance.compute()


def test_wrong_dimensions_are_named(data) -> None:
    with pytest.raises(ValueError, match=r"embedding_dim is 5; got projections of shape \(10, 4\)"):
        vl.SimilarityStatistics(5).update(data[0], data[1])
    with pytest.raises(ValueError, match="embedding_dim must be at least 1; got 0"):
        vl.SimilarityStatistics(0)
    with pytest.raises(AttributeError, match="there are two SimilarityMonitor classes"):
        _ = vl.SimilarityMonitor


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import varloss_lightning", {"torchmetrics", "lightning", "pytorch_lightning"}),
        ("from varloss_lightning import Alignment", {"lightning", "pytorch_lightning"}),
        ("import varloss_lightning.callbacks", {"pytorch_lightning"}),
        ("import varloss_lightning.pl_callbacks", {"lightning"}),
    ],
)
def test_nothing_is_imported_until_asked_for(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print({absent!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
