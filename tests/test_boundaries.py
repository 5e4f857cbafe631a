"""Boundary F-scores: counted by hand, and pixel by pixel."""

import numpy as np
import pytest

from trainer import boundaries

NAMES = ["ground", "thing"]


def half(width: int, edge: int, height: int = 4) -> np.ndarray:
    """Returns a mask (height, width): class 0 left of `edge`, 1 from there on."""
    return np.repeat((np.arange(width) >= edge)[None], height, 0).astype(np.uint8)


def score(mask: np.ndarray, prediction: np.ndarray, names=NAMES) -> dict:
    return boundaries.summary(
        boundaries.counts(mask, prediction, len(names)), list(names)
    )


def test_a_boundary_one_pixel_off_is_found_and_two_pixels_off_is_not():
    mask = half(12, 6)  # Columns 5 and 6 are the boundaries of classes 0 and 1.
    for shift, found in ((0, 4), (1, 4), (-1, 4), (2, 0)):
        counted = boundaries.counts(mask, half(12, 6 + shift), 2)
        assert counted.tolist() == [[4, found, 4, found]] * 2, shift


def test_precision_and_recall_are_counted_by_hand():
    mask = half(12, 6, height=6)
    prediction = mask.copy()
    prediction[0:2] = 0  # The thing's upper third is missed.
    # Class 1, truth: column 6 of 6 rows. Prediction: column 6 of rows 2..5 and, of row
    # 2, columns 7..11 too: 9 pixels. Rows 1..5 of the truth have one within a pixel;
    # of the prediction column 6 has, and row 2's column 7.
    counted = boundaries.counts(mask, prediction, 2)
    assert counted[1].tolist() == [6, 5, 9, 5]
    precision, recall = 5 / 9, 5 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert score(mask, prediction)["boundary_f/thing"] == pytest.approx(expected)


def test_the_edge_of_the_picture_is_no_boundary():
    everywhere = np.ones((5, 7), np.uint8)
    assert boundaries.counts(everywhere, everywhere, 2).sum() == 0


def test_a_class_beside_ignored_pixels_has_no_boundary_there():
    mask = half(16, 8)
    mask[:, 7:9] = 255  # The seam between the two.
    prediction = half(16, 8)
    assert boundaries.counts(mask, prediction, 2).sum() == 0
    assert set(score(mask, prediction).values()) == {None}
    # A predicted boundary elsewhere is wrong; where none is known to be, it says nothing.
    assert score(mask, half(16, 3))["boundary_f/thing"] is None
    assert boundaries.counts(mask, half(16, 3), 2).tolist() == [[0, 0, 4, 0]] * 2


def test_a_boundary_within_the_tolerance_of_ignored_pixels_is_not_counted():
    mask = half(12, 6, height=5)
    mask[0] = 255
    # Row 1 is beside what is ignored; rows 2, 3 and 4 are counted.
    assert boundaries.counts(mask, half(12, 6, height=5), 2).tolist() == [
        [3, 3, 3, 3],
        [3, 3, 3, 3],
    ]


def test_a_class_that_is_true_but_has_no_predicted_boundary_scores_zero():
    assert score(half(12, 6), np.zeros((4, 12), np.uint8)) == {
        "mean_boundary_f": 0.0,
        "boundary_f/ground": 0.0,
        "boundary_f/thing": 0.0,
    }


def test_a_class_without_a_true_boundary_is_none_and_left_out_of_the_mean():
    found = score(half(12, 6), half(12, 6), names=[*NAMES, "absent"])
    assert found["boundary_f/absent"] is None
    assert found["mean_boundary_f"] == 1


def test_counts_of_parts_add_up_and_are_divided_once():
    parts = [(half(12, 6), half(12, 6)), (half(12, 6, 8), half(12, 9, 8))]
    total = sum(boundaries.counts(*part, 2) for part in parts)
    # 4 of 12 are found, and 4 of 12 are right: 1/3, not the mean of 1 and 0.
    assert boundaries.summary(total, NAMES)["mean_boundary_f"] == pytest.approx(1 / 3)


def test_the_tolerance_grows_with_the_picture():
    mask = half(400, 200, height=300)  # 0.75 % of 500 are 3.75 pixels.
    assert boundaries.counts(mask, half(400, 203, height=300), 2)[1, 1] == 300
    assert boundaries.counts(mask, half(400, 204, height=300), 2)[1, 1] == 0


def test_counts_are_those_of_looking_at_each_pair_of_pixels():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 4, (2, 6, 7))
    mask, prediction = (
        np.kron(b, np.ones((30, 40))).astype(np.uint8)[:171, :263] for b in blocks
    )
    mask[mask == 3] = 255
    prediction[prediction == 3] = 1
    reach = 0.0075 * np.hypot(171, 263)
    assert reach > 2  # So that the disc is more than a cross.

    def edge(ids, id):
        found = []
        for y, x in np.argwhere(ids == id):
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(r, c) for r, c in beside if 0 <= r < 171 and 0 <= c < 263]
            if any(ids[at] not in (id, 255) for at in inside):
                found.append((y, x))
        return np.array(found).reshape(-1, 2)

    def close(pixels, others):
        apart = pixels[:, None].astype(float) - others[None]
        return (np.hypot(*np.moveaxis(apart, -1, 0)) <= reach).any(axis=1)

    ignored = np.argwhere(mask == 255)
    counted = boundaries.counts(mask, prediction, 3)
    for id in range(3):
        true, given = edge(mask, id), edge(prediction, id)
        sure, given_sure = (p[~close(p, ignored)] for p in (true, given))
        assert counted[id].tolist() == [
            *(len(sure), close(sure, given).sum()),
            *(len(given_sure), close(given_sure, true).sum()),
        ]
    assert (counted > 0).all()
