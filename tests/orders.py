"""Twelve orders, each with the whole request that it must become."""

import dataclasses
from typing import Any

NAMED = [
    *("--job_name=pets-1", "--project=my-project", "--region=us-central1"),
    *("--bucket=gs://pets/jobs", "--image=us-docker.pkg.dev/p/r/segtrainer:1"),
]
TRAINER = ["--data_dir=gs://pets/tfds", "--epochs", "20"]
IMAGE = "us-docker.pkg.dev/p/r/segtrainer:1"
FOLDER = "gs://pets/jobs/pets-1"
SEARCH = [
    (
        "--search=learning_rate=1e-4..1e-2:log,batch_size=16/32/64,warmup_steps=0..500,"
        "train_encoder=true/false"
    ),
    *("--metric=val_mean_iou", "--trials=20", "--parallel_trials=3"),
]


@dataclasses.dataclass(frozen=True)
class Example:
    """An order and what it must become.

    Attributes:
        kind: customJobs or hyperparameterTuningJobs.
        args: Flags of deploy.submit or deploy.tune, those before --.
        request: The job as JSON.
    """

    kind: str
    args: list[str]
    request: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """The module and its whole command line."""
        module = "deploy.submit" if self.kind == "customJobs" else "deploy.tune"
        return [module, *NAMED, *self.args, "--", *TRAINER]


def pool(count: int = 1, args: Any = TRAINER, **machine: Any) -> dict[str, Any]:
    """Returns a worker pool of so many machines."""
    return {
        "machineSpec": {"machineType": "n1-standard-8", **machine},
        "replicaCount": count,
        "containerSpec": {"imageUri": IMAGE, "args": args},
    }


def custom(*args: str, pools: list[dict[str, Any]], **fields: Any) -> Example:
    """Returns an order of one job; `labels` and `encryptionSpec` are not its spec's."""
    spec: dict[str, Any] = {
        "workerPoolSpecs": pools,
        "baseOutputDirectory": {"outputUriPrefix": FOLDER},
    }
    outer: dict[str, Any] = {
        k: fields.pop(k) for k in ("labels", "encryptionSpec") if k in fields
    }
    request: dict[str, Any] = {
        "displayName": "pets-1",
        **outer,
        "jobSpec": {**spec, **fields},
    }
    return Example("customJobs", list(args), request)


def tuning(*args: str, failed: int, **fields: Any) -> Example:
    """Returns an order of a search."""
    spec: dict[str, Any] = {
        "workerPoolSpecs": [pool(args=[*TRAINER, "--hp_metric=val_mean_iou"])],
        "baseOutputDirectory": {"outputUriPrefix": FOLDER},
        **fields,
    }
    log = "UNIT_LOG_SCALE"
    rate: dict[str, Any] = {
        "doubleValueSpec": {"minValue": 1e-4, "maxValue": 1e-2},
        "scaleType": log,
    }
    steps: dict[str, Any] = {"integerValueSpec": {"minValue": "0", "maxValue": "500"}}
    study: dict[str, Any] = {
        "metrics": [{"metricId": "val_mean_iou", "goal": "MAXIMIZE"}],
        "parameters": [
            {"parameterId": "learning_rate", **rate},
            {
                "parameterId": "batch_size",
                "discreteValueSpec": {"values": [16, 32, 64]},
            },
            {"parameterId": "warmup_steps", **steps},
            {
                "parameterId": "train_encoder",
                "categoricalValueSpec": {"values": ["true", "false"]},
            },
        ],
        "measurementSelectionType": "BEST_MEASUREMENT",
    }
    request = {
        "displayName": "pets-1",
        "studySpec": study,
        "maxTrialCount": 20,
        "parallelTrialCount": 3,
        "maxFailedTrialCount": failed,
        "trialJobSpec": spec,
    }
    return Example("hyperparameterTuningJobs", [*SEARCH, *args], request)


L4: dict[str, Any] = dict(acceleratorType="NVIDIA_L4", acceleratorCount=1)
A100: dict[str, Any] = dict(
    machineType="a2-highgpu-8g", acceleratorType="NVIDIA_TESLA_A100", acceleratorCount=8
)
KEY = "projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key"
BOARD = "projects/123/locations/us-central1/tensorboards/456"
ACCOUNT = "trainer@my-project.iam.gserviceaccount.com"
DISK = {"diskSpec": {"bootDiskType": "hyperdisk-balanced"}}
REDUCTION_SERVER = {
    "machineSpec": {"machineType": "n1-highcpu-16"},
    "replicaCount": 2,
    "containerSpec": {
        "imageUri": "us-docker.pkg.dev/vertex-ai-restricted/training/reductionserver:latest"
    },
}

