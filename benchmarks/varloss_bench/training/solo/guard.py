"""Runs a command and ends it, with all its children, when standard input closes: solo_guard.py COMMAND ...

Between the harness and solo-learn, so that nothing computes on for nobody when a worker is killed, be it by kill -9. Standard
library only and run as a file, so that it starts at once.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def guard(command: list[str]) -> int:
    """Run the command in a session of its own; its exit status, negative for a signal."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        # Not sys.stdin: its lock, held by this thread, would abort the interpreter on its way out.
        while os.read(0, 1):
            pass
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    status = guard(sys.argv[1:])
    # A signal has no exit status of its own; what shells report is what people know.
    sys.exit(status if status >= 0 else 128 - status)
