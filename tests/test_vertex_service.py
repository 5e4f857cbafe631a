"""The stand-in for Vertex AI answers as the real service does."""

from typing import Any

import pytest

from tests.vertex import server

PLACE = "/v1/projects/ours/locations/us-central1"
CUSTOM, TUNING = f"{PLACE}/customJobs", f"{PLACE}/hyperparameterTuningJobs"
THEIRS = CUSTOM.replace("ours", "theirs")
ELSEWHERE = CUSTOM.replace("us-", "europe-")
POOL = {
    "replicaCount": 1,
    "machineSpec": {"machineType": "n1-standard-4"},
    "containerSpec": {"imageUri": "image"},
}
JOB = {"displayName": "a", "jobSpec": {"workerPoolSpecs": [POOL]}}
SEARCH = {
    "displayName": "a",
    "trialJobSpec": {"workerPoolSpecs": [POOL]},
    "maxTrialCount": 2,
    "parallelTrialCount": 1,
    "studySpec": {
        "metrics": [{"metricId": "mean_iou", "goal": "MAXIMIZE"}],
        "parameters": [
            {"parameterId": "rate", "doubleValueSpec": {"minValue": 0, "maxValue": 1}}
        ],
    },
}


def made(vertex: server.Service, name: str = "a", **fields: Any) -> str:
    """Returns the path of a job that was made."""
    status, job = vertex.call("POST", CUSTOM, JOB | {"displayName": name} | fields)
    assert status == 200, job
    return f"/v1/{job['name']}"


def state(vertex: server.Service, path: str) -> str:
    """Returns the state of a job, which goes one step further."""
    return vertex.call("GET", path)[1]["state"]


def test_fault_is_of_the_requests_that_it_is_meant_for(vertex):
    vertex.faults(429, 2, region="us-central1", method="POST", message="no more")
    assert vertex.call("GET", CUSTOM)[0] == 200
    assert vertex.call("POST", ELSEWHERE, JOB)[0] == 200
    for _ in range(2):
        status, told = vertex.call("POST", CUSTOM, JOB)
        assert (status, told["error"]["message"]) == (429, "no more")
        assert told["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert vertex.call("POST", CUSTOM, JOB)[0] == 200


def test_job_goes_a_step_of_its_script_each_time_it_is_looked_at(vertex):
    error = {"code": 8, "message": "Resources are insufficient in region: us-central1."}
    vertex.script("JOB_STATE_RUNNING", {"state": "JOB_STATE_FAILED", "error": error})
    path = made(vertex)
    [job] = vertex.call("GET", CUSTOM)[1]["customJobs"]
    assert job["state"] == "JOB_STATE_QUEUED"
    job = vertex.call("GET", path)[1]
    assert job["state"] == "JOB_STATE_RUNNING"
    assert "startTime" in job and "endTime" not in job
    for _ in range(2):
        job = vertex.call("GET", path)[1]
        assert (job["state"], job["error"]) == ("JOB_STATE_FAILED", error)
        assert "endTime" in job
    status, told = vertex.call("POST", f"{path}:cancel")
    assert (status, told["error"]["status"]) == (400, "FAILED_PRECONDITION")


def test_each_script_is_of_one_more_job_and_the_last_of_all_that_follow(vertex):
    vertex.script("JOB_STATE_FAILED")
    vertex.script("JOB_STATE_SUCCEEDED")
    paths = [made(vertex) for _ in range(3)]
    states = [state(vertex, path).removeprefix("JOB_STATE_") for path in paths]
    assert states == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    vertex.script("JOB_STATE_RUNNING", job=paths[0].removeprefix("/v1/"))
    assert state(vertex, paths[0]) == "JOB_STATE_RUNNING"
    with pytest.raises(ValueError, match="JOB_STATE_DONE"):
        vertex.script("JOB_STATE_DONE")


@pytest.mark.parametrize(
    "asked, names",
    [
        ('display_name="pets-1"', ["pets-1"]),
        ('display_name:"pets-*" AND state!="JOB_STATE_PENDING"', ["pets-2", "pets-1"]),
        ('state="JOB_STATE_PENDING"', ["other"]),
        ('labels.of="us" AND labels.of:*', ["pets-1"]),
        ('create_time>"2020-01-01T00:00:00Z"', ["other", "pets-2", "pets-1"]),
    ],
)
def test_list_holds_what_the_filter_asks_for_the_newest_first(vertex, asked, names):
    made(vertex, "pets-1", labels={"of": "us"})
    made(vertex, "pets-2")
    state(vertex, made(vertex, "other"))
    told = vertex.call("GET", CUSTOM, filter=asked)[1]
    assert [job["displayName"] for job in told["customJobs"]] == names


def test_list_of_another_place_or_kind_is_empty(vertex):
    made(vertex)
    for path in (TUNING, THEIRS, ELSEWHERE):
        assert vertex.call("GET", path) == (200, {})


def test_project_has_a_number_by_which_its_jobs_are_found(vertex):
    path = made(vertex)
    assert path.split("/")[3].isdigit()
    by_name = "/".join([*path.split("/")[:3], "ours", *path.split("/")[4:]])
    assert vertex.call("GET", by_name)[1]["name"] == path.removeprefix("/v1/")


@pytest.mark.parametrize(
    "method, path, query, status",
    [
        ("GET", CUSTOM, {"orderBy": "name"}, 400),
        ("GET", CUSTOM, {"filter": "name=1"}, 400),
        ("GET", CUSTOM, {"filter": 'NOT state="a"'}, 400),
        ("GET", CUSTOM, {"pageToken": "next"}, 400),
        ("GET", f"{CUSTOM}/1", {}, 404),
        ("POST", f"{CUSTOM}/1:cancel", {}, 404),
        ("POST", CUSTOM, {}, 400),
        ("GET", CUSTOM.replace("us-central1", "here"), {}, 404),
        ("GET", f"{PLACE}/models", {}, 404),
        ("DELETE", f"{CUSTOM}/1", {}, 404),
    ],
)
def test_request_that_the_service_does_not_know_is_refused(
    vertex, method, path, query, status
):
    refused, told = vertex.call(method, path, **query)
    assert (refused, told["error"]["code"]) == (status, status)


def test_canonical_value_is_the_same_for_all_spellings_of_one_job(vertex):
    def canonical(strategy: int | str, timeout: str, count: int | str) -> dict:
        scheduling = {"strategy": strategy, "timeout": timeout}
        pools = [POOL | {"replicaCount": count}]
        spec = {"workerPoolSpecs": pools, "scheduling": scheduling}
        return vertex.canonical("customJobs", {"jobSpec": spec})

    assert canonical(4, "60s", "1") == canonical("SPOT", "60.0s", 1)
    assert canonical(4, "60s", "1") != canonical("STANDARD", "60s", "1")
    with pytest.raises(ValueError, match='"gpus"'):
        vertex.canonical("customJobs", {"gpus": 1})


def test_search_is_made_and_its_requests_are_forgotten_with_the_reset(vertex):
    status, job = vertex.call("POST", TUNING, SEARCH)
    assert (status, job["state"]) == (200, "JOB_STATE_QUEUED")
    assert len(vertex.jobs("hyperparameterTuningJobs")) == len(vertex.requests()) == 1
    vertex.faults(500)
    vertex.reset()
    assert vertex.jobs() == vertex.requests() == []
    assert vertex.call("GET", TUNING) == (200, {})
