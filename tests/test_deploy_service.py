"""The real SDK orders, waits, lists and cancels at a Vertex AI of our own."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from deploy import command, sending
from tests.orders import NAMED, ORDERS, SEARCH, TRAINER
from tests.vertex import server, trials

SUBMIT = ["deploy.submit", *NAMED]
WHERE = ["--project=my-project", "--region=us-central1"]
STOCK_OUT = {
    "state": "JOB_STATE_FAILED",
    "error": {
        "code": 8,
        "message": "Resources are insufficient in region: us-central1. Please try a "
        "different region or use a different accelerator.",
    },
}
RUNS = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED")


class Orders:
    """Commands of deploy, run where the SDK is, against a service of our own."""

    def __init__(self, vertex: server.Service) -> None:
        self._vertex = vertex

    def start(self, module: str, *args: str, after: tuple = ()) -> subprocess.Popen:
        """Returns a command that has just been started."""
        waits = "--wait" in args or "wait" in args[:1]
        poll = ["--poll_seconds=0.01"] if waits else []
        # An action and its JOB go first.
        words = next((i for i, x in enumerate(args) if x.startswith("-")), len(args))
        flags = [f"--api_endpoint={self._vertex.address}", *poll, *args[words:]]
        line = [module, *args[:words], *flags, *(["--", *after] if after else [])]
        return subprocess.Popen(
            # A background job of a shell ignores it, and so would its children.
            ["env", "--default-signal=INT", str(server.PYTHON), "-m", *line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=server.REPOSITORY,
            env=dict(os.environ),
        )

    def __call__(self, module: str, *args: str, after: tuple = ()) -> tuple:
        """Returns exit code, stdout and stderr of a command."""
        process = self.start(module, *args, after=after)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def submit(self, *args: str) -> tuple:
        """Returns exit code, stdout and stderr of an order of one job."""
        return self("deploy.submit", *NAMED, *args, after=tuple(TRAINER))

    def jobs(self, *args: str) -> tuple:
        """Returns exit code, stdout and stderr of deploy.jobs."""
        return self("deploy.jobs", *args, *WHERE)


@pytest.fixture
def orders(vertex: server.Service) -> Orders:
    """Runs commands of deploy."""
    return Orders(vertex)


@pytest.fixture
def one_line() -> Callable[[tuple, str], None]:
    """Asserts that a command failed with one line that says so."""

    def check(ended: tuple, pattern: str) -> None:
        code, out, err = ended
        assert (code, out) == (1, "")
        [line] = err.splitlines()
        assert re.fullmatch(rf"segtrainer: {pattern}", line), line

    return check


ALL = """
import importlib, json, sys
address, *lines = sys.argv[1:]
for line in lines:
    module, *args = json.loads(line)
    args.insert(args.index("--"), f"--api_endpoint={address}")
    assert importlib.import_module(module).main(args) == 0, line
