"""Cuts the small real sample that ships in `trainer/assets` out of Oxford-IIIT Pet.

    python -m benchmarks.make_sample --data_dir=TFDS --output_dir=trainer/assets/sample

Every shard of the sample holds one example of each of the 37 breeds, so that any part
of it, a validation split cut from the heads of the shards too, has cats and dogs. Which
ones follows from a digest of their file names alone: the same sample whatever the order
or the shards of the source. Serialized examples are copied byte for byte.
"""

import argparse
import collections
import hashlib
import pathlib

import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import shards

DATASET = "oxford_iiit_pet"
SHARDS = {"train": 5, "test": 2}  # times 37 breeds: 185 and 74 examples
LICENSE = (
    "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/); the photographs "
    "remain their owners'"
)


def shards_by_class(serialized: list[bytes], num_shards: int) -> list[list[bytes]]:
    """Returns shards of one example per label each, chosen by digest of the file name.

    Args:
        serialized: `tf.train.Example`s with an int64 `label` and a `file_name`.
        num_shards: Number of shards; each label must have as many examples.

    Returns:
        One list of examples for each shard, in the order of the digests, which mixes
        the labels.

    Raises:
        ValueError: If a label has fewer than `num_shards` examples.
    """
    by_label = collections.defaultdict(list)
    for record in serialized:
        feature = tf.train.Example.FromString(record).features.feature
        name = feature["file_name"].bytes_list.value[0]
        digest = hashlib.sha256(name).digest()
        by_label[feature["label"].int64_list.value[0]].append((digest, record))
    for label, rows in sorted(by_label.items()):
        if len(rows) < num_shards:
            raise ValueError(
                f"each label needs {num_shards} examples, one for each shard, got "
                f"{len(rows)} of label {label}; ask for fewer shards"
            )
    columns = [sorted(rows) for rows in by_label.values()]
    rows_of = [sorted(rows) for rows in list(zip(*columns, strict=False))[:num_shards]]
    return [[record for _, record in rows] for rows in rows_of]


def make_sample(data_dir: str, output_dir: str) -> pathlib.Path:
    """Returns the folder of the sample, cut from the data set under `data_dir`."""
    source = tfds.builder(DATASET, data_dir=data_dir)
    directory = pathlib.Path(output_dir) / DATASET / str(source.info.version)
    splits = {}
    for split, num_shards in SHARDS.items():
        files = source.info.splits[split].filepaths
        records = tf.data.TFRecordDataset([str(path) for path in files])
        splits[split] = shards_by_class(list(records.as_numpy_iterator()), num_shards)
    shards.write_dataset(
        directory,
        DATASET,
        splits,
        source.info.features,
        description=source.info.description,
        citation=source.info.citation,
        homepage=source.info.homepage,
        supervised_keys=source.info.supervised_keys,
        license=LICENSE,
    )
    return directory


def main() -> None:
    """Cuts the sample, opens it, and prints what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help=f"TFDS folder with {DATASET}")
    parser.add_argument("--output_dir", required=True, help="TFDS folder to write")
    args = parser.parse_args()
    directory = make_sample(args.data_dir, args.output_dir)
    for name, split in tfds.builder_from_directory(directory).info.splits.items():
        print(f"{name}: {split.num_examples} examples, shards {split.shard_lengths}")
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{directory}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
