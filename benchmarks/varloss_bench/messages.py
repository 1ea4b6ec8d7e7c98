"""What commands print where a part of it is not theirs: paths, options, reasons of a crash.

In a plain string rich reads `[...]` as markup and `:name:` as an emoji: a folder `my[old]set` would lose its name's middle, and
a reason with `[/a]` in it would end the command. All such text goes through here, as a `rich.text.Text`, which is not read.
"""

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is. Lines are broken by the terminal only, so that a path can be copied whole."""
    announce(console, "", text, style, style)


def announce(console: Console, lead: str, text: str, style: str, text_style: str = "") -> None:
    """The same with a few words in `style` before it."""
    console.print(Text.assemble((f"{lead} ", style) if lead else "", (text, text_style)), soft_wrap=True)


def error(console: Console, text: object) -> None:
    """What went wrong; the exit status is the caller's."""
    announce(console, "error:", str(text), "red")


def counted(number: int, name: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {name}{'' if number == 1 else 's'}"
