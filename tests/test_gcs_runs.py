"""Runs whose data and job_dir are in a bucket: TensorFlow's own gs:// code, for real."""

import collections
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.runs import assert_same_run
from trainer import lease

FLAGS = [
    *("--deterministic", "--image_size=32", "--num_pictures=1", "--batch_size=4"),
    *("--encoder_weights=none", "--val_fraction=0.25", "--total_steps=12"),
    *("--eval_every_steps=5", "--checkpoint_every_steps=3", "--log_every_steps=1"),
    "--noexport",
]
# TensorFlow waits a second before it tries again, then two, ...
QUICKLY = {
    "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "10000",
    "GCS_RETRY_CONFIG_MAX_DELAY_TIME_US": "100000",
}
SECONDS = 300.0


@pytest.fixture(scope="module")
def bucket(gcs_of_session):
    """Returns a bucket that all tests here share."""
    bucket = "runs-of-tests"
    gcs_of_session.make_bucket(bucket)
    yield bucket
    gcs_of_session.delete_bucket(bucket)


@pytest.fixture
def command(gcs, bucket, pets):
    """Makes commands that train a small network in the bucket, on the same data."""
    if not gcs.names(bucket, "data/"):
        gcs.upload(pets(8, n_test=2, shards=2), f"gs://{bucket}/data")

    def make(name: str, *more: str, module: str = "tests.small") -> list[str]:
        places = f"--data_dir=gs://{bucket}/data", f"--job_dir=gs://{bucket}/{name}"
        return [sys.executable, "-m", module, *places, *FLAGS, *more]

    return make


@pytest.fixture
def started(gcs, tmp_path):
    """Starts a command in a process, and ends it with the test."""
    processes = []

    def start(command: list[str], **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            env={**os.environ, **gcs.environment, **QUICKLY, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def ended(started):
    """Runs a command that must end well; returns what it prints on both streams."""

    def run(command: list[str], **environment: str) -> tuple[str, str]:
        process = started(command, **environment)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        return out, err

    return run


@pytest.fixture
def fetched(gcs, bucket, tmp_path):
    """Returns a job_dir of the bucket, copied to the disk."""

    def fetch(name: str) -> pathlib.Path:
        for path, content in gcs.objects(bucket, f"{name}/").items():
            if path.endswith("/"):
                continue  # How TensorFlow marks a directory.
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return tmp_path / name

    return fetch


@pytest.fixture
def reference(ended, command, gcs, bucket, fetched):
    """Returns the job_dir of a run that nothing happened to."""
    if not gcs.names(bucket, "reference/result.json"):
        ended(command("reference"))
    return fetched("reference")


def until(condition, process: subprocess.Popen) -> None:
    """Waits for something while a process is at work."""
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_ends_as_if_it_had_not_been(
    gcs, bucket, command, started, ended, fetched, reference
):
    gcs.set_faults(latency_seconds=0.2)  # A save takes long enough to be hit.
    process = started(command("killed"))

    def saves_the_second() -> bool:
        return "killed/checkpoints/step-00000005.npz" in gcs.names(bucket, "killed/")

    until(saves_the_second, process)
    process.kill()
    process.wait()
    names = gcs.names(bucket, "killed/checkpoints/")
    assert "killed/checkpoints/step-00000005.npz.sha256" not in names, names
    assert f"killed/{lease.NAME}" in gcs.names(bucket, "killed/")
    gcs.set_faults()
    _, err = ended(command("killed"))
    assert "Going on from step-00000003" in err
    assert_same_run(reference, fetched("killed"))
    assert f"killed/{lease.NAME}" not in gcs.names(bucket, "killed/")


@pytest.mark.slow
def test_a_run_leaves_its_model_in_the_bucket(gcs, bucket, command, ended):
    flags = ("--export", "--total_steps=2")
    out, _ = ended(command("exports", *flags, module="trainer.task"))
    target = f"gs://{bucket}/exports/export/1"
    assert f"model, to serve: {target}" in out
    names = {"saved_model.pb", "model.json", "fingerprint.pb"}
    names |= {f"variables/variables.{n}" for n in ("index", "data-00000-of-00001")}
    found = {f"exports/export/1/{name}" for name in names}
    assert set(gcs.names(bucket, "exports/export/")) == found
    about = json.loads(gcs.get(f"{target}/model.json"))
    assert about["provenance"]["step"] in (1, 2) and about["image_size"] == 32


@pytest.mark.slow
def test_a_run_completes_although_a_tenth_of_the_requests_fail(
    gcs, bucket, command, ended, fetched, reference
):
    gcs.set_faults(error_share=0.05, error_statuses=(503,), cut_share=0.05)
    before = len(gcs.requests(bucket))
    ended(command("faults"))
    faults = collections.Counter(one["fault"] for one in gcs.requests(bucket)[before:])
    assert faults["error"] > 5 and faults["cut"] > 5, faults
    assert_same_run(reference, fetched("faults"))


@pytest.mark.slow
def test_rows_and_events_are_written_when_the_run_saves(
    gcs, bucket, command, ended, fetched
):
    before = len(gcs.requests(bucket))
    ended(command("writes"))
    saves = len({3, 5, 6, 9, 10, 12})  # Steps of 12 that are told or evaluated.
    uploads = collections.Counter(
        one["object"].removeprefix("writes/").split(".")[0]
        for one in gcs.requests(bucket)[before:]
        if one["kind"] == "upload"
    )
    # At the beginning and in the end, too.
    assert saves <= uploads["metrics"] <= saves + 2
    assert saves <= uploads["logs/events"] <= saves + 3
    [rows] = {len((fetched("writes") / "metrics.jsonl").read_text().splitlines())}
    assert rows == 12 + 3


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "times"), [("memory", 1), ("none", 6)])
def test_each_byte_is_read_once_or_once_in_each_epoch(
    cache, times, gcs, bucket, command, ended
):
    before, flags = len(gcs.requests(bucket)), [f"--cache={cache}"]
    if cache == "none":  # Validation is read again whenever it is looked at.
        flags += ["--val_split=test", "--test_split=none"]
    ended(command(f"cache-{cache}", *flags))
    read: collections.Counter = collections.Counter()
    for one in gcs.requests(bucket)[before:]:
        if one["kind"] == "read" and "-train." in one["object"]:
            read[one["object"]] += one["bytes_sent"]
    sizes = {name: len(gcs.get(f"gs://{bucket}/{name}")) for name in read}
    assert len(read) == 2
    assert read == {name: times * size for name, size in sizes.items()}


