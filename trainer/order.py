"""The order of training examples: a function of seed and epoch, of nothing else.

Each shard is shuffled by itself, whole or in a window, so that it can be read from
head to tail. Shards are dealt to streams, and the streams take turns: example by
example the first, the second, ..., those that are used up left out.

Which examples a step takes follows from that alone. Within the step they are arranged
shard by shard, and each worker takes its part of the row: so with as many shards as
workers each reads shards of its own, but for a few heads where the parts do not fit.
"""

from collections.abc import Iterator, Sequence

import numpy as np

# More shards than this are read one after another, so that what is held back for
# shuffling, at most STREAMS * window examples, does not grow with the data.
STREAMS = 16


def epoch_order(
    lengths: Sequence[int], *, seed: int, epoch: int, window: int
) -> np.ndarray:
    """Returns the order of one epoch.

    Args:
        lengths: Training examples of each shard.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        window: Examples of a shard among which it is shuffled: example i is never
            taken before i - window others of its shard.

    Returns:
        (N,) int64 permutation of 0..N-1, which count the examples shard after shard.
    """
    # Uniform numbers of a Philox stream are the same in every version of NumPy;
    # Generator.permutation promises no such thing.
    random = np.random.Generator(np.random.Philox(key=[seed, epoch])).random
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    streams: list[list[np.ndarray]] = [[] for _ in range(min(STREAMS, len(lengths)))]
    for turn, shard in enumerate(np.argsort(random(len(lengths)), kind="stable")):
        length = lengths[shard]
        late = np.arange(length) / window if length > window else 0.0
        shuffled = np.argsort(late + random(length), kind="stable")
        streams[turn % len(streams)].append(first[shard] + shuffled)
    examples = [np.concatenate(stream) for stream in streams]
    turns = np.concatenate([np.arange(len(stream)) for stream in examples])
    return np.concatenate(examples)[np.argsort(turns, kind="stable")]


def endless(
    lengths: Sequence[int], *, seed: int, window: int, start: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (epoch, what is left of its order) for ever, from position `start` on.

    Step s of a run takes positions s * B .. (s + 1) * B - 1, B the global batch, so
    the position follows from the step, and no example is dropped at an epoch's end.
    """
    epoch, skip = divmod(start, sum(lengths))
    while True:
        yield epoch, epoch_order(lengths, seed=seed, epoch=epoch, window=window)[skip:]
        epoch, skip = epoch + 1, 0


def steps(
    lengths: Sequence[int], *, seed: int, window: int, start: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields what the steps take that end within an epoch, epoch after epoch, for ever.

    Args:
        lengths: Training examples of each shard.
        seed: Seed of the run.
        window: See `epoch_order`.
        start: Position of the first step's first example.
        size: Examples of a step.

    Yields:
        Epoch and example of each place, both (steps, size) int64. A step across the
        end of an epoch comes with the next one.
    """
    epochs = examples = np.empty(0, np.int64)
    last = np.cumsum(lengths)
    for epoch, taken in endless(lengths, seed=seed, window=window, start=start):
        epochs = np.concatenate([epochs, np.full(len(taken), epoch)])
        examples = np.concatenate([examples, taken])
        rows, left = divmod(len(examples), size)
        places = np.arange(rows * size).reshape(rows, size)
        for row in places if size > 1 else ():
            row[:] = row[_arranged(examples[row], last)]
        yield epochs[places], examples[places]
        epochs, examples = (a[len(a) - left :] for a in (epochs, examples))


def _arranged(examples: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Returns the places of a step's examples, shard by shard.

    In a shard, those near its head come at either end of its part: who takes a few of
    another's need not read far.
    """
    by_example = np.argsort(examples, kind="stable")
    shard = np.searchsorted(last, examples[by_example], side="right")
    first, end = (np.searchsorted(shard, shard, side) for side in ("left", "right"))
    turn = np.arange(len(shard)) - first
    place = np.where(turn % 2 == 0, first + turn // 2, end - 1 - turn // 2)
    arranged = np.empty_like(by_example)
    arranged[place] = by_example
    return arranged


def part(row: np.ndarray, worker: int, workers: int) -> np.ndarray:
    """Returns one worker's part of what is in the last axis, of which all get alike."""
    size = row.shape[-1] // workers
    return row[..., worker * size : (worker + 1) * size]


def times_read(
    lengths: Sequence[int], *, seed: int, window: int, size: int, workers: int
) -> float:
    """Returns how often workers together read an example in the first epoch.

    A worker reads a shard from its head to the last example that it takes.
    """
    first, last = np.cumsum(lengths) - np.asarray(lengths), np.cumsum(lengths)
    _, examples = next(steps(lengths, seed=seed, window=window, start=0, size=size))
    read = 0
    for worker in range(workers):
        taken = np.unique(part(examples, worker, workers))
        ends = np.searchsorted(taken, last)  # Of each shard's among them.
        read += sum(
            int(taken[end - 1]) + 1 - int(head)
            for head, begin, end in zip(first, [0, *ends[:-1]], ends, strict=True)
            if end > begin
        )
    return read / max(examples.size, 1)
