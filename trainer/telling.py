"""What the person at the terminal is told of a run: how it starts, how it ends."""

import shlex
from typing import Any

from absl import logging

from trainer import metrics, order, page
from trainer.job import Job

MOST_TIMES_READ = 1.05  # Beyond it, a person is told.


def say_what_starts(job: Job) -> None:
    """Says what a run reads, how long it goes and where it writes."""
    opened, workers = job.dataset, job.workers
    if not workers.is_chief:
        logging.info(
            "Worker %d of %d; the chief says how it goes", workers.index, workers.count
        )
        logging.set_verbosity(logging.WARNING)
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
    replicas = job.strategy.num_replicas_in_sync
    shared = f" ({job.batch_size} on each of {replicas} replicas)"
    logging.info(
        "%d steps of %d examples%s, %.1f steps an epoch, learning rate %g; writing to %s",
        *(job.total_steps, job.global_batch_size, shared if replicas > 1 else ""),
        *(job.steps_per_epoch, job.state["learning_rate"], job.directories.job),
    )
    if job.settings.warmup_steps >= job.total_steps:
        logging.warning(
            "The learning rate rises over all of the run and never reaches %g: "
            "warmup_steps is %d, its steps are %d; give fewer --warmup_steps, or train "
            "for longer",
            *(job.state["learning_rate"], job.settings.warmup_steps, job.total_steps),
        )
    if workers.count > 1:
        logging.info("%d workers, of which this is the chief", workers.count)
        times = order.times_read(
            opened.train.shard_lengths,
            seed=job.settings.seed,
            window=job.settings.shuffle_window,
            size=job.global_batch_size,
            workers=workers.count,
        )
        if times > MOST_TIMES_READ:
            logging.info(
                "The %d train files do not fit %d workers: together they read them %.1f "
                "times in %s; write them in a multiple of %d alike shards",
                *(len(opened.train.files), workers.count, times),
                "the first epoch" if job.examples["train"].cached else "an epoch",
                workers.count,
            )


def answer(job: Job, result: dict[str, Any]) -> str:
    """Returns what a run ends with: its table of classes and where its files are."""
    split, judged = page.judged(result)
    at = f"step {result['best']['step']} of {result['step']}"
    lines = [
        f"Best by {job.settings.best_metric}: {at}, on {split}:",
        metrics.table(judged, job.state["class_names"]),
        *(f"{name}: {path}" for name, path in result["pictures"].items()),
        *([f"report: {result['report']}"] if "report" in result else []),
        f"curves, events: tensorboard --logdir {shlex.quote(job.directories.logs)}",
    ]
    if result.get("export"):
        lines.append(f"model, to serve: {result['export']}")
    return "\n".join(lines)


def what_is_kept(job: Job, again: bool = True) -> str:
    """Returns what a stopped run leaves, and whether the same command helps."""
    if not job.workers.is_chief:
        return "what the chief has saved is kept, the same command goes on from it"
    if job.latest is None:
        return "no checkpoint was written yet"
    kept = f"{job.latest} is kept"
    return kept + (", the same command goes on from it" if again else "")
