"""solo-learn's main_pretrain.py without its data, networks and options. Besides the logs it writes what the tests read."""

import json
import os
import pickle
from pathlib import Path

import hydra
import torch
from lightning.pytorch import Trainer, callbacks, seed_everything
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from solo.methods import METHODS
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class TwoViews(Dataset):
    def __init__(self, size, dim, shift):
        generator = torch.Generator().manual_seed(3)
        self.x = shift + torch.randn(size, dim, generator=generator)
        self.noise = 0.3 * torch.randn(2, size, dim, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return i, [self.x[i] + self.noise[0, i], self.x[i] + self.noise[1, i]], i % 4


class Repeating(DistributedSampler):
    """Draws the first ``images`` of the data set over and over."""

    images = None

    def __iter__(self):
        return (i % self.images for i in super().__iter__())


@hydra.main(version_base="1.2")
def main(cfg):
    OmegaConf.set_struct(cfg, False)
    seed_everything(5)
    out, devices = Path(cfg.out), cfg.get("devices", 1)
    model = METHODS[cfg.method](cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dataset = TwoViews(cfg.data.size, cfg.data.dim, cfg.data.shift)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        use_distributed_sampler=False,  # it would shuffle
        strategy=cfg.get("strategy", "auto"),
        max_epochs=cfg.max_epochs,
        limit_train_batches=cfg.get("limit_train_batches", 1.0),
        logger=CSVLogger(out, name="", version=""),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=cfg.get("enable_progress_bar", False),
        callbacks=[getattr(callbacks, cfg.bar)()] if "bar" in cfg else None,
        enable_model_summary=False,
    )
    kind, Repeating.images = (Repeating if "images" in cfg.data else DistributedSampler), cfg.data.get("images")
    sampler = kind(dataset, devices, int(os.environ.get("LOCAL_RANK", "0")), shuffle=False)
    trainer.fit(model, DataLoader(dataset, cfg.optimizer.batch_size, sampler=sampler, drop_last=True))
    torch.save(model.record, out / f"record-{trainer.global_rank}.pt")
    if trainer.is_global_zero:
        torch.save({"before": before, "after": model.state_dict()}, out / "states.pt")
        (out / "after.json").write_text(
            json.dumps(
                {
                    "cfg": OmegaConf.to_container(cfg),
                    "class": type(model).__qualname__,
                    "pickles": pickle.loads(pickle.dumps(type(model))) is type(model),
                    "keys": list(model.state_dict()),
                    "modules": [name for name, _ in model.named_modules()],
                }
            )
        )


if __name__ == "__main__":
    main()
