"""Measures how soon the workers of a run have left when they are told to, or one dies.

    python -m benchmarks.stop

A run of two workers at default settings is started again and again on the same job_dir.
At a random moment one of them gets SIGTERM, and both must save and leave; or one gets
SIGKILL, and the other must notice and leave.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import machine
from tests import cluster
from trainer import interruption

WORKERS = 2
MOST_SECONDS_IN = 25.0  # Into training: also while it compiles, evaluates, saves.
HANG_SECONDS = 300.0
POLL_SECONDS = 0.01


def one_try(
    flags: list[str], scratch: pathlib.Path, number: signal.Signals, rng: random.Random
) -> dict:
    """Returns how a run left that was told to, and how many seconds after.

    Raises:
        RuntimeError: If it ended by itself, or with another exit code.
    """
    log = scratch / "log"
    began_at = _size(log)
    processes = cluster.start(WORKERS, flags, log)
    give_up = time.monotonic() + HANG_SECONDS
    while b"steps of" not in log.with_name("log-0").read_bytes()[began_at:]:
        _fail_if(time.monotonic() > give_up or _over(processes), log)
        time.sleep(POLL_SECONDS)
    waited = rng.uniform(0, MOST_SECONDS_IN)
    time.sleep(waited)
    _fail_if(_over(processes), log)
    told = rng.randrange(WORKERS)
    processes[told].send_signal(number)
    began = time.monotonic()
    left = [process for i, process in enumerate(processes) if i != told]
    if number == signal.SIGTERM:
        left = processes
    codes = cluster.end(left, HANG_SECONDS)
    seconds = time.monotonic() - began
    cluster.end(processes)
    _fail_if(set(codes) != {interruption.PREEMPTED}, log)
    return {
        "signal": number.name,
        "worker": told,
        "seconds_into_training": round(waited, 1),
        "seconds_to_leave": round(seconds, 2),
    }


def _size(log: pathlib.Path) -> int:
    path = log.with_name("log-0")
    return path.stat().st_size if path.exists() else 0


def _over(processes: list[subprocess.Popen]) -> bool:
    return any(process.poll() is not None for process in processes)


def _fail_if(failed: bool, log: pathlib.Path) -> None:
    if failed:
        tail = log.with_name("log-0").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the run did not go as it should:\n{tail}")


def worst(tries: list[dict], name: str) -> float:
    """Returns the longest time to leave after a signal of that name, seconds."""
    return max(t["seconds_to_leave"] for t in tries if t["signal"] == name)


def main() -> None:
    """Tries each signal several times, prints a line each, writes stop.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--terms", type=int, default=10, help="tries with SIGTERM")
    add("--kills", type=int, default=3, help="tries with SIGKILL")
    add("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="stop-"))
    flags = [f"--job_dir={scratch / 'job'}", "--total_steps=100000"]
    rng, tries = random.Random(args.seed), []
    signals = [signal.SIGTERM] * args.terms + [signal.SIGKILL] * args.kills
    for number in signals:
        tries.append(one_try(flags, scratch, number, rng))
        print("{signal} to worker {worker}: {seconds_to_leave} s".format(**tries[-1]))
        sys.stdout.flush()
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(
            [sys.executable, "-m", "trainer.task", *flags],
            {str(scratch / "job"): "JOB_DIR"},
        ),
        "workers": WORKERS,
        **{
            f"worst_seconds_after_{name.lower()}": worst(tries, name)
            for name in sorted({t["signal"] for t in tries})
        },
        "tries": tries,
    }
    machine.RESULTS.mkdir(exist_ok=True)
    path = machine.RESULTS / "stop.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for name in sorted({t["signal"] for t in tries}):
        print(f"worst after {name}: {worst(tries, name)} s")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
