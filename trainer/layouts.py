"""Where well-known data sets keep their images, masks, lists and classes."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping

from trainer.defects import Defect
from trainer.folders import PICTURES, Place, files_in
from trainer.splits import SPLITS

# For --help: the names that each layout expects.
EXPECTS = {
    "folders": "a mask is named like its image.",
    "carvana": "masks end in _mask, black is background and white is car.",
    "voc": "ids 0..20 of Pascal VOC, images without mask left out; of --root "
    "JPEGImages/NAME.jpg, SegmentationClass/NAME.png, "
    "ImageSets/Segmentation/train.txt, val.txt.",
    "oxford": "Oxford-IIIT Pet's archives in --root: images/NAME.jpg, "
    "annotations/trimaps/NAME.png of ids 1..3, annotations/trainval.txt, test.txt.",
    "nnunet": "an nnU-Net data set in --root: imagesTr/CASE_0000.png, "
    "labelsTr/CASE.png, dataset.json; imagesTs and labelsTs, if both are there, are "
    "test.",
    "mmseg": "MMSegmentation's folders in --root: img_dir/SPLIT/NAME.jpg and "
    "ann_dir/SPLIT/NAME.png, SPLIT being train, val, test.",
}
ROOTED = ("oxford", "nnunet", "mmseg")  # All is found in the root.
MAY_BE_ROOTED = ("voc", *ROOTED)
SPLIT_IN_FOLDERS = ("nnunet", "mmseg")
CLASSES: dict[str, tuple[str, ...]] = {
    "carvana": ("background", "car"),
    # Ids 0, 1, ... in the order of the development kit.
    "voc": (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"),
        *("car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
        *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    "oxford": ("pet", "background", "border"),
}
# Images, masks and the list of each split, in the root.
FOLDERS = {
    "voc": ("JPEGImages", "SegmentationClass"),
    "oxford": ("images", "annotations/trimaps"),
}
LISTS = {
    "voc": {
        "train": "ImageSets/Segmentation/train.txt",
        "validation": "ImageSets/Segmentation/val.txt",
    },
    "oxford": {"train": "annotations/trainval.txt", "test": "annotations/test.txt"},
}
MMSEG_SPLITS = dict(zip(("train", "val", "test"), SPLITS, strict=True))
CHANNEL = "_0000"
NAMED_CHANNEL = re.compile(r"_\d{4}$")
IGNORE = "ignore"  # nnU-Net's label of pixels that count nowhere.


@dataclasses.dataclass(frozen=True)
class Source:
    """Where pictures are, and what is known of their classes and splits."""

    top: str  # Folder of all images.
    places: tuple[Place, ...]
    class_names: tuple[str, ...] | None = None
    mask_offset: int = 0  # Added to a mask's id to get the class id.
    ignore_id: int | None = None  # As the masks have it.
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Of splits.


def of_folders(layout: str, images: str, masks: str, suffix: str | None) -> Source:
    """Returns the source of two folders; `suffix` is what a mask's name has more."""
    place = Place(
        images,
        masks,
        mask_suffix=suffix or ("_mask" if layout == "carvana" else ""),
        masks_only=layout == "voc",
    )
    offset = -1 if layout == "oxford" else 0
    return Source(images, (place,), CLASSES.get(layout), offset)


def of_root(
    layout: str, root: str, suffix: str | None, listed: bool, defects: list[Defect]
) -> Source:
    """Returns the source of a folder with the folders of a layout in it.

    Args:
        layout: One of `MAY_BE_ROOTED`.
        root: The folder.
        suffix: What a mask's name has more than its image's.
        listed: Whether the user has lists of the splits.
        defects: What is left out is added to it.

    Raises:
        ValueError: If something is not there, or not what the layout expects.
    """
    if layout == "nnunet":
        return _nnunet(root)
    if layout == "mmseg":
        return _mmseg(root, suffix or "", defects)
    images, masks = (_there(layout, root, name) for name in FOLDERS[layout])
    source = of_folders(layout, images, masks, suffix)
    if listed:
        return source
    lists = {split: _there(layout, root, p) for split, p in LISTS[layout].items()}
    return dataclasses.replace(source, lists=lists)


