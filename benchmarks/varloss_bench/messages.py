"""What commands print where a part of it is not theirs: paths, options, reasons of a crash.

In a plain string rich reads `[...]` as markup and `:name:` as an emoji: a folder `my[old]set` would lose its name's middle, and
a reason with `[/a]` in it would end the command. All such text goes through here, as a `rich.text.Text`, which is not read.
"""

import errno

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is. Lines are broken by the terminal only, so that a path can be copied whole."""
    console.print(Text(text, style=style), soft_wrap=True)


def announce(console: Console, lead: str, text: str, style: str) -> None:
    """The same, plain, with a few words in `style` before it."""
    console.print(Text.assemble((f"{lead} ", style), text), soft_wrap=True)


def error(console: Console, text: object) -> None:
    """What went wrong; the exit status is the caller's."""
    announce(console, "error:", str(text), "red")


def could_not_write(console: Console, failure: OSError, kept: str) -> None:
    """The same of a file that results go to: what is kept of them, and how to go on."""
    full = failure.errno in {errno.ENOSPC, errno.EDQUOT}
    way = "Make room for more there and run" if full else "Once this is mended, run"
    error(console, f"{failure}\n{kept} {way} the same command again: it resumes.")


def counted(number: int, name: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {name}{'' if number == 1 else 's'}"