"""


def test_what_a_dry_run_shows_is_what_is_sent(vertex):
    lines = [json.dumps(order.command) for order in ORDERS.values()]
    command = [str(server.PYTHON), "-c", ALL, vertex.address, *lines]
    ran = subprocess.run(
        command, cwd=server.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    sent = vertex.requests("POST")
    assert [one["status"] for one in sent] == [200] * len(ORDERS)
    for order, one in zip(ORDERS.values(), sent, strict=True):
        where = f"/v1/projects/my-project/locations/us-central1/{order.kind}"
        assert one["path"] == where
        # What --dry_run prints is `order.request`: tests/test_deploy_spec.py.
        assert one["canonical"] == vertex.canonical(order.kind, order.request)


def test_submit_returns_at_once_and_says_where_the_job_is(orders, vertex):
    code, out, err = orders.submit()
    [job] = vertex.jobs()
    number = job["name"].split("/")[-1]
    project = job["name"].split("/")[1]
    assert (code, out) == (0, f"{job['name']}\n")
    assert err == (
        "https://console.cloud.google.com/agent-platform/locations/us-central1/training/"
        f"{number}?project={project}\n"
    )
    assert vertex.requests("GET") == []


def test_submit_waits_and_says_each_new_state(orders, vertex):
    vertex.script("JOB_STATE_QUEUED", RUNS[0], *([RUNS[1]] * 3), RUNS[2])
    code, _, err = orders.submit("--wait")
    states = re.findall(r"^\S+ pets-1: (.*)$", err, re.MULTILINE)
    assert (code, states) == (0, ["queued", "pending", "running", "succeeded"])


def test_waiting_goes_on_while_the_service_does_not_answer(orders, vertex):
    vertex.script(*RUNS)
    for fault in (503, "dropped", 429):
        vertex.faults(fault, method="GET")
    code, _, err = orders.submit("--wait")
    assert (code, err.splitlines()[-1][9:]) == (0, "pets-1: succeeded")


def test_a_job_that_failed_is_told_with_its_reason_and_its_log(orders, vertex):
    error = {"code": 3, "message": "The replica workerpool0-0 exited with\n code 1."}
    vertex.script(RUNS[0], {"state": "JOB_STATE_FAILED", "error": error})
    code, _, err = orders.submit("--wait")
    last = err.splitlines()[-1]
    assert code == 1
    assert last.startswith(
        "segtrainer: pets-1 failed: The replica workerpool0-0 exited with code 1.; its "
        "log: https://console.cloud.google.com/logs/query;query="
    )


def test_without_quota_the_next_region_is_asked(orders, vertex):
    vertex.faults(429, region="us-central1")
    args = [one for one in NAMED if not one.startswith("--region=")]
    regions = "--regions=us-central1,europe-west4"
    code, out, err = orders("deploy.submit", *args, regions, after=tuple(TRAINER))
    assert code == 0
    assert "/locations/europe-west4/" in out
    assert "gs://pets/jobs stays in its own region" in err
    assert "us-central1: ordering failed, a quota is used up" in err
    assert len(vertex.jobs()) == 1


def test_without_machines_the_next_region_is_asked_where_one_waits(orders, vertex):
    vertex.script(RUNS[0], STOCK_OUT)
    vertex.script(*RUNS)
    args = [one for one in NAMED if not one.startswith("--region=")]
    regions = ["--regions=us-central1,europe-west4", "--wait"]
    code, out, err = orders("deploy.submit", *args, *regions, after=tuple(TRAINER))
    assert code == 0
    assert [line.split("/")[3] for line in out.split()] == [
        "us-central1",
        "europe-west4",
    ]
    assert "us-central1 has no machines for it; on to the next region" in err
    folders = {
        job["jobSpec"]["baseOutputDirectory"]["outputUriPrefix"]
        for job in vertex.jobs()
    }
    assert folders == {"gs://pets/jobs/pets-1"}


def test_a_stock_out_in_the_last_region_is_told_with_a_way_out(orders, vertex):
    vertex.script(STOCK_OUT)
    code, _, err = orders.submit("--wait")
    assert code == 1
    assert "no machines were free: try later, another machine_type" in err


@pytest.mark.parametrize(
    "fault, pattern",
    [
        (401, r"no credentials found; get them: gcloud auth application-default login"),
        (
            403,
            r"ordering failed, it is not allowed: Permission .* denied .*it takes .*",
        ),
        (404, r"ordering failed, it is not there: The resource .* was not found\."),
        (429, r"ordering failed, a quota is used up: .*nvidia_l4_gpus; ask for more.*"),
        (500, r"ordering failed, the service had an error of its own, 500: .*look .*"),
        ("dropped", r"ordering failed, the connection was lost: .*look first: .*"),
        ("lost", r"ordering failed, the connection was lost: .*look first: .*"),
    ],
)
def test_an_error_ends_in_one_line_and_no_second_order(
    fault, pattern, orders, vertex, one_line
):
    vertex.faults(fault)
    one_line(orders.submit(), pattern)
    assert len(vertex.requests("POST")) == 1
    assert len(vertex.jobs()) == (1 if fault == "lost" else 0)


def test_what_the_service_refuses_is_told_in_its_words(orders, one_line):
    # Which the service knows and we do not.
    l4 = ["--accelerator_type=NVIDIA_TESLA_T4", "--scheduling=flex_start"]
    one_line(orders.submit(*l4), r"ordering failed, it is refused: .*FLEX_START.*")


def test_an_accelerator_that_the_sdk_does_not_know_is_named(orders, vertex):
    code, out, err = orders.submit("--accelerator_type=NVIDIA_L5")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "NVIDIA_L5" in err
    assert vertex.requests() == []


def test_a_service_that_is_not_there_is_named(orders, one_line):
    nowhere = "--api_endpoint=http://127.0.0.1:9"
    one_line(
        orders.submit(nowhere), r"ordering failed, 127\.0\.0\.1:9 cannot be reached.*"
    )


def test_ctrl_c_ends_the_waiting_and_not_the_job(orders, vertex):
    vertex.script(RUNS[1])
    args = ("--wait", "--poll_seconds=30")
    process = orders.start("deploy.submit", *NAMED, *args, after=tuple(TRAINER))
    assert process.stderr is not None
    assert any("pets-1: queued" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    [job] = vertex.jobs()
    assert process.returncode == 130
    assert err.endswith(f"wait again: python -m deploy.jobs wait {job['name']}\n")
    assert "Traceback" not in err
    assert job["state"] != "JOB_STATE_CANCELLED"


def test_ctrl_c_says_how_to_wait_on_wherever_it_comes(monkeypatch):
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "note", interrupted)
    job = {"name": "projects/1/locations/r/customJobs/2", "displayName": "pets-1"}
    with pytest.raises(command.Interrupted, match="wait again: .* wait projects/1/"):
        sending.wait(None, job, 0.01)


def test_jobs_are_listed_shown_and_cancelled(orders, vertex):
    assert orders.submit()[0] == 0
    code, _, console = orders("deploy.tune", *NAMED, *SEARCH, after=tuple(TRAINER))
    assert code == 0
    tuning, custom = vertex.jobs()
    numbers = [job["name"].split("/")[-1] for job in (tuning, custom)]
    # As the SDK's own classes link to both kinds.
    assert f"/locations/us-central1/training/{numbers[0]}?project=" in console

    code, out, _ = orders.jobs("list")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert rows[0] == ["number", "kind", "job_name", "state", "created"]
    assert [row[0] for row in rows[1:]] == numbers
    assert rows[2][1:4] == ["job", "pets-1", "queued"]
    assert len(orders.jobs("list", "--limit=1")[1].splitlines()) == 2

    for job in (numbers[1], custom["name"]):
        code, out, _ = orders.jobs("show", job)
        assert code == 0
        assert re.search(r"writes to +gs://pets/jobs/pets-1\n", out)
    code, out, _ = orders.jobs("show", numbers[0], "--json")
    assert (code, json.loads(out)["maxTrialCount"]) == (0, 20)
    # Of one name, the newest.
    assert tuning["name"] in orders.jobs("show", "pets-1")[1]

    code, out, err = orders.jobs("logs", numbers[1])
    assert code == 0
    assert out.startswith("https://console.cloud.google.com/logs/query;query=")
    assert numbers[1] in out
    assert f"gcloud ai custom-jobs stream-logs {numbers[1]} --project" in err

    code, out, _ = orders.jobs("cancel", numbers[1])
    assert (code, out) == (0, f"{custom['name']} is being cancelled\n")
    code, _, err = orders.jobs("wait", numbers[1])
    assert (code, "pets-1 cancelled" in err) == (1, True)
    code, _, err = orders.jobs("cancel", numbers[1])
    assert (code, err) == (2, "segtrainer: pets-1 has ended: cancelled\n")


def test_a_job_that_is_not_there_is_told_in_one_line(orders, one_line):
    for job in ("123", "none"):
        one_line(
            orders.jobs("show", job), f"no job {job} in us-central1 of my-project.*"
        )


@pytest.mark.parametrize(
    "words, line",
    [
        ((), "the action comes first: one of list, show, wait, logs, cancel, got ''"),
        (("drop", "1"), "the action comes first: one of list"),
        (("show",), "show takes a JOB: its number, its name or its job_name"),
        (("list", "1"), "list takes no JOB"),
        (
            ("show", "projects/p/jobs/1"),
            "JOB must be a number, a job_name, or projects",
        ),
        (("show", 'a"b'), "JOB must be a number, a job_name, or projects"),
        (
            ("show", "projects/p/locations/evil.com?/customJobs/1"),
            "JOB must be a number",
        ),
    ],
)
def test_an_action_of_another_form_is_refused(words, line, capsys):
    from deploy import jobs

    assert jobs.main([*words, *WHERE]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"segtrainer: {line}")


def test_a_search_ends_with_its_table_the_best_first(orders, vertex):
    def trial(number: int, state: str, rate: float, iou: float | None):
        given: dict[str, float | str]
        given = {"learning_rate": rate, "batch_size": 32.0, "train_encoder": "true"}
        metrics = None if iou is None else {"val_mean_iou": iou}
        return trials.trial(number, state, given, metrics, step=240)

    found = [
        trial(1, "SUCCEEDED", 0.01, 0.5),
        trial(2, "INFEASIBLE", 0.02, None),
        trial(3, "SUCCEEDED", 0.001, 0.625),
        trial(4, "STOPPING", 0.003, 0.9),
    ]
    vertex.script(RUNS[1], {"state": RUNS[2], "trials": found})
    search = (*NAMED, *SEARCH, "--wait")
    code, out, _ = orders("deploy.tune", *search, after=tuple(TRAINER))
    name, header, *rows, best = out.splitlines()
    assert code == 0
    assert name.split("/")[-2] == "hyperparameterTuningJobs"
    assert header.split() == [
        *("trial", "state", "val_mean_iou", "step"),
        *("learning_rate", "batch_size", "train_encoder"),
    ]
    assert [row.split() for row in rows] == [
        ["3", "succeeded", "0.6250", "240", "0.001", "32", "true"],
        ["1", "succeeded", "0.5000", "240", "0.01", "32", "true"],
        ["4", "stopping", "0.9000", "240", "0.003", "32", "true"],
        ["2", "failed", "-", "-", "0.02", "32", "true"],
    ]
    assert best == (
        "best: trial 3; to train it again, give after --: --data_dir=gs://pets/tfds "
        "--epochs 20 --hp_metric=val_mean_iou --learning_rate=0.001 --batch_size=32 "
        "--train_encoder=true"
    )


@pytest.fixture
def in_storage(gcs, gcs_bucket, monkeypatch) -> str:
    """Returns a bucket of our own Google Cloud Storage, where commands find it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.storage)
    return gcs_bucket


