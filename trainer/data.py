"""The examples of a data set as ordered, resumable batches.

Letters: N examples in a batch, S side of the model's square input, H and W a picture's
own height and width, C classes.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

from trainer import augment, order, records
from trainer.dataset import Dataset, Split
from trainer.examples import Examples, untuned

CORES = os.cpu_count() or 1
CACHE_SHARE = 0.25  # Of the memory that is free, what --cache=auto may take.
DRAIN_TURNS = 1000  # More than any stream has under way when it is stopped.
PADDING = -1  # In the place of the epoch: an example that fills a batch only.
# Elements that TensorFlow takes from Python at once: each time costs a third of a
# millisecond, a fifth of what decoding a photograph of 0.2 megapixels does.
CHUNK = 8
# Chunks that lie ready: to know the first example of a shuffled shard, much of the shard is
# read, and decoding goes on meanwhile.
AHEAD = 8


def examples_of(
    dataset: Dataset,
    image_size: int,
    cache: str,
    worker: int = 0,
    workers: int = 1,
    train_size: int | None = None,
) -> dict[str, Examples]:
    """Returns the reader of each split; train and its cut of one size share one.

    Args:
        dataset: The data set.
        image_size: S, pixels.
        cache: "memory", "none", or "auto": memory where train and validation take at
            most `CACHE_SHARE` of what is free. Test is read once and never kept.
        worker: Number of this worker.
        workers: How many share the examples.
        train_size: Of `train_size`; S when absent.
    """
    train_size = train_size or image_size
    num_pixels = len(dataset.train.ids) * train_size**2
    num_pixels += len(dataset.val.ids) * image_size**2
    num_bytes = 4 * num_pixels
    if cache == "auto":
        fits = num_bytes <= CACHE_SHARE * psutil.virtual_memory().available
        cache = "memory" if fits else "none"
    cached = cache == "memory"

    def reader(split: Split, size: int | None) -> Examples:
        return Examples(split.files, split.file_lengths, size if cached else None)

    readers = {"train": reader(dataset.train, train_size)}
    alike = dataset.val.files == dataset.train.files and train_size == image_size
    shared = alike and cached
    readers["val"] = readers["train"] if shared else reader(dataset.val, image_size)
    if cached:
        train, val = (
            np.array_split(split.ids, workers)[worker]
            for split in (dataset.train, dataset.val)
        )
        readers["train"].want(_with_their_files(dataset.train, train))
        readers["val"].want(val)
    if dataset.test is not None:
        readers["test"] = reader(dataset.test, None)
    return readers


def _with_their_files(split: Split, ids: np.ndarray) -> np.ndarray:
    """Returns all examples in the files of some.

    Of a file that workers share, each takes others in each epoch: it is read once if all
    of it is held back.
    """
    last = np.cumsum(split.file_lengths)
    touched = np.searchsorted(last, ids, side="right")
    return split.ids[np.isin(np.searchsorted(last, split.ids, side="right"), touched)]


# ---------------------------------------------------------------------------
# Reading: (id, epoch, serialized) -> batches of (image, mask)


def train_elements(
    split: Split,
    examples: Examples,
    *,
    seed: int,
    window: int,
    start: int,
    step_size: int = 1,
    worker: int = 0,
    workers: int = 1,
    keep: bool = False,
) -> Iterator[tuple[int, int, bytes]]:
    """Yields (id, epoch, serialized) for ever, from a position of the order on.

    Args:
        split: The examples.
        examples: Their reader.
        seed: Seed of the order.
        window: See `order.epoch_order`.
        start: Position in the order.
        step_size: Examples that all workers take at a step.
        worker: Number of this worker, which takes its part of each step.
        workers: How many there are.
        keep: Whether to hold the examples back for who asks next.
    """
    for taken in order.steps(
        split.shard_lengths, seed=seed, window=window, start=start, size=step_size
    ):
        epochs, positions = (order.part(part, worker, workers) for part in taken)
        ids = split.ids[positions]
        examples.want(ids.ravel())
        for id, epoch in zip(ids.flat, epochs.flat, strict=True):
            yield int(id), int(epoch), examples.serialized(int(id), keep)


def eval_elements(
    split: Split,
    examples: Examples,
    *,
    pad_to: int = 0,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[tuple[int, int, bytes]]:
    """Yields (id, 0, serialized) of each example of a worker, then padding."""
    ids = np.array_split(split.ids, workers)[worker]
    examples.want(ids)
    for id in ids.tolist():
        yield id, 0, examples.serialized(id)
    if len(ids) < pad_to:
        fill = int(ids[-1] if len(ids) else split.ids[0])
        serialized = examples.serialized(fill)
        for _ in range(pad_to - len(ids)):
            yield fill, PADDING, serialized


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
        endless = train_elements(
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
    size = train_size(image_size, augmentation)
    ds = _decoded(dataset, examples, elements, size, augmented, stop)
    ds = ds.batch(batch_size, drop_remainder=True)
    return untuned(ds.prefetch(2))


def first_examples(
    dataset: Dataset,
    examples: Examples,
    *,
    image_size: int,
    seed: int,
    window: int,
    augmentation: dict[str, Any] | None,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first examples of the order as a run sees them, without using them up.

    One by one, without a stream: to trace one takes a second, for what is shown once.

    Returns:
        Image (N, S, S, 3) uint8 and mask (N, S, S) uint8, N as `count` says.
    """
    seen, size = [], train_size(image_size, augmentation)
    endless = train_elements(
        dataset.train, examples, seed=seed, window=window, start=0, keep=True
    )
    with tf.device("cpu"):  # Where streams live.
        for id, epoch, serialized in itertools.islice(endless, count):
            image, mask = (
                records.decode(dataset, tf.constant(serialized), size)
                if serialized
                else map(tf.constant, examples.get(id))
            )
            example = _augmented(
                seed, augmentation, image_size, tf.constant(id), epoch, image, mask
            )
            seen.append([part.numpy() for part in example])
    image, mask = (np.stack(part) for part in zip(*seen, strict=True))
    return image, mask


def train_size(image_size: int, augmentation: dict[str, Any] | None) -> int:
    """Returns the side that training examples are decoded to."""
    if augmentation is None:
        return image_size
    return augment.source_size(image_size, augmentation["crop_scale_min"])


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
        return eval_elements(
            split, examples, pad_to=n * batch_size, worker=worker, workers=workers
        )

    def ignored(
        id: tf.Tensor, epoch: tf.Tensor, image: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return image, tf.where(
            epoch == PADDING, tf.constant(records.IGNORED, mask.dtype), mask
        )

    ds = _decoded(dataset, examples, elements, image_size, ignored, stop)
    ds = ds.batch(batch_size, drop_remainder=True)
    return untuned(ds.prefetch(2))


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
