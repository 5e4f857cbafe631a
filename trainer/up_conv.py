"""The transposed convolution of the decoders, its sums the same on any replicas.

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
    of_image = tf.range(tf.shape(x)[0])[:, tf.newaxis] * (4 * height * width)
    pixel = _met(height, width)
    index = tf.where(pixel < 0, -1, of_image + pixel)
    # Nothing is copied first for the zeros beyond the last row and column: there is no
    # pixel -1, which counts as one.
    met = tf.gather_nd(
        tf.reshape(dy, (-1, filters)),
        tf.reshape(index, (-1, 1)),
        bad_indices_policy="IGNORE",
    )
    met = tf.reshape(met, (-1, 9 * filters))
    product = tf.matmul(met, tf.reshape(x, (-1, channels)), transpose_a=True)
    return tf.reshape(product, (3, 3, filters, channels))


def _met(height: int, width: int) -> np.ndarray:
    """Returns which pixel of (2H, 2W) each of (H, W) meets by each tap: (H W 9,) int32.

    In the order of rows, columns, the kernel's rows and columns; -1 for none.
    """
    row = 2 * np.arange(height)[:, None, None, None] + np.arange(3)[:, None]
    column = 2 * np.arange(width)[:, None, None] + np.arange(3)
    inside = (row < 2 * height) & (column < 2 * width)
    pixel = np.where(inside, row * 2 * width + column, -1)
    return pixel.astype(np.int32).ravel()


@tf.custom_gradient
def _add_bias(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns x, (N, H, W, c), plus the bias, (c,)."""

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return dy, sums.of_groups(lambda dy: tf.reduce_sum(dy, (0, 1, 2)), dy)

    return x + bias, gradient
