"""What a training ends with when it fails in a way that would repeat."""


class TrainingDivergedError(RuntimeError):
    """The loss or an output of the trained net became NaN or infinite."""
