"""Bytes that VRN sends over the network in a step, by Gram matrices and by gathered rows: the table of docs/distributed.md.

Linux, without privileges: ``PYTHONPATH=tests unshare -rn python -m support.wire``. In a separate network namespace the loopback
device carries only the bytes of these processes. They are counted with TCP's headers and acknowledgements.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

import varloss
from support import ranks
from varloss import functional

DIM, STEPS = 128, 10
WAYS = {
    "gram": lambda: varloss.VRNRegularizer(weight=1, num_samples=50_000, **ranks.ON),
    "rows": lambda: ranks.ByHand(functional.vrn, num_samples=50_000),
}


def sent() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def worker(rows: int) -> dict[str, float]:
    """Bytes per step and rank, forward and backward."""
    z = [torch.randn(rows, DIM, requires_grad=True) for _ in range(2)]
    found = {}
    for way, build in WAYS.items():
        loss_fn = build()
        dist.barrier()
        before = sent()
        # No rank starts before all have read the counter.
        dist.barrier()
        for _ in range(STEPS):
            loss_fn(*z).backward()
        dist.barrier()
        found[way] = (sent() - before) / STEPS / dist.get_world_size()
    return found


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("| ranks | rows per rank | Gram matrices, kB | gathered rows, kB |\n|---|---|---|---|")
    for world in (2, 4):
        for rows in (64, 256, 1024):
            with tempfile.TemporaryDirectory() as folder:
                kilobytes = [x / 1000 for x in ranks.run(world, Path(folder), worker, rows)[0].values()]
            print(f"| {world} | {rows} | {kilobytes[0]:.0f} | {kilobytes[1]:.0f} |", flush=True)
