"""Watches a run from outside: memory, threads, open files, and how far it is."""

import json
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Sequence

from benchmarks import machine


def resident_bytes(status: str) -> int:
    """Returns the memory that a process has in the machine, of /proc/PID/status."""
    return 1024 * _value(status, "VmRSS")


def threads(status: str) -> int:
    """Returns how many threads a process has, of /proc/PID/status."""
    return _value(status, "Threads")


def _value(status: str, name: str) -> int:
    [line] = [x for x in status.splitlines() if x.startswith(f"{name}:")]
    return int(line.split()[1])


def written_bytes(folder: pathlib.Path) -> int:
    """Returns the bytes of all files in a folder and below."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(top, name)).st_size
            except FileNotFoundError:  # A checkpoint that was deleted meanwhile.
                continue
    return total


def latest_step(rows: str) -> int:
    """Returns the last step that metrics.jsonl tells of; 0 before the first."""
    told = [json.loads(line) for line in rows.splitlines()[-5:] if line.endswith("}")]
    return max((row["step"] for row in told), default=0)


def watched(
    command: list[str], job_dir: pathlib.Path, log: pathlib.Path, every_seconds: float
) -> list[dict]:
    """Runs a job to its end; returns what it was seen to have, sample after sample.

    Args:
        command: The program and its arguments.
        job_dir: Where it writes.
        log: File that gets what it prints.
        every_seconds: Between two looks.

    Raises:
        RuntimeError: If it fails.
    """
    samples = []
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=machine.REPOSITORY
        )
        rows, proc = job_dir / "metrics.jsonl", pathlib.Path(f"/proc/{process.pid}")
        while process.poll() is None:
            time.sleep(every_seconds)
            try:
                status = (proc / "status").read_text()
                sample = {
                    "seconds": time.monotonic(),
                    "step": latest_step(rows.read_text()) if rows.exists() else 0,
                    "resident_bytes": resident_bytes(status),
                    "threads": threads(status),
                    "open_files": len(os.listdir(proc / "fd")),
                    "written_bytes": written_bytes(job_dir),
                }
            except (FileNotFoundError, ProcessLookupError, ValueError):
                continue  # It has ended meanwhile.
            samples.append(sample)
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"exit code {process.returncode}: {tail}")
    return samples


def training(samples: Sequence[dict], first: int, last: int) -> list[dict]:
    """Returns the samples between two steps: neither the start nor what ends a run."""
    return [sample for sample in samples if first <= sample["step"] < last]


def slope(samples: Sequence[dict], name: str) -> float:
    """Returns what a value grows by in 1,000 steps, by least squares; 0 of too few."""
    steps = [sample["step"] / 1000 for sample in samples]
    if len(set(steps)) < 2:
        return 0.0
    values = [float(sample[name]) for sample in samples]
    return statistics.linear_regression(steps, values).slope
