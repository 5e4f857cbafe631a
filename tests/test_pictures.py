"""Pictures show what they are given, in the colours of their legend."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer import pictures

NAMES = ["pet", "background", "border"]
SIDE = 96  # drawn at 192


def examples(n=2):
    """Returns grey images, masks with classes in three bands, and predictions."""
    images = np.full((n, SIDE, SIDE, 3), 90, np.uint8)
    masks = np.repeat(np.arange(3), SIDE // 3)[np.newaxis, :, np.newaxis]
    masks = np.broadcast_to(masks, (n, SIDE, SIDE)).astype(np.int32)
    predictions = masks.copy()
    predictions[0, :, : SIDE // 4] = 0  # of which the upper third is right
    return images, masks.copy(), predictions


def tile(picture, row, column, num_columns=4):
    """Returns one tile of a picture, found from its borders inwards."""
    side, gap, margin = 2 * SIDE, pictures.GAP, pictures.MARGIN
    assert picture.shape[1] == 2 * margin + num_columns * (side + gap) - gap
    left = margin + column * (side + gap)
    # The grey of the images begins every line of a tile, and nothing else.
    lines = np.flatnonzero((picture[:, margin] == 90).all(axis=1))
    top = lines.reshape(-1, side)[row, 0]
    return picture[top : top + side, left : left + side]


def has(picture, colour):
    return (picture == np.asarray(colour)).all(axis=-1).any()


def test_truth_and_prediction_are_drawn_in_the_colours_of_their_classes():
    images, masks, predictions = examples()
    picture = pictures.panels(images, masks, predictions, NAMES)
    colours = pictures.palette(3)
    for row in range(2):
        for column, ids in ((1, masks[row]), (2, predictions[row])):
            expected = colours[ids].repeat(2, axis=0).repeat(2, axis=1)
            np.testing.assert_array_equal(tile(picture, row, column), expected)


def test_legend_holds_the_colour_of_every_class_even_of_one_not_shown():
    images, masks, predictions = examples(1)
    picture = pictures.panels(images, masks * 0, predictions * 0, NAMES)
    legend = picture[: pictures.MARGIN + pictures.TEXT]
    assert [has(legend, colour) for colour in pictures.palette(4)] == [True] * 3 + [
        False
    ]


def test_image_is_shown_as_it_is():
    images, masks, predictions = examples(1)
    images[0, 10:40, 10:40] = (200, 30, 60)
    picture = pictures.panels(images, masks, predictions, NAMES)
    shown = tile(picture, 0, 0)
    inside, outside = shown[30:70, 30:70], shown[90:]
    assert (inside == (200, 30, 60)).all() and (outside == 90).all()


def test_wrong_pixels_are_marked_and_right_ones_are_not():
    images, masks, predictions = examples()
    picture = pictures.panels(images, masks, predictions, NAMES)
    wrong = (masks[0] != predictions[0]).repeat(2, axis=0).repeat(2, axis=1)
    marked = (tile(picture, 0, 3) == pictures.WRONG).all(axis=-1)
    np.testing.assert_array_equal(marked, wrong)
    assert not has(tile(picture, 1, 3), pictures.WRONG)


def test_ignored_pixels_are_striped_named_in_the_legend_and_never_wrong():
    images, masks, predictions = examples()
    without = pictures.panels(images, masks, predictions, NAMES)
    masks[0, :, : SIDE // 4] = 255
    picture = pictures.panels(images, masks, predictions, NAMES)
    for column in (1, 3):
        stripes = tile(picture, 0, column)[:, : SIDE // 2]
        assert set(np.unique(stripes)) == {205, 245}
        assert not (tile(picture, 0, column)[:, SIDE // 2 :] == 205).all(-1).any()
    assert not has(picture, pictures.WRONG)
    swatches = [
        (p[: pictures.MARGIN + pictures.TEXT] == 205).all(axis=-1).sum() > 100
        for p in (picture, without)
    ]
    assert swatches == [True, False]


def test_whole_mask_may_be_ignored():
    images, masks, predictions = examples(1)
    picture = pictures.panels(images, np.full_like(masks, 255), predictions, NAMES)
    assert not has(picture, pictures.WRONG)


def test_without_predictions_there_are_two_columns():
    images, masks, _ = examples()
    picture = pictures.panels(images, masks, None, NAMES)
    truth = tile(picture, 1, 1, num_columns=2)
    np.testing.assert_array_equal(truth[::2, ::2], pictures.palette(3)[masks[1]])


@pytest.mark.parametrize("side", [16, 100, 224, 600, 1100])
def test_tiles_of_any_size_are_easy_to_see_and_bounded(side):
    images = np.full((1, side, side, 3), 90, np.uint8)
    masks = np.ones((1, side, side), np.uint8)
    width = pictures.panels(images, masks, masks, NAMES).shape[1]
    tile_side = (width - 2 * pictures.MARGIN - 3 * pictures.GAP) // 4
    assert pictures.TILE_MIN <= tile_side <= pictures.TILE_MAX


def test_many_classes_with_long_names_have_a_colour_each_inside_the_picture():
    names = [f"{'long name of a class ' * 4}{i}" for i in range(20)]
    images, masks, _ = examples(1)
    picture = pictures.panels(images, masks, None, names)
    assert all(has(picture, colour) for colour in pictures.palette(20))
    assert (picture[:, -pictures.MARGIN :] == 255).all()


def test_a_class_keeps_its_colour_whatever_the_number_of_classes():
    colours = pictures.palette(150)
    apart = np.abs(colours.astype(int)[:, np.newaxis] - colours).max(-1)
    assert apart[np.triu_indices(150, 1)].min() >= 6
    assert apart[np.triu_indices(24, 1)].min() >= 25
    assert len(np.unique(pictures.palette(255), axis=0)) == 255
    np.testing.assert_array_equal(colours[:3], pictures.palette(3))


def test_curves_show_train_val_and_metrics_in_their_own_colours():
    train = [{"step": step, "loss": 1 / step} for step in range(1, 100)]
    evaluations = [
        {
            "step": 10 * i,
            "val_loss": 1 / (1 + i),
            "val_mean_iou": 0.1 * i,
            "val_pixel_accuracy": 0.5 + 0.05 * i,
        }
        for i in range(9)
    ]
    picture = pictures.curves(train, evaluations)
    assert (picture.ndim, picture.shape[2], picture.dtype) == (3, 3, np.uint8)
    left, right = np.array_split(picture, 2, axis=1)
    blue, orange, green = pictures.COLOURS[[1, 0, 3]]
    assert has(left, blue) and not has(right, blue)
    for colour in (orange, green):
        assert has(right, colour) and not has(left, colour)


@pytest.mark.parametrize(("order", "low", "high"), [(1, 0.5, 0.6), (-1, 0.95, 1.0)])
def test_star_stands_at_the_best_evaluation(order, low, high):
    values = np.linspace(0.9, 0.2, 5)[::order]
    evaluations = [
        {"step": step, "val_mean_iou": float(value)}
        for step, value in enumerate(values)
    ]
    picture = pictures.curves([], evaluations)
    above_the_legend = (picture[30:58] == 38).all(axis=-1)
    columns = np.flatnonzero(above_the_legend.sum(axis=0) > 2) / picture.shape[1]
    assert columns.size and low < columns.min() and columns.max() < high


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("train", "evaluations"),
    [
        ([], []),
        ([{"step": 1, "loss": 0.5}], []),
        ([], [{"step": 0, "val_loss": 1.0, "val_mean_iou": 0.5}]),
        ([], [{"step": 5, "val_loss": None, "val_mean_iou": None}]),
    ],
)
def test_curves_of_a_run_that_has_hardly_begun_can_be_drawn(train, evaluations):
    assert pictures.curves(train, evaluations).std() > 0


def test_encoded_picture_is_a_png_of_it():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.open(io.BytesIO(pictures.encode_png(picture)))
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), picture)


def test_curves_of_another_loss_say_which_and_that_validation_tells_cross_entropy():
    train, evaluations = [{"step": 1, "loss": 0.5}], [{"step": 1, "val_loss": 1.0}]
    plain = pictures.curves(train, evaluations)
    assert np.array_equal(plain, pictures.curves(train, evaluations, "cross_entropy"))
    other = pictures.curves(train, evaluations, "dice")
    assert (plain != other).any(axis=(1, 2))[:40].any()  # Its title says no unit.
