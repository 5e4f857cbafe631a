"""Changes of image and mask: together, repeatable, and never with a new class."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import augment

OFF = {
    "flip": False,
    "crop_scale_min": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}
ALL = {
    "flip": True,
    "crop_scale_min": 0.5,
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
}
ON = {key: {key: value} for key, value in ALL.items()}


def photo(side=32):
    """Returns an image with every colour, and a mask of 0, 1, 2 and 255."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    mask = np.repeat(np.repeat(rng.integers(0, 3, (4, 4)), side // 4, 0), side // 4, 1)
    mask[:3] = 255
    return image, mask.astype(np.uint8)


def augmented(image, mask, seed, **settings):
    seed = tf.constant(seed, tf.int32)
    image, mask = augment.augment(image, mask, seed, **{**OFF, **settings})
    return np.asarray(image), np.asarray(mask)


def seeds(count):
    return [
        augment.example_seed(0, 0, example_id).numpy() for example_id in range(count)
    ]


@pytest.mark.parametrize("mask_dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("settings", [{}, *ON.values(), ALL])
def test_shapes_and_dtypes_stay(settings, mask_dtype):
    image, mask = photo()
    for seed in seeds(3):
        new_image, new_mask = augmented(
            image, mask.astype(mask_dtype), seed, **settings
        )
        assert (new_image.shape, new_image.dtype) == ((32, 32, 3), np.uint8)
        assert (new_mask.shape, new_mask.dtype) == ((32, 32), mask_dtype)


def test_all_off_changes_nothing_and_adds_no_op():
    image, mask = (tf.constant(value) for value in photo())
    graph = tf.function(lambda i, m, s: augment.augment(i, m, s, **OFF))
    seed = tf.constant([1, 2])
    kinds = {
        op.type
        for op in graph.get_concrete_function(image, mask, seed).graph.get_operations()
    }
    assert kinds <= {"Placeholder", "Identity", "NoOp"}
    new_image, new_mask = augment.augment(image, mask, seed, **OFF)
    assert new_image is image and new_mask is mask


def test_mask_moves_with_its_image():
    _, mask = photo()
    mask = np.where(mask == 255, 3, mask).astype(np.uint8)
    image = np.repeat(mask[..., np.newaxis] * 80, 3, axis=2)  # the mask as a picture
    moved = 0
    for seed in seeds(16):
        new_image, new_mask = augmented(
            image, mask, seed, flip=True, crop_scale_min=0.5
        )
        flat = new_image[..., 0] % 80 == 0  # else bilinear, between two classes
        assert flat.mean() > 0.4
        np.testing.assert_array_equal(new_image[flat][:, 0] // 80, new_mask[flat])
        moved += (new_mask != mask).any()
    assert moved == 16


def test_mask_holds_no_value_that_it_did_not_hold():
    image, _ = photo()
    mask = np.where(np.indices((32, 32)).sum(0) % 2, 255, 7).astype(np.uint8)
    for seed in seeds(20):
        assert set(np.unique(augmented(image, mask, seed, **ALL)[1])) <= {7, 255}


def test_same_seed_gives_the_same_example_eagerly_and_in_a_pipeline():
    image, mask = photo()
    ds = tf.data.Dataset.range(4).map(
        lambda i: augment.augment(
            tf.constant(image), tf.constant(mask), augment.example_seed(3, 1, i), **ALL
        ),
        num_parallel_calls=2,
    )
    for example_id, (new_image, new_mask) in enumerate(ds):
        seed = augment.example_seed(3, 1, example_id)
        expected_image, expected_mask = augmented(image, mask, seed, **ALL)
        np.testing.assert_array_equal(new_image, expected_image)
        np.testing.assert_array_equal(new_mask, expected_mask)


def test_another_epoch_gives_another_picture():
    image, mask = photo()
    pictures = [
        augmented(image, mask, augment.example_seed(0, epoch, 5), **ALL)[0].tobytes()
        for epoch in range(8)
    ]
    assert len(set(pictures)) == 8


def test_flip_mirrors_left_and_right_about_half_of_the_time():
    image, mask = photo()
    flipped = 0
    for seed in seeds(200):
        new_image, new_mask = augmented(image, mask, seed, flip=True)
        mirrored = not (new_image == image).all()
        np.testing.assert_array_equal(new_image, image[:, ::-1] if mirrored else image)
        np.testing.assert_array_equal(new_mask, mask[:, ::-1] if mirrored else mask)
        flipped += mirrored
    assert 75 < flipped < 125


def test_crop_shows_at_least_the_asked_share_of_each_side():
    ramp = np.arange(128, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp, ramp[:, np.newaxis], ramp), axis=-1)
    widths, heights = [], []
    for seed in seeds(100):
        new, _ = augmented(
            image, np.zeros((128, 128), np.uint8), seed, crop_scale_min=0.6
        )
        across, down = new[0, :, 0].astype(int), new[:, 0, 1].astype(int)
        widths.append((across[-1] - across[0]) / 127)
        heights.append((down[-1] - down[0]) / 127)
    ratios = np.array(widths) / heights
    assert 0.59 <= min(widths + heights) < 0.7 and 0.9 < max(widths + heights) <= 1
    assert 0.74 < ratios.min() < 0.9 and 1.1 < ratios.max() < 1.35


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_the_image_and_leave_the_mask(kind):
    image, mask = photo()
    results = [augmented(image, mask, seed, **ON[kind]) for seed in seeds(4)]
    assert len({new_image.tobytes() for new_image, _ in results}) == 4
    assert all((new_mask == mask).all() for _, new_mask in results)


def test_brightness_shifts_by_at_most_its_fraction_and_clips():
    image = np.full((8, 8, 3), 250, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    values = [augmented(image, mask, s, brightness=0.2)[0].max() for s in seeds(60)]
    assert 199 <= min(values) < 215
    assert max(values) == 255


@pytest.mark.parametrize("other", [{"hue": 0.1}, {"crop_scale_min": 0.5}, ALL])
def test_turning_one_change_on_leaves_the_draws_of_the_others(other):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 200  # bright on the left, until it is flipped
    mask = np.zeros((8, 8), np.uint8)
    other = {
        **other,
        "flip": True,
        "crop_scale_min": max(0.9, other.get("crop_scale_min", 1)),
    }
    for seed in seeds(20):
        alone, _ = augmented(image, mask, seed, flip=True)
        beside, _ = augmented(image, mask, seed, **other)
        on_left = alone[0, 0].sum() > alone[0, -1].sum()
        assert on_left == (beside[0, 0].sum() > beside[0, -1].sum())


def test_every_seed_epoch_and_example_has_a_seed_of_its_own():
    found = {
        tuple(augment.example_seed(seed, epoch, example_id).numpy())
        for seed in range(4)
        for epoch in range(4)
        for example_id in (0, 1, 2, 3, 2**31, 2**32, 2**32 + 1, 2**62)
    }
    assert len(found) == 4 * 4 * 8


def test_seeds_are_int32_and_the_same_for_tensors_and_numbers():
    seed = augment.example_seed(1, 2, 3)
    assert (seed.dtype, seed.shape) == (tf.int32, (2,))
    tensors = tf.constant(2, tf.int32), tf.constant(3, tf.int64)
    np.testing.assert_array_equal(seed, augment.example_seed(1, *tensors))
    # A run that goes on after an upgrade must see the same pictures.
    np.testing.assert_array_equal(seed, [-92544939, 1528043550])


def test_crops_are_cut_from_more_pixels_than_they_become():
    assert augment.source_size(128, 1.0) == 128
    side = augment.source_size(128, 0.5)
    assert side == 171  # 128 / 0.75: as many pixels as a crop of mean side becomes.
    image, mask = photo(side=side // 4 * 4)
    new_image, new_mask = augmented(image, mask, (1, 2), crop_scale_min=0.5, size=128)
    assert new_image.shape == (128, 128, 3) and new_mask.shape == (128, 128)


def test_a_crop_of_more_pixels_shows_the_same_part():
    stripes = np.indices((64, 64))[1].astype(np.uint8)  # Each column its number.
    mask = np.zeros((64, 64), np.uint8)
    image = np.repeat(stripes[..., np.newaxis], 3, axis=2)
    large, small = (
        augmented(image, mask, (5, 6), crop_scale_min=0.5, size=size)[0]
        for size in (64, 32)
    )
    np.testing.assert_allclose(large[0, 0, 0], small[0, 0, 0], atol=1)
    np.testing.assert_allclose(large[0, -1, 0], small[0, -1, 0], atol=1)
