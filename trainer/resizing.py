"""Pictures to the model's size, and what it says of them back to their own.

Letters: H and W the picture's own height and width in pixels, S side of the model's
square input, C classes.
"""

import tensorflow as tf

AT_ONCE = 8  # Classes that are at a picture's own size at once.


def image(image: tf.Tensor, size: int) -> tf.Tensor:
    """Returns an image at the model's size, resized bilinearly, whatever its shape.

    Args:
        image: (H, W, 3) uint8, or N of one size, (N, H, W, 3).
        size: S, pixels.

    Returns:
        (S, S, 3) uint8, or (N, S, S, 3).
    """
    resized = tf.image.resize(image, (size, size), method="bilinear")
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def mask(mask: tf.Tensor, size: int) -> tf.Tensor:
    """Returns a mask at the model's size, by nearest neighbour: no id is invented.

    Args:
        mask: (H, W, 1) uint8 class ids.
        size: S, pixels.

    Returns:
        (S, S) uint8.
    """
    return tf.image.resize(mask, (size, size), method="nearest")[..., 0]


def probabilities(
    probabilities: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int
) -> tf.Tensor:
    """Returns probabilities at a picture's own size, resized bilinearly.

    Their argmax is the prediction there; resizing the prediction itself would leave
    stairs at each boundary.

    Args:
        probabilities: (S, S, C) float32.
        height: H.
        width: W.

    Returns:
        (H, W, C) float32.
    """
    return tf.image.resize(probabilities, (height, width), method="bilinear")


def ids(seen: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """Returns the class of each pixel: the argmax of its `probabilities`.

    A few classes at a time: a photograph's probabilities of many may not fit in memory.

    Args:
        seen: (S, S, C) float32, probabilities.
        height: H.
        width: W.

    Returns:
        (H, W) uint8.
    """
    classes = seen.shape[-1]
    ids = highest = None
    for first in range(0, classes, AT_ONCE):
        few = probabilities(seen[..., first : first + AT_ONCE], height, width)
        found = tf.argmax(few, -1, tf.int32) + first
        if classes > AT_ONCE:
            top = tf.reduce_max(few, -1)
            if highest is not None:  # Of equals the first class, as of argmax.
                found = tf.where(top > highest, found, ids)
                top = tf.maximum(top, highest)
            highest = top
        ids = found
    return tf.cast(ids, tf.uint8)
