"""The lease on a job_dir on gs://: renewed while the run lives, or it expires.

Each write of the object demands the generation that was read, so that of two only one
succeeds. It is anybody's when it was not renewed for some time, by the server's clock.

It fences by looking: a run that lost it stops before its next write, but does not undo
one that is under way, and the storage refuses nothing to one who does not ask.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import google.auth.exceptions
from absl import logging
from google.api_core import exceptions
from google.cloud.storage.retry import DEFAULT_RETRY

from trainer import bucket, lease

RENEWALS = 4  # In the time after which it expires.
# Each request: the time for an answer, and for trying again.
IN_TIME: dict[str, Any] = dict(timeout=10.0, retry=DEFAULT_RETRY.with_timeout(20.0))
POLL_SECONDS = 1.0


@contextlib.contextmanager
def hold(
    directory: str, owner: dict[str, Any], seconds: float, setting: str = "job_dir"
) -> Iterator[Callable[[], None]]:
    """Holds the lease on a directory; gives what raises OSError when it is lost.

    Args:
        directory: A gs:// path.
        owner: Who we are, of `lease.this_process`.
        seconds: Time without renewal after which the lease is anybody's.
        setting: What names the directory, for a message.

    Raises:
        ValueError: If another run holds it; after waiting for `seconds`.
        OSError: If it cannot be read or written.
    """
    held, ended = _Lease(directory, owner, seconds, setting), threading.Event()
    held.take()
    renewing = threading.Thread(
        target=held.renew_until, args=(ended,), name="lease", daemon=True
    )
    renewing.start()
    try:
        yield held.check
    finally:
        ended.set()
        renewing.join()
        held.give_back()


class _Lease:
    """The lease as an object; `generation` is that of our last write of it."""

    def __init__(
        self, directory: str, owner: dict[str, Any], seconds: float, setting: str
    ) -> None:
        self._setting = setting
        self._directory, self._owner, self._seconds = directory, owner, seconds
        name, _, path = directory.removeprefix("gs://").partition("/")
        self._bucket = bucket.client().bucket(name)
        self._name = f"{path.rstrip('/')}/{lease.NAME}".lstrip("/")
        self._generation, self._renewed = 0, 0.0
        self._taken_by: dict[str, Any] | None = None
        self._failed: OSError | None = None

    def check(self) -> None:
        """Raises OSError if another run may write by now, or soon."""
        if self._taken_by is not None:
            raise OSError(
                str(lease.refusal(self._setting, self._directory, self._taken_by))
            )
        age = _now() - self._renewed
        if age > self._seconds * (1 - 1 / RENEWALS):
            raise OSError(
                f"the lease on {self._directory} could not be renewed for {age:.0f} "
                f"seconds: {self._failed or 'no answer'}"
            )

    def take(self) -> None:
        """Takes the lease; waits until it expires where another holds it."""
        refuse_at, told = _now() + self._seconds + POLL_SECONDS, False
        while not self._write(0):
            generation, holder = self._read()
            if not generation:
                continue  # It is free by now.
            ours = self._is_ours(holder) or lease.same_run(self._owner, holder)
            if ours or self._age() >= self._seconds:
                if self._write(generation):
                    return
            elif _now() >= refuse_at:
                raise lease.refusal(self._setting, self._directory, holder)
            elif not told:
                told = True
                logging.info(
                    "Waiting up to %.0f seconds: %s",
                    *(
                        self._seconds,
                        lease.refusal(self._setting, self._directory, holder),
                    ),
                )
            time.sleep(POLL_SECONDS)

    def renew_until(self, ended: threading.Event) -> None:
        """Renews until the event is set, or another has taken it."""
        while not ended.wait(self._seconds / RENEWALS):
            try:
                while not self._write(self._generation):
                    self._generation, holder = self._read()
                    if not self._is_ours(holder):
                        self._taken_by = holder
                        return
            except OSError as error:
                self._failed = error

    def give_back(self) -> None:
        """Removes the object if it is still ours; if that fails, it expires."""
        with contextlib.suppress(OSError), _as_os_errors():
            generation, holder = self._read()
            if self._is_ours(holder):
                self._bucket.blob(self._name).delete(
                    if_generation_match=generation, **IN_TIME
                )

    def _is_ours(self, holder: dict[str, Any]) -> bool:
        """Returns whether a write of ours succeeded although its answer was lost.

        When it did is not known, so that it renews nothing.
        """
        return holder.get("id") == self._owner["id"]

    def _write(self, generation: int) -> bool:
        """Writes it over a generation, 0 for none; returns whether it was that one."""
        blob, asked = self._bucket.blob(self._name), _now()
        with _as_os_errors():
            try:
                blob.upload_from_string(
                    json.dumps(self._owner),
                    content_type="application/json",
                    if_generation_match=generation,
                    **IN_TIME,
                )
            except exceptions.PreconditionFailed:
                return False
        self._generation, self._renewed = blob.generation, asked
        return True

    def _read(self) -> tuple[int, dict[str, Any]]:
        """Returns its generation and who holds it; 0 and nobody where there is none."""
        with _as_os_errors():
            while blob := self._bucket.get_blob(self._name, **IN_TIME):
                # It may change while we look: then look again.
                with contextlib.suppress(
                    exceptions.NotFound, exceptions.PreconditionFailed
                ):
                    content = blob.download_as_bytes(
                        if_generation_match=blob.generation, **IN_TIME
                    )
                    return blob.generation, lease.parsed(content)
        return 0, {}

    def _age(self) -> float:
        """Returns the seconds since it was renewed; 0 where there is none.

        By the server's clock, which dates what we write beside it.
        """
        with _as_os_errors():
            probe = self._bucket.blob(f"{self._name}.{self._owner['id']}")
            probe.upload_from_string("", **IN_TIME)
            with contextlib.suppress(exceptions.NotFound):  # Whose answer was lost.
                probe.delete(**IN_TIME)
            blob = self._bucket.get_blob(self._name, **IN_TIME)
        return (probe.updated - blob.updated).total_seconds() if blob else 0.0


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Makes an OSError of what the client raises."""
    try:
        yield
    except (exceptions.GoogleAPIError, google.auth.exceptions.GoogleAuthError) as error:
        raise OSError(str(error).splitlines()[0]) from None


def _now() -> float:
    """Returns seconds of a clock that runs on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
