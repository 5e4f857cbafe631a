"""Streams of decoded examples, in batches, that begin at any place and end when told to.

Letters: N examples in a batch, S side of the model's square input.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import augment, data, records
from trainer.dataset import Dataset, Split
from trainer.examples import Examples, untuned

CORES = os.cpu_count() or 1
DRAIN_TURNS = 1000  # More than any stream has under way when it is stopped.
# Elements that TensorFlow takes from Python at once: each time costs a third of a
# millisecond, a fifth of what decoding a photograph of 0.2 megapixels does.
CHUNK = 8
# Chunks that lie ready: to know the first example of a shuffled shard, much of the shard is
# read, and decoding goes on meanwhile.
AHEAD = 8


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
    ds = _decoded(dataset, examples, elements, size, augmented, stop)
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
    replica gets as many of the `batches`; as many as it takes when absent.
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

    ds = _decoded(dataset, examples, elements, image_size, ignored, stop)
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
    """Returns the first examples of the order as a run sees them; see `_look_at`.

    `want` is whether this reader is asked for all the others next.
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

    See `first_train_examples` for `want`, and `_look_at`.
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


def _decoded(
    dataset: Dataset,
    examples: Examples,
    elements: Callable[[], Iterator[tuple[int, int, bytes]]],
    image_size: int,
    change: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    stop: threading.Event | None,
) -> tf.data.Dataset:
    """Returns image and mask of each element, from the cache where they are.

    Args:
        dataset: The data set.
        examples: Their reader.
        elements: Returns what there is: (id, epoch, serialized).
        image_size: S, pixels.
        change: (id, epoch, image, mask) -> the image and the mask to give; in the same
            call of TensorFlow's as the decoding, for each call costs its own.
        stop: Ends the stream when set.
    """
    square = (image_size, image_size)

    def read(id: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, mask = records.decode(dataset, serialized, image_size)
        if not examples.cached:
            return image, mask

        def put(id: np.ndarray, image: np.ndarray, mask: np.ndarray):
            examples.put(int(id), image, mask)
            return image, mask

        return tf.numpy_function(
            put, [id, image, mask], (tf.uint8, tf.uint8), stateful=False
        )

    # AutoGraph rewrites sources of all that is called, at the start of each process, for
    # loops and conditions in Python: there are none.
    @tf.autograph.experimental.do_not_convert
    def load(id: tf.Tensor, epoch: tf.Tensor, serialized: tf.Tensor):
        if examples.cached:
            image, mask = tf.cond(
                tf.strings.length(serialized) == 0,
                lambda: tf.numpy_function(
                    lambda id: examples.get(int(id)),
                    [id],
                    (tf.uint8, tf.uint8),
                    stateful=False,
                ),
                lambda: read(id, serialized),
            )
        else:
            image, mask = read(id, serialized)
        image = tf.ensure_shape(image, (*square, 3))
        return change(id, epoch, image, tf.ensure_shape(mask, square))

    def until_stopped() -> Iterator[tuple[int, int, bytes]]:
        for element in elements():
            if stop is not None and stop.is_set():
                return
            yield element

    ds = tf.data.Dataset.from_generator(
        lambda: _chunks(until_stopped(), examples.cached),
        output_signature=(
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((None,), tf.string),
        ),
    )
    if not examples.cached:
        # One more than cores, and made one with the batching: no core waits for another.
        ds = ds.prefetch(AHEAD).unbatch()
        return ds.map(load, num_parallel_calls=CORES + 1)
    # An example is not begun before the one that is `CORES` places ahead of it is done:
    # see `_chunks`.
    options = tf.data.Options()
    options.experimental_optimization.map_and_batch_fusion = False
    return ds.unbatch().map(load, num_parallel_calls=CORES).with_options(options)


def _look_at(
    dataset: Dataset,
    examples: Examples,
    elements: Iterable[tuple[int, int, bytes]],
    image_size: int,
    change: Callable[..., tuple[tf.Tensor, tf.Tensor]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a few elements, which are not used up.

    One by one, without a stream: to trace one takes a second.

    Returns:
        Image (N, S, S, 3) uint8 and mask (N, S, S) uint8, N as there are elements.
    """
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


def _chunks(
    elements: Iterator[tuple[int, int, bytes]], kept: bool
) -> Iterator[tuple[list, ...]]:
    """Yields ids, epochs and serialized of up to `CHUNK` elements.

    What is read before a damaged file comes before the error, too.

    Args:
        elements: (id, epoch, serialized).
        kept: Whether what is decoded is kept. Then elements go one by one until all that
            were to be decoded are: one that is asked for before would be decoded twice.
    """
    chunk: list[tuple[int, int, bytes]] = []
    under_way = 0  # Places until the last to be decoded is, as many at once as cores.
    failed: ValueError | tf.errors.OpError | None = None
    try:
        for element in elements:
            chunk.append(element)
            under_way = CORES + 1 if kept and element[2] else max(under_way - 1, 0)
            if under_way or len(chunk) == CHUNK:
                yield tuple(map(list, zip(*chunk, strict=True)))
                chunk = []
    except (ValueError, *records.ERRORS) as error:
        failed = error
    if chunk:
        yield tuple(map(list, zip(*chunk, strict=True)))
    if failed is not None:
        raise failed
