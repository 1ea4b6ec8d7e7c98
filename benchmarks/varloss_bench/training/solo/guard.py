"""Runs a command and ends it with all its children when standard input closes: guard.py COMMAND ...

The harness starts solo-learn through this file, so that solo-learn ends when a worker is killed, even with kill -9. It uses
only the standard library and runs as a file, so that it starts fast.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def guard(command: list[str]) -> int:
    """Run the command in a new session; returns its exit status, which is negative for a signal."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        # Not sys.stdin: this thread would hold its lock, and the interpreter would abort at exit.
        while os.read(0, 1):
            pass
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    status = guard(sys.argv[1:])
    # A signal has no exit status; use the one that shells report.
    sys.exit(status if status >= 0 else 128 - status)
