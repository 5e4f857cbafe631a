"""The files of a job_dir for people and programs: what may be there, what they say.

config.json           settings, versions, host
metrics.jsonl         one object a line: {"kind": "train" or "eval", "step": ...}
logs/                 TensorBoard events
pictures/             see `pictures`
result.json           last, best and test metrics, confusion matrix
report.html           see `page`
failed.json           why a run stopped for good
"""

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from typing import Any

import tensorflow as tf

from trainer import files

PROGRAM = "segtrainer"
# May be in job_dir before its config.json is: Vertex AI may have made them, or a run that
# was killed before its first step; its probes of a bucket begin so.
OURS = {"checkpoints", "logs", "model", "config.json.tmp", "lease.json"}
PROBES = (".may-we-", "lease.json.")
PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "keras", "numpy")


def check_job_dir(job_dir: str) -> None:
    """Raises ValueError if the directory holds what another program wrote."""
    check_directory("job_dir", job_dir)
    if not tf.io.gfile.exists(job_dir):
        return
    if not tf.io.gfile.isdir(job_dir):
        raise ValueError(f"job_dir must be a directory, got the file {job_dir}")
    listed = tf.io.gfile.listdir(job_dir)
    found = {n.rstrip("/") for n in listed if not n.startswith(PROBES)}
    program = files.read_json(os.path.join(job_dir, "config.json")).get("program")
    if program != PROGRAM and (others := sorted(found - OURS)):
        raise ValueError(
            f"job_dir must be empty or hold a run of {PROGRAM}, got {job_dir} with "
            f"{', '.join(others[:3])} in it; give another --job_dir"
        )


def check_directory(setting: str, path: str) -> None:
    """Raises ValueError if no directory can be there: a file is in the way, or a right.

    Looks at the nearest directory that exists; writes nothing. A bucket is not asked.
    """
    if files.remote(path):
        return
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise ValueError(f"{setting} must be a directory, got the file {there}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{setting} must be a place to write to, got {path}: no right to write in "
            f"{there}"
        )


def write_config(
    job_dir: str, settings: dict[str, Any], *, step: int, total_steps: int, **about: Any
) -> None:
    """Makes job_dir and writes config.json, the first thing that a run writes.

    Args:
        job_dir: Of the run.
        settings: Of the run.
        step: At which the run is.
        total_steps: At which it ends.
        **about: What else is told of it.

    Raises:
        ValueError: If it cannot be written there.
    """
    config = {
        "program": PROGRAM,
        "settings": settings,
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": versions(),
        "host": socket.gethostname(),
        "commit": commit(),
        "total_steps": total_steps,
        **about,
    }
    path = os.path.join(job_dir, "config.json")
    try:
        files.make_directory(job_dir)
        # A run that is done is left as it is, from wherever it is looked at.
        same = files.read_json(path).get("settings") == json.loads(json.dumps(settings))
        if not (same and _has_ended(job_dir, step, total_steps)):
            files.write_json(path, config)
    except (tf.errors.OpError, OSError) as error:
        reason = str(getattr(error, "message", error)).splitlines()[0]
        raise ValueError(
            f"job_dir must be a place to write to, got {job_dir}: {reason}"
        ) from None


def _has_ended(job_dir: str, step: int, total_steps: int) -> bool:
    """Returns whether a run whose settings did not change has nothing left to do."""
    result = read_result(job_dir)
    early = result.get("complete") is False
    return result.get("step") == step and (step >= total_steps or early)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """Returns the commit of the source, where it is a git checkout."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.isdir(os.path.join(root, ".git")) or not shutil.which("git"):
        return None
    command = ["git", "-C", root, "describe", "--always", "--dirty"]
    return (
        subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.strip()
        or None
    )


def write_failed(job_dir: str, **why: Any) -> None:
    """Writes failed.json: this run will not get further by being started again."""
    files.write_json(os.path.join(job_dir, "failed.json"), why)


def read_failed(job_dir: str) -> dict[str, Any]:
    """Returns what failed.json says; nothing where there is none."""
    return files.read_json(os.path.join(job_dir, "failed.json"))


def write_result(job_dir: str, result: dict[str, Any]) -> None:
    """Writes result.json, and takes back what an earlier attempt said in failed.json."""
    files.write_json(os.path.join(job_dir, "result.json"), result)
    failed = os.path.join(job_dir, "failed.json")
    if tf.io.gfile.exists(failed):
        tf.io.gfile.remove(failed)


def read_result(job_dir: str) -> dict[str, Any]:
    """Returns what result.json says; nothing where there is none."""
    return files.read_json(os.path.join(job_dir, "result.json"))


def read_rows(job_dir: str, up_to_step: int) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl up to a step; a torn last line is left out."""
    path = os.path.join(job_dir, "metrics.jsonl")
    if not tf.io.gfile.exists(path):
        return []
    rows = []
    with tf.io.gfile.GFile(path) as file:
        for line in file.read().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return [row for row in rows if row["step"] <= up_to_step]


def picture_path(job_dir: str, name: str) -> str:
    """Returns where a picture of that name is written."""
    return os.path.join(job_dir, "pictures", f"{name}.png")
