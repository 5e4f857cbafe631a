"""The U-Net: the tutorial's numbers, what is trained and what is not, its precision."""

import random
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import encoders, model, pretrained, step, sums, up_conv

SIZE = 32


@pytest.fixture(autouse=True)
def _precision():
    """Takes back the global precision that building a model sets."""
    yield
    keras.config.set_dtype_policy("float32")


def build(**settings):
    settings = {"encoder_weights": "none", "image_size": SIZE, **settings}
    return model.build_unet(**{"num_classes": 3, **settings})


def images(count=2, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def copies(variables):
    return {v.path: v.numpy().copy() for v in variables}


def changed(before, variables):
    return {v.path for v in variables if (before[v.path] != v.numpy()).any()}


def train(unet, steps=2):
    """Takes training steps as a run does."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    mask = np.random.default_rng(1).integers(0, 3, (2, SIZE, SIZE)).astype(np.uint8)
    batches = tf.data.Dataset.from_tensors((images(), mask)).repeat()
    optimizer = step.make_optimizer(
        unet,
        name="adam",
        learning_rate=1e-2,
        schedule="constant",
        warmup_steps=0,
        total_steps=steps,
        weight_decay=0.0,
    )
    train_steps = step.make_train_steps(strategy, unet, optimizer)
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    assert train_steps(iterator, steps)[2] == steps


@pytest.mark.parametrize("size", [32, 128])
def test_unet_of_3_classes_has_the_tutorials_parameters(size):
    unet = build(image_size=size)
    assert count(unet.weights) == 6_504_227
    assert count(unet.trainable_weights) == 4_660_323


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("mobilenet_v2", "tutorial"), *((name, "light") for name in encoders.NAMES)],
)
def test_a_model_at_another_size_is_the_one_built_for_it_with_the_same_weights(
    encoder, decoder, training
):
    settings = dict(encoder=encoder, decoder=decoder, train_encoder=True)
    unet, other = build(image_size=96, **settings), build(image_size=64, **settings)
    at_other = model.at(unet, 64)
    assert [id(v) for v in at_other.variables] == [id(v) for v in unet.variables]
    other.set_weights([1.5 * v for v in unet.get_weights()])
    unet.set_weights(other.get_weights())
    found, expected = (
        network(images(2, 64), training=training).numpy()
        for network in (at_other, other)
    )
    np.testing.assert_array_equal(found, expected)
    assert unet(images(2, 96)).shape == (2, 96, 96, 3)
    assert model.at(unet, 96) is unet


def test_training_the_encoder_trains_all_but_moving_averages_and_its_norms():
    unet = build(train_encoder=True)
    trained = {v.path for v in unet.trainable_weights}
    for weight in unet.get_layer("encoder").weights:
        of_norm = weight.name in ("gamma", "beta", "moving_mean", "moving_variance")
        assert (weight.path in trained) != of_norm
    assert trained > {v.path for v in build().trainable_weights}


def test_training_the_encoders_norms_too_leaves_out_the_moving_averages_only():
    unet = build(train_encoder=True, train_encoder_batch_norm=True)
    left_out = {v.path for v in unet.weights} - {v.path for v in unet.trainable_weights}
    assert all("moving_" in path for path in left_out)


def test_an_encoder_that_is_trained_from_a_stride_on_is_frozen_before_it():
    unet = build(train_encoder=True, train_encoder_from=8)
    trained = {v.path for v in unet.trainable_weights}
    kernels = [v.path for v in unet.get_layer("encoder").weights if "kernel" in v.path]
    first = next(n for n, path in enumerate(kernels) if "block_3_depthwise" in path)
    assert first > 5
    assert not trained & set(kernels[:first])
    assert trained > set(kernels[first:])


@pytest.mark.parametrize("num_classes", [2, 5])
def test_logits_have_the_images_size_and_a_channel_for_each_class(num_classes):
    logits = build(image_size=64, num_classes=num_classes)(images(3, 64))
    assert logits.shape == (3, 64, 64, num_classes)
    assert logits.dtype == tf.float32


def tutorial(unet):
    """Returns the decoder in the layers of TensorFlow's tutorial, weights copied."""
    encoder, copied = unet.get_layer("encoder"), []
    image = keras.Input((SIZE, SIZE, 3))
    *skips, x = encoder(image / 127.5 - 1)
    for width, skip in zip((512, 256, 128, 64), reversed(skips), strict=True):
        convolution = keras.layers.Conv2DTranspose(
            width, 3, strides=2, padding="same", use_bias=False
        )
        norm = keras.layers.BatchNormalization()
        x = keras.layers.ReLU()(norm(convolution(x)))
        x = keras.layers.Concatenate()([x, skip])
        copied += [(convolution, f"up_{width}"), (norm, f"up_{width}_norm")]
    last = keras.layers.Conv2DTranspose(3, 3, strides=2, padding="same")
    plain = keras.Model(image, last(x))
    for layer, name in [*copied, (last, "up_logits")]:
        layer.set_weights(unet.get_layer(name).get_weights())
    return plain


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("train_encoder", [False, True])
def test_outputs_and_gradients_are_those_of_the_tutorials_layers(
    training, train_encoder, exact, monkeypatch
):
    monkeypatch.setattr(sums, "exact", lambda: exact)
    # Real weights: with random ones, the skips would hardly reach the logits.
    unet = build(encoder_weights="imagenet", train_encoder=train_encoder)
    plain = tutorial(unet)
    mask = np.random.default_rng(1).integers(0, 3, (4, SIZE, SIZE))
    found = []
    for each in (unet, plain):
        with tf.GradientTape() as tape:
            logits = each(images(4), training=training)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(mask, logits)
            )
        found.append([logits, *tape.gradient(loss, each.trainable_weights)])
    shapes = [[tuple(value.shape) for value in values] for values in found]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 13
    for ours, theirs in zip(*found, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale + 1e-7)


