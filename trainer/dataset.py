"""What a TFDS data set is: where it lies, its features, its splits and its classes."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import terminal

PUBLIC_DIR = "gs://tfds-data/datasets"  # Where TFDS keeps prepared data sets for all.
SAMPLE_DIR = os.path.join(os.path.dirname(__file__), "assets", "sample")

# What TFDS' own data sets do not say: mask ids count from mask_offset, their names.
KNOWN: dict[str, dict[str, Any]] = {
    "oxford_iiit_pet": dict(
        image_feature="image",
        mask_feature="segmentation_mask",
        mask_offset=-1,
        class_names=("pet", "background", "border"),
        ignore_id=None,
    )
}
METADATA = "segmentation"  # Where other data sets may say so, in their metadata.json.


@dataclasses.dataclass(frozen=True)
class Split:
    """Some examples of a list of files."""

    name: str
    files: tuple[str, ...]
    file_lengths: tuple[int, ...]  # Examples in each file.
    ids: np.ndarray  # (n,) int64, ascending: those that belong to the split.
    num_bytes: int  # Of all examples in the files; 0 where it is not told.

    @property
    def shard_lengths(self) -> list[int]:
        """Returns how many of the split's examples each file holds."""
        last = np.cumsum(self.file_lengths)
        return np.diff(np.searchsorted(self.ids, last), prepend=0).tolist()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A segmentation data set and how to read its masks."""

    name: str
    version: str
    features: tfds.features.FeaturesDict  # Of the image and the mask only.
    image_feature: str
    mask_feature: str
    mask_offset: int
    class_names: tuple[str, ...]
    ignore_id: int | None
    train: Split
    val: Split
    test: Split | None


def open_dataset(
    name: str,
    *,
    data_dir: str | None,
    download: bool = False,
    image_feature: str | None = None,
    mask_feature: str | None = None,
    mask_offset: int | None = None,
    class_names: Sequence[str] | None = None,
    ignore_id: int | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str = "test",
    val_fraction: float = 0.1,
    limit_train_examples: int | None = None,
    limit_eval_examples: int | None = None,
) -> Dataset:
    """Returns the data set; reads its description, none of its examples.

    The arguments are the settings of the same names.

    Raises:
        ValueError: If it is not there, lacks a feature, a split or examples, or if
            its masks are not described.
    """
    info = _builder(name, data_dir or SAMPLE_DIR, download).info
    known = KNOWN.get(info.name) or _told(info)
    described: dict[str, Any] = dict(
        image_feature=image_feature or known.get("image_feature", "image"),
        mask_feature=mask_feature or known.get("mask_feature"),
        mask_offset=mask_offset
        if mask_offset is not None
        else known.get("mask_offset", 0),
        class_names=tuple(class_names or known.get("class_names", ())),
        ignore_id=ignore_id if ignore_id is not None else known.get("ignore_id"),
    )
    for setting in ("mask_feature", "class_names"):
        if not described[setting]:
            raise ValueError(
                f"{setting} must be given for {info.name}, whose masks are not known; "
                f"its features are {', '.join(sorted(info.features))}: give --{setting}=..."
            )
    train = _split(info, "train_split", train_split)
    val_split = val_split or next(
        (s for s in ("validation", "val") if s in info.splits), train_split
    )
    if val_split == train_split:
        train, val = _cut(train, val_fraction)
    else:
        val = _split(info, "val_split", val_split)
    if test_split == val_split:
        raise ValueError(
            f"test_split must be another than val_split, got {test_split} for both: "
            "nothing may be chosen on test; give --test_split=none or a --val_split"
        )
    test = None
    if test_split in info.splits or test_split not in ("test", "none"):
        test = _split(info, "test_split", test_split)
    return Dataset(
        name=info.name,
        version=str(info.version),
        features=_features(info, described["image_feature"], described["mask_feature"]),
        **described,
        train=limited(train, limit_train_examples),
        val=limited(val, limit_eval_examples),
        test=test and limited(test, limit_eval_examples),
    )


def is_there(name: str, data_dir: str) -> bool:
    """Returns whether a data directory holds a data set, in any version."""
    folder = name.split(":")[0]
    return any(
        tf.io.gfile.exists(os.path.join(data_dir, inside))
        for inside in (folder, "features.json")
    )


def stored_split(opened: Dataset, name: str) -> Split:
    """Returns all of a split as it is stored, whatever a run makes of it.

    Raises:
        ValueError: If the data set has none of that name, or an empty one.
    """
    folder = os.path.dirname(opened.train.files[0])
    return _split(tfds.builder_from_directory(folder).info, "split", name)


def check_asked(name: str, opened: Dataset) -> None:
    """Raises ValueError where a folder of one version holds another than is asked for.

    Its run would be kept under the name of another data set. Name and version are
    compared; a config is not.
    """
    try:
        asked, how = tfds.core.naming.parse_builder_name_kwargs(name)
        right = asked.name == opened.name
        if "version" in how:
            right &= tfds.core.Version(opened.version).match(how["version"])
    except ValueError:  # No name of TFDS.
        right = False
    if not right:
        folder = os.path.dirname(opened.train.files[0])
        raise ValueError(
            f"dataset must be that of the folder that data_dir names, got {name} with "
            f"{opened.name}:{opened.version} in {folder}; give --dataset={opened.name}"
        )


def limited(split: Split, limit: int | None) -> Split:
    """Returns the first examples of each shard, `limit` in all."""
    lengths = split.shard_lengths
    turns = np.concatenate([np.arange(length) for length in lengths])
    chosen = np.argsort(turns, kind="stable")[:limit]
    return dataclasses.replace(split, ids=split.ids[np.sort(chosen)])


def _builder(name: str, data_dir: str, download: bool) -> tfds.core.DatasetBuilder:
    """Returns the read-only door to a prepared data set."""
    if not download and not tf.io.gfile.isdir(data_dir):
        found = "a file" if tf.io.gfile.exists(data_dir) else "none"
        raise ValueError(
            f"data_dir must be a directory, got {data_dir}: there is {found}"
        )
    refused = (
        *(ValueError, AssertionError, tfds.core.dataset_info.json_format.ParseError),
        tfds.core.registered.DatasetNotFoundError,
    )
    try:
        if tf.io.gfile.exists(os.path.join(data_dir, "features.json")):
            builder = tfds.builder_from_directory(data_dir)
        else:
            builder = tfds.builder(name, data_dir=data_dir)
            if download:
                prepare(builder)
    except refused as error:
        raise ValueError(
            f"data_dir must hold the TFDS data set {name}, got {data_dir} with "
            f"{_listing(data_dir)}: {reason(error)}"
        ) from None
    if not builder.info.splits:
        raise ValueError(
            f"data_dir must hold the TFDS data set {name}, got {data_dir} with "
            f"{_listing(data_dir)}; prepare it there, or let --download do it"
        )
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"data_dir must hold {builder.name} in files of tfrecord, got "
            f"{builder.info.file_format.value}; prepare it anew with that file_format"
        )
    return builder


def prepare(builder: tfds.core.DatasetBuilder, **options: Any) -> None:
    """Has TFDS download and prepare a data set, with options of its own.

    Raises:
        OSError: If that fails, in whatever way.
    """
    try:
        builder.download_and_prepare(**options)
    except Exception as error:  # Of a builder's code, which is not ours.
        raise OSError(
            f"TFDS could not prepare {builder.name}: {reason(error)}"
        ) from error


def reason(error: Exception) -> str:
    """Returns what TFDS said, without what it was called with, which it puts in front."""
    return terminal.one_line(error).split('}": ')[-1].rstrip(".: ")


def _told(info: tfds.core.DatasetInfo) -> dict[str, Any]:
    """Returns what a data set itself says of its masks, as trainer.prepare writes it."""
    told = info.metadata.get(METADATA) if isinstance(info.metadata, dict) else None
    return told if isinstance(told, dict) else {}


def _listing(directory: str) -> str:
    """Returns the first few names in a directory, for a message."""
    names = sorted(tf.io.gfile.listdir(directory))
    shown = ", ".join(name.rstrip("/") for name in names[:5]) or "nothing"
    return shown + (", ..." if len(names) > 5 else "") + " in it"


def _features(
    info: tfds.core.DatasetInfo, image_feature: str, mask_feature: str
) -> tfds.features.FeaturesDict:
    """Returns the two features to decode, checked to be an image and a mask."""
    for setting, name in (("image", image_feature), ("mask", mask_feature)):
        if name not in info.features:
            raise ValueError(
                f"{setting}_feature must be a feature of {info.name}, got {name!r}; it "
                f"has {', '.join(sorted(info.features))}"
            )
    image, mask = info.features[image_feature], info.features[mask_feature]
    shape, dtype = _shape(image), image.np_dtype
    if len(shape) != 3 or shape[-1] not in (1, 3) or dtype != np.uint8:
        raise ValueError(
            "image_feature must be a picture of 1 or 3 channels of uint8, got "
            f"{image_feature!r} of shape {image.shape} and dtype "
            f"{getattr(dtype, '__name__', dtype)}"
        )
    shape, dtype = _shape(mask), mask.np_dtype
    if shape[2:] != (1,) or not np.issubdtype(dtype, np.integer):
        raise ValueError(
            f"mask_feature must be a picture of one channel of ids, got {mask_feature!r}"
            f" of shape {mask.shape} and dtype {getattr(dtype, '__name__', dtype)}"
        )
    if image_feature == mask_feature:
        raise ValueError(
            f"mask_feature must be another than image_feature, got {mask_feature!r} for "
            "both"
        )
    wanted = tfds.decode.PartialDecoding({image_feature: True, mask_feature: True})
    return wanted.extract_features(info.features)


def _shape(feature: tfds.features.FeatureConnector) -> tuple[int | None, ...]:
    """Returns a feature's shape; an empty one where it is made of several."""
    return feature.shape if isinstance(feature.shape, tuple) else ()


