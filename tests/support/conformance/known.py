"""The cells that are red, each with the reason. A cell that turns right must leave this table."""

from __future__ import annotations

BANK_BY_HAND = (
    "a function that reads a MemoryBank and then enqueues finds its own keys there when a checkpoint runs it again"
)
CHECKPOINTS = ("checkpoint_loss", "checkpoint_loss_reentrant", "checkpoint_model", "checkpoint_in_autocast")

# (mechanism, subject) -> why.
KNOWN: dict[tuple[str, str], str] = {
    **{(mechanism, "MemoryBank"): BANK_BY_HAND for mechanism in CHECKPOINTS},
    ("compile_checkpoint", "QueueInfoNCELoss"): "a compiled checkpoint reads the bank after the write",
}