def _there(layout: str, root: str, name: str) -> str:
    """Returns the path of what the root must hold."""
    path = os.path.join(root, *name.split("/"))
    if not os.path.exists(path):
        raise ValueError(
            f"root must hold {name}, as layout {layout} has it, got {root} without it"
        )
    return path


def _mmseg(root: str, suffix: str, defects: list[Defect]) -> Source:
    """Returns the source of img_dir and ann_dir: a place for each split."""
    top = _there("mmseg", root, "img_dir")
    places = []
    for name, split in MMSEG_SPLITS.items():
        if name == "train":
            _there("mmseg", root, "img_dir/train")
            _there("mmseg", root, "ann_dir/train")
        images = os.path.join(top, name)
        masks = os.path.join(root, "ann_dir", name)
        if os.path.isdir(images) and os.path.isdir(masks):
            place = Place(
                images, masks, mask_suffix=suffix, prefix=f"{name}/", split=split
            )
            places.append(place)
        elif os.path.isdir(images):
            what = f"is left out: there is no {masks}"
            defects.append(Defect("split without masks", images, what, refused=False))
        elif os.path.isdir(masks):
            what = f"there is no {images}"
            defects.append(Defect("split without images", masks, what))
    return Source(top, tuple(places))


def _nnunet(root: str) -> Source:
    """Returns the source of imagesTr and labelsTr, and of imagesTs and labelsTs."""
    path = _there("nnunet", root, "dataset.json")
    names, ignore_id = _nnunet_classes(path)
    has_test = os.path.isdir(os.path.join(root, "labelsTs"))
    places = []
    for name, split in {"Tr": "train", "Ts": "test"}.items():
        if name == "Ts" and not has_test:
            continue
        images = _there("nnunet", root, f"images{name}")
        masks = _there("nnunet", root, f"labels{name}")
        for file in (*files_in(images), *files_in(masks)):
            _check_nnunet(file, is_image=file.startswith(images))
        place = Place(
            images,
            masks,
            image_suffix=CHANNEL,
            prefix=f"{name}/",
            split=split if has_test else None,
        )
        places.append(place)
    return Source(root, tuple(places), names, ignore_id=ignore_id)


def _check_nnunet(file: str, is_image: bool) -> None:
    """Raises ValueError if a file is no picture of the only channel."""
    stem, ending = os.path.splitext(file)
    if ending.lower() not in PICTURES:
        raise ValueError(
            f"layout nnunet must have pictures, such as PNG, got {file}; write the slices "
            "of volumes as pictures first"
        )
    channel = NAMED_CHANNEL.search(stem)
    if is_image and channel and channel[0] != CHANNEL:
        raise ValueError(
            f"layout nnunet must have one file for each case, CASE{CHANNEL}, got {file}; "
            "write a case's channels as one RGB picture"
        )


def _nnunet_classes(path: str) -> tuple[tuple[str, ...], int | None]:
    """Returns the classes that a dataset.json names, and the ignored id if any."""
    rule = (
        'labels must name ids from 0 on, as in {"background": 0, "cell": 1}, the highest '
        f'may be "{IGNORE}", in {path}'
    )
    try:
        with open(path, encoding="utf-8") as file:
            labels = json.load(file)["labels"]
        ids = {name: labels[name] for name in labels}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{rule}: {type(error).__name__} {error}") from None
    ignore_id = ids.pop(IGNORE, None)
    known = {id: name for name, id in ids.items() if type(id) is int}
    if sorted(known) != list(range(len(ids))) or ignore_id not in (None, len(ids)):
        raise ValueError(f"{rule}, got {json.dumps(labels)}")
    return tuple(known[id] for id in range(len(ids))), ignore_id
