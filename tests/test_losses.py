"""Sums of cross-entropy, against Keras and against what is known by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import losses


def example(seed=0, n=3, side=8, num_classes=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, side, side, num_classes)).astype(np.float32)
    return logits, rng.integers(0, num_classes, (n, side, side)).astype(np.int32)


def gradient(logits, mask):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        per_image, _ = losses.cross_entropy(logits, mask)
    return tape.gradient(per_image, logits).numpy()


def test_loss_over_pixels_is_that_of_keras():
    logits, mask = example()
    per_image, pixels = losses.cross_entropy(logits, mask)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_array_equal(pixels, [64, 64, 64])
    mean = tf.reduce_sum(per_image) / tf.reduce_sum(pixels)
    np.testing.assert_allclose(mean, expected(mask, logits), rtol=1e-6)


def test_uniform_logits_cost_the_logarithm_of_the_classes_per_pixel():
    _, mask = example()
    per_image, _ = losses.cross_entropy(np.full((3, 8, 8, 3), 7, np.float32), mask)
    np.testing.assert_allclose(per_image, [64 * np.log(3)] * 3, rtol=1e-6)


def test_gradient_is_softmax_minus_truth():
    logits, mask = example()
    expected = tf.nn.softmax(logits).numpy() - np.eye(3)[mask]
    np.testing.assert_allclose(gradient(logits, mask), expected, atol=1e-6)


def test_ignored_pixels_add_nothing_to_loss_or_count():
    logits, mask = example()
    mask[1, :4] = 255
    mask[2] = 255
    per_image, pixels = losses.cross_entropy(logits, mask)
    upper, _ = losses.cross_entropy(logits[1:2, 4:], mask[1:2, 4:])
    np.testing.assert_array_equal(pixels, [64, 32, 0])
    np.testing.assert_allclose(per_image[1], upper[0], rtol=1e-6)
    assert per_image[2] == 0


def test_gradient_is_exactly_zero_at_ignored_pixels_whatever_the_logits():
    logits, mask = example()
    mask[0, :2] = 255
    logits[0, 0] = [1e38, -1e38, 0]
    logits[0, 1] = -65504
    found = gradient(logits, mask)
    assert (found[0, :2] == 0).all()
    assert np.isfinite(found).all() and (found[0, 2:] != 0).all()


def test_sure_mistake_costs_the_distance_of_the_logits_and_is_finite():
    logits = np.array([[[[1e4, 0.0, -1e4]]]], np.float32)
    per_image, _ = losses.cross_entropy(logits, np.array([[[2]]]))
    assert per_image[0] == 2e4


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_loss_is_computed_in_float32_whatever_the_logits(dtype):
    logits, mask = example()
    narrow = tf.cast(logits, dtype)
    per_image, pixels = losses.cross_entropy(narrow, mask)
    assert per_image.dtype == pixels.dtype == tf.float32
    expected, _ = losses.cross_entropy(tf.cast(narrow, tf.float32), mask)
    np.testing.assert_array_equal(per_image, expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_loss_of_an_image_does_not_depend_on_its_batch(size):
    logits, mask = example(n=5, side=64)
    whole, _ = losses.cross_entropy(logits, mask)
    parts = [
        losses.cross_entropy(logits[i : i + size], mask[i : i + size])[0]
        for i in range(0, 5, size)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_loss_compiles_under_xla_with_an_unsigned_mask():
    logits, mask = example()
    mask[0, 0] = 255
    compiled = tf.function(losses.cross_entropy, jit_compile=True)
    per_image, pixels = compiled(logits, mask.astype(np.uint8))
    expected, counted = losses.cross_entropy(logits, mask)
    np.testing.assert_allclose(per_image, expected, rtol=1e-6)
    np.testing.assert_array_equal(pixels, counted)
