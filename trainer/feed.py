"""What a run reads: the stream from its step on, the splits to judge it by."""

import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import data, records, streams
from trainer.dataset import Split
from trainer.job import Job, augmentation, train_side


def train_batches(job: Job) -> Callable[[threading.Event], tf.data.Dataset]:
    """Returns the stream of batches from the step the run is at to its end."""
    settings, at = job.settings, job.state["step"]
    workers = job.workers
    left = (job.total_steps - at) * job.global_batch_size // workers.count

    def batches(stop: threading.Event) -> tf.data.Dataset:
        return streams.train_batches(
            job.dataset,
            job.examples["train"],
            image_size=train_side(settings),
            batch_size=job.batch_size,
            seed=settings.seed,
            window=settings.shuffle_window,
            start=at * job.global_batch_size,
            augmentation=augmentation(settings),
            step_size=job.global_batch_size,
            worker=workers.index,
            workers=workers.count,
            count=left,
            stop=stop,
        )

    return batches


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


def explain_evaluation(job: Job, split: Split, name: str) -> None:
    """Raises ValueError that names the example or file of a split that broke its reading.

    Args:
        job: The run; each worker looks at its own part.
        split: The split.
        name: Of its reader.
    """
    elements = data.eval_elements(
        split,
        job.examples[name],
        worker=job.workers.index,
        workers=job.workers.count,
    )
    records.explain(job.dataset, job.examples[name], elements)


def explain(job: Job) -> None:
    """Raises ValueError that names the example or file that broke a training step."""
    elements = data.train_elements(
        job.dataset.train,
        job.examples["train"],
        seed=job.settings.seed,
        window=job.settings.shuffle_window,
        start=job.state["step"] * job.global_batch_size,
        step_size=job.global_batch_size,
        worker=job.workers.index,
        workers=job.workers.count,
    )
    records.explain(job.dataset, job.examples["train"], elements)
