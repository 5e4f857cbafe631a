"""One step: the same update on any replicas, the clip, the float16 scale, the stop."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs
from trainer import checkpoint, distribution, losses, step, up_conv

SIZE, CLASSES, RATE = 4, 3, 0.5


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    return runs.mirrored(replicas)


def dense():
    """Returns a model whose gradient can be computed by hand: logits = image @ w."""
    image = keras.Input((SIZE, SIZE, 3))
    layer = keras.layers.Dense(CLASSES, use_bias=False, kernel_initializer="zeros")
    return keras.Model(image, layer(image))


class PlainSteps:
    """Stands in for the optimizer: subtracts the gradient it is given."""

    def __init__(self, scope):
        with scope:
            self.seen = keras.Variable(0, dtype="int32", trainable=False)

    def apply(self, gradients, variables):
        """Takes a step."""
        self.seen.assign(self.seen.value + 1)
        for gradient, variable in zip(gradients, variables, strict=True):
            variable.assign(variable.value - RATE * gradient)


def value(variable):
    return keras.ops.convert_to_numpy(variable)


def batches(strategy, image, mask):
    """Returns the iterator of batches (steps, N, ...), dealt to the replicas."""
    n = image.shape[1] // strategy.num_replicas_in_sync

    def stream(_):
        ds = tf.data.Dataset.from_tensor_slices((image, mask)).unbatch()
        return ds.batch(n, drop_remainder=True)

    return iter(strategy.distribute_datasets_from_function(stream))


def drawn(steps=1, n=4, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 3, (steps, n, SIZE, SIZE, 3)).astype(np.uint8)
    mask = rng.integers(0, CLASSES, (steps, n, SIZE, SIZE)).astype(np.uint8)
    mask[:, 0] = 255  # the replicas count unequal numbers of pixels
    mask[:, 1, 1:] = 255
    return image, mask


def by_hand(weights, image, mask):
    """Returns loss and gradient of a batch as a sum over the pixels that count."""
    x = image[mask != 255].astype(np.float64)
    truth = np.eye(CLASSES)[mask[mask != 255]]
    e = np.exp(x @ weights)
    share = e / e.sum(axis=1, keepdims=True)
    loss = -np.log((share * truth).sum(axis=1)).sum() / len(x)
    return loss, x.T @ (share - truth) / len(x)


def taken(replicas, image, mask, **settings):
    """Returns (losses' sum, last, steps, waited), weights, optimizer after steps."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        model = dense()
    optimizer = PlainSteps(strategy.scope())
    run = step.make_train_steps(strategy, model, optimizer, **settings)
    result = run(batches(strategy, image, mask), len(image))
    return result, model.get_weights()[0], optimizer


@pytest.mark.parametrize("replicas", [1, 2])
def test_loss_and_gradient_are_sums_over_the_counted_pixels_of_all_replicas(replicas):
    image, mask = drawn()
    loss, gradient = by_hand(np.zeros((3, CLASSES)), image[0], mask[0])
    found, weights, _ = taken(replicas, image, mask)
    assert found[0] == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(weights, -RATE * gradient, rtol=1e-5, atol=1e-7)


def test_a_batch_without_a_counted_pixel_has_loss_0_and_changes_nothing():
    image, mask = drawn()
    found, weights, _ = taken(2, image, np.full_like(mask, 255))
    assert found[:3] == (0, 0, 1)
    assert not weights.any()


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_sum_over_replicas_is_clipped_not_its_parts(replicas):
    image, mask = drawn()
    _, gradient = by_hand(np.zeros((3, CLASSES)), image[0], mask[0])
    norm = np.linalg.norm(gradient)
    _, weights, _ = taken(replicas, image, mask, clip_norm=norm / 4)
    np.testing.assert_allclose(weights, -RATE * gradient / 4, rtol=1e-5, atol=1e-7)
    _, weights, _ = taken(replicas, image, mask, clip_norm=norm * 1.01)
    np.testing.assert_allclose(weights, -RATE * gradient, rtol=1e-5, atol=1e-7)


def adam(model, **more):
    """Returns the optimizer of a run; call it in the strategy's scope."""
    return step.make_optimizer(
        model,
        name="adam",
        learning_rate=0.1,
        schedule="constant",
        warmup_steps=0,
        total_steps=3,
        weight_decay=0.0,
        **more,
    )


def momentum_of(replicas, image, mask):
    """Returns Adam's first moment after a step: a tenth of the gradient it was given."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        model = dense()
        optimizer = adam(model)
    run = step.make_train_steps(strategy, model, optimizer)
    run(batches(strategy, image, mask), 1)
    [moment] = [v for v in optimizer.variables if "momentum" in v.path]
    return keras.ops.convert_to_numpy(moment)


@pytest.mark.parametrize("replicas", [1, 2])
def test_keras_does_not_sum_the_gradients_a_second_time(replicas):
    image, mask = drawn()
    _, gradient = by_hand(np.zeros((3, CLASSES)), image[0], mask[0])
    found = momentum_of(replicas, image, mask)
    np.testing.assert_allclose(found, 0.1 * gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_loss_that_is_not_finite_stops_in_the_middle_of_a_call(replicas):
    image, mask = drawn(steps=5)
    image[2] = 255

    class NanWhereWhite(keras.layers.Layer):
        def call(self, image, logits):
            return tf.where(tf.reduce_any(image > 250), np.nan, logits)

    strategy = strategy_of(replicas)
    with strategy.scope():
        inner = dense()
        image_in, logits = inner.inputs[0], inner.outputs[0]
        model = keras.Model(image_in, NanWhereWhite()(image_in, logits))
    optimizer = PlainSteps(strategy.scope())
    run = step.make_train_steps(strategy, model, optimizer)
    total, last, steps, _ = run(batches(strategy, image, mask), 5)
    assert steps == 3
    assert np.isnan(last) and np.isnan(total)


# ---------------------------------------------------------------------------
# float16


def test_the_scale_doubles_after_enough_good_steps_and_halves_after_a_bad_one():
    scale = step.LossScale()
    assert value(scale.scale) == step.FIRST_SCALE
    for _ in range(step.STEPS_TO_DOUBLE - 1):
        scale.adjust(tf.constant(True))
    assert value(scale.scale) == step.FIRST_SCALE
    scale.adjust(tf.constant(True))
    assert value(scale.scale) == 2 * step.FIRST_SCALE
    assert value(scale.good_steps) == 0
    scale.adjust(tf.constant(True))
    scale.adjust(tf.constant(False))
    assert value(scale.scale) == step.FIRST_SCALE
    assert value(scale.good_steps) == 0


def test_the_scale_never_falls_below_1():
    scale = step.LossScale()
    for _ in range(20):
        scale.adjust(tf.constant(False))
    assert value(scale.scale) == 1


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_scale_is_taken_out_of_the_gradient_again(replicas):
    image, mask = drawn()
    _, gradient = by_hand(np.zeros((3, CLASSES)), image[0], mask[0])
    strategy = strategy_of(replicas)
    with strategy.scope():
        model, scale = dense(), step.LossScale()
    optimizer = PlainSteps(strategy.scope())
    run = step.make_train_steps(strategy, model, optimizer, loss_scale=scale)
    run(batches(strategy, image, mask), 1)
    np.testing.assert_allclose(
        model.get_weights()[0], -RATE * gradient, rtol=1e-5, atol=1e-7
    )
    assert value(scale.good_steps) == 1


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_whose_gradient_overflows_is_left_out_and_halves_the_scale(
    replicas, clip_norm
):
    image, mask = drawn()
    strategy = strategy_of(replicas)
    with strategy.scope():
        model, scale = dense(), step.LossScale()
    scale.scale.assign(3e38)
    optimizer = PlainSteps(strategy.scope())
    run = step.make_train_steps(
        strategy, model, optimizer, loss_scale=scale, clip_norm=clip_norm
    )
    image[...] = 255  # 3e38 times the gradient is more than float32 holds
    mask[mask != 255] = 0
    _, last, steps, _ = run(batches(strategy, image, mask), 1)
    assert np.isfinite(last) and steps == 1
    assert not model.get_weights()[0].any()
    assert value(optimizer.seen) == 0
    assert value(scale.scale) == pytest.approx(1.5e38)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_optimizer_of_a_run_steps_and_leaves_out_steps_with_a_loss_scale(replicas):
    image, mask = drawn()
    strategy = strategy_of(replicas)
    with strategy.scope():
        model, scale = dense(), step.LossScale()
        optimizer = adam(model)
    run = step.make_train_steps(strategy, model, optimizer, loss_scale=scale)
    run(batches(strategy, image, mask), 1)
    after = model.get_weights()[0]
    assert after.any() and value(optimizer.iterations) == 1
    scale.scale.assign(3e38)
    image[...], mask[mask != 255] = 255, 1
    run(batches(strategy, image, mask), 1)
    np.testing.assert_array_equal(model.get_weights()[0], after)
    assert value(optimizer.iterations) == 1
    assert value(scale.scale) == pytest.approx(1.5e38)


# ---------------------------------------------------------------------------
# The learning rate


def rates(schedule, warmup_steps, total_steps=10):
    optimizer = step.make_optimizer(
        dense(),
        name="adamw",
        learning_rate=0.1,
        schedule=schedule,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        weight_decay=0.01,
    )
    found = []
    for at in range(total_steps + 1):
        optimizer.iterations.assign(at)
        found.append(float(optimizer.learning_rate))
    return found


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_over_the_warm_up_then_stays_or_falls_to_0(schedule, warmup):
    expected = []
    for at in range(11):
        rate = 0.1
        if at < warmup:
            rate *= at / warmup
        elif schedule == "cosine":
            rate *= (1 + np.cos(np.pi * (at - warmup) / (10 - warmup))) / 2
        expected.append(rate)
    np.testing.assert_allclose(rates(schedule, warmup), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_update_is_that_of_keras(name):
    rng = np.random.default_rng(0)
    gradients = [tf.constant(rng.normal(0, 1, (3, CLASSES)), tf.float32)]
    ours, plain = dense(), dense()
    recipe = dict(name=name, learning_rate=0.1, weight_decay=0.05)
    optimizer = step.make_optimizer(
        ours, **recipe, schedule="constant", warmup_steps=0, total_steps=1
    )
    theirs = keras.optimizers.Adam(0.1)
    if name == "adamw":
        theirs = keras.optimizers.AdamW(0.1, weight_decay=0.05)
    for scale in (1.0, -0.5, 1e-3, 3.0):
        scaled = [g * scale for g in gradients]
        optimizer.apply(scaled, ours.trainable_variables)
        theirs.apply(scaled, plain.trainable_variables)
    # Not nearer: TensorFlow takes 1 - 0.999 in float32.
    np.testing.assert_allclose(ours.get_weights(), plain.get_weights(), rtol=2e-5)


def test_adamw_decays_each_weight_by_its_rate_beside_the_update():
    model = dense()
    model.set_weights([np.full((3, CLASSES), 2.0)])
    optimizer = step.make_optimizer(
        model,
        name="adamw",
        learning_rate=0.1,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
        weight_decay=0.05,
    )
    zero = [tf.zeros((3, CLASSES))]
    optimizer.apply(zero, model.trainable_variables)
    np.testing.assert_allclose(model.get_weights()[0], 2 * (1 - 0.1 * 0.05), rtol=1e-6)


def encoder_and_decoder():
    """Returns a model of two layers, of which one is an encoder."""
    pixels = keras.Input((SIZE, SIZE, 3))
    same = dict(use_bias=False, kernel_initializer="orthogonal")
    encoder = keras.Model(pixels, keras.layers.Dense(2, **same)(pixels), name="encoder")
    return keras.Model(pixels, keras.layers.Dense(CLASSES, **same)(encoder(pixels)))


def test_adamw_decays_an_encoder_with_a_rate_of_its_own_by_that_of_all():
    model = encoder_and_decoder()
    start = model.get_weights()
    optimizer = step.make_optimizer(
        model,
        name="adamw",
        learning_rate=0.1,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
        weight_decay=0.05,
        encoder_factor=0.25,
    )
    zero = [tf.zeros_like(v) for v in model.trainable_variables]
    optimizer.apply(zero, model.trainable_variables)
    for after, before in zip(model.get_weights(), start, strict=True):
        np.testing.assert_allclose(after, before * (1 - 0.1 * 0.05), rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_encoder_has_a_rate_of_its_own(replicas, mirrored):
    image, mask = drawn()
    strategy = mirrored(replicas) if replicas > 1 else strategy_of(1)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        unet = encoder_and_decoder()
        start = unet.get_weights()
        optimizer = adam(unet, encoder_factor=0.25)
    run = step.make_train_steps(strategy, unet, optimizer)
    run(batches(strategy, image, mask), 1)
    of_encoder, of_decoder = (
        np.abs(after - before)
        for after, before in zip(unet.get_weights(), start, strict=True)
    )
    # Adam's first step is as long as its rate, whatever the gradient.
    np.testing.assert_allclose(of_decoder, 0.1, rtol=1e-3)
    np.testing.assert_allclose(of_encoder, 0.025, rtol=1e-3)


def test_the_loss_is_that_of_the_losses_module():
    image, mask = drawn()
    logits = tf.zeros((4, SIZE, SIZE, CLASSES))
    sums, pixels = losses.cross_entropy(logits, tf.constant(mask[0]))
    expected = float(tf.reduce_sum(sums) / tf.reduce_sum(pixels))
    assert taken(1, image, mask)[0][0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_values_taken_for_a_save_stay_while_the_run_goes_on(jit_compile):
    strategy = strategy_of(1)
    image, mask = drawn(steps=3)
    with strategy.scope():
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
        x = keras.layers.BatchNormalization()(x)
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
        optimizer = keras.optimizers.Adam(RATE)
        optimizer.build(model.trainable_variables)
    named = checkpoint.named_variables(model, optimizer)
    run = step.make_train_steps(strategy, model, optimizer, jit_compile=jit_compile)
    turns = batches(strategy, image, mask)
    run(turns, 1)
    taken = checkpoint.values(named)
    copied = {name: array.copy() for name, array in taken.items()}
    run(turns, 2)
    after = checkpoint.values(named)
    for name, array in taken.items():
        np.testing.assert_array_equal(array, copied[name], name)
    unchanged = [name for name in taken if (after[name] == copied[name]).all()]
    assert [name.split("/")[-1] for name in unchanged] == ["learning_rate"]


# ---------------------------------------------------------------------------
# Other losses

LOSS = functools.partial(
    losses.share,
    terms=dict(cross_entropy=1.0, dice=0.5, jaccard=1.0, focal=1.0, lovasz=1.0),
    class_weights=(2.0, 1.0, 0.3),
    label_smoothing=0.1,
)


@pytest.fixture
def mirrored(monkeypatch):
    """Returns the strategy of a run on the devices that conftest made."""
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda cpu, devices: None
    )
    return functools.partial(distribution.make_strategy, "mirrored")


def several_steps(strategy, image, mask, **settings):
    """Returns the sum of the losses and the weights, as a U-Net's last layer learns."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SIZE, SIZE, 3))
        unet = keras.Model(inputs, up_conv.UpConv(CLASSES, use_bias=True)([inputs]))
        optimizer = adam(unet)
    run = step.make_train_steps(strategy, unet, optimizer, loss=LOSS, **settings)
    total, *_ = run(batches(strategy, image, mask), len(image))
    return total, unet.get_weights()


@pytest.fixture(scope="module")
def unequal():
    """Returns 5 batches of 64 examples; classes and counted pixels differ between them."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 64, SIZE, SIZE, 3)).astype(np.uint8)
    mask = rng.integers(0, CLASSES, (5, 64, 2 * SIZE, 2 * SIZE)).astype(np.uint8)
    mask[:, :16][mask[:, :16] == 2] = 255  # The first of 4 replicas has no class 2.
    return image, mask


@pytest.fixture(scope="module")
def on_one(unequal):
    return several_steps(strategy_of(1), *unequal)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_take_the_steps_of_one_bit_for_bit_on_any_loss(
    replicas, mirrored, unequal, on_one
):
    total, weights = several_steps(mirrored(replicas), *unequal)
    assert total == pytest.approx(on_one[0], rel=1e-6)
    for ours, theirs in zip(on_one[1], weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_any_loss_compiles_and_bears_a_loss_scale(mirrored, unequal, on_one):
    compiled = several_steps(strategy_of(1), *unequal, jit_compile=True)
    scaled = several_steps(mirrored(2), *unequal, loss_scale=step.LossScale())
    for total, weights in (compiled, scaled):
        assert total == pytest.approx(on_one[0], rel=1e-4)
        for ours, theirs in zip(on_one[1], weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
