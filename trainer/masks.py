"""What a picture file holds: an image's bytes, a mask's class ids.

Letters: H height, W width of a picture, pixels.
"""

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

IGNORED = 255  # Stored id of pixels that count nowhere.
IGNORED_NAME = "ignored"  # What a class map calls the colours of such pixels.
IMAGE_FORMATS = ("JPEG", "MPO", "PNG")  # Kept byte for byte; MPO is JPEG of phones.
MASK_FORMATS = ("PNG", "GIF", "TIFF", "BMP")
ORIENTATION = 0x0112  # EXIF tag.
# Pillow spreads grey of few bits over 0..255; ids must stay as they are.
GREY_STEPS = {"L;2": 85, "L;4": 17}
IDS_SHOWN = 6
# What Pillow's plugins raise for a damaged file.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError),
    *(MemoryError, TypeError, struct.error, zlib.error),
)
BLACK_AND_WHITE = {0x000000: 0, 0xFFFFFF: 1}


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the pixels of masks become class ids."""

    num_classes: int | None = None  # As many as occur when absent.
    offset: int = 0  # Added to a mask's id to get the class id.
    ignore_id: int = IGNORED  # As the masks have it.
    colours: dict[int, int] | None = None  # 0xRRGGBB -> class id or IGNORED.


def read_class_map(path: str) -> tuple[tuple[str, ...], dict[int, int]]:
    """Returns class names, in the order of the file, and the id of each 0xRRGGBB.

    Each line is `R,G,B name`; lines of one name are one class, the name `ignored` is for
    pixels that count nowhere.

    Raises:
        ValueError: If it is no text; names the line that is not so, or says which
            classes are too few.
    """
    names: list[str] = []
    colours: dict[int, int] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise ValueError(
            f"colors must be text in UTF-8, got {path}; save it so"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        triple, _, name = line.partition(" ")
        try:
            red, green, blue = (int(part) for part in triple.split(","))
            known = min(red, green, blue) >= 0 and max(red, green, blue) <= 255
        except ValueError:
            known = False
        colour = red << 16 | green << 8 | blue if known else -1
        if not known or not name.strip() or colour in colours:
            raise ValueError(
                "colors must have lines R,G,B NAME with each colour once, got "
                f"{line!r} in line {number} of {path}"
            )
        name = name.strip()
        if name != IGNORED_NAME and name not in names:
            names.append(name)
        colours[colour] = IGNORED if name == IGNORED_NAME else names.index(name)
    if len(names) < 2:
        raise ValueError(
            "colors must name at least two classes, in lines R,G,B NAME, got "
            f"{', '.join(names) or 'none'} in {path}"
        )
    return tuple(names), colours


def read_mask(path: str, coloured: bool) -> np.ndarray:
    """Returns a mask's pixels as its file has them.

    Args:
        path: A PNG, GIF, TIFF or BMP file.
        coloured: Whether colours, not ids, tell the classes.

    Returns:
        (H, W) integers, palette indices or grey values; (H, W, 3) uint8 if coloured.

    Raises:
        ValueError: If such a file tells no ids.
        OSError: If it cannot be read.
    """
    with Image.open(path) as picture:
        if picture.format not in MASK_FORMATS:
            raise ValueError(
                f"must be one of {', '.join(MASK_FORMATS)}, got {picture.format}, "
                "which may blur ids"
            )
        if getattr(picture, "n_frames", 1) > 1:
            raise ValueError("must be one picture, got several frames")
        raw = picture.tile[0][3] if picture.tile else None
        if (said := orientation(picture)) != 1:
            raise ValueError(
                f"has orientation {said}, by which some programs turn it and others do "
                "not; turn its pixels themselves, and leave the tag out"
            )
        picture.load()
        if coloured:
            return np.asarray(picture.convert("RGB"))
        if picture.mode in ("RGB", "RGBA", "LA"):
            pixels = np.asarray(picture.convert("RGB"))
            if (pixels != pixels[..., :1]).any():
                raise ValueError(
                    "is coloured; say which colour is which: --colors=FILE"
                )
            return pixels[..., 0].astype(np.int64)
        pixels = np.asarray(picture)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biu":
        raise ValueError(f"must hold ids, got pixels of mode {picture.mode}")
    raw = raw[0] if isinstance(raw, tuple) and raw else raw  # As TIFF's plugin has it.
    step = GREY_STEPS.get(raw, 1) if isinstance(raw, str) else 1
    return pixels.astype(np.int64) // step


def class_ids(stored: np.ndarray, rule: Rule) -> np.ndarray:
    """Returns (H, W) uint8: class ids, `IGNORED` where a pixel counts nowhere.

    Args:
        stored: What `read_mask` returned.
        rule: What its values mean.

    Raises:
        ValueError: Names the ids or colours that mean nothing.
    """
    if rule.colours is not None:
        packed = stored.astype(np.int64) @ (1 << 16, 1 << 8, 1)  # (H, W)
        keys = np.array(sorted(rule.colours))
        found = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
        wrong = keys[found] != packed
        if wrong.any():
            colours = np.unique(packed[wrong])[:IDS_SHOWN].tolist()
            shown = " ".join(f"{c >> 16},{c >> 8 & 255},{c & 255}" for c in colours)
            raise ValueError(f"has colours that the class map lacks: {shown}")
        return np.array([rule.colours[key] for key in keys.tolist()], np.uint8)[found]
    ignored = stored == rule.ignore_id
    ids = np.where(ignored, IGNORED, stored + rule.offset)
    high = (rule.num_classes or IGNORED) - 1
    wrong = ~ignored & ((ids < 0) | (ids > high))
    if wrong.any():
        unknown = np.unique(stored[wrong])[:IDS_SHOWN].tolist()
        one_high = unknown == [rule.num_classes] and not rule.offset
        raise ValueError(
            f"must have ids {-rule.offset}..{high - rule.offset} or {rule.ignore_id}, "
            f"ignored, got {', '.join(map(str, unknown))}"
            + ("; if ids start at 1, add --mask_offset=-1" if one_high else "")
        )
    return ids.astype(np.uint8)


def png(picture: Image.Image) -> bytes:
    """Returns a picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def open_image(data: bytes) -> tuple[Image.Image, int]:
    """Returns the picture of an image file, wholly read and upright, and its orientation.

    The orientation, 1 to 8, is what EXIF said: the picture is turned already.

    Raises:
        ValueError: If it is none of 8 bits a channel, or of 16 in a PNG.
        OSError: If it cannot be read.
    """
    picture = Image.open(io.BytesIO(data))
    said = orientation(picture)  # Before Pillow turns a TIFF, as it loads it.
    picture.load()
    if picture.mode[0] in "IF" and picture.format != "PNG":
        raise ValueError(
            f"must have 8 bits a channel, got pixels of mode {picture.mode}"
        )
    if said != 1:
        ImageOps.exif_transpose(picture, in_place=True)
    return picture, said


def orientation(picture: Image.Image) -> int:
    """Returns how EXIF says an image is to be turned, 1 to 8; 1 is upright."""
    said = picture.getexif().get(ORIENTATION)
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def is_kept(picture: Image.Image) -> bool:
    """Returns whether TensorFlow reads the file as it is."""
    return picture.format in IMAGE_FORMATS and picture.mode != "CMYK"


def stored_image(data: bytes, turn: bool) -> bytes:
    """Returns an image file as it is to be stored: as it is, or as PNG.

    Args:
        data: A file that `open_image` reads.
        turn: Whether one that EXIF turns is stored upright; else it is kept as it is.
    """
    picture, said = open_image(data)
    if is_kept(picture) and not (turn and said != 1):
        return data
    # The upper 8 bits count, as TensorFlow reads it; Pillow would clip.
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return png(picture.convert("RGB"))
