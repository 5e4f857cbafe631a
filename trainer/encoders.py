"""Encoders: which network of keras.applications is tapped where, and what it is shown.

No TensorFlow here: settings are checked by this table.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

DEFAULT = "mobilenet_v2"
ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # Widths of mobilenet_v2 that have weights.
STRIDES = (2, 4, 8, 16)  # Of the skips; the bottleneck's is 32.
NONE = "none"  # In place of a layer: no skip at this stride.

# image * scale + offset, channel by channel. Source: keras.applications.imagenet_utils,
# modes tf, torch and caffe; in the last, blue comes first.
TO_1: dict[str, Any] = {"scale": 1 / 127.5, "offset": -1}
IMAGENET: dict[str, Any] = {
    "scale": [1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)],
    "offset": [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
}
BLUE_FIRST: dict[str, Any] = {"scale": 1.0, "offset": [-103.939, -116.779, -123.68]}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network of keras.applications as an encoder."""

    application: str  # Its function there.
    normalisation: dict[str, Any]
    normalises: bool  # Whether the network would do so itself, unless told not to.
    skips: tuple[str, ...]  # Layers at `STRIDES`.
    bottleneck: str  # Layer at stride 32.
    batch_norm: bool = True  # Whether it has BatchNorm.


# The first has the taps of TensorFlow's tutorial, the others the ends of their stages.
# Layers such as add_2 have no name of their own but Keras' number in a new process.
# ConvNeXt begins with a stride of 4: the decoder's last level has no skip then.
# fmt: off
TABLE = {
    "mobilenet_v2": Encoder("MobileNetV2", TO_1, False, ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu"), "block_16_project"),
    "mobilenet_v3_large": Encoder("MobileNetV3Large", TO_1, True, ("expanded_conv_add", "expanded_conv_2_add", "expanded_conv_5_add", "expanded_conv_11_add"), "expanded_conv_14_add"),
    "mobilenet_v3_small": Encoder("MobileNetV3Small", TO_1, True, ("activation", "expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add"), "expanded_conv_10_add"),
    "efficientnet_v2_b0": Encoder("EfficientNetV2B0", IMAGENET, True, ("block1a_project_activation", "block2b_add", "block3b_add", "block5e_add"), "block6h_add"),
    "resnet50": Encoder("ResNet50", BLUE_FIRST, False, ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out"), "conv5_block3_out"),
    "convnext_tiny": Encoder("ConvNeXtTiny", IMAGENET, True, (NONE, "add_2", "add_5", "add_14"), "layer_normalization", batch_norm=False),
}
# fmt: on
NAMES = tuple(TABLE)


def check(
    name: str,
    *,
    alpha: float,
    weights: str,
    download: bool,
    skip_layers: Sequence[str] | None,
) -> None:
    """Raises ValueError, in one line, where the settings of an encoder do not fit.

    Whether there are such layers and such a file is seen when it is built. The
    arguments are those of `pretrained.build`.
    """
    if name not in TABLE:
        raise ValueError(f"encoder must be one of {', '.join(NAMES)}, got {name!r}")
    if alpha not in ALPHAS:
        options = ", ".join(f"{one:g}" for one in ALPHAS)
        raise ValueError(f"encoder_alpha must be one of {options}, got {alpha:g}")
    if name != DEFAULT and alpha != 1:
        raise ValueError(
            f"encoder_alpha needs encoder {DEFAULT}, got {alpha:g} with {name}; leave one "
            "of them out"
        )
    if is_to_fetch(name, alpha, weights) and not download:
        wide = f" of alpha {alpha:g}" if name == DEFAULT else ""
        raise ValueError(
            f"encoder_weights imagenet is bundled for {DEFAULT} of alpha 1 only, got "
            f"{name}{wide}; add --download, for Keras to fetch its file, or give "
            "--encoder_weights=PATH"
        )
    if skip_layers is not None and (
        len(skip_layers) != len(STRIDES) or not all(skip_layers)
    ):
        raise ValueError(
            "skip_layers must be four layers separated by commas, at strides 2, 4, 8 and "
            f"16, {NONE} for no skip, got {','.join(skip_layers)!r}"
        )


def is_to_fetch(name: str, alpha: float, weights: str) -> bool:
    """Returns whether the weights that are asked for are neither bundled nor a file."""
    return weights == "imagenet" and (name, alpha) != (DEFAULT, 1)
