"""Which image belongs to which mask."""

import dataclasses
import os
from collections.abc import Container, Sequence

from trainer.defects import Defect

PICTURES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".webp"),
    *(".jpe", ".jfif"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Two folders, and how the files in them are named."""

    images: str
    masks: str  # May be the same where there is a suffix.
    image_suffix: str = ""  # What an image's name has after what both have in common.
    mask_suffix: str = ""
    masks_only: bool = False  # Whether images without mask are left out, not wrong.
    prefix: str = ""  # Of the stems, where there are several places.
    split: str | None = None  # That all of it belongs to, if it is one.


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    stem: str  # Its own: the prefix of its place, then the name.
    name: str  # Path of the image in its folder, without suffix and ending.
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


def readable(name: str | bytes) -> str:
    """Returns a file's name as it can be printed, bytes that are no UTF-8 escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _files(place: Place) -> tuple[list[str], list[str]]:
    """Returns the files of images and of masks, whose folder may be the same or below."""
    image_files, mask_files = files_in(place.images), files_in(place.masks)
    if os.path.realpath(place.images) == os.path.realpath(place.masks):
        suffix = place.mask_suffix
        is_mask = {f: os.path.splitext(f)[0].endswith(suffix) for f in image_files}
        mask_files = [file for file in image_files if is_mask[file]]
        return [file for file in image_files if not is_mask[file]], mask_files
    of_masks = {os.path.realpath(file) for file in mask_files}
    of_images = {os.path.realpath(file) for file in image_files}
    if of_images > of_masks:
        image_files = [f for f in image_files if os.path.realpath(f) not in of_masks]
    elif of_masks > of_images:
        mask_files = [f for f in mask_files if os.path.realpath(f) not in of_images]
    return image_files, mask_files


def _by_name(
    folder: str, files: Sequence[str], suffix: str, kind: str, defects: list[Defect]
) -> dict[str, str]:
    """Returns the files by their name without the suffix that all must have.

    `kind` is the defect of one that lacks it.
    """
    found: dict[str, str] = {}
    for file in files:
        path, ending = os.path.splitext(os.path.relpath(file, folder))
        name = path.replace(os.sep, "/").removesuffix(suffix)
        if ending.lower() not in PICTURES:
            shown = readable(file)
            defects.append(Defect("no picture", shown, "is left out", refused=False))
        elif readable(name) != name:
            defects.append(Defect("name not in UTF-8", readable(file), "rename it"))
        elif not path.endswith(suffix):
            defects.append(Defect(kind, file, f"its name lacks {suffix}"))
        elif name in found:
            what = f"has the same name as {found[name]}; rename one, its mask too"
            defects.append(Defect("duplicate name", file, what))
        else:
            found[name] = file
    return found


def find_pairs(
    place: Place, defects: list[Defect], wanted: Container[str] | None = None
) -> list[Pair]:
    """Returns the pairs of a place, in the order of their names.

    Args:
        place: Where they are.
        defects: What is wrong is added to it.
        wanted: Names that lists name; others are left out then.
    """
    image_files, mask_files = _files(place)
    suffixes = place.image_suffix, place.mask_suffix
    no_mask, no_image = "image without mask", "mask without image"
    images = _by_name(place.images, image_files, suffixes[0], no_mask, defects)
    masks = _by_name(place.masks, mask_files, suffixes[1], no_image, defects)
    for folder, found in ((place.images, images), (place.masks, masks)):
        if not found:
            defects.append(Defect("empty folder", folder, "holds no pictures"))
    if wanted is not None:
        images = {name: file for name, file in images.items() if name in wanted}
        masks = {name: file for name, file in masks.items() if name in wanted}
    if place.masks_only and wanted is None:
        images = {name: file for name, file in images.items() if name in masks}
    for name in sorted(images.keys() - masks.keys()):
        what = f"there is no {name}{place.mask_suffix}.* in {place.masks}"
        defects.append(Defect(no_mask, images[name], what, not place.masks_only))
    for name in sorted(masks.keys() - images.keys()):
        what = f"there is no {name}{place.image_suffix}.* in {place.images}"
        defects.append(Defect(no_image, masks[name], what))
    both = sorted(images.keys() & masks.keys())
    return [Pair(place.prefix + n, n, images[n], masks[n]) for n in both]
