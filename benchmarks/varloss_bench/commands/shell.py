"""Turn the exceptions of the function that a command calls into a message and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from varloss_bench import messages


@contextmanager
def bad_input(console: Console) -> Iterator[None]:
    """Context in which a `ValueError` is bad input: print its text and exit with status 2."""
    try:
        yield
    except ValueError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None


@contextmanager
def interrupted(console: Console, kept: str) -> Iterator[None]:
    """Context that exits with status 1 if results cannot be written, after printing what is `kept`, and with 130 after Ctrl-C."""
    try:
        yield
    except OSError as error:  # disk full, or the folder is gone
        messages.could_not_write(console, error, kept)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
