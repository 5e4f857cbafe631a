"""Saves in the background: one at a time, and none that fails unseen."""

from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Self

from absl import logging


class Saver:
    """One thread that writes while the run goes on.

    What it writes must have been taken before: the run changes meanwhile. Leaving the
    context waits for the last save, and raises what it raised.
    """

    def __init__(self) -> None:
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._running: futures.Future | None = None

    def start(self, *works: Callable[[], None]) -> None:
        """Does works in turn, once the save before is over; raises what that raised."""
        self.wait()
        self._running = self._thread.submit(lambda: [work() for work in works])

    def check(self) -> None:
        """Raises what the last save raised, if it is over; waits for nothing."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Waits until no save is under way; raises what the last one raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the thread after its last save, whose error never hides another."""
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            logging.warning("The last save failed as well: %s", failed)
        finally:
            self._thread.shutdown()
