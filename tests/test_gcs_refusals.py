"""What cannot be done in a bucket is said before the first step, in one line."""

import concurrent.futures
import json
import threading
import time

import keras
import pytest

from trainer import checkpoint_folder, config, lease, task, train
from trainer import places as run_places

SECONDS = 40.0  # TensorFlow's ten retries take minutes.


@pytest.fixture(autouse=True)
def _no_step(monkeypatch):
    """A refusal costs no step: training is not even begun."""

    def begun(*_) -> None:
        raise AssertionError("the run has begun")

    monkeypatch.setattr(train, "train_and_evaluate", begun)


@pytest.fixture
def places(gcs, gcs_bucket, gcs_here, pets):
    """Returns the flags of a small run in a bucket, which is not refused."""
    gcs.upload(pets(8), f"gs://{gcs_bucket}/data")
    return {
        "data_dir": f"gs://{gcs_bucket}/data",
        "job_dir": f"gs://{gcs_bucket}/jobs/run",
        "image_size": "32",
        "val_fraction": "0.25",
        "encoder_weights": "none",
    }


@pytest.fixture
def line(places, refused, gcs, gcs_bucket):
    """Returns the line of a refusal, which came soon and wrote nothing."""

    def run(**changed: str) -> str:
        before, began = gcs.objects(gcs_bucket), time.monotonic()
        found = refused(*(f"--{k}={v}" for k, v in {**places, **changed}.items()))
        assert time.monotonic() - began < SECONDS
        assert gcs.objects(gcs_bucket) == before
        return found

    return run


@pytest.mark.parametrize(
    "setting", ["data_dir", "job_dir", "checkpoint_dir", "log_dir"]
)
def test_a_bucket_that_is_not_there(setting, line):
    assert line(**{setting: "gs://no-such-bucket/a"}) == (
        f"{setting} must be in a bucket that we may use, got gs://no-such-bucket/a: "
        "there is no bucket no-such-bucket"
    )


@pytest.mark.parametrize(
    ("path", "says"),
    [("gs:///a", "it names none"), ("gs://_A!/a", "Bucket names must start and end")],
)
def test_what_is_no_bucket(path, says, line):
    said = f"job_dir must be in a bucket that we may use, got {path}: {says}"
    assert line(job_dir=path).startswith(said)


@pytest.mark.parametrize("where", ["", "jobs/", "!data/"])
@pytest.mark.parametrize("right", ["get", "list", "create", "delete"])
def test_each_permission_for_the_job_dir(right, where, gcs, line, places):
    permission = f"storage.objects.{right}"
    gcs.set_faults(denied={permission: where})
    reads = where == "" and right in ("get", "list")  # The data cannot be read either.
    setting = "data_dir" if reads else "job_dir"
    assert line() == (
        f"{setting} must be in a bucket that we may use, got {places[setting]}: "
        f"{permission} is not granted there"
    )


@pytest.mark.parametrize("right", ["get", "list"])
def test_each_permission_for_the_data_dir(right, gcs, line, places):
    permission = f"storage.objects.{right}"
    gcs.set_faults(denied={permission: "data/"})
    assert line() == (
        f"data_dir must be in a bucket that we may use, got {places['data_dir']}: "
        f"{permission} is not granted there"
    )


@pytest.mark.parametrize("where", ["data/", "read/"])
def test_what_is_only_read_need_not_be_written(
    where, gcs, gcs_bucket, places, tmp_path
):
    keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), include_top=False, weights=None
    ).save_weights(tmp_path / "mine.weights.h5")
    weights = f"gs://{gcs_bucket}/read/mine.weights.h5"
    gcs.put(weights, (tmp_path / "mine.weights.h5").read_bytes())
    gcs.set_faults(denied={"storage.objects.create": where})
    flags = {**places, "encoder": "mobilenet_v3_small", "encoder_weights": weights}
    with pytest.raises(AssertionError, match="the run has begun"):
        task.main([*(f"--{k}={v}" for k, v in flags.items()), "--download"])


def test_a_place_to_download_to_that_nobody_may_write_to(gcs, gcs_bucket, line):
    gcs.set_faults(denied={"storage.objects.create": "none/"})
    path = f"gs://{gcs_bucket}/none"
    assert line(data_dir=path, download="true") == (
        f"data_dir must be in a bucket that we may use, got {path}: "
        "storage.objects.create is not granted there"
    )


