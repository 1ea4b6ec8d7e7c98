"""Who runs a trial: locks of the operating system, so that two sweeps in one folder share the work instead of doing it twice.

A lock goes with the process that holds it, even by kill -9: none is ever stale, and no clock or heartbeat decides. On network
file systems it reaches as far as their locks do (NFSv4 and Lustre with `flock` have them); where they do not, two machines may
run the same trial, and the later result replaces an equal earlier one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(record: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the right to make a record; yields whether this process has it.

    Who has it must look whether the record has been made meanwhile. The lock's file is taken away together with the right
    where the record is there by then: whoever still waits for the old file finds the record too.

    Args:
        record: The file that is to be made.
        wait: Wait for it as long as it takes.

    Raises:
        OSError: The folder takes no file.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    path = record.with_name(f".{record.stem}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if record.exists():
            with suppress(OSError):  # Windows keeps a file that is open
                path.unlink(missing_ok=True)
        lock.release()
