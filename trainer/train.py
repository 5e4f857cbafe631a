"""The story of a run: step, report, evaluate, save, stop.

run = job.prepare(settings)    checked, built, restored; nothing trained yet
train_and_evaluate(run)        until the last step; all else follows from the step

while it is not over:
    agree                      all workers on what is next; told to stop -> save, leave
    due -> evaluate            one confusion matrix over the split -> metrics
    due -> save                data, digest, pointer
    train_steps(n)             n steps in one call: to the next event, a second's
    due -> report              step, loss, images/s, share of time waiting for data
test the best, export it, report.html, result.json
"""

import contextlib
import functools
import math
import time
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from trainer import (
    balance,
    checkpoint,
    ending,
    feed,
    interruption,
    losses,
    objective,
    report,
    run_files,
    saving,
    standing,
    step,
    streams,
    telling,
)
from trainer.clock import Clock
from trainer.job import Job
from trainer.judge import Judge
from trainer.saver import Saver

CALL_SECONDS = 1.0  # Longest call of TensorFlow: a notice to stop waits for its return.


def train_and_evaluate(
    job: Job, process_start: float, notice: interruption.Notice
) -> dict[str, Any]:
    """Trains to the last step, evaluates on the way, saves; returns the result.

    With several workers each of them does; the chief alone writes.

    Args:
        job: What `job.prepare` returned.
        process_start: Seconds since 1970 at which the process started.
        notice: What tells the run to stop.

    Raises:
        interruption.Interrupted: If it was told to stop; it has saved then.
        FloatingPointError: If the loss is not finite; failed.json says so too.
        ValueError: If an example or a file is damaged; names it.
        OSError, tf.errors.OpError: If something cannot be written or read, or another
            worker is gone.
    """
    # The file may be there for one worker and not yet for another: the chief's counts.
    done_before = run_files.read_result(job.directories.job)
    # One that was made after the last save, by a run that had been told to stop in it.
    last, evaluations = done_before.get("last"), job.state["evaluations"]
    known = {evaluation["step"] for evaluation in evaluations}
    if last and last["step"] == job.state["step"] and last["step"] not in known:
        evaluations.append(last)
    had_ended = done_before.get("step") == job.state["step"]
    has_all = (done_before.get("export") or not job.settings.export) and (
        done_before.get("test") or job.dataset.test is None
    )
    is_done = had_ended and has_all and standing.stop_reason(job)
    if job.workers.chiefs(int(bool(is_done))) == [1]:
        logging.info(
            "This run is done: nothing left to train after step %d. Its files are in %s",
            *(job.state["step"], job.directories.job),
        )
        # The tuner's file did not survive the restart.
        if job.in_trial and job.workers.is_chief:
            report.Tuner(job.settings.hp_metric).tell_all(job.state["evaluations"])
        return done_before
    if had_ended:  # Nothing was lost since.
        of_uses = done_before.get("seconds_of", job.state["seconds_of"])
        job.state |= {"time_saved": None, "seconds_of": of_uses}
    telling.say_what_starts(job)
    with contextlib.ExitStack() as held:
        reporter, saver = None, held.enter_context(Saver(job.fence))
        if job.workers.is_chief:
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
            held.enter_context(contextlib.closing(reporter))
        run = Run(job, reporter, saver, notice, process_start)
        try:
            run.train()
            with run.clock.spent("saving"):
                saver.wait()
                job.workers.wait()  # All of them read what the chief has written.
            with job.judged_weights():
                result, shown = ending.judge_best(job, run.judge, run.clock, notice)
                result["export"] = ending.export(job, result, run.clock)
        except FloatingPointError as error:  # On all workers.
            if reporter is not None:
                failed = functools.partial(_write_failed, job, error)
                saver.start(*reporter.flush(), failed)
                saver.wait()
            job.workers.wait()
            raise
        if reporter is not None:
            saver.start(*reporter.flush())
    clock = run.clock
    speed = clock.speed()
    if had_ended and clock.seconds_to_first_step is None:
        speed = {name: done_before.get(name) for name in speed}  # Of who has trained.
    result |= {"train_seconds": job.state["seconds"], **speed, **clock.goodput()}
    if reporter is not None:
        job.fence()
        with ending.page_may_fail():
            result["report"] = ending.write_page(job, result, reporter.rows, shown)
        job.fence()
        run_files.write_result(job.directories.job, result)
    job.workers.wait()  # When the chief has left, a service ends the others.
    return result


