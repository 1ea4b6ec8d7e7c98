"""One trial: pairing, determinism, evaluation, divergence, and its record."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from varloss_bench import measures
from varloss_bench.config import TrialConfig, queue_length
from varloss_bench.data import loading
from varloss_bench.execution.execute import execute
from varloss_bench.grid import grid
from varloss_bench.records import provenance, store
from varloss_bench.training import evaluate, fit, modules
from varloss_bench.training.trial import load_source, run_trial

TINY = TrialConfig(epochs=1, batch_size=128)
ARMS = [
    dataclasses.replace(TINY, method=method, weight=weight, temperature=temperature)
    for method in ("simclr", "moco")
    for weight, temperature in ((0.0, 0.5), (3.0, 0.5), (0.0, 0.2))
]

pytestmark = pytest.mark.usefixtures("trains")


@pytest.fixture
def first_steps(monkeypatch):
    """The actual start of each trial: backbone weights and batch at its first training step."""
    seen = []
    step = modules.ContrastiveModule.training_step

    def spy(self, batch, batch_idx):
        if batch_idx == 0 and self.current_epoch == 0:
            seen.append(([p.detach().clone() for p in self.backbone.parameters()], batch))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(modules.ContrastiveModule, "training_step", spy)
    return seen


def test_arms_of_a_seed_start_from_the_same_weights_and_pixels(first_steps):
    records = [run_trial(config) for config in ARMS]
    other = run_trial(dataclasses.replace(TINY, seed=1))
    (weights, batch), *rest = first_steps
    for other_weights, other_batch in rest[:-1]:
        assert all(map(torch.equal, weights, other_weights))
        assert all(map(torch.equal, batch, other_batch))
    assert not torch.equal(weights[0], rest[-1][0][0])
    assert not torch.equal(batch[0], rest[-1][1][0])
    # The evidence in the record agrees, and is of the actual training data.
    assert all(record["paired"] == records[0]["paired"] for record in records)
    assert records[0]["paired"]["first_batch"] == fit._digest(*batch)
    assert not set(other["paired"].values()) & set(records[0]["paired"].values())
    # The results of arms differ.
    assert len({record["metrics"]["negative_variance"] for record in records}) == len(records)


@pytest.mark.parametrize("method", ["simclr", "moco", "raw-pixels", "random-init"])
def test_same_seed_same_numbers(method):
    config = dataclasses.replace(TINY, method=method, weight=3.0 if method in ("simclr", "moco") else 0.0)
    first = run_trial(config)
    torch.manual_seed(12345)  # nothing may depend on the global random state
    second = run_trial(config)
    assert first["metrics"] == second["metrics"]
    assert first.get("epoch_losses") == second.get("epoch_losses")


def test_weight_zero_is_the_plain_method():
    source = loading.load("digits")
    splits = loading.split(source, 0)
    plain, _, _ = fit.build(TINY, splits.train, source)
    regularised, loader, _ = fit.build(dataclasses.replace(TINY, weight=3.0), splits.train, source)
    assert plain.regularizer is None
    assert regularised.regularizer.num_samples == len(splits.train) == 997
    assert regularised.regularizer.weight == 3.0
    batch = next(iter(loader))
    loss, *_ = regularised.contrastive_loss(*batch)
    plain_loss, *_ = plain.contrastive_loss(*batch)
    assert torch.equal(loss, plain_loss)


def test_moco_takes_vrn_between_two_query_views_and_enqueues_once():
    source = loading.load("digits")
    module, loader, _ = fit.build(
        dataclasses.replace(TINY, method="moco", weight=3.0, batch_size=64), loading.split(source, 0).train, source
    )
    bank = module.criterion.memory_bank
    assert bank.bank.shape == (256, TrialConfig.output_dim)
    _, q0, q1 = module.contrastive_loss(*next(iter(loader)))
    assert q0.requires_grad
    assert q1.requires_grad
    assert not torch.equal(q0, q1)
    assert int(bank.valid().sum()) == 128  # 64 keys of each view, once
    assert all(not p.requires_grad for p in module.key_encoder.parameters())


def test_fused_and_split_differ_only_through_batch_norm():
    source = loading.load("digits")
    splits = loading.split(source, 0)
    outputs = []
    for fused in (True, False):
        module, loader, _ = fit.build(dataclasses.replace(TINY, fused=fused), splits.train, source)
        batch = next(iter(loader))
        module.train()
        in_training = torch.cat(module.encode_views(module, *batch))
        module.eval()
        outputs.append((in_training, torch.cat(module.encode_views(module, *batch))))
    assert not torch.allclose(outputs[0][0], outputs[1][0])
    # The running statistics come from different passes; with new statistics the two are the same.
    fresh, _, _ = fit.build(TINY, splits.train, source)
    fresh.eval()
    fused = torch.cat(fresh.encode_views(fresh, *batch))
    fresh.config = dataclasses.replace(TINY, fused=False)
    torch.testing.assert_close(torch.cat(fresh.encode_views(fresh, *batch)), fused)


def test_weight_warm_up_rises_to_the_weight(monkeypatch):
    weights = []
    step = modules.ContrastiveModule.training_step

    def spy(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        weights.append(self.regularizer.weight)
        return loss

    monkeypatch.setattr(modules.ContrastiveModule, "training_step", spy)
    run_trial(dataclasses.replace(TINY, epochs=2, weight=3.0, weight_warmup=0.5))
    assert len(weights) == 14
    assert weights == pytest.approx([3.0 * min(1.0, i / 7) for i in range(14)])


def test_diverged_training_is_recorded_and_raises_nothing(tmp_path):
    config = dataclasses.replace(TINY, base_lr=1e30)
    status, reason = execute(config, tmp_path, ["varloss-bench"])
    assert status == "diverged"
    assert "epoch 1 is nan" in reason or "epoch 1 is inf" in reason
    record = json.loads(store.Store(tmp_path).path(config).read_text())
    assert (record["status"], record["reason"]) == (status, reason)
    assert store.Store(tmp_path).load([config]).done(config)


@pytest.mark.parametrize(("part", "outputs"), [("backbone", "features"), ("head", "projections")])
def test_a_last_step_that_ruins_the_weights_is_divergence_and_no_crash(tmp_path, monkeypatch, part, outputs):
    """The loss of a step is computed before its update, so every loss of this trial is finite."""
    note_loss = modules.ContrastiveModule.on_train_epoch_end

    def ruin(self):
        note_loss(self)
        with torch.no_grad():
            next(getattr(self, part).parameters()).fill_(float("inf"))

    monkeypatch.setattr(modules.ContrastiveModule, "on_train_epoch_end", ruin)
    status, reason = execute(TINY, tmp_path, [])
    assert (status, reason) == ("diverged", f"{outputs} after the last step are not finite")
    assert store.Store(tmp_path).load([TINY]).done(TINY)


def test_a_failing_trial_is_recorded_with_its_traceback(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(evaluate, "feature_metrics", broken)
    config = dataclasses.replace(TINY, method="raw-pixels")
    assert execute(config, tmp_path, []) == ("crashed", "RuntimeError: out of luck")
    record = json.loads(store.Store(tmp_path).path(config).read_text())
    assert "out of luck" in record["traceback"]
    assert not store.Store(tmp_path).load([config]).done(config)


def test_a_full_disk_is_a_reason_and_not_the_end(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    status, reason = execute(dataclasses.replace(TINY, method="raw-pixels"), tmp_path, [])
    assert status == "crashed"
    assert "could not be stored" in reason
    assert "No space left on device" in reason


def test_record_says_what_made_the_row(tmp_path):
    config = dataclasses.replace(TINY, weight=3.0)
    execute(config, tmp_path, ["varloss-bench", "compare"])
    record = json.loads(store.Store(tmp_path).path(config).read_text())
    assert record["config"] == config.to_dict()
    assert record["command"] == ["varloss-bench", "compare"]
    assert record["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["confounds"]["forward"] == "both views in one pass"
    assert record["confounds"]["head_batch_norm"] is True
    assert (record["steps"], record["parameters"]) == (997 // 128, 92896)
    assert set(measures.METRICS) <= set(record["metrics"])
    assert record["data_digest"] == load_source(config).digest


def test_images_are_hashed_on_rank_0_only(monkeypatch):
    class Fitted:
        def fit(self, module, train_dataloaders):
            pass

    def hashed(source):
        raise AssertionError("hashed by a rank whose outcome is dropped")

    monkeypatch.setattr(fit, "make_trainer", lambda *_, **__: Fitted())
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(loading.Source, "digest", property(hashed))
    assert run_trial(dataclasses.replace(TINY, devices=2), rank=1) == {}


def test_record_says_which_source_made_it(tmp_path):
    """The digest covers all code of the harness that a trial runs, and no code that only shows results."""
    code = (
        "import sys, varloss_bench; before = set(sys.modules)\n"  # the face, which imports options and functions
        "import varloss_bench.training.trial, varloss_bench.training.ranks\n"
        "print(*(sys.modules[n].__file__ for n in set(sys.modules) - before if n.startswith('varloss_bench.')))"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    packages = {str(path) for path in provenance.PACKAGE.rglob("__init__.py")}
    sources = {str(path) for path in provenance.trial_sources()}
    assert set(imported) - packages <= sources
    assert {str(provenance.PACKAGE / f"{name}.py") for name in ("config", "measures", "methods", "options")} <= sources
    digest = provenance.environment()["varloss_bench_source"]
    for number, source in enumerate(provenance.trial_sources()):
        (tmp_path / f"{number:03}.py").write_bytes(source.read_bytes())
    copies = sorted(tmp_path.iterdir())
    assert provenance._digest(copies) == digest
    copies[0].write_text("# other code")
    assert provenance._digest(copies) != digest


def test_confounds_of_a_sweep_are_told_by_method():
    base = TrialConfig(data="imagefolder:x", image_size=224, vrn_against="queue")
    axes = {
        "batch_sizes": [16],
        "weights": [3.0],
        "temperatures": [0.5],
        "control_temperatures": [0.2],
        "seeds": [0, 1],
    }
    recorded = provenance.confounds_by_method(grid(base, methods=["simclr", "moco"], **axes))
    assert {method: confounds.get("head_batch_norm") for method, confounds in recorded.items()} == {
        "raw-pixels": None,
        "simclr": True,
        "moco": False,
    }
    assert [recorded[method]["negatives"] for method in ("simclr", "moco")] == ["both", "queue"]
    assert recorded["moco"]["vrn_between"] == "query and queue"  # without VRN a trial has the default
    assert set(recorded["raw-pixels"]) == {"raw_pixels"}


def test_record_says_how_long_its_probes_took(monkeypatch):
    config = dataclasses.replace(TINY, method="raw-pixels", epochs=0)
    found = run_trial(config)["probe_iterations"]
    assert found.keys() == {"few_label_probe", "fewest_label_probe", "linear_probe"}
    assert all(1 < count < measures.PROBE_ITERATIONS for count in found.values())
    monkeypatch.setattr(evaluate, "PROBE_ITERATIONS", 7)
    cut_off = run_trial(config)
    assert set(cut_off["probe_iterations"].values()) == {7}


def test_collapse_is_flagged(monkeypatch):
    monkeypatch.setattr(modules.ContrastiveModule, "forward", _collapsed)
    record = run_trial(TINY)
    assert record["collapsed"] is True
    assert record["metrics"]["negative_variance"] < 0.05


def _collapsed(module, images):
    return module.head(module.backbone(images)) * 1e-3 + torch.ones(TrialConfig.output_dim)


@pytest.mark.parametrize(("asked", "length"), [(0, 256), (100, 100), (498, 498)])
def test_queue_length(asked, length):
    assert queue_length(asked, 997) == length


def test_queue_of_more_than_half_the_data_is_refused():
    with pytest.raises(ValueError, match="at most half of the 997 training samples, got 499"):
        queue_length(499, 997)
