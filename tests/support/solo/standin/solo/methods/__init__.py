import torch
import torch.nn.functional as F
from torch import nn

from solo.methods.base import BaseMethod, BaseMomentumMethod
from solo.methods.linear import LinearModel


class Projected(BaseMethod):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.projector = nn.Linear(6, 4)

    def forward(self, X):
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}


class SimCLR(Projected):
    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        z = F.normalize(torch.cat(out["z"]), dim=-1)
        own = torch.eye(len(z), dtype=torch.bool)
        positives = torch.arange(len(z)).roll(len(z) // 2)
        nce_loss = F.cross_entropy((z @ z.T / self.temperature).masked_fill(own, -torch.inf), positives)
        self.log("train_nce_loss", nce_loss, on_epoch=True, sync_dist=True)
        return nce_loss + out["loss"]


class SupCon(Projected):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)["loss"]


class Predicted(Projected):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.predictor = nn.Linear(4, 4)

    def forward(self, X):
        out = super().forward(X)
        return {**out, "p": self.predictor(out["z"])}

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)["loss"]


class MoCoV2Plus(BaseMomentumMethod):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.projector = nn.Linear(6, 4)
        self.momentum_projector = nn.Linear(6, 4)
        self.register_buffer("queue", F.normalize(torch.randn(2, 4, cfg.method_kwargs.get("queue_size", 8)), dim=1))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, X):
        out = super().forward(X)
        return {**out, "z": F.normalize(self.projector(out["feats"]), dim=-1)}

    @torch.no_grad()
    def momentum_forward(self, X):
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(self.momentum_projector(out["feats"]), dim=-1)}

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        keys = out["momentum_z"].permute(0, 2, 1)
        start, end = int(self.queue_ptr), int(self.queue_ptr) + keys.shape[2]
        self.queue[:, :, start:end] = keys
        self.queue_ptr[0] = end % self.queue.shape[2]
        return out["loss"]


class MAE(BaseMethod):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)["loss"]


METHODS = {
    "base": BaseMethod,
    "linear": LinearModel,
    "simclr": SimCLR,
    "supcon": SupCon,
    "byol": Predicted,
    "simsiam": Predicted,
    "mocov2plus": MoCoV2Plus,
    "mae": MAE,
}