def test_a_package_is_uploaded_beside_the_jobs_folder(
    orders, vertex, gcs, in_storage, tmp_path
):
    package = tmp_path / "segtrainer-0.1.0.tar.gz"
    package.write_bytes(b"an sdist")
    bucket = f"--bucket=gs://{in_storage}"
    code, _, err = orders.submit(bucket, f"--package={package}")
    assert code == 0, err
    name = "_packages/pets-1/segtrainer-0.1.0.tar.gz"  # A job's folder begins empty.
    assert gcs.objects(in_storage) == {name: b"an sdist"}
    [pool] = vertex.jobs()[0]["jobSpec"]["workerPoolSpecs"]
    uris = pool["pythonPackageSpec"]["packageUris"]
    assert uris == [f"gs://{in_storage}/{name}"]


def test_a_search_takes_a_package_too_and_a_refused_order_uploads_none(
    orders, vertex, gcs, in_storage, tmp_path
):
    package = tmp_path / "segtrainer-0.1.0.tar.gz"
    package.write_bytes(b"an sdist")
    args = [*NAMED, f"--bucket=gs://{in_storage}", f"--package={package}"]
    unknown = "--accelerator_type=NVIDIA_L5"
    code, _, err = orders("deploy.submit", *args, unknown, after=tuple(TRAINER))
    assert code == 2 and "NVIDIA_L5 is no AcceleratorType" in err
    assert gcs.objects(in_storage) == {}
    assert orders("deploy.tune", *args, *SEARCH, after=tuple(TRAINER))[0] == 0
    assert list(gcs.objects(in_storage)) == ["_packages/pets-1/segtrainer-0.1.0.tar.gz"]
    gcs.put(f"gs://{in_storage}/pets-1/1/config.json", b"{}")
    package.write_bytes(b"another")
    assert orders("deploy.tune", *args, *SEARCH, after=tuple(TRAINER))[0] == 2
    assert b"another" not in gcs.objects(in_storage).values()
    assert len(vertex.jobs()) == 1


