"""From an order to the request that Vertex AI takes, as a plain dict.

Field names and values are those of the REST API, so that what is shown is what is sent.
"""

from collections.abc import Sequence
from typing import Any

from deploy import rules, space
from deploy.order import Order, Search, most_failures, pairs, parallel
from deploy.study import checked_study
from trainer import config
from trainer.config import Config

Request = dict[str, Any]

MODULE = "trainer.task"
STRATEGIES = {"spot": "SPOT", "flex_start": "FLEX_START"}
ALGORITHMS = {"random": "RANDOM_SEARCH", "grid": "GRID_SEARCH"}
MEASUREMENTS = {"best": "BEST_MEASUREMENT", "last": "LAST_MEASUREMENT"}
SCALES = {
    "log": "UNIT_LOG_SCALE",
    "reverse_log": "UNIT_REVERSE_LOG_SCALE",
}


def custom_job(order: Order, trainer_args: Sequence[str], region: str) -> Request:
    """Returns the CustomJob of an order.

    Args:
        order: What is asked for.
        trainer_args: Flags of the trainer.
        region: Of the job.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """
    settings = config.from_args(trainer_args)
    rules.check(order, settings)
    rules.check_for_cloud(order, settings, region)
    return {**_named(order), "jobSpec": _job_spec(order, trainer_args)}


def tuning_job(
    order: Order, search: Search, trainer_args: Sequence[str], region: str
) -> Request:
    """Returns the HyperparameterTuningJob of an order and a search.

    Args:
        order: What is asked for, for each trial.
        search: The search.
        trainer_args: Flags of the trainer that all trials share.
        region: Of the job.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """

    def check(settings: Config) -> None:
        rules.check(order, settings)
        rules.check_for_trials(order, settings)
        rules.check_for_cloud(order, settings, region)

    study = checked_study(search, trainer_args, check)
    spec: Request = {
        "metrics": [{"metricId": study.metric, "goal": study.goal.upper()}],
        "parameters": [_parameter(one) for one in study.parameters],
        "measurementSelectionType": MEASUREMENTS[search.measurement],
    }
    if search.algorithm in ALGORITHMS:  # The other one is the service's own.
        spec["algorithm"] = ALGORITHMS[search.algorithm]
    return {
        **_named(order),
        "studySpec": spec,
        "maxTrialCount": search.trials,
        "parallelTrialCount": parallel(search),
        "maxFailedTrialCount": most_failures(search),
        "trialJobSpec": _job_spec(order, study.trainer_args),
    }


def folder(order: Order) -> str:
    """Returns the base output directory: the same for each order of one name."""
    return f"{(order.bucket or '').rstrip('/')}/{order.job_name}"


def pools(order: Order, trainer_args: Sequence[str]) -> list[Request]:
    """Returns the worker pools: chief, further workers, Reduction Server."""
    worker = {
        "machineSpec": _machine(order),
        **({"diskSpec": disk} if (disk := _disk(order)) else {}),
        **_program(order, trainer_args),
    }
    found = [{**worker, "replicaCount": 1}]
    if order.num_workers > 1:
        found.append({**worker, "replicaCount": order.num_workers - 1})
    if order.reduction_servers:
        server = {
            "machineSpec": {"machineType": order.reduction_server_machine_type},
            "replicaCount": order.reduction_servers,
            "containerSpec": {"imageUri": order.reduction_server_image},
        }
        found.append(server)
    return found


def _named(order: Order) -> Request:
    named: Request = {"displayName": order.job_name}
    if order.labels:
        named["labels"] = dict(pairs("labels", order.labels))
    if order.kms_key:
        named["encryptionSpec"] = {"kmsKeyName": order.kms_key}
    return named


def _job_spec(order: Order, trainer_args: Sequence[str]) -> Request:
    spec: Request = {
        "workerPoolSpecs": pools(order, trainer_args),
        "baseOutputDirectory": {"outputUriPrefix": folder(order)},
    }
    if scheduling := _scheduling(order):
        spec["scheduling"] = scheduling
    for field, value in (
        ("serviceAccount", order.service_account),
        ("network", order.network),
        ("tensorboard", order.tensorboard),
        ("enableWebAccess", order.web_access),
    ):
        if value:
            spec[field] = value
    return spec


def _scheduling(order: Order) -> Request:
    scheduling: Request = {}
    if order.scheduling in STRATEGIES:
        scheduling["strategy"] = STRATEGIES[order.scheduling]
    if order.timeout_seconds is not None:
        scheduling["timeout"] = f"{order.timeout_seconds}s"
    if order.max_wait_seconds is not None:
        scheduling["maxWaitDuration"] = f"{order.max_wait_seconds}s"
    if order.restart_job_on_worker_restart:
        scheduling["restartJobOnWorkerRestart"] = True
    if order.disable_retries:
        scheduling["disableRetries"] = True
    return scheduling


def _machine(order: Order) -> Request:
    machine: Request = {"machineType": order.machine_type}
    if order.accelerator_type:
        machine["acceleratorType"] = order.accelerator_type
        machine["acceleratorCount"] = order.accelerators
    if order.topology:
        machine["tpuTopology"] = order.topology
    return machine


def _disk(order: Order) -> Request:
    disk = {
        "bootDiskType": order.boot_disk_type,
        "bootDiskSizeGb": order.boot_disk_size_gb,
    }
    return {field: value for field, value in disk.items() if value is not None}


def _program(order: Order, trainer_args: Sequence[str]) -> Request:
    env = [{"name": name, "value": value} for name, value in pairs("env", order.env)]
    shared: Request = {"args": list(trainer_args)} | ({"env": env} if env else {})
    if order.package is None:
        return {"containerSpec": {"imageUri": order.image, **shared}}
    package = {
        "executorImageUri": order.image,
        "packageUris": [package_uri(order)],
        "pythonModule": MODULE,
    }
    return {"pythonPackageSpec": {**package, **shared}}


def package_uri(order: Order) -> str:
    """Returns where the service finds the package; a local one is uploaded there."""
    package = order.package or ""
    if package.startswith("gs://"):
        return package
    # Not in a job's folder: the trainer takes that only empty or with a run in it.
    bucket = (order.bucket or "").rstrip("/")
    return f"{bucket}/_packages/{order.job_name}/{package.rsplit('/', 1)[-1]}"


def _parameter(one: space.Parameter) -> Request:
    found: Request = {"parameterId": one.name}
    if one.ends is not None:
        low, high = one.ends
        if isinstance(low, int):  # An int64, which JSON has as a text.
            found["integerValueSpec"] = {"minValue": str(low), "maxValue": str(high)}
        else:
            found["doubleValueSpec"] = {"minValue": low, "maxValue": high}
    elif isinstance(one.values[0], str):
        found["categoricalValueSpec"] = {"values": list(one.values)}
        return found
    else:
        found["discreteValueSpec"] = {"values": list(one.values)}
    if one.scale != "linear":  # Which the service takes without a word.
        found["scaleType"] = SCALES[one.scale]
    return found
