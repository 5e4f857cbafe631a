"""What is saved of a run at its step, taken at once and written while it goes on."""

import copy
import functools
import time
from collections.abc import Callable

import numpy as np

from trainer import checkpoint, checkpoint_folder, standing
from trainer.job import Job


def save(job: Job) -> Callable[[], None]:
    """Takes what the run is at its step; returns the work of writing it.

    The work writes a checkpoint, moves the pointer to it, deletes old ones. The run may
    go on meanwhile.

    Raises:
        FloatingPointError: If a variable is not finite.
    """
    directory, keep = job.directories.checkpoints, job.settings.keep_checkpoints
    metric = job.settings.best_metric
    job.state["time_saved"] = time.time()
    arrays, state = checkpoint.values(job.variables), copy.deepcopy(job.state)
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # The loss tells at the next step only.
            raise standing.not_finite(
                f"after step {state['step']} {name} is not finite"
            )
    move_pointer = point(job)

    def best_at(name: str) -> str:
        done = [
            e for e in state["evaluations"] if checkpoint.name_of(e["step"]) <= name
        ]
        return (
            checkpoint.name_of(standing.best_of(done, metric)["step"]) if done else name
        )

    def write() -> None:
        latest = checkpoint.save(directory, arrays, state, job.fence)
        job.damaged.discard(latest)
        job.fence()  # Each of them may take long.
        move_pointer()
        job.latest = latest
        job.fence()
        checkpoint_folder.prune(directory, keep, best_at, job.damaged)

    return write


def point(job: Job) -> Callable[[], None]:
    """Returns the work of pointing to the checkpoint of this step, and to the best."""
    at = job.state["step"]
    best_step = standing.best(job)["step"] if job.state["evaluations"] else at
    return functools.partial(
        checkpoint_folder.move_pointer,
        job.directories.checkpoints,
        latest=checkpoint.name_of(at),
        best=checkpoint.name_of(best_step),
    )
