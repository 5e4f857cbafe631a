"""What a run reads: the stream from its step on, the splits to judge it by."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import data, records, streams
from trainer.dataset import Split
from trainer.job import Job, augmentation, train_side


def train_batches(job: Job) -> Callable[[threading.Event], tf.data.Dataset]:
    """Returns the stream of batches from the step the run is at to its end."""
    settings, order = job.settings, _order(job)
    left = job.total_steps * job.global_batch_size - order["start"]

    def batches(stop: threading.Event) -> tf.data.Dataset:
        return streams.train_batches(
            job.dataset,
            job.examples["train"],
            image_size=train_side(settings),
            batch_size=job.batch_size,
            augmentation=augmentation(settings),
            count=left // job.workers.count,
            stop=stop,
            **order,
        )

    return batches


def _order(job: Job) -> dict[str, Any]:
    """Returns what says which examples this worker reads, from the step the run is at."""
    return dict(
        seed=job.settings.seed,
        window=job.settings.shuffle_window,
        start=job.state["step"] * job.global_batch_size,
        step_size=job.global_batch_size,
        worker=job.workers.index,
        workers=job.workers.count,
    )


def first_train_examples(job: Job, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images and masks of the order as the model will see them."""
    settings = job.settings
    return streams.first_train_examples(
        job.dataset,
        job.examples["train"],
        image_size=train_side(settings),
        seed=settings.seed,
        window=settings.shuffle_window,
        augmentation=augmentation(settings),
        count=count,
        want=job.workers.count == 1,  # Others read most of what comes next.
    )


def first_eval_examples(
    job: Job, split: Split, name: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images and masks of a split, whose reader has the name."""
    return streams.first_eval_examples(
        job.dataset,
        split,
        job.examples[name],
        image_size=job.settings.image_size,
        count=count,
        want=job.workers.count == 1,
    )


def eval_batches(
    job: Job, split: Split, name: str, batch_size: int, turns: int | None = None
) -> Callable[[threading.Event], tf.data.Dataset]:
    """Returns the batches of a split.

    Args:
        job: The run.
        split: The split.
        name: Of its reader.
        batch_size: Examples of a batch.
        turns: At each of which every replica of this worker gets a batch of the
            worker's part; of all of the split, for a single replica, when absent.
    """
    settings, workers, share = job.settings, job.workers, {}
    size = settings.image_size
    if name == "train":
        size = data.train_size(train_side(settings), augmentation(settings))
    if turns is not None:
        replicas = job.strategy.num_replicas_in_sync // workers.count
        share = dict(
            batches=turns * replicas, worker=workers.index, workers=workers.count
        )

    def batches(stop: threading.Event) -> tf.data.Dataset:
        return streams.eval_batches(
            job.dataset,
            split,
            job.examples[name],
            image_size=size,
            batch_size=batch_size,
            **share,
            stop=stop,
        )

    return batches


def turns_of(job: Job, split: Split, batch_size: int) -> tuple[int, int]:
    """Returns how a split is dealt: examples of a batch, at most those given, and turns.

    At each turn every replica of every worker gets a batch, or one would wait.
    """
    replicas = job.strategy.num_replicas_in_sync // job.workers.count
    most = math.ceil(len(split.ids) / job.workers.count)  # Examples of a worker.
    batch_size = min(batch_size, math.ceil(most / replicas))
    return batch_size, math.ceil(most / (batch_size * replicas))


@contextlib.contextmanager
def explained(
    job: Job, split: Split | None = None, name: str = "train"
) -> Iterator[None]:
    """Tells more of a failure within: which example or file broke the reading.

    Args:
        job: The run; each worker looks at its own part.
        split: What is read, in stored order; training, from its step on, when absent.
        name: Of its reader.

    Raises:
        ValueError: In place of an error of `records.ERRORS`, where an example or a file
            is damaged.
    """
    try:
        yield
    except records.ERRORS:
        train, reader, order = job.dataset.train, job.examples[name], _order(job)
        if split is not None:
            part = {key: order[key] for key in ("worker", "workers")}
            elements = data.eval_elements(split, reader, **part)
        else:
            elements = data.train_elements(train, reader, **order)
        records.explain(job.dataset, reader, elements)
        raise
