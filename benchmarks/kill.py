"""Kills runs at random moments and proves that they end as if nobody had.

    python -m benchmarks.kill --runs=20

One reference run goes through in peace. Every other run gets the same command and is
killed with SIGKILL up to three times, at any moment from its start on or while a
checkpoint is being written, and started again until it is done. Then its checkpoints
must hold the reference's bit for bit, and its `metrics.jsonl` the reference's rows.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import machine

# Small enough for a run of about a minute on two cores; saves, evaluations and log rows
# fall on different steps.
FLAGS = [
    "--deterministic",
    "--image_size=64",
    "--batch_size=16",
    "--epochs=6",
    "--checkpoint_every_steps=7",
    "--log_every_steps=3",
]
MOST_KILLS = 3  # of one run
HANG_SECONDS = 1800  # No run of these sizes takes as long.
SAVE_SHARE = 0.5  # of the kills are aimed at a save
MOST_NEW_FILES = 8  # a save makes several: any of them may be the one that is hit
MOST_SECONDS_INTO_SAVE = 0.1
POLL_SECONDS = 0.002
STATE = "state"  # the array of a checkpoint that is JSON text: step, history, ...
# Fields of a row or a state that tell of the clock, the machine or the place, not of the
# training.
TIMING = re.compile("second|time|wait|memory|date|^job_dir$")


def run_killed(
    command: list[str],
    job_dir: pathlib.Path,
    kills: int,
    rng: random.Random,
    within_seconds: float = 30.0,
) -> list[dict]:
    """Runs a command until it ends by itself; returns how it was killed on the way.

    Args:
        command: Trains into `job_dir`; the same one starts it and resumes it.
        job_dir: What it prints is appended to `<job_dir>.log`.
        kills: How many times to kill it; fewer where it is done before.
        rng: Chooses the moments.
        within_seconds: Kills not aimed at a save come this long after a start at most.

    Returns:
        For each kill `aim` (moment or save), `seconds` since the start, `step` of the
        checkpoint that the pointer names (None: there is none), and `saving`: whether
        a save was cut short.

    Raises:
        RuntimeError: If it ends by itself with an exit code other than 0.
    """
    log = job_dir.with_name(job_dir.name + ".log")
    killed: list[dict] = []
    while True:
        began_ns = time.time_ns()
        with log.open("ab") as output:
            # A session of its own, so that what it may have started dies with it.
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                cwd=machine.REPOSITORY,
                start_new_session=True,
            )
        aim = "save" if rng.random() < SAVE_SHARE else "moment"
        try:
            if len(killed) == kills:
                process.wait(timeout=HANG_SECONDS)
            elif aim == "save":
                _wait_for_save(process, job_dir, rng, began_ns)
            else:
                _wait(process, rng.uniform(0, within_seconds))
        finally:  # also when we are interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        killed.append(
            {
                "aim": aim,
                "seconds": round((time.time_ns() - began_ns) / 1e9, 3),
                "step": latest_step(job_dir),
                "saving": save_cut_short(job_dir, began_ns),
            }
        )
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(
            f"exit code {process.returncode}: {' '.join(command)}\n{tail}"
        )
    return killed


def _wait(process: subprocess.Popen, seconds: float) -> None:
    """Waits for a time, or until the process is done."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass


def _wait_for_save(
    process: subprocess.Popen,
    job_dir: pathlib.Path,
    rng: random.Random,
    began_ns: int,
) -> None:
    """Waits for new files among the checkpoints, or until the process is done."""
    count = rng.randint(1, MOST_NEW_FILES)
    written: set[str] = set()
    while len(written) < count and process.poll() is None:
        time.sleep(POLL_SECONDS)
        # By age, not by name: a save that was cut short is written again.
        ages = _checkpoint_ages(job_dir)
        written |= {name for name, age in ages.items() if age > began_ns}
    _wait(process, rng.uniform(0, MOST_SECONDS_INTO_SAVE))


def _checkpoint_ages(job_dir: pathlib.Path) -> dict[str, int]:
    """Returns when each file among the checkpoints was last written, nanoseconds."""
    try:
        with os.scandir(job_dir / "checkpoints") as files:
            return {file.name: file.stat().st_mtime_ns for file in files}
    except FileNotFoundError:  # not made yet, or a file was removed while we looked
        return {}


def _pointer(job_dir: pathlib.Path) -> dict:
    path = job_dir / "checkpoints" / "checkpoint.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def latest_step(job_dir: pathlib.Path) -> int | None:
    """Returns the step of the newest checkpoint that the pointer names."""
    latest = _pointer(job_dir).get("latest")
    return int(latest.removeprefix("step-")) if latest else None


def save_cut_short(job_dir: pathlib.Path, began_ns: int) -> bool:
    """Returns whether a process that began then wrote a checkpoint, but no pointer to it.

    A save moves the pointer last.
    """
    ages = _checkpoint_ages(job_dir)
    pointer = ages.pop("checkpoint.json", 0)
    return any(age > max(pointer, began_ns) for age in ages.values())


def same_weights(a: pathlib.Path, b: pathlib.Path) -> list[str]:
    """Returns the names of the arrays that differ, in one bit or more.

    The state beside the weights is compared as JSON, what it tells of the clock aside.

    Args:
        a: A checkpoint, `.npz`.
        b: Another one.
    """
    with np.load(a) as one, np.load(b) as other:
        names = sorted(set(one.files) | set(other.files))
        return [name for name in names if _bits(one, name) != _bits(other, name)]


