"""The BatchNorm that is trained, its sums the same on any replicas.

Letters: N images in a batch, H and W a map's height and width.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer import sums


@keras.saving.register_keras_serializable(package="segtrainer")
class SyncBatchNorm(keras.layers.BatchNormalization):
    """BatchNorm over the examples of all replicas, the same on any number of them.

    Keras' own synchronised form sums over examples and pixels at once, which rounds
    otherwise on other replicas, and training blows such differences up. It takes more
    passes over memory, too, and with tens of them several replicas in a process are
    traced for minutes.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the normalised (N, H, W, channels); updates the moving averages."""
        context = tf.distribute.get_replica_context()
        if not training or not self.trainable or context is None:
            return super().call(inputs, training=training)
        outputs, mean, variance = _normalised(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            self.epsilon,
        )
        for average, now in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            average.assign(average * self.momentum + now * (1.0 - self.momentum))
        return outputs


def synchronised(norm: keras.layers.BatchNormalization) -> SyncBatchNorm:
    """Returns a BatchNorm over all replicas with the settings and weights of another."""
    ours = SyncBatchNorm.from_config(norm.get_config())
    ours.build(norm.input.shape)
    ours.set_weights(norm.get_weights())
    return ours


def _normalised(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns x normalised over all replicas, (N, H, W, c), its mean and variance, (c,).

    Each pass over the maps is an operation of TensorFlow's own BatchNorm, which reads
    bfloat16 as it is and sums in float32.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and section 3.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    dtype = tf.float64 if sums.exact() else tf.float32
    count = tf.cast(tf.size(x) // x.shape[-1] * replicas, dtype)

    def over_all(parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the sum over groups and replicas, (2, c)."""
        total = sums.in_pairs([tf.cast(part, dtype) for part in parts])
        return sums.over_replicas([total])[0]

    @tf.custom_gradient
    def normalise(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):
        parts = [_moments(part, dtype) for [part] in sums.groups(x)]
        moments = over_all(parts) / count
        mean = tf.cast(moments[0], tf.float32)
        variance = tf.cast(moments[1] - moments[0] ** 2, tf.float32)
        variance = tf.maximum(variance, 0.0)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse

        def gradient(dy: tf.Tensor, *unused: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # As if mean and variance were given; what they change is added below.
            given = (mean, variance, gamma, epsilon)
            gradients = [
                _given_gradients(dy_part, x_part, *given)
                for dy_part, x_part in sums.groups(dy, x)
            ]
            to_inputs, to_weights = zip(*gradients, strict=True)
            total = over_all(to_weights)
            mean_product, mean_dy = tf.unstack(tf.cast(total / count, tf.float32))
            slope = -scale * inverse * mean_product
            dx = tf.concat(to_inputs, axis=0)
            dx += _affine(x, slope, -scale * mean_dy - slope * mean)
            dgamma, dbeta = tf.unstack(tf.cast(total / replicas, tf.float32))
            return dx, dgamma, dbeta

        y = _affine(x, scale, beta - mean * scale)
        return (y, mean, variance), gradient

    return normalise(x, gamma, beta)


def _moments(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the sums of x, (N, H, W, c), and of its squares, (2, c)."""
    channels = x.shape[-1]
    _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=tf.ones(channels),
        offset=tf.zeros(channels),
        mean=(),
        variance=(),
        is_training=True,
    )
    count = tf.cast(tf.size(x) // channels, dtype)
    mean, variance = tf.cast(mean, dtype), tf.cast(variance, dtype)
    # The variance is that of a sample, over count - 1.
    return tf.stack([count * mean, (count - 1) * variance + count * mean**2])


def _given_gradients(
    dy: tf.Tensor,
    x: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients of a BatchNorm whose mean and variance are given.

    Args:
        dy: (N, H, W, c).
        x: (N, H, W, c).
        mean: (c,), as the next two.
        variance: Of x.
        gamma: What the normalised x is multiplied by.
        epsilon: What is added to the variance.

    Returns:
        (N, H, W, c) to x.
        (2, c) float32 to gamma and beta.
    """
    if tf.config.list_logical_devices("GPU"):  # Refused there with --deterministic.
        inverse = tf.math.rsqrt(variance + epsilon)
        normalised = _affine(tf.cast(x, tf.float32), inverse, -mean * inverse)
        wide = tf.cast(dy, tf.float32)
        to_weights = [tf.reduce_sum(v, (0, 1, 2)) for v in (wide * normalised, wide)]
        return _affine(dy, gamma * inverse, tf.zeros_like(mean)), tf.stack(to_weights)
    to_x, *to_weights = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=dy,
        x=x,
        scale=gamma,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=(),
        epsilon=epsilon,
        is_training=False,
    )[:3]
    return to_x, tf.stack(to_weights)


def _affine(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Returns x, (N, H, W, c), times scale, (c,), plus offset, (c,), in a single pass.

    As BatchNorm in inference mode: a plain product that broadcasts takes as long alone
    as two of these.
    """
    epsilon = 1e-3
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=tf.zeros_like(scale),
        variance=tf.ones_like(scale) - epsilon,
        epsilon=epsilon,
        is_training=False,
    ).y
