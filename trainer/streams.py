"""Streams of decoded examples, in batches, that begin at any place and end when told to.

Letters: N examples in a batch, S side of the model's square input.
"""

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import augment, data, loading, records
from trainer.dataset import Dataset, Split
from trainer.examples import Examples, untuned

DRAIN_TURNS = 1000  # More than any stream has under way when it is stopped.


def train_batches(
    dataset: Dataset,
    examples: Examples,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    window: int,
    start: int,
    augmentation: dict[str, Any] | None,
    step_size: int = 1,
    worker: int = 0,
    workers: int = 1,
    count: int | None = None,
    stop: threading.Event | None = None,
) -> tf.data.Dataset:
    """Returns the stream of training batches from a position on.

    Args:
        dataset: The data set.
        examples: Reader of its train split.
        image_size: S, pixels.
        batch_size: N, the examples of one replica at one step.
        seed: Seed of order and augmentation.
        window: See `order.epoch_order`.
        start: Position in the order: examples that the run has seen.
        augmentation: Keyword arguments of `augment.augment`; nothing when absent.
        step_size: Examples that all workers take at a step.
        worker: Number of this worker, which takes its part of each step.
        workers: How many there are.
        count: How many examples to read; for ever when absent.
        stop: Ends the stream when set; see `iterator`.

    Returns:
        Batches of image (N, S, S, 3) uint8 and mask (N, S, S) uint8, `records.IGNORED` or a
        class id.
    """

    def elements() -> Iterator[tuple[int, int, bytes]]:
        endless = data.train_elements(
            dataset.train,
            examples,
            seed=seed,
            window=window,
            start=start,
            step_size=step_size,
            worker=worker,
            workers=workers,
        )
        return itertools.islice(endless, count)

    augmented = functools.partial(_augmented, seed, augmentation, image_size)
    size = data.train_size(image_size, augmentation)
    ds = loading.decoded(dataset, examples, elements, size, augmented, stop)
    ds = ds.batch(batch_size, drop_remainder=True)
    return untuned(ds.prefetch(2))


def eval_batches(
    dataset: Dataset,
    split: Split,
    examples: Examples,
    *,
    image_size: int,
    batch_size: int,
    batches: int | None = None,
    worker: int = 0,
    workers: int = 1,
    stop: threading.Event | None = None,
) -> tf.data.Dataset:
    """Returns a worker's batches of a split, in stored order, each example once.

    The last are filled up with ignored pixels, so that all shapes are alike and each
    replica gets as many of the `batches`; as many as it takes when absent. Arguments and
    what is returned as of `train_batches`.
    """

    def elements() -> Iterator[tuple[int, int, bytes]]:
        n = batches or math.ceil(len(split.ids) / workers / batch_size)
        return data.eval_elements(
            split, examples, pad_to=n * batch_size, worker=worker, workers=workers
        )

    def ignored(
        id: tf.Tensor, epoch: tf.Tensor, image: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return image, tf.where(
            epoch == data.PADDING, tf.constant(records.IGNORED, mask.dtype), mask
        )

    ds = loading.decoded(dataset, examples, elements, image_size, ignored, stop)
    ds = ds.batch(batch_size, drop_remainder=True)
    return untuned(ds.prefetch(2))


def first_train_examples(
    dataset: Dataset,
    examples: Examples,
    *,
    image_size: int,
    seed: int,
    window: int,
    augmentation: dict[str, Any] | None,
    count: int,
    want: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first examples of the order as a run sees them.

    One by one, without a stream: to trace one takes a second. Arguments as of
    `train_batches`; `count` is N, `want` whether this reader is asked for all the others
    next.

    Returns:
        Image (N, S, S, 3) uint8 and mask (N, S, S) uint8.
    """
    order = dict(seed=seed, window=window, start=0)
    elements = data.train_elements(
        dataset.train, examples, **order, keep=True, want=want
    )
    augmented = functools.partial(_augmented, seed, augmentation, image_size)
    size = data.train_size(image_size, augmentation)
    some = itertools.islice(elements, count)
    return _look_at(dataset, examples, some, size, augmented)


def first_eval_examples(
    dataset: Dataset,
    split: Split,
    examples: Examples,
    *,
    image_size: int,
    count: int,
    want: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first examples of a split as they are judged.

    Arguments and what is returned as of `first_train_examples`.
    """
    elements = data.eval_elements(split, examples, keep=True, want=want)
    some = itertools.islice(elements, count)
    return _look_at(
        dataset, examples, some, image_size, lambda id, epoch, *parts: parts
    )


@contextlib.contextmanager
def iterator(
    batches: Callable[[threading.Event], tf.data.Dataset],
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[Iterator]:
    """Gives the iterator of a stream, and ends it properly.

    Deleting an iterator waits for its threads while Python stands still; a thread that
    is about to run our Python would wait as well, for ever. So they come to rest first.

    Args:
        batches: Returns the stream; it must end when the event is set.
        strategy: Whose replicas on this worker get a batch each at every turn.
    """
    stop = threading.Event()
    # The stream that a strategy makes is tuned: see `untuned`.
    if strategy is None or len(strategy.extended.worker_devices) == 1:
        turns = iter(batches(stop))
    else:
        dealt = strategy.distribute_datasets_from_function(lambda _: batches(stop))
        turns = iter(dealt)
    try:
        yield turns
    finally:
        stop.set()
        for _ in range(DRAIN_TURNS):
            try:
                next(turns)
            except (StopIteration, tf.errors.OutOfRangeError):
                break
            except tf.errors.OpError:
                continue  # Seen before, or of an example that nobody asks for.


def _augmented(
    seed: int,
    augmentation: dict[str, Any] | None,
    image_size: int,
    id: tf.Tensor,
    epoch: tf.Tensor | int,
    image: tf.Tensor,
    mask: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns an example as a run sees it in an epoch."""
    if augmentation is None:
        return image, mask
    example_seed = augment.example_seed(seed, epoch, id)
    return augment.augment(image, mask, example_seed, size=image_size, **augmentation)


def _look_at(
    dataset: Dataset,
    examples: Examples,
    elements: Iterable[tuple[int, int, bytes]],
    image_size: int,
    change: Callable[..., tuple[tf.Tensor, tf.Tensor]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a few elements, which are not used up."""
    seen = []
    with tf.device("cpu"):  # Where streams live.
        for id, epoch, serialized in elements:
            image, mask = (
                records.decode(dataset, tf.constant(serialized), image_size)
                if serialized
                else map(tf.constant, examples.get(id))
            )
            example = change(tf.constant(id), epoch, image, mask)
            seen.append([part.numpy() for part in example])
    image, mask = (np.stack(part) for part in zip(*seen, strict=True))
    return image, mask