ORDERS = {
    "cpu": custom(
        *("--labels=team=vision,cost=42", "--timeout_seconds=7200"),
        pools=[pool()],
        labels={"team": "vision", "cost": "42"},
        scheduling={"timeout": "7200s"},
    ),
    "one gpu": custom(
        *("--machine_type=g2-standard-8", "--accelerator_type=NVIDIA_L4"),
        pools=[pool(**{**L4, "machineType": "g2-standard-8"})],
    ),
    "eight gpus": custom(
        *("--machine_type=a2-highgpu-8g", "--accelerator_type=NVIDIA_TESLA_A100"),
        *("--accelerator_count=8", "--boot_disk_size_gb=500"),
        pools=[{**pool(**A100), "diskSpec": {"bootDiskSizeGb": 500}}],
    ),
    "four workers": custom(
        *("--num_workers=4", "--restart_job_on_worker_restart"),
        pools=[pool(), pool(3)],
        scheduling={"restartJobOnWorkerRestart": True},
    ),
    "reduction server": custom(
        *("--num_workers=3", "--accelerator_type=NVIDIA_L4", "--reduction_servers=2"),
        "--boot_disk_type=hyperdisk-balanced",  # Which the n1 of the others has not.
        pools=[{**pool(**L4), **DISK}, {**pool(2, **L4), **DISK}, REDUCTION_SERVER],
    ),
    "tpu v5e": custom(
        "--machine_type=ct5lp-hightpu-4t",
        pools=[pool(machineType="ct5lp-hightpu-4t", tpuTopology="2x2")],
    ),
    "tpu v5e, two of four chips": custom(
        *("--machine_type=ct5lp-hightpu-4t", "--tpu_topology=1x2"),
        pools=[pool(machineType="ct5lp-hightpu-4t", tpuTopology="1x2")],
    ),
    "tpu v5e by its accelerator": custom(
        *("--machine_type=ct5lp-hightpu-4t", "--accelerator_type=TPU_V5_LITEPOD"),
        "--accelerator_count=4",
        pools=[
            pool(
                machineType="ct5lp-hightpu-4t",
                tpuTopology="2x2",
                acceleratorType="TPU_V5_LITEPOD",
                acceleratorCount=4,
            )
        ],
    ),
    "tpu v3": custom(
        *("--machine_type=cloud-tpu", "--accelerator_type=TPU_V3"),
        pools=[
            pool(machineType="cloud-tpu", acceleratorType="TPU_V3", acceleratorCount=8)
        ],
    ),
    "spot": custom(
        "--scheduling=spot", pools=[pool()], scheduling={"strategy": "SPOT"}
    ),
    "flex start": custom(
        *("--accelerator_type=NVIDIA_L4", "--scheduling=flex_start"),
        *("--max_wait_seconds=0", "--timeout_seconds=604800"),
        pools=[pool(**L4)],
        scheduling={
            "strategy": "FLEX_START",
            "timeout": "604800s",
            "maxWaitDuration": "0s",
        },
    ),
    "tensorboard": custom(
        *(f"--tensorboard={BOARD}", f"--service_account={ACCOUNT}", "--web_access"),
        pools=[pool()],
        tensorboard=BOARD,
        serviceAccount=ACCOUNT,
        enableWebAccess=True,
    ),
    "key and network": custom(
        *(f"--kms_key={KEY}", "--network=projects/123/global/networks/inner"),
        *("--env=TF_CPP_MIN_LOG_LEVEL=0,NAME=a=b", "--disable_retries"),
        pools=[
            {
                **pool(),
                "containerSpec": {
                    **pool()["containerSpec"],
                    "env": [
                        {"name": "TF_CPP_MIN_LOG_LEVEL", "value": "0"},
                        {"name": "NAME", "value": "a=b"},
                    ],
                },
            }
        ],
        encryptionSpec={"kmsKeyName": KEY},
        network="projects/123/global/networks/inner",
        scheduling={"disableRetries": True},
    ),
    "tuning": tuning(failed=5),
    "tuning with spot": tuning(
        *("--scheduling=spot", "--max_failed_trials=9"),
        failed=9,
        scheduling={"strategy": "SPOT"},
    ),
}
