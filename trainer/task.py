"""The entry point: flags and environment -> settings -> a run.

Exit codes: 0 done; 2 refused before the first step; 1 stopped later, the last
checkpoint kept; 143 or 130 told to stop, by SIGTERM or Ctrl-C, after saving; 143 also
where another worker is gone, for the same command may start again.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NoReturn

from trainer import config, flags, interruption, terminal
from trainer.command import FAILED, INTERRUPTED, REFUSED, set_up_tensorflow


def command() -> NoReturn:
    """Runs `main` as a process, which ends at once if it did not end well.

    On the way out, TensorFlow would try for minutes to write what it could not, over
    what another run may have written by then.
    """
    code = main()
    if code == 0:
        sys.exit()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one training job; returns the exit code."""
    process_start = _process_start()
    args = list(sys.argv[1:] if argv is None else argv)
    if flags.asks_for_help(args):
        text = flags.help_text(*config.KINDS)
        print(f"Trains a U-Net for semantic segmentation.\n\n{text}")
        return 0
    with contextlib.ExitStack() as held:
        return _run(args, process_start, held)


def _run(args: Sequence[str], process_start: float, held: contextlib.ExitStack) -> int:
    """Trains; what must be given back in the end is left to `held`."""
    notice: interruption.Notice | None = None
    try:
        settings = _settings(args)
        set_up_tensorflow()
        notice = held.enter_context(
            interruption.listening(
                settings.grace_seconds, os.environ, terminal.last_line
            )
        )
        directories = config.directories(settings, os.environ)
        job_id = os.environ.get("CLOUD_ML_JOB_ID")
        with terminal.quiet_start():
            from trainer import distribution, job, places, telling, train
            from trainer.cluster import read_cluster

            cluster = read_cluster(os.environ)
            writes = cluster is None or cluster.index == 0
            places.check(settings, directories, writes)
            leases = places.hold_leases(
                directories, job_id, settings.lease_seconds, writes
            )
            fence = held.enter_context(leases)
            size = cluster.size if cluster else 1
            with distribution.losses_told(size):
                run = job.prepare(
                    settings,
                    directories,
                    cloud_job_id=job_id,
                    in_trial="CLOUD_ML_TRIAL_ID" in os.environ,
                    fence=fence,
                    cluster=cluster,
                )
    except ModuleNotFoundError as error:
        return terminal.stopped(REFUSED, terminal.missing(error))
    except KeyboardInterrupt:
        code = notice.code if notice and notice.reason else INTERRUPTED
        return terminal.stopped(code, "interrupted before the first step")
    except Exception as error:
        if not terminal.expected(error):
            raise
        return terminal.stopped(_code(error, REFUSED), terminal.one_line(error))
    notice.started(lambda: telling.what_is_kept(run))
    try:
        with distribution.losses_told(size):
            result = train.train_and_evaluate(run, process_start, notice)
    except interruption.Interrupted as error:
        reason = f"interrupted after step {run.state['step']} ({error})"
        return terminal.stopped(error.code, f"{reason}; {telling.what_is_kept(run)}")
    except Exception as error:
        if not terminal.expected(error):
            raise
        again = not isinstance(error, FloatingPointError)  # It would only fail again.
        return terminal.stopped(
            _code(error, FAILED),
            f"{terminal.one_line(error)}; {telling.what_is_kept(run, again)}",
        )
    if writes:
        answer = telling.answer(run, result)
        print(
            terminal.structured("INFO", answer) if terminal.is_on_vertex() else answer
        )
    return 0


def _code(error: Exception, otherwise: int) -> int:
    """Returns the exit code that an error calls for.

    Of a worker that lost another: that which Vertex AI starts again. A code of a common
    error, such as 1, may end the whole job.
    """
    lost = type(error).__name__ == "WorkerLost"
    return interruption.PREEMPTED if lost else otherwise


def _settings(args: Sequence[str]) -> config.Config:
    """Returns the settings of the command line."""
    settings = config.from_args(args)
    if not settings.fast_dev_run:
        return settings
    return dataclasses.replace(
        settings,
        # Made when the run starts, not if it is refused.
        job_dir=os.path.join(tempfile.gettempdir(), f"segtrainer-{time.time_ns()}"),
        checkpoint_dir=None,
        log_dir=None,
        total_steps=4,
        eval_every_steps=2,
        log_every_steps=1,
        batch_size=min(settings.batch_size, 8),
        global_batch_size=None,
        limit_train_examples=min(settings.limit_train_examples or 32, 32),
        limit_eval_examples=min(settings.limit_eval_examples or 8, 8),
    )


def _process_start() -> float:
    """Returns when the process started, seconds since 1970."""
    import psutil

    return psutil.Process().create_time()


if __name__ == "__main__":
    command()
