"""`SimilarityMonitor` in real Trainers of both Lightning packages: logs, sources of projections, warnings and cost."""

from __future__ import annotations

import csv
import math
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


def fit_with(flavour, step, monitors, data, folder, epochs: int = 1, batch_size: int = 3, ckpt_path=None, **options):
    package = FLAVOURS[flavour][0]
    logger = package.loggers.CSVLogger(str(folder), name="", version="run")
    settings = {
        "accelerator": "cpu",
        "max_epochs": epochs,
        "logger": logger,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    trainer = package.Trainer(callbacks=monitors, **(settings | options))
    loader = DataLoader(TensorDataset(*data), batch_size=batch_size)
    trainer.fit(module_of(package, step), loader, ckpt_path=ckpt_path)
    return trainer


def fit(flavour, step, monitor_options, data, folder, **options):
    monitor = FLAVOURS[flavour][1](**monitor_options)
    return fit_with(flavour, step, [monitor], data, folder, **options), monitor


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
    """Sums over the ranks' in-batch pairs; the mean of the ranks' variances would be another number.

    Where rank 1 has no usable projections, the pairs are those of rank 0, and neither waits for the other.
    """
    # Rank 0 gets the even rows: its views are aligned, those of rank 1 opposed.
    views[1][0::2], views[1][1::2] = views[0][0::2] + 0.1, -views[0][1::2] + 0.1
    lightning_ranks.fit_two_ranks(str(tmp_path), *views)
    found: dict[tuple[str, float], float] = {}
    for row in logged(tmp_path):
        found |= {(name, row["step"]): value for name, value in row.items()}
    for step, shares in ((1, ([0, 2, 4], [1, 3, 5])), (2, ([6, 8, 10], [7, 9, 11]))):
        of_ranks = [metrics.SimilaritySums.of(views[0][share], views[1][share]).pack() for share in shares]
        both_ranks, rank_0 = (
            metrics.SimilaritySums.unpack(packed).statistics() for packed in (sum(of_ranks), of_ranks[0])
        )
        expected = {"similarity": both_ranks, "no key": rank_0, **dict.fromkeys(lightning_ranks.ODD, rank_0)}
        # Its one sample is a positive pair, too.
        first = [share[:1] if rank else share for rank, share in enumerate(shares)]
        packed = sum(metrics.SimilaritySums.of(views[0][share], views[1][share]).pack() for share in first)
        expected["one sample"] = metrics.SimilaritySums.unpack(packed).statistics()
        for prefix, statistics in expected.items():
            for name, value in statistics._asdict().items():
                assert found[f"{prefix}/{name}", step] == pytest.approx(value.item(), rel=1e-5)
        averaged = torch.stack([torch.stack(metrics.SimilaritySums.unpack(p).statistics()) for p in of_ranks]).mean(0)
        assert (averaged - torch.stack(both_ranks)).abs().max() > 0.5


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


def at_batch(number, odd, otherwise=returns):
    """A `training_step` that does something else at one batch, counted from 0."""
    count = iter(range(10**9))

    def step(module, z0, z1):
        return (odd if next(count) == number else otherwise)(module, z0, z1)

    return step


def nothing(module, z0, z1):
    return None


SKIPS_A_STEP = pytest.mark.filterwarnings("ignore:.*training_step. returned .None.")


@both
@SKIPS_A_STEP
@pytest.mark.parametrize(
    ("usual", "options"),
    [
        (returns, {}),
        (sets_attribute, {}),
        (returns, {"projections": lambda trainer, module, outputs, batch: outputs["projections"]}),
    ],
    ids=["key", "attribute", "callable"],
)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_skipped_step_is_not_measured(flavour, number, usual, options, views, tmp_path) -> None:
    """`training_step` returned None. An attribute then holds the projections of an earlier batch."""
    step = at_batch(number, nothing, usual)
    fit(flavour, step, {"every_n_steps": 1, **options}, views, tmp_path)
    found = [row["similarity/positive_mean"] for row in logged(tmp_path)]
    starts = [3 * batch for batch in range(4) if batch != number]
    expected = [metrics.similarity_statistics(*(z[a : a + 3] for z in views)).positive_mean.item() for a in starts]
    assert found == pytest.approx(expected, rel=1e-5)


ODD = {
    "no key": lambda z0, z1: {},
    "not a pair": lambda z0, z1: {"projections": z0},
    "three": lambda z0, z1: {"projections": (z0, z1, z1)},
    "a string": lambda z0, z1: {"projections": "ab"},
    "other shapes": lambda z0, z1: {"projections": (z0, z1[:2])},
    "one-dimensional": lambda z0, z1: {"projections": (z0[0], z1[0])},
    "integers": lambda z0, z1: {"projections": (z0.long(), z1.long())},
    "a pair of None": lambda z0, z1: {"projections": (None, None)},
}
UNUSABLE = {
    "None": lambda z0, z1: {"projections": None},
    "one sample": lambda z0, z1: {"projections": (z0[:1], z1[:1])},
    "no sample": lambda z0, z1: {"projections": (z0[:0], z1[:0])},
}


@both
@pytest.mark.parametrize("kind", [*ODD, *UNUSABLE])
@pytest.mark.parametrize("number", [0, 2])
def test_odd_projections_are_skipped(flavour, kind, number, views, tmp_path) -> None:
    """A warning names what cannot be projections, once; a small batch is nothing to warn of."""
    odd = {**ODD, **UNUSABLE}[kind]
    step = at_batch(number, lambda module, z0, z1: {"loss": (z0 - z1).square().mean(), **odd(z0, z1)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(flavour, step, {"every_n_steps": 1}, views, tmp_path)
    assert [row["step"] for row in logged(tmp_path)] == [step for step in (1, 2, 3, 4) if step != number + 1]
    said = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(said) == (kind in ODD), said
    assert all("SimilarityMonitor skips a batch" in text for text in said)


@both
def test_a_name_that_never_appears_is_said_once(flavour, views, tmp_path) -> None:
    options = {"every_n_steps": 1, "projections": "z"}
    with pytest.warns(RuntimeWarning, match="returned no 'z', and Module has no such attribute") as caught:
        fit(flavour, returns, options, views, tmp_path, epochs=2)
    assert len([w for w in caught if issubclass(w.category, RuntimeWarning)]) == 1
    assert not (tmp_path / "run" / "metrics.csv").exists()


def only_returns(module, z0, z1):
    """A loss that is finite where the projections are not."""
    return {"loss": module.scale, "projections": (z0, z1)}


def said_in(flavour, data, folder, **options) -> list[str]:
    """The runtime warnings of a run that measures every batch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(flavour, only_returns, {"every_n_steps": 1, "window": 3}, data, folder, **options)
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


@both
def test_rows_that_are_not_finite_are_left_out(flavour, views, tmp_path) -> None:
    z0, z1 = (z.clone() for z in views)
    z0[4], z1[9:] = torch.nan, torch.inf
    (said,) = said_in(flavour, (z0, z1), tmp_path)
    assert said == "SimilarityMonitor left out 1 of 3 samples: their projections are not finite."
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    found = metrics.similarity_statistics(z0[[3, 5]], z1[[3, 5]])
    assert rows[1]["similarity/cross_mean"] == pytest.approx(found.cross_mean.item(), rel=1e-5)


@both
@pytest.mark.parametrize("number", [0, 2])
def test_a_batch_of_nan_does_not_silence_the_warnings(flavour, number, views, tmp_path) -> None:
    z0 = views[0].clone()
    z0[3 * number : 3 * number + 3] = torch.nan
    left_out, lost = said_in(flavour, (z0, -views[0]), tmp_path)
    assert "left out 3 of 3" in left_out
    assert "alignment is lost: positive pairs had a mean similarity of -1.00 over the last 3" in lost


@both
@pytest.mark.parametrize(("rows", "value"), [(3, math.nan), (1, 1.0)], ids=["NaN", "one sample"])
def test_a_run_in_which_nothing_can_be_measured_is_told(flavour, rows, value, tmp_path) -> None:
    data = [torch.full((12, 5), value) for _ in range(2)]
    said = said_in(flavour, data, tmp_path, batch_size=rows, epochs=4)
    assert len([text for text in said if "measured nothing in the last 10 batches" in text]) == 1
    assert len(said) == (2 if math.isnan(value) else 1)


@both
def test_several_monitors_live_in_one_trainer(flavour, views, tmp_path) -> None:
    monitor = FLAVOURS[flavour][1]

    def step(module, z0, z1):
        module.features = (z1, z0 + z1)
        return returns(module, z0, z1)

    monitors = [
        monitor(every_n_steps=1),
        monitor(every_n_steps=2, prefix="rarely/"),
        monitor("features", every_n_steps=1, prefix="features/"),
        monitor(lambda *_: (views[0], views[0]), every_n_steps=1, prefix="fixed/"),
        monitor(lambda *_: None, every_n_steps=1, prefix="never/"),
    ]
    trainer = fit_with(flavour, step, monitors, views, tmp_path)
    assert len({m.state_key for m in monitors}) == 5
    for prefix in ("similarity/", "rarely/", "features/", "fixed/"):
        assert f"{prefix}cross_var" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = [
        monitor(every_n_steps=1),
        monitor(every_n_steps=2, prefix="rarely/"),
        monitor("features", every_n_steps=1, prefix="features/"),
        monitor(lambda *_: (views[0], views[0]), every_n_steps=1, prefix="fixed/"),
        monitor(lambda *_: None, every_n_steps=1, prefix="never/"),
    ]
    fit_with(flavour, step, again, views, tmp_path / "again", epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert [len(m.state_dict()["positives"]) for m in again] == [8, 4, 8, 8, 0]
    assert again[0].state_dict()["positives"][:4] == monitors[0].state_dict()["positives"]


@both
def test_monitors_with_one_prefix_live_and_are_told(flavour, views, tmp_path) -> None:
    """Also where nothing else tells them apart: a checkpoint keeps their order."""
    build = lambda: [FLAVOURS[flavour][1](every_n_steps=n) for n in (1, 1, 2)]  # noqa: E731
    monitors = build()
    with pytest.warns(UserWarning, match="several SimilarityMonitors log under 'similarity/'") as caught:
        trainer = fit_with(flavour, returns, monitors, views, tmp_path)
    assert len([w for w in caught if "several SimilarityMonitors" in str(w.message)]) == 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert len({m.state_key for m in monitors}) == 3
    again = build()
    with pytest.warns(UserWarning, match="several SimilarityMonitors"):
        fit_with(flavour, returns, again, views, tmp_path / "again", epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert [len(m.state_dict()["positives"]) for m in again] == [8, 8, 4]


@both
def test_a_monitor_of_one_trainer_serves_the_next(flavour, views, tmp_path) -> None:
    """The key of a state does not depend on what else was made in the process."""
    first = FLAVOURS[flavour][1](every_n_steps=1)
    fit_with(flavour, returns, [first], views, tmp_path)
    key = first.state_key
    for _ in range(2):
        other = FLAVOURS[flavour][1](every_n_steps=1)
        fit_with(flavour, returns, [other], views, tmp_path, logger=False)
        assert other.state_key == key == "SimilarityMonitor"


def manually(module, z0, z1):
    """Manual optimization, in which a step need not return anything."""
    module.projections = (z0, z1)
    optimizer = module.optimizers()
    optimizer.zero_grad()
    module.manual_backward((z0 - z1).square().mean())
    optimizer.step()


@both
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"accumulate_grad_batches": 2}, 4),
        ({"fast_dev_run": True}, 1),
        ({"logger": False}, 4),
        ({"max_steps": 3}, 3),
        ({"limit_train_batches": 0}, 0),
        ({"num_sanity_val_steps": 2}, 4),
    ],
    ids=str,
)
def test_every_way_to_run_a_trainer(flavour, options, steps, views, tmp_path) -> None:
    trainer, monitor = fit(flavour, returns, {"every_n_steps": 1}, views, tmp_path, **options)
    assert len(monitor.state_dict()["positives"]) == steps
    assert ("similarity/cross_var" in trainer.callback_metrics) == (steps > 0)


@both
def test_measures_a_manual_step_that_returns_nothing(flavour, views, tmp_path) -> None:
    package, monitor_class = FLAVOURS[flavour]
    monitor = monitor_class(every_n_steps=1)
    module = module_of(package, manually)
    module.automatic_optimization = False
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*views), batch_size=3))
    assert len(monitor.state_dict()["positives"]) == 4


@both
def test_counts_batches_across_epochs(flavour, views, tmp_path) -> None:
    fit(flavour, returns, {"every_n_steps": 6}, views, tmp_path, epochs=4)
    assert [row["step"] for row in logged(tmp_path)] == [6, 12]


@both
def test_a_state_written_before_loads(flavour) -> None:
    monitor = FLAVOURS[flavour][1](window=3)
    old = {"batches": 7, "positives": [0.1, 0.2, 0.3, 0.4], "negatives": [0.0] * 4, "warned": ["collapse"]}
    for _ in range(2):
        monitor.load_state_dict(old)
        found = monitor.state_dict()
        assert (found["batches"], found["positives"], found["warned"]) == (7, [0.2, 0.3, 0.4], ["collapse"])


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
