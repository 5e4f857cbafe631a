"""Counts how much of the boundaries of each class is found, and divides it into F-scores.

Letters: H and W a mask's height and width, C classes, K pixels of a boundary.
"""

import numpy as np

IGNORED = 255  # The mask value of a pixel that is not counted.
# How far apart boundaries may be and still be the same, over the diagonal: section 3 of
# Csurka et al. 2013. DAVIS (Perazzi et al. 2016) allows 0.8 %.
TOLERANCE = 0.0075
TRUE, FOUND, PREDICTED, RIGHT = range(4)  # Columns of what `counts` returns.


def counts(mask: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how many pixels of each class's boundary there are, and are found.

    The boundary of a class are its pixels beside one, left, right, above or below, of
    another class. The edge of the picture is none, and neither is an ignored pixel.
    What lies beyond that is not known: boundary pixels within the tolerance of it are not
    counted, true or predicted.

    Counts of parts add up to those of the whole, so sum them over a split and divide once.

    Args:
        mask: (H, W) uint8, true class ids 0..C-1, or 255 for an ignored pixel.
        prediction: (H, W) uint8, predicted class ids 0..C-1.
        num_classes: C.

    Returns:
        (C, 4) int64 pixel counts: of the true boundary, those of them within the
        tolerance of the predicted one, of the predicted one, those of them within the
        tolerance of the true one.
    """
    reach = max(1.0, TOLERANCE * float(np.hypot(*mask.shape)))
    ignored = mask == IGNORED
    sides = [(ids, _edges(ids)) for ids in (mask, prediction)]
    counted = []
    for _, edges in sides:
        pixels = np.argwhere(edges)
        if ignored.any():
            pixels = pixels[~near(pixels, ignored, reach)]
        counted.append(pixels)
    found = np.zeros((num_classes, 4), np.int64)
    for id in range(num_classes):
        for side, column in ((0, TRUE), (1, PREDICTED)):
            (ids, _), (others, edges) = sides[side], sides[1 - side]
            pixels = counted[side]
            pixels = pixels[ids[pixels[:, 0], pixels[:, 1]] == id]
            found[id, column] = len(pixels)
            if len(pixels):
                hits = near(pixels, edges & (others == id), reach)
                found[id, column + 1] = hits.sum()
    return found


def summary(counts: np.ndarray, class_names: list[str]) -> dict[str, float | None]:
    """Returns the boundary F-score of each class, and their mean.

    The harmonic mean of the shares of the predicted boundary that is right and of the
    true one that is found. Sources score image by image and take the mean; here pixels
    are summed over the split, as in all of our metrics, so that no image counts for more
    than its boundaries.

    Args:
        counts: (C, 4) int64, of `counts`, summed.
        class_names: C names.

    Returns:
        `mean_boundary_f`, and `boundary_f/<class>` of each class: fractions in [0, 1];
        None for a class without a true boundary, which is left out of the mean, as
        where a data set ignores the seams between all things.

    Source: Csurka et al. 2013, "What is a good evaluation measure for semantic
    segmentation?", https://doi.org/10.5244/C.27.32, section 3; F of Perazzi et al. 2016,
    https://doi.org/10.1109/CVPR.2016.85.
    """
    scores: list[float | None] = []
    for true, found, predicted, right in counts.tolist():
        recall = found / true if true else 0.0
        precision = right / predicted if predicted else 0.0
        both = precision + recall
        score = 2 * precision * recall / both if both else 0.0
        scores.append(score if true else None)
    known = [score for score in scores if score is not None]
    metrics = {"mean_boundary_f": sum(known) / len(known) if known else None}
    for name, value in zip(class_names, scores, strict=True):
        metrics[f"boundary_f/{name}"] = value
    return metrics


def near(pixels: np.ndarray, marked: np.ndarray, reach: float) -> np.ndarray:
    """Returns which pixels have a marked one within a distance.

    Boundaries are thin: this looks from their pixels only, column by column, the nearest
    first, so that a large picture takes neither long nor much memory.

    Args:
        pixels: (K, 2) int64, row and column of each.
        marked: (H, W) bool.
        reach: Largest distance, pixels, from centre to centre.

    Returns:
        (K,) bool.
    """
    margin = int(reach)
    padded = np.pad(marked, margin)  # What is looked for in a column stays in it.
    height = len(padded)
    places = np.append(np.flatnonzero(padded.T), 2 * padded.size)  # Down each column.
    at = (pixels[:, 1] + margin) * height + pixels[:, 0] + margin
    found = np.zeros(len(pixels), bool)
    left = np.arange(len(pixels))
    for across in sorted(range(-margin, margin + 1), key=abs):
        up = int(np.sqrt(reach**2 - across**2))
        first = at[left] + across * height - up
        hit = places[np.searchsorted(places, first)] <= first + 2 * up
        found[left[hit]] = True
        left = left[~hit]
    return found


def _edges(ids: np.ndarray) -> np.ndarray:
    """Returns (H, W) bool: pixels beside one of another class; ignored ones are none."""
    found = np.zeros(ids.shape, bool)
    for axis in (0, 1):
        lines, at = (np.moveaxis(array, axis, 0) for array in (ids, found))  # Views.
        first, second = lines[:-1], lines[1:]
        differs = (first != second) & (first != IGNORED) & (second != IGNORED)
        at[:-1] |= differs
        at[1:] |= differs
    return found
