"""The recipe for open_clip under several ranks: what a spawned child runs, which imports it by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from support.doc_examples import ROOT, blocks


def clip_losses() -> list[dict[str, Tensor]]:
    """The recipe's loss and open_clip's, with the gradients of this rank's leaves and of the scale."""
    import open_clip

    namespace: dict[str, type[torch.nn.Module]] = {"__name__": "recipe"}
    exec(blocks(ROOT / "docs" / "recipes" / "open_clip.md", "python")[0], namespace)
    options = {
        "local_loss": True,
        "gather_with_grad": True,
        "rank": dist.get_rank(),
        "world_size": dist.get_world_size(),
    }
    found = []
    for loss in (namespace["ClipLoss"](gather_distributed=True), open_clip.ClipLoss(**options)):
        generator = torch.Generator().manual_seed(dist.get_rank())
        leaves = [torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
        scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
        value = loss(*(torch.nn.functional.normalize(z) for z in leaves), scale)
        value.backward()
        found.append({"value": value.detach(), "image": leaves[0].grad, "text": leaves[1].grad, "scale": scale.grad})
    return found
