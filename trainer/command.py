"""What commands have in common: flags in, exit code out, what may go wrong on the way.

Exit codes: 0 done; 2 refused, nothing written; 1 stopped later; 130 interrupted.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from trainer import flags, terminal

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
# What TensorFlow reads when it is imported, or first takes a GPU or a gs:// path; the
# user's own go first.
TENSORFLOW_DEFAULTS = {
    # oneDNN's convolutions, which TensorFlow takes by itself where the processor has
    # AVX512-VNNI. Where it has AVX2 alone, Eigen's need half as long again and more, and
    # round otherwise with other batches: replicas would not do what one device does.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    # Else a command takes all of a GPU's memory, on which a run may be under way.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    # For gs://. Its defaults read 64 MB at once for each open file, and wait up to an
    # hour for an answer. With no cache of blocks, a file that is read from head to tail
    # costs one request for each block, and no byte twice.
    "GCS_READ_CACHE_BLOCK_SIZE_MB": "2",
    "GCS_READ_CACHE_MAX_SIZE_MB": "0",
    "GCS_REQUEST_CONNECTION_TIMEOUT_SECS": "30",
    "GCS_REQUEST_IDLE_TIMEOUT_SECS": "30",
    "GCS_METADATA_REQUEST_TIMEOUT_SECS": "60",
    "GCS_READ_REQUEST_TIMEOUT_SECS": "120",
    "GCS_WRITE_REQUEST_TIMEOUT_SECS": "600",
}

Settings = TypeVar("Settings")


def run(
    about: str,
    kind: type[Settings],
    args: Sequence[str],
    ready: Callable[[Settings], Callable[[], int]],
    rest: str | None = None,
    whole: bool = False,
) -> int:
    """Runs one command; returns its exit code.

    Args:
        about: The first line of its `--help`.
        kind: Dataclass of its settings.
        args: The command line without the program's name.
        ready: Makes all ready, and returns the work; what it raises refuses the command.
            TensorFlow is imported in there, not before.
        rest: Name of the setting that takes the arguments that are no flags.
        whole: Whether the work leaves nothing where it stops, which is then said.
    """
    kept = "; nothing was written" if whole else ""
    if flags.asks_for_help(args):
        print(f"{about}\n\n{flags.help_text(kind)}")
        return 0
    try:
        settings = flags.make(kind, flags.read(args, kind, rest=rest))
        set_up_tensorflow()
        with terminal.quiet_start():
            work = ready(settings)
    except ModuleNotFoundError as error:
        return terminal.stopped(REFUSED, terminal.missing(error))
    except KeyboardInterrupt:
        return terminal.stopped(INTERRUPTED, "interrupted; nothing was written")
    except Exception as error:
        if not terminal.expected(error):
            raise
        return terminal.stopped(REFUSED, terminal.one_line(error))
    try:
        return work()
    except KeyboardInterrupt:
        return terminal.stopped(INTERRUPTED, f"interrupted{kept}")
    except Exception as error:
        if not terminal.expected(error):
            raise
        return terminal.stopped(FAILED, f"{terminal.one_line(error)}{kept}")


def process(main: Callable[[], int]) -> NoReturn:
    """Runs a command as a process, which SIGTERM ends as Ctrl-C does: nothing is left."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def set_up_tensorflow() -> None:
    """Sets TensorFlow's variables where the user did not; before it is imported."""
    for name, value in TENSORFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
