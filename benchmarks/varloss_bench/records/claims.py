"""Which process runs a trial. Two sweeps in one folder use locks of the operating system to share the work.

The operating system releases a lock when its process ends, even after kill -9, so locks are never stale and need no clock or
heartbeat. On a network file system this requires that the file system supports locks (NFSv4 and Lustre with `flock` do).
Without such locks two machines may run the same trial; the later result then replaces an equal earlier one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# Status of a trial that another process is running and that has no record yet.
ELSEWHERE = "elsewhere"


@contextmanager
def claim(record: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the right to make a record; yields whether this process has it.

    The holder must check whether the record has been made in the meantime. If the record exists, the lock file is removed on
    release: a process that still waits for the old file finds the record too.

    Args:
        record: The file to make.
        wait: Wait until the right is free.

    Raises:
        OSError: The folder is not writable.
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
            with suppress(OSError):  # Windows does not delete an open file
                path.unlink(missing_ok=True)
        lock.release()
