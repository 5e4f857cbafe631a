"""Of two runs on one job_dir in a bucket one writes, and knows when it must not."""

import json
import threading
import time

import pytest
from google.cloud.storage import Blob

from trainer import lease, lease_gcs

OURS, THEIRS = "worker-0", "worker-1"


def owner(host: str = OURS, job_id: str | None = "job-1", name: str = "a") -> dict:
    return {"job_id": job_id, "host": host, "pid": 1, "started": 0.0, "id": name}


OTHER = json.dumps(owner(THEIRS, "job-2", "b")).encode()


@pytest.fixture
def directory(gcs_bucket, gcs_here):
    return f"gs://{gcs_bucket}/runs/a"


@pytest.fixture
def held(gcs, directory):
    """Returns who holds the lease."""
    return lambda: json.loads(gcs.get(f"{directory}/{lease.NAME}"))


def refused(directory: str, ours: dict, seconds: float) -> str:
    """Returns what one is told who would hold it too."""
    with (
        pytest.raises(ValueError) as error,
        lease_gcs.hold(directory, ours, seconds),
    ):
        pass
    return str(error.value)


def until_raised(check, seconds: float) -> str:
    """Returns what it raises before so many seconds are over."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            check()
        except OSError as error:
            return str(error)
        time.sleep(0.05)
    raise AssertionError("it raised nothing")


def test_it_is_there_while_it_is_held_and_nothing_is_left_of_it(
    gcs, gcs_bucket, directory, held
):
    with lease_gcs.hold(directory, owner(), 60) as check:
        assert held() == owner()
        check()
        assert gcs.names(gcs_bucket) == ["runs/a/lease.json"]
    assert gcs.names(gcs_bucket) == []


@pytest.mark.parametrize("name", ["a#1", "a?b=c", "a b/ü"])
def test_it_is_in_the_very_directory(gcs, gcs_bucket, gcs_here, name):
    with lease_gcs.hold(f"gs://{gcs_bucket}/{name}/", owner(), 60):
        assert gcs.names(gcs_bucket) == [f"{name}/lease.json"]


def test_it_is_renewed(gcs, gcs_bucket, directory):
    with lease_gcs.hold(directory, owner(), 1) as check:
        time.sleep(3)
        check()
        writes = [r for r in gcs.requests(gcs_bucket) if r["kind"] == "upload"]
        assert len(writes) >= 6
        # Another one that waited for as long as it takes is told who holds it.
        line = refused(directory, owner(THEIRS, "job-2", "b"), 1)
        assert "which job-1 on worker-0 writes to" in line
        check()


def test_a_restart_of_the_same_job_on_the_same_host_gets_in_at_once(
    gcs, directory, held
):
    gcs.put(f"{directory}/{lease.NAME}", json.dumps(owner(name="before")).encode())
    began = time.monotonic()
    with lease_gcs.hold(directory, owner(), 60):
        assert held()["id"] == "a"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("left", [OTHER, b"", b"{"])
def test_one_that_is_not_renewed_is_anybodys_after_its_time(gcs, directory, held, left):
    gcs.put(f"{directory}/{lease.NAME}", left)
    began = time.monotonic()
    with lease_gcs.hold(directory, owner(), 2):
        assert held() == owner()
    assert time.monotonic() - began >= 2


def test_its_age_is_by_the_clock_of_the_server(gcs, directory, held, monkeypatch):
    """A clock of ours that is years ahead makes nobody's lease expire."""
    monkeypatch.setattr(time, "time", lambda: 4e9)
    gcs.put(f"{directory}/{lease.NAME}", OTHER)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.3):
            gcs.put(f"{directory}/{lease.NAME}", json.dumps(held()).encode())

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert "which job-2 on worker-1" in refused(directory, owner(), 2)
    finally:
        ended.set()
        renewing.join()


def test_who_holds_it_is_told_though_it_is_renewed_while_we_look(
    gcs, directory, monkeypatch
):
    """The holder renews it between our look at the object and our reading, each time."""
    name, read, renewed = f"{directory}/{lease.NAME}", Blob.download_as_bytes, [-9.0]

    def renewed_then_read(blob: Blob, **kwargs) -> bytes:
        if time.monotonic() - renewed[-1] > lease_gcs.POLL_SECONDS / 2:
            gcs.put(name, OTHER)
            renewed.append(time.monotonic())
        return read(blob, **kwargs)

    monkeypatch.setattr(Blob, "download_as_bytes", renewed_then_read)
    gcs.put(name, OTHER)
    assert "which job-2 on worker-1" in refused(directory, owner(), 1.5)
    assert len(renewed) > 2


def test_of_many_at_once_one_gets_it(gcs, directory):
    got, refused = [], []
    begin = threading.Barrier(4)

    def run(name: str) -> None:
        begin.wait()
        try:
            with lease_gcs.hold(directory, owner(name, name, name), 2) as check:
                got.append(name)
                time.sleep(5)
                check()
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 3
    assert all(f"which {got[0]} on {got[0]} writes to" in line for line in refused)


def test_who_cannot_renew_stops_before_another_may_begin(gcs, directory):
    with lease_gcs.hold(directory, owner(), 2) as check:
        check()
        gcs.set_faults(drop_from=1)
        began = time.monotonic()
        line = until_raised(check, 2)
        assert time.monotonic() - began < 2
        assert line.startswith(f"the lease on {directory} could not be renewed for ")
        gcs.set_faults()


def test_who_was_taken_over_knows_and_leaves_the_other_alone(gcs, directory, held):
    with lease_gcs.hold(directory, owner(), 2) as check:
        gcs.put(f"{directory}/{lease.NAME}", OTHER)
        assert "which job-2 on worker-1 writes to" in until_raised(check, 2)
    assert json.dumps(held()).encode() == OTHER


def test_answers_that_are_lost_or_wrong_change_nothing(gcs, gcs_bucket, directory):
    gcs.set_faults(lost_share=0.3, error_share=0.2)
    with lease_gcs.hold(directory, owner(), 20) as check:
        for _ in range(10):
            time.sleep(0.5)
            check()
        gcs.set_faults()
    assert gcs.names(gcs_bucket) == []
