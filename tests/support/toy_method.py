"""An example of an added method: a loss of two views and a row. As a script it runs the harness with this method."""

import sys

import torch
from torch import Tensor, nn

from varloss_bench.methods import METHODS, Method


class ToyLoss(nn.Module):
    """Pulls the two views of an image together and each view's rows apart."""

    def __init__(self, temperature: float, gather_distributed: bool, slope: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.slope = slope

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Mean over the batch."""
        z0, z1 = nn.functional.normalize(z0, dim=1), nn.functional.normalize(z1, dim=1)
        apart = torch.logsumexp(self.slope * (z0 @ z0.T).fill_diagonal_(-1) / self.temperature, dim=1)
        return (apart - (z0 * z1).sum(1) / self.temperature).mean()


ROW = Method(
    name="toy",
    display_name="Toy",
    module="varloss_bench.training.modules:TwoViewModule",
    loss="support.toy_method:ToyLoss",
    loss_options={"slope": 0.5},
    head_batch_norm=True,
)

if __name__ == "__main__":
    METHODS["toy"] = ROW
    from varloss_bench.__main__ import main  # it reads the registry

    sys.exit(main())
