"""The stand-in for Vertex AI refuses what the real service refuses, and says why."""

import copy
from typing import Any

import pytest

PLACE = "/v1/projects/ours/locations/us-central1"
POOL = {
    "replicaCount": 1,
    "machineSpec": {
        "machineType": "g2-standard-8",
        "acceleratorType": "NVIDIA_L4",
        "acceleratorCount": 1,
    },
    "containerSpec": {"imageUri": "image", "args": ["--seed=1"]},
}
SPEC = {
    "workerPoolSpecs": [POOL, {}],
    "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/runs/a"},
    "serviceAccount": "trainer@ours.iam.gserviceaccount.com",
    "tensorboard": "projects/ours/locations/us-central1/tensorboards/1",
    "network": "projects/123/global/networks/default",
    "scheduling": {"strategy": "FLEX_START", "timeout": "604800s"},
}
KEY = "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k"
ABOUT = {
    "displayName": "a",
    "labels": {"team": "vision"},
    "encryptionSpec": {"kmsKeyName": KEY},
}
JOB = ABOUT | {"jobSpec": SPEC}
RATE = {
    "parameterId": "learning_rate",
    "doubleValueSpec": {"minValue": 1e-4, "maxValue": 1e-1},
    "scaleType": "UNIT_LOG_SCALE",
}
SEARCH = ABOUT | {
    "trialJobSpec": SPEC,
    "maxTrialCount": 4,
    "parallelTrialCount": 2,
    "maxFailedTrialCount": 2,
    "studySpec": {
        "metrics": [{"metricId": "mean_iou", "goal": "MAXIMIZE"}],
        "parameters": [RATE],
    },
}
POOLS = "jobSpec.workerPoolSpecs"
STUDY = "studySpec.parameters"


