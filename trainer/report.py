"""Writes the rows, events and pictures of a run as they come, and shows its progress."""

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from trainer import events, files, pictures, run_files

PLAIN_LINE_SECONDS = 10.0  # Between progress lines where there is no terminal.
EVALUATION_TAGS = ("val_", "predictions", "curves", "goodput", "seconds/")
BEST_TAG = "best_predictions"  # Drawn once, when the run ends.


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
            for row in run_files.read_rows(job_dir, up_to_step=step)
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
        ours = hashlib.sha256(files.place(job_dir).encode()).hexdigest()
        suffix = f".{ours[:8]}.v2"
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
        path = run_files.picture_path(self._job_dir, name)
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


def duration(seconds: float) -> str:
    """Returns a time for people: 8 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