@pytest.mark.slow
def test_try_gcs_reads_the_public_bucket_without_credentials(
    gcs, pets, started, tmp_path
):
    gcs.make_bucket("tfds-data")
    try:
        gcs.upload(pets(8, n_test=2, shards=2), "gs://tfds-data/datasets")
        gcs.set_faults(
            denied={"storage.objects.create": "", "storage.objects.delete": ""}
        )
        command = [sys.executable, "-m", "trainer.task", "--try_gcs", *FLAGS]
        process = started(
            [*command, f"--job_dir={tmp_path / 'run'}", "--total_steps=2"],
            GOOGLE_AUTH_TOKEN_FOR_TESTING="",
            CLOUDSDK_CONFIG=str(tmp_path),
            HOME=str(tmp_path),
        )
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
    finally:
        gcs.set_faults()
        gcs.delete_bucket("tfds-data")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dataset"]["train_examples"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"denied": {"storage.objects.create": ""}}, "does not have storage.objects."),
        ({"drop_from": 1}, "retry attempts failed"),
    ],
)
def test_a_run_that_can_save_no_more_says_so_and_goes_on_later(
    fault, says, gcs, bucket, command, started, ended, fetched, reference
):
    name = f"broken-{'-'.join(fault)}"
    process = started(command(name), GCS_RETRY_CONFIG_MAX_RETRIES="1")
    pointer = f"{name}/checkpoints/checkpoint.json"
    until(lambda: pointer in gcs.names(bucket, f"{name}/"), process)
    gcs.set_faults(**fault)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and "Traceback" not in err, err
    last = err.splitlines()[-1]
    assert last.startswith("segtrainer: ") and says in last and "{" not in last
    gcs.set_faults()
    ended(command(name))
    assert_same_run(reference, fetched(name))


@pytest.mark.slow
def test_a_run_whose_lease_another_took_stops_and_writes_no_more(
    gcs, bucket, command, started
):
    other = json.dumps({"id": "b", "job_id": "job-2", "host": "worker-1"}).encode()
    often = ["--checkpoint_every_steps=1000", "--eval_every_steps=1000"]
    process = started(
        command("lost", "--lease_seconds=4", "--total_steps=5000", *often)
    )
    until(lambda: "lost/pictures/step-00000000.png" in gcs.names(bucket), process)
    gcs.put(f"gs://{bucket}/lost/{lease.NAME}", other)
    before = gcs.objects(bucket, "lost/")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "which job-2 on worker-1 writes to" in err.splitlines()[-1]
    kept = {
        name: content
        for name, content in gcs.objects(bucket, "lost/").items()
        if "tfevents" not in name  # Its own file, that no other run writes.
    }
    assert kept == {name: before[name] for name in kept}


@pytest.mark.slow
def test_a_run_whose_network_is_gone_does_not_wait_for_all_retries(
    gcs, bucket, command, started
):
    # TensorFlow would try for minutes to write what is due, each of it.
    patient = {
        "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000000",
        "GCS_RETRY_CONFIG_MAX_DELAY_TIME_US": "32000000",
    }
    process = started(
        command("gone", "--lease_seconds=8", "--total_steps=100000"), **patient
    )
    until(lambda: "gone/checkpoints/checkpoint.json" in gcs.names(bucket), process)
    gcs.set_faults(drop_from=1)
    began = time.monotonic()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "could not be renewed" in err.splitlines()[-1]
    assert time.monotonic() - began < 90
