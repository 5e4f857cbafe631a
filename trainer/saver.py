"""Saves in the background: one at a time, and none that fails unseen."""

from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Self

from absl import logging

FENCE_SECONDS = 1.0  # Between looks at whether a save may still be written.


class Saver:
    """One thread that writes while the run goes on.

    What it writes must have been taken before: the run changes meanwhile. Leaving the
    context waits for the last save, and raises what it raised.

    Args:
        fence: Raises OSError where another run may write; asked before each work.
    """

    def __init__(self, fence: Callable[[], None] = lambda: None) -> None:
        self._fence = fence
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._running: futures.Future | None = None

    def start(self, *works: Callable[[], None]) -> None:
        """Does works in turn, once the save before is over; raises what that raised."""
        self.wait()
        self._running = self._thread.submit(self._do, works)

    def check(self) -> None:
        """Raises what the last save raised, if it is over; waits for nothing."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Waits until no save is under way; raises what the last one raised.

        A save that must not be written any more is not waited for: a store that gives
        no answer is asked again for minutes.
        """
        running, self._running = self._running, None
        if running is not None:
            while not futures.wait([running], timeout=FENCE_SECONDS).done:
                self._fence()
            running.result()

    def _do(self, works: tuple[Callable[[], None], ...]) -> None:
        for work in works:
            self._fence()
            work()

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
        self._thread.shutdown(wait=False)
        try:
            self._fence()
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            logging.warning("The last save failed as well: %s", failed)
