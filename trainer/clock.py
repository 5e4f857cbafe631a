"""How fast a run is, and what became of its time, over all its restarts."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

# What a second of a run can go to. The first call of the step compiles; what is lost to
# a restart is all from the save that it goes on from to its start: steps made again, too.
USES = (
    *("starting", "compiling", "stepping", "waiting_for_data", "evaluating", "saving"),
    "exporting",
)


class Clock:
    """The speed since the last row, and over all without the first call: it compiles.

    Args:
        global_batch_size: Examples per step.
        process_start: Seconds since 1970 at which the process started.
        seconds_of: Seconds by use, of the run's earlier processes; added to. JSON.
        time_saved: Seconds since 1970 of the save that the run goes on from, if any.
    """

    def __init__(
        self,
        global_batch_size: int,
        process_start: float,
        seconds_of: dict[str, float],
        time_saved: float | None = None,
    ) -> None:
        self._batch = global_batch_size
        self._process_start = process_start
        self._since = np.zeros(3)  # Steps, seconds, of them waiting for data.
        self._over_all = np.zeros(3)
        self._seconds_of = seconds_of
        self.seconds_per_step: float | None = None
        self.seconds_to_first_step: float | None = None
        self.save_wait_seconds = 0.0  # The run stood still for its saves.
        for use in (*USES, "lost_to_restarts"):
            seconds_of.setdefault(use, 0.0)
        if time_saved is not None:
            # A clock that was set back loses nothing.
            lost = max(process_start - time_saved, 0.0)
            seconds_of["lost_to_restarts"] += lost
        seconds_of["starting"] += time.time() - process_start

    @contextlib.contextmanager
    def spent(self, use: str) -> Iterator[None]:
        """Counts the time in it as gone to a use, one of `USES`."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._seconds_of[use] += seconds
            if use == "saving":
                self.save_wait_seconds += seconds

    def tick(self, steps: int, seconds: float, waited: float) -> None:
        """Counts a call."""
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.time() - self._process_start
            self._seconds_of["compiling"] += seconds
            return
        self._seconds_of["stepping"] += seconds - waited
        self._seconds_of["waiting_for_data"] += waited
        self._since += (steps, seconds, waited)
        self._over_all += (steps, seconds, waited)
        self.seconds_per_step = seconds / steps

    def images_per_second(self, *, over_all: bool = False) -> float | None:
        """Returns examples per second of training; nothing before the second call."""
        steps, seconds, _ = self._over_all if over_all else self._since
        return float(steps * self._batch / seconds) if seconds else None

    def restart(self) -> dict[str, float]:
        """Returns the columns of a row of metrics.jsonl, and starts the next row."""
        _, seconds, waited = self._since
        speed = self.images_per_second()
        self._since = np.zeros(3)
        if speed is None:
            return {}
        return {"images_per_second": speed, "waiting_for_data": waited / seconds}

    def speed(self) -> dict[str, float | None]:
        """Returns how fast this process was, and how much memory it took, for result.json."""
        return {
            "train_images_per_second": self.images_per_second(over_all=True),
            "seconds_to_first_step": self.seconds_to_first_step,
            "save_wait_seconds": self.save_wait_seconds,
            "total_seconds": time.time() - self._process_start,
            "peak_memory_bytes": _peak_memory_bytes(),
        }

    def goodput(self) -> dict[str, Any]:
        """Returns the seconds by use, their sum, and the share that went to steps."""
        total = sum(self._seconds_of.values())
        return {
            "seconds_of": dict(self._seconds_of),
            "seconds": total,
            "goodput": self._seconds_of["stepping"] / total if total else 0.0,
        }


def _peak_memory_bytes() -> int:
    """Returns the largest resident memory of the process so far."""
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