def test_weights_that_are_not_in_the_bucket(line, gcs_bucket):
    path = f"gs://{gcs_bucket}/none.weights.h5"
    assert line(encoder_weights=path) == (
        "encoder_weights must be imagenet, none or a .weights.h5 file, got "
        f"{path}: there is no such file"
    )


def test_a_run_that_goes_on_needs_no_bucket_that_it_began_from(
    gcs, gcs_bucket, gcs_here, tmp_path
):
    gone = {
        "encoder_weights": f"gs://{gcs_bucket}-gone/a.weights.h5",
        "init_from": f"gs://{gcs_bucket}-gone/run",
    }
    checkpoints = tmp_path / "run" / "checkpoints"
    at = config.Directories(
        *(str(tmp_path / "run"), str(checkpoints), str(tmp_path / "run" / "logs")),
        model=str(tmp_path / "run" / "export" / "1"),
    )
    for setting, path in gone.items():
        with pytest.raises(ValueError, match=f"{setting} .* got {path}: there is no"):
            run_places.check(config.Config(**{setting: path}), at)
    checkpoints.mkdir(parents=True)
    checkpoint_folder.move_pointer(str(checkpoints), latest="step-1", best="step-1")
    run_places.check(config.Config(**gone), at)


@pytest.mark.parametrize(
    ("denied", "held"), [("", "apart/"), ("!apart/checkpoints/", "apart/checkpoints/")]
)
def test_the_lease_on_checkpoints_is_where_it_may_be_written(
    denied, held, gcs, gcs_bucket, gcs_here, tmp_path
):
    if denied:
        gcs.set_faults(denied={"storage.objects.create": denied})
    at = config.Directories(
        *(str(tmp_path / "run"), f"gs://{gcs_bucket}/apart/checkpoints"),
        *(str(tmp_path / "run" / "logs"), str(tmp_path / "run" / "export" / "1")),
    )
    with run_places.hold_leases(at, None, 60):
        assert gcs.names(gcs_bucket) == [f"{held}lease.json"]
    assert gcs.names(gcs_bucket) == []


def test_of_two_buckets_that_are_not_there_the_one_to_write_to_is_told(line):
    there = "gs://no-such-bucket/a"
    told = line(job_dir=there, init_from="gs://nor-this/run")
    assert told.startswith(f"job_dir must be in a bucket that we may use, got {there}:")


def test_no_credentials(line, monkeypatch, tmp_path):
    monkeypatch.delenv("GOOGLE_AUTH_TOKEN_FOR_TESTING")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "there are no credentials; run gcloud auth application-default login" in (
        line()
    )


def test_credentials_that_cannot_be_read(line, monkeypatch, tmp_path):
    monkeypatch.delenv("GOOGLE_AUTH_TOKEN_FOR_TESTING")
    key = tmp_path / "key.json"
    key.write_text("{")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    assert f"(File {key} is not a valid json file" in line()


def test_no_network(line, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, "http://127.0.0.1:9")
    assert "no answer from Google Cloud Storage in 10 seconds; is there a network?" in (
        line()
    )


def test_a_job_dir_with_files_of_another_program(gcs, gcs_bucket, line, places):
    left_by_a_kill = ("lease.json", "lease.json.0123", ".may-we-0123", "thesis.tex")
    for name in left_by_a_kill:
        gcs.put(f"{places['job_dir']}/{name}", b"1")
    assert "with thesis.tex in it; give another --job_dir" in line()


def test_a_job_dir_that_another_run_writes_to(gcs, gcs_bucket, places, capfd):
    other = lease.this_process("job-7") | {"host": "worker-0"}
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.3):
            gcs.put(f"{places['job_dir']}/{lease.NAME}", json.dumps(other).encode())

    gcs.put(f"{places['job_dir']}/{lease.NAME}", json.dumps(other).encode())
    before = gcs.objects(gcs_bucket)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        threads.submit(renew)
        code = task.main(
            [f"--{k}={v}" for k, v in places.items()] + ["--lease_seconds=2"]
        )
        ended.set()
    waiting, line = capfd.readouterr().err.splitlines()
    said = (
        f"job_dir must be written by one run at a time, got {places['job_dir']}, which "
        "job-7 on worker-0 writes to; stop that one or give another --job_dir"
    )
    assert (code, line) == (2, f"segtrainer: {said}")
    assert waiting.endswith(f"Waiting up to 2 seconds: {said}")
    assert gcs.objects(gcs_bucket) == before
