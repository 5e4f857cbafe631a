"""Runs on several devices, and what two that ended alike have in common."""

import collections
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event

from benchmarks import kill
from trainer import sums

# Of the clock; the row of a first call has none of these.
CLOCK = ("images_per_second", "waiting_for_data", "goodput", "seconds/")


def events(log_dir: pathlib.Path) -> collections.Counter:
    """Returns how often each (tag, step) is among TensorBoard's events."""
    found: collections.Counter = collections.Counter()
    for path in log_dir.glob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = Event.FromString(record)
            found.update((value.tag, event.step) for value in event.summary.value)
    return found


def assert_same_run(reference: pathlib.Path, job_dir: pathlib.Path) -> None:
    """Fails unless two runs wrote the same, but for what tells of the clock."""
    assert not kill.same_checkpoints(reference, job_dir)
    assert not kill.same_rows(reference, job_dir)
    found, expected = (
        {
            key: n
            for key, n in events(run / "logs").items()
            if not key[0].startswith(CLOCK)
        }
        for run in (job_dir, reference)
    )
    assert found == expected and set(found.values()) == {1}
    names, wanted = (
        {
            path.relative_to(run)
            for path in run.rglob("*")
            if "tfevents" not in path.name
        }
        for run in (job_dir, reference)
    )
    assert names == wanted
    for path in job_dir.rglob("*.png"):
        if path.name != "curves.png":  # Of the rows, which are compared above.
            ours, theirs = (
                np.asarray(Image.open(file))
                for file in (path, reference / path.relative_to(job_dir))
            )
            assert np.array_equal(ours, theirs), path


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """Returns the strategy of a run on logical CPU devices, which conftest has made.

    TensorFlow's own sums over them are collectives, whose keys two strategies of one
    process share: those of one test would meet those of another.
    """
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(
            accumulation_fn=sums.in_pairs
        ),
    )
