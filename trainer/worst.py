"""The examples of a split that a model does worst on: their figures and a picture.

Letters: T side of an example in the picture, pixels.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from trainer import metrics, pictures, resizing
from trainer.scoring import Scored


class Worst:
    """Keeps the examples of the lowest mean IoU, small; those before go first at a tie.

    Args:
        count: How many to keep.
        class_names: Of the data set.
        side: T.
    """

    def __init__(self, count: int, class_names: list[str], side: int) -> None:
        self._count, self._names, self._side = count, class_names, side
        self._kept: list[tuple[dict[str, Any], list[np.ndarray]]] = []

    def add(self, scored: Scored) -> None:
        """Looks at an example; one without counted pixels has no IoU and is none."""
        figures = metrics.summary(scored.confusion, self._names)
        if figures["mean_iou"] is None:
            return
        stored = scored.example.read.photograph
        about = {"file_name": stored.name or None, "stored_as": stored.path, **figures}
        worse = sum(x["mean_iou"] <= about["mean_iou"] for x, _ in self._kept)
        if worse < self._count:
            self._kept.insert(worse, (about, self._small(scored)))
            del self._kept[self._count :]

    def told(self) -> list[dict[str, Any]]:
        """Returns the name, the place and the metrics of each, the worst first."""
        return [about for about, _ in self._kept]

    def picture(self) -> np.ndarray | None:
        """Returns their picture, see `pictures.panels`; none where there are none."""
        if not self._kept:
            return None
        image, mask, prediction = map(
            np.stack, zip(*(x for _, x in self._kept), strict=True)
        )
        return pictures.panels(image, mask, prediction, self._names)

    def _small(self, scored: Scored) -> list[np.ndarray]:
        """Returns image (T, T, 3), mask and prediction (T, T), uint8."""
        with tf.device("CPU"):
            image = resizing.image(scored.example.read.image, self._side).numpy()
            ids = [scored.example.mask, scored.prediction]
            return [
                image,
                *(resizing.mask(x[..., np.newaxis], self._side).numpy() for x in ids),
            ]
