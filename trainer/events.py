"""TensorBoard's events of a run: on a disk at once, on a store of objects at each save.

An object grows only by being written again whole. So for a store, events gather on the
local disk, in files of bounded size, and what is new there is written at each save.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

from trainer import files

FILE_BYTES = 2**21  # Beyond this a file for a store of objects is ended.


class Events:
    """Writes the events of one process.

    Args:
        log_dir: Where they go, local or gs://.
        suffix: How the names of the run's own files end; others may be there.
    """

    def __init__(self, log_dir: str, suffix: str) -> None:
        self._log_dir, self._suffix = log_dir, suffix
        self._gathered = contextlib.ExitStack()
        self._directory = log_dir
        if files.remote(log_dir):
            self._directory = self._gathered.enter_context(
                tempfile.TemporaryDirectory(prefix="segtrainer-events-")
            )
        self._begin()

    def scalars(self, row: dict[str, Any]) -> None:
        """Shows each number of a row at its "step"."""
        with self._writer.as_default(row["step"]):  # Leaving it flushes.
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    tf.summary.scalar(name, value)

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Shows a picture, (H, W, 3) uint8."""
        with self._writer.as_default(step):
            tf.summary.image(tag, picture[np.newaxis])

    def take(self) -> dict[str, bytes]:
        """Returns what a store of objects is to hold now: path -> content."""
        if not files.remote(self._log_dir):
            return {}
        [name] = os.listdir(self._directory)
        path = os.path.join(self._directory, name)
        with open(path, "rb") as file:
            content = file.read()
        if len(content) > FILE_BYTES:
            self._writer.close()
            os.remove(path)
            self._begin()
        return {os.path.join(self._log_dir, name): content}

    def close(self) -> None:
        """Ends them."""
        self._writer.close()
        self._gathered.close()

    def _begin(self) -> None:
        self._writer = tf.summary.create_file_writer(
            self._directory, filename_suffix=self._suffix
        )


def trim(log_dir: str, suffix: str, keeps: Callable[[int, set[str]], bool]) -> None:
    """Rewrites the files that hold what will be written again, or a torn event.

    Args:
        log_dir: Where the files are.
        suffix: How the names of the run's own end.
        keeps: Says of an event's step and tags whether it stays.
    """
    # No pattern: a folder's name may have brackets.
    there = tf.io.gfile.listdir(log_dir) if tf.io.gfile.isdir(log_dir) else []
    for name in there:
        if not (name.startswith("events.out.tfevents.") and name.endswith(suffix)):
            continue
        path = os.path.join(log_dir, name)
        kept, trimmed = [], False
        try:
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
                event = Event.FromString(record)
                tags = {value.tag for value in event.summary.value}
                if keeps(event.step, tags):
                    kept.append(record)
                else:
                    trimmed = True
        except tf.errors.DataLossError:
            trimmed = True
        if trimmed:
            with tempfile.NamedTemporaryFile() as local:
                with tf.io.TFRecordWriter(local.name) as writer:
                    for record in kept:
                        writer.write(record)
                files.write(path, local.read())