def _bits(arrays, name: str) -> tuple | None:
    if name not in arrays.files:
        return None
    array = arrays[name]
    if name == STATE:
        return (_untimed(json.loads(str(array))),)
    return array.dtype.str, array.shape, array.tobytes()


def _untimed(value: Any) -> Any:
    """Returns a JSON value without the fields that tell of the clock."""
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not TIMING.search(k)}
    return list(map(_untimed, value)) if isinstance(value, list) else value


def same_checkpoints(reference: pathlib.Path, job_dir: pathlib.Path) -> list[str]:
    """Returns how the checkpoints of two finished runs differ: pointers and weights.

    Args:
        reference: The job_dir of the run that nobody killed.
        job_dir: Of the run to compare; files it has beside the reference's are left
            out.
    """
    differences = []
    if _pointer(reference) != _pointer(job_dir):
        differences.append(f"pointer: {_pointer(reference)}, {_pointer(job_dir)}")
    for path in sorted((reference / "checkpoints").glob("step-*.npz")):
        other = job_dir / "checkpoints" / path.name
        if not other.exists():
            differences.append(f"missing: {path.name}")
            continue
        differences += [f"{path.name}: {name}" for name in same_weights(path, other)]
    return differences


def same_rows(reference: pathlib.Path, job_dir: pathlib.Path) -> list[str]:
    """Returns how the rows of two runs' `metrics.jsonl` differ, timing aside."""
    expected, found = _rows(reference), _rows(job_dir)
    differences = []
    for key in sorted(set(expected) | set(found), key=str):
        if len(found[key]) != len(expected[key]):
            differences.append(
                f"{key}: {len(found[key])} rows, not {len(expected[key])}"
            )
        elif found[key] != expected[key]:
            differences.append(f"{key}: {found[key]}, not {expected[key]}")
    return differences


def _rows(job_dir: pathlib.Path) -> collections.defaultdict[tuple, list[dict]]:
    rows = collections.defaultdict(list)
    text = (job_dir / "metrics.jsonl").read_text(encoding="utf-8")
    for row in map(json.loads, text.splitlines()):
        rows[row.get("kind"), row["step"]].append(_untimed(row))
    return rows


def line(run: int, result: dict) -> str:
    """Returns one run's result as a line to read."""
    kills = ", ".join(
        f"{kill['seconds']:.1f} s ({_state(kill)})" for kill in result["kills"]
    )
    verdict = "; ".join(result["differences"][:3]) or "weights and rows equal"
    return f"run {run}: killed at {kills or 'no moment'}: {verdict}"


def _state(kill: dict) -> str:
    step = "no checkpoint" if kill["step"] is None else f"step {kill['step']}"
    return f"{step}, in a save" if kill["saving"] else step


def main() -> None:
    """Runs the reference and the killed runs, prints a line each, writes kill.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--runs", type=int, default=20)
    add("--seed", type=int, default=0, help="of the moments")
    add("--data_dir", help="TFDS folder; the bundled sample when absent")
    add("job_flags", nargs="*", help="after --: more flags for every run")
    args = parser.parse_args()

    scratch = pathlib.Path(tempfile.mkdtemp(prefix="kill-"))
    flags = [*FLAGS, *args.job_flags]
    if args.data_dir:
        flags.append(f"--data_dir={os.path.abspath(args.data_dir)}")

    def command(job_dir: pathlib.Path) -> list[str]:
        job = [sys.executable, "-m", "trainer.task", f"--job_dir={job_dir}"]
        return [*job, *flags]

    rng = random.Random(args.seed)
    reference = scratch / "reference"
    began = time.monotonic()
    run_killed(command(reference), reference, 0, rng)
    seconds = time.monotonic() - began
    print(f"reference: {latest_step(reference)} steps in {seconds:.1f} s", flush=True)

    results: list[dict] = []
    for run in range(1, args.runs + 1):
        job_dir = scratch / f"run-{run}"
        kills = run_killed(
            command(job_dir),
            job_dir,
            kills=rng.randint(1, MOST_KILLS),
            rng=rng,
            within_seconds=0.9 * seconds,
        )
        differences = same_checkpoints(reference, job_dir) + same_rows(
            reference, job_dir
        )
        results.append({"kills": kills, "differences": differences})
        print(line(run, results[-1]), flush=True)
        if not differences:
            shutil.rmtree(job_dir)

    all_kills = [kill for result in results for kill in result["kills"]]
    in_a_save = sum(kill["saving"] for kill in all_kills)
    equal = sum(not result["differences"] for result in results)
    names = {str(reference): "JOB_DIR"}
    if args.data_dir:
        names[os.path.abspath(args.data_dir)] = "DIR"
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(command(reference), names),
        "seed": args.seed,
        "reference": {"step": latest_step(reference), "seconds": round(seconds, 1)},
        "runs": len(results),
        "equal": equal,
        "kills": len(all_kills),
        "kills_in_a_save": in_a_save,
        "results": results,
    }
    machine.RESULTS.mkdir(exist_ok=True)
    path = machine.RESULTS / "kill.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"{equal} of {len(results)} runs ended as the reference did, after "
        f"{len(all_kills)} kills, {in_a_save} of them in a save"
    )
    if equal < len(results):
        sys.exit(f"the runs that differ are kept in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
