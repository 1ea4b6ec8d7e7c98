"""One trial in several processes that share each batch: this node's ranks of a DistributedDataParallel run.

Neither of Lightning's launchers fits a worker of a sweep: one runs the command line again, the other forks from a daemonic
process, which may have no children of that kind. So the ranks are started here, as torchrun would start them, and Lightning
finds them running.
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
from typing import IO, Any

from varloss_bench.config import TrialConfig
from varloss_bench.training.errors import TrainingDivergedError

LOCALHOST = "127.0.0.1"
# How long the ranks of a node may outlive the first of them that failed: then they wait for it in a collective.
_GRACE_SECONDS = 10.0
_SHOWN_ERROR = 2000


class RankError(RuntimeError):
    """A rank ended without its result; the message has the end of what it wrote to stderr."""


def run_trial(
    config: TrialConfig,
    report: Callable[[float], None] = lambda _: None,
    *,
    node: int = 0,
    address: str = LOCALHOST,
    port: int | None = None,
) -> dict[str, Any]:
    """`trial.run_trial` in `config.devices` new processes of this node; nothing on a node other than 0.

    The ranks end with this process, even where it is killed: each reads a pipe from it that then closes.

    Args:
        config: What to run.
        report: Called with the fraction done.
        node: Which of `config.nodes` this is.
        address: Where rank 0 listens.
        port: The same; with one node any free one will do.

    Raises:
        TrainingDivergedError: As `trial.run_trial`.
        RankError: A rank died or failed; the others of this node have been ended.
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
            stack.callback(process.kill)  # called before the wait that Popen's own exit is
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
    """Pass rank 0's progress on as it comes, and keep what else it says."""
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
    """Wait for all ranks; where one fails the others get a moment, and then it is said which was the first."""
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
    """Body of a rank: the configuration from stdin, messages to stdout, one JSON object a line."""
    sink = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the messages
    config = TrialConfig.from_dict(json.loads(sys.stdin.readline()))
    _end_with_parent()
    rank = int(os.environ["NODE_RANK"]) * config.devices + int(os.environ["LOCAL_RANK"])

    from varloss_bench.training import trial  # noqa: PLC0415

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
    # The process group of a training that diverged is still there; its threads must not keep this process.
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of our stdin then closes."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
