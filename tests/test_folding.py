"""A convolution and its BatchNorm as one: the numbers and gradients of the two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import batch_norm, encoders, folding, pretrained

SIZE = 32


def plain(name="mobilenet_v2", weights="imagenet"):
    """Returns an encoder whose BatchNorm is in inference mode, with other averages."""
    keras.utils.set_random_seed(0)  # Of other weights a ReLU may be at its very edge.
    network = pretrained.build(name, image_size=SIZE, weights=weights)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
            if weights == "none":  # Else a norm would do nothing.
                layer.set_weights(
                    [rng.uniform(0.5, 1.5, v.shape) for v in layer.weights]
                )
    return network


def images(count=2):
    return tf.random.stateless_uniform((count, SIZE, SIZE, 3), (1, 2), -1, 1)


def norms(network):
    kind = keras.layers.BatchNormalization
    return [layer for layer in network.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet50"])
def test_an_encoder_gives_the_same_numbers_and_gradients_folded(name):
    weights = "imagenet" if name == encoders.DEFAULT else "none"
    network = plain(name, weights)
    folded = folding.fold(network)
    assert norms(network) and not norms(folded)
    paths = sorted(v.path for v in network.weights)
    assert sorted(v.path for v in folded.weights) == paths
    found = []
    for each in (folded, network):
        weights = sorted(each.trainable_weights, key=lambda v: v.path)
        with tf.GradientTape() as tape:
            taps = each(images(), training=True)
            loss = tf.add_n([tf.reduce_mean(tf.square(tap)) for tap in taps])
        found.append([*taps, *tape.gradient(loss, weights)])
    assert len(found[0]) == len(found[1]) > 5
    for ours, theirs in zip(*found, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * scale + 1e-7)


@pytest.mark.parametrize(
    "policy, tolerance", [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)]
)
def test_a_strided_depthwise_has_about_the_gradients_of_float32(policy, tolerance):
    found = []
    for dtype in (policy, "float32"):
        keras.utils.set_random_seed(0)
        conv = keras.layers.DepthwiseConv2D(3, strides=2, use_bias=False, dtype=dtype)
        model = folding.fold(
            keras.Model(*chain(conv, keras.layers.BatchNormalization(dtype=dtype)))
        )
        assert not norms(model)
        x = images()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(model(x), tf.float32)
            loss = tf.reduce_mean(tf.square(y))
        found.append([y, *tape.gradient(loss, [x, *model.trainable_weights])])
    for ours, plain in zip(*found, strict=True):
        error = np.abs(ours - plain).max()
        assert error < tolerance * np.abs(plain).max()


def test_a_strided_depthwise_has_its_gradient_to_a_map_in_float32():
    """In bfloat16 it takes twenty times as long."""
    conv = keras.layers.DepthwiseConv2D(3, strides=2, dtype="mixed_bfloat16")
    model = folding.fold(keras.Model(*chain(conv, keras.layers.BatchNormalization())))

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x)
        return tape.gradient(y, x)

    operations = gradient.get_concrete_function(images()).graph.get_operations()
    kind = "DepthwiseConv2dNativeBackpropInput"
    [found] = [operation for operation in operations if operation.type == kind]
    assert found.get_attr("T") == tf.float32


def test_a_norm_that_is_trained_stays_on_its_own_and_is_over_all_replicas():
    network = pretrained.build("mobilenet_v2", image_size=SIZE, weights="imagenet")
    folded = folding.fold(network)
    assert len(norms(folded)) == len(norms(network)) > 40
    for ours, theirs in zip(norms(folded), norms(network), strict=True):
        assert isinstance(ours, batch_norm.SyncBatchNorm)
        assert (ours.momentum, ours.epsilon) == (theirs.momentum, theirs.epsilon)
        assert [v.path for v in ours.weights] == [v.path for v in theirs.weights]
    for ours, theirs in zip(folded(images()), network(images()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def chain(*layers):
    """Returns a model of layers, one after the other; norms are not trained."""
    x = image = keras.Input((SIZE, SIZE, 3))
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
        x = layer(x)
    return image, x


def test_a_convolution_that_others_read_too_stays_on_its_own():
    conv = keras.layers.Conv2D(4, 3)
    image, x = chain(conv, keras.layers.BatchNormalization())
    for outputs in ([x, conv.output], [x + conv.output]):
        model = keras.Model(image, outputs)
        assert len(norms(folding.fold(model))) == 1


@pytest.mark.parametrize(
    "conv",
    [
        keras.layers.Conv2D(4, 3, strides=2, padding="same", bias_initializer="ones"),
        keras.layers.Conv2D(4, 3, dilation_rate=2, use_bias=False),
        keras.layers.DepthwiseConv2D(3, strides=2, padding="same"),
        keras.layers.DepthwiseConv2D(3, strides=2, dilation_rate=2),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="ones"),
    ],
)
def test_bias_stride_dilation_and_multiplier_are_those_of_the_convolution(conv):
    network = keras.Model(*chain(conv, keras.layers.BatchNormalization()))
    norm = norms(network)[0]
    norm.set_weights(
        [np.random.default_rng(0).uniform(0.5, 2, v.shape) for v in norm.weights]
    )
    folded = folding.fold(network)
    assert not norms(folded)
    np.testing.assert_allclose(folded(images()), network(images()), atol=1e-5)


def test_weights_are_rounded_once_in_bfloat16():
    """Folded in bfloat16, kernel and scale would be rounded before their product too."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        conv = keras.layers.Conv2D(4, 1, use_bias=False)
        network = keras.Model(*chain(conv, keras.layers.BatchNormalization()))
    finally:
        keras.config.set_dtype_policy("float32")
    norm = norms(network)[0]
    gamma = np.random.default_rng(0).uniform(0.5, 2, 4).astype(np.float32)
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    norm.set_weights([gamma, zero, zero, one - norm.epsilon])
    ours = folding.fold(network)(tf.ones((1, SIZE, SIZE, 3)))[0, 0, 0]
    kernel = tf.cast(conv.get_weights()[0] * gamma, tf.bfloat16)
    exact = tf.reduce_sum(tf.cast(kernel, tf.float32), (0, 1, 2))
    np.testing.assert_allclose(tf.cast(ours, tf.float32), exact, rtol=2**-8)


