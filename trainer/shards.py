"""Examples written as a TFDS data set that opens from its files, without builder code."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import files

LAST = "dataset_info.json"  # Without it there is no data set.


def write_dataset(
    directory: pathlib.Path,
    dataset: str,
    splits: Mapping[str, Sequence[Iterable[bytes]]],
    features: tfds.features.FeaturesDict,
    **info: Any,
) -> None:
    """Writes serialized examples as a data set that `tfds.builder` opens from its files.

    Args:
        directory: Folder of the version, `<data_dir>/<dataset>/<version>`; it is made.
        dataset: Name of the data set.
        splits: For each split its shards, for each shard its serialized examples.
        features: What the examples hold.
        **info: What `tfds.core.DatasetInfo` takes: description, citation, license, ...
    """
    directory.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=dataset, filetype_suffix="tfrecord"
    )
    split_infos = []
    for split, shards in splits.items():
        split_infos.append(_write_split(template.replace(split=split), split, shards))
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=split_infos,
        filename_template=template,
        check_data=False,  # it prints; those who call open the result themselves
        **info,
    )


def _write_split(
    template: tfds.core.ShardedFileTemplate,
    name: str,
    shards: Sequence[Iterable[bytes]],
) -> tfds.core.SplitInfo:
    """Writes the files of a split, example by example; returns what they hold."""
    lengths, num_bytes = [], 0
    for index, shard in enumerate(shards):
        path = template.sharded_filepath(shard_index=index, num_shards=len(shards))
        lengths.append(0)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in shard:
                writer.write(record)
                lengths[-1] += 1
                num_bytes += len(record)
    return tfds.core.SplitInfo(
        name=name,
        shard_lengths=lengths,
        num_bytes=num_bytes,
        filename_template=template,
    )


def holds(data_dir: str, dataset: str) -> bool:
    """Returns whether a data directory holds anything of a data set."""
    path = os.path.join(data_dir, dataset)
    return bool(tf.io.gfile.isdir(path) and tf.io.gfile.listdir(path))


def put_whole(
    data_dir: str,
    name: str,
    make: Callable[[pathlib.Path], pathlib.Path],
    made_in: str | None = None,
) -> str:
    """Returns the path of a data set's folder, put there whole or not at all.

    Args:
        data_dir: A directory, local or gs://.
        name: Path of the folder in it, `<dataset>/<version>`; there is nothing yet.
        make: Is given an empty folder, and returns the one it made there.
        made_in: Where that is for a bucket; where the machine has it when absent.
    """
    target = os.path.join(data_dir, name)
    made = []
    if not files.remote(data_dir):
        # Renamed in the end, for which it must be on the same disk.
        made = [path for path in _above(target) if not path.exists()]
        made_in = data_dir
        os.makedirs(data_dir, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=made_in) as folder:
            written = make(pathlib.Path(folder))
            if files.remote(data_dir):
                files.upload(written, target, last=LAST)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.rename(written, target)
    except BaseException:
        for path in made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        raise
    return target


def _above(target: str) -> list[pathlib.Path]:
    """Returns the folders that lead to a path, the lowest first."""
    return list(pathlib.Path(os.path.abspath(target)).parents)
