"""Counts pixels in a confusion matrix and divides them into IoU, Dice and accuracy.

Letters: N examples, S side in pixels, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

IGNORED = 255  # The mask value of a pixel that is not counted.


def confusion_matrix(
    mask: tf.Tensor, prediction: tf.Tensor, num_classes: int
) -> tf.Tensor:
    """Returns how many pixels of each true class were given each class.

    Matrices of parts add up to the matrix of the whole, so sum them over a split
    and divide once. All shapes are static: it compiles under XLA and for TPU.

    Args:
        mask: (N, S, S) int, true class ids 0..C-1, or 255 for an ignored pixel.
        prediction: (N, S, S) int, predicted class ids 0..C-1.
        num_classes: C.

    Returns:
        (C, C) int64 pixel counts, rows true, columns predicted.
    """
    mask = tf.cast(mask, tf.int32)
    cell = mask * num_classes + tf.cast(prediction, tf.int32)
    # A negative segment is dropped, on every device.
    cell = tf.where(mask == IGNORED, -1, cell)
    counts = tf.math.unsorted_segment_sum(
        tf.ones_like(cell), cell, num_classes * num_classes
    )
    return tf.reshape(tf.cast(counts, tf.int64), (num_classes, num_classes))


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class.

    Args:
        confusion: (C, C) int64 pixel counts, true class by predicted class.

    Returns:
        (C,) float64 in [0, 1]; nan for a class that no pixel has or is given.

    Raises:
        ValueError: If `confusion` is not square.

    Source: mean IU of Long et al. 2015, arXiv:1411.4038, section 5.
    """
    both, true, predicted = _counts(confusion)
    return _ratio(both, true + predicted - both)


def mean_iou(confusion: np.ndarray) -> float | None:
    """Returns the mean intersection over union of the classes that occur.

    A class that does not occur is left out of the mean: no counted pixel has it and none
    is given it, its IoU is 0 / 0. One that is predicted but never true does occur, with
    an IoU of 0.

    Args:
        confusion: (C, C) int64 pixel counts, true class by predicted class.

    Returns:
        A fraction in [0, 1]; None where no pixel was counted.

    Raises:
        ValueError: If `confusion` is not square.

    Source: mean IU of Long et al. 2015, arXiv:1411.4038, section 5.
    """
    iou = iou_per_class(confusion)
    occurs = iou[~np.isnan(iou)]
    return float(occurs.mean()) if occurs.size else None


def dice_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns the Dice coefficient (F1 score) of each class.

    Args:
        confusion: (C, C) int64 pixel counts, true class by predicted class.

    Returns:
        (C,) float64 in [0, 1]; nan for a class that no pixel has or is given.

    Raises:
        ValueError: If `confusion` is not square.

    Source: Dice 1945, "Measures of the Amount of Ecologic Association Between
    Species", https://doi.org/10.2307/1932409.
    """
    both, true, predicted = _counts(confusion)
    return _ratio(2 * both, true + predicted)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Returns the share of counted pixels that were given their true class.

    Args:
        confusion: (C, C) int64 pixel counts, true class by predicted class.

    Returns:
        A fraction in [0, 1]; nan where no pixel was counted.

    Raises:
        ValueError: If `confusion` is not square.

    Source: Long et al. 2015, arXiv:1411.4038, section 5.
    """
    both, true, _ = _counts(confusion)
    return float(_ratio(both.sum(), true.sum()))


def summary(confusion: np.ndarray, class_names: list[str]) -> dict[str, float | None]:
    """Returns every metric of a split by its name.

    Args:
        confusion: (C, C) int64 pixel counts, true class by predicted class.
        class_names: C names.

    Returns:
        `mean_iou`, `pixel_accuracy`, and `iou/<class>` and `dice/<class>` of each
        class: fractions in [0, 1], or None, since JSON has no nan, for a class
        that does not occur, see `mean_iou`, and for the means of a split without
        counted pixels.

    Raises:
        ValueError: If `confusion` is not square, or of another size than the names.
    """
    metrics = {
        "mean_iou": mean_iou(confusion),
        "pixel_accuracy": _or_none(pixel_accuracy(confusion)),
    }
    for name, value in zip(class_names, iou_per_class(confusion), strict=True):
        metrics[f"iou/{name}"] = _or_none(value)
    for name, value in zip(class_names, dice_per_class(confusion), strict=True):
        metrics[f"dice/{name}"] = _or_none(value)
    return metrics


def mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean over the classes that occur; None where none does."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def table(metrics: Mapping[str, float | None], class_names: list[str]) -> str:
    """Returns a plain text table of the metrics of each class, for the terminal.

    Args:
        metrics: What `summary` returned, and `boundary_f/<class>` where it was counted;
            other keys are not looked at.
        class_names: C names.

    Returns:
        Lines without a final newline: a heading, IoU and Dice of each class, their
        means over the classes that occur, and the pixel accuracy. A class that
        does not occur has a dash.
    """
    columns = {"IoU": "iou", "Dice": "dice", "boundary F": "boundary_f"}
    names = ["class", *class_names, "mean", "pixel accuracy"]
    width = max(map(len, names))
    lines = [f"{name:<{width}}" for name in names]
    for heading, key in columns.items():
        if f"{key}/{class_names[0]}" not in metrics:
            continue
        values = [metrics[f"{key}/{name}"] for name in class_names]
        values.append(mean(values))
        accuracy = _cell(metrics["pixel_accuracy"]) if key == "iou" else ""
        cells = [heading, *map(_cell, values), accuracy]
        size = max(6, len(heading))
        lines = [f"{a}  {b:>{size}}" for a, b in zip(lines, cells, strict=True)]
    return "\n".join(map(str.rstrip, lines))


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns per class the pixels (C,) rightly given, true, and predicted."""
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(
            f"confusion must be square, true class by predicted class, got shape "
            f"{confusion.shape}; make it with confusion_matrix"
        )
    return np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole in float64, nan where both are 0."""
    with np.errstate(invalid="ignore"):
        ratio: np.ndarray = np.true_divide(part, whole)
    return ratio


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
