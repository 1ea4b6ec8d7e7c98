"""Slurm's commands as far as submitit uses them, on one machine. `sbatch` runs the given script, also for arrays and nodes.

The file is called by the name of the command. $FAKE_SLURM holds the state: `ID.state` for sacct, `scripts/ID`, and `calls` with a
line per call. If the file `hold` exists, jobs are accepted and stay pending. The only supported dependency is `afterany`. All tasks of
an array run at once. Jobs are counted from $FAKE_SLURM_FIRST on.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def directive(script: str, name: str) -> "str | None":
    found = re.search(rf"^#SBATCH --{name}=(.+)$", script, re.MULTILINE)
    return found.group(1).strip("'\"") if found else None


def sbatch(path: str) -> None:
    script = Path(path).read_text()
    number = str(int(os.environ.get("FAKE_SLURM_FIRST", "1000")) + 100 * len(list((STATE / "scripts").iterdir())))
    (STATE / "scripts" / number).write_text(script)
    array = directive(script, "array")
    tasks = [None] if array is None else [str(n) for n in range(int(array.split("%")[0].split("-")[1]) + 1)]
    held = (STATE / "hold").exists()
    for task in tasks:
        (STATE / f"{number if task is None else f'{number}_{task}'}.state").write_text("PENDING" if held else "RUNNING")
    if not held:
        for task in tasks:
            subprocess.Popen(
                [sys.executable, __file__, "job", number, task or ""],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
    print(f"Submitted batch job {number}")


def job(number: str, task: str) -> None:
    """Run the script as a job, in the environment of a Slurm job."""
    script = STATE / "scripts" / number
    awaited = re.search(r"afterany:([\d:]+)", directive(script.read_text(), "dependency") or "")
    for other in awaited.group(1).split(":") if awaited else ():
        while any(path.read_text() in ("PENDING", "RUNNING") for path in STATE.glob(f"{other}*.state")):
            time.sleep(0.05)
    nodes = int(directive(script.read_text(), "nodes") or 1)
    own = {"SLURM_JOB_ID": str(int(number) + 1 + int(task or 0)), "SLURM_JOB_NUM_NODES": str(nodes)}
    own |= {"SLURM_NTASKS": str(nodes), "SLURM_JOB_NODELIST": ",".join(f"127.0.0.{n + 1}" for n in range(nodes))}
    if task:
        own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    else:
        own["SLURM_JOB_ID"] = number
    code = subprocess.run(["bash", str(script)], env={**os.environ, **own}, check=False).returncode
    (STATE / f"{f'{number}_{task}' if task else number}.state").write_text("FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> int:
    rest, files = list(arguments), {}
    while rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            files[flag] = rest.pop(0)
    running = []
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
        own = {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
        names = {"%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""), "%a": os.environ.get("SLURM_ARRAY_TASK_ID", "")}
        names |= {"%j": os.environ["SLURM_JOB_ID"], "%t": str(node)}
        streams = {}
        for flag, name in files.items():
            for mark, value in names.items():
                name = name.replace(mark, value)  # noqa: PLW2901
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            streams[flag] = Path(name).open("a")  # noqa: SIM115
        running.append(
            subprocess.Popen(
                rest, env={**os.environ, **own}, stdout=streams.get("--output"), stderr=streams.get("--error")
            )
        )
    while any(process.poll() is None for process in running):
        if any(process.poll() for process in running) and "--kill-on-bad-exit=1" in arguments:
            for process in running:
                process.kill()
        time.sleep(0.05)
    return max(abs(process.wait()) for process in running)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for path in sorted(STATE.glob("*.state")):
        print(f"{path.stem}|{path.read_text()}|here")


if __name__ == "__main__":
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if arguments[:1] == ["job"]:
        name, *arguments = arguments
    with (STATE / "calls").open("a") as calls:
        calls.write(f"{name}\n")
    sys.exit({"sbatch": sbatch, "job": job, "srun": srun, "sacct": sacct}[name](*arguments))
