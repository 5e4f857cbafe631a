"""What a run makes small, as people write it."""

import pytest

from trainer import objective


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cross_entropy", {"cross_entropy": 1}),
        ("cross_entropy+0.5*dice", {"cross_entropy": 1, "dice": 0.5}),
        ("2*jaccard + focal", {"jaccard": 2, "focal": 1}),
        ("1e-3 * dice", {"dice": 0.001}),
    ],
)
def test_a_sum_of_losses_is_read_as_it_is_written(text, expected):
    assert objective.terms(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2,2,1", (2, 2, 1)), ("0, 0.5", (0, 0.5)), ("frequency", None), (None, None)],
)
def test_class_weights_are_numbers_where_they_are_given(text, expected):
    assert objective.class_weights(text) == expected


def test_only_plain_cross_entropy_is_shown_as_what_evaluation_tells():
    assert objective.shown("cross_entropy", None, 0.0) == "cross_entropy"
    assert objective.shown("dice", "2,1", 0.0) == "dice, weighted"
    assert objective.shown("cross_entropy", None, 0.1) == "cross_entropy, smoothed"
