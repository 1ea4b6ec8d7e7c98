"""Processes forked from a server that has imported once what they need: spawned ones pay for those imports each, in seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from unittest import mock

PRELOADED = (
    "support.ranks",
    "support.group_ranks",
    "support.wrapped_ranks",
    "support.metric_ranks",
    "varloss_bench.execution.workers",
)


@cache
def context() -> ForkServerContext:
    """The context whose processes start that way. The server lives as long as this process.

    It keeps the folder and the environment of its start: a test of these spawns.
    """
    found = multiprocessing.get_context("forkserver")
    for name in PRELOADED:  # the server passes over a module that it cannot import
        import_module(name)
    found.set_forkserver_preload(list(PRELOADED))
    # Before Python 3.13 the server does not get sys.path.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()
    return found
