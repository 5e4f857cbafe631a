"""The entry point: flags and environment -> settings -> a run.

Exit codes: 0 done; 2 refused before the first step; 1 stopped later, the last
checkpoint kept; 143 or 130 told to stop, by SIGTERM or Ctrl-C, after saving.
"""

import contextlib
import dataclasses
import json
import logging as python_logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn, TextIO

from absl import logging

from trainer import config, flags, interruption

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
# For gs://, read by TensorFlow when it first opens such a path; the user's own go
# first. Its defaults read 64 MB at once for each open file, and wait up to an
# hour for an answer. With no cache of blocks, a file that is read from head to tail
# costs one request for each block, and no byte twice.
GCS_DEFAULTS = {
    "GCS_READ_CACHE_BLOCK_SIZE_MB": "2",
    "GCS_READ_CACHE_MAX_SIZE_MB": "0",
    "GCS_REQUEST_CONNECTION_TIMEOUT_SECS": "30",
    "GCS_REQUEST_IDLE_TIMEOUT_SECS": "30",
    "GCS_METADATA_REQUEST_TIMEOUT_SECS": "60",
    "GCS_READ_REQUEST_TIMEOUT_SECS": "120",
    "GCS_WRITE_REQUEST_TIMEOUT_SECS": "600",
}
GRAPH_LINES = ("Graph execution error", "Detected at node", "File ", "<stack", "[[")


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
    if any(arg in ("--help", "-help", "-h", "--helpfull") for arg in args):
        print(
            f"Trains a U-Net for semantic segmentation.\n\n{flags.help_text(config.Config)}"
        )
        return 0
    with contextlib.ExitStack() as held:
        return _run(args, process_start, held)


def _run(args: Sequence[str], process_start: float, held: contextlib.ExitStack) -> int:
    """Trains; what must be given back in the end is left to `held`."""
    notice: interruption.Notice | None = None
    try:
        settings = _settings(args)
        for name, value in GCS_DEFAULTS.items():
            os.environ.setdefault(name, value)
        notice = held.enter_context(
            interruption.listening(settings.grace_seconds, os.environ)
        )
        directories = config.directories(settings, os.environ)
        job_id = os.environ.get("CLOUD_ML_JOB_ID")
        with _quiet_start():
            from trainer import distribution, job, telling, train
            from trainer.cluster import read_cluster

            cluster = read_cluster(os.environ)
            writes = cluster is None or cluster.index == 0
            job.check_places(settings, directories, writes)
            lease = job.hold_lease(
                directories.job, job_id, settings.lease_seconds, writes
            )
            fence = held.enter_context(lease)
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
        return _stopped(REFUSED, _missing(error))
    except KeyboardInterrupt:
        code = notice.code if notice and notice.reason else INTERRUPTED
        return _stopped(code, "interrupted before the first step")
    except Exception as error:
        if not _expected(error):
            raise
        # The others' end refuses nothing: the same command may start again.
        lost = type(error).__name__ == "WorkerLost"
        return _stopped(FAILED if lost else REFUSED, _one_line(error))
    notice.started(lambda: telling.what_is_kept(run))
    try:
        with distribution.losses_told(size):
            result = train.train_and_evaluate(run, process_start, notice)
    except interruption.Interrupted as error:
        reason = f"interrupted after step {run.state['step']} ({error})"
        return _stopped(error.code, f"{reason}; {telling.what_is_kept(run)}")
    except Exception as error:
        if not _expected(error):
            raise
        again = not isinstance(error, FloatingPointError)  # It would only fail again.
        return _stopped(
            FAILED, f"{_one_line(error)}; {telling.what_is_kept(run, again)}"
        )
    if writes:
        answer = telling.answer(run, result)
        print(_structured("INFO", answer) if _is_on_vertex() else answer)
    return 0


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


def _expected(error: Exception) -> bool:
    """Returns whether it is a mishap to be told in one line, rather than a bug."""
    kinds = (ValueError, OSError, FloatingPointError, MemoryError)
    # TensorFlow's own errors, known without importing it.
    return isinstance(error, kinds) or hasattr(error, "error_code")


def _one_line(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    text = re.sub(r"{{function_node .*?}} ?", "", text)
    text = re.sub(r"^(\w+Error: )+", "", text)  # Of Python, through TensorFlow.
    # A store answers with JSON; what it says is in the first "message".
    text = re.sub(
        r""" with body '{.*?"message": ?"(.*?)".*'""", r": \1", text, flags=re.DOTALL
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # TensorFlow tells first where in its graph it was, then what happened, then when.
    what = next((x for x in lines if not x.startswith(GRAPH_LINES)), lines[0])
    when = next((f" {x}" for x in lines if x.startswith("when ")), "")
    return f"{what}{when}"


def _missing(error: ModuleNotFoundError) -> str:
    if (error.name or "").split(".")[0] != "tensorflow":
        return (
            f"{error.name} is not installed; install segtrainer with its dependencies"
        )
    return (
        "TensorFlow is not installed; install one: pip install 'segtrainer[cpu]', "
        "'segtrainer[gpu]' or 'segtrainer[tpu]'"
    )


def _stopped(code: int, reason: str) -> int:
    if _is_on_vertex():
        print(_structured("ERROR", reason))
    else:
        print(f"segtrainer: {reason}", file=sys.stderr)
    return code


def _is_on_vertex() -> bool:
    """Returns whether this is a container of a custom job, which all have this."""
    return "CLUSTER_SPEC" in os.environ


def _structured(severity: str, message: str) -> str:
    """Returns one line of JSON, of which Cloud Logging makes one entry.

    Source: cloud.google.com/logging/docs/structured-logging; what is not JSON becomes
    an entry a line, an error where it is written to stderr.
    """
    return json.dumps({"severity": severity, "message": message})


def _process_start() -> float:
    """Returns when the process started, seconds since 1970."""
    import psutil

    return psutil.Process().create_time()


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Keeps what TensorFlow says of itself while it starts off the terminal.

    It writes past Python to file descriptor 2, whatever TF_CPP_MIN_LOG_LEVEL says.
    Who sets that variable sees all of it.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        _log_to(sys.stderr)
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    terminal = os.dup(2)
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    _log_to(ours)
    with tempfile.TemporaryFile() as unseen:
        os.dup2(unseen.fileno(), 2)
        try:
            yield
        finally:
            python_logging.getLogger("tensorflow").setLevel(python_logging.WARNING)
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            # Where the bar is: it makes room for its own file only.
            _log_to(sys.stderr)


def _log_to(terminal: TextIO) -> None:
    """Sends our log lines, bare, to the terminal, above the progress bar."""
    from tqdm import tqdm

    class AboveTheBar(python_logging.Handler):
        def emit(self, record: python_logging.LogRecord) -> None:
            if _is_on_vertex():
                line = _structured(record.levelname, self.format(record))
                print(line, flush=True)
            else:
                tqdm.write(self.format(record), file=terminal)

    handler = AboveTheBar()
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    ours = os.path.dirname(os.path.abspath(__file__))
    handler.addFilter(lambda record: os.path.dirname(record.pathname) == ours)
    logging.use_absl_handler()
    absl_logger = logging.get_absl_logger()
    absl_logger.handlers[:] = [handler]
    absl_logger.propagate = False
    logging.set_verbosity(logging.INFO)


if __name__ == "__main__":
    command()
