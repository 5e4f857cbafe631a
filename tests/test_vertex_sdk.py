"""Google's own SDK orders jobs from the stand-in for Vertex AI."""

import json
import subprocess
import textwrap
from typing import Any

from tests.vertex import server, trials

JOB = {
    "displayName": "a",
    "jobSpec": {
        "workerPoolSpecs": [
            {
                "replicaCount": 1,
                "machineSpec": {"machineType": "n1-standard-4"},
                "containerSpec": {"imageUri": "image"},
            }
        ],
        "scheduling": {"strategy": "SPOT"},
    },
}
# What a script of the SDK begins with, that of the service's own methods ...
METHODS = """
import json, sys
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1
PLACE = "projects/ours/locations/us-central1"
JOB = aiplatform_v1.CustomJob.from_json(sys.argv[2])
client = aiplatform_v1.JobServiceClient(
    transport="rest",
    client_options={"api_endpoint": sys.argv[1]},
    credentials=AnonymousCredentials(),
)
"""
# ... and of the classes above them.
CLASSES = """
import json, sys
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform import hyperparameter_tuning, jobs
aiplatform.init(
    project="ours",
    location="us-central1",
    staging_bucket="gs://bucket",
    credentials=AnonymousCredentials(),
    api_endpoint=sys.argv[1],
    api_transport="rest",
)
jobs._JOB_WAIT_TIME = 0.01
pool = {
    "replica_count": 1,
    "machine_spec": {"machine_type": "n1-standard-4"},
    "container_spec": {"image_uri": "image"},
}
job = aiplatform.CustomJob("a", [pool], base_output_dir="gs://bucket/a")
"""


def sdk(vertex: server.Service, begin: str, script: str) -> Any:
    """Returns the JSON that a script of the SDK prints in its last line."""
    code = begin + textwrap.dedent(script)
    command = [str(server.PYTHON), "-c", code, vertex.address, json.dumps(JOB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_client_makes_lists_looks_at_and_cancels_jobs(vertex):
    script = """
        names = [client.create_custom_job(parent=PLACE, custom_job=JOB).name
                 for _ in range(3)]
        request = {"parent": PLACE, "page_size": 2, "filter": 'display_name="a"'}
        listed = [job.name for job in client.list_custom_jobs(request=request)]
        states = [client.get_custom_job(name=names[0]).state.name]
        client.cancel_custom_job(name=names[0])
        states.append(client.get_custom_job(name=names[0]).state.name)
        print(json.dumps([names, listed, states]))
    """
    names, listed, states = sdk(vertex, METHODS, script)
    assert listed == names[::-1] == [job["name"] for job in vertex.jobs()]
    assert states == ["JOB_STATE_PENDING", "JOB_STATE_CANCELLED"]
    tokens = [one["query"].get("pageToken") for one in vertex.requests("GET")]
    assert tokens == [None, "2", None, None]


def test_what_the_client_sends_is_recorded_and_its_numbers_are_enumerations(vertex):
    script = """
        client.create_custom_job(parent=PLACE, custom_job=JOB)
        print(0)
    """
    sdk(vertex, METHODS, script)
    [request] = vertex.requests()
    assert request["query"] == {"$alt": "json;enum-encoding=int"}
    assert request["body"]["jobSpec"]["scheduling"] == {"strategy": 4}
    assert request["canonical"] == vertex.canonical("customJobs", JOB)


def test_classes_of_the_sdk_make_jobs_and_wait_for_them(vertex):
    best = trials.trial(1, "SUCCEEDED", {"rate": 0.5}, {"mean_iou": 0.7}, step=9)
    bad = trials.trial(2, "INFEASIBLE", {"rate": 1.0}, reason="out of memory")
    vertex.script("JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED")
    vertex.script({"state": "JOB_STATE_SUCCEEDED", "trials": [best, bad]})
    script = """
        job.submit()
        listed = [one.resource_name for one in aiplatform.CustomJob.list()]
        job.wait_for_completion()
        tuning = aiplatform.HyperparameterTuningJob(
            "search",
            job,
            metric_spec={"mean_iou": "maximize"},
            parameter_spec={
                "rate": hyperparameter_tuning.DoubleParameterSpec(0.1, 1, "log")
            },
            max_trial_count=2,
            parallel_trial_count=1,
        )
        tuning.run()
        told = [[trial.id, trial.state.name, trial.infeasible_reason,
                 [metric.value for metric in trial.final_measurement.metrics]]
                for trial in tuning.trials]
        print(json.dumps([listed, job.state.name, tuning.state.name, told]))
    """
    listed, of_job, of_tuning, told = sdk(vertex, CLASSES, script)
    assert listed == [job["name"] for job in vertex.jobs("customJobs")]
    assert of_job == of_tuning == "JOB_STATE_SUCCEEDED"
    assert told == [
        ["1", "SUCCEEDED", "", [0.7]],
        ["2", "INFEASIBLE", "out of memory", []],
    ]


def test_client_meets_each_fault_once_and_does_not_try_again(vertex):
    met = {
        403: "Forbidden",
        404: "NotFound",
        429: "TooManyRequests",
        500: "InternalServerError",
        503: "ServiceUnavailable",
        "dropped": "ConnectionError",
        "lost": "ConnectionError",
    }
    for what in met:
        vertex.faults(what)
    script = """
        met = []
        for _ in range(7):
            try:
                client.create_custom_job(parent=PLACE, custom_job=JOB)
            except Exception as error:
                met.append([type(error).__name__, str(error)])
        print(json.dumps(met))
    """
    told = sdk(vertex, METHODS, script)
    assert [name for name, _ in told] == list(met.values())
    assert "Permission 'aiplatform.customJobs.create' denied" in told[0][1]
    assert (
        "aiplatform.googleapis.com/custom_model_training_nvidia_l4_gpus" in told[2][1]
    )
    requests = vertex.requests()
    assert [one["fault"] for one in requests] == list(met)
    assert [one["status"] for one in requests] == [*list(met)[:5], None, None]
    assert len(vertex.jobs()) == 1  # The one whose answer was lost.


def test_secrets_are_not_recorded(vertex):
    script = """
        metadata = [("authorization", "Bearer hush"), ("x-goog-request-reason", "a")]
        client.create_custom_job(parent=PLACE, custom_job=JOB, metadata=metadata)
        print(0)
    """
    sdk(vertex, METHODS, script)
    assert vertex.requests()[0]["headers"]["x-goog-request-reason"] == "a"
    assert "hush" not in json.dumps(vertex.requests())
