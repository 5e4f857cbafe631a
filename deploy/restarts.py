"""Runs the processes of a job here, and starts them again by Vertex AI's rules.

A process that fails is started again, up to 5 times; then the job is, up to 3 times. The
chief's success ends the job. What the trainer refuses (exit code 2) it would refuse
again: that ends the job at once.

Source: cloud.google.com/vertex-ai/docs/training/understanding-training-service, on
failures and restarts.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from deploy.replicas import Replica

MAX_RESTARTS, MAX_RETRIES = 5, 3
REFUSED, FAILED, TIMED_OUT, STOPPED = 2, 1, 124, 143
# Between SIGTERM and SIGKILL, as a Spot machine has before it is taken away.
GRACE_SECONDS = 30.0
READ_SECONDS = 5.0
# Number of a replica, its process, the exit code.
Ended = tuple[int, "subprocess.Popen[bytes]", int]


class Job:
    """The processes of one job.

    Args:
        replicas: The processes, the chief first.
        say: Takes a line of a process (its name and the line), or of ours.
        preempt_every_seconds: Takes a process away as often, one after the other.
        preemptions: How often at the most.
        restart_all: Starts all again when one is.
        disable_retries: Does not start the job again.
        timeout_seconds: Ends the job after as long.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        say: Callable[[str, str], None],
        *,
        preempt_every_seconds: float | None = None,
        preemptions: int = 0,
        restart_all: bool = False,
        disable_retries: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        self._replicas, self._say = replicas, say
        self._preempt_every_seconds = preempt_every_seconds
        self._preemptions_left = preemptions if preempt_every_seconds else 0
        self._restart_all = restart_all
        self._retries_left = 0 if disable_retries else MAX_RETRIES
        self._timeout_seconds = timeout_seconds
        # None: stop. Of the kind that a signal's handler may put to.
        self._ended: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._waiters: list[threading.Thread] = []
        self._restarts = [0] * len(replicas)
        self._taken: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        """Ends the job from another thread."""
        self._ended.put(None)

    def run(self) -> int:
        """Returns the exit code of the job when it has ended: that of its chief."""
        try:
            self._start_all()
            return self._until_the_end()
        finally:
            self._end_all()

    def _until_the_end(self) -> int:
        begun = time.monotonic()
        ends = begun + (self._timeout_seconds or float("inf"))
        every = self._preempt_every_seconds or float("inf")
        preempts, turn = begun + every, 0
        while True:
            now = time.monotonic()
            if now >= ends:
                self._say("job", f"ended after timeout_seconds={self._timeout_seconds}")
                return TIMED_OUT
            if now >= preempts and self._preemptions_left:
                self._preemptions_left -= self._preempt(turn % len(self._replicas))
                preempts, turn = now + every, turn + 1
            until = min(ends, preempts if self._preemptions_left else float("inf"))
            seconds = min(max(0.0, until - now), threading.TIMEOUT_MAX)
            try:
                event = self._ended.get(timeout=seconds)
            except queue.Empty:
                continue
            if event is None:
                return STOPPED
            index, process, code = event
            if process is not self._processes[index]:
                continue  # Ended by us, its place is taken.
            if (done := self._after(index, process, code)) is not None:
                return done

    def _after(
        self, index: int, process: subprocess.Popen[bytes], code: int
    ) -> int | None:
        """Returns the exit code of the job if the end of a process is its end."""
        name = self._replicas[index].name
        if code == 0:
            if index == 0:
                return 0
            return None  # Its work is done before the chief's.
        if code == REFUSED:
            return REFUSED
        taken = process in self._taken  # Which is no failure of its own.
        self._restarts[index] += not taken
        if self._restarts[index] <= MAX_RESTARTS:
            count = f"restart {self._restarts[index]} of {MAX_RESTARTS}"
            what = "its machine is given again" if taken else count
            self._say("job", f"{name} left with {code}; {what}")
            if self._restart_all:
                self._end_all()
                self._start_all()
            else:
                self._start(index)
            return None
        if not self._retries_left:
            self._say(
                "job", f"{name} left with {code}; no restart and no retry is left"
            )
            return code if index == 0 else FAILED
        self._retries_left -= 1
        tried = MAX_RETRIES - self._retries_left
        self._say("job", f"{name} left with {code}; retry {tried} of {MAX_RETRIES}")
        self._end_all()
        self._restarts = [0] * len(self._replicas)
        self._start_all()
        return None

    def _preempt(self, index: int) -> bool:
        """Takes a process away as a Spot machine goes: SIGTERM, in 30 s SIGKILL.

        Returns whether it was still there.
        """
        process = self._processes[index]
        if process.poll() is not None:
            return False
        self._say("job", f"{self._replicas[index].name} is preempted")
        self._taken.add(process)
        process.terminate()
        timer = threading.Timer(GRACE_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        return True

    def _start_all(self) -> None:
        self._processes = []
        for index in range(len(self._replicas)):
            self._start(index)

    def _start(self, index: int) -> None:
        replica = self._replicas[index]
        process = subprocess.Popen(
            replica.command,
            env=replica.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C at the terminal is ours: we tell them.
            start_new_session=True,
        )
        if index < len(self._processes):
            self._processes[index] = process
        else:
            self._processes.append(process)
        reader = threading.Thread(target=self._read, args=(index, process), daemon=True)
        reader.start()
        waiter = threading.Thread(
            target=self._wait, args=(index, process, reader), daemon=True
        )
        waiter.start()
        self._waiters.append(waiter)

    def _read(self, index: int, process: subprocess.Popen[bytes]) -> None:
        """Says what a process prints; reads on when it cannot be said."""
        assert process.stdout is not None
        name = self._replicas[index].name
        with process.stdout as lines:
            for line in lines:
                with contextlib.suppress(OSError, ValueError):
                    self._say(name, message(line.decode(errors="replace").rstrip("\n")))

    def _wait(
        self, index: int, process: subprocess.Popen[bytes], reader: threading.Thread
    ) -> None:
        """Puts down how a process ended, and ends what it has started itself."""
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        reader.join(READ_SECONDS)  # What it printed last is said first.
        # As a shell tells a signal.
        self._ended.put((index, process, code if code >= 0 else 128 - code))

    def _end_all(self) -> None:
        """Ends the processes that still run; they may save first."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for waiter in self._waiters:
            waiter.join(2 * READ_SECONDS)
        self._waiters.clear()


def message(line: str) -> str:
    """Returns the words of a log line, which in a job is JSON with its severity."""
    try:
        entry = json.loads(line)
        severity, words = entry["severity"], entry["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return line
    return words if severity == "INFO" else f"{severity}: {words}"
