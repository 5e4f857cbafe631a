"""An image file's bytes -> its pixels, upright, as a run and an exported model see them.

Letters: H and W the picture's own height and width in pixels.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer import masks, terminal

# Read by TensorFlow, as examples of a data set are and as an exported model does.
# Another JPEG decoder, or another version, gives other pixels.
BY_TENSORFLOW = ("JPEG", "PNG", "GIF")
# Which TensorFlow does not read; of BMP only those of 24 bits, as Pillow does.
BY_PILLOW = ("BMP", "TIFF", "WEBP")


def decode(data: bytes) -> np.ndarray:
    """Returns the pixels of an image file, turned as EXIF says.

    Alpha is left out, grey becomes three equal channels, 16 bits become 8; of several
    frames the first counts.

    Args:
        data: A JPEG, PNG, GIF, BMP, TIFF or WebP file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: Says, in one line, why the file cannot be read.
    """
    if not data:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(data), formats=BY_TENSORFLOW + BY_PILLOW) as picture:
            by_pillow = picture.format in BY_PILLOW
            orientation = 1 if by_pillow else _orientation(picture)
        if by_pillow:
            upright, _ = masks.open_image(data)
            return np.asarray(upright.convert("RGB"))
        decoded = _by_tensorflow(data)
        return decoded if orientation == 1 else _turn(decoded, orientation)
    except UnidentifiedImageError:
        raise ValueError(
            "is no JPEG, PNG, GIF, BMP, TIFF or WebP, or its head is damaged"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError("has too many pixels") from None
    except ValueError:  # Says it in one line.
        raise
    except masks.UNREADABLE as error:
        raise ValueError(f"is damaged: {terminal.one_line(error)}") from None


def pixels(data: tf.Tensor) -> tf.Tensor:
    """Returns the pixels of a JPEG, PNG, GIF or BMP as the file has them.

    Alpha is left out, grey becomes three equal channels, a palette its colours, of 16 bits
    the upper 8 count; EXIF turns nothing. In a graph as well: it is what is served.

    Args:
        data: () string.

    Returns:
        (H, W, 3) uint8.

    Raises:
        tf.errors.InvalidArgumentError: If it is none of them, or damaged.
    """
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a picture (H, W, 3) upright, as Pillow turns those that it reads."""
    picture = Image.fromarray(image)
    picture.getexif()[masks.ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def _by_tensorflow(data: bytes) -> np.ndarray:
    """Returns (H, W, 3) uint8 as the file has it."""
    try:
        decoded = pixels(data)
    except tf.errors.InvalidArgumentError as error:
        reason = terminal.one_line(error).split(" [Op:")[0]
        raise ValueError(f"is damaged: {reason}") from None
    return decoded.numpy()


def _orientation(picture: Image.Image) -> int:
    """Returns how EXIF says to turn a picture; 1, upright, where it is unreadable."""
    try:
        return masks.orientation(picture)
    except masks.UNREADABLE:
        return 1  # Whether the pixels can be read is TensorFlow's to say.
