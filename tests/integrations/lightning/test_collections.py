"""What torchmetrics does with the metric classes: collections that share states, copies, casts, trackers, checkpoints, ranks."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from support import metric_ranks, ranks
from torch import Tensor
from torchmetrics import Metric, MetricCollection, MetricTracker
from torchmetrics.wrappers import Running

import varloss_lightning as vl

DIM, METRICS = metric_ranks.DIM, metric_ranks.METRICS


def batches() -> list[dict[str, Tensor]]:
    """The first has two samples, with which many metrics agree by chance."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows in (2, 5, 1, 7):
        z0 = torch.randn(rows, DIM, generator=generator) + 0.3
        z1 = z0 + torch.randn(rows, DIM, generator=generator)
        found.append({"z0": z0, "z1": z1, "z": z0, "labels": torch.arange(rows) % 3})
    # With equal views, several metrics are 0 on the first batch.
    found[0]["z1"] = found[0]["z0"].clone()
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)


def results(metrics: dict[str, Metric], *, groups: bool, method: str = "update") -> dict[str, Tensor]:
    collection = MetricCollection(metrics, compute_groups=groups)
    for batch in batches():
        getattr(collection, method)(**batch)
    return collection.compute()


@pytest.mark.parametrize("method", ["update", "forward"])
@pytest.mark.filterwarnings("ignore:.*the result is NaN")
def test_a_collection_of_all_metrics_is_the_same_with_and_without_groups(method) -> None:
    for order in (list(METRICS), list(reversed(METRICS))):
        grouped = results({name: METRICS[name]() for name in order}, groups=True, method=method)
        same(grouped, results({name: METRICS[name]() for name in order}, groups=False, method=method))


def test_no_two_metrics_are_taken_for_one() -> None:
    for pair in itertools.combinations(METRICS, 2):
        grouped = results({name: METRICS[name]() for name in pair}, groups=True)
        same(grouped, results({name: METRICS[name]() for name in pair}, groups=False))


