"""The rows of the grid. Importing this registers all of them."""

from support.conformance.mechanisms import compiling, copies, derivatives, environment, modules, rows, saving

__all__ = ["compiling", "copies", "derivatives", "environment", "modules", "rows", "saving"]
