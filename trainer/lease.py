"""One run at a time writes to a job_dir: who holds the lease on it.

    lease.json    who holds it; removed when the run ends

Here the one on a local disk: the file is locked, and the system unlocks it when the
process dies.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

NAME = "lease.json"
# Of some network file systems.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def this_process(job_id: str | None) -> dict[str, Any]:
    """Returns what tells this process, and its restarts, from other runs."""
    return {
        "job_id": job_id,
        "host": os.uname().nodename,
        "processes": _processes(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "id": uuid.uuid4().hex,
    }


def _processes() -> str:
    """Returns what tells apart where process numbers are counted.

    Containers of one host may share its name; each counts its own processes.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Not Linux.
        return os.uname().nodename


def _started(pid: int) -> float | None:
    """Returns when a process started, by no clock that people set; None for no process."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return float(stat.rsplit(")", 1)[1].split()[19])  # proc_pid_stat(5): starttime
    except OSError:
        return None


def same_run(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Returns whether the holder was we before a restart: the same job, or a dead one."""
    if theirs.get("host") != ours["host"]:
        return False
    if ours["job_id"] is not None or theirs.get("job_id") is not None:
        return theirs.get("job_id") == ours["job_id"]
    if theirs.get("processes") != ours["processes"]:
        return False
    return _started(theirs.get("pid", 0)) != theirs.get("started")


def refusal(setting: str, directory: str, holder: dict[str, Any]) -> ValueError:
    """Returns the error of one who finds the lease held on what a setting names."""
    who = holder.get("job_id") or f"process {holder.get('pid', 'unknown')}"
    return ValueError(
        f"{setting} must be written by one run at a time, got {directory}, which {who} "
        f"on {holder.get('host', 'another host')} writes to; stop that one or give "
        f"another --{setting}"
    )


@contextlib.contextmanager
def hold(
    directory: str, owner: dict[str, Any], setting: str = "job_dir"
) -> Iterator[Callable[[], None]]:
    """Holds the lease on a local directory; it is never lost, which what it gives says.

    Args:
        directory: Made where it is not there, and removed in the end where nothing was
            written to it.
        owner: Who we are, of `this_process`.
        setting: What names the directory, for a message.

    Raises:
        ValueError: If another process holds it, or it cannot be written there.
    """
    made: list[str] = []
    try:
        try:
            made += _make_directories(directory)
            file = _locked(setting, directory)
            if file is not None:
                os.ftruncate(file, 0)
                os.write(file, json.dumps(owner).encode())
        except OSError as error:
            raise ValueError(
                f"{setting} must be a place to write to, got {directory}: "
                f"{error.strerror}"
            ) from None
        try:
            yield lambda: None
        finally:
            if file is not None:
                with contextlib.suppress(
                    FileNotFoundError
                ):  # Removed with the job_dir.
                    os.remove(os.path.join(directory, NAME))
                os.close(file)
    finally:
        for name in reversed(made):
            with contextlib.suppress(OSError):  # It is in use now.
                os.rmdir(name)


def _locked(setting: str, directory: str) -> int | None:
    """Returns the file of the lease, open and locked; none where there are no locks."""
    path = os.path.join(directory, NAME)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with open(file, encoding="utf-8") as held:
                raise refusal(setting, directory, parsed(held.read())) from None
        except OSError as error:
            os.close(file)
            if error.errno not in NO_LOCKS:
                raise
            os.remove(path)
            logging.warning(
                "%s is on a file system without locks (%s): nothing keeps another run out",
                *(directory, error.strerror),
            )
            return None
        # Who held it before may have removed the file that we locked.
        if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
            return file
        os.close(file)


def _make_directories(directory: str) -> list[str]:
    """Makes a directory and those above it; returns the ones that were not there."""
    made, there = [], os.path.abspath(directory)
    while not os.path.isdir(there):
        made.append(there)
        there = os.path.dirname(there)
    os.makedirs(directory, exist_ok=True)
    return made[::-1]


def parsed(text: str | bytes) -> dict[str, Any]:
    """Returns the holder; nothing where another was just writing it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
