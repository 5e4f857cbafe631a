"""Jobs on this machine side by side, until all are told to stop."""

import concurrent.futures
import contextlib
import signal
from collections.abc import Iterator

from deploy.restarts import FAILED, Job

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Jobs:
    """Jobs that run side by side, until all are told to stop."""

    def __init__(self, pool: concurrent.futures.Executor) -> None:
        self._pool = pool
        self._begun: list[Job] = []
        self.stopped: int | None = None

    def start(self, job: Job) -> "concurrent.futures.Future[int]":
        """Returns what will be the exit code of a job, which runs from now on."""
        self._begun.append(job)
        if self.stopped is not None:
            job.stop()
        return self._pool.submit(job.run)

    def stop(self, code: int) -> None:
        """Ends all jobs; `code` is the exit code that says why."""
        self.stopped = code
        for job in self._begun:
            job.stop()

    def exit_code(self, job: "concurrent.futures.Future[int]") -> int:
        """Returns the exit code of a job, or that of what stopped all."""
        code = job.result()
        return code if self.stopped is None else self.stopped


@contextlib.contextmanager
def running(count: int) -> Iterator[Jobs]:
    """Gives `Jobs`, of which so many run at a time; SIGTERM, SIGHUP, Ctrl-C end them."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        jobs = Jobs(pool)

        def stop(number: int, _: object) -> None:
            jobs.stop(128 + number)

        heard = [one for one in STOPS if signal.getsignal(one) is not signal.SIG_IGN]
        before = {one: signal.signal(one, stop) for one in heard}
        try:
            yield jobs
        except BaseException:
            jobs.stop(FAILED)
            raise
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
