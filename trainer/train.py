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

import contextlib
import copy
import functools
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from trainer import checkpoint, data, feed, metrics, report, step
from trainer.clock import Clock
from trainer.job import Job
from trainer.judge import Judge
from trainer.saver import Saver

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
    done_before = report.read_result(job.directories.job)
    if done_before.get("step") == job.state["step"] and stop_reason(job):
        logging.info(
            "This run is done: nothing left to train after step %d. Its files are in %s",
            *(job.state["step"], job.directories.job),
        )
        if job.in_trial:  # The tuner's file did not survive the restart.
            report.Tuner(job.settings.hp_metric).tell_all(job.state["evaluations"])
        return done_before
    _say_what_starts(job)
    reporter = report.Reporter(
        job_dir=job.directories.job,
        log_dir=job.directories.logs,
        step=job.state["step"],
        total_steps=job.total_steps,
        global_batch_size=job.global_batch_size,
        hp_metric=job.settings.hp_metric if job.in_trial else None,
        evaluations=job.state["evaluations"],
        fence=job.fence,
    )
    with contextlib.closing(reporter), Saver(job.fence) as saver:
        judge = Judge(job, reporter)
        if job.state["step"] == 0:
            judge.draw_augmented()
            judge.draw("step-00000000", job.dataset.val, "val")
            saver.start(*reporter.flush())
        clock = Clock(job.global_batch_size, process_start)
        try:
            _train(job, reporter, judge, clock, saver)
        except FloatingPointError as error:
            saver.start(*reporter.flush(), functools.partial(_write_failed, job, error))
            raise
        result = _finish(job, judge)
        saver.start(*reporter.flush())
    result |= {
        "train_images_per_second": clock.images_per_second(over_all=True),
        "seconds_to_first_step": clock.seconds_to_first_step,
        "train_seconds": job.state["seconds"],
        "save_wait_seconds": clock.save_wait_seconds,
        "total_seconds": time.time() - process_start,
        "peak_memory_bytes": _peak_memory_bytes(),
    }
    job.fence()
    report.write_result(job.directories.job, result)
    return result


def _train(
    job: Job, reporter: report.Reporter, judge: Judge, clock: Clock, saver: Saver
) -> None:
    """Steps, reports, evaluates and saves until it is told to stop."""
    settings, state = job.settings, job.state
    train_steps = step.make_train_steps(
        job.strategy,
        job.model,
        job.optimizer,
        loss_scale=job.loss_scale,
        clip_norm=settings.clip_norm,
        jit_compile=settings.jit_compile,
    )
    eval_every = settings.eval_every_steps or math.ceil(job.steps_per_epoch)
    save_every = settings.checkpoint_every_steps or math.inf
    profiling = False
    seconds_before, began, saved = state["seconds"], time.monotonic(), time.monotonic()

    with data.iterator(feed.train_batches(job), job.strategy) as batches:
        while not stop_reason(job):
            job.fence()
            # ---- Step ------------------------------------------------------
            profiling = _profile(job, state["step"], profiling)
            called = time.monotonic()
            try:
                n = _steps_in_call(job, eval_every, clock.seconds_per_step)
                loss_sum, loss, taken, waited = train_steps(batches, n)
            except data.ERRORS:
                feed.explain(job)
                raise
            at = state["step"] + taken
            state["step"] = at
            if not np.isfinite(loss):
                raise _not_finite(f"the loss at step {at} is {loss}")
            state["loss_sum"] += loss_sum
            state["loss_steps"] += taken
            state["seconds"] = seconds_before + time.monotonic() - began
            clock.tick(taken, time.monotonic() - called, waited)
            reporter.progress(at, loss, clock.images_per_second())

            # ---- Report ----------------------------------------------------
            if at % settings.log_every_steps == 0 or at == job.total_steps:
                rate = keras.ops.convert_to_numpy(job.optimizer.learning_rate)
                row = {
                    "step": at,
                    "epoch": at / job.steps_per_epoch,
                    "loss": state["loss_sum"] / state["loss_steps"],
                    "learning_rate": float(rate),
                }
                reporter.train(row | clock.restart())
                state["loss_sum"], state["loss_steps"] = 0.0, 0

            # ---- Evaluate, save --------------------------------------------
            idle_seconds = time.monotonic() - saved
            if judge_now := at % eval_every == 0 or stop_reason(job):
                judge.validate()
            if (
                judge_now
                or at % save_every == 0
                or idle_seconds >= settings.checkpoint_every_seconds
            ):
                with clock.saving():
                    saver.wait()  # The values of one save at a time are in memory.
                    saver.start(*reporter.flush(), save(job))
                saved = time.monotonic()
            saver.check()
        _profile(job, None, profiling)
    if [e["step"] for e in state["evaluations"]][-1:] != [state["step"]]:
        # Restarted at a checkpoint that the end lies behind.
        judge.validate()
    with clock.saving():
        saver.wait()


