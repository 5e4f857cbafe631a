"""Exact evaluation: sums over a whole split, divided once.

Letters: N examples on one replica, S side of an image in pixels, C classes.
"""

from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer import losses, metrics

# Metrics by name, and the confusion matrix (C, C) int64 that they are of.
Judged = tuple[dict[str, float | None], np.ndarray]
STEPS_PER_CALL = 4  # A signal waits for the return of the running call.


def make_replica_step(
    model: keras.Model, num_classes: int
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]:
    """Returns what each replica does with a batch.

    Returns:
        (image (N, S, S, 3) uint8, mask (N, S, S) uint8) -> confusion matrix (C, C)
        int64, summed cross-entropy () float64 in nats, counted pixels () float64.
    """

    def replica_step(image: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, ...]:
        logits = model(tf.cast(image, tf.float32), training=False)
        sums, pixels = losses.cross_entropy(logits, mask)
        prediction = tf.argmax(logits, axis=-1, output_type=tf.int32)  # (N, S, S)
        return (
            metrics.confusion_matrix(mask, prediction, num_classes),
            # Sums of images, each in float32, do not depend on the batch they are in.
            tf.reduce_sum(tf.cast(sums, tf.float64)),
            tf.reduce_sum(tf.cast(pixels, tf.float64)),
        )

    return replica_step


def make_evaluate(
    strategy: tf.distribute.Strategy, model: keras.Model, class_names: Sequence[str]
) -> Callable[..., Judged]:
    """Returns the function that evaluates a split.

    Args:
        strategy: Where the replicas live.
        model: Image (N, S, S, 3) float32 -> logits (N, S, S, C).
        class_names: C names.

    Returns:
        (iterator of the split's batches, dealt to the replicas, the number of its turns,
        and what to call every few of them) -> metrics by name: `loss`, plain
        cross-entropy in nats per counted pixel whatever is trained on, and those of
        `metrics.summary`; None for a class that does not occur. With them the confusion
        matrix (C, C) int64 that they are of.
    """
    num_classes = len(class_names)
    # Only the loop is AutoGraph's, see `step.make_train_steps`.
    replica_step = tf.autograph.experimental.do_not_convert(
        make_replica_step(model, num_classes)
    )

    @tf.function
    def run(iterator, n: tf.Tensor) -> tuple[tf.Tensor, ...]:
        confusion = tf.zeros((num_classes, num_classes), tf.int64)
        loss, pixels = tf.constant(0.0, tf.float64), tf.constant(0.0, tf.float64)
        for _ in tf.range(n):
            parts = strategy.run(replica_step, args=next(iterator))
            sums = [strategy.reduce("sum", part, axis=None) for part in parts]
            confusion += sums[0]
            loss += sums[1]
            pixels += sums[2]
        return confusion, loss, pixels

    def evaluate(
        iterator: Iterator, turns: int, check: Callable[[], None] = lambda: None
    ) -> Judged:
        confusion = np.zeros((num_classes, num_classes), np.int64)
        loss = pixels = 0.0
        for start in range(0, turns, STEPS_PER_CALL):
            check()
            n = min(turns - start, STEPS_PER_CALL)
            part = run(iterator, tf.constant(n))
            confusion += part[0].numpy()
            loss, pixels = loss + float(part[1]), pixels + float(part[2])
        mean = loss / pixels if pixels and np.isfinite(loss) else None
        found = {"loss": mean, **metrics.summary(confusion, list(class_names))}
        return found, confusion

    return evaluate


def make_predict(
    strategy: tf.distribute.Strategy, model: keras.Model
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from images (N, S, S, 3) uint8 to masks (N, S, S) uint8."""

    @tf.function(autograph=False)
    def run(image: tf.Tensor) -> tf.Tensor:
        logits = model(tf.cast(image, tf.float32), training=False)
        return tf.cast(tf.argmax(logits, axis=-1), tf.uint8)

    def predict(images: np.ndarray) -> np.ndarray:
        results = strategy.run(run, args=(tf.constant(images),))
        return strategy.experimental_local_results(results)[0].numpy()

    return predict
