"""Runs an order, a job or a search, on this machine as Vertex AI would.

python -m deploy.local --num_workers=2 --preempt_every_seconds=60 -- --epochs=2
"""

import dataclasses
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence

from deploy import command, local_search, replicas, restarts, rules, side_by_side
from deploy.order import Order, Search, parallel
from deploy.study import checked_study
from trainer import config, flags
from trainer.config import Config
from trainer.flags import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Here:
    """How an order runs on this machine."""

    # fmt: off
    output_dir: str = setting("Here", "runs", "The job writes to the folder JOB_NAME in it, in place of the bucket, so that nothing tried here is gone on with there.")
    preempt_every_seconds: float | None = setting("Here", None, "Take a process away as often, as Spot machines go, one after the other.", low=1)
    preemptions: int = setting("Here", 6, "How often at the most; the service gives a Spot job up after six.", low=0)
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: that of the job's chief."""
    return command.run(
        "Runs an order on this machine as Vertex AI would: a job or, with --search or "
        "--search_space, a search. The trainer's flags come after --.",
        _run,
        (Order, Search, Here),
        argv,
    )


def _run(order: Order, search: Search, here: Here, trainer_args: list[str]) -> int:
    order = dataclasses.replace(order, job_name=order.job_name or "local")
    folder = os.path.join(here.output_dir, str(order.job_name))
    study, gpus = None, replicas.gpus_here(os.environ)

    def check(settings: Config) -> None:
        rules.check(order, settings)
        if search != Search():
            rules.check_for_trials(order, settings)
        if settings.strategy == "mirrored" and order.gpus and not gpus:
            raise ValueError(
                "strategy mirrored needs GPUs, and this machine has none; leave "
                "--strategy out to try the order here"
            )

    if search == Search():
        check(config.from_args(trainer_args))
    else:
        study = checked_study(search, trainer_args, check)
        trainer_args = study.trainer_args
        local_search.check(folder)
    at_once = parallel(search) if study else 1
    for missing in replicas.lacks(order, len(gpus), at_once):
        command.note(f"not on this machine, left out: {missing}")
    command.note(f"writes to {folder}")

    def job(args: Sequence[str], trial: str | None, slot: int) -> restarts.Job:
        share = order.gpus * order.num_workers
        own = gpus[slot * share : (slot + 1) * share] if gpus else None
        return restarts.Job(
            replicas.of_job(
                order, args, folder, str(time.time_ns()), os.environ, trial, own
            ),
            functools.partial(_say, f"trial {trial} " if trial else ""),
            preempt_every_seconds=here.preempt_every_seconds,
            preemptions=here.preemptions,
            restart_all=order.restart_job_on_worker_restart,
            disable_retries=order.disable_retries,
            timeout_seconds=order.timeout_seconds,
        )

    with side_by_side.running(at_once) as jobs:
        if study is None:
            return jobs.exit_code(jobs.start(job(trainer_args, None, 0)))
        return local_search.run(study, search, folder, jobs, job)


def _say(before: str, name: str, line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    text = f"{before}{name} | {line}\n".encode(encoding, "backslashreplace")
    try:
        sys.stdout.write(text.decode(encoding))  # In one piece: several threads write.
        sys.stdout.flush()
    except BrokenPipeError:  # Nobody listens any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
