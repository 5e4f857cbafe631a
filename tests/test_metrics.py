"""Pixel counts and what is divided out of them, against counts made by hand."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from trainer import config, metrics

NAMES = ["pet", "background", "border"]
# Rows true, columns predicted.
CONFUSION = np.array([[3, 1, 0], [2, 4, 0], [0, 1, 1]])
NO_BORDER = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])


def count(mask, prediction, num_classes=3, dtype=np.int32, **compiled):
    counted = tf.function(metrics.confusion_matrix, **compiled)
    mask, prediction = np.array(mask, dtype), np.array(prediction, dtype)
    return counted(mask, prediction, num_classes).numpy()


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}])
def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns(compiled):
    mask = [[[0, 0], [1, 1]], [[2, 2], [1, 0]]]
    prediction = [[[0, 1], [1, 1]], [[0, 2], [2, 0]]]
    expected = [[2, 1, 0], [0, 2, 1], [1, 0, 1]]
    confusion = count(mask, prediction, **compiled)
    np.testing.assert_array_equal(confusion, expected)
    assert confusion.dtype == np.int64


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_ignored_pixels_are_not_counted(dtype, compiled):
    mask, prediction = [[[255, 0], [1, 255]]], [[[0, 0], [0, 2]]]
    confusion = count(mask, prediction, dtype=dtype, **compiled)
    np.testing.assert_array_equal(confusion, [[1, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_ids_kept_as_uint8_do_not_wrap_around_with_many_classes():
    confusion = count([[[149]]], [[[148]]], num_classes=150, dtype=np.uint8)
    assert confusion[149, 148] == confusion.sum() == 1


def test_confusion_has_a_static_shape_for_unknown_batch_sizes():
    pixels = tf.TensorSpec((None, 4, 4), tf.int32)
    traced = tf.function(lambda m, p: metrics.confusion_matrix(m, p, 3))
    assert traced.get_concrete_function(pixels, pixels).output_shapes == (3, 3)


def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole():
    rng = np.random.default_rng(0)
    mask, prediction = rng.integers(0, 3, (2, 5, 8, 8))
    parts = sum(count(mask[[i]], prediction[[i]]) for i in range(5))
    np.testing.assert_array_equal(parts, count(mask, prediction))


def test_iou_is_the_hand_counted_one():
    np.testing.assert_allclose(metrics.iou_per_class(CONFUSION), [3 / 6, 4 / 8, 1 / 2])


def test_dice_is_the_hand_counted_one():
    dice = metrics.dice_per_class(CONFUSION)
    np.testing.assert_allclose(dice, [6 / 9, 8 / 12, 2 / 3])


def test_pixel_accuracy_is_the_hand_counted_one():
    assert metrics.pixel_accuracy(CONFUSION) == 8 / 12


def test_class_that_does_not_occur_is_left_out_of_the_mean_and_named():
    summary = metrics.summary(NO_BORDER, NAMES)
    assert summary["mean_iou"] == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert metrics.mean_iou(NO_BORDER) == summary["mean_iou"]
    assert summary["iou/border"] is None
    assert summary["dice/border"] is None


def test_class_that_is_predicted_but_never_true_counts_as_zero():
    confusion = np.array([[3, 1, 1], [2, 4, 0], [0, 0, 0]])
    summary = metrics.summary(confusion, NAMES)
    assert summary["iou/border"] == summary["dice/border"] == 0
    assert summary["mean_iou"] == pytest.approx((3 / 7 + 4 / 7 + 0) / 3)


def test_summary_names_every_class_and_is_strict_json():
    summary = metrics.summary(NO_BORDER, NAMES)
    assert list(summary) == [
        *("mean_iou", "pixel_accuracy"),
        *("iou/pet", "iou/background", "iou/border"),
        *("dice/pet", "dice/background", "dice/border"),
    ]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_split_without_counted_pixels_has_no_metrics():
    summary = metrics.summary(np.zeros((3, 3), np.int64), NAMES)
    assert set(summary.values()) == {None}
    assert metrics.mean_iou(np.zeros((3, 3), np.int64)) is None


def test_counts_beyond_int32_are_exact():
    confusion = np.array([[2**40, 0], [2**40, 0]])
    assert metrics.pixel_accuracy(confusion) == 0.5
    np.testing.assert_array_equal(metrics.iou_per_class(confusion), [0.5, 0])


def test_confusion_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"square.*got shape \(2, 3\)"):
        metrics.iou_per_class(CONFUSION[:2])


def test_names_of_another_number_than_the_classes_are_refused():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        metrics.summary(CONFUSION, NAMES[:2])


def test_table_shows_boundaries_where_they_were_counted():
    found = metrics.summary(NO_BORDER, NAMES) | {
        "boundary_f/pet": 0.25,
        "boundary_f/background": 0.5,
        "boundary_f/border": None,
    }
    assert metrics.table(found, NAMES).splitlines() == [
        "class              IoU    Dice  boundary F",
        "pet             0.5000  0.6667      0.2500",
        "background      0.5714  0.7273      0.5000",
        "border               -       -           -",
        "mean            0.5357  0.6970      0.3750",
        "pixel accuracy  0.7000",
    ]


def test_table_of_classes_with_the_names_of_its_own_rows_shows_all():
    found = metrics.summary(np.array([[3, 1], [1, 3]]), ["mean", "class"])
    assert len(metrics.table(found, ["mean", "class"]).splitlines()) == 5


def test_table_shows_every_class_the_means_and_a_dash_for_what_does_not_occur():
    table = metrics.table(metrics.summary(NO_BORDER, NAMES), NAMES)
    assert table.splitlines() == [
        "class              IoU    Dice",
        "pet             0.5000  0.6667",
        "background      0.5714  0.7273",
        "border               -       -",
        "mean            0.5357  0.6970",
        "pixel accuracy  0.7000",
    ]


def test_each_metric_is_one_by_which_a_run_may_be_judged():
    names = ["loss", *metrics.summary(NO_BORDER, NAMES)]
    assert len(names) == 3 + 2 * len(NAMES)
    assert all(re.fullmatch(config.METRIC, f"val_{name}") for name in names)
