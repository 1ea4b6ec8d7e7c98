"""Run trials in parallel as jobs of submitit, on this machine or in the queue of a Slurm cluster.

A job runs `execute`, like a worker, and writes its result to the sweep's folder. submitit pickles what it submits into
`jobs/` and unpickles it in the job, as the same user. This process unpickles nothing; it reads results as JSON.
"""

import difflib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
import torch
from submitit.slurm.slurm import _get_default_parameters  # the names that update_parameters accepts

from varloss_bench.config import TrialConfig
from varloss_bench.execution.execute import execute
from varloss_bench.execution.workers import THREAD_VARIABLES, Event, one_thread_each
from varloss_bench.records.store import DONE, Store, write_atomically
from varloss_bench.training import ranks, trial

# Our names -> submitit's names; all other names are submitit's (partition, account, qos, constraint, exclude, ...).
_ALIASES = {"gpus": "gpus_per_node", "cpus": "cpus_per_task"}
_WHOLE_NUMBERS = ("gpus_per_node", "cpus_per_task", "array_parallelism")
_ACTIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED")
_LOOK_AGAIN_SECONDS = 0.5
# By default submitit ends a local job after two minutes.
_LOCAL_MINUTES = 60 * 24 * 30
_ONE_THREAD = [f"export {name}=1" for name in THREAD_VARIABLES]


