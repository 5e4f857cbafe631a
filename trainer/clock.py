"""How fast a run is, and how long it stands still."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np


class Clock:
    """The speed since the last row, and over all without the first call: it compiles."""

    def __init__(self, global_batch_size: int, process_start: float) -> None:
        self._batch = global_batch_size
        self._process_start = process_start
        self._since = np.zeros(3)  # Steps, seconds, of them waiting for data.
        self._over_all = np.zeros(3)
        self.seconds_per_step: float | None = None
        self.seconds_to_first_step: float | None = None
        self.save_wait_seconds = 0.0  # The run stood still for its saves.

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time that the loop spends in it as standing still for a save."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.save_wait_seconds += time.monotonic() - began

    def tick(self, steps: int, seconds: float, waited: float) -> None:
        """Counts a call."""
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.time() - self._process_start
            return
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
