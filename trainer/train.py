"""The story of a run: step, report, evaluate, save, stop.

run = job.prepare(settings)    checked, built, restored; nothing trained yet
train_and_evaluate(run)        until the last step; all else follows from the step

while not told to stop:
    train_steps(n)             n steps in one call: to the next event, a second's
    due -> report              step, loss, images/s, share of time waiting for data
    due -> evaluate            one confusion matrix over the split -> metrics
    due -> save                data, digest, pointer
test the best, result.json
"""

import math
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from trainer import checkpoint, data, evaluate, metrics, pictures, report, step
from trainer.config import Config
from trainer.dataset import Split
from trainer.job import Job

CALL_SECONDS = 1.0  # Longest call of TensorFlow: a signal waits for its return.


def train_and_evaluate(job: Job, process_start: float) -> dict[str, Any]:
    """Trains to the last step, evaluates on the way, saves; returns the result.

    Args:
        job: What `job.prepare` returned.
        process_start: Seconds since 1970 at which the process started.

    Raises:
        FloatingPointError: If the loss is not finite; failed.json says so too.
        ValueError: If an example or a file is damaged; names it.
        OSError, tf.errors.OpError: If something cannot be written or read.
    """
    settings, state = job.settings, job.state
    done_before = report.read_result(job.directories.job)
    if done_before.get("step") == state["step"] and stop_reason(job):
        logging.info("This run is done: nothing left to train after step %d. Its files "
                     "are in %s", state["step"], job.directories.job)  # fmt: skip
        return done_before
    steps_per_epoch = len(job.dataset.train.ids) / job.global_batch_size
    eval_every = settings.eval_every_steps or math.ceil(steps_per_epoch)
    _say_what_starts(job, steps_per_epoch)
    reporter = report.Reporter(
        job_dir=job.directories.job,
        log_dir=job.directories.logs,
        step=state["step"],
        total_steps=job.total_steps,
        global_batch_size=job.global_batch_size,
        hp_metric=settings.hp_metric if job.in_trial else None,
        evaluations=state["evaluations"],
    )
    train_steps = step.make_train_steps(
        job.strategy,
        job.model,
        job.optimizer,
        loss_scale=job.loss_scale,
        clip_norm=settings.clip_norm,
        jit_compile=settings.jit_compile,
    )
    evaluate_batches = evaluate.make_evaluate(
        job.strategy, job.model, job.dataset.class_names
    )
    draw = _make_draw(job)

    def validate() -> None:
        found = evaluate_split(job, evaluate_batches, job.dataset.val, "val")
        found = {f"val_{name}": value for name, value in found.items()}
        at = state["step"]
        state["evaluations"].append({"step": at, **found})
        reporter.evaluation(state["evaluations"][-1])
        reporter.picture(f"step-{at:08d}", draw(job.dataset.val, "val"), at)
        reporter.picture("curves", _curves(reporter, state), at)

    if state["step"] == 0:
        reporter.picture("augmented", _augmented(job), 0)
        reporter.picture("step-00000000", draw(job.dataset.val, "val"), 0)
    clock = _Clock(job.global_batch_size)
    began, seconds_before = time.time(), state["seconds"]
    seconds_to_first_step, last_saved, profiling = None, time.monotonic(), False
    profile_from, profile_to = settings.profile_steps or (None, None)

    with data.iterator(_train_batches(job), job.strategy) as batches:
        # ---- Train -------------------------------------------------------------
        while not (reason := stop_reason(job)):
            at = state["step"]
            if at == profile_from:
                tf.profiler.experimental.start(job.directories.logs)
                profiling = True
            called = time.monotonic()
            try:
                n = _steps_in_call(job, eval_every, clock.seconds_per_step)
                loss_sum, loss, taken, waited = train_steps(batches, n)
            except tf.errors.OpError:
                _explain(job)
                raise
            seconds = time.monotonic() - called
            at += taken
            if not np.isfinite(loss):
                _fail(job, at, f"the loss at step {at} is {loss}")
            state["step"] = at
            state["loss_sum"] += loss_sum
            state["loss_steps"] += taken
            state["seconds"] = seconds_before + time.time() - began
            if seconds_to_first_step is None:
                seconds_to_first_step = time.time() - process_start
            clock.tick(taken, seconds, waited)
            reporter.progress(at, loss, clock.images_per_second())
            if profiling and at == profile_to:
                tf.profiler.experimental.stop()
                profiling = False

            # ---- Report --------------------------------------------------------
            if at % settings.log_every_steps == 0 or at == job.total_steps:
                row = {
                    "step": at,
                    "epoch": at / steps_per_epoch,
                    "loss": state["loss_sum"] / state["loss_steps"],
                    "learning_rate": float(
                        keras.ops.convert_to_numpy(job.optimizer.learning_rate)
                    ),
                }
                reporter.train(row | clock.restart())
                state["loss_sum"], state["loss_steps"] = 0.0, 0

            # ---- Evaluate, save ------------------------------------------------
            every = settings.checkpoint_every_steps
            idle = time.monotonic() - last_saved
            if at % eval_every == 0 or stop_reason(job):
                validate()
            elif (
                not (every and at % every == 0)
                and idle < settings.checkpoint_every_seconds
            ):
                continue
            reporter.flush()
            save(job)
            last_saved = time.monotonic()
        if profiling:
            tf.profiler.experimental.stop()
    if [e["step"] for e in state["evaluations"]][-1:] != [state["step"]]:
        # Restarted with an end that lies behind it.
        validate()
        reporter.flush()
        save(job)

    # ---- Finish ------------------------------------------------------------
    result = {
        "complete": True,
        "stopped_by": reason,
        "step": state["step"],
        "epoch": state["step"] / steps_per_epoch,
        "last": state["evaluations"][-1],
        "best": best(job),
        "test": None,
        "pictures": {
            "curves": report.picture_path(job.directories.job, "curves"),
        },
        "train_images_per_second": clock.images_per_second(over_all=True),
        "seconds_to_first_step": seconds_to_first_step,
        "train_seconds": state["seconds"],
    }
    try:
        name = _name(result["best"]["step"])
        saved = checkpoint.load(job.directories.checkpoints, name)
        checkpoint.assign(saved.arrays, checkpoint.named_variables(job.model))
    except ValueError as error:  # The model still is that of the last step.
        logging.warning("Passed over for the last: %s", error)
        result["best"] = result["last"]
    split, name = (
        (job.dataset.test, "test") if job.dataset.test else (job.dataset.val, "val")
    )
    if name == "test":
        result["test"] = evaluate_split(job, evaluate_batches, split, "test")
    picture = draw(split, name)
    result["pictures"]["predictions"] = reporter.picture(
        "predictions", picture, state["step"]
    )
    reporter.close()
    result["total_seconds"] = time.time() - process_start
    result["peak_memory_bytes"] = _peak_memory_bytes()
    report.write_result(job.directories.job, result)
    return result


