"""Layers of the decoders whose sums come out the same on any replicas.

Letters: N images in a batch, H and W a map's height and width.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer import sums

# So many filters leave most lanes of a processor idle in a transposed convolution; see
# `_up_conv_phases`.
NARROW = 4


@keras.saving.register_keras_serializable(package="segtrainer")
class UpConv(keras.layers.Layer):
    """Transposed 3x3 convolution of stride 2 over the concatenation of its inputs.

    The same numbers and weights as Concatenate and Conv2DTranspose, but in float32 each
    input is convolved with its own part of the kernel and the results are added: no
    concatenated copy is kept for the gradient. In any precision no gradient is computed
    for an input that needs none, such as the skips of a frozen encoder. On a TPU see
    `call`.

    Source: pix2pix's upsampling block, Isola et al. 2017, arXiv:1611.07004, as in
    TensorFlow's tutorial: kernel from normal(0, 0.02), no bias.
    """

    def __init__(
        self,
        filters: int,
        use_bias: bool = False,
        kernel_initializer: str | keras.Initializer | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(0.0, 0.02)
        )

    def build(self, shapes: list[tuple[int | None, ...]]) -> None:
        """Makes the kernel, (3, 3, filters, channels of all inputs) float32."""
        channels = sum(shape[-1] or 0 for shape in shapes)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(3, 3, self.filters, channels),
            initializer=self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros"
            )

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Returns (N, 2H, 2W, filters) for inputs (N, H, W, channels)."""
        # A TPU's compiler makes the concatenation inside the convolution. Apart, a part's
        # output, four pixels for each of the input, is written and read once more: the
        # better way only where it is narrow.
        if not sums.exact() and 8 * self.filters > self.kernel.shape[-1]:
            inputs = [tf.concat(inputs, axis=-1)]
        kernel = tf.convert_to_tensor(self.kernel)
        if sums.exact() and self.filters <= NARROW:
            total = _interleaved(_apart(_up_conv_phases, kernel, inputs))
        elif sums.exact() and self.compute_dtype != "float32":
            # In bfloat16 products take so little that adding what they give takes longer.
            total = _up_conv(kernel, *inputs)
        else:
            total = _apart(_up_conv, kernel, inputs)
        return (
            _add_bias(total, tf.convert_to_tensor(self.bias))
            if self.use_bias
            else total
        )

    def compute_output_shape(self, shapes: list[tuple]) -> tuple:
        """Returns the shape of what `call` returns."""
        n, height, width, _ = shapes[0]
        return n, 2 * height, 2 * width, self.filters

    def get_config(self) -> dict:
        """Returns what makes the layer again."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _apart(
    convolve: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    kernel: tf.Tensor,
    inputs: Sequence[tf.Tensor],
) -> tf.Tensor:
    """Returns the sum of what each input gives with its own part of the kernel."""
    kernels = tf.split(kernel, [x.shape[-1] for x in inputs], axis=-1)
    return tf.add_n(
        [convolve(part, x) for part, x in zip(kernels, inputs, strict=True)]
    )


@tf.custom_gradient
def _up_conv(kernel: tf.Tensor, *inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the transposed convolution by (3, 3, filters, channels of all inputs).

    Args:
        kernel: The kernel.
        *inputs: (N, H, W, c) each, convolved as one.
    """
    x = tf.concat(inputs, axis=-1)
    _, height, width, _ = x.shape
    shape = (tf.shape(x)[0], 2 * height, 2 * width, kernel.shape[2])

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Apart, so that what is asked for by none is not computed.
        kernels = tf.split(kernel, [each.shape[-1] for each in inputs], axis=-1)
        to_inputs = (tf.nn.conv2d(dy, part, 2, "SAME") for part in kernels)
        return _kernel_gradient(dy, x, kernel.shape), *to_inputs

    return tf.nn.conv2d_transpose(x, kernel, shape, 2, "SAME"), gradient


