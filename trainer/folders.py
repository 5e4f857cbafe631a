"""Which image belongs to which mask, and which pair to which split."""

import collections
import dataclasses
import hashlib
import os
import re
from collections.abc import Container, Mapping, Sequence

from trainer.defects import Defect

PICTURES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".webp"),
    *(".jpe", ".jfif"),
)
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    stem: str  # Path of the image in its folder, without the ending.
    image: str
    mask: str


def files_in(folder: str) -> list[str]:
    """Returns the paths of all files in a folder and below it; hidden ones left out."""
    found = []
    for directory, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        shown = (name for name in sorted(names) if not name.startswith("."))
        found += [os.path.join(directory, name) for name in shown]
    return found


def _files(images: str, masks: str, suffix: str) -> tuple[list[str], list[str]]:
    """Returns the files of images and of masks, whose folder may be the same or below."""
    image_files, mask_files = files_in(images), files_in(masks)
    if os.path.realpath(images) == os.path.realpath(masks):
        is_mask = {f: os.path.splitext(f)[0].endswith(suffix) for f in image_files}
        mask_files = [file for file in image_files if is_mask[file]]
        return [file for file in image_files if not is_mask[file]], mask_files
    of_masks = {os.path.realpath(file) for file in mask_files}
    of_images = {os.path.realpath(file) for file in image_files}
    if of_images > of_masks:
        return [
            f for f in image_files if os.path.realpath(f) not in of_masks
        ], mask_files
    if of_masks > of_images:
        return image_files, [
            f for f in mask_files if os.path.realpath(f) not in of_images
        ]
    return image_files, mask_files


def _by_stem(
    folder: str, files: Sequence[str], suffix: str, defects: list[Defect]
) -> dict[str, str]:
    """Returns the files by their stem without the suffix that all must have."""
    stems: dict[str, str] = {}
    for file in files:
        path, ending = os.path.splitext(os.path.relpath(file, folder))
        stem = path.replace(os.sep, "/").removesuffix(suffix)
        if ending.lower() not in PICTURES:
            defects.append(Defect("no picture", file, "is left out", refused=False))
        elif not path.endswith(suffix):
            defects.append(
                Defect("mask without image", file, f"its name lacks {suffix}")
            )
        elif stem in stems:
            what = f"has the same name as {stems[stem]}; rename one, its mask too"
            defects.append(Defect("duplicate name", file, what))
        else:
            stems[stem] = file
    return stems


def find_pairs(
    images: str,
    masks: str,
    suffix: str,
    defects: list[Defect],
    wanted: Container[str] | None = None,
    masks_only: bool = False,
) -> list[Pair]:
    """Returns the pairs of two folders, in the order of their stems.

    Args:
        images: Folder of the images.
        masks: Folder of the masks; may be the same where there is a suffix.
        suffix: What a mask's stem has after that of its image.
        defects: What is wrong is added to it.
        wanted: Stems that lists name; others are left out then.
        masks_only: Whether images without mask are left out, not wrong.
    """
    image_files, mask_files = _files(images, masks, suffix)
    image_of = _by_stem(images, image_files, "", defects)
    mask_of = _by_stem(masks, mask_files, suffix, defects)
    for folder, found in ((images, image_of), (masks, mask_of)):
        if not found:
            defects.append(Defect("empty folder", folder, "holds no pictures"))
    if wanted is not None:
        image_of = {stem: file for stem, file in image_of.items() if stem in wanted}
        mask_of = {stem: file for stem, file in mask_of.items() if stem in wanted}
    for stem in sorted(image_of.keys() - mask_of.keys()):
        if masks_only:
            break
        what = f"there is no {stem}{suffix}.* in {masks}"
        defects.append(Defect("image without mask", image_of[stem], what))
    for stem in sorted(mask_of.keys() - image_of.keys()):
        what = f"there is no {stem}.* in {images}"
        defects.append(Defect("mask without image", mask_of[stem], what))
    both = sorted(image_of.keys() & mask_of.keys())
    return [Pair(stem, image_of[stem], mask_of[stem]) for stem in both]


def read_lists(
    lists: Mapping[str, str], images: str, defects: list[Defect]
) -> dict[str, str]:
    """Returns the split of each stem that lists name, one a line, ending or not."""
    stems = {}
    for file in files_in(images):
        name = os.path.relpath(file, images).replace(os.sep, "/")
        stem = os.path.splitext(name)[0]
        stems[name] = stems[stem] = stem
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        with open(path, encoding="utf-8") as lines:
            names = [line.strip() for line in lines if line.strip()]
        if not names:
            defects.append(Defect("empty list", path, "names no image"))
        for name in names:
            stem = stems.get(name, "")
            if not stem:
                what = f"names {name}, which is not in {images}"
                defects.append(Defect("listed image absent", path, what))
            elif stem in split_of:
                what = f"names {name}, which is of {split_of[stem]} already"
                defects.append(Defect("listed twice", path, what))
            else:
                split_of[stem] = split
    return split_of


def groups(
    pairs: Sequence[Pair], pattern: str | None, defects: list[Defect]
) -> dict[str, str]:
    """Returns the group of each stem: what the pattern finds in it, else itself."""
    if pattern is None:
        return {pair.stem: pair.stem for pair in pairs}
    found = {}
    for pair in pairs:
        match = re.search(pattern, pair.stem)
        if match is None:
            what = f"--group={pattern} finds nothing in its name"
            defects.append(Defect("image of no group", pair.image, what))
        found[pair.stem] = match[match.re.groups and 1] if match else pair.stem
    return found


def rank(seed: int, name: str) -> str:
    """Returns a digest to sort by: a shuffle that new names do not disturb."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def cut(
    group_of: Mapping[str, str], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Returns the split of each stem: whole groups, as near the shares as these allow."""
    members = collections.defaultdict(list)
    for stem, group in group_of.items():
        members[group].append(stem)
    order = sorted(members, key=lambda group: rank(seed, group))
    split_of: dict[str, str] = {}
    for split, share in (("test", test_fraction), ("validation", val_fraction)):
        wanted = max(1, round(share * len(group_of))) if share else 0
        taken = 0
        while taken < wanted and order:
            stems = members[order.pop(0)]
            split_of.update(dict.fromkeys(stems, split))
            taken += len(stems)
    rest = [stem for group in order for stem in members[group]]
    return split_of | dict.fromkeys(rest, "train")


def leaks(
    pairs: Sequence[Pair], split_of: Mapping[str, str], group_of: Mapping[str, str]
) -> list[Defect]:
    """Returns a defect for each image whose group is of another split as well."""
    first: dict[str, Pair] = {}
    found = []
    for pair in pairs:
        other = first.setdefault(group_of[pair.stem], pair)
        here, there = split_of[pair.stem], split_of[other.stem]
        if here != there:
            what = f"is of {here}, {other.image} of the same group of {there}"
            found.append(Defect("group in two splits", pair.image, what))
    return found