def stop_reason(job: Job) -> str | None:
    """Returns the setting that ends the run at the step it is at, if one does."""
    settings, state = job.settings, job.state
    if state["step"] >= job.total_steps:
        return "total_steps" if settings.total_steps else "epochs"
    if settings.max_minutes and state["seconds"] >= 60 * settings.max_minutes:
        return "max_minutes"
    if settings.early_stopping_evals and state["evaluations"]:
        since_best = [e["step"] for e in state["evaluations"]][::-1].index(
            best(job)["step"]
        )
        if since_best >= settings.early_stopping_evals:
            return "early_stopping_evals"
    return None


def best(job: Job) -> dict[str, Any]:
    """Returns the evaluation with the best `best_metric`, the first of equals."""
    name = job.settings.best_metric
    sign = -1 if name == "val_loss" else 1
    valued = [e for e in job.state["evaluations"] if e[name] is not None]
    return max(
        valued or job.state["evaluations"][-1:], key=lambda e: sign * (e[name] or 0)
    )


def save(job: Job) -> None:
    """Writes a checkpoint of the step the run is at, then moves the pointer to it.

    Raises:
        FloatingPointError: If a variable is not finite; nothing is written then.
    """
    directory = job.directories.checkpoints
    arrays = checkpoint.values(job.variables)
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # The loss tells at the next step only.
            at = job.state["step"]
            _fail(job, at, f"after step {at} {name} is not finite")
    latest = checkpoint.save(directory, arrays, job.state)
    best_name = _name(best(job)["step"]) if job.state["evaluations"] else latest
    checkpoint.move_pointer(directory, latest=latest, best=best_name)
    checkpoint.prune(directory, job.settings.keep_checkpoints)


