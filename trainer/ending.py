"""The end of a run: its best checkpoint tested, exported, and shown on a page."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from trainer import (
    checkpoint,
    checkpoint_folder,
    exporting,
    files,
    gallery,
    interruption,
    objective,
    page,
    run_files,
    standing,
    terminal,
    trained,
)
from trainer.clock import Clock
from trainer.job import Job
from trainer.judge import Judge


def judge_best(
    job: Job, judge: Judge, clock: Clock, notice: interruption.Notice
) -> tuple[dict[str, Any], gallery.Shown | None]:
    """Gives the model its best weights and judges it: on test, where there is one.

    All workers do, once each of them can read what the chief has written.

    Args:
        job: The run, trained.
        judge: What judges its model.
        clock: Counts what is spent on evaluating.
        notice: Ends the looking at examples, where the run is told to stop.

    Returns:
        What the run came to, and the examples that its page shows: none on a worker
        that does not write, or where they could not be looked at.

    Raises:
        interruption.Interrupted: If a worker was told to stop while it evaluated.
    """
    best, test = _take_best(job), job.dataset.test
    split, name = (test, "test") if test else (job.dataset.val, "val")
    shown = None
    with clock.spent("evaluating"):
        found, confusion = judge.metrics(split, name)
        drawn = judge.draw("predictions", split, name)
        if job.workers.is_chief:
            with page_may_fail():
                shown = judge.look(split, name, _enough(notice))
    result = {
        "complete": job.state["step"] >= job.total_steps,
        "stopped_by": standing.stop_reason(job),
        "step": job.state["step"],
        "epoch": job.state["step"] / job.steps_per_epoch,
        "last": job.state["evaluations"][-1],
        "best": best,
        "test": found if test else None,
        "confusion": {
            "split": name,
            "examples": len(split.ids),
            "class_names": list(job.dataset.class_names),
            "counts": confusion.tolist(),
        },
        "pictures": {
            "curves": run_files.picture_path(job.directories.job, "curves"),
            "predictions": drawn,
        },
    }
    return result, shown


def export(job: Job, result: dict[str, Any], clock: Clock) -> str | None:
    """Returns where the chief has put the model that was judged, if asked to.

    Args:
        job: The run; its model has the weights to export.
        result: What `judge_best` returned.
        clock: Counts what is spent on exporting.

    Raises:
        OSError: If it could not; the same command tries again.
    """
    if not job.settings.export:
        return None
    target = job.directories.model
    # On all workers: reading a mirrored variable needs all of them.
    arrays = checkpoint.values(checkpoint.named_variables(job.model))
    if not job.workers.is_chief:
        return target
    names = tuple(job.dataset.class_names)
    with clock.spent("exporting"):
        try:
            model = trained.Trained(
                model=exporting.rebuilt(job.settings, len(names), arrays),
                settings=job.settings,
                class_names=names,
                checkpoint=_best_path(job, result),
                step=result["best"]["step"],
                validation=result["best"],
            )
            exporting.export(
                model,
                target,
                job_dir=job.directories.job,
                test=result["test"],
                fence=job.fence,
            )
        except Exception as error:
            if not terminal.expected(error):
                raise
            reason = terminal.one_line(error)
            raise OSError(
                f"no model could be exported to {target}: {reason}"
            ) from error
    return target


@contextlib.contextmanager
def page_may_fail() -> Iterator[None]:
    """Says what went wrong with the report page; the run and its figures go on."""
    try:
        yield
    except Exception as error:
        logging.warning(
            "report.html is not as it should be: %s",
            terminal.one_line(error),
            exc_info=not terminal.expected(error),
        )


def write_page(
    job: Job, result: dict[str, Any], rows: list[dict], shown: gallery.Shown | None
) -> str:
    """Writes the report page, whole; returns its path.

    Args:
        job: The run, whose config.json is there.
        result: As in result.json, for the most part.
        rows: Of metrics.jsonl.
        shown: Examples, where there are any to show.
    """
    settings, directories = job.settings, job.directories
    html = page.render(
        files.read_json(os.path.join(directories.job, "config.json")),
        result,
        rows,
        shown,
        loss=objective.shown(
            settings.loss, settings.class_weights, settings.label_smoothing
        ),
        job_dir=directories.job,
        log_dir=directories.logs,
        checkpoint=_best_path(job, result),
    )
    path = os.path.join(directories.job, "report.html")
    files.write(path, html)
    return path


def _take_best(job: Job) -> dict[str, Any]:
    """Gives the model its best weights, or leaves the last; returns their evaluation."""
    best, saved = standing.best(job), None
    name = checkpoint.name_of(best["step"])
    try:
        saved = checkpoint.load_judged(job.directories.checkpoints, name)
    except ValueError as error:  # The model still is that of the last step.
        logging.warning("Passed over for the last: %s", error)
    if job.workers.totals(int(saved is None)) != [0]:  # On all of them.
        if job.workers.is_chief:  # Others read the model that is told of.
            job.fence()
            last = checkpoint.name_of(job.state["step"])
            checkpoint_folder.move_pointer(
                job.directories.checkpoints, latest=last, best=last
            )
        return job.state["evaluations"][-1]
    assert saved is not None
    checkpoint.assign(saved.arrays, checkpoint.named_variables(job.model))
    return best


def _enough(notice: interruption.Notice) -> Callable[[], bool]:
    """Returns what says that examples were looked at long enough, or too long."""
    end = time.monotonic() + gallery.MOST_SECONDS
    return lambda: time.monotonic() >= end or notice.reason is not None


def _best_path(job: Job, result: dict[str, Any]) -> str:
    """Returns the file of the checkpoint that the result is of."""
    name = checkpoint.name_of(result["best"]["step"])
    return os.path.join(job.directories.checkpoints, f"{name}.npz")
