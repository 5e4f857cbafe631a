"""The U-Net: a pretrained encoder and a decoder.

Letters: N images in a batch, S side of an image, C classes.
"""

import contextlib
import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras.src.random import seed_generator

from trainer import decoders, encoders, folding, pretrained

DECODERS = {"tutorial": decoders.tutorial, "light": decoders.light}


def build_unet(
    *,
    image_size: int,
    num_classes: int,
    encoder: str = encoders.DEFAULT,
    encoder_alpha: float = 1.0,
    encoder_weights: str = "imagenet",
    skip_layers: Sequence[str] | None = None,
    download: bool = False,
    train_encoder: bool = False,
    train_encoder_from: int = 1,
    train_encoder_batch_norm: bool = False,
    decoder: str = "tutorial",
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Returns the model: image (N, S, S, 3) float32 0..255 -> logits (N, S, S, C).

    The encoder's normalisation is part of it. Its weights are float32, its logits too.

    Args:
        image_size: S, pixels, a multiple of 32.
        num_classes: C.
        encoder: Its name in `encoders.TABLE`.
        encoder_alpha: See `pretrained.build`, for the next three as well.
        encoder_weights: "imagenet", "none", or the path of a file.
        skip_layers: Others than the table's.
        download: Whether weights may be fetched.
        train_encoder: Whether the encoder's weights are trained.
        train_encoder_from: Stride from which on they are.
        train_encoder_batch_norm: Whether its BatchNorm learns too; otherwise it
            stays in inference mode.
        decoder: "tutorial" or "light", a function of `decoders`.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".
        seed: Seed of the weights that are not loaded.

    Raises:
        ValueError: If the weights are not there or do not fit, or layers are not there.
    """
    keras.config.set_dtype_policy(precision)
    with _seeded(seed):
        network = pretrained.build(
            encoder,
            image_size=image_size,
            alpha=encoder_alpha,
            weights=encoder_weights,
            download=download,
            skip_layers=skip_layers,
        )
        network.trainable = train_encoder
        first = pretrained.first_at(network, train_encoder_from)
        for layer in network.layers[:first]:
            layer.trainable = False
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = layer.trainable and train_encoder_batch_norm
        # BatchNorm that is not trainable runs in inference mode whatever `training` is.
        network = folding.fold(network)

        image = keras.Input((image_size, image_size, 3), name="image")
        taps = network(pretrained.normalise(encoder, image))
        *skips, features = keras.tree.flatten(taps)  # (N, S/32, S/32, channels)
        logits = DECODERS[decoder](features, skips, num_classes)
        logits = keras.layers.Activation("linear", dtype="float32", name="logits")(
            logits
        )
        return keras.Model(image, logits, name="unet")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Has Keras draw the seeds of initial weights from a generator that is its alone.

    It takes them from Python's `random`, of which other threads take too: that of a
    lease on gs://, when it waits to ask again.
    """
    keras.utils.set_random_seed(seed)
    theirs = seed_generator.python_random
    seed_generator.python_random = random.Random(seed)
    try:
        yield
    finally:
        seed_generator.python_random = theirs


def at(network: keras.Model, size: int) -> keras.Model:
    """Returns the network, its very layers and weights, for images of another size.

    Args:
        network: Image (N, S, S, channels) -> whatever.
        size: Of its images, pixels, a multiple of 32.
    """
    if network.input.shape[1] == size:
        return network

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Sequential):  # Of ConvNeXt; of one size only.
            return functools.reduce(lambda x, inner: inner(x), layer.layers, *args)
        if isinstance(layer, keras.Model):
            layer = at(layer, args[0].shape[1])
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        network,
        input_tensors=keras.Input((size, size, network.input.shape[-1])),
        clone_function=lambda layer: layer,
        call_function=call,
    )
