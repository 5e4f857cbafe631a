"""Class weights from how often each class is among the training pixels.

Letters: C classes.
"""

from collections.abc import Callable

import numpy as np
from absl import logging

from trainer import feed, objective, streams
from trainer.job import Job


def class_weights(job: Job, check: Callable[[], None]) -> list[float] | None:
    """Returns the weight of each class in the loss, C of them; None where all are alike.

    By frequency they are counted once, by a new run: its state keeps them. Each worker
    must ask, and counts its own part.

    Args:
        job: The run; all of its workers count.
        check: Called after each batch; raises what is to end it.

    Raises:
        ValueError: If an example or a file is damaged; names it.
    """
    settings = job.settings
    if settings.class_weights != objective.FREQUENCY:
        given = objective.class_weights(settings.class_weights)
        return list(given) if given else None
    if job.state["class_weights"] is None:
        weights = by_frequency(_pixels(job, check))
        job.state["class_weights"] = weights
        names = job.dataset.class_names
        told = (f"{n} {w:.4g}" for n, w in zip(names, weights, strict=True))
        logging.info("Class weights by frequency: %s", ", ".join(told))
    return job.state["class_weights"]


def by_frequency(pixels: list[int]) -> list[float]:
    """Returns one over each class's share of the pixels, over the number of classes.

    The mean over pixels of their weights is 1 where all classes occur; a class that does
    not has weight 0.

    Args:
        pixels: C counts.

    Source: class_weight="balanced" of scikit-learn, after King and Zeng 2001, Logistic
        Regression in Rare Events Data, section 5.
    """
    total = sum(pixels)
    return [total / (len(pixels) * count) if count else 0.0 for count in pixels]


def _pixels(job: Job, check: Callable[[], None]) -> list[int]:
    """Returns how many pixels of train, as it is decoded, each class has."""
    split, workers = job.dataset.train, job.workers
    batch_size, turns = feed.turns_of(job, split, job.batch_size)
    counts = np.zeros(256, np.int64)
    stream = feed.eval_batches(job, split, "train", batch_size, turns)
    with feed.explained(job, split), streams.iterator(stream) as batches:
        for _, mask in batches:
            counts += np.bincount(mask.numpy().ravel(), minlength=256)
            check()
    return workers.totals(*counts[: len(job.dataset.class_names)].tolist())
