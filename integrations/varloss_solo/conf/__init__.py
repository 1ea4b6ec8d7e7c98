"""Hydra configuration: the group ``varloss`` with its presets. Hydra reads it as ``pkg://varloss_solo.conf``."""
