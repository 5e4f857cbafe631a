"""Stored examples by id: read from the files of a split once, kept decoded on demand.

An id counts the examples of a split file after file, as they are stored.
"""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

READ_AHEAD = 16  # Serialized examples that each open file reads before it is asked.


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a stream without the thread that tunes it while it is read.

    That one sleeps for up to a minute between its looks, and who deletes the stream
    waits for it to wake, with Python's lock in hand: the whole program stood still.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


class Examples:
    """The examples of a list of TFRecord files.

    A file is read from head to tail; what is wanted later is held back, serialized,
    until it is used. With a cache, each example is read once, and decoded once where it
    is not asked for again within as many places as there are cores.

    Args:
        files: Paths, local or gs://.
        lengths: Number of examples in each file.
        cache_size: Side of the decoded squares to keep, pixels; keeps none if absent.
        kept: Ids of those that may be kept; all when absent.
    """

    def __init__(
        self,
        files: Sequence[str],
        lengths: Sequence[int],
        cache_size: int | None,
        kept: np.ndarray | None = None,
    ) -> None:
        self.files = files
        self._last = np.cumsum(lengths)
        self._first = self._last - lengths
        self.total = total = int(self._last[-1])
        self._wanted = np.zeros(total, bool)
        self._pending: dict[int, bytes] = {}
        self._open: dict[int, tuple[Iterator[bytes], int]] = {}
        self._lock = threading.Lock()
        self.unreadable: ValueError | None = None  # What `serialized` raised.
        self.cached = cache_size is not None
        if cache_size is not None:
            kept = np.arange(total) if kept is None else kept
            self._row = np.full(total, -1)
            self._row[kept] = np.arange(len(kept))
            # Memory is taken page by page, as examples come.
            self._images = np.empty((len(kept), cache_size, cache_size, 3), np.uint8)
            self._masks = np.empty((len(kept), cache_size, cache_size), np.uint8)
            self._held = np.zeros(total, bool)

    def want(self, ids: np.ndarray) -> None:
        """Says which examples to hold back when the reading passes them."""
        with self._lock:
            self._wanted[ids] = ~self._held[ids] if self.cached else True

    def serialized(self, id: int, keep: bool = False) -> bytes:
        """Returns an example as stored; empty where it is in the cache.

        Args:
            id: Its id.
            keep: Whether to hold it back for who asks next.

        Raises:
            ValueError: If its file is damaged or ends too early; names the file.
        """
        with self._lock:
            if self.cached and self._held[id]:
                return b""
            shard = int(np.searchsorted(self._last, id, side="right"))
            while id not in self._pending:
                self._wanted[id] = True
                try:
                    self._read_next(shard, id)
                except ValueError as error:
                    self.unreadable = error
                    raise
            record = self._pending[id]
            if not (self.cached or keep):
                self._drop(id)
            return record

    def put(self, id: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Keeps a decoded example: (S, S, 3) uint8 and (S, S) uint8."""
        row = self._row[id]
        self._images[row], self._masks[row] = image, mask
        with self._lock:
            self._held[id] = True
            self._drop(id)

    def get(self, id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a decoded example that `put` kept."""
        row = self._row[id]
        return self._images[row], self._masks[row]

    def name(self, id: int) -> str:
        """Returns how a person finds the example."""
        shard = int(np.searchsorted(self._last, id, side="right"))
        return f"example {id - self._first[shard]} of {self.files[shard]}"

    def _drop(self, id: int) -> None:
        self._wanted[id] = False
        self._pending.pop(id, None)

    def _read_next(self, shard: int, id: int) -> None:
        """Reads one more example of a file, from its head if it is behind `id`."""
        # Taken out until it is known to be sound: once it has failed, a reader only
        # says that it is at its end, and who asks why must start anew.
        records, next_id = self._open.pop(shard, (None, self._last[shard]))
        if records is None or next_id > id:
            dataset = tf.data.TFRecordDataset(self.files[shard]).prefetch(READ_AHEAD)
            records, next_id = untuned(dataset).as_numpy_iterator(), self._first[shard]
        try:
            record = next(records)
        except StopIteration:
            raise ValueError(
                f"{self.files[shard]} must hold {self._last[shard] - self._first[shard]}"
                f" examples as its dataset_info.json says, got "
                f"{next_id - self._first[shard]}; prepare the data set again"
            ) from None
        except tf.errors.OpError as error:
            raise ValueError(
                f"{self.files[shard]} cannot be read beyond example "
                f"{next_id - self._first[shard]}: {error.message.splitlines()[0]}"
            ) from None
        if self._wanted[next_id]:
            self._pending[int(next_id)] = record
        if self._wanted[next_id + 1 : self._last[shard]].any():
            self._open[shard] = records, next_id + 1
