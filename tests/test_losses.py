"""Losses and their gradients, against Keras and against what is known by hand."""

import functools
import itertools
import math

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


# ---------------------------------------------------------------------------
# The loss that is trained on

WEIGHTS = (2.0, 1.0, 5.0)
CASES = [
    *itertools.product(
        [{"cross_entropy": 1.0}, {"focal": 1.0}, {"dice": 1.0}, {"jaccard": 1.0}],
        [{}, {"class_weights": WEIGHTS}],
    ),
    ({"cross_entropy": 1.0}, {"label_smoothing": 0.1, "class_weights": WEIGHTS}),
    ({"focal": 1.0}, {"focal_gamma": 0.5}),
    ({"cross_entropy": 0.1, "lovasz": 1.0}, {}),
    ({"cross_entropy": 0.1, "lovasz": 1.0}, {"class_weights": WEIGHTS}),
    (
        {"cross_entropy": 1.0, "dice": 0.5, "jaccard": 0.25, "focal": 2.0, "lovasz": 1},
        {},
    ),
]


def four_pixels():
    """Returns logits and mask of pixels of class 0, 1, ignored, 0; class 2 is absent."""
    probabilities = [[[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]]
    probabilities += [[[0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]]
    return np.log(np.array([probabilities], np.float32)), np.array([[[0, 1], [255, 0]]])


LN7, LN6, LN5 = (-math.log(p) for p in (0.7, 0.6, 0.5))
DICE, JACCARD = (2.4 / 3.5, 1.2 / 2.05), (1.2 / 2.3, 0.6 / 1.45)
BY_HAND = {
    "cross_entropy": (LN7 + LN6 + LN5) / 3,
    "focal": (0.3**2 * LN7 + 0.4**2 * LN6 + 0.5**2 * LN5) / 3,
    "dice": 1 - (DICE[0] + DICE[1]) / 2,
    "jaccard": 1 - (JACCARD[0] + JACCARD[1]) / 2,
    # Errors of class 0: 0.5 and 0.3 of its pixels, 0.3 of another; of class 1: 0.4 of its
    # pixel, 0.25 and 0.2 of others, which cost nothing more.
    "lovasz": ((0.5 - 0.3) / 2 + 0.3 + 0.4) / 2,
}
WEIGHTED_BY_HAND = {
    "cross_entropy": (2 * LN7 + LN6 + 2 * LN5) / 5,
    "focal": (2 * 0.3**2 * LN7 + 0.4**2 * LN6 + 2 * 0.5**2 * LN5) / 5,
    "dice": 1 - (2 * DICE[0] + DICE[1]) / 3,
    "jaccard": 1 - (2 * JACCARD[0] + JACCARD[1]) / 3,
    "lovasz": (2 * ((0.5 - 0.3) / 2 + 0.3) + 0.4) / 3,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_of_four_pixels_is_what_it_is_by_hand(name):
    logits, mask = four_pixels()
    found = losses.share(logits, mask, terms={name: 1.0})
    assert float(found) == pytest.approx(BY_HAND[name], rel=1e-6)
    found = losses.share(logits, mask, terms={name: 0.5}, class_weights=WEIGHTS)
    assert float(found) == pytest.approx(WEIGHTED_BY_HAND[name] / 2, rel=1e-6)


def test_a_sum_of_losses_is_the_sum():
    found = losses.share(*four_pixels(), terms={"cross_entropy": 1.0, "jaccard": 0.5})
    expected = BY_HAND["cross_entropy"] + 0.5 * BY_HAND["jaccard"]
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_smoothed_truth_costs_what_keras_says():
    logits, mask = example()
    keras_loss = keras.losses.CategoricalCrossentropy(True, label_smoothing=0.2)
    expected = keras_loss(np.eye(3, dtype=np.float32)[mask], logits)
    found = losses.share(logits, mask, label_smoothing=0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_focal_loss_without_gamma_is_cross_entropy():
    logits, mask = example()
    found = losses.share(logits, mask, terms={"focal": 1.0}, focal_gamma=0.0)
    assert float(found) == pytest.approx(float(losses.share(logits, mask)), rel=1e-6)


def lovasz(errors, truth):
    """Returns Lovasz-softmax of each class, by the sorting of the paper."""
    order = np.argsort(-errors, axis=0)
    errors, truth = (np.take_along_axis(x, order, axis=0) for x in (errors, truth))
    hit = truth.sum(axis=0) - np.cumsum(truth, axis=0)
    union = truth.sum(axis=0) + np.cumsum(1 - truth, axis=0)
    steps = np.diff(1 - hit / np.maximum(union, 1), axis=0, prepend=0)
    return (errors * steps).sum(axis=0)


def in_float64(logits, mask, terms, focal_gamma=2.0, label_smoothing=0.0, **weights):
    """Returns the loss, pixel by pixel and class by class in float64."""
    weights = np.array(weights.get("class_weights", np.ones(3)))
    x, truth = logits[mask != 255].astype(np.float64), np.eye(3)[mask[mask != 255]]
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    pixel, right = truth @ weights, (truth * p).sum(axis=1)
    both, of_both = (truth * p).sum(axis=0), truth.sum(axis=0) + p.sum(axis=0)
    smooth = (1 - label_smoothing) * truth + label_smoothing / 3
    of_class = weights * (truth.sum(axis=0) > 0)
    found = {
        "cross_entropy": -(pixel * (smooth * np.log(p)).sum(axis=1)).sum()
        / pixel.sum(),
        "focal": -(pixel * (1 - right) ** focal_gamma * np.log(right)).sum()
        / pixel.sum(),
        "dice": (of_class * (1 - 2 * both / of_both)).sum() / of_class.sum(),
        "jaccard": (of_class * (1 - both / (of_both - both))).sum() / of_class.sum(),
        "lovasz": (of_class * lovasz(np.abs(truth - p), truth)).sum() / of_class.sum(),
    }
    return sum(factor * found[name] for name, factor in terms.items())


@pytest.mark.parametrize(("terms", "settings"), CASES)
def test_gradient_is_that_of_small_steps(terms, settings):
    # Of this seed no two errors of a class are in the same bin of Lovasz-softmax.
    logits, mask = example(seed=1, n=2, side=2, num_classes=3)
    mask[0, 0] = 255
    mask[mask == 2] = 0  # One class is absent.
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = losses.share(x, mask, terms=terms, **settings)
    assert float(loss) == pytest.approx(in_float64(logits, mask, terms, **settings))
    found, expected = tape.gradient(loss, x).numpy(), np.zeros_like(logits)
    for at in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[at] = 1e-5
        ends = (
            in_float64(logits + sign * step, mask, terms, **settings)
            for sign in (1, -1)
        )
        expected[at] = np.subtract(*ends) / 2e-5
    np.testing.assert_allclose(found, expected, atol=2e-7, rtol=1e-5)
    assert (found[0, 0] == 0).all() and found[0, 1].all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_lovasz_of_many_pixels_is_that_of_the_paper_though_none_are_sorted(scale):
    logits, mask = example(n=4, side=32)
    mask[0, :9] = 255
    found = losses.share(scale * logits, mask, terms={"lovasz": 1.0})
    expected = in_float64(scale * logits, mask, {"lovasz": 1.0})
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_lovasz_is_the_same_where_pixels_are_counted_as_on_a_gpu(monkeypatch):
    logits, mask = example()
    mask[0] = 255
    on_cpu = losses.share(logits, mask, terms={"lovasz": 1.0})
    monkeypatch.setattr(losses.sums, "on_cpu", lambda: False)
    assert on_cpu == losses.share(logits, mask, terms={"lovasz": 1.0})


def test_lovasz_of_answers_without_doubt_is_the_jaccard_loss():
    _, mask = example()
    _, other = example(seed=1)
    terms = ({"lovasz": 1.0}, {"jaccard": 1.0})
    lovasz, jaccard = (
        losses.share(1e3 * np.eye(3, dtype=np.float32)[other], mask, terms=one)
        for one in terms
    )
    assert float(lovasz) == pytest.approx(float(jaccard), rel=1e-5)


@pytest.mark.parametrize(("terms", "settings"), CASES)
def test_ignored_pixels_change_nothing_whatever_their_logits(terms, settings):
    logits, mask = example()
    mask[0, :2] = 255
    found = losses.share(logits, mask, terms=terms, **settings)
    logits[0, 0] = [1e38, -1e38, 0]
    logits[0, 1] = -65504
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        again = losses.share(x, mask, terms=terms, **settings)
    gradient = tape.gradient(again, x).numpy()
    assert float(found) == float(again)
    assert (gradient[0, :2] == 0).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("terms", [{name: 1.0} for name in BY_HAND])
def test_a_sure_answer_and_one_without_a_counted_pixel_have_finite_gradients(terms):
    mask = np.array([[[0, 1], [2, 255]]])
    sure, none = 1e4 * np.eye(3)[mask % 3], np.full_like(mask, 255)
    for logits, truth in ((sure, mask), (four_pixels()[0], none)):
        x = tf.constant(logits, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = losses.share(x, truth, terms=terms, focal_gamma=0.5)
        assert float(loss) == 0
        assert np.isfinite(tape.gradient(loss, x)).all()


@pytest.mark.parametrize("terms", [{name: 1.0} for name in BY_HAND])
def test_logits_that_are_not_finite_make_every_loss_nan(terms):
    logits, mask = example()
    logits[1, 2, 3, 0] = np.nan
    assert np.isnan(losses.share(logits, mask, terms=terms))


def test_losses_compile_under_xla_and_are_of_float32():
    logits, mask = example()
    mask[0, 0] = 255
    settings = {"terms": CASES[-1][0], "class_weights": WEIGHTS, "label_smoothing": 0.1}
    compiled = tf.function(
        functools.partial(losses.share, **settings), jit_compile=True
    )
    found = compiled(tf.constant(logits), mask.astype(np.uint8))
    assert float(found) == pytest.approx(float(losses.share(logits, mask, **settings)))
    narrow = tf.cast(logits, tf.float16)
    found = losses.share(narrow, mask, **settings)
    assert found.dtype == tf.float32
    assert found == losses.share(tf.cast(narrow, tf.float32), mask, **settings)
