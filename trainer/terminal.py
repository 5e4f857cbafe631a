"""What a command says: refusals in one line, log lines, nothing of TensorFlow's own."""

import contextlib
import json
import logging as python_logging
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

from absl import logging

GRAPH_LINES = ("Graph execution error", "Detected at node", "File ", "<stack", "[[")


def expected(error: Exception) -> bool:
    """Returns whether it is a mishap to be told in one line, rather than a bug."""
    kinds = (ValueError, OSError, FloatingPointError, MemoryError)
    # TensorFlow's own errors, known without importing it.
    return isinstance(error, kinds) or hasattr(error, "error_code")


def one_line(error: Exception) -> str:
    """Returns what a mishap was, without where in the code."""
    text = getattr(error, "message", None) or str(error)
    text = re.sub(r"{{function_node .*?}} ?", "", text)
    text = re.sub(r"^(\w+Error: )+", "", text)  # Of Python, through TensorFlow.
    # A store answers with JSON; what it says is in the first "message".
    text = re.sub(
        r""" with body '{.*?"message": ?"(.*?)".*'""", r": \1", text, flags=re.DOTALL
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    # TensorFlow tells first where in its graph it was, then what happened, then when.
    what = next((x for x in lines if not x.startswith(GRAPH_LINES)), lines[0])
    when = next((f" {x}" for x in lines if x.startswith("when ")), "")
    return f"{what}{when}"


def missing(error: ModuleNotFoundError) -> str:
    """Returns what to install."""
    if (error.name or "").split(".")[0] != "tensorflow":
        return (
            f"{error.name} is not installed; install segtrainer with its dependencies"
        )
    return (
        "TensorFlow is not installed; install one: pip install 'segtrainer[cpu]', "
        "'segtrainer[gpu]' or 'segtrainer[tpu]'"
    )


def stopped(code: int, reason: str) -> int:
    """Returns the exit code, having said why."""
    print(last_line(reason), file=None if is_on_vertex() else sys.stderr)
    return code


def last_line(reason: str) -> str:
    """Returns what a process that stops says last, for a person or for Cloud Logging."""
    return structured("ERROR", reason) if is_on_vertex() else f"segtrainer: {reason}"


def is_on_vertex() -> bool:
    """Returns whether this is a container of a custom job, which all have this."""
    return "CLUSTER_SPEC" in os.environ


def structured(severity: str, message: str) -> str:
    """Returns one line of JSON, of which Cloud Logging makes one entry.

    Source: cloud.google.com/logging/docs/structured-logging; what is not JSON becomes
    an entry a line, an error where it is written to stderr.
    """
    return json.dumps({"severity": severity, "message": message})


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps what TensorFlow says of itself while it starts off the terminal.

    It writes past Python to file descriptor 2, whatever TF_CPP_MIN_LOG_LEVEL says.
    Who sets that variable sees all of it.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        _log_to(sys.stderr)
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    _log_to(os.fdopen(os.dup(2), "w", buffering=1))
    try:
        with silent():
            yield
    finally:
        python_logging.getLogger("tensorflow").setLevel(python_logging.WARNING)
        # Where the bar is: it makes room for its own file only.
        _log_to(sys.stderr)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keeps what a library writes past Python to file descriptor 2 off the terminal."""
    terminal = os.dup(2)
    with open(os.devnull, "w") as unseen:
        os.dup2(unseen.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _log_to(terminal: TextIO) -> None:
    """Sends our log lines, bare, to the terminal, above the progress bar."""
    from tqdm import tqdm

    class AboveTheBar(python_logging.Handler):
        def emit(self, record: python_logging.LogRecord) -> None:
            if is_on_vertex():
                line = structured(record.levelname, self.format(record))
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
