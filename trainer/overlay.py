"""Class ids as pictures: an indexed one, and one laid over the photograph.

Letters: H and W the picture's own height and width in pixels, C classes.
"""

import io

import numpy as np
from PIL import Image

SHARE = 0.45  # Of the class's colour, inside; what is photographed must stay visible.
LINE = 1 / 400  # Width of outlines on either side, over the shorter side.
QUALITY = 90  # Of JPEG.
LONGEST = 65500  # Side of a JPEG, pixels, that libjpeg writes: its JPEG_MAX_DIMENSION.


def indexed(ids: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Returns class ids as a picture of mode P: ids to programs, colours to people.

    Args:
        ids: (H, W) uint8, 0..C-1.
        colours: (C, 3) uint8.
    """
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(colours.tobytes())
    return picture


def blend(image: np.ndarray, mask: Image.Image) -> Image.Image:
    """Returns a photograph under the colours of its classes, their edges in full colour.

    Args:
        image: (H, W, 3) uint8.
        mask: Of `indexed`, H by W.
    """
    coloured = mask.convert("RGB")
    blended = Image.blend(Image.fromarray(image), coloured, SHARE)
    width = max(1, round(min(image.shape[:2]) * LINE))
    edge = Image.fromarray(edges(np.asarray(mask), width))
    return Image.composite(coloured, blended, edge)


def edges(ids: np.ndarray, width: int) -> np.ndarray:
    """Returns (H, W) bool: which pixels have another class within `width` pixels."""
    found = np.zeros(ids.shape, bool)
    for axis in (0, 1):
        near = np.moveaxis(found, axis, 0)  # A view: what is set here is set there.
        lines = np.moveaxis(ids, axis, 0)
        differs = lines[1:] != lines[:-1]
        for off in range(min(width, len(differs))):
            near[1 + off :] |= differs[: len(differs) - off]
            near[: len(differs) - off] |= differs[off:]
    return found


def jpeg(picture: Image.Image) -> bytes:
    """Returns a picture as a JPEG file; one that is too long for it is shrunk."""
    buffer = io.BytesIO()
    if (longest := max(picture.size)) > LONGEST:
        width, height = (
            max(1, round(side * LONGEST / longest)) for side in picture.size
        )
        picture = picture.resize((width, height))
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