def test_a_search_does_not_go_on_in_another_region_among_the_trials_of_the_first(
    orders, vertex, gcs, in_storage
):
    vertex.script(RUNS[1], STOCK_OUT)
    regions = ["--regions=us-central1,europe-west4", "--wait", "--poll_seconds=1"]
    args = [one for one in NAMED if not one.startswith("--region=")]
    args += [f"--bucket=gs://{in_storage}", *SEARCH, *regions]
    process = orders.start("deploy.tune", *args, after=tuple(TRAINER))
    process.stdout.readline()  # It is ordered, and runs.
    gcs.put(f"gs://{in_storage}/pets-1/1/config.json", b"{}")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "us-central1 has no machines for more trials; these are kept" in err
    assert "no machines were free: try later" in err
    assert len(vertex.jobs()) == 1


def test_a_search_begins_in_a_new_folder_only(orders, vertex, gcs, in_storage):
    args = (*NAMED, f"--bucket=gs://{in_storage}", *SEARCH)
    gcs.put(f"gs://{in_storage}/pets-10/1/config.json", b"{}")  # Of another name.
    assert orders("deploy.tune", *args, after=tuple(TRAINER))[0] == 0
    gcs.put(f"gs://{in_storage}/pets-1/1/config.json", b"{}")
    code, out, err = orders("deploy.tune", *args, after=tuple(TRAINER))
    assert (code, out) == (2, "")
    assert "a search must begin in a new folder, got gs://" in err
    assert len(vertex.jobs()) == 1
