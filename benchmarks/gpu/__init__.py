"""Measurements for a short visit to a machine with a GPU: ``python benchmarks/gpu --help``."""
