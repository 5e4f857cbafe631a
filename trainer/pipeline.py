"""Photographs through a model: read ahead of it and written behind it, in threads.

Letters: N images in a batch, S side of the model's square input, H and W a picture's own
height and width in pixels, C classes.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from trainer import decoding, inference, resizing, terminal
from trainer.photographs import Photograph

THREADS = 16  # At most; each may hold a photograph and its probabilities.
Item = TypeVar("Item")
Made = TypeVar("Made")
Seen = TypeVar("Seen")
Written = TypeVar("Written")


@dataclasses.dataclass(frozen=True)
class Read:
    """A photograph in memory."""

    photograph: Photograph
    image: np.ndarray  # (H, W, 3) uint8, upright.
    small: tf.Tensor  # (S, S, 3) uint8.


Look = Callable[
    [list[Read]], Iterator[tf.Tensor]
]  # N of them -> N of (?, ?, C) float32.
Write = Callable[[Read, tf.Tensor], Any]
Skip = Callable[[Photograph, str], None]


def whole(probabilities: inference.Probabilities, batch_size: int) -> Look:
    """Returns how photographs are looked at, all of each at once.

    Args:
        probabilities: Of `inference.make_probabilities`.
        batch_size: N. A smaller batch is filled up: another shape would have to be
            traced anew, for a second.
    """

    def look(reads: list[Read]) -> Iterator[tf.Tensor]:
        small = [read.small for read in reads]
        filled = small + small[:1] * (batch_size - len(small))
        yield from probabilities(tf.stack(filled))[: len(reads)]

    return look


def slide(
    probabilities: inference.Probabilities, size: int, overlap: float, batch_size: int
) -> Look:
    """Returns how photographs are looked at, each window by window at its own scale."""

    def look(reads: list[Read]) -> Iterator[tf.Tensor]:
        for read in reads:
            yield inference.slide(
                probabilities, read.image, size, overlap=overlap, batch_size=batch_size
            )

    return look


# Of `slide`, to be written: each has the probabilities at a photograph's own size.
WAITING = 1


class Unwritable(Exception):
    """What is made of one photograph cannot be written; that of others may be."""


def run(
    photographs: Iterable[Photograph],
    size: int,
    batch_size: int,
    look: Look,
    write: Write,
    skip: Skip,
    waiting: int | None = None,
) -> Iterator[Any]:
    """Yields, in order, what `write` returns of each photograph that it can write.

    Args:
        photographs: Of `photographs.find`.
        size: S, pixels.
        batch_size: N.
        look: Returns probabilities, in this thread.
        write: Makes of a photograph and them what is asked for, in several threads; may
            raise Unwritable.
        skip: Told each photograph that cannot be read or written, and why; in this
            thread.
        waiting: See `flow`.
    """

    def written(pair: tuple[Read, tf.Tensor]) -> tuple[Any, str | None]:
        try:
            return write(*pair), None
        except Unwritable as error:
            return pair[0].photograph, str(error)

    for made, why in flow(
        photographs,
        lambda photograph: _read(photograph, size),
        lambda reads: _looked_at(_readable(reads, skip), batch_size, look),
        written,
        waiting,
    ):
        if why is None:
            yield made
        else:
            skip(made, why)


def flow(
    items: Iterable[Item],
    read: Callable[[Item], Made],
    look: Callable[[Iterator[Made]], Iterable[Seen]],
    write: Callable[[Seen], Written],
    waiting: int | None = None,
) -> Iterator[Written]:
    """Yields what becomes of each item, in order; few of them are under way at once.

    Args:
        items: Taken in this thread.
        read: Makes one ready, in several threads.
        look: Makes of those what is to be written, in this thread.
        write: Makes of each of these what is wanted, in several threads.
        waiting: How many of these may wait for their turn; so many that no thread has to
            wait when absent.
    """
    threads = min(THREADS, os.cpu_count() or 1)
    depth = 2 * threads  # Enough that no thread waits; more would only fill memory.
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        seen = look(_ahead(pool, read, items, depth))
        yield from _ahead(pool, write, seen, waiting or depth)
    finally:
        pool.shutdown(cancel_futures=True)


def batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yields so many items at once; the last may be fewer."""
    turns = iter(items)
    while batch := list(itertools.islice(turns, batch_size)):
        yield batch


def ids_of(read: Read, probabilities: tf.Tensor) -> np.ndarray:
    """Returns the class ids (H, W) uint8 of a photograph.

    Args:
        read: The photograph.
        probabilities: (?, ?, C) float32 of a `Look`, not yet at its size.
    """
    with tf.device("CPU"):
        return resizing.ids(probabilities, *read.image.shape[:2]).numpy()


def _read(photograph: Photograph, size: int) -> Read | tuple[Photograph, str]:
    """Returns a photograph in memory, or why it cannot be."""
    try:
        with tf.io.gfile.GFile(photograph.path, "rb") as file:
            image = decoding.decode(file.read())
        with tf.device("CPU"):
            return Read(photograph, image, resizing.image(image, size))
    except Exception as error:
        if not terminal.expected(error):
            raise
        return photograph, terminal.one_line(error)


def _readable(
    reads: Iterable[Read | tuple[Photograph, str]], skip: Skip
) -> Iterator[Read]:
    for read in reads:
        if isinstance(read, Read):
            yield read
        else:
            skip(*read)


def _looked_at(
    reads: Iterable[Read], batch_size: int, look: Look
) -> Iterator[tuple[Read, tf.Tensor]]:
    """Yields each photograph with what the model says of it."""
    for batch in batches(reads, batch_size):
        yield from zip(batch, look(batch), strict=True)


def _ahead(
    pool: concurrent.futures.Executor,
    make: Callable[[Item], Made],
    items: Iterable[Item],
    depth: int,
) -> Iterator[Made]:
    """Yields what is made of each item, in order, up to `depth` of them under way."""
    under_way: collections.deque[concurrent.futures.Future[Made]] = collections.deque()
    for item in items:
        under_way.append(pool.submit(make, item))
        if len(under_way) > depth:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