def _name(at: int) -> str:
    return f"step-{at:08d}"


def evaluate_split(
    job: Job, evaluate_batches: Callable, split: Split, name: str
) -> dict[str, float | None]:
    """Returns the metrics of a split, named as `metrics.summary` names them."""
    replicas = job.strategy.num_replicas_in_sync
    batch_size = job.settings.eval_batch_size or job.batch_size
    turns = math.ceil(len(split.ids) / (batch_size * replicas))
    stream = _eval_batches(job, split, name, batch_size, replicas)
    try:
        with data.iterator(stream, job.strategy) as batches:
            return evaluate_batches(batches, turns)
    except tf.errors.OpError:
        elements = data.eval_elements(split, job.examples[name], 1)
        data.explain(job.dataset, job.examples[name], elements)
        raise


# ---------------------------------------------------------------------------
# Parts of the loop


def _say_what_starts(job: Job, steps_per_epoch: float) -> None:
    opened = job.dataset
    if job.restored:
        logging.info(
            "Going on from %s, the newest whole checkpoint in %s",
            *(job.restored, job.directories.checkpoints),
        )
    logging.info(
        "%s %s: %d examples to train on, %d to validate, %s to test; classes %s",
        *(opened.name, opened.version, len(opened.train.ids), len(opened.val.ids)),
        *(
            len(opened.test.ids) if opened.test else "none",
            ", ".join(opened.class_names),
        ),
    )
    logging.info(
        "%d steps of %d examples (%d on each of %d replicas), %.1f steps an epoch, "
        "learning rate %g; writing to %s",
        *(job.total_steps, job.global_batch_size, job.batch_size),
        *(job.strategy.num_replicas_in_sync, steps_per_epoch),
        *(job.settings.learning_rate, job.directories.job),
    )


def _steps_in_call(job: Job, eval_every: int, seconds_per_step: float | None) -> int:
    """Returns how many steps to take in one call: to the next event, a second's."""
    if seconds_per_step is None:
        return 1
    settings, at = job.settings, job.state["step"]
    every = (eval_every, settings.log_every_steps, settings.checkpoint_every_steps)
    events = [at + e - at % e for e in every if e] + [job.total_steps]
    events += [s for s in settings.profile_steps or () if s > at]
    return max(1, min(min(events) - at, int(CALL_SECONDS / seconds_per_step)))


def _train_batches(
    job: Job, batch_size: int | None = None, at: int | None = None
) -> Callable[[threading.Event], tf.data.Dataset]:
    """Returns the stream of batches from a step on, the run's own where none is given."""
    settings = job.settings
    step_now = job.state["step"] if at is None else at

    def batches(stop: threading.Event) -> tf.data.Dataset:
        return data.train_batches(
            job.dataset,
            job.examples["train"],
            image_size=settings.image_size,
            batch_size=batch_size or job.batch_size,
            seed=settings.seed,
            window=settings.shuffle_window,
            start=step_now * job.global_batch_size,
            augmentation=_augmentation(settings),
            stop=stop,
        )

    return batches


def _eval_batches(
    job: Job, split: Split, name: str, batch_size: int, replicas: int
) -> Callable[[threading.Event], tf.data.Dataset]:
    """Returns the batches of a split."""

    def batches(stop: threading.Event) -> tf.data.Dataset:
        return data.eval_batches(
            job.dataset,
            split,
            job.examples[name],
            image_size=job.settings.image_size,
            batch_size=batch_size,
            replicas=replicas,
            stop=stop,
        )

    return batches


def _augmentation(settings: Config) -> dict[str, Any] | None:
    """Returns the arguments of `augment.augment`; nothing where it is off."""
    if not settings.augment:
        return None
    return dict(
        flip=settings.flip,
        crop_scale_min=settings.crop_scale_min,
        brightness=settings.brightness,
        contrast=settings.contrast,
        saturation=settings.saturation,
        hue=settings.hue,
    )


