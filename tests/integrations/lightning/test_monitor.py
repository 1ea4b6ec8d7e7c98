"""`SimilarityMonitor` in real Trainers of both Lightning packages: logs, sources of projections, warnings and cost."""

from __future__ import annotations

import csv
import time
import warnings

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from support import lightning_ranks
from torch.utils.data import DataLoader, TensorDataset

from varloss import metrics
from varloss_lightning import callbacks, pl_callbacks

FLAVOURS = {
    "lightning": (lightning.pytorch, callbacks.SimilarityMonitor),
    "pytorch_lightning": (pytorch_lightning, pl_callbacks.SimilarityMonitor),
}
both = pytest.mark.parametrize("flavour", FLAVOURS)
# Lightning's advice on a toy run, and its use of a class that torch is about to retire.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


def module_of(package, step):
    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def training_step(self, batch, batch_idx):
            return step(self, *(self.scale * z for z in batch))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Module()


def returns(module, z0, z1):
    return {"loss": (z0 - z1).square().mean(), "projections": (z0, z1)}


def sets_attribute(module, z0, z1):
    module.projections = (z0, z1)
    return (z0 - z1).square().mean()


def loss_only(module, z0, z1):
    return (z0 - z1).square().mean()


def fit(flavour, step, monitor_options, data, folder, epochs: int = 1, batch_size: int = 3):
    package, monitor_class = FLAVOURS[flavour]
    monitor = monitor_class(**monitor_options)
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=package.loggers.CSVLogger(str(folder), name="", version="run"),
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module_of(package, step), DataLoader(TensorDataset(*data), batch_size=batch_size))
    return trainer, monitor


def logged(folder) -> list[dict[str, float]]:
    with open(folder / "run" / "metrics.csv") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(12, 5, generator=generator)
    return z0, z0 + torch.randn(12, 5, generator=generator)


