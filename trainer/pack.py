"""Sound pairs of image and mask as the shards of a TFDS data set."""

import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from trainer import checks, dataset, masks, shards, splits
from trainer.examine import Found
from trainer.preparation import Preparation

VERSION = "1.0.0"
SHARD_BYTES = 100 * 2**20  # Of images, in a shard; several are read at once.
FEWEST_SHARDS = 4
FEWEST_IN_SHARD = 10  # Training cuts a tenth of each for validation.

Dealt = dict[str, list[list[checks.Look]]]  # The shards of each split.


def write(settings: Preparation, found: Found, dealt: Dealt) -> str:
    """Returns the folder of the data set, written whole."""
    data_dir, name = settings.data_dir, settings.name
    assert data_dir and name
    features = _features(found.class_names)
    told = dict(
        image_feature="image",
        mask_feature="mask",
        mask_offset=0,
        class_names=list(found.class_names),
        ignore_id=masks.IGNORED,
    )
    with tqdm(total=len(found.looks), desc="writing", disable=None) as bar:
        records = {
            split: [_records(settings, found, shard, features, bar) for shard in parts]
            for split, parts in dealt.items()
        }

        def make(folder: pathlib.Path) -> pathlib.Path:
            shards.write_dataset(
                folder / VERSION,
                name,
                records,
                features,
                description="Images and masks of folders, written by trainer.prepare.",
                metadata=tfds.core.MetadataDict({dataset.METADATA: told}),
            )
            return folder / VERSION

        return shards.put_whole(data_dir, f"{name}/{VERSION}", make)


def _features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Returns what an example holds."""
    features = tfds.features
    mask = features.LabeledImage(
        labels=list(class_names), shape=(None, None, 1), encoding_format="png"
    )
    image = features.Image(shape=(None, None, 3))
    return features.FeaturesDict(
        {"file_name": features.Text(), "image": image, "mask": mask}
    )


def deal(settings: Preparation, found: Found) -> Dealt:
    """Returns the shards of each split, shuffled, their lengths alike but for one."""
    dealt = {}
    for split in splits.SPLITS:
        looks = [k for k in found.looks if found.split_of[k.pair.stem] == split]
        looks.sort(key=lambda k: splits.rank(settings.seed, k.pair.stem))
        asked = max(FEWEST_SHARDS, sum(k.num_bytes for k in looks) // SHARD_BYTES)
        asked = max(1, min(asked, len(looks) // FEWEST_IN_SHARD))
        n = min(settings.shards or asked, len(looks))
        cuts = [len(looks) * shard // n for shard in range(n + 1)] if n else []
        if looks:
            dealt[split] = [looks[a:b] for a, b in itertools.pairwise(cuts)]
    return dealt


def _records(
    settings: Preparation,
    found: Found,
    looks: Sequence[checks.Look],
    features: tfds.features.FeaturesDict,
    bar: tqdm,
) -> Iterator[bytes]:
    """Yields serialized examples, one after another: a folder may exceed the memory."""
    coloured = found.rule.colours is not None
    for pair in (seen.pair for seen in looks):
        with open(pair.image, "rb") as file:
            image = masks.stored_image(file.read(), settings.turn_images)
        ids = masks.class_ids(masks.read_mask(pair.mask, coloured), found.rule)
        name = os.path.relpath(pair.image, found.top).replace(os.sep, "/")
        example = dict(
            file_name=name, image=image, mask=masks.png(Image.fromarray(ids))
        )
        yield features.serialize_example(features.encode_example(example))
        bar.update()
