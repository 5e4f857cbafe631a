"""All that a run writes for people and tuners; the checkpoints are elsewhere.

config.json           settings, versions, host
metrics.jsonl         one object a line: {"kind": "train" or "eval", "step": ...}
logs/                 TensorBoard events
pictures/             see `pictures`
result.json           last, best and test metrics, confusion matrix
report.html           see `page`
failed.json           why a run stopped for good
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from trainer import events, files, pictures

PROGRAM = "segtrainer"
# May be in job_dir before its config.json is: Vertex AI may have made them, or a run that
# was killed before its first step; its probes of a bucket begin so.
OURS = {"checkpoints", "logs", "model", "config.json.tmp", "lease.json"}
PROBES = (".may-we-", "lease.json.")
PLAIN_LINE_SECONDS = 10.0  # Between progress lines where there is no terminal.
EVALUATION_TAGS = ("val_", "predictions", "curves", "goodput", "seconds/")
BEST_TAG = "best_predictions"  # Drawn once, when the run ends.
PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "keras", "numpy")


class Reporter:
    """Writes the rows, events and pictures of a run, and shows its progress.

    Args:
        job_dir: Where the run writes.
        log_dir: Where its TensorBoard events go.
        step: Step the run goes on from; what was written of later steps is removed,
            for it will be written again.
        total_steps: Step at which it ends.
        global_batch_size: Examples per step.
        hp_metric: Metric for the tuner; tells none when absent.
        evaluations: Those before `step`, told to the tuner again: its file did not
            survive the restart.
        fence: Raises OSError where another run may write by now.
    """

    def __init__(
        self,
        *,
        job_dir: str,
        log_dir: str,
        step: int,
        total_steps: int,
        global_batch_size: int,
        hp_metric: str | None,
        evaluations: list[dict[str, Any]],
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        self._job_dir = job_dir
        self._total_steps = total_steps
        self._batch = global_batch_size
        self._tuner = Tuner(hp_metric)
        done = {evaluation["step"] for evaluation in evaluations}
        self.rows = [
            row
            for row in read_rows(job_dir, up_to_step=step)
            # One after the last checkpoint, of its step: it is made again.
            if row["kind"] != "eval" or row["step"] in done
        ]
        fence()
        self._path = os.path.join(job_dir, "metrics.jsonl")
        self._lines = [json.dumps(row) + "\n" for row in self.rows]
        files.write(self._path, "".join(self._lines))
        self._lines_written = len(self._lines)
        # Each run begins and ends with pictures; they are drawn anew with it.
        again = {BEST_TAG} if step else {BEST_TAG, "augmented", "predictions"}

        def keeps(at: int, tags: set[str]) -> bool:
            of_evaluation = any(tag.startswith(EVALUATION_TAGS) for tag in tags)
            undone = at == step and step not in done and of_evaluation and step > 0
            return at <= step and not tags & again and not undone

        # Other runs may write to the same log_dir.
        suffix = f".{hashlib.sha256(job_dir.encode()).hexdigest()[:8]}.v2"
        fence()
        events.trim(log_dir, suffix, keeps)
        self._events = events.Events(log_dir, suffix)
        self._unwritten: dict[str, bytes] = {}
        self._tuner.tell_all(evaluations)
        # tqdm draws a bar; where there is no terminal, lines are logged instead.
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            bar_format="{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}{postfix}",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        )
        self._next_line = time.monotonic() + PLAIN_LINE_SECONDS

    def progress(self, step: int, loss: float, images_per_second: float | None) -> None:
        """Shows where the run is; writes nothing."""
        at = [f"loss={loss:.4f}"]
        if images_per_second:
            left = (self._total_steps - step) * self._batch / images_per_second
            at += [f"{images_per_second:.0f} images/s", f"{duration(left)} left"]
        self._bar.set_postfix_str(", ".join(at), refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_LINE_SECONDS
            logging.info("[%d] of %d: %s", step, self._total_steps, ", ".join(at))

    def train(self, row: dict[str, Any]) -> None:
        """Records a row of training, with its step."""
        self._record({"kind": "train", **row})

    def evaluation(self, row: dict[str, Any]) -> None:
        """Records an evaluation, with its step, and tells the tuner."""
        self._record({"kind": "eval", **row})
        self._tuner.tell_all([row])
        shown = ("val_loss", "val_mean_iou", "val_pixel_accuracy")
        logging.info(
            "[%d] %s",
            row["step"],
            " ".join(f"{k}={row[k]:.4f}" for k in shown if row[k] is not None),
        )

    def time_spent(self, step: int, goodput: dict[str, Any]) -> None:
        """Shows in TensorBoard what became of the run's time."""
        by_use = {f"seconds/{use}": n for use, n in goodput["seconds_of"].items()}
        self._events.scalars({"step": step, "goodput": goodput["goodput"], **by_use})

    def picture(self, name: str, picture: np.ndarray, step: int) -> str:
        """Writes pictures/<name>.png and shows it in TensorBoard; returns its path."""
        path = picture_path(self._job_dir, name)
        self._write(path, pictures.encode_png(picture))
        tag = "predictions" if name.startswith("step-") else name
        tag = BEST_TAG if name == "predictions" else tag
        self._events.image(tag, picture, step)
        return path

    def flush(self) -> list[Callable[[], None]]:
        """Takes what was told so far; returns the works that make it safe from a kill.

        They may be done in another thread while more is told. On a disk it is safe
        already.
        """
        unwritten, self._unwritten = self._unwritten, {}
        if files.remote(self._path) and len(self._lines) > self._lines_written:
            unwritten[self._path] = "".join(self._lines).encode()
            self._lines_written = len(self._lines)
        unwritten |= self._events.take()
        return [functools.partial(files.write, *pair) for pair in unwritten.items()]

    def close(self) -> None:
        """Ends the bar and the events; what was not flushed is lost on gs://."""
        self._bar.close()
        self._events.close()

    def _write(self, path: str, content: bytes) -> None:
        """Writes a file now or, to a store of objects, when the run saves."""
        if files.remote(path):
            self._unwritten[path] = content
        else:
            files.make_directory(os.path.dirname(path))
            files.write(path, content)

    def _record(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._lines.append(json.dumps(row) + "\n")
        if not files.remote(self._path):
            with tf.io.gfile.GFile(self._path, "a") as file:
                file.write(self._lines[-1])
        self._events.scalars(row)


class Tuner:
    """Tells a metric to the tuner; none where it has no name.

    It is made in a trial only, and once: the library makes a folder, and each of its
    reporters rewrites the other's file.
    """

    def __init__(self, metric: str | None) -> None:
        self._metric = metric
        self._reporter: Any = None

    def tell_all(self, rows: list[dict[str, Any]]) -> None:
        """Tells the metric of each evaluation that has a finite one."""
        for row in rows:
            value = row.get(self._metric) if self._metric else None
            if value is None or not np.isfinite(value):
                continue
            if self._reporter is None:
                import hypertune

                self._reporter = hypertune.HyperTune()
            self._reporter.report_hyperparameter_tuning_metric(
                self._metric, value, row["step"]
            )


# ---------------------------------------------------------------------------
# job_dir


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
    if "://" in path:
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


def write_config(job_dir: str, settings: dict[str, Any], **about: Any) -> None:
    """Makes job_dir and writes config.json, the first thing that a run writes.

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
        **about,
    }
    path = os.path.join(job_dir, "config.json")
    try:
        files.make_directory(job_dir)
        # A run that is done is left as it is.
        if files.read_json(path) != json.loads(json.dumps(config)):
            files.write_json(path, config)
    except (tf.errors.OpError, OSError) as error:
        reason = str(getattr(error, "message", error)).splitlines()[0]
        raise ValueError(
            f"job_dir must be a place to write to, got {job_dir}: {reason}"
        ) from None


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


def duration(seconds: float) -> str:
    """Returns a time for people: 8 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
