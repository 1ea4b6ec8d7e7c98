"""Errors of a training that would fail again in the same way."""


class TrainingDivergedError(RuntimeError):
    """The loss or an output of the trained net became NaN or infinite."""