def parse_slurm(text: str) -> dict[str, Any]:
    """`partition=gpu,time=2:00:00,gpus=1,mem=16GB` as submitit's parameters, the time in minutes.

    Raises:
        ValueError: An item is not `key=value`, a key is unknown, or a value is of the wrong type.
    """
    known = {*_get_default_parameters(), *_ALIASES}
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"--slurm takes key=value separated by commas, got {part!r}")
        name = _ALIASES.get(key, key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(key, sorted(known))
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise ValueError(f"--slurm: unknown key {key!r}{hint}")
        found[name] = _minutes(value) if name == "time" else _whole(key, value) if name in _WHOLE_NUMBERS else value
    return found


def _whole(key: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"--slurm {key} must be a whole number, got {value!r}")
    return int(value)


def _minutes(value: str) -> int:
    """Slurm's time formats: minutes, H:MM:SS, D-HH:MM:SS; seconds are rounded up."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d+):(\d+)|(\d+))", value)
    if match is None:
        raise ValueError(f"--slurm time must be minutes, H:MM:SS or D-HH:MM:SS, got {value!r}")
    days, hours, minutes, seconds, plain = (int(group or 0) for group in match.groups())
    total = plain or days * 24 * 60 + hours * 60 + minutes + -(-seconds // 60)
    if total < 1:
        raise ValueError(f"--slurm time must be at least a minute, got {value!r}")
    return total


def job(values: dict[str, Any], folder: str, command: list[str]) -> None:
    """Body of a job, on each of its nodes. Only the first node makes a record; a trial that has a result is not run."""
    torch.set_num_threads(1)
    trial.quieten()
    config = TrialConfig.from_dict(values)
    if config.nodes == 1:
        execute(config, Path(folder), command, wait_for_others=True)
        return
    environment = submitit.JobEnvironment()
    # The nodes compute the port without communication; two jobs on a machine are unlikely to share it. If the port is in use,
    # the trial crashes, and the job of the next try has another number.
    address, port = environment.hostnames[0], 20000 + int(environment.raw_job_id) % 20000
    if environment.node == 0:
        status, reason = execute(config, Path(folder), command, wait_for_others=True, rendezvous=(address, port))
        if status == "crashed":
            raise SystemExit(
                reason
            )  # so that srun ends the other nodes, which would otherwise wait for this one for half an hour
    elif (
        not Store(Path(folder)).load([config]).done(config)
    ):  # otherwise the first node has nothing to do and does not start a process group
        ranks.run_trial(config, node=environment.node, address=address, port=port)


class Cluster:
    """The queue for jobs.

    Args:
        kind: `local` or `slurm`.
        slurm: The result of `parse_slurm`.

    Raises:
        ValueError: `kind` is slurm and Slurm is not installed, or a parameter is invalid.
    """

    def __init__(self, kind: str, slurm: dict[str, Any]) -> None:
        if slurm and kind != "slurm":
            raise ValueError(f"--slurm requires --cluster slurm, got --cluster {kind}")
        if kind == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise ValueError("--cluster slurm: there is no srun on this machine; run this on a login node")
        self.kind = kind
        self.slurm = slurm

    def run(self, configs: Sequence[TrialConfig], folder: Path, command: list[str], workers: int) -> Iterator[Event]:
        """Like `workers.run_trials`, with at most `workers` jobs at a time.

        Closing the iterator, as Ctrl-C does, ends local jobs. Slurm jobs stay in the queue and write their results; the next
        call finds them and waits for them instead of submitting them again.
        """
        store, jobs_folder = Store(folder), folder / "jobs"
        jobs_folder.mkdir(parents=True, exist_ok=True)
        submitted = dict(self._adopted(configs, jobs_folder)) if self.kind == "slurm" else {}
        waiting = [config for config in configs if config not in submitted]
        for config, found in submitted.items():
            yield Event(config, 0.0, reason=f"is job {found.job_id} already")
        try:
            while waiting or submitted:
                room = len(waiting) if self.kind == "slurm" else max(0, workers - len(submitted))
                now, waiting = waiting[:room], waiting[room:]
                # All jobs of an array have the same size; the rows without training, which come first, need one process each.
                for size in dict.fromkeys((config.devices, config.nodes) for config in now):
                    alike = [config for config in now if (config.devices, config.nodes) == size]
                    submitted |= self._submit(alike, folder, command, workers, after=submitted.values())
                for config in [config for config, running in submitted.items() if self._ended(store, config, running)]:
                    yield _event(store, config, submitted.pop(config))
                if submitted:
                    time.sleep(_LOOK_AGAIN_SECONDS)
        finally:
            if self.kind == "local":
                for running in submitted.values():
                    with suppress(OSError):
                        running.cancel()

    def _ended(self, store: Store, config: TrialConfig, running: Any) -> bool:
        # The state of Slurm jobs is queried rarely, because the folder shows results at once; a local process must have exited.
        there = self.kind == "slurm" and store.load([config]).done(config)
        return there or bool(running.done())

    def pending(self, configs: Sequence[TrialConfig], folder: Path) -> list[str]:
        """Ids of the jobs of these trials that are still in Slurm's queue."""
        if self.kind == "local":
            return []
        return [found.job_id for _config, found in self._adopted(configs, folder / "jobs")]

    def _submit(
        self, configs: Sequence[TrialConfig], folder: Path, command: list[str], workers: int, after: Iterable[Any] = ()
    ) -> dict[TrialConfig, Any]:
        executor = self._executor(configs[0], folder / "jobs", workers, after)
        arguments = (
            [config.to_dict() for config in configs],
            [str(folder.resolve())] * len(configs),
            [command] * len(configs),
        )
        with one_thread_each():
            jobs = executor.map_array(job, *arguments)
        if self.kind == "slurm":
            ledger = folder / "jobs" / "submitted.json"
            ids = {config.key(): found.job_id for config, found in zip(configs, jobs, strict=True)}
            write_atomically(ledger, json.dumps({**_read(ledger), **ids}, indent=1) + "\n")
        return dict(zip(configs, jobs, strict=True))

    def _executor(self, config: TrialConfig, folder: Path, workers: int, after: Iterable[Any]) -> Any:
        if self.kind == "local":
            executor = submitit.LocalExecutor(folder=folder / "%j")
            # submitit hides all GPUs from a job that requests none.
            executor.update_parameters(timeout_min=_LOCAL_MINUTES, gpus_per_node=torch.cuda.device_count())
            return executor
        executor = submitit.SlurmExecutor(folder=folder / "%j")
        # The limit applies to each array, so two arrays would run twice as many jobs. Each array therefore waits for the previous ones.
        arrays = dict.fromkeys(found.job_id.partition("_")[0] for found in after)
        dependencies = [f"afterany:{':'.join(arrays)}"] if arrays else []
        if "dependency" in self.slurm:
            dependencies.append(self.slurm["dependency"])
        executor.update_parameters(
            **{
                "job_name": "varloss-bench",
                "time": 60,
                "array_parallelism": workers,
                "cpus_per_task": config.devices,
                **({"gpus_per_node": config.devices} if config.device == "cuda" else {}),
                "nodes": config.nodes,
                "ntasks_per_node": 1,
                # A rank that waits for a dead rank would hold its node until the time limit.
                "srun_args": ["--kill-on-bad-exit=1"],
                "setup": _ONE_THREAD,
                **self.slurm,
                **({"dependency": ",".join(dependencies)} if dependencies else {}),
            }
        )
        return executor

    @staticmethod
    def _adopted(configs: Sequence[TrialConfig], folder: Path) -> list[tuple[TrialConfig, Any]]:
        """Trials that an earlier call submitted and whose jobs are still waiting or running."""
        ids = _read(folder / "submitted.json")
        jobs = [
            (config, submitit.SlurmJob(folder / "%j", ids[config.key()])) for config in configs if config.key() in ids
        ]
        return [(config, found) for config, found in jobs if found.watcher.get_state(found.job_id, "force") in _ACTIVE]


def _read(ledger: Path) -> dict[str, str]:
    """Trial key -> job id; if the file is missing or broken, at worst a job is submitted whose trial is already done."""
    try:
        content = json.loads(ledger.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _event(store: Store, config: TrialConfig, ended: Any) -> Event:
    """The outcome of a job: the contents of its record, or the end of its stderr."""
    record = store.load([config]).records.get(config.key())
    if record is not None and (record["status"] in DONE or record["reason"]):
        return Event(config, 1.0, record["status"], record["reason"])
    try:
        last_line = ended.paths.stderr.read_text(errors="replace").strip().splitlines()[-1:]
    except OSError:
        last_line = []
    return Event(
        config, 1.0, "crashed", f"job {ended.job_id} left no result ({ended.paths.stderr}): {' '.join(last_line)}"
    )
