"""What a trained model says of a picture of any size: probabilities of each class.

Letters: N images in a batch, S side of the model's square input, H and W a picture's own
height and width in pixels, C classes.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer import resizing

Probabilities = Callable[[tf.Tensor], tf.Tensor]


def make_probabilities(
    model: keras.Model, *, flip: bool = False
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function from images to probabilities, at the model's size.

    Args:
        model: Image (N, S, S, 3) float32 -> logits (N, S, S, C).
        flip: Whether to take the mean over each image and its mirror image.

    Returns:
        Images (N, S, S, 3) uint8 -> (N, S, S, C) float32, whose argmax is the prediction.
    """

    def plain(image: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(model(tf.cast(image, tf.float32), training=False))

    # The last windows of a picture are fewer: any number of them is traced once.
    @tf.function(autograph=False, reduce_retracing=True)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        found = plain(image)
        if flip:
            found = (found + plain(image[:, :, ::-1])[:, :, ::-1]) / 2
        return found

    return probabilities


def slide(
    probabilities: Probabilities,
    image: np.ndarray,
    size: int,
    *,
    overlap: float = 0.5,
    batch_size: int = 16,
) -> tf.Tensor:
    """Returns the probabilities of an image that is seen window by window, unscaled.

    For pictures whose detail the model would lose at its own size, and for models that
    were trained on cuttings of that scale. Windows overlap; where they do, the mean
    weighs each by how near its centre is, so that no seam is seen. An image that is
    smaller than a window is enlarged for it.

    Args:
        probabilities: Of `make_probabilities`.
        image: (H, W, 3) uint8.
        size: S, side of a window, pixels.
        overlap: Share of a window's side that its neighbour covers too, at least.
        batch_size: N, windows at once.

    Returns:
        (H, W, C) float32.

    Source: nnU-Net, Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z,
    whose windows overlap by half and weigh more in the middle.
    """
    height, width = image.shape[:2]
    scale = max(1.0, size / min(height, width))
    seen = image
    if scale > 1:
        larger = [max(size, round(side * scale)) for side in (height, width)]
        resized = tf.image.resize(image, larger, method="bilinear")
        seen = np.clip(np.rint(resized.numpy()), 0, 255).astype(np.uint8)
    corners = [
        (top, left)
        for top in _starts(seen.shape[0], size, overlap)
        for left in _starts(seen.shape[1], size, overlap)
    ]
    ramp = 1.0 - np.abs(np.linspace(-1, 1, size + 2)[1:-1])  # Nowhere 0.
    weight = np.outer(ramp, ramp)[..., np.newaxis].astype(np.float32)  # (S, S, 1)
    total = np.zeros(1, np.float32)
    weights = np.zeros((*seen.shape[:2], 1), np.float32)
    for first in range(0, len(corners), batch_size):
        some = corners[first : first + batch_size]
        windows = np.stack([seen[y : y + size, x : x + size] for y, x in some])
        found = probabilities(tf.constant(windows)).numpy()
        if total.ndim == 1:
            total = np.zeros((*seen.shape[:2], found.shape[-1]), np.float32)
        for (y, x), of_window in zip(some, found, strict=True):
            total[y : y + size, x : x + size] += weight * of_window
            weights[y : y + size, x : x + size] += weight
    mean = tf.constant(total / weights)
    return resizing.probabilities(mean, height, width) if scale > 1 else mean


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """Returns where windows begin along a side: evenly, the last at its end."""
    stride = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // stride) + 1
    return np.linspace(0, length - size, count).round().astype(int).tolist()