def _explain(job: Job) -> None:
    """Raises ValueError that names the example or file that broke a training step."""
    elements = data.train_elements(
        job.dataset.train,
        job.examples["train"],
        seed=job.settings.seed,
        window=job.settings.shuffle_window,
        start=job.state["step"] * job.global_batch_size,
    )
    data.explain(job.dataset, job.examples["train"], elements)


def _fail(job: Job, at: int, what: str) -> None:
    """Writes failed.json and stops the run; the last checkpoint is kept."""
    reason = f"{what}; try a lower --learning_rate or --clip_norm in a new --job_dir"
    report.write_failed(
        job.directories.job, step=at, reason=reason, cloud_job_id=job.cloud_job_id
    )
    raise FloatingPointError(reason)


class _Clock:
    """The speed since the last row, and over all without the first call: it compiles."""

    def __init__(self, global_batch_size: int) -> None:
        self._batch = global_batch_size
        self._compiled = False
        self._since = np.zeros(3)  # Steps, seconds, of them waiting for data.
        self._over_all = np.zeros(3)
        self.seconds_per_step: float | None = None

    def tick(self, steps: int, seconds: float, waited: float) -> None:
        """Counts a call."""
        if self._compiled:
            self._since += (steps, seconds, waited)
            self._over_all += (steps, seconds, waited)
            self.seconds_per_step = seconds / steps
        self._compiled = True

    def images_per_second(self, *, over_all: bool = False) -> float | None:
        """Returns examples per second of training; nothing before the second call."""
        steps, seconds, _ = self._over_all if over_all else self._since
        return float(steps * self._batch / seconds) if seconds else None

    def restart(self) -> dict[str, float]:
        """Returns the columns of a row of metrics.jsonl, and starts the next row."""
        _, seconds, waited = self._since
        speed = self.images_per_second()
        self._since = np.zeros(3)
        if speed is None:
            return {}
        return {"images_per_second": speed, "waiting_for_data": waited / seconds}


# ---------------------------------------------------------------------------
# Pictures


def _curves(reporter: report.Reporter, state: dict[str, Any]) -> np.ndarray:
    rows = [row for row in reporter.rows if row["kind"] == "train"]
    return pictures.curves(rows, state["evaluations"])


def _augmented(job: Job) -> np.ndarray:
    """Returns a picture of the first training examples as the model sees them."""
    stream = _train_batches(job, batch_size=job.settings.num_pictures, at=0)
    with data.iterator(stream) as batches:
        image, mask = next(batches)
    names = list(job.dataset.class_names)
    return pictures.panels(image.numpy(), mask.numpy(), None, names)


def _make_draw(job: Job) -> Callable[[Split, str], np.ndarray]:
    """Returns the function that draws the first examples of a split as predicted."""
    predict = evaluate.make_predict(job.strategy, job.model)

    def draw(split: Split, name: str) -> np.ndarray:
        batch_size = min(job.settings.num_pictures, len(split.ids))
        stream = _eval_batches(job, split, name, batch_size, replicas=1)
        with data.iterator(stream) as batches:
            image, mask = (part.numpy() for part in next(batches))
        names = list(job.dataset.class_names)
        return pictures.panels(image, mask, predict(image), names)

    return draw


def _peak_memory_bytes() -> int:
    """Returns the largest resident memory of the process so far."""
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes


# ---------------------------------------------------------------------------
# For the person at the terminal


def answer(job: Job, result: dict[str, Any]) -> str:
    """Returns what a run ends with: its table of classes and where its files are."""
    tested = result["test"] or {
        name.removeprefix("val_"): value for name, value in result["best"].items()
    }
    split = "test" if result["test"] else "validation"
    at = f"step {result['best']['step']} of {result['step']}"
    lines = [
        f"Best by {job.settings.best_metric}: {at}, on {split}:",
        metrics.table(tested, job.state["class_names"]),
        *(f"{name}: {path}" for name, path in result["pictures"].items()),
        f"curves, events: tensorboard --logdir {job.directories.logs}",
    ]
    return "\n".join(lines)


def what_is_kept(job: Job) -> str:
    """Returns what a stopped run leaves, and how to go on."""
    latest = checkpoint.pointer(job.directories.checkpoints).get("latest")
    if latest is None:
        return "no checkpoint was written yet"
    return f"{latest} is kept, the same command goes on from it"