@tf.custom_gradient
def _up_conv_phases(kernel: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the same as (N, H, W, 4 filters): top left, top right, bottom ones.

    Pixels in even and odd rows and columns see different parts of the kernel: a plain 2x2
    convolution to all four at once. It multiplies by zeros too, 16 times in place of 9,
    and for few filters takes half the time all the same.
    """
    filters, channels = kernel.shape[2:]
    padded = tf.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    # Of an even row, kernel row 2 of the one above and row 0 of its own; of an odd one
    # nothing (the padding) and row 1. Columns likewise.
    taps = [2, 0, 3, 1]
    parts = tf.gather(tf.gather(padded, taps, axis=0), taps, axis=1)
    parts = tf.reshape(parts, (2, 2, 2, 2, filters, channels))
    phases = tf.transpose(parts, (1, 3, 5, 0, 2, 4))
    phases = tf.reshape(phases, (2, 2, channels, 4 * filters))
    above = ((0, 0), (1, 0), (1, 0), (0, 0))

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        dy = _interleaved(dy)
        to_x = tf.nn.conv2d(dy, kernel, 2, "SAME")
        return _kernel_gradient(dy, x, kernel.shape), to_x

    return tf.nn.conv2d(x, phases, 1, above), gradient


def _interleaved(phases: tf.Tensor) -> tf.Tensor:
    """Returns (N, 2H, 2W, filters) of its phases, (N, H, W, 4 filters)."""
    _, height, width, channels = phases.shape
    parts = tf.reshape(phases, (-1, height, width, 2, 2, channels // 4))
    rows = tf.transpose(parts, (0, 1, 3, 2, 4, 5))
    return tf.reshape(rows, (-1, 2 * height, 2 * width, channels // 4))


def _kernel_gradient(
    dy: tf.Tensor, x: tf.Tensor, shape: tuple[int, int, int, int]
) -> tf.Tensor:
    """Returns the gradient to a kernel of a shape, on a CPU by `_as_product`.

    Args:
        dy: (N, 2H, 2W, filters).
        x: (N, H, W, c).
        shape: (3, 3, filters, c).
    """
    by_product = sums.on_cpu() and shape[2] > NARROW

    def gradient(dy: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        if by_product:
            return _as_product(dy, x)
        return tf.raw_ops.Conv2DBackpropFilter(
            input=dy,
            filter_sizes=shape,
            out_backprop=x,
            strides=(1, 2, 2, 1),
            padding="SAME",
        )

    return sums.of_groups(gradient, dy, x)


def _as_product(dy: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the kernel's gradient, (3, 3, filters, c), as a product of two matrices.

    A processor multiplies those at its full rate, which oneDNN's gradient of a kernel of
    stride 2 is far from, most of all in bfloat16. What each pixel of x met is gathered
    pixel by pixel, copies of whole rows of memory.

    Args:
        dy: (N, 2H, 2W, filters).
        x: (N, H, W, c).
    """
    _, height, width, channels = x.shape
    filters = dy.shape[-1]
    # What is beyond the last row or column is 0, the pixel behind the last.
    pixels = tf.reshape(dy, (-1, 4 * height * width, filters))
    pixels = tf.pad(pixels, ((0, 0), (0, 1), (0, 0)))
    met = tf.gather(pixels, _met(height, width), axis=1)
    met = tf.reshape(met, (-1, 9 * filters))
    product = tf.matmul(met, tf.reshape(x, (-1, channels)), transpose_a=True)
    return tf.reshape(product, (3, 3, filters, channels))


def _met(height: int, width: int) -> np.ndarray:
    """Returns which pixel of (2H, 2W) each of (H, W) meets by each tap: (H W 9,) int32.

    In the order of rows, columns, the kernel's rows and columns; 4 H W for none.
    """
    row = 2 * np.arange(height)[:, None, None, None] + np.arange(3)[:, None]
    column = 2 * np.arange(width)[:, None, None] + np.arange(3)
    inside = (row < 2 * height) & (column < 2 * width)
    pixel = np.where(inside, row * 2 * width + column, 4 * height * width)
    return pixel.astype(np.int32).ravel()


@tf.custom_gradient
def _add_bias(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns x, (N, H, W, c), plus the bias, (c,)."""

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return dy, sums.of_groups(lambda dy: tf.reduce_sum(dy, (0, 1, 2)), dy)

    return x + bias, gradient


@keras.saving.register_keras_serializable(package="segtrainer")
class SyncBatchNorm(keras.layers.BatchNormalization):
    """BatchNorm over the examples of all replicas, the same on any number of them.

    Keras' own synchronised form sums over examples and pixels at once, which rounds
    otherwise on other replicas, and training blows such differences up. It takes more
    passes over memory, too.
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
