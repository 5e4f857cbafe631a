"""Makes a scaled copy of Oxford-IIIT Pet, on which the benchmarks run.

    python -m benchmarks.scale_dataset --data_dir=TFDS --output_dir=SMALL [--download]

Each photograph is scaled until its shorter side is 160 pixels (never up) and kept as
JPEG of quality 90, its trimap to the same size by nearest neighbour; all else is copied
as it is. `tfds.builder("oxford_iiit_pet", data_dir=SMALL)` opens the copy.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Iterator

import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import shards

DATASET = "oxford_iiit_pet"
JPEG_QUALITY = 90
NUM_SHARDS = 4


def scaled_size(height: tf.Tensor, width: tf.Tensor, shorter_side: int) -> tf.Tensor:
    """Returns (2,) int32: height and width with their shorter one as asked for."""
    size = tf.cast(tf.stack([height, width]), tf.float64)
    size = tf.round(size * (shorter_side / tf.reduce_min(size)))
    return tf.cast(size, tf.int32)


def scale(record: tf.Tensor, shorter_side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image and the mask of a serialized example, scaled, as file bytes.

    Args:
        record: () string, a `tf.train.Example`.
        shorter_side: Pixels; pictures whose shorter side has no more are kept.
    """
    feature = tf.io.FixedLenFeature((), tf.string)
    example = tf.io.parse_single_example(
        record, {"image": feature, "segmentation_mask": feature}
    )
    image_file, mask_file = example["image"], example["segmentation_mask"]
    image = tf.io.decode_image(image_file, channels=3, expand_animations=False)
    mask = tf.io.decode_image(mask_file, channels=1, expand_animations=False)
    shape = tf.shape(image)
    if tf.minimum(shape[0], shape[1]) > shorter_side:
        size = scaled_size(shape[0], shape[1], shorter_side)
        image = tf.image.resize(image, size, antialias=True)
        image = tf.saturate_cast(tf.round(image), tf.uint8)
        image_file = tf.io.encode_jpeg(image, quality=JPEG_QUALITY)
        mask_file = tf.io.encode_png(tf.image.resize(mask, size, method="nearest"))
    return image_file, mask_file


def scaled_records(files: list[str], shorter_side: int) -> Iterator[bytes]:
    """Yields the serialized examples of TFRecord files, scaled, in stored order."""
    records = tf.data.TFRecordDataset(files).map(
        lambda record: (record, *scale(record, shorter_side)), tf.data.AUTOTUNE
    )
    for record, image_file, mask_file in records.as_numpy_iterator():
        example = tf.train.Example.FromString(record)
        feature = example.features.feature
        feature["image"].bytes_list.value[:] = [image_file]
        feature["segmentation_mask"].bytes_list.value[:] = [mask_file]
        yield example.SerializeToString(deterministic=True)


def deal(records: list[bytes], num_shards: int) -> list[list[bytes]]:
    """Returns the records cut into shards whose lengths differ by one at most."""
    cuts = [len(records) * shard // num_shards for shard in range(num_shards + 1)]
    return [records[a:b] for a, b in itertools.pairwise(cuts)]


def scale_dataset(
    data_dir: str | None, output_dir: str, shorter_side: int, download: bool = False
) -> pathlib.Path:
    """Returns the folder of the scaled copy.

    Raises:
        ValueError: If the data set is not there, or the copy is already.
    """
    source = tfds.builder(DATASET, data_dir=data_dir, file_format="tfrecord")
    directory = pathlib.Path(output_dir) / DATASET / str(source.info.version)
    if directory.exists():
        raise ValueError(f"output_dir must not hold {DATASET} yet, got {directory}")
    if download:
        source.download_and_prepare()
    if not source.info.splits:
        raise ValueError(
            f"data_dir must hold {DATASET} {source.info.version}, got "
            f"{source.data_dir}; --download makes it there"
        )
    splits = {}
    for name, split in source.info.splits.items():
        files = [str(path) for path in split.filepaths]
        splits[name] = deal(list(scaled_records(files, shorter_side)), NUM_SHARDS)
    shards.write_dataset(
        directory,
        DATASET,
        splits,
        source.info.features,
        description=source.info.description,
        citation=source.info.citation,
        homepage=source.info.homepage,
        supervised_keys=source.info.supervised_keys,
    )
    return directory


def main() -> None:
    """Makes the copy, opens it, and prints what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", help=f"TFDS folder with {DATASET}; TFDS's own when absent")
    add("--output_dir", required=True, help="TFDS folder to write")
    add("--shorter_side", type=int, default=160, help="pixels")
    add("--download", action="store_true", help="let TFDS fetch what data_dir lacks")
    args = parser.parse_args()
    try:
        directory = scale_dataset(
            args.data_dir, args.output_dir, args.shorter_side, args.download
        )
    except ValueError as error:
        sys.exit(str(error))
    for name, split in tfds.builder_from_directory(directory).info.splits.items():
        print(f"{name}: {split.num_examples} examples, shards {split.shard_lengths}")
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{directory}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
