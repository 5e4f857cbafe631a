"""The trials of a search as people read them: a table, the best first, and its flags."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from typing import Any

from deploy import space


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        id: Its number, from 1.
        state: succeeded, failed, stopped, running, ...
        settings: The values it was given, by the trainer's settings.
        value: Its metric; None where it has none.
        step: The step it was measured at.
    """

    id: str
    state: str
    settings: dict[str, str | float]
    value: float | None = None
    step: int | None = None


def ranked(trials: Sequence[Trial], goal: str) -> list[Trial]:
    """Returns the trials, the best first, those without a metric last.

    A trial that failed or was stopped has no last word, and comes after those that have.
    """
    sign = -1 if goal == "maximize" else 1

    def key(trial: Trial) -> tuple[bool, float, int]:
        lacks = trial.value is None or not math.isfinite(trial.value)
        value = math.inf if trial.value is None or lacks else sign * trial.value
        number = int(trial.id) if trial.id.isdigit() else 0
        return trial.state != "succeeded" or lacks, value, number

    return sorted(trials, key=key)


def best(trials: Sequence[Trial], goal: str) -> Trial | None:
    """Returns the best trial that succeeded, None if none has."""
    first = next(iter(ranked(trials, goal)), None)
    if first is None or first.state != "succeeded" or first.value is None:
        return None
    return first if math.isfinite(first.value) else None


def table(trials: Sequence[Trial], metric: str, goal: str) -> str:
    """Returns the trials as lines of columns, the best first."""
    names = list(dict.fromkeys(name for one in trials for name in one.settings))
    rows = [["trial", "state", metric, "step", *names]]
    for one in ranked(trials, goal):
        shown = [space.text(one.settings.get(name, "-")) for name in names]
        value = "-" if one.value is None else f"{one.value:.4f}"
        step = "-" if one.step is None else str(one.step)
        rows.append([one.id, one.state, value, step, *shown])
    return columns(rows)


def summary(job: dict[str, Any]) -> str:
    """Returns the trials of a tuning job as the service tells them, and the best."""
    metric = job["studySpec"]["metrics"][0]
    goal = metric.get("goal", "MINIMIZE").lower()
    found = [_told(one, metric["metricId"]) for one in job.get("trials", [])]
    lines = [table(found, metric["metricId"], goal)]
    if first := best(found, goal):
        [*_, pool] = job["trialJobSpec"]["workerPoolSpecs"][:1]
        program = pool.get("containerSpec") or pool.get("pythonPackageSpec") or {}
        lines.append(again(first, program.get("args", [])))
    return "\n".join(lines)


def _told(one: dict[str, Any], metric: str) -> Trial:
    """Returns a trial of the service's; one that it calls infeasible has failed."""
    state = one.get("state", "STATE_UNSPECIFIED").lower()
    measured = one.get("finalMeasurement", {})
    # Not a number is a text in JSON.
    values = {
        m["metricId"]: float(m.get("value", 0)) for m in measured.get("metrics", [])
    }
    return Trial(
        id=one["id"],
        state={"infeasible": "failed", "active": "running"}.get(state, state),
        settings={p["parameterId"]: p["value"] for p in one.get("parameters", [])},
        value=values.get(metric),
        step=int(measured["stepCount"]) if "stepCount" in measured else None,
    )


def again(trial: Trial, trainer_args: Sequence[str]) -> str:
    """Returns the line that says how to train the best trial again."""
    args = [*trainer_args, *space.as_args(trial.settings)]
    return f"best: trial {trial.id}; to train it again, give after --: " + shlex.join(
        args
    )


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines, each column as wide as its widest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{text:{width}}" for text, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )
