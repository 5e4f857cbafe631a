"""Looks at every picture of a folder before anything is written."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from trainer import masks
from trainer.defects import Defect
from trainer.folders import Pair

# What Pillow's plugins and TensorFlow raise for a damaged file.
UNREADABLE = (*masks.UNREADABLE, tf.errors.OpError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class Look:
    """What one pair holds."""

    pair: Pair
    digest: str  # Of the image's bytes.
    num_bytes: int
    pixels: np.ndarray  # (256,) int64, of each class id; the last are ignored.
    defects: tuple[Defect, ...]


def look(pair: Pair, rule: masks.Rule, turn: bool) -> Look:
    """Returns what a pair holds and what is wrong with it."""
    defects: list[Defect] = []
    data, size = b"", None
    try:
        with open(pair.image, "rb") as file:
            data = file.read()
    except OSError as error:
        defects.append(Defect("unreadable image", pair.image, _reason(error)))
    else:
        size = _image_size(pair, data, turn, defects)
    ids = _ids(pair, rule, defects)
    turned = any(
        defect.kind == "turned by EXIF" and defect.refused for defect in defects
    )
    if size and ids is not None and ids.shape != size and not turned:
        what = f"is {ids.shape[1]}x{ids.shape[0]}, its image {size[1]}x{size[0]}"
        defects.append(Defect("sizes differ", pair.mask, what))
    pixels = np.bincount(
        np.ravel(ids if ids is not None else []).astype(int), None, 256
    )
    return Look(
        pair,
        digest=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        pixels=pixels,
        defects=tuple(defects),
    )


def _image_size(
    pair: Pair, data: bytes, turn: bool, defects: list[Defect]
) -> tuple[int, int] | None:
    """Returns an image's height and width as it would be stored."""

    def tell(kind: str, what: str, refused: bool = False) -> None:
        defects.append(Defect(kind, pair.image, what, refused))

    if not data:
        tell("empty file", "holds no byte", refused=True)
        return None
    try:
        picture, orientation = masks.open_image(data)
        if masks.is_kept(picture):  # Each forgives what the other does not.
            tf.io.decode_image(data, channels=3)
    except UNREADABLE as error:
        tell("unreadable image", _reason(error), refused=True)
        return None
    width, height = picture.size
    if orientation != 1:
        if turn:
            tell("turned by EXIF", "is turned upright and stored as PNG")
            return height, width
        what = (
            f"has orientation {orientation}: its mask may be upright or not; turn the "
            "pixels themselves, or give --turn_images if all masks are upright"
        )
        tell("turned by EXIF", what, refused=True)
    if not masks.is_kept(picture):
        tell("image stored as PNG", f"is {picture.format} of mode {picture.mode}")
    if picture.mode in ("1", "L", "I;16"):
        tell("grey image", "is kept, and read as three channels alike")
    if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
        tell("image with alpha", "is kept, and read without its alpha channel")
    return height, width


def _ids(pair: Pair, rule: masks.Rule, defects: list[Defect]) -> np.ndarray | None:
    """Returns a mask's class ids, (H, W) uint8."""
    try:
        if not os.path.getsize(pair.mask):
            defects.append(Defect("empty file", pair.mask, "holds no byte"))
            return None
        stored = masks.read_mask(pair.mask, coloured=rule.colours is not None)
    except UNREADABLE as error:
        defects.append(Defect("unreadable mask", pair.mask, _reason(error)))
        return None
    try:
        return masks.class_ids(stored, rule)
    except ValueError as error:
        defects.append(Defect("unknown class", pair.mask, str(error)))
        return None


def _reason(error: Exception) -> str:
    """Returns what a plugin said, without the object in memory that it speaks of."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    text = re.sub(r"{{.*?}} ?| ?\[Op:.*\]", "", text)
    return text.partition(" <_io")[0].removesuffix(" file") or type(error).__name__


def look_at_all(pairs: Sequence[Pair], rule: masks.Rule, turn: bool) -> list[Look]:
    """Returns what each pair holds, in order; several are read at once."""
    one = functools.partial(look, rule=rule, turn=turn)
    pool = concurrent.futures.ThreadPoolExecutor()
    try:
        looks = pool.map(one, pairs)
        return list(tqdm(looks, "checking", len(pairs), unit=" pairs", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)  # Or Ctrl-C would wait for all of them.


def same_pictures(looks: Sequence[Look], split_of: Mapping[str, str]) -> list[Defect]:
    """Returns a defect for each image that is there already; within a split, a warning."""
    first: dict[str, Pair] = {}
    found = []
    for seen in looks:
        pair = seen.pair
        other = first.setdefault(seen.digest, pair)
        if other is pair or not seen.num_bytes:
            continue
        here, there = split_of.get(pair.stem), split_of.get(other.stem)
        if here == there:
            what = f"is the same as {other.image}"
            found.append(Defect("same image twice", pair.image, what, refused=False))
        else:
            what = f"of {here} is the same as {other.image} of {there}"
            found.append(Defect("same image in two splits", pair.image, what))
    return found


def classes(
    pixels: np.ndarray, class_names: Sequence[str], folder: str, rule: masks.Rule
) -> list[Defect]:
    """Returns what is wrong with the classes of all masks together.

    Args:
        pixels: (256,) int64, pixels of each class id in all masks.
        class_names: C names.
        folder: Of the masks.
        rule: How the ids came about.
    """
    way_out, first = "", int(np.flatnonzero(pixels).min(initial=255))
    if rule.colours is None and 0 < first < masks.IGNORED:
        start = first - rule.offset
        way_out = f"; if ids start at {start}, give --mask_offset={-start}"
    elif rule.colours is None and rule.ignore_id == 255 and pixels[masks.IGNORED]:
        way_out = "; if 255 means a class, give --colors=FILE"
    absent = [name for id, name in enumerate(class_names) if not pixels[id]]
    if len(absent) >= len(class_names) - 1:
        what = f"have pixels of {len(class_names) - len(absent)} class only{way_out}"
        return [Defect("fewer than two classes", folder, f"its masks {what}")]
    return [
        Defect("class without pixels", folder, f"no mask has {name}{way_out}", False)
        for name in absent
    ]
