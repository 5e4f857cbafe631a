"""A BatchNorm in inference mode, folded into the convolution before it.

Letters: N images in a batch, H and W a map's height and width.
"""

import keras
import tensorflow as tf

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


@keras.saving.register_keras_serializable(package="segtrainer")
class ConvNorm(keras.layers.Layer):
    """A convolution and its BatchNorm, which scales and moves each channel, as one.

    The same numbers, weights and gradients, but no pass over the maps for the norm: the
    kernel is scaled, which is small, and the bias goes into the convolution's own pass.
    That, and a clipping after it, TensorFlow makes one operation of on a CPU.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    def __init__(
        self,
        conv: keras.layers.Conv2D | keras.layers.DepthwiseConv2D,
        norm: keras.layers.BatchNormalization,
        **kwargs,
    ) -> None:
        # Weights are read as they are, float32, and rounded when they are folded; the
        # maps are of the convolution's own precision.
        super().__init__(autocast=False, **{**kwargs, "dtype": "float32"})
        self.conv, self.norm = conv, norm
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the normalised convolution of (N, H, W, channels)."""
        conv, dtype = self.conv, self.conv.compute_dtype
        kernel, bias = _folded(conv, self.norm)
        depthwise = isinstance(conv, keras.layers.DepthwiseConv2D)
        convolve = keras.ops.depthwise_conv if depthwise else keras.ops.conv
        y = convolve(
            tf.cast(x, dtype),
            tf.cast(kernel, dtype),
            strides=conv.strides,
            padding=conv.padding,
            dilation_rate=conv.dilation_rate,
        )
        return tf.nn.bias_add(y, tf.cast(bias, dtype))

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Returns shape and dtype of what `call` returns."""
        shape = self.conv.compute_output_shape(x.shape)
        return keras.KerasTensor(shape, self.conv.compute_dtype)

    def get_config(self) -> dict:
        """Returns what makes the layer again."""
        inner = {"conv": self.conv, "norm": self.norm}
        return super().get_config() | {
            name: keras.saving.serialize_keras_object(layer)
            for name, layer in inner.items()
        }

    @classmethod
    def from_config(cls, config: dict) -> "ConvNorm":
        """Returns the layer of a `get_config`."""
        inner = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("conv", "norm")
        }
        return cls(**{**config, **inner})


def fold(network: keras.Model) -> keras.Model:
    """Returns the network with each convolution and the BatchNorm after it as one.

    Its weights are those of the network. BatchNorm that is trained stays on its own.
    """
    pairs = _pairs(network)
    into = {id(conv) for conv in pairs.values()}

    def call(layer: keras.layers.Layer, *args, **kwargs):
        if id(layer) in into:
            return args[0]  # Its norm takes what it would have taken.
        if conv := pairs.get(id(layer)):
            return ConvNorm(conv, layer, name=conv.name)(args[0])
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        network, clone_function=lambda layer: layer, call_function=call
    )


def _pairs(network: keras.Model) -> dict[int, keras.layers.Layer]:
    """Returns the convolution of each BatchNorm, by the norm's id."""
    made_by, readers = {}, {id(output): 1 for output in network.outputs}
    for operation in network.operations:
        made_by[id(operation.output)] = operation
        for tensor in keras.tree.flatten(operation.input):
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    pairs = {}
    for norm in network.operations:
        if not isinstance(norm, keras.layers.BatchNormalization) or norm.trainable:
            continue
        conv = made_by[id(norm.input)]
        alone = readers[id(norm.input)] == 1
        if type(conv) in CONVOLUTIONS and alone and norm.center and norm.scale:
            pairs[id(norm)] = conv
    return pairs


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
