"""A notice to stop, heard at once whatever the run is doing, and kept until it can obey.

SIGTERM (a service takes the machine back), SIGINT (Ctrl-C), or what Google Cloud's
metadata server says of this machine. The run saves and leaves; if it cannot within a
time of grace, or is told a second time, the process leaves without it.
"""

import _thread
import contextlib
import math
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from absl import logging

# The code by which Vertex AI knows that a worker was preempted, and starts it again.
PREEMPTED = 128 + signal.SIGTERM
CODES = {signal.SIGTERM: PREEMPTED, signal.SIGINT: 130}
# Sources: cloud.google.com/compute/docs/metadata/predefined-metadata-keys, and
# /compute/docs/gpus/gpu-host-maintenance: a machine with GPUs is told an hour before.
METADATA = "http://{}/computeMetadata/v1/instance/{}"
METADATA_HOST = "metadata.google.internal"
NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
METADATA_SECONDS = 1.0  # Between questions, and for an answer.
MOST_UNANSWERED = 6  # First questions.


class Interrupted(Exception):
    """The run was told to stop, and has done so.

    Args:
        reason: Who told it.
        code: The exit code that says so.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Notice:
    """What was heard.

    Attributes:
        reason: Who told the run to stop; None while nobody has.
        code: The exit code that says so.
        kept: What is said of the run when the process leaves without it.
    """

    def __init__(self, grace_seconds: float, last_line: Callable[[str], str]) -> None:
        self.reason: str | None = None
        self.code = PREEMPTED
        self.kept: Callable[[], str] = lambda: "before the first step"
        self._grace_seconds, self._last_line = grace_seconds, last_line
        self._starting = True
        self._ended = threading.Event()
        # Whatever else is done to it until then: the one to whom it is told listens here.
        self._terminal = os.dup(2)

    def tell(self, reason: str, code: int = PREEMPTED) -> None:
        """Tells the run to stop, if nobody has."""
        if self.reason is not None:
            return
        self.reason, self.code = reason, code
        threading.Thread(target=self._leave_in_time, daemon=True).start()
        if self._starting:
            _thread.interrupt_main()  # Nothing is lost.
        else:
            logging.info("Stopping: %s. Once more leaves at once", reason)

    def started(self, kept: Callable[[], str]) -> None:
        """Says that the run obeys by itself from now on."""
        self._starting, self.kept = False, kept

    def interrupted(self) -> Interrupted:
        """Returns the error of a run that has stopped for it, or for another's."""
        return Interrupted(self.reason or "another worker was told to", self.code)

    def end(self) -> None:
        """Says that the run is over."""
        self._ended.set()
        os.close(self._terminal)

    def _leave_in_time(self) -> None:
        if not self._ended.wait(self._grace_seconds):
            self.leave(f"{self.reason}, not saved in {self._grace_seconds:g} seconds")

    def leave(self, reason: str) -> NoReturn:
        """Leaves the process at once."""
        line = self._last_line(f"interrupted ({reason}); {self.kept()}")
        os.write(self._terminal, f"{line}\n".encode())
        os._exit(self.code)


@contextlib.contextmanager
def listening(
    grace_seconds: float, environ: Mapping[str, str], last_line: Callable[[str], str]
) -> Iterator[Notice]:
    """Gives the notice that a thread keeps listening for.

    The signals are blocked, and taken by that thread: one that comes while TensorFlow
    computes for seconds is heard, and no handler that a library installs gets it.
    Threads that are started within inherit that; so this comes before them.

    Args:
        grace_seconds: Time that the run has to save and leave, from the first notice.
        environ: Tells where the metadata server is: GCE_METADATA_HOST, as for Google's
            own libraries, and NO_GCE_CHECK, as for TensorFlow.
        last_line: Makes the line that says why the process leaves at once.
    """
    notice, ended = Notice(grace_seconds, last_line), threading.Event()
    # A shell's background job is to ignore Ctrl-C; a blocked signal is not ignored.
    codes = dict(CODES)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        del codes[signal.SIGINT]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, codes)

    def listen() -> None:
        signals: list[signal.Signals] = []
        while True:
            number = signal.Signals(signal.sigwait(codes))
            if ended.is_set():
                return
            signals.append(number)
            notice.tell(signals[0].name, codes[signals[0]])
            if len(signals) > 1:
                notice.leave(f"{signals[0].name}, then {signals[1].name}")

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    host = environ.get("GCE_METADATA_HOST")
    if host or environ.get("NO_GCE_CHECK", "").lower() != "true":
        threading.Thread(
            target=_ask_metadata,
            args=(host or METADATA_HOST, notice, ended),
            name="metadata",
            daemon=True,
        ).start()
    try:
        yield notice
    finally:
        ended.set()
        if listener.ident is not None:
            signal.pthread_kill(listener.ident, next(iter(codes)))  # Wakes it.
        listener.join()
        notice.end()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask_metadata(host: str, notice: Notice, ended: threading.Event) -> None:
    """Asks again and again whether this machine will be taken away.

    Off Google Cloud, where nobody answers the first questions, it asks no more. A run
    that was started again on a machine whose end is announced goes on until that comes:
    it would leave at each start, in an hour before maintenance or in the seconds before
    preemption, and the service counts its starts.
    """
    announced = dict.fromkeys(NOTICES, True)  # Since before the first question.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    left: float = MOST_UNANSWERED
    while left > 0 and not ended.wait(METADATA_SECONDS):
        for key, stop in NOTICES.items():
            asked = urllib.request.Request(
                METADATA.format(host, key), headers={"Metadata-Flavor": "Google"}
            )
            try:
                with direct.open(asked, timeout=METADATA_SECONDS) as answer:
                    if answer.headers["Metadata-Flavor"] != "Google":
                        return  # Some other network's page.
                    said = answer.read(100).decode().strip()
            except (urllib.error.URLError, OSError):
                left -= 1
                continue
            left = math.inf  # It is there; an outage later means nothing.
            announced[key] &= said == stop
            if said == stop and not announced[key]:
                notice.tell(f"{key} is {said}")
