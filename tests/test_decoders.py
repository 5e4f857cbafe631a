"""The light decoder: what it is made of, with skips and without."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import decoders, model, up_conv


@pytest.fixture(scope="module")
def unet():
    return model.build_unet(
        image_size=64, num_classes=3, encoder_weights="none", decoder="light"
    )


def test_it_gives_logits_for_each_pixel(unet):
    image = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    logits = unet(image, training=False)
    assert logits.shape == (2, 64, 64, 3) and logits.dtype == tf.float32


def products(unet):
    """Returns the multiplications that the convolutions after the encoder take."""
    total = 0
    for layer in unet.layers:
        if hasattr(layer, "kernel"):
            transposed = isinstance(
                layer, up_conv.UpConv | keras.layers.Conv2DTranspose
            )
            tensors = keras.tree.flatten(layer.input if transposed else layer.output)
            total += np.prod(layer.kernel.shape) * np.prod(tensors[0].shape[1:3])
    return total


def test_it_takes_a_quarter_of_the_multiplications_of_the_tutorials(unet):
    tutorial = model.build_unet(image_size=64, num_classes=3, encoder_weights="none")
    assert products(unet) / products(tutorial) == pytest.approx(0.25, abs=0.02)


def test_adding_two_convolutions_is_one_of_both_inputs_together():
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(1, 4, 4, 5)).astype("float32")
    skip = rng.normal(size=(1, 8, 8, 7)).astype("float32")
    inputs = [keras.Input(x.shape[1:]) for x in (coarse, skip)]
    width = decoders.LIGHT_WIDTHS[0]
    first = decoders.merge(*inputs, width, "light")
    apart = keras.Model(inputs, first)
    kernels = [apart.get_layer(f"light_{n}").kernel.numpy() for n in ("coarse", "skip")]
    up = keras.layers.UpSampling2D(interpolation="bilinear")(coarse)
    together = (
        np.concatenate([up, skip], axis=-1) @ np.concatenate(kernels, axis=2)[0, 0]
    )
    np.testing.assert_allclose(apart([coarse, skip]), together, atol=1e-4)


def test_an_evaluation_after_a_hundred_steps_sees_what_training_does():
    unet = model.build_unet(image_size=64, num_classes=3, decoder="light")
    image = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
    in_training = tf.function(functools.partial(unet, training=True), autograph=False)
    for _ in range(100):
        logits = in_training(image)
    apart = unet(image, training=False) - logits
    assert np.abs(apart).mean() < 0.05 * np.std(logits)


def test_it_does_without_a_skip():
    unet = model.build_unet(
        image_size=64,
        num_classes=2,
        encoder_weights="none",
        skip_layers=["none"] * 4,
        decoder="light",
    )
    assert unet(np.zeros((1, 64, 64, 3), "float32")).shape == (1, 64, 64, 2)


def test_nothing_is_clipped_where_it_is_enlarged_in_bfloat16():
    """Keras would, in five passes over the maps and their gradients."""
    maps = [keras.Input((4, 4, 5)), keras.Input((8, 8, 7))]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        merged = keras.Model(maps, decoders.merge(*maps, 6, "light"))
    finally:
        keras.config.set_dtype_policy("float32")
    call = tf.function(merged).get_concrete_function(
        [tf.TensorSpec((2, *each.shape[1:])) for each in maps]
    )
    kinds = {operation.type for operation in call.graph.get_operations()}
    assert "ResizeBilinear" in kinds and not kinds & {"Minimum", "ClipByValue"}
