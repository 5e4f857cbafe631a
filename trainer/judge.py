"""Judges the model as it is: the metrics of a split, pictures of what it predicts."""

import dataclasses
import gc
from collections.abc import Callable, Iterator

import numpy as np
from absl import logging

from trainer import (
    evaluation_step,
    feed,
    gallery,
    objective,
    pictures,
    streams,
)
from trainer.dataset import Split
from trainer.job import Job
from trainer.report import Reporter


class Judge:
    """Evaluates and draws the model as it is, with programs that are traced once.

    Args:
        job: The run; all workers evaluate.
        reporter: Of the worker that writes; the others draw nothing.
        check: Called every few steps of an evaluation; raises what is to end it.
    """

    def __init__(
        self, job: Job, reporter: Reporter | None, check: Callable[[], None]
    ) -> None:
        self._job, self._reporter, self._check = job, reporter, check
        names = job.dataset.class_names
        self._evaluate = evaluation_step.make_evaluate(job.strategy, job.model, names)
        self._predict = evaluation_step.make_predict(job.strategy, job.model)
        # Image and mask of the examples that are drawn again and again, by split.
        self._drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def validate(self) -> None:
        """Adds an evaluation of validation to the state, its row and its pictures."""
        with self._job.judged_weights():
            self._validate()
        # Streams and figures, megabytes each, refer to themselves: Python would find them
        # after dozens of evaluations only, and memory would grow meanwhile.
        gc.collect()

    def _validate(self) -> None:
        job, at = self._job, self._job.state["step"]
        found, _ = self.metrics(job.dataset.val, "val")
        row = {"step": at, **{f"val_{name}": value for name, value in found.items()}}
        job.state["evaluations"].append(row)
        if self._reporter is None:
            return
        self._reporter.evaluation(row)
        self.draw(f"step-{at:08d}", job.dataset.val, "val")
        rows = [row for row in self._reporter.rows if row["kind"] == "train"]
        settings = job.settings
        loss = objective.shown(
            settings.loss, settings.class_weights, settings.label_smoothing
        )
        curves = pictures.curves(rows, job.state["evaluations"], loss)
        self._reporter.picture("curves", curves, at)

    def metrics(self, split: Split, name: str) -> evaluation_step.Judged:
        """Returns the metrics of a split, named as `metrics.summary` names them.

        With them the confusion matrix (C, C) int64 that they are of.
        """
        job = self._job
        most = job.settings.eval_batch_size or job.batch_size
        batch_size, turns = feed.turns_of(job, split, most)
        stream = feed.eval_batches(job, split, name, batch_size, turns)
        with (
            feed.explained(job, split, name),
            streams.iterator(stream, job.strategy) as batches,
        ):
            found, confusion = self._evaluate(batches, turns, self._check)
        absent = [c for c in job.dataset.class_names if found[f"iou/{c}"] is None]
        if absent:
            logging.info(
                "[%d] not in the mean on %s, for no pixel has or is given it: %s",
                *(job.state["step"], name, ", ".join(absent)),
            )
        return found, confusion

    def draw(self, picture: str, split: Split, name: str) -> str | None:
        """Writes a picture of the first examples as predicted; returns its path."""
        job = self._job
        if self._reporter is None:
            return None
        if name not in self._drawn:
            count = min(job.settings.num_pictures, len(split.ids))
            with feed.explained(job, split, name):
                self._drawn[name] = feed.first_eval_examples(job, split, name, count)
        image, mask = self._drawn[name]
        names = list(job.dataset.class_names)
        drawn = pictures.panels(image, mask, self._predict(image), names)
        return self._reporter.picture(picture, drawn, job.state["step"])

    def look(
        self, split: Split, name: str, enough: Callable[[], bool]
    ) -> gallery.Shown:
        """Returns examples of a split to look at; the worker that writes alone asks.

        Args:
            split: Of which the first `gallery.MOST_LOOKED_AT` examples are looked at.
            name: Of its reader.
            enough: Asked after each batch; ends the looking.
        """
        job = self._job
        ids = split.ids[: gallery.MOST_LOOKED_AT]
        # As in `draw`: a batch of another size would be compiled anew.
        batch_size = min(job.settings.num_pictures, len(split.ids))
        some = dataclasses.replace(split, ids=ids)
        stream = feed.eval_batches(job, some, name, batch_size)

        def seen(batches: Iterator) -> Iterator[gallery.Seen]:
            left = len(ids)  # What fills up the last batch is left out.
            for image, mask in batches:
                image, mask, n = image.numpy(), mask.numpy(), min(left, batch_size)
                yield from zip(image, mask, self._predict(image)[:n], strict=False)
                left -= n
                if enough():
                    return

        with streams.iterator(stream) as batches:
            classes = len(job.dataset.class_names)
            return gallery.choose(seen(batches), classes, total=len(split.ids))

    def draw_augmented(self) -> None:
        """Writes a picture of the first training examples as the model sees them."""
        job = self._job
        if self._reporter is None:
            return
        with feed.explained(job):
            image, mask = feed.first_train_examples(job, job.settings.num_pictures)
        names = list(job.dataset.class_names)
        drawn = pictures.panels(image, mask, None, names)
        self._reporter.picture("augmented", drawn, 0)
