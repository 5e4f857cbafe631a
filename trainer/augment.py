"""Changes an image and its mask together, at random but repeatably.

The result follows from the seed alone, so a resumed run, another number of
replicas or another order of reading sees the same pictures. Letters: S side in
pixels.
"""

import tensorflow as tf

# Each kind of change reads its own slots of one vector of draws, so that turning
# one on or off leaves the others as they were.
FLIP, SIDE, ASPECT, TOP, LEFT, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(9)

# Width to height of a crop, either way; Szegedy et al. 2014, arXiv:1409.4842,
# section 6.
ASPECT_MAX = 4 / 3


def source_size(size: int, crop_scale_min: float) -> int:
    """Returns the side, pixels, to keep examples at that crops are cut from.

    A crop of mean side then has about the pixels it is resized to: cut from less, it
    would be blurred as no example is that is judged, its mask's borders in stairs.

    Args:
        size: Side that crops are resized to, pixels.
        crop_scale_min: See `augment`.
    """
    return round(size / ((1 + crop_scale_min) / 2))


def example_seed(
    seed: int, epoch: int | tf.Tensor, example_id: int | tf.Tensor
) -> tf.Tensor:
    """Returns the seed of one example's augmentation in one epoch.

    Args:
        seed: The seed of the run.
        epoch: () int, passes over the training examples before this one.
        example_id: () int, the number of the example in its data set.

    Returns:
        (2,) int32, well mixed: neighbouring arguments give unrelated seeds.
    """
    run = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    mixed = tf.random.stateless_uniform((), run, None, None, tf.int64)
    one = tf.stack([mixed, tf.cast(example_id, tf.int64)])
    return tf.random.stateless_uniform((2,), one, None, None, tf.int32)


def augment(
    image: tf.Tensor,
    mask: tf.Tensor,
    seed: tf.Tensor,
    *,
    flip: bool,
    crop_scale_min: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the example as it might also have been photographed.

    What is off (False, 1.0 for the crop, 0.0 for the colours) adds no op.

    Args:
        image: (S, S, 3) uint8.
        mask: (S, S) int class ids, with 255 for an ignored pixel.
        seed: (2,) int32, see `example_seed`.
        flip: Whether to mirror left and right, half of the time.
        crop_scale_min: Least side of the crop, as a fraction of S in (0, 1].
        brightness: Most that is added or taken away, as a fraction of 255.
        contrast: Most by which the contrast factor differs from 1, in [0, 1].
        saturation: Most by which the saturation factor differs from 1, in [0, 1].
        hue: Most that the hue turns, as a fraction of the circle in [0, 0.5].
        size: Side that crops are resized to, pixels; S when absent.

    Returns:
        The image (S, S, 3) uint8 and its mask (S, S) of the dtype it had; the mask
        holds no value that it did not hold before.
    """
    crop = crop_scale_min < 1
    colours = bool(brightness or contrast or saturation or hue)
    if not (flip or crop or colours):
        return image, mask
    draws = tf.random.stateless_uniform((9,), seed)  # in [0, 1)
    if flip:
        # Ten times as fast as tf.where, which is slow to broadcast a condition.
        image, mask = tf.cond(
            draws[FLIP] < 0.5,
            lambda: (tf.reverse(image, [1]), tf.reverse(mask, [1])),
            lambda: (image, mask),
        )
    if not (crop or colours):
        return image, mask
    image = tf.cast(image, tf.float32)  # 0..255
    if crop:
        box = _crop_box(draws, crop_scale_min)
        size = size or image.shape[0]
        image = _resample(image, box, "bilinear", size)
        values = tf.cast(mask, tf.float32)[..., tf.newaxis]
        values = _resample(values, box, "nearest", size)
        mask = tf.cast(values[..., 0], mask.dtype)
    if colours:
        image = _recolour(image, draws, brightness, contrast, saturation, hue)
    return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8), mask


def _crop_box(draws: tf.Tensor, scale_min: float) -> tf.Tensor:
    """Returns a random box (4,) float32: top, left, bottom, right, in [0, 1]."""
    height = _between(scale_min, 1.0, draws[SIDE])
    narrowest = tf.maximum(scale_min, height / ASPECT_MAX)
    widest = tf.minimum(1.0, height * ASPECT_MAX)
    width = _between(narrowest, widest, draws[ASPECT])
    top = _between(0.0, 1 - height, draws[TOP])
    left = _between(0.0, 1 - width, draws[LEFT])
    return tf.stack([top, left, top + height, left + width])


def _resample(values: tf.Tensor, box: tf.Tensor, method: str, size: int) -> tf.Tensor:
    """Returns the box of (S, S, K) float32 values as (size, size, K)."""
    # One grid of points for image and mask: they cannot move against each other.
    # A box that rounding put past the edge would be filled with black.
    box = tf.clip_by_value(box, 0, 1)
    return tf.image.crop_and_resize(
        values[tf.newaxis], box[tf.newaxis], [0], (size, size), method
    )[0]


def _recolour(
    image: tf.Tensor,
    draws: tf.Tensor,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> tf.Tensor:
    """Returns the image (S, S, 3) float32 0..255 in other light, not clipped."""
    image = image / 255
    if brightness:
        image += _between(-brightness, brightness, draws[BRIGHTNESS])
    if contrast:
        factor = _between(1 - contrast, 1 + contrast, draws[CONTRAST])
        image = tf.image.adjust_contrast(image, factor)
    if saturation or hue:
        image = tf.clip_by_value(image, 0, 1)  # HSV is defined there only.
    if saturation:
        factor = _between(1 - saturation, 1 + saturation, draws[SATURATION])
        image = tf.image.adjust_saturation(image, factor)
    if hue:
        image = tf.image.adjust_hue(image, _between(-hue, hue, draws[HUE]))
    return image * 255


def _between(low: float | tf.Tensor, high: float | tf.Tensor, draw: tf.Tensor):
    """Returns the point between low and high that a draw in [0, 1) stands for."""
    return low + (high - low) * draw
