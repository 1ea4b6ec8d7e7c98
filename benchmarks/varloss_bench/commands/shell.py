"""What a command does with the exceptions of the function it calls: a message, and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from varloss_bench import messages


@contextmanager
def bad_input(console: Console) -> Iterator[None]:
    """A `ValueError` in here is the user's: its text and exit status 2."""
    try:
        yield
    except ValueError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None


@contextmanager
def interrupted(console: Console, kept: str) -> Iterator[None]:
    """Exit status 1 where results cannot be written, with what is `kept` of them, and 130 after Ctrl-C."""
    try:
        yield
    except OSError as error:  # disk full, or the folder is gone
        messages.could_not_write(console, error, kept)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
