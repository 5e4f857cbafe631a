"""How a run stands: its best evaluation so far, and what ends it where it is."""

import math
from typing import Any

from trainer.job import Job


def best(job: Job) -> dict[str, Any]:
    """Returns the evaluation with the best `best_metric`, the first of equals."""
    return best_of(job.state["evaluations"], job.settings.best_metric)


def best_of(evaluations: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Returns the best of one or more evaluations by a metric, the first of equals."""
    sign = -1 if metric == "val_loss" else 1
    valued = [e for e in evaluations if e[metric] is not None]
    return max(valued or evaluations[-1:], key=lambda e: sign * (e[metric] or 0))


def stop_reason(job: Job) -> str | None:
    """Returns the setting that ends the run at the step it is at, if one does."""
    settings, state = job.settings, job.state
    if state["step"] >= job.total_steps:
        return "total_steps" if settings.total_steps else "epochs"
    overtime = state["seconds"] >= 60 * (settings.max_minutes or math.inf)
    if overtime and state["step"] > 0:  # What is to be judged takes one step at least.
        return "max_minutes"
    if settings.early_stopping_evals and state["evaluations"]:
        since_best = [e["step"] for e in state["evaluations"]][::-1].index(
            best(job)["step"]
        )
        if since_best >= settings.early_stopping_evals:
            return "early_stopping_evals"
    return None


def not_finite(what: str) -> FloatingPointError:
    """Returns the error that ends a run whose numbers are lost, with the way out."""
    return FloatingPointError(
        f"{what}; try a lower --learning_rate or --clip_norm in a new --job_dir"
    )
