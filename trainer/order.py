"""The order of training examples: a function of seed and epoch, of nothing else.

Each shard is shuffled by itself, whole or in a window, so that it can be read from
head to tail. Shards are dealt to streams, and the streams take turns: example by
example the first, the second, ..., those that are used up left out. Every reader can
compute this from the shards' lengths, and may then read the shards that are its own.
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
