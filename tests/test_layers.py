"""The decoders' layers: BatchNorm over all replicas, and the transposed convolution."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs
from trainer import batch_norm, sums, up_conv

KINDS = {
    "the decoders'": batch_norm.SyncBatchNorm,
    "the encoders'": functools.partial(
        keras.layers.BatchNormalization, synchronized=True
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_is_that_of_one_device_with_the_examples_of_all_replicas(kind):
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 3, 5)).astype(np.float32)
    x[2:] += 10  # What a replica sees alone is nothing like the whole.

    def seen(replicas):
        strategy = runs.mirrored(replicas)
        with strategy.scope():
            norm = KINDS[kind]()
            norm.build(x.shape)

        def part(context):
            return np.split(x, replicas)[context.replica_id_in_sync_group]

        parts = strategy.experimental_distribute_values_from_function(part)

        def replica_step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = norm(x, training=True)
                # The gradient to y is another for each of its values.
                loss = tf.reduce_sum(y**3) / 36  # Examples and pixels.
            to_x, *to_weights = tape.gradient(loss, [x, *norm.trainable_variables])
            return y, to_x, sums.over_replicas(to_weights)

        @tf.function
        def step(parts):
            return strategy.run(replica_step, args=(parts,))

        *maps, to_weights = step(parts)
        made = [
            np.concatenate(strategy.experimental_local_results(part)) for part in maps
        ]
        summed = [strategy.experimental_local_results(g)[0] for g in to_weights]
        moving = (norm.moving_mean, norm.moving_variance)
        return *made, *summed, *map(keras.ops.convert_to_numpy, moving)

    for ours, theirs in zip(seen(2), seen(1), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(), (1000,), (None, 2)])
def test_values_are_added_two_and_two(shape, count):
    rng = np.random.default_rng(0)
    size = [side or 300 for side in shape]
    values = [np.float32(rng.normal(0, 1, size)) for _ in range(count)]
    pairs = list(values)
    while len(pairs) > 1:
        added = [a + b for a, b in zip(pairs[::2], pairs[1::2], strict=False)]
        pairs = added + pairs[len(pairs) // 2 * 2 :]

    @tf.function(input_signature=[tf.TensorSpec(shape)] * count)
    def added(*values):
        return sums.in_pairs([tf.identity(value) for value in values])

    np.testing.assert_array_equal(added(*values), pairs[0])


@pytest.mark.parametrize(
    "policy, tolerance",
    [("float32", 1e-5), ("mixed_bfloat16", 2e-2), ("mixed_float16", 2e-3)],
)
@pytest.mark.parametrize("n", [3, 32])  # One group of examples, and two.
@pytest.mark.parametrize("kind", ["CPU", "GPU"])  # The formulas differ.
def test_batch_norm_and_its_gradients_are_those_of_the_formula(
    kind, n, policy, tolerance, monkeypatch
):
    devices = {kind: ["one"]}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda k: devices.get(k, []))
    rng = np.random.default_rng(0)
    shape = (n, 4, 4, 5)
    norm = batch_norm.SyncBatchNorm(dtype=policy)
    dtype = norm.compute_dtype
    x = tf.constant(rng.normal(3, 2, shape), dtype)
    dy = tf.constant(rng.normal(1, 1, shape), dtype)
    norm.build(shape)
    norm.gamma.assign(rng.uniform(0.5, 2, 5))
    norm.beta.assign(rng.normal(0, 1, 5))
    weights = [norm.gamma.value, norm.beta.value]

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = norm(x, training=True)
    found = [y, *tape.gradient(y, [x, *weights], output_gradients=dy)]

    x, dy, gamma, beta = (tf.cast(v, tf.float64) for v in (x, dy, *weights))
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        mean, variance = tf.nn.moments(x, (0, 1, 2))
        y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, norm.epsilon)
    expected = [y, *tape.gradient(y, [x, gamma, beta], output_gradients=dy)]

    assert found[0].dtype == dtype and found[1].dtype == dtype
    for ours, plain in zip(found, expected, strict=True):
        plain = plain.numpy()
        np.testing.assert_allclose(
            ours.numpy().astype(float), plain, atol=tolerance * np.abs(plain).max()
        )
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, rtol=1e-3)
    moving_variance = 0.99 + 0.01 * variance.numpy()
    np.testing.assert_allclose(norm.moving_variance, moving_variance, rtol=1e-3)


@pytest.mark.parametrize(
    "policy, tolerance",
    [("float32", 1e-5), ("mixed_bfloat16", 2e-2), ("mixed_float16", 5e-3)],
)
@pytest.mark.parametrize("filters", [3, 8])  # Those of the last layer, and of others.
@pytest.mark.parametrize("n", [2, 32])  # One group of examples, and two.
def test_an_up_conv_and_its_gradients_are_those_of_keras(n, filters, policy, tolerance):
    rng = np.random.default_rng(0)
    shapes = [(n, 4, 4, 6), (n, 4, 4, 5)]
    parts = [tf.constant(rng.normal(0, 1, s), tf.float32) for s in shapes]
    dy = tf.constant(rng.normal(0, 1, (n, 8, 8, filters)), tf.float32)
    how = dict(use_bias=True, kernel_initializer="orthogonal")
    theirs = keras.layers.Conv2DTranspose(filters, 3, 2, "same", **how)
    theirs.build((n, 4, 4, 11))
    rounded = keras.layers.Conv2DTranspose(filters, 3, 2, "same", dtype=policy, **how)
    rounded.build((n, 4, 4, 11))
    ours = up_conv.UpConv(filters, dtype=policy, **how)
    ours.build(shapes)
    for each in (ours, rounded):
        each.set_weights(theirs.get_weights())

    def found(layer, inputs):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            y = tf.cast(layer(inputs()), tf.float32)
        weights = layer.trainable_variables
        return [y, *tape.gradient(y, [*parts, *weights], output_gradients=dy)]

    def off(value, exact):
        return np.abs(np.float32(value) - exact).max()

    exact, plain = (
        found(layer, lambda: tf.concat(parts, axis=-1)) for layer in (theirs, rounded)
    )
    for value, one, other in zip(found(ours, lambda: parts), exact, plain, strict=True):
        # On a processor without bfloat16 TensorFlow's own sums are off by more.
        allowed = max(tolerance * np.abs(one).max(), off(other, one))
        assert off(value, one) <= allowed
