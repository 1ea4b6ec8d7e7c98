"""Checkpoints restore modules with every way of copying them, and a resumed run continues bit by bit."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from support import oracles
from torch import nn

import varloss
import varloss_lightly
from varloss import functional

QUEUE = (9, 4)


def modules():
    """Every loss with its state: learned numbers, banks, weights. Each call builds new ones."""
    vrn = {"weight": 2, "num_samples": 50}
    return {
        "NTXentLoss": lambda: varloss.NTXentLoss(negatives="within", learnable_temperature=True),
        "InfoNCELoss": lambda: varloss.InfoNCELoss(temperature=0.1, hard_fraction=0.5),
        "DCLLoss": lambda: varloss.DCLLoss(learnable_temperature=True),
        "DHELLoss": lambda: varloss.DHELLoss(scale="official", learnable_temperature=True),
        "KCLLoss": lambda: varloss.KCLLoss(gamma=4.0),
        "SigmoidLoss": lambda: varloss.SigmoidLoss(negatives="both", learnable=True),
        "SimpleLoss": lambda: varloss.SimpleLoss(hard_count=2),
        "SpectralLoss": lambda: varloss.SpectralLoss(negatives="within"),
        "QueueInfoNCELoss": lambda: varloss.QueueInfoNCELoss(memory_bank_size=QUEUE),
        "VRNRegularizer p=3": lambda: varloss.VRNRegularizer(weight=1, target=0.1, pairs="both", exponent=3),
        "VRNRegularizer": lambda: varloss.VRNRegularizer(**vrn),
        "WithVRN": lambda: varloss.WithVRN(varloss.NTXentLoss(learnable_temperature=True), **vrn),
        "WithVRN of a function": lambda: varloss.WithVRN(functional.kcl, pairs="both", **vrn),
        "lightly.NTXentLoss": lambda: varloss_lightly.NTXentLoss(0.1, vrn_weight=2, num_samples=50),
        "lightly.NTXentLoss with a bank": lambda: varloss_lightly.NTXentLoss(0.1, QUEUE),
        "lightly.DCLLoss": lambda: varloss_lightly.DCLLoss(vrn_weight=2, target=0.0),
        "lightly.DCLWLoss": lambda: varloss_lightly.DCLWLoss(sigma=0.3),
        "lightly.DHELLoss": lambda: varloss_lightly.DHELLoss(vrn_weight=2, num_samples=9, vrn_pairs="within"),
        "lightly.VRNRegularizer": lambda: varloss_lightly.VRNRegularizer(3, num_samples=9),
    }


def test_every_module_is_in_the_table():
    names = {name.split(" ")[0] for name in modules()}
    for package, prefix in ((varloss, ""), (varloss_lightly, "lightly.")):
        for name in package.__all__:
            thing = getattr(package, name)
            if isinstance(thing, type) and issubclass(thing, nn.Module) and thing is not varloss.MemoryBank:
                assert prefix + name in names


def views(seed):
    return [z.detach().float().requires_grad_() for z in oracles.views(6, 4, seed=seed)]


def step(loss_fn, seed):
    """Value, and gradients of views and learned numbers, as one list of tensors. Updates banks and learned numbers."""
    z0, z1 = views(seed)
    if hasattr(loss_fn, "memory_bank") and loss_fn.memory_bank is not None:
        z1 = z1.detach()
    value = loss_fn(z0, z1)
    learned = list(loss_fn.parameters())
    inputs = [z for z in (z0, z1) if z.requires_grad] + learned
    grads = torch.autograd.grad(value, inputs)
    with torch.no_grad():
        for parameter in learned:
            parameter.mul_(0.9)
    return [value.detach(), *grads]


def through_state_dict(loss_fn, build):
    file = io.BytesIO()
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    fresh = build()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def through_torch_save(loss_fn, build):
    del build
    file = io.BytesIO()
    torch.save(loss_fn, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": lambda loss_fn, build: copy.deepcopy(loss_fn),
    "pickle": lambda loss_fn, build: pickle.loads(pickle.dumps(loss_fn)),
    "torch.save": through_torch_save,
    "state_dict": through_state_dict,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", modules())
def test_a_copy_goes_on_as_the_original_and_apart_from_it(name, how):
    build = modules()[name]
    original = build()
    for seed in range(3):
        step(original, seed)
    twin = COPIES[how](original, build)
    assert repr(twin) == repr(original)
    assert twin.state_dict().keys() == original.state_dict().keys()
    for seed in (3, 4, 5):
        for ours, theirs in zip(step(original, seed), step(twin, seed), strict=True):
            assert torch.equal(ours, theirs)
    for key, value in original.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value)
    # Another step of one does not change the other.
    before = copy.deepcopy(twin.state_dict())
    step(original, 6)
    for key, value in twin.state_dict().items():
        assert torch.equal(before[key], value)


class MoCo:
    """A minimal run with everything that a checkpoint contains: two encoders, dropout, momentum, bank, data order."""

    def __init__(self, build):
        torch.manual_seed(0)
        self.data = torch.randn(40, 6)
        self.query = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.loss_fn = build()
        self.vrn = varloss.VRNRegularizer(weight=1, num_samples=40)
        self.optimizer = torch.optim.SGD(self.query.parameters(), lr=0.3, momentum=0.9)
        self.values = []

    def run(self, steps):
        for _ in range(steps):
            rows = self.data[torch.randperm(40)[:8]]
            q0, q1 = (self.query(rows + 0.1 * torch.randn_like(rows)) for _ in range(2))
            with torch.no_grad():
                for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
                key = self.key(rows + 0.1 * torch.randn_like(rows))
            loss = self.loss_fn(q0, key) + self.vrn(q0, q1)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.values.append(loss.item())

    def parts(self):
        return {"query": self.query, "key": self.key, "loss": self.loss_fn, "optimizer": self.optimizer}

    def save(self, path):
        states = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**states, "rng": torch.get_rng_state()}, path)

    def load(self, path):
        states = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(states[name])
        torch.set_rng_state(states["rng"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: varloss.QueueInfoNCELoss(memory_bank_size=(20, 4)),
        lambda: varloss_lightly.NTXentLoss(0.2, memory_bank_size=(20, 4)),
    ],
)
def test_resumed_run_is_the_run_bit_by_bit(build, tmp_path):
    """Saved after 4 steps of 8 keys, in the middle of the ring's second round."""
    straight = MoCo(build)
    straight.run(4)
    straight.save(tmp_path / "checkpoint.pt")
    straight.run(5)
    resumed = MoCo(build)
    torch.manual_seed(99)
    resumed.load(tmp_path / "checkpoint.pt")
    resumed.run(5)
    assert resumed.values == straight.values[4:]
    for name, part in straight.parts().items():
        if name != "optimizer":
            for key, value in part.state_dict().items():
                assert torch.equal(resumed.parts()[name].state_dict()[key], value), (name, key)


