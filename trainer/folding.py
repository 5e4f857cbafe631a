"""A BatchNorm in inference mode, and padding, folded into the convolution between them.

Letters: N images in a batch, H and W a map's height and width.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from trainer import batch_norm, sums

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


@keras.saving.register_keras_serializable(package="segtrainer")
class ConvNorm(keras.layers.Layer):
    """A convolution and its BatchNorm, which scales and moves each channel, as one.

    The same numbers, weights and gradients, but no pass over the maps for the norm: the
    kernel is scaled, which is small, and the bias goes into the convolution's own pass.
    That, and a clipping after it, TensorFlow makes one operation of on a CPU.

    Args:
        conv: The convolution.
        norm: Its BatchNorm, in inference mode.
        padding: Of the convolution, "valid" or "same".

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    def __init__(
        self,
        conv: keras.layers.Conv2D | keras.layers.DepthwiseConv2D,
        norm: keras.layers.BatchNormalization,
        padding: str,
        **kwargs,
    ) -> None:
        # Weights are read as they are, float32, and rounded when they are folded; the
        # maps are of the convolution's own precision.
        super().__init__(autocast=False, **{**kwargs, "dtype": "float32"})
        self.conv, self.norm, self.padding = conv, norm, padding
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the normalised convolution of (N, H, W, channels)."""
        conv, dtype = self.conv, self.conv.compute_dtype
        kernel, bias = _folded(conv, self.norm)
        x, kernel = tf.cast(x, dtype), tf.cast(kernel, dtype)
        depthwise = isinstance(conv, keras.layers.DepthwiseConv2D)
        strided = conv.strides != (1, 1) and conv.dilation_rate == (1, 1)
        if depthwise and strided and conv.trainable and sums.on_cpu():
            y = _strided_depthwise(x, kernel, conv.strides, self.padding)
        else:
            convolve = keras.ops.depthwise_conv if depthwise else keras.ops.conv
            y = convolve(
                x,
                kernel,
                strides=conv.strides,
                padding=self.padding,
                dilation_rate=conv.dilation_rate,
            )
        return tf.nn.bias_add(y, tf.cast(bias, dtype))

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Returns shape and dtype of what `call` returns."""
        if self.padding == self.conv.padding:
            shape = self.conv.compute_output_shape(x.shape)
        else:  # Without the zeros, the convolution would not fit.
            n, height, width, _ = x.shape
            down, right = self.conv.strides
            channels = self.norm.gamma.shape[0]
            shape = (n, -(-height // down), -(-width // right), channels)
        return keras.KerasTensor(shape, self.conv.compute_dtype)

    def get_config(self) -> dict:
        """Returns what makes the layer again."""
        inner = {"conv": self.conv, "norm": self.norm}
        return super().get_config() | {
            "padding": self.padding,
            **{
                name: keras.saving.serialize_keras_object(layer)
                for name, layer in inner.items()
            },
        }

    @classmethod
    def from_config(cls, config: dict) -> "ConvNorm":
        """Returns the layer of a `get_config`."""
        inner = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("conv", "norm")
        }
        return cls(**{**config, **inner})


def _strided_depthwise(
    x: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], padding: str
) -> tf.Tensor:
    """Returns the depthwise convolution of x, (N, H, W, channels), on a CPU.

    Its gradient to x is taken in float32: for that in bfloat16 oneDNN needs twenty times
    as long where there are strides.

    Args:
        x: Of any floating dtype.
        kernel: (height, width, channels, multiplier) of the same.
        strides: Down and to the right.
        padding: "valid" or "same".
    """
    how = {"strides": (1, *strides, 1), "padding": padding.upper()}

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            to_x = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x),
                filter=tf.cast(kernel, tf.float32),
                out_backprop=tf.cast(dy, tf.float32),
                **how,
            )
            to_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x, filter_sizes=kernel.shape, out_backprop=dy, **how
            )
            return tf.cast(to_x, x.dtype), to_kernel

        return tf.nn.depthwise_conv2d(x, kernel, **how), gradient

    return convolve(x, kernel)


def fold(network: keras.Model) -> keras.Model:
    """Returns the network with each convolution and the BatchNorm after it as one.

    Zeros that are padded before it, as TensorFlow's "same" would, it pads itself. Its
    weights are those of the network. BatchNorm that is trained stays on its own, and is
    over all replicas.
    """
    found = _found(network)
    into = {id(layer) for pad, conv in found.values() for layer in (pad, conv)}

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in into:
            return args[0]  # Its norm takes what it would have taken.
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            return batch_norm.synchronised(layer)(*args)
        if id(layer) not in found:
            return layer(*args, **kwargs)
        pad, conv = found[id(layer)]
        padding = "same" if pad else conv.padding
        return ConvNorm(conv, layer, padding, name=conv.name)(args[0])

    return keras.models.clone_model(
        network, clone_function=lambda layer: layer, call_function=call
    )


def _found(
    network: keras.Model,
) -> dict[int, tuple[keras.layers.Layer | None, keras.layers.Layer]]:
    """Returns padding, if any, and convolution of each BatchNorm, by the norm's id."""
    makers, readers = {}, {id(output): 1 for output in network.outputs}
    for operation in network.operations:
        makers[id(operation.output)] = operation
        for tensor in keras.tree.flatten(operation.input):
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1

    def before(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        """Returns what made a layer's input, if for this layer alone."""
        return makers[id(layer.input)] if readers[id(layer.input)] == 1 else None

    found = {}
    for norm in network.operations:
        if not isinstance(norm, keras.layers.BatchNormalization) or norm.trainable:
            continue
        conv = before(norm)
        if type(conv) in CONVOLUTIONS and norm.center and norm.scale:
            pad = before(conv)
            found[id(norm)] = pad if _is_same(pad, conv) else None, conv
    return found


def _is_same(pad: Any, conv: keras.layers.Layer) -> bool:
    """Returns whether a layer pads for a convolution what "same" would.

    Source: tf.nn's notes on padding: as little as gives one output for each stride, the
    odd one at the end.
    """
    if not isinstance(pad, keras.layers.ZeroPadding2D) or conv.padding != "valid":
        return False
    if conv.dilation_rate != (1, 1):
        return False
    sides = zip(
        pad.input.shape[1:3], conv.kernel_size, conv.strides, pad.padding, strict=True
    )
    for side, kernel, stride, (head, tail) in sides:
        zeros = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        if (head, tail) != (zeros // 2, zeros - zeros // 2):
            return False
    return True


def _folded(
    conv: keras.layers.Layer, norm: keras.layers.BatchNormalization
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the kernel and the bias, (channels,), of both as one."""
    kernel = tf.convert_to_tensor(conv.kernel)
    scale = norm.gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
    before = conv.bias if conv.use_bias else 0.0
    bias = norm.beta + (before - norm.moving_mean) * scale
    if isinstance(conv, keras.layers.DepthwiseConv2D):  # (H, W, channels, multiplier)
        return kernel * tf.reshape(scale, kernel.shape[2:]), bias
    return kernel * scale, bias
