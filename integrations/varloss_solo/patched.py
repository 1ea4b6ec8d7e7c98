"""Home of the classes that :func:`varloss_solo.patch.install` makes: ``SimCLRWithVRN`` and so on.

Pickle finds a class by module and name. A process that was started to unpickle one has not installed anything yet, so the
first look-up does.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if "WithVRN" in name:
        from varloss_solo import patch  # noqa: PLC0415  (patch imports this module)

        patch.install()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
