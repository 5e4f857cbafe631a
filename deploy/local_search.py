"""A search on this machine: Optuna chooses the settings, as Vertex AI's tuner would."""

import concurrent.futures
import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from deploy import command, replicas, restarts, space, trials
from deploy.order import Search, most_failures, parallel
from deploy.side_by_side import Jobs
from deploy.study import Study
from deploy.trials import Trial

Future = concurrent.futures.Future


def check(folder: str) -> None:
    """Raises ValueError where a search cannot begin: other trials are there, or nothing.

    Trials of an earlier search had other settings, and would not be gone on with.
    """
    if os.path.isdir(folder) and os.listdir(folder):
        raise ValueError(
            f"a search must begin in a new folder, got {folder} with files in it; give "
            "another --job_name"
        )
    try:
        import optuna  # noqa: F401 -- only looked for
    except ModuleNotFoundError:
        raise ValueError(
            "a search on this machine needs Optuna: pip install 'segtrainer[local]'"
        ) from None


def run(
    study: Study,
    search: Search,
    folder: str,
    jobs: Jobs,
    job: Callable[[Sequence[str], str, int], restarts.Job],
) -> int:
    """Runs the trials; prints their table and the best one; returns the exit code.

    Args:
        study: The search, checked.
        search: Its settings.
        folder: Where each trial has a folder of its own.
        jobs: Runs jobs side by side.
        job: Makes the job of a trial from its flags, its number and its place among
            those that run at the same time.
    """
    asked, found = _sampled(study, search), list[Trial]()
    running: dict[Future[int], tuple[Any, Trial, int]] = {}
    free = list(range(parallel(search)))
    failures, begun, most = 0, 0, most_failures(search)
    while True:
        while free and begun < search.trials and failures < most:
            if jobs.stopped is not None or (one := _ask(asked, study)) is None:
                begun = search.trials
                break
            begun += 1
            trial = Trial(str(begun), "running", one[1])
            slot = free.pop()
            # Two arguments each, as the tuner gives them.
            args = [x for k, v in trial.settings.items() for x in (f"--{k}", str(v))]
            future = jobs.start(job([*study.trainer_args, *args], trial.id, slot))
            running[future] = (one[0], trial, slot)
        if not running:
            break
        done, _ = concurrent.futures.wait(
            running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
            drawn, trial, slot = running.pop(future)
            free.append(slot)
            told_to = jobs.stopped is not None
            ended = _ended(trial, future.result(), told_to, study, search, folder)
            failures += ended.state == "failed"
            found.append(ended)
            _tell(asked, drawn, ended)
    print(trials.table(found, study.metric, study.goal))
    if jobs.stopped is not None:
        return jobs.stopped
    if failures >= most:
        command.note(f"ended after {failures} failed trials")
        return restarts.FAILED
    if best := trials.best(found, study.goal):
        print(trials.again(best, study.trainer_args))
    return 0


def measurements(folder: str, metric: str) -> list[tuple[int, float]]:
    """Returns (step, value) of each finite report of a trial, in their order.

    The tuner's file has the last 100 of them only: that they are told is seen there, all
    of them are in the run's own rows.
    """
    told = [row for row in _rows(replicas.metric_file(folder)) if metric in row]
    rows = _rows(os.path.join(folder, "metrics.jsonl")) if told else []
    found = [
        (int(row["step"]), float(row[metric]))
        for row in rows
        if row["kind"] == "eval" and row.get(metric) is not None
    ]
    return [one for one in found if math.isfinite(one[1])]


def _rows(path: str) -> list[dict[str, Any]]:
    """Returns a row for each line of a file; none where it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError):
        return []


def _sampled(study: Study, search: Search) -> Any:
    """Returns Optuna's study with the sampler that the algorithm asks for."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if search.algorithm == "grid":
        axes = {p.name: _grid(p) for p in study.parameters}
        sampler: Any = optuna.samplers.GridSampler(axes, seed=0)
    elif search.algorithm == "random":
        sampler = optuna.samplers.RandomSampler(seed=0)
    else:
        # Those that run are taken for poor, so that no two try the same.
        sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True)
    goal: Any = study.goal
    return optuna.create_study(direction=goal, sampler=sampler)


def _grid(parameter: space.Parameter) -> list[Any]:
    if parameter.ends is None:
        return list(parameter.values)
    low, high = parameter.ends
    return list(range(int(low), int(high) + 1))


def _ask(asked: Any, study: Study) -> tuple[Any, dict[str, Any]] | None:
    """Returns Optuna's trial and its settings, None where a grid has no further one."""
    import optuna

    drawn = asked.ask()
    settings = {one.name: _draw(drawn, one) for one in study.parameters}
    if isinstance(asked.sampler, optuna.samplers.GridSampler):
        tried = [one.params for one in asked.trials if one.number != drawn.number]
        if drawn.params in tried:
            return None
    return drawn, settings


def _draw(drawn: Any, one: space.Parameter) -> Any:
    if one.ends is None:
        return drawn.suggest_categorical(one.name, one.values)
    low, high = one.ends
    suggest = drawn.suggest_int if isinstance(low, int) else drawn.suggest_float
    value = suggest(one.name, low, high, log=one.scale != "linear")
    return low + high - value if one.scale == "reverse_log" else value


def _tell(asked: Any, drawn: Any, ended: Trial) -> None:
    import optuna

    # The sampler of a grid that is done ends a loop of Optuna's, which there is not.
    with contextlib.suppress(RuntimeError):
        if ended.state == "succeeded":
            asked.tell(drawn, ended.value)
        else:
            asked.tell(drawn, state=optuna.trial.TrialState.FAIL)


def _ended(
    trial: Trial, code: int, told_to: bool, study: Study, search: Search, folder: str
) -> Trial:
    """Returns the trial as it ended, with the measurement that counts."""
    found = measurements(os.path.join(folder, trial.id), study.metric)
    state = "succeeded" if code == 0 and found else "failed"
    if code != 0 and told_to:
        state = "stopped"
    if not found:
        return Trial(trial.id, state, trial.settings)
    choose = max if study.goal == "maximize" else min
    if search.measurement == "best":
        step, value = choose(found, key=lambda one: one[1])
    else:
        step, value = found[-1]
    return Trial(trial.id, state, trial.settings, value, step)
