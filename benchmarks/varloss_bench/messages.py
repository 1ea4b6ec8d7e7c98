"""Print text from outside: paths, options, reasons of a crash.

In a plain string rich interprets `[...]` as markup and `:name:` as an emoji: a folder `my[old]set` would lose the middle of its
name, and a reason that contains `[/a]` would end the command. A `rich.text.Text` is printed without such interpretation.
"""

import errno

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is. Only the terminal breaks lines, so that a path can be copied whole."""
    console.print(Text(text, style=style), soft_wrap=True)


def announce(console: Console, lead: str, text: str, style: str) -> None:
    """Print a text as it is, after a few words in `style`."""
    console.print(Text.assemble((f"{lead} ", style), text), soft_wrap=True)


def error(console: Console, text: object) -> None:
    """Print what went wrong. The caller sets the exit status."""
    announce(console, "error:", str(text), "red")


def could_not_write(console: Console, failure: OSError, kept: str) -> None:
    """Print that results cannot be written, what is kept of them, and how to go on."""
    full = failure.errno in {errno.ENOSPC, errno.EDQUOT}
    way = "Free disk space there" if full else "Fix the problem"
    error(console, f"{failure}\n{kept} {way} and run the same command again; it resumes.")


def counted(number: int, name: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {name}{'' if number == 1 else 's'}"
