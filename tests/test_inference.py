"""What a model says of pictures of any size: whole, mirrored, window by window."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import one_layer

from trainer import inference, photographs, pipeline, resizing

SIZE = 32


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def by_colour(images: tf.Tensor) -> tf.Tensor:
    """Stands in for a model's probabilities: the red of each pixel, and the rest."""
    red = tf.cast(images[..., :1], tf.float32) / 255
    return tf.concat([red, 1 - red], axis=-1)


def constant(images: tf.Tensor) -> tf.Tensor:
    return tf.ones([*images.shape[:3], 3]) * [0.2, 0.3, 0.5]


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Returns a model that sees left and right differently."""
    made = one_layer(image_size=SIZE, num_classes=3, seed=0)
    # Logits of about 1: of hundreds, the last digit alone is more than what is compared.
    made.set_weights([weight / 127.5 for weight in made.get_weights()])
    return made


def test_probabilities_are_those_of_the_logits(network):
    images = np.stack([random_image(SIZE, SIZE, seed) for seed in (0, 1)])
    found = inference.make_probabilities(network)(tf.constant(images)).numpy()
    logits = network(images.astype(np.float32)).numpy()
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(
        found, powers / powers.sum(-1, keepdims=True), rtol=1e-4, atol=1e-30
    )
    assert found.shape == (2, SIZE, SIZE, 3) and found.dtype == np.float32


def test_flip_is_the_mean_with_the_mirror_image_mirrored_back(network):
    images = random_image(SIZE, SIZE)[None]
    plain = inference.make_probabilities(network)
    mirrored = plain(tf.constant(images[:, :, ::-1])).numpy()[:, :, ::-1]
    straight = plain(tf.constant(images)).numpy()
    assert np.abs(straight - mirrored).max() > 0.01
    flip = inference.make_probabilities(network, flip=True)
    found = flip(tf.constant(images)).numpy()
    np.testing.assert_allclose(found, (straight + mirrored) / 2, rtol=1e-5, atol=1e-7)


def test_with_flip_a_mirror_image_is_seen_as_the_mirror_image(network):
    images = random_image(SIZE, SIZE)[None]
    flip = inference.make_probabilities(network, flip=True)
    found = flip(tf.constant(images[:, :, ::-1])).numpy()
    expected = flip(tf.constant(images)).numpy()[:, :, ::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_whole_images_are_seen_small_and_told_at_their_own_size(network):
    images = [random_image(h, w) for h, w in ((40, 50), (SIZE, SIZE), (9, 70))]
    place = photographs.Photograph("a.png", "a.png")
    reads = [
        pipeline.Read(place, image, resizing.image(image, SIZE)) for image in images
    ]
    look = pipeline.whole(inference.make_probabilities(network), batch_size=4)
    for read, seen in zip(reads, look(reads), strict=True):
        ids = pipeline.ids_of(read, seen)
        found = resizing.probabilities(seen, *read.image.shape[:2])
        at_size = tf.nn.softmax(network(tf.cast(read.small, tf.float32)[None]))
        shape = read.image.shape[:2]
        expected = tf.image.resize(at_size, shape, method="bilinear")[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert found.shape == (*shape, 3)
        np.testing.assert_array_equal(ids, np.argmax(found, axis=-1))


@pytest.mark.parametrize("classes", [2, 8, 9, 40])
def test_ids_are_the_argmax_of_probabilities_that_are_never_all_in_memory(
    classes, monkeypatch
):
    rng = np.random.default_rng(classes)
    seen = rng.random((SIZE, SIZE, classes)).astype(np.float32)
    seen[:4, :4] = 0.5  # Of equals the first.
    expected = np.argmax(resizing.probabilities(seen, 70, 45), axis=-1)
    resized, resize = [], tf.image.resize

    def watched(image, *args, **kwargs):
        resized.append(image.shape[-1])
        return resize(image, *args, **kwargs)

    monkeypatch.setattr(tf.image, "resize", watched)
    found = resizing.ids(tf.constant(seen), 70, 45)
    assert found.dtype == tf.uint8
    np.testing.assert_array_equal(found, expected)
    assert max(resized) <= resizing.AT_ONCE and sum(resized) == classes


def test_any_number_of_windows_is_traced_twice_at_most(network):
    see = inference.make_probabilities(network)
    for windows in range(1, 7):
        inference.slide(see, random_image(SIZE, windows * SIZE), SIZE, overlap=0)
    assert see.experimental_get_tracing_count() <= 2


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(32, 32), (33, 64), (70, 45), (100, 32), (20, 90)])
def test_windows_give_a_constant_back_everywhere(size, overlap):
    found = inference.slide(constant, random_image(*size), SIZE, overlap=overlap)
    assert found.shape == (*size, 3) and found.dtype == tf.float32
    expected = np.broadcast_to([0.2, 0.3, 0.5], (*size, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_windows_see_each_pixel_unscaled_where_it_is():
    image = random_image(70, 45)
    found = inference.slide(by_colour, image, SIZE, overlap=0.5)
    np.testing.assert_allclose(found, by_colour(image), atol=1e-5)


def test_no_seam_is_seen_where_windows_disagree():
    width = 96
    turns = iter(np.linspace(0, 1, 100))

    def another_each_time(images: tf.Tensor) -> tf.Tensor:
        values = tf.constant([next(turns) for _ in images], tf.float32)
        return tf.ones([*images.shape[:3], 1]) * values[:, None, None, None]

    image = random_image(SIZE, width)
    found = inference.slide(another_each_time, image, SIZE, overlap=0.5).numpy()
    steps = np.abs(np.diff(found[0, :, 0]))
    # Five windows, 1/99 apart each: in one step from pixel to pixel it would be all.
    assert found.max() > 3.9 / 99 and steps.max() < 0.15 / 99


def test_windows_overlap_at_least_so_much_and_reach_both_ends():
    for length in (32, 33, 47, 48, 49, 64, 100, 257):
        for overlap in (0.0, 0.3, 0.5, 0.9):
            starts = inference._starts(length, SIZE, overlap)
            assert starts[0] == 0 and starts[-1] == length - SIZE
            stride = max(1, int(SIZE * (1 - overlap)))
            assert all(0 < step <= stride for step in np.diff(starts))


def test_an_image_that_is_smaller_than_a_window_is_enlarged_for_it():
    seen = []

    def see(images: tf.Tensor) -> tf.Tensor:
        seen.extend(images.numpy())
        return by_colour(images)

    image = np.zeros((16, 24, 3), np.uint8)
    image[:, 12:] = 255
    found = inference.slide(see, image, SIZE).numpy()
    assert found.shape == (16, 24, 2)
    assert {window.shape for window in seen} == {(SIZE, SIZE, 3)}
    # Enlarged twice, to 32 x 48: a window that begins at 0 has its edge at column 24.
    assert (seen[0][:, :23] == 0).all() and (seen[0][:, 25:] == 255).all()
    np.testing.assert_array_equal(found.argmax(-1), image[..., 0] == 0)


def test_windows_do_not_depend_on_how_many_are_seen_at_once(network):
    image = random_image(70, 90)
    see = inference.make_probabilities(network)
    first, *others = (
        inference.slide(see, image, SIZE, batch_size=n).numpy() for n in (1, 4, 100)
    )
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5, atol=1e-7)