def _finish(job: Job, judge: Judge) -> dict[str, Any]:
    """Returns what the run came to, the best checkpoint on test where there is one."""
    last, chosen = job.state["evaluations"][-1], best(job)
    try:
        directory, name = job.directories.checkpoints, _name(chosen["step"])
        saved = checkpoint.load(directory, name, prefix="model/")
        checkpoint.assign(saved.arrays, checkpoint.named_variables(job.model))
    except ValueError as error:  # The model still is that of the last step.
        logging.warning("Passed over for the last: %s", error)
        chosen = last
    test = job.dataset.test
    split, name = (test, "test") if test else (job.dataset.val, "val")
    return {
        "complete": job.state["step"] >= job.total_steps,
        "stopped_by": stop_reason(job),
        "step": job.state["step"],
        "epoch": job.state["step"] / job.steps_per_epoch,
        "last": last,
        "best": chosen,
        "test": judge.metrics(test, "test") if test else None,
        "pictures": {
            "curves": report.picture_path(job.directories.job, "curves"),
            "predictions": judge.draw("predictions", split, name),
        },
    }


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


def save(job: Job) -> Callable[[], None]:
    """Takes what the run is at its step; returns the work of writing it.

    The work writes a checkpoint, moves the pointer to it, deletes old ones. The run may
    go on meanwhile.

    Raises:
        FloatingPointError: If a variable is not finite.
    """
    directory, keep = job.directories.checkpoints, job.settings.keep_checkpoints
    arrays, state = checkpoint.values(job.variables), copy.deepcopy(job.state)
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # The loss tells at the next step only.
            raise _not_finite(f"after step {state['step']} {name} is not finite")
    best_step = best(job)["step"] if state["evaluations"] else state["step"]

    def write() -> None:
        latest = checkpoint.save(directory, arrays, state, job.fence)
        job.fence()  # Each of them may take long.
        checkpoint.move_pointer(directory, latest=latest, best=_name(best_step))
        job.latest = latest
        job.fence()
        checkpoint.prune(directory, keep)

    return write


def _name(at: int) -> str:
    return f"step-{at:08d}"


# ---------------------------------------------------------------------------
# Parts of the loop


def _say_what_starts(job: Job) -> None:
    opened = job.dataset
    if job.latest:
        logging.info(
            "Going on from %s, the newest whole checkpoint in %s",
            *(job.latest, job.directories.checkpoints),
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
        *(job.strategy.num_replicas_in_sync, job.steps_per_epoch),
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


def _profile(job: Job, at: int | None, running: bool) -> bool:
    """Starts and ends the profile; returns whether it is running now."""
    first, last = job.settings.profile_steps or (math.inf, math.inf)
    due = at is not None and first <= at < last
    if due and not running:
        tf.profiler.experimental.start(job.directories.logs)
    if running and not due:
        tf.profiler.experimental.stop()
    return due


def _not_finite(what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what}; try a lower --learning_rate or --clip_norm in a new --job_dir"
    )


def _write_failed(job: Job, error: FloatingPointError) -> None:
    """Writes failed.json: the same job is not to try again."""
    report.write_failed(
        job.directories.job,
        step=job.state["step"],
        reason=str(error),
        cloud_job_id=job.cloud_job_id,
    )


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


def what_is_kept(job: Job, again: bool = True) -> str:
    """Returns what a stopped run leaves, and whether the same command helps."""
    if job.latest is None:
        return "no checkpoint was written yet"
    kept = f"{job.latest} is kept"
    return kept + (", the same command goes on from it" if again else "")
