"""Two runs on one job_dir: one of them writes, the other is told who does."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trainer import config, lease, places

HOLDER = """
import sys
from trainer import lease
with lease.hold(sys.argv[1], lease.this_process(sys.argv[2] or None)):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(directory: pathlib.Path, job_id: str = "") -> Iterator[subprocess.Popen]:
    """Runs another process that holds the lease until it is left."""
    command = [sys.executable, "-c", HOLDER, str(directory), job_id]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def refused(directory: pathlib.Path, job_id: str | None = None) -> str:
    """Returns what another process is told that would hold the lease too."""
    ours = lease.this_process(job_id)
    with pytest.raises(ValueError) as error, lease.hold(str(directory), ours):
        pass
    return str(error.value)


def test_of_two_processes_the_second_is_refused_and_told_who_holds_it(tmp_path):
    with holder(tmp_path / "run") as process:
        line = refused(tmp_path / "run")
    assert line.startswith(
        "job_dir must be written by one run at a time, got "
        f"{tmp_path}/run, which process {process.pid} on {os.uname().nodename} writes to"
    )
    assert "\n" not in line


def test_a_job_is_named_by_its_id(tmp_path):
    with holder(tmp_path / "run", "job-7"):
        assert "which job-7 on" in refused(tmp_path / "run", "job-8")


def test_who_was_killed_leaves_no_lease_behind(tmp_path):
    with holder(tmp_path / "run") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "run" / lease.NAME).exists()
    with lease.hold(str(tmp_path / "run"), lease.this_process(None)):
        held = json.loads((tmp_path / "run" / lease.NAME).read_text())
    assert held["pid"] == os.getpid()


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path):
    directory = tmp_path / "a" / "b"
    with lease.hold(str(directory), lease.this_process(None)):
        assert (directory / lease.NAME).exists()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_are_kept_elsewhere_are_of_one_run_at_a_time(tmp_path):
    def places_of(name: str, checkpoints: str) -> config.Directories:
        return config.Directories(
            job=f"{tmp_path}/{name}",
            checkpoints=f"{tmp_path}/{checkpoints}",
            logs=f"{tmp_path}/{name}/logs",
            model=f"{tmp_path}/{name}/export",
        )

    with places.hold_leases(places_of("a", "scratch"), None, 60):
        with places.hold_leases(places_of("c", "c/checkpoints"), None, 60):
            assert not (tmp_path / "c" / "checkpoints").exists()  # In its job_dir.
        with (
            pytest.raises(
                ValueError, match="^checkpoint_dir must be written by one run"
            ),
            places.hold_leases(places_of("b", "scratch"), None, 60),
        ):
            pass
        with places.hold_leases(places_of("b", "scratch"), None, 60, writes=False):
            pass
    # Those of a run that keeps them in its job_dir are held with that.
    with (
        places.hold_leases(places_of("a", "s/checkpoints"), None, 60),
        pytest.raises(
            ValueError, match="^job_dir must be written by one run at a time"
        ),
        places.hold_leases(places_of("s", "s/checkpoints"), None, 60),
    ):
        pass
    with places.hold_leases(places_of("a", "./a"), None, 60):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("why", ["another's folder", "a volume of its own"])
def test_checkpoints_that_can_be_in_no_job_dir_have_a_lease_of_their_own(
    tmp_path, monkeypatch, why
):
    folder = tmp_path / "apart" / "checkpoints"
    folder.mkdir(parents=True)
    if why == "another's folder":
        may = os.access
        denied = str(folder.parent)
        monkeypatch.setattr(os, "access", lambda at, how: at != denied and may(at, how))
    else:
        monkeypatch.setattr(os.path, "ismount", lambda at: at == str(folder))
    directories = config.Directories(
        job=f"{tmp_path}/a",
        checkpoints=str(folder),
        logs=f"{tmp_path}/a/logs",
        model=f"{tmp_path}/a/export",
    )
    with places.hold_leases(directories, None, 60):
        assert [path.name for path in folder.iterdir()] == [lease.NAME]
        assert [path.name for path in folder.parent.iterdir()] == ["checkpoints"]
    assert list(folder.iterdir()) == []


def test_what_a_run_wrote_stays(tmp_path):
    directory = tmp_path / "a" / "b"
    with lease.hold(str(directory), lease.this_process(None)):
        (directory / "config.json").write_text("{}")
    assert [path.name for path in directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        ({"host": "elsewhere", "job_id": "j"}, False),
        ({"job_id": "j"}, True),
        ({"job_id": "k"}, False),
        ({"job_id": None}, False),
        ({}, False),
    ],
)
def test_the_same_job_on_the_same_host_is_the_same_run(theirs, same):
    ours = lease.this_process("j")
    holder = {} if theirs == {} else {**ours, **theirs}
    assert lease.same_run(ours, holder) == same


def test_without_a_job_a_dead_process_of_this_host_is_the_same_run():
    ours = lease.this_process(None)
    assert not lease.same_run(ours, ours)  # It lives.
    assert lease.same_run(ours, {**ours, "started": 1.0})  # Its number, used again.
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert lease.same_run(ours, {**ours, "pid": process.pid})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_where_files_cannot_be_locked_the_run_goes_on_without(
    number, tmp_path, monkeypatch, caplog
):
    def flock(*_) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", flock)
    if number == errno.EIO:
        assert refused(tmp_path).startswith("job_dir must be a place to write to")
        return
    with lease.hold(str(tmp_path), lease.this_process(None)) as check:
        check()
        assert not (tmp_path / lease.NAME).exists()