def _split(info: tfds.core.DatasetInfo, setting: str, name: str) -> Split:
    if name not in info.splits:
        raise ValueError(
            f"{setting} must be a split of {info.name}, got {name!r}; it has "
            f"{', '.join(info.splits)}"
        )
    split = info.splits[name]
    if not split.num_examples:
        raise ValueError(f"split {name!r} of {info.name} must hold examples, got none")
    files = tuple(map(str, split.filepaths))
    # One listing: asking for each file is a request each on a store of objects.
    present = set(tf.io.gfile.listdir(os.path.dirname(files[0])))
    for file in files:
        if os.path.basename(file) not in present:
            raise ValueError(f"{file} is missing; prepare or copy the data set again")
    return Split(
        name,
        files,
        tuple(split.shard_lengths),
        np.arange(split.num_examples),
        int(split.num_bytes),
    )


def _cut(split: Split, fraction: float) -> tuple[Split, Split]:
    """Returns train and validation, the latter from the head of each shard."""
    lengths = np.array(split.file_lengths)
    heads = (lengths * fraction + 0.5).astype(int)
    first = np.cumsum(lengths) - lengths
    in_head = split.ids - np.repeat(first, lengths) < np.repeat(heads, lengths)
    if not in_head.any() or in_head.all():
        raise ValueError(
            f"val_fraction must leave examples to both sides, got {fraction:g} of "
            f"{len(split.ids)} examples in {len(lengths)} shards"
        )
    train = dataclasses.replace(split, ids=split.ids[~in_head])
    return train, dataclasses.replace(split, ids=split.ids[in_head])