def changed(job: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Returns a copy of a job in which one field is another; None takes it away."""
    job = copy.deepcopy(job)
    *parents, last = [int(x) if x.isdigit() else x for x in path.split(".")]
    inner: Any = job
    for name in parents:
        inner = inner[name] if isinstance(name, int) else inner.setdefault(name, {})
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return job


def variables(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "value": "1"} for name in names]


OF_JOB = [
    ("displayName", None, "display_name"),
    ("displayName", "a" * 129, "display_name"),
    ("labels", {"a" * 65: "b"}, "labels"),
    ("labels", {"a": "b" * 65}, "labels"),
    ("labels", {"Team": "b"}, "labels"),
    ("labels", {"a": "b c"}, "labels"),
    ("encryptionSpec.kmsKeyName", KEY.replace("us-", "europe-"), "kms_key_name"),
    ("encryptionSpec.kmsKeyName", "key", "kms_key_name"),
    (POOLS, [], "worker_pool_specs"),
    (POOLS, [POOL, {}, {}, {}, {}], "worker_pool_specs"),
    (POOLS, [{}, POOL], "worker_pool_specs[0]"),
    (f"{POOLS}.0.replicaCount", 2, "replica_count"),
    (POOLS, [POOL, POOL | {"replicaCount": 0}], "worker_pool_specs[1].replica_count"),
    (f"{POOLS}.0.containerSpec", None, "container_spec or python_package_spec"),
    (f"{POOLS}.0.containerSpec.imageUri", None, "image_uri"),
    (f"{POOLS}.0.pythonPackageSpec", {"pythonModule": "a"}, "task"),
    (f"{POOLS}.0.machineSpec.machineType", None, "machine_type"),
    (f"{POOLS}.0.machineSpec.acceleratorType", None, "accelerator_type"),
    (f"{POOLS}.0.machineSpec.acceleratorCount", None, "accelerator_count"),
    (f"{POOLS}.0.machineSpec.acceleratorType", "NVIDIA_L5", "NVIDIA_L5"),
    (f"{POOLS}.0.machineSpec.acceleratorType", 99, "accelerator_type"),
    (f"{POOLS}.0.containerSpec.env", variables(*map("A{}".format, range(101))), "env"),
    (f"{POOLS}.0.containerSpec.env", variables("1A"), "env"),
    (f"{POOLS}.0.containerSpec.args", ["a" * 50_000, "a" * 50_001], "args"),
    (f"{POOLS}.0.diskSpec.bootDiskSizeGb", 99, "boot_disk_size_gb"),
    (f"{POOLS}.0.diskSpec.bootDiskSizeGb", 64_001, "boot_disk_size_gb"),
    (f"{POOLS}.0.diskSpec.bootDiskType", "pd-fast", "boot_disk_type"),
    ("jobSpec.serviceAccount", None, "service_account"),
    ("jobSpec.serviceAccount", "trainer", "service_account"),
    ("jobSpec.baseOutputDirectory", None, "base_output_directory"),
    ("jobSpec.baseOutputDirectory.outputUriPrefix", "/gcs/a", "base_output_directory"),
    ("jobSpec.tensorboard", "1", "tensorboard"),
    ("jobSpec.network", "default", "network"),
    ("jobSpec.network", "projects/ours/global/networks/default", "network"),
    ("jobSpec.scheduling.timeout", "604801s", "timeout"),
    ("jobSpec.scheduling.timeout", "-1s", "timeout"),
    ("jobSpec.scheduling.timeout", 3600, "timeout"),
    ("jobSpec.scheduling.strategy", 5, "strategy"),
    (f"{POOLS}.0.machineSpec", {"machineType": "n1-standard-4"}, "FLEX_START"),
    (
        POOLS,
        [POOL, POOL | {"machineSpec": {"machineType": "n1-standard-4"}}],
        "same machine",
    ),
    ("jobSpec.gpus", 1, "gpus"),
    ("studySpec", {}, "studySpec"),
]
TPU = {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"}
OF_SEARCH = [
    ("displayName", None, "display_name"),
    ("trialJobSpec.workerPoolSpecs.0.replicaCount", 2, "trial_job_spec"),
    ("trialJobSpec.workerPoolSpecs.0.machineSpec", TPU, "not supported on TPUs"),
    ("maxTrialCount", None, "max_trial_count"),
    ("parallelTrialCount", 0, "parallel_trial_count"),
    ("parallelTrialCount", 5, "parallel_trial_count"),
    ("maxFailedTrialCount", 5, "max_failed_trial_count"),
    ("maxFailedTrialCount", -1, "max_failed_trial_count"),
    ("studySpec.metrics", [], "metrics"),
    ("studySpec.metrics.0.goal", None, "goal"),
    ("studySpec.metrics.0.metricId", "mean iou", "metric_id"),
    (STUDY, [], "parameters"),
    (STUDY, [RATE, RATE], "unique"),
    (f"{STUDY}.0.parameterId", "learning rate", "parameter_id"),
    (f"{STUDY}.0.doubleValueSpec", None, "value spec"),
    (f"{STUDY}.0.discreteValueSpec", {"values": [1]}, "parameter_value_spec"),
    (f"{STUDY}.0.doubleValueSpec.minValue", 1, "min_value"),
    (f"{STUDY}.0.doubleValueSpec.minValue", 0, "scale_type"),
    (f"{STUDY}.0.doubleValueSpec.defaultValue", 0.01, "default_value"),
    (STUDY, [{"parameterId": "a", "discreteValueSpec": {"values": [2, 1]}}], "values"),
    (STUDY, [{"parameterId": "a", "categoricalValueSpec": {}}], "values"),
    ("studySpec.algorithm", "GRID_SEARCH", "GRID_SEARCH"),
    ("studySpec.observationNoise", "LOW", "observation_noise"),
]


def test_jobs_that_keep_all_rules_are_made(vertex):
    assert vertex.call("POST", f"{PLACE}/customJobs", JOB)[0] == 200
    assert vertex.call("POST", f"{PLACE}/hyperparameterTuningJobs", SEARCH)[0] == 200


@pytest.mark.parametrize(
    "kind, job",
    [
        *(("customJobs", (JOB, *wrong)) for wrong in OF_JOB),
        *(("hyperparameterTuningJobs", (SEARCH, *wrong)) for wrong in OF_SEARCH),
    ],
    ids=lambda value: f"{value[1]}-{value[3]}" if isinstance(value, tuple) else value,
)
def test_job_that_breaks_a_rule_is_refused_and_the_rule_is_named(vertex, kind, job):
    right, path, value, named = job
    wrong = changed(right, path, value)
    status, told = vertex.call("POST", f"{PLACE}/{kind}", wrong)
    error = told["error"]
    assert (status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert named in error["message"]
    assert vertex.jobs() == []


def test_tensorboard_of_another_region_is_not_found(vertex):
    there = SPEC["tensorboard"].replace("us-", "europe-")
    job = changed(JOB, "jobSpec.tensorboard", there)
    status, told = vertex.call("POST", f"{PLACE}/customJobs", job)
    assert (status, told["error"]["status"]) == (404, "NOT_FOUND")
