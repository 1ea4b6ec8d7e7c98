"""The torchmetrics classes: many batches give the value of all samples together. Several ranks: test_distributed.py."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from support import metric_ranks
from torchmetrics import Metric, MetricCollection

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


def odd_batches() -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Batches, and which of their samples count: whole ones, of 0 and 1 rows, and with rows that are not finite."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, odd in (
        (5, {}),
        (0, {}),
        (6, {1: torch.nan, 4: torch.inf}),
        (1, {}),
        (3, dict.fromkeys(range(3), torch.nan)),
    ):
        z0 = torch.randn(rows, DIM, generator=generator) + 0.3
        z1 = z0 + torch.randn(rows, DIM, generator=generator)
        keep = torch.ones(rows, dtype=torch.bool)
        for row, value in odd.items():
            z0[row, 2], keep[row] = value, False
        found.append(({"z0": z0, "z1": z1, "z": z0, "labels": torch.arange(rows) % 3}, keep))
    # Five of these six are left out by one view or the other: one sample, which has no negative.
    z = torch.full((6, DIM), torch.nan)
    z[5] = 1.0
    found.append(({"z0": z, "z1": torch.ones(6, DIM), "z": z, "labels": torch.arange(6) % 3}, torch.arange(6) == 5))
    return found


def update_by_name(metric: Metric, batch: dict[str, torch.Tensor]) -> None:
    metric.update(**metric._filter_kwargs(**batch))


def values(metric: Metric) -> torch.Tensor:
    found = metric.compute()
    return torch.stack(list(found.values())) if isinstance(found, dict) else found


@pytest.mark.parametrize("name", metric_ranks.METRICS)
def test_odd_batches_neither_end_nor_spoil_an_evaluation(name) -> None:
    """Rows that are not finite count as if they were not in the batch, and are counted."""
    odd, clean = metric_ranks.METRICS[name](), metric_ranks.METRICS[name]()
    for batch, keep in odd_batches():
        update_by_name(odd, batch)
        update_by_name(clean, {key: value[keep] for key, value in batch.items()})
    assert (int(odd.left_out), int(clean.left_out)) == (10, 0)
    with pytest.warns(UserWarning, match=f"{type(odd).__name__} left out 10 samples that are not finite"):
        found = values(odd)
    assert found.isfinite().all()
    torch.testing.assert_close(found, values(clean), rtol=1e-6, atol=1e-12)
    odd.reset()
    assert int(odd.left_out) == 0


@pytest.mark.parametrize("name", metric_ranks.METRICS)
def test_an_evaluation_of_nothing_is_nan_with_a_warning(name) -> None:
    no_rows, not_finite = (odd_batches()[i][0] for i in (1, 4))
    for batches in ([no_rows], [not_finite], [no_rows, not_finite, no_rows]):
        metric = metric_ranks.METRICS[name]()
        for batch in batches:
            update_by_name(metric, batch)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert values(metric).isnan().all()
        assert f"{type(metric).__name__} has seen no" in str(caught[-1].message)
        assert "the result is NaN" in str(caught[-1].message)
    metric = metric_ranks.METRICS[name]()
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert values(metric).isnan().all()


def test_a_single_sample_gives_what_needs_no_pair() -> None:
    """Alignment and a rank; positives, but no negatives."""
    batch = {key: value[:1] for key, value in odd_batches()[0][0].items()}
    found = {}
    for name, build in metric_ranks.METRICS.items():
        metric = build()
        update_by_name(metric, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = values(metric).isfinite().tolist()
    assert found["in-batch"] == found["all pairs"] == [True, True, False, False, False, False]
    assert found["alignment"] is found["rank"] is True
    assert not any(found[name] for name in ("entropy", "tolerance", "uniformity", "wasserstein"))


@pytest.mark.parametrize("name", metric_ranks.METRICS)
def test_an_update_does_not_wait_for_the_device(name) -> None:
    """Meta tensors have no values that a host could ask for."""
    metric = metric_ranks.METRICS[name]().to("meta")
    for labels in (torch.arange(4), torch.arange(4.0)):
        batch = {**dict.fromkeys(("z0", "z1", "z"), torch.ones(4, DIM)), "labels": labels}
        update_by_name(metric, {key: value.to("meta") for key, value in batch.items()})


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int8, torch.bool, torch.float32, torch.bfloat16])
def test_tolerance_takes_labels_of_any_real_dtype(dtype, data) -> None:
    z, _, labels = data
    labels = labels % 2
    found, expected = vl.Tolerance(2, DIM), metrics.tolerance(z, labels)
    found.update(z, labels.to(dtype))
    torch.testing.assert_close(found.compute(), expected)


def test_a_sample_with_a_label_that_is_nan_is_left_out(data) -> None:
    z, _, labels = data
    metric = vl.Tolerance(3, DIM)
    metric.update(z, torch.where(labels == 1, torch.nan, labels))
    with pytest.warns(UserWarning, match="left out 3 samples"):
        torch.testing.assert_close(metric.compute(), metrics.tolerance(z[labels != 1], labels[labels != 1]))


def test_batches_of_another_kind_are_named(data) -> None:
    z = data[0]
    for metric in (build() for name, build in metric_ranks.METRICS.items()):
        for odd in (z[0], z.long(), z[:, :0], None):
            with pytest.raises((TypeError, ValueError, AttributeError)):
                update_by_name(metric, {"z0": odd, "z1": odd, "z": odd, "labels": torch.zeros(N, dtype=torch.long)})
        if "z1" in metric._update_signature.parameters:
            with pytest.raises(ValueError, match="same shape"):
                metric.update(z, z[:3])
    uniformity = vl.Uniformity()
    uniformity.update(z)
    with pytest.raises(ValueError, match="earlier batches had projections of dimension 4; got 2"):
        uniformity.update(z[:, :2])


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