def test_sums_are_exact_but_on_a_tpu(monkeypatch):
    assert sums.exact()
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        assert sums.exact()
    # One that works cannot be made without a TPU.
    tpu = object.__new__(tf.distribute.TPUStrategy)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: tpu)
    assert not sums.exact()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_kernel_by_a_product_is_that_of_the_convolution(
    dtype, compiled
):
    rng = np.random.default_rng(0)
    x = tf.cast(rng.standard_normal((2, 3, 5, 4)), dtype)  # Neither square nor even.
    dy = tf.cast(rng.standard_normal((2, 6, 10, 7)), dtype)
    by_product = tf.function(up_conv._as_product, jit_compile=compiled)
    found = by_product(dy, x)
    assert found.dtype == dtype

    def convolved(dtype):
        gradient = tf.raw_ops.Conv2DBackpropFilter(
            input=tf.cast(dy, dtype),
            filter_sizes=(3, 3, 7, 4),
            out_backprop=tf.cast(x, dtype),
            strides=(1, 2, 2, 1),
            padding="SAME",
        )
        return np.float32(gradient)

    exact = convolved("float32")
    last_digit = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    allowed = 1e-5 + last_digit * np.abs(exact)
    off, plain_off = (
        np.abs(np.float32(each) - exact) for each in (found, convolved(dtype))
    )
    if (plain_off > allowed).any():
        # TensorFlow's own sums on a processor without bfloat16: no worse than those.
        allowed = plain_off.max()
    assert (off <= allowed).all()


def test_normalisation_to_minus_1_to_1_is_inside():
    unet = build()
    normalised = keras.Model(unet.input, unet.get_layer("normalise").output)
    values = np.linspace(0, 255, SIZE * SIZE * 3, dtype=np.float32)
    seen = normalised(values.reshape(1, SIZE, SIZE, 3))
    np.testing.assert_allclose(
        np.ravel(seen), np.linspace(-1, 1, SIZE * SIZE * 3), atol=1e-6
    )
    *_, bottleneck = unet.get_layer("encoder")(images() / 127.5 - 1)
    through = keras.Model(unet.input, unet.get_layer("up_512").input)(images())
    np.testing.assert_allclose(through, bottleneck, rtol=1e-4, atol=1e-16)


def test_frozen_encoder_does_not_change_in_training_and_the_decoder_does():
    unet = build(encoder_weights="imagenet")
    encoder = unet.get_layer("encoder").weights
    decoder = [v for v in unet.weights if all(v is not w for w in encoder)]
    before = copies(unet.weights)
    train(unet)
    assert changed(before, encoder) == set()
    assert changed(before, decoder) == {v.path for v in decoder}


