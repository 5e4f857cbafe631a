"""Makes a data set of another's examples, each several times: as large as is asked for."""

import itertools
import pathlib

import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import dataset, shards

NUM_SHARDS = 4


def write(source: pathlib.Path, data_dir: pathlib.Path, counts: dict[str, int]) -> None:
    """Writes a data set of the same name into another data directory.

    Args:
        source: Folder of the version, `<data_dir>/<dataset>/<version>`.
        data_dir: Where the new one is to be.
        counts: Examples of each split, taken in stored order, again and again.
    """
    info = tfds.builder_from_directory(source).info
    splits = {}
    for split, count in counts.items():
        files = [str(path) for path in info.splits[split].filepaths]
        stored = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
        lengths = dealt(count, min(NUM_SHARDS, count))
        endless = itertools.cycle(stored)
        splits[split] = [itertools.islice(endless, length) for length in lengths]
    told = (info.metadata or {}).get(dataset.METADATA)
    shards.write_dataset(
        data_dir / info.name / str(info.version),
        info.name,
        splits,
        info.features,
        description=f"{info.name}, each example several times.",
        metadata=tfds.core.MetadataDict({dataset.METADATA: told}) if told else None,
    )


def dealt(count: int, parts: int) -> list[int]:
    """Returns the lengths of the parts of a whole, which differ by one at most."""
    cuts = [count * part // parts for part in range(parts + 1)]
    return [b - a for a, b in itertools.pairwise(cuts)]
