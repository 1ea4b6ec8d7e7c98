"""One file a loss: the function, then its module."""
