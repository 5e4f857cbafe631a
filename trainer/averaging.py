"""The mean of the weights over the last steps, which judges better than the last ones."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


class Average:
    """A moving mean of each trained weight: each step pulls it towards the weight.

    The statistics of a BatchNorm that trains have one too: those of the last weights do
    not fit the means, which see other maps while the weights still move fast.

    Made in the strategy's scope; as exact on any replicas as the weights themselves.

    Args:
        model: Whose weights.
        decay: What is kept of the mean at a step, in [0, 1). In the first steps it is
            (1 + step) / (10 + step) where that is less, so that the initial weights are
            soon forgotten.

    Source: Polyak and Juditsky 1992, https://doi.org/10.1137/0330046; the first steps
    as in tf.train.ExponentialMovingAverage.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        self._weights = [*model.trainable_variables, *_statistics(model)]
        self._decay = decay
        self.by_path = {
            weight.path: keras.Variable(
                tf.convert_to_tensor(weight.value), trainable=False, name="mean"
            )
            for weight in self._weights
        }

    @tf.autograph.experimental.do_not_convert
    def update(self, strategy: tf.distribute.Strategy, step: tf.Tensor) -> None:
        """Takes the weights into the means, on all replicas.

        Args:
            strategy: Where they live; called outside of what each replica does.
            step: () int, steps made so far.
        """
        made = tf.cast(step, tf.float32)
        decay = tf.minimum(self._decay, (1 + made) / (10 + made))

        def pull(mean: tf.Variable, weight: tf.Tensor) -> None:
            mean.assign_sub((1 - decay) * (mean - weight))

        for mean, weight in zip(self.by_path.values(), self._weights, strict=True):
            strategy.extended.update(mean.value, pull, args=(weight.value,))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the means in the place of the weights, until it is left."""
        held = [tf.convert_to_tensor(weight.value) for weight in self._weights]
        for mean, weight in zip(self.by_path.values(), self._weights, strict=True):
            weight.assign(tf.convert_to_tensor(mean.value))
        try:
            yield
        finally:
            for weight, value in zip(self._weights, held, strict=True):
                weight.assign(value)


def _statistics(model: keras.Model) -> Iterator[keras.Variable]:
    """Yields moving mean and variance of each BatchNorm that trains."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _statistics(layer)
        elif isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            yield from (layer.moving_mean, layer.moving_variance)
