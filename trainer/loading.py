"""Stored examples decoded on all cores, from the cache where they are.

Letters: S side of an image in pixels.
"""

import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from trainer import records
from trainer.dataset import Dataset
from trainer.examples import Examples

CORES = os.cpu_count() or 1
# Elements that TensorFlow takes from Python at once: each time costs a third of a
# millisecond, a fifth of what decoding a photograph of 0.2 megapixels does.
CHUNK = 8
# Chunks that lie ready: to know the first example of a shuffled shard, much of the shard is
# read, and decoding goes on meanwhile.
AHEAD = 8


def decoded(
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