class Run:
    """A run under way.

    Args:
        job: The run, made ready.
        reporter: Writes its rows and pictures; None on a worker that does not write.
        saver: Writes its checkpoints.
        notice: What tells it to stop.
        process_start: Seconds since 1970 at which the process started.
    """

    def __init__(
        self,
        job: Job,
        reporter: report.Reporter | None,
        saver: Saver,
        notice: interruption.Notice,
        process_start: float,
    ) -> None:
        self._job, self._reporter, self._saver = job, reporter, saver
        self._notice = notice
        self.judge = Judge(job, reporter, self._check)
        self.clock = Clock(
            job.global_batch_size,
            process_start,
            job.state["seconds_of"],
            job.state["time_saved"],
        )
        self._saved_step = job.state["step"] if job.latest else None
        self._saved_at = time.monotonic()
        with self.clock.spent("starting"):
            self._class_weights = balance.class_weights(job, self._check)
        if job.state["step"] == 0:
            with self.clock.spent("evaluating"):
                self.judge.draw_augmented()
                self.judge.draw(checkpoint.name_of(0), job.dataset.val, "val")
            if reporter is not None:
                saver.start(*reporter.flush())

    def train(self) -> None:
        """Steps, reports, evaluates and saves until the run ends or is to stop."""
        job, clock = self._job, self.clock
        settings, state = job.settings, job.state
        train_steps = step.make_train_steps(
            job.strategy,
            job.train_model,
            job.optimizer,
            loss=functools.partial(
                losses.share,
                terms=objective.terms(settings.loss),
                focal_gamma=settings.focal_gamma,
                label_smoothing=settings.label_smoothing,
                class_weights=self._class_weights,
            ),
            loss_scale=job.loss_scale,
            clip_norm=settings.clip_norm,
            jit_compile=settings.jit_compile,
            average=job.average,
        )
        eval_every = settings.eval_every_steps or math.ceil(job.steps_per_epoch)
        save_every = settings.checkpoint_every_steps or math.inf
        profiling, before, began = False, state["seconds"], time.monotonic()

        with streams.iterator(feed.train_batches(job), job.strategy) as batches:
            while True:
                job.fence()
                n = _steps_in_call(job, eval_every, clock.seconds_per_step)
                seconds = before + time.monotonic() - began
                n, overdue, state["seconds"], told = self._agreed(n, seconds)
                if told:
                    self._save_and_stop()

                # ---- Evaluate, save: first, for a restart may be due to --------
                at = state["step"]
                if judged := self._is_to_judge(eval_every):
                    self._validate()
                # The last step may be saved and judged, and not yet pointed to.
                over = standing.stop_reason(job)
                due = overdue or (at > 0 and at % save_every == 0)
                if judged or over or due:
                    self._save()
                if over:
                    break

                # ---- Step ------------------------------------------------------
                profiling = _profile(job, at, profiling)
                called = time.monotonic()
                with feed.explained(job):
                    loss_sum, loss, taken, waited = train_steps(batches, n)
                at = state["step"] = at + taken
                if not np.isfinite(loss):
                    raise standing.not_finite(f"the loss at step {at} is {loss}")
                state["loss_sum"] += loss_sum
                state["loss_steps"] += taken
                clock.tick(taken, time.monotonic() - called, waited)

                # ---- Report ----------------------------------------------------
                if self._reporter is not None:
                    self._reporter.progress(at, loss, clock.images_per_second())
                if at % settings.log_every_steps == 0 or at == job.total_steps:
                    self._report()
                self._saver.check()
            _profile(job, None, profiling)

    def _agreed(self, n: int, seconds: float) -> tuple[int, bool, float, bool]:
        """Returns what all workers do next, each of which must ask.

        Returns:
            The steps of the next call, whether a save is due by the clock, the seconds
            of training so far, all by the chief; and whether anybody was told to stop.
        """
        job = self._job
        since_save = time.monotonic() - self._saved_at
        overdue = since_save >= job.settings.checkpoint_every_seconds
        chiefs = (n, int(overdue), round(1000 * seconds))
        if not job.workers.is_chief:
            chiefs = (0, 0, 0)
        told = self._notice.reason is not None
        n, due, milliseconds, told_any = job.workers.totals(*chiefs, int(told))
        return n, bool(due), milliseconds / 1000, bool(told_any)

    def _check(self) -> None:
        """Raises Interrupted if anybody was told to stop; each worker must ask."""
        if self._job.workers.totals(int(self._notice.reason is not None)) != [0]:
            raise self._notice.interrupted()

    def _is_to_judge(self, eval_every: int) -> bool:
        state = self._job.state
        at, judged = state["step"], [e["step"] for e in state["evaluations"]]
        due = at % eval_every == 0 or standing.stop_reason(self._job) is not None
        return due and at > 0 and at not in judged

    def _validate(self) -> None:
        """Evaluates; if the run is told to stop meanwhile, that is made later."""
        try:
            with self.clock.spent("evaluating"):
                self.judge.validate()
        except interruption.Interrupted:
            self._save_and_stop()
        if self._reporter is not None:
            self._reporter.time_spent(self._job.state["step"], self.clock.goodput())

    def _save(self) -> None:
        """Takes what the run is at its step, to be written while it goes on."""
        job, at = self._job, self._job.state["step"]
        with self.clock.spent("saving"):
            self._saver.wait()  # The values of one save at a time are in memory.
            # What is on the disk is not written over: an evaluation that was made after
            # it is told by the pointer alone.
            saved = at == self._saved_step
            write = saving.point(job) if saved else saving.save(job)
            if self._reporter is not None:
                self._saver.start(*self._reporter.flush(), write)
        self._saved_step, self._saved_at = at, time.monotonic()

    def _save_and_stop(self) -> NoReturn:
        """Saves, and raises Interrupted when all workers may leave."""
        self._save()
        self._saver.wait()
        # All is saved: who could not wait for it changes nothing.
        with contextlib.suppress(tf.errors.OpError):
            self._job.workers.wait()
        self._job.latest = checkpoint.name_of(self._job.state["step"])
        raise self._notice.interrupted()

    def _report(self) -> None:
        """Records a row, of the steps since the one before."""
        job, state = self._job, self._job.state
        row = {
            "step": state["step"],
            "epoch": state["step"] / job.steps_per_epoch,
            "loss": state["loss_sum"] / state["loss_steps"],
            "learning_rate": float(
                keras.ops.convert_to_numpy(job.optimizer.learning_rate)
            ),
        }
        row |= self.clock.restart()
        if self._reporter is not None:
            self._reporter.train(row)
        state["loss_sum"], state["loss_steps"] = 0.0, 0


# ---------------------------------------------------------------------------
# Parts of the loop


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
    due = at is not None and first <= at < last and job.workers.is_chief
    if due and not running:
        tf.profiler.experimental.start(job.directories.logs)
    if running and not due:
        tf.profiler.experimental.stop()
    return due


def _write_failed(job: Job, error: FloatingPointError) -> None:
    """Writes failed.json: the same job is not to try again."""
    run_files.write_failed(
        job.directories.job,
        step=job.state["step"],
        reason=str(error),
        cloud_job_id=job.cloud_job_id,
    )