@pytest.mark.parametrize("asked", [False, True])
def test_encoders_norms_are_in_inference_mode_unless_they_are_to_be_trained(asked):
    unet = build(train_encoder=True, train_encoder_batch_norm=asked)
    encoder = unet.get_layer("encoder").weights
    before = copies(encoder)
    unet(images(), training=True)
    moving = {v.path for v in encoder if "moving_" in v.path}
    assert changed(before, encoder) == (moving if asked else set())


def test_encoder_starts_from_the_bundled_weights():
    unet = build(encoder_weights="imagenet")
    network = keras.applications.MobileNetV2(
        input_shape=(SIZE, SIZE, 3), include_top=False, weights=None
    )
    network.load_weights(pretrained.BUNDLED_WEIGHTS)
    theirs = network.get_layer("block_16_project").get_weights()
    ours = unet.get_layer("encoder").get_layer("block_16_project").get_weights()
    np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(
        build().get_layer("encoder").get_layer("block_16_project").get_weights(), theirs
    )


def test_encoder_starts_from_a_file_of_weights(tmp_path):
    keras.utils.set_random_seed(9)
    network = keras.applications.MobileNetV2(
        input_shape=(SIZE, SIZE, 3), include_top=False, weights=None
    )
    path = str(tmp_path / "mine.weights.h5")
    network.save_weights(path)
    unet = build(encoder_weights=path)
    for name in ("Conv1", "block_16_project"):
        np.testing.assert_array_equal(
            unet.get_layer("encoder").get_layer(name).get_weights()[0],
            network.get_layer(name).get_weights()[0],
        )


def test_same_seed_makes_the_same_weights_and_another_makes_others():
    first, second, other = (copies(build(seed=s).weights) for s in (4, 4, 5))
    assert first.keys() == second.keys() == other.keys()
    assert all((first[path] == second[path]).all() for path in first)
    kernels = [path for path in first if path.endswith("kernel")]
    assert all((first[path] != other[path]).any() for path in kernels)


def test_other_threads_that_draw_random_numbers_change_no_weight():
    alone, ended = copies(build(seed=4).weights), threading.Event()

    def draw():
        while not ended.is_set():
            random.random()

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        beside = copies(build(seed=4).weights)
    finally:
        ended.set()
        drawing.join()
    assert all((alone[path] == beside[path]).all() for path in alone)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_weights_and_logits_are_float32_in_every_precision(precision):
    unet = build(precision=precision)
    assert {v.dtype for v in unet.weights} == {"float32"}
    image = tf.constant(images())
    logits = unet(image)
    assert logits.dtype == tf.float32
    computed = {"float32": "float32"}.get(precision, precision.removeprefix("mixed_"))
    assert unet.get_layer("up_512").compute_dtype == computed
    assert unet.get_layer("encoder").get_layer("Conv1").conv.compute_dtype == computed
    assert {t.dtype.name for t in unet.get_layer("encoder")(image)} == {computed}


def test_mixed_precision_gives_nearly_the_numbers_of_float32():
    exact = build(encoder_weights="imagenet")(images())
    mixed = build(encoder_weights="imagenet", precision="mixed_bfloat16")(images())
    assert 0 < np.abs(mixed - exact).max() < 0.1 * np.abs(exact).max()


def wrong_width(path):
    network = keras.applications.MobileNetV2(
        input_shape=(SIZE, SIZE, 3), include_top=False, weights=None, alpha=0.35
    )
    network.save_weights(path)


def other_network(path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(path)


def text(path):
    with open(path, "w", encoding="utf-8") as file:
        file.write("no weights")


def nothing(path):
    pass


@pytest.mark.parametrize("write", [wrong_width, other_network, text, nothing])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, write):
    path = str(tmp_path / "other.weights.h5")
    write(path)
    with pytest.raises(ValueError, match="encoder_weights must ") as refusal:
        build(encoder_weights=path)
    assert path in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_model_saved_whole_comes_back_with_its_numbers(tmp_path):
    unet = build()
    unet.save(tmp_path / "unet.keras")
    again = keras.saving.load_model(tmp_path / "unet.keras")
    np.testing.assert_allclose(again(images()), unet(images()), atol=1e-6)
