"""One trial in several processes that share each batch: the ranks of a DistributedDataParallel run on this node.

Neither launcher of Lightning works in a worker of a sweep: one runs the command line again; the other forks, which a daemonic
process must not do. This module therefore starts the ranks like torchrun, and Lightning finds them running.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import IO, Any

from varloss_bench.config import TrialConfig
from varloss_bench.training.errors import TrainingDivergedError

LOCALHOST = "127.0.0.1"
# How long the other ranks of a node may run after the first failure: they may be waiting for the failed rank in a collective.
_GRACE_SECONDS = 10.0
_SHOWN_ERROR = 2000


class RankError(RuntimeError):
    """A rank ended without its result; the message has the end of its stderr."""


def run_trial(
    config: TrialConfig,
    report: Callable[[float], None] = lambda _: None,
    *,
    node: int = 0,
    address: str = LOCALHOST,
    port: int | None = None,
) -> dict[str, Any]:
    """`trial.run_trial` in `config.devices` new processes on this node; the result is empty on nodes other than 0.

    The ranks end with this process, even if it is killed: each reads a pipe that then closes.

    Args:
        config: What to run.
        report: Called with the fraction done.
        node: Index of this node, below `config.nodes`.
        address: Address on which rank 0 listens.
        port: Port on which rank 0 listens; by default, with one node, any free port.

    Raises:
        TrainingDivergedError: As `trial.run_trial`.
        RankError: A rank died or failed; the other ranks of this node have been ended.
    """
    if port is None:
        with socket.socket() as free:
            free.bind((address, 0))
            port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": address, "MASTER_PORT": str(port), "NODE_RANK": str(node)}
    messages: list[dict[str, Any]] = []
    with ExitStack() as stack:
        ranks, errors = [], []
        for local_rank in range(config.devices):
            error = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "varloss_bench.training.ranks"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if local_rank == 0 else subprocess.DEVNULL,
                    stderr=error,
                    text=True,
                    env={**shared, "LOCAL_RANK": str(local_rank)},
                )
            )
            stack.callback(process.kill)  # called before Popen's own exit, which waits
            ranks.append(process)
            errors.append(error)
            assert process.stdin is not None
            process.stdin.write(json.dumps(config.to_dict()) + "\n")
            process.stdin.flush()
        output = ranks[0].stdout
        assert output is not None
        reader = threading.Thread(target=_read, args=(output, messages, report), daemon=True)
        reader.start()
        _wait(ranks, errors)
        reader.join()
    return _outcome(messages, node)


def _read(output: IO[str], messages: list[dict[str, Any]], report: Callable[[float], None]) -> None:
    """Report rank 0's progress as it arrives, and keep its other messages."""
    for line in output:
        try:
            message = json.loads(line)
        except ValueError:  # half a line: the rank was killed, which its exit code says
            return
        if "fraction" in message:
            report(message["fraction"])
        else:
            messages.append(message)


def _wait(ranks: list["subprocess.Popen[str]"], errors: Sequence[IO[str]]) -> None:
    """Wait for all ranks. After a failure the others get a few seconds; then the first failure is raised."""
    first: int | None = None
    deadline = 0.0
    while any(process.poll() is None for process in ranks):
        failed = [number for number, process in enumerate(ranks) if process.poll()]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
        if first is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    failed = [number for number, process in enumerate(ranks) if process.poll()]
    if first is None and failed:
        first = failed[0]
    if first is not None:
        errors[first].seek(0)
        said = errors[first].read()[-_SHOWN_ERROR:].strip()
        raise RankError(f"rank {first} of {len(ranks)} ended with exit code {ranks[first].returncode}: {said}")


def _outcome(messages: list[dict[str, Any]], node: int) -> dict[str, Any]:
    for message in messages:
        if "diverged" in message:
            raise TrainingDivergedError(message["diverged"])
        if "outcome" in message:
            return dict(message["outcome"])
    raise RankError(f"node {node}: rank 0 ended without a result")


def main() -> None:
    """Body of a rank: reads the configuration from stdin and writes messages to stdout, one JSON object per line."""
    sink = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the output of libraries must not mix with the messages
    config = TrialConfig.from_dict(json.loads(sys.stdin.readline()))
    _end_with_parent()
    rank = int(os.environ["NODE_RANK"]) * config.devices + int(os.environ["LOCAL_RANK"])

    # Imported here: what its packages print must not come between the messages, and the parent may end meanwhile.
    trial = import_module("varloss_bench.training.trial")

    def say(**message: Any) -> None:
        if int(os.environ["LOCAL_RANK"]) == 0:
            sink.write(json.dumps(message) + "\n")

    trial.quieten()
    try:
        outcome = trial.run_trial(config, lambda fraction: say(fraction=fraction), rank)
    except TrainingDivergedError as error:
        say(diverged=str(error))
    else:
        say(outcome=outcome)
    sink.flush()
    # The process group of a diverged training still exists; its threads must not keep this process alive.
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """End this process when its parent is gone, which closes stdin."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
