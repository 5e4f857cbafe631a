"""Decoders: the bottleneck and the skips of an encoder -> logits.

Letters: N images in a batch, S side of an image in pixels, C classes.
"""

from collections.abc import Sequence

import keras

from trainer.batch_norm import SyncBatchNorm
from trainer.up_conv import UpConv

# Channels at S/16, S/8, S/4 and S/2.
TUTORIAL_WIDTHS = (512, 256, 128, 64)
LIGHT_WIDTHS = (256, 160, 96, 64)
# Share of BatchNorm's moving averages that is kept at a step. Keras' 0.99, as in the
# tutorial's, averages over some hundred steps: weights have moved on, evaluations are off.
LIGHT_MOMENTUM = 0.9


def tutorial(
    features: keras.KerasTensor, skips: Sequence[keras.KerasTensor], num_classes: int
) -> keras.KerasTensor:
    """Returns the logits (N, S, S, C), as in TensorFlow's tutorial on image segmentation.

    At each scale: a transposed 3x3 convolution, BatchNorm, ReLU, the skip beside it.

    Args:
        features: (N, S/32, S/32, channels), the bottleneck.
        skips: At strides 2 to 16, where the encoder has one.
        num_classes: C.
    """
    skip_of = _by_side(skips)
    inputs = [features]
    for width in TUTORIAL_WIDTHS:
        features = UpConv(width, name=f"up_{width}")(inputs)
        features = SyncBatchNorm(name=f"up_{width}_norm")(features)
        features = keras.layers.ReLU(name=f"up_{width}_relu")(features)
        skip = skip_of.get(features.shape[1])
        inputs = [features] if skip is None else [features, skip]
    return UpConv(
        num_classes,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        name="up_logits",
    )(inputs)


def light(
    features: keras.KerasTensor, skips: Sequence[keras.KerasTensor], num_classes: int
) -> keras.KerasTensor:
    """Returns the logits (N, S, S, C), by a quarter of the tutorial's multiplications.

    At each scale: `merge` of the coarser features and the skip, a depthwise 3x3 and a 1x1
    convolution. The last enlargement is learned, for sharp borders.

    Args:
        features: (N, S/32, S/32, channels), the bottleneck.
        skips: At strides 2 to 16, where the encoder has one.
        num_classes: C.

    Source: the separable decoder of DeepLabV3+, Chen et al. 2018, arXiv:1802.02611.
    """
    skip_of = _by_side(skips)
    for width in LIGHT_WIDTHS:
        name, skip = f"light_{width}", skip_of.get(2 * features.shape[1])
        x = _norm_relu(merge(features, skip, width, name), f"{name}_in")
        x = keras.layers.DepthwiseConv2D(
            3, padding="same", use_bias=False, name=f"{name}_depthwise"
        )(x)
        x = keras.layers.Conv2D(width, 1, use_bias=False, name=f"{name}_mix")(x)
        features = _norm_relu(x, f"{name}_out")
    return keras.layers.Conv2DTranspose(
        num_classes, 4, strides=2, padding="same", name="light_logits"
    )(features)


def merge(
    features: keras.KerasTensor, skip: keras.KerasTensor | None, width: int, name: str
) -> keras.KerasTensor:
    """Returns (N, 2H, 2W, width) of features (N, H, W, ...) and skip (N, 2H, 2W, ...).

    The 1x1 convolution of the enlarged features and the skip, concatenated; that of the
    features before they are enlarged, which costs a quarter.
    """
    layers = keras.layers
    coarse = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_coarse")(features)
    # TensorFlow enlarges to float32; Keras would clip that before it rounds to bfloat16.
    coarse = layers.UpSampling2D(
        interpolation="bilinear", dtype="float32", name=f"{name}_up"
    )(coarse)
    if skip is None:
        return coarse
    fine = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_skip")(skip)
    return layers.Add(name=f"{name}_sum")([coarse, fine])


def _norm_relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    x = SyncBatchNorm(momentum=LIGHT_MOMENTUM, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _by_side(skips: Sequence[keras.KerasTensor]) -> dict[int, keras.KerasTensor]:
    return {skip.shape[1]: skip for skip in skips}
