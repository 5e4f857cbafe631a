"""Stored examples one by one through a model, and what each adds to a split's metrics.

Letters: H and W an example's own height and width in pixels, S side of the model's square
input, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer import boundaries, data, inference, metrics, pipeline, records, resizing
from trainer.dataset import Dataset, Split
from trainer.examples import Examples
from trainer.photographs import Photograph

NAMES = ("file_name", "filename", "image/filename", "image_id", "id", "name")


@dataclasses.dataclass(frozen=True)
class Example:
    """A stored example in memory."""

    read: pipeline.Read  # Its image at the size at which it is judged.
    mask: np.ndarray  # (H, W) uint8 class ids or `records.IGNORED`, of that size.


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a model makes of an example."""

    example: Example
    prediction: np.ndarray  # (H, W) uint8 class ids.
    confusion: np.ndarray  # (C, C) int64, see `metrics.confusion_matrix`.
    boundary: np.ndarray  # (C, 4) int64, see `boundaries.counts`.


Look = Callable[[list[Example]], Iterator[np.ndarray]]  # Their class ids, (H, W) uint8.


def look(
    model: keras.Model,
    size: int,
    batch_size: int,
    *,
    at: int | None,
    flip: bool = False,
    slide: bool = False,
    overlap: float = 0.5,
) -> Look:
    """Returns how examples are looked at.

    Args:
        model: Image (N, S, S, 3) float32 -> logits (N, S, S, C).
        size: S, pixels.
        batch_size: N, images or windows at once; no prediction depends on it.
        at: Side of predictions, pixels; the examples' own size when None. Where it is
            not S, probabilities are resized bilinearly, then the likeliest class is
            taken.
        flip: Whether to take the mean over each image and its mirror image.
        slide: Whether to look window by window, unscaled; else at all of it at once.
        overlap: Share of a window that its neighbour covers too, at least.
    """
    see = inference.make_probabilities(model, flip=flip)
    if at == size and not flip:
        # As a run judges itself. Probabilities may be equal where logits are not quite.
        see = tf.function(
            lambda image: model(tf.cast(image, tf.float32), training=False),
            autograph=False,
        )
    seen = pipeline.whole(see, batch_size)
    if slide:
        seen = pipeline.slide(see, size, overlap, batch_size)

    def looked(examples: list[Example]) -> Iterator[np.ndarray]:
        reads = [example.read for example in examples]
        for read, one in zip(reads, seen(reads), strict=True):
            yield pipeline.ids_of(read, one)

    return looked


def run(
    opened: Dataset,
    split: Split,
    look: Look,
    size: int,
    batch_size: int,
    *,
    at: int | None,
) -> Iterator[Scored]:
    """Yields each example of a split as the model sees it, in stored order.

    Few are in memory at once, and the probabilities of one.

    Args:
        opened: The data set.
        split: One of its splits.
        look: Of the function of this name, for the same size.
        size: S, pixels.
        batch_size: N.
        at: Side, pixels, that examples are resized to before they are judged, whatever
            the model sees; None leaves them at their own size.

    Raises:
        ValueError: If an example is damaged; names it.
    """
    examples = Examples(split.files, split.file_lengths, None)
    num_classes = len(opened.class_names)
    decode = tf.function(
        functools.partial(records.decode_whole, opened),
        input_signature=[tf.TensorSpec((), tf.string)],
        autograph=False,
    )

    def read(element: tuple[int, int, bytes]) -> Example:
        id, _, serialized = element
        place = Photograph(examples.name(id), file_name(serialized) or "")
        with tf.device("CPU"):
            try:
                image, mask = decode(tf.constant(serialized))
            except records.ERRORS:
                records.explain(opened, examples, iter([element]))
                raise
            small = resizing.image(image, size)
            if at is not None:
                image = small if at == size else resizing.image(image, at)
                mask = resizing.mask(mask, at)[..., tf.newaxis]
        return Example(pipeline.Read(place, image.numpy(), small), mask[..., 0].numpy())

    def score(pair: tuple[Example, np.ndarray]) -> Scored:
        example, ids = pair
        with tf.device("CPU"):
            confusion = metrics.confusion_matrix(example.mask, ids, num_classes)
        counts = boundaries.counts(example.mask, ids, num_classes)
        return Scored(example, ids, confusion.numpy(), counts)

    def looked(reads: Iterable[Example]) -> Iterator[tuple[Example, np.ndarray]]:
        for batch in pipeline.batches(reads, batch_size):
            yield from zip(batch, look(batch), strict=True)

    return pipeline.flow(data.eval_elements(split, examples), read, looked, score)


def file_name(serialized: bytes) -> str | None:
    """Returns the name that a stored example gives itself, where it does."""
    features = tf.train.Example.FromString(serialized).features.feature
    for name in NAMES:
        values = features[name].bytes_list.value if name in features else []
        if values:
            return bytes(values[0]).decode(errors="replace")
    return None