@both
@pytest.mark.parametrize(
    ("step", "options"),
    [
        (returns, {}),
        (sets_attribute, {}),
        (returns, {"projections": lambda trainer, module, outputs, batch: tuple(batch)}),
    ],
    ids=["key", "attribute", "callable"],
)
def test_logs_the_statistics_of_every_nth_batch(flavour, step, options, views, tmp_path) -> None:
    trainer, _ = fit(flavour, step, {"every_n_steps": 2, **options}, views, tmp_path)
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == [2, 4]
    for row, start in zip(rows, (3, 9), strict=True):
        found = metrics.similarity_statistics(views[0][start : start + 3], views[1][start : start + 3])
        for name, value in found._asdict().items():
            assert row[f"similarity/{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert trainer.callback_metrics["similarity/cross_var"].item() == pytest.approx(rows[-1]["similarity/cross_var"])


def test_two_ranks_log_the_pairs_of_both(views, tmp_path) -> None:
    """Sums over the ranks' in-batch pairs; the mean of the ranks' variances would be another number."""
    # Rank 0 gets the even rows: its views are aligned, those of rank 1 opposed.
    views[1][0::2], views[1][1::2] = views[0][0::2] + 0.1, -views[0][1::2] + 0.1
    lightning_ranks.fit_two_ranks(str(tmp_path), *views)
    rows = logged(tmp_path)
    steps = [([0, 2, 4], [1, 3, 5]), ([6, 8, 10], [7, 9, 11])]
    for row, shares in zip(rows, steps, strict=True):
        each = [metrics.similarity_statistics(views[0][share], views[1][share]) for share in shares]
        packed = sum(metrics.SimilaritySums.of(views[0][share], views[1][share]).pack() for share in shares)
        found = metrics.SimilaritySums.unpack(packed).statistics()
        for name, value in found._asdict().items():
            assert row[f"similarity/{name}"] == pytest.approx(value.item(), rel=1e-5)
        averaged = torch.stack([torch.stack(statistics) for statistics in each]).mean(0)
        assert (averaged - torch.stack(found)).abs().max() > 0.5


@both
def test_a_last_batch_of_one_sample_is_skipped(flavour, views, tmp_path) -> None:
    fit(flavour, returns, {"every_n_steps": 1}, [z[:7] for z in views], tmp_path)
    assert [row["step"] for row in logged(tmp_path)] == [1, 2]


@both
def test_a_callable_may_skip_batches(flavour, views, tmp_path) -> None:
    def second(trainer, module, outputs, batch):
        return tuple(batch) if trainer.global_step == 2 else None

    fit(flavour, loss_only, {"every_n_steps": 1, "projections": second}, views, tmp_path)
    assert [row["step"] for row in logged(tmp_path)] == [2]


@both
def test_missing_projections_are_named(flavour, views, tmp_path) -> None:
    with pytest.raises(ValueError, match="training_step returned no 'z' and Module has no such attribute"):
        fit(flavour, returns, {"every_n_steps": 1, "projections": "z"}, views, tmp_path)
    with pytest.raises(TypeError, match="must be a pair of tensors"):
        fit(flavour, returns, {"every_n_steps": 1, "projections": lambda *_: torch.ones(3)}, views, tmp_path)


def warnings_of(flavour, data, folder, epochs, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(flavour, returns, {"every_n_steps": 1, "window": 4, **options}, data, folder, epochs=epochs)
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


@both
def test_warns_once_that_alignment_is_lost(flavour, views, tmp_path) -> None:
    z0 = views[0]
    found = warnings_of(flavour, (z0, -z0), tmp_path, epochs=4)
    assert len(found) == 1
    assert "alignment is lost: positive pairs had a mean similarity of -1.00 over the last 4" in found[0]


@both
def test_warns_once_of_collapse(flavour, views, tmp_path) -> None:
    ones = torch.ones(12, 5)
    found = warnings_of(flavour, (ones, ones), tmp_path, epochs=4)
    assert len(found) == 1
    assert "embeddings collapse: negative pairs had a mean similarity of 1.00" in found[0]


@both
def test_a_long_window_warns_from_the_tenth_measurement_on(flavour, views, tmp_path) -> None:
    z0 = views[0]
    (found,) = warnings_of(flavour, (z0, -z0), tmp_path, epochs=4, window=100)
    assert "over the last 10 measurements" in found


@both
@pytest.mark.parametrize(
    ("factor", "epochs", "options"),
    [(1.0, 4, {}), (-1.0, 2, {"window": 100}), (-1.0, 4, {"alignment_floor": -1.1})],
    ids=["healthy", "nine measurements or fewer", "floor moved"],
)
def test_does_not_warn_without_reason(flavour, factor, epochs, options, views, tmp_path) -> None:
    z0 = views[0]
    assert warnings_of(flavour, (z0, factor * z0 + 0.01), tmp_path, epochs=epochs, **options) == []


@both
def test_a_checkpoint_keeps_the_window_and_the_warnings(flavour, views, tmp_path) -> None:
    _, monitor_class = FLAVOURS[flavour]
    first = fit(flavour, returns, {"every_n_steps": 1, "window": 9}, (views[0], views[0]), tmp_path)[1]
    second = monitor_class(every_n_steps=1, window=9)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert len(second.state_dict()["positives"]) == 4


def test_the_other_lightning_does_not_take_it() -> None:
    """The reason why there are two callbacks."""
    assert not issubclass(callbacks.SimilarityMonitor, pytorch_lightning.Callback)
    assert not issubclass(pl_callbacks.SimilarityMonitor, lightning.pytorch.Callback)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"projections": 3}, TypeError, "projections must be a name or a callable; got int"),
        ({"every_n_steps": 0}, ValueError, "every_n_steps must be at least 1; got 0"),
        ({"window": 0}, ValueError, "window must be at least 1; got 0"),
        ({"every_n_steps": "x"}, TypeError, "every_n_steps must be an integer; got str"),
        ({"alignment_floor": "x"}, TypeError, "alignment_floor must be"),
        ({"collapse_ceiling": float("nan")}, ValueError, "collapse_ceiling must be finite"),
    ],
)
def test_bad_options_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        callbacks.SimilarityMonitor(**options)


def test_batches_in_between_cost_next_to_nothing() -> None:
    monitor = callbacks.SimilarityMonitor(every_n_steps=10**9)
    start = time.perf_counter()
    for step in range(10_000):
        monitor.on_train_batch_end(None, None, None, None, step)
    assert (time.perf_counter() - start) / 10_000 < 20e-6