def test_a_folded_encoder_saved_whole_comes_back_with_its_numbers(tmp_path):
    folded = folding.fold(plain())
    folded.save(tmp_path / "encoder.keras")
    again = keras.saving.load_model(tmp_path / "encoder.keras")
    for ours, theirs in zip(again(images()), folded(images()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "padding", "kernel", "folds"),
    [
        (32, ((0, 1), (0, 1)), 3, True),
        (32, ((1, 2), (1, 2)), 5, True),
        (31, ((1, 1), (1, 1)), 3, True),
        (32, ((1, 1), (1, 1)), 3, False),
        (32, ((3, 3), (3, 3)), 7, False),
        (32, ((0, 1), (1, 0)), 3, False),
    ],
)
def test_padding_goes_into_the_convolution_where_it_is_that_of_same(
    size, padding, kernel, folds
):
    image = keras.Input((size, size, 3))
    pad = keras.layers.ZeroPadding2D(padding)
    conv = keras.layers.DepthwiseConv2D(kernel, strides=2)
    norm = keras.layers.BatchNormalization(trainable=False)
    network = keras.Model(image, norm(conv(pad(image))))
    folded = folding.fold(network)
    assert not norms(folded)
    kinds = [type(layer) for layer in folded.layers]
    assert (keras.layers.ZeroPadding2D not in kinds) == folds
    x = tf.random.stateless_uniform((2, size, size, 3), (1, 2))
    assert folded.output_shape == network.output_shape
    np.testing.assert_allclose(folded(x), network(x), atol=1e-5)


def test_padding_that_others_read_too_stays():
    image = keras.Input((SIZE, SIZE, 3))
    padded = keras.layers.ZeroPadding2D(((0, 1), (0, 1)))(image)
    x = keras.layers.Conv2D(4, 3, strides=2)(padded)
    x = keras.layers.BatchNormalization(trainable=False)(x)
    folded = folding.fold(keras.Model(image, [x, padded]))
    assert not norms(folded)
    assert [t.shape for t in folded(images())] == [(2, 16, 16, 4), (2, 33, 33, 3)]
