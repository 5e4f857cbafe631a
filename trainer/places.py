"""The places of a run: that it can read and write there, the leases on them."""

import contextlib
import os
from collections.abc import Callable, Iterator

from trainer import (
    checkpoint_folder,
    config,
    dataset,
    files,
    lease,
    placing,
    run_files,
    trained,
)


def check(
    settings: config.Config, directories: config.Directories, writes: bool = True
) -> None:
    """Raises ValueError if the run cannot read or write where it is to.

    A bucket that is not there or that denies a right, a job_dir of another program, a
    file in the way. Writes nothing that stays.

    Args:
        settings: The settings.
        directories: Where the run writes.
        writes: Whether this process does, as the chief of the workers.
    """
    written = {
        "job_dir": directories.job,
        "checkpoint_dir": directories.checkpoints,
        "log_dir": directories.logs,
    }
    if settings.export:
        written["export"] = directories.model
    for setting, directory in written.items():
        if directory.startswith("/gcs/"):
            raise ValueError(
                f"{setting} must not be a bucket mounted below /gcs/, where nothing is "
                f"renamed whole, got {directory}; give gs://{directory[5:]}"
            )
    read = {
        "init_from": settings.init_from or "",
        "encoder_weights": "" if settings.init_from else settings.encoder_weights,
    }
    # Whether there are checkpoints is asked of a bucket that is known to be there.
    asked = {"data_dir": trained.data_dir(settings) or "", **written, **read}
    for setting, directory in asked.items():
        within = directory.startswith(f"{directories.job.rstrip('/')}/")
        if not directory.startswith("gs://") or within and setting in written:
            continue  # A directory in job_dir is asked for with it.
        if setting in read and checkpoint_folder.pointer(directories.checkpoints):
            continue  # A run that goes on needs neither any more.
        from trainer import bucket  # Its libraries take a second: only where needed.

        may_write = writes and setting in written
        bucket.check(setting, directory, bucket.WRITE if may_write else bucket.READ)
        if setting == "data_dir" and writes and _is_to_download(settings):
            bucket.check(setting, directory, bucket.WRITE)
    if not writes:
        return
    run_files.check_job_dir(directories.job)
    run_files.check_directory("checkpoint_dir", directories.checkpoints)
    run_files.check_directory("log_dir", directories.logs)
    if settings.export:
        run_files.check_directory("export", directories.model)
        placing.check("export", directories.model)


@contextlib.contextmanager
def hold_leases(
    directories: config.Directories,
    job_id: str | None,
    seconds: float,
    writes: bool = True,
) -> Iterator[Callable[[], None]]:
    """Holds the lease on a job_dir, and on checkpoints that are kept elsewhere.

    Gives what raises OSError when one is lost.

    Args:
        directories: Where the run writes.
        job_id: Id of the cloud job that this process belongs to.
        seconds: Time without renewal after which one on gs:// is anybody's.
        writes: Whether this process does; one that does not needs none.

    Raises:
        ValueError: If another run holds one.
    """
    if not writes:
        yield lambda: None
        return
    asked = {"job_dir": directories.job}
    ours, checkpoints = map(files.place, (directories.job, directories.checkpoints))
    if not f"{checkpoints}/".startswith(f"{ours}/"):
        asked["checkpoint_dir"] = _leased(checkpoints)
    with contextlib.ExitStack() as held:
        checks = [
            held.enter_context(_lease(setting, directory, job_id, seconds))
            for setting, directory in asked.items()
        ]

        def check() -> None:
            for each in checks:
                each()

        yield check


def _leased(checkpoints: str) -> str:
    """Returns the directory of the lease on checkpoints that are kept elsewhere.

    Where they may be in the job_dir of a run of ours, that run has its lease there.
    """
    above, name = os.path.split(checkpoints)
    if name != "checkpoints" or os.path.ismount(checkpoints):
        return checkpoints
    try:
        run_files.check_directory("checkpoint_dir", above)
        if above.startswith("gs://"):
            from trainer import bucket

            bucket.check("checkpoint_dir", above, bucket.WRITE)
    except ValueError:  # No run can be where nothing can be written.
        return checkpoints
    return above


def _lease(
    setting: str, directory: str, job_id: str | None, seconds: float
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    owner = lease.this_process(job_id)
    if directory.startswith("gs://"):
        from trainer import lease_gcs

        return lease_gcs.hold(directory, owner, seconds, setting)
    if files.remote(directory):
        return contextlib.nullcontext(lambda: None)
    return lease.hold(directory, owner, setting)


def _is_to_download(settings: config.Config) -> bool:
    """Returns whether data_dir lacks the data set and may get it."""
    data_dir = settings.data_dir if settings.download else None
    return data_dir is not None and not dataset.is_there(settings.dataset, data_dir)
