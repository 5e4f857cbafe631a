"""A stored example -> its image and its mask of class ids, or what is wrong with it.

Letters: S side of the model's square input, H and W a picture's own height and width.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from trainer import resizing
from trainer.dataset import Dataset
from trainer.examples import Examples

IGNORED = 255  # Class id of pixels that count nowhere.
# What reading a damaged file or example ends in.
ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
    tf.errors.UnknownError,
)


def decode(
    dataset: Dataset, serialized: tf.Tensor, image_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a stored example at the model's size: (S, S, 3) and (S, S) uint8."""
    image, stored = _checked(dataset, serialized)
    # Of fewer pixels: what is done to each of a mask's does not depend on the others.
    ids = _class_ids(dataset, resizing.mask(stored, image_size))
    return resizing.image(image, image_size), ids


def decode_whole(
    dataset: Dataset, serialized: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a stored example at its own size.

    Args:
        dataset: The data set, which tells the features and the ids.
        serialized: () string, as stored.

    Returns:
        Image (H, W, 3) uint8 and mask (H, W, 1) uint8: class ids, `IGNORED` where the
        data set says so.

    Raises:
        tf.errors.InvalidArgumentError: If it cannot be decoded, if the sizes differ
            or if an id is out of range; `explain` says which it is, and where.
    """
    image, stored = _checked(dataset, serialized)
    return image, _class_ids(dataset, stored)


def _checked(dataset: Dataset, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns image (H, W, 3) uint8 and mask (H, W, 1) of the ids that are stored.

    Raises:
        tf.errors.InvalidArgumentError: As `decode_whole` does.
    """
    example = dataset.features.deserialize_example(serialized)
    image, stored = example[dataset.image_feature], example[dataset.mask_feature]
    if stored.dtype in (tf.uint32, tf.uint64):
        stored = tf.cast(stored, tf.int64)  # The others are not resized.
    alike = tf.reduce_all(tf.shape(image)[:2] == tf.shape(stored)[:2])
    # Not tf.debugging: its branches cost more than what they look at.
    checks = [
        tf.raw_ops.Assert(condition=alike, data=["sizes differ"]),
        tf.raw_ops.Assert(condition=_in_range(dataset, stored), data=["unknown id"]),
    ]
    with tf.control_dependencies(checks):  # Or a wrong example could reach the cache.
        image, stored = tf.identity(image), tf.identity(stored)
    if image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    return image, stored


def _in_range(dataset: Dataset, stored: tf.Tensor) -> tf.Tensor:
    """Returns whether all stored ids, (H, W, 1), are of a class or ignored: () bool."""
    first = -dataset.mask_offset
    last = first + len(dataset.class_names) - 1

    def all_within(ids: tf.Tensor) -> tf.Tensor:
        # Row by row first: that of all pixels to one is ten times as slow.
        least, most = tf.reduce_min(ids, axis=1), tf.reduce_max(ids, axis=1)
        above = tf.reduce_min(tf.cast(least, tf.int32)) >= first
        return above & (tf.reduce_max(tf.cast(most, tf.int32)) <= last)

    within = all_within(stored)
    if dataset.ignore_id is None:
        return within

    def but_for_ignored() -> tf.Tensor:
        ids = tf.cast(stored, tf.int32)
        return all_within(tf.where(ids == dataset.ignore_id, first, ids))

    # Most masks have no ignored pixel, and need no slow look.
    return tf.cond(within, lambda: within, but_for_ignored)


def _class_ids(dataset: Dataset, stored: tf.Tensor) -> tf.Tensor:
    """Returns the class ids of stored ids, uint8 of the same shape."""
    ids = tf.cast(stored, tf.int32)
    classes = ids + dataset.mask_offset
    if dataset.ignore_id is not None:
        classes = tf.where(ids == dataset.ignore_id, IGNORED, classes)
    return tf.cast(classes, tf.uint8)


def explain(
    dataset: Dataset, examples: Examples, elements: Iterator[tuple[int, int, bytes]]
) -> None:
    """Reads on, one example after another, up to the one that cannot be used.

    TensorFlow's own message does not say which it was.

    Raises:
        ValueError: Names the file or the example and what is wrong with it. Nothing
            is raised where as many examples as the files hold are sound.
    """
    if examples.unreadable is not None:
        raise examples.unreadable
    logging.info("A step failed; looking for an example that would make it fail")
    for (id, _, serialized), _ in zip(elements, range(examples.total), strict=False):
        if not serialized:
            continue
        try:
            decode(dataset, tf.constant(serialized), 32)
            continue
        except (tf.errors.OpError, ValueError) as error:
            reason = str(getattr(error, "message", error)).splitlines()[0]
        try:
            example = dataset.features.deserialize_example(tf.constant(serialized))
        except (tf.errors.OpError, ValueError):
            raise ValueError(
                f"{examples.name(id)} cannot be decoded: {reason}"
            ) from None
        image = example[dataset.image_feature].numpy()
        mask = example[dataset.mask_feature].numpy()
        if image.shape[:2] != mask.shape[:2]:
            raise ValueError(
                f"{examples.name(id)} must have a mask of its image's size, got image "
                f"{image.shape[:2]} and mask {mask.shape[:2]}"
            )
        first = -dataset.mask_offset
        ids = range(first, first + len(dataset.class_names))
        wrong = set(np.unique(mask).tolist()) - {*ids, dataset.ignore_id}
        raise ValueError(
            f"{examples.name(id)} must have mask ids {ids[0]}..{ids[-1]}"
            f"{'' if dataset.ignore_id is None else f' or {dataset.ignore_id}'}, got "
            f"{sorted(wrong)[:10]}"
        )
