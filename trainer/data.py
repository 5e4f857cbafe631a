"""Which examples of a data set a run reads, in which order, and what it keeps of them."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from trainer import augment, order
from trainer.dataset import Dataset, Split
from trainer.examples import Examples

CACHE_SHARE = 0.25  # Of the memory that is free, what --cache=auto may take.
PADDING = -1  # In the place of the epoch: an example that fills a batch only.


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
            most `CACHE_SHARE` of what is free. Test is never kept.
        worker: Number of this worker.
        workers: How many share the examples.
        train_size: Of `train_size`; S when absent.
    """
    train_size = train_size or image_size
    num_pixels = len(dataset.train.ids) * train_size**2
    num_pixels += len(dataset.val.ids) * image_size**2
    fits = 4 * num_pixels <= CACHE_SHARE * _free_bytes()
    cached = cache == "memory" or cache == "auto" and fits

    def reader(split: Split, size: int | None, ids: np.ndarray) -> Examples:
        size = size if cached else None
        return Examples(split.files, split.file_lengths, size, ids)

    train, val = dataset.train, dataset.val
    if cached and val.files == train.files and train_size == image_size:
        both = np.concatenate([train.ids, val.ids])
        readers = dict.fromkeys(("train", "val"), reader(train, train_size, both))
    else:
        readers = {
            "train": reader(train, train_size, train.ids),
            "val": reader(val, image_size, val.ids),
        }
    if cached:
        of_train, of_val = (
            np.array_split(split.ids, workers)[worker] for split in (train, val)
        )
        readers["train"].want(_with_their_files(train, of_train))
        readers["val"].want(of_val)
    if dataset.test is not None:
        readers["test"] = reader(dataset.test, None, dataset.test.ids)
    return readers


def _free_bytes(groups: str = "/sys/fs/cgroup") -> int:
    """Returns how much memory this process can still have, of the machine's or its own.

    A container's limit is that of its control group, of Linux' version 2 or 1.
    """
    free = psutil.virtual_memory().available
    for limit, used, stat, inactive in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
            *("memory/memory.stat", "total_inactive_file"),
        ),
    ):
        try:
            most, taken, rows = (
                pathlib.Path(groups, name).read_text(encoding="ascii")
                for name in (limit, used, stat)
            )
            idle = dict(row.split() for row in rows.splitlines())[inactive]
            free = min(free, int(most) - int(taken) + int(idle))
        except (OSError, ValueError, KeyError):  # There is none, or it says "max".
            continue
    return max(free, 0)


def _with_their_files(split: Split, ids: np.ndarray) -> np.ndarray:
    """Returns all examples in the files of some.

    Of a file that workers share, each takes others in each epoch: it is read once if all
    of it is held back.
    """
    last = np.cumsum(split.file_lengths)
    touched = np.searchsorted(last, ids, side="right")
    return split.ids[np.isin(np.searchsorted(last, split.ids, side="right"), touched)]


def train_size(image_size: int, augmentation: dict[str, Any] | None) -> int:
    """Returns the side that training examples are decoded to."""
    if augmentation is None:
        return image_size
    return augment.source_size(image_size, augmentation["crop_scale_min"])


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
    want: bool = True,
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
        want: Whether to hold back those too that are passed on the way to others.
    """

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for taken in order.steps(
            split.shard_lengths, seed=seed, window=window, start=start, size=step_size
        ):
            epochs, positions = (order.part(p, worker, workers).ravel() for p in taken)
            yield epochs, split.ids[positions]

    for (epochs, ids), (next_epochs, next_ids) in itertools.pairwise(chunks()):
        newest = epochs.max(initial=0)
        late = epochs < newest
        # What the epoch before has left over was held back as its files were read, and is
        # taken before the same files are read for this epoch. Where a run goes on from
        # there it was not: then they are read for all of it at once.
        if want:
            examples.want(ids[late])
        before = {
            place: examples.serialized(int(ids[place]), keep)
            for place in np.flatnonzero(late).tolist()
        }
        if want:
            left_over = next_ids[next_epochs <= newest]
            examples.want(np.concatenate([ids[~late], left_over]))
        for place, id in enumerate(ids.tolist()):
            serialized = before.pop(place, None)
            if serialized is None:
                serialized = examples.serialized(id, keep)
            yield id, int(epochs[place]), serialized


def eval_elements(
    split: Split,
    examples: Examples,
    *,
    pad_to: int = 0,
    worker: int = 0,
    workers: int = 1,
    keep: bool = False,
    want: bool = True,
) -> Iterator[tuple[int, int, bytes]]:
    """Yields (id, 0, serialized) of each example of a worker, then padding.

    See `train_elements` for `keep` and `want`.
    """
    ids, serialized = np.array_split(split.ids, workers)[worker], b""
    if want:
        examples.want(ids)
    for id in ids.tolist():
        serialized = examples.serialized(id, keep)
        yield id, 0, serialized
    if len(ids) < pad_to:
        fill = int(ids[-1] if len(ids) else split.ids[0])
        if examples.cached or not len(ids):  # Else its file would be read once more.
            serialized = examples.serialized(fill)
        for _ in range(pad_to - len(ids)):
            yield fill, PADDING, serialized