class Stranger(Metric):
    """A metric of somebody else with the plainest of state names, which agrees with ours on the first batch."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count", "left_out"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, z0: Tensor, z1: Tensor) -> None:
        self.total = self.total + (z0 - z1).sum()
        self.count = self.count + len(z0)

    def compute(self) -> Tensor:
        return self.total


class Keeper(Metric):
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, z: Tensor) -> None:
        self.rows.append(z if len(z) == 2 else z + 1)

    def compute(self) -> Tensor:
        return torch.cat(self.rows).sum()


class HalfAlignment(vl.Alignment):
    """A user's subclass with an update of its own."""

    def update(self, z0: Tensor, z1: Tensor) -> None:
        super().update(z0[: len(z0) // 2 + 1], z1[: len(z0) // 2 + 1])


class Shouted(vl.Alignment):
    """A user's subclass with a compute of its own."""

    def compute(self) -> Tensor:
        return 10 * super().compute()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (vl.Alignment, Stranger),
        (vl.RelativePenaltyEntropy, Stranger),
        (vl.Uniformity, Keeper),
        (vl.Alignment, HalfAlignment),
        (vl.Alignment, Shouted),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the result is NaN")
def test_metrics_of_others_stay_apart(ours, theirs) -> None:
    for kinds in ((ours, theirs), (theirs, ours)):
        grouped = results({kind.__name__: kind() for kind in kinds}, groups=True)
        same(grouped, results({kind.__name__: kind() for kind in kinds}, groups=False))


def groups(**metrics: Metric) -> list[list[str]]:
    collection = MetricCollection(metrics)
    for batch in batches():
        collection.update(**batch)
    return list(collection.compute_groups.values())


def test_metrics_that_differ_in_compute_alone_share_their_state() -> None:
    one = groups(a=vl.Uniformity(), b=vl.Uniformity(t=1.0), c=vl.WassersteinUniformity(), d=vl.EffectiveRank())
    assert one == [["a", "b", "c", "d"]]
    assert groups(a=vl.Alignment(alpha=1), b=vl.Alignment(alpha=1.0), c=Shouted(alpha=1.0)) == [["a", "b", "c"]]
    assert groups(a=vl.Tolerance(3, DIM), b=vl.Tolerance(3, DIM), c=vl.Tolerance(4, DIM)) == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("entropy", "temperature", 0.1),
        ("entropy", "negatives", "within"),
        ("alignment", "alpha", 1.0),
        ("uniformity", "t", 1.0),
        ("rank", "normalize", True),
        ("all pairs", "embedding_dim", 3),
        ("tolerance", "num_classes", 4),
    ],
)
def test_an_option_does_not_change_after_construction(name, option, value) -> None:
    """A collection may have merged the metric with another by then, and caches what `compute` returned."""
    metric = METRICS[name]()
    before = getattr(metric, option)
    with pytest.raises(AttributeError, match=f"{option} of {type(metric).__name__} is fixed at construction"):
        setattr(metric, option, value)
    assert getattr(metric, option) == before


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: vl.Alignment(alpha=0), ValueError, "alpha must be positive"),
        (lambda: vl.RelativePenaltyEntropy(temperature=-1), ValueError, "temperature must be positive"),
        (lambda: vl.RelativePenaltyEntropy(negatives="all"), ValueError, "negatives must be one of"),
        (lambda: vl.Uniformity(t=0), ValueError, "t must be positive"),
        (lambda: vl.Tolerance(0, 4), ValueError, "num_classes must be at least 1"),
        (lambda: vl.Tolerance(3, 0), ValueError, "embedding_dim must be at least 1"),
        (lambda: vl.Alignment(dtype=torch.float16), ValueError, "dtype must be torch.float32 or torch.float64"),
    ],
)
def test_options_are_checked_at_construction(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()


def value_of(metric: Metric, which: list[dict[str, Tensor]]) -> Any:
    for batch in which:
        metric.update(**metric._filter_kwargs(**batch))
    return metric.compute()


def close(found: Any, expected: Any, **tolerance: float) -> None:
    for a, b in zip(*(list(x.values()) if isinstance(x, dict) else [x] for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, check_dtype=False, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("name", METRICS)
def test_copies_of_a_metric_go_on_where_it_was(name, tmp_path) -> None:
    first, last = batches()[:3], batches()[3:]
    whole = value_of(METRICS[name](), first + last)
    half = METRICS[name]()
    value_of(half, first)
    half.persistent(True)
    loaded = METRICS[name]()
    loaded.load_state_dict(half.state_dict())
    for copied in (half.clone(), pickle.loads(pickle.dumps(half)), copy.deepcopy(half), loaded):
        close(value_of(copied, last), whole)
        copied.reset()
        close(value_of(copied, first + last), whole)
    assert not METRICS[name]().state_dict()


@pytest.mark.parametrize("name", METRICS)
def test_forward_gives_the_value_of_the_batch(name) -> None:
    metric = METRICS[name]()
    for batch in batches():
        if len(batch["z"]) > 3:
            close(metric(**metric._filter_kwargs(**batch)), value_of(METRICS[name](), [batch]))
        else:
            metric.update(**metric._filter_kwargs(**batch))
    close(metric.compute(), value_of(METRICS[name](), batches()))


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.set_dtype(torch.float16),
        lambda m: m.set_dtype(torch.float32),
        lambda m: torch.nn.ModuleList([m]).to(torch.bfloat16)[0],
    ],
)
@pytest.mark.parametrize("name", METRICS)
def test_casts_leave_sums_that_can_count(name, cast) -> None:
    """In bfloat16, 256 + 1 is 256."""
    metric = cast(METRICS[name]())
    few = [{k: v[:3] for k, v in batches()[3].items()}] * 3
    close(value_of(cast(metric), few), value_of(METRICS[name](), few), rtol=1e-5, atol=1e-6)
    metric.reset()
    close(value_of(metric, few), value_of(METRICS[name](), few), rtol=1e-5, atol=1e-6)
    if "sums" in vars(type(metric)):
        assert metric.sums.dtype in (torch.float32, torch.float64)


def test_a_bfloat16_module_keeps_counting() -> None:
    metric = vl.Alignment().to(torch.bfloat16)
    z = torch.eye(2)
    for step in range(600):
        metric.update(z[:1], z[step % 2 :][:1])
    assert metric.compute().item() == pytest.approx(1.0)


def test_collections_are_cloned_tracked_and_windowed() -> None:
    names = ["in-batch", "alignment", "alignment, alpha", "uniformity", "rank"]
    whole = results({name: METRICS[name]() for name in names}, groups=False)
    cloned = MetricCollection({name: METRICS[name]() for name in names}).clone(prefix="val/")
    tracker = MetricTracker(cloned, maximize=False)
    for _ in range(2):
        tracker.increment()
        for batch in batches():
            tracker.update(**batch)
        same(tracker.compute(), {f"val/{name}": value for name, value in whole.items()})
    assert set(tracker.best_metric()) == {f"val/{name}" for name in whole}
    running = Running(vl.Alignment(), window=1)
    for batch in batches():
        running.update(z0=batch["z0"], z1=batch["z1"])
    close(running.compute(), value_of(vl.Alignment(), batches()[-1:]))


def test_two_ranks_of_which_one_has_no_rows(tmp_path) -> None:
    """Neither waits, and both have the value of the other's rows."""
    data = batches()[3]
    expected = {name: value_of(METRICS[name](), [data]) for name in METRICS}
    for found in ranks.run(2, tmp_path, metric_ranks.beside_an_idle_rank, data):
        for name, value in found.items():
            close(value, expected[name.partition(":")[0]], rtol=1e-6, atol=1e-6)
        assert len(found) == 3 * len(METRICS)
