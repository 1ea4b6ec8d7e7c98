"""The smallest form of what varloss_solo uses: solo-learn's class layout, signatures, output keys and logging."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn


class BaseMethod(pl.LightningModule):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.num_large_crops = 2
        self.num_classes = cfg.data.num_classes
        self.temperature = cfg.method_kwargs.temperature
        self.backbone = nn.Linear(cfg.data.dim, 6, bias=False)
        self.classifier = nn.Linear(6, self.num_classes)
        self.record = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.cfg.optimizer.lr)

    def forward(self, X):
        feats = self.backbone(X)
        return {"logits": self.classifier(feats.detach()), "feats": feats}

    def training_step(self, batch, batch_idx):
        index, X, targets = batch
        outs = [self(x) for x in X[: self.num_large_crops]]
        loss = sum(F.cross_entropy(out["logits"], targets) for out in outs) / len(outs)
        outs = {key: [out[key] for out in outs] for key in outs[0]}
        self.record.append(
            {"index": index, "targets": targets, **{key: torch.stack(outs[key]).detach() for key in outs}}
        )
        self.log_dict({"train_class_loss": loss}, on_epoch=True, sync_dist=True)
        return {**outs, "loss": loss}


class BaseMomentumMethod(BaseMethod):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.momentum_backbone = nn.Linear(cfg.data.dim, 6, bias=False)
        self.momentum_backbone.load_state_dict(self.backbone.state_dict())

    def on_train_start(self):
        self.last_step = 0

    @torch.no_grad()
    def momentum_forward(self, X):
        return {"feats": self.momentum_backbone(X)}

    def training_step(self, batch, batch_idx):
        outs = super().training_step(batch, batch_idx)
        momentum = [self.momentum_forward(x) for x in batch[1][: self.num_large_crops]]
        momentum = torch.stack([out["z"] for out in momentum])
        self.record[-1].update(momentum_z=momentum, queue=self.queue.clone())
        return {**outs, "momentum_z": momentum}
