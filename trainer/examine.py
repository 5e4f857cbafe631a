"""What folders of images and masks hold, and all that is wrong with it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from trainer import checks, config, defects, folders, masks
from trainer.preparation import Preparation

CARVANA_CLASSES = ("background", "car")
# Ids 0, 1, ... of Pascal VOC's masks, in the order of its development kit.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
    *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What the folders hold, sound or not."""

    looks: Sequence[checks.Look]
    pixels: np.ndarray  # (256,) int64, of each class id; the last are ignored.
    rule: masks.Rule
    class_names: Sequence[str]
    split_of: Mapping[str, str]
    defects: Sequence[defects.Defect]


def _rule(settings: Preparation) -> tuple[masks.Rule, tuple[str, ...] | None]:
    """Returns how masks are read, and the names of the classes where they are told."""
    by_layout = {"carvana": CARVANA_CLASSES, "voc": VOC_CLASSES}
    names = settings.class_names or by_layout.get(settings.layout)
    colours = None
    if settings.colors:
        told, colours = masks.read_class_map(settings.colors)
        if settings.class_names and set(told) != set(settings.class_names):
            raise ValueError(
                f"class_names must be those of colors, {','.join(told)}, got "
                f"{','.join(settings.class_names)}"
            )
        order = settings.class_names or told
        config.Config(class_names=order)
        colours = {
            colour: id if id == masks.IGNORED else order.index(told[id])
            for colour, id in colours.items()
        }
        names = order
    elif settings.layout == "carvana":
        colours = masks.BLACK_AND_WHITE
    rule = masks.Rule(
        num_classes=len(names) if names else None,
        offset=settings.mask_offset,
        ignore_id=settings.ignore_id,
        colours=colours,
    )
    return rule, names


def _lists(settings: Preparation) -> dict[str, str]:
    """Returns the file that names a split's images, of each split that has one."""
    paths = settings.train_list, settings.val_list, settings.test_list
    return {
        split: path for split, path in zip(folders.SPLITS, paths, strict=True) if path
    }


def examine(settings: Preparation) -> Found:
    """Returns what the folders hold and all that is wrong with it; writes nothing."""
    assert settings.images and settings.masks
    wrong: list[defects.Defect] = []
    rule, names = _rule(settings)
    suffix = settings.mask_suffix or ("_mask" if settings.layout == "carvana" else "")
    lists = _lists(settings)
    listed = folders.read_lists(lists, settings.images, wrong) if lists else None
    pairs = folders.find_pairs(
        settings.images,
        settings.masks,
        suffix,
        wrong,
        listed.keys() if listed is not None else None,
        masks_only=settings.layout == "voc",
    )
    group_of = folders.groups(pairs, settings.group, wrong)
    if listed is None:
        split_of = folders.cut(
            group_of, settings.val_fraction, settings.test_fraction, settings.seed
        )
    else:
        split_of = listed
        wrong += folders.leaks(pairs, split_of, group_of)
    if pairs and "train" not in {split_of[pair.stem] for pair in pairs}:
        what = "no image is left to train on"
        wrong.append(defects.Defect("empty train split", settings.images, what))
    looks = checks.look_at_all(pairs, rule, settings.turn_images)
    wrong += [defect for seen in looks for defect in seen.defects]
    wrong += checks.same_pictures(looks, split_of)
    pixels = sum((seen.pixels for seen in looks), np.zeros(256, np.int64))
    if names is None:
        top = int(np.flatnonzero(pixels[: masks.IGNORED]).max(initial=1))
        names = tuple(f"class_{id}" for id in range(top + 1))
    if pixels.any():
        wrong += checks.classes(pixels, names, settings.masks)
    return Found(looks, pixels, rule, names, split_of, wrong)