def filled_bank(keys):
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=QUEUE)
    loss_fn.enqueue(torch.randn(keys, 4))
    return loss_fn


@pytest.mark.parametrize("keys", [0, 5, 9, 12])
def test_bank_saved_without_its_count_is_counted(keys):
    saved = filled_bank(keys).state_dict()
    expected = saved.pop("memory_bank.filled")
    restored = varloss.QueueInfoNCELoss(memory_bank_size=QUEUE)
    restored.load_state_dict(saved)
    assert torch.equal(restored.memory_bank.filled, expected)
    assert "memory_bank.filled" not in saved


@pytest.mark.parametrize(("keys", "pointer"), [(5, 5), (12, 0)])
def test_bank_saved_without_its_pointer_goes_on_with_a_warning(keys, pointer):
    saved = filled_bank(keys).state_dict()
    del saved["memory_bank.ptr"]
    restored = varloss.QueueInfoNCELoss(memory_bank_size=QUEUE)
    with pytest.warns(UserWarning, match="does not say which slot of memory_bank.bank is the oldest"):
        restored.load_state_dict(saved)
    assert int(restored.memory_bank.ptr) == pointer


def test_pointer_without_a_bank_is_not_believed():
    saved = filled_bank(5).state_dict()
    del saved["memory_bank.bank"]
    restored = filled_bank(2)
    with pytest.warns(UserWarning, match="holds no memory bank"):
        restored.load_state_dict(saved)
    assert (int(restored.memory_bank.ptr), int(restored.memory_bank.filled)) == (2, 2)


@pytest.mark.parametrize("size", [(8, 4), (9, 5)])
@pytest.mark.parametrize("strict", [True, False])
def test_bank_of_another_size_is_refused_and_nothing_of_it_is_loaded(size, strict):
    saved = filled_bank(5).state_dict()
    other = varloss.QueueInfoNCELoss(memory_bank_size=size)
    with pytest.raises(
        RuntimeError, match=r"9 keys of dimension \(4,\) in the state_dict and \d of dimension \(\d,\) here"
    ):
        other.load_state_dict(saved, strict=strict)
    assert (int(other.memory_bank.ptr), int(other.memory_bank.filled)) == (0, 0)


def test_learned_temperature_that_was_not_saved_is_named():
    learned, fixed = varloss.NTXentLoss(learnable_temperature=True), varloss.NTXentLoss()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"log_temperature\""):
        learned.load_state_dict(fixed.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"log_temperature\""):
        fixed.load_state_dict(learned.state_dict())


def test_metrics_survive_copying():
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from support import metric_ranks

    z0, z1 = (z.detach() for z in oracles.views(10, 4))
    labels = torch.arange(10) % 3
    for metric in metric_ranks.all_metrics(4).values():
        metric_ranks.update(metric, z0[:5], z1[:5], labels[:5])
        twins = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))]
        for each in (metric, *twins):
            metric_ranks.update(each, z0[5:], z1[5:], labels[5:])
        for twin in twins:
            torch.testing.assert_close(twin.compute(), metric.compute(), rtol=0, atol=0)
