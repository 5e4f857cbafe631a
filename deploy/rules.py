"""What an order must be as a whole, each rule with its reason.

Machines, accelerators and regions are the service's to know; only the shape of an order
is checked, and that what is paid for is used.

Source: the comments of CustomJobSpec, Scheduling and StudySpec in the API's protos, and
cloud.google.com/vertex-ai/docs/training.
"""

import math
import re

from deploy.order import COUNTED_IN_CORES, HOST_CORES, Order
from trainer.config import Config

WEEK_SECONDS = 7 * 24 * 3600
MOUNTED = "(gs://|/gcs/)"  # Buckets as a container reads them.


def check(order: Order, settings: Config) -> None:
    """Checks what holds wherever the order runs.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """
    _check_machines(order)
    _check_strategy(order, settings)
    _check_scheduling(order)


def check_for_trials(order: Order, settings: Config) -> None:
    """Checks what holds for the trials of a search.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """
    if order.on_tpu:
        raise ValueError(
            f"a tuning job cannot run on TPUs, got {order.machine_type}; the service "
            "has them for single jobs only"
        )
    for name in ("job_dir", "checkpoint_dir", "log_dir"):
        if (given := getattr(settings, name)) is not None:
            raise ValueError(
                f"{name} must be left out of a search: each trial has its own, got "
                f"{given}"
            )
    if settings.fast_dev_run:
        raise ValueError("fast_dev_run writes to no trial's directory; leave it out")


def check_for_cloud(order: Order, settings: Config, region: str) -> None:
    """Checks what the service needs to know, and that it can reach what is named.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """
    for name, example in (
        ("job_name", "pets-1"),
        ("project", "PROJECT"),
        ("bucket", "gs://BUCKET"),
        ("image", "REGION-docker.pkg.dev/PROJECT/REPOSITORY/segtrainer:TAG"),
    ):
        if getattr(order, name) is None:
            raise ValueError(f"{name} must be given: --{name}={example}")
    if not region:
        raise ValueError("region must be given, best the bucket's: --region=REGION")
    if order.tensorboard and not order.service_account:
        raise ValueError(
            "tensorboard needs service_account, as which the job writes there; give "
            "--service_account=NAME@PROJECT.iam.gserviceaccount.com"
        )
    for name in ("job_dir", "log_dir"):
        if order.tensorboard and getattr(settings, name) is not None:
            raise ValueError(
                f"tensorboard shows what is in the job's own folder, got {name} "
                f"{getattr(settings, name)} elsewhere; leave one of them out"
            )
    for name in ("tensorboard", "kms_key"):
        value = getattr(order, name)
        if value and value.split("/")[3] != region:
            raise ValueError(
                f"{name} must be in the job's region, got one in {value.split('/')[3]} "
                f"for a job in {region}"
            )
    _check_places(settings)


def _check_machines(order: Order) -> None:
    if order.accelerator_count is not None and order.accelerator_type is None:
        raise ValueError(
            f"accelerator_count={order.accelerator_count} needs accelerator_type, such "
            "as NVIDIA_L4"
        )
    if order.on_tpu and order.num_workers > 1:
        raise ValueError(
            "a TPU job must have one worker: slices of several hosts are not "
            f"supported, got num_workers={order.num_workers}"
        )
    if order.machine_type.startswith("ct6e-"):
        raise ValueError(
            "machine_type must be one of TPU v5e or before: TensorFlow does not know v6e, "
            f"got {order.machine_type}"
        )
    in_cores = order.accelerator_type in COUNTED_IN_CORES
    if in_cores and order.accelerators != HOST_CORES:
        raise ValueError(
            f"accelerator_count must be {HOST_CORES}, the cores of one TPU host: slices of "
            f"several are not supported, got {order.accelerator_count}; leave it out"
        )
    chips = re.search(r"-(\d+)t$", order.machine_type)
    asked = math.prod(map(int, (order.tpu_topology or "1").split("x")))
    if chips and asked > int(chips.group(1)):
        raise ValueError(
            "tpu_topology must fit one host: slices of several are not supported, got "
            f"{order.tpu_topology} on {order.machine_type}"
        )
    if order.reduction_servers and (order.num_workers < 2 or not order.gpus):
        raise ValueError(
            "reduction_servers add the gradients of several workers with GPUs, got "
            f"num_workers={order.num_workers} with {order.gpus} GPUs each; leave them "
            "out"
        )


def _check_strategy(order: Order, settings: Config) -> None:
    """Raises ValueError where machines would be paid for and not used."""
    strategy = settings.strategy
    if order.on_tpu and strategy not in ("auto", "tpu"):
        raise ValueError(f"a TPU machine needs --strategy=tpu or auto, got {strategy}")
    if strategy == "tpu" and not order.on_tpu:
        raise ValueError(
            f"--strategy=tpu needs a TPU machine, got {order.machine_type}"
        )
    if settings.tpu is not None and not order.on_tpu:
        raise ValueError(f"--tpu needs a TPU machine, got {order.machine_type}")
    if settings.num_cpu_devices is not None and (order.gpus or order.on_tpu):
        raise ValueError(
            "--num_cpu_devices would leave the accelerators idle, got "
            f"{settings.num_cpu_devices}; leave it out"
        )
    several = order.num_workers > 1
    for name in ("download", "fast_dev_run", "num_cpu_devices"):
        if several and getattr(settings, name):
            raise ValueError(
                f"--{name} is for a single worker, got num_workers={order.num_workers}; "
                "leave it out"
            )
    if several and strategy not in ("auto", "multi_worker"):
        raise ValueError(
            f"{order.num_workers} workers need --strategy=multi_worker or auto, got "
            f"{strategy}: each would train for itself"
        )
    if strategy == "mirrored" and not (order.gpus or settings.num_cpu_devices):
        raise ValueError(
            "--strategy=mirrored needs GPUs or --num_cpu_devices, got neither; give "
            "--accelerator_type, or leave it out"
        )
    if not several and strategy == "multi_worker":
        raise ValueError(
            "--strategy=multi_worker needs num_workers of 2 or more, got 1"
        )
    if order.gpus > 1 and strategy == "one_device":
        raise ValueError(
            f"--strategy=one_device uses one of the {order.gpus} GPUs; give "
            "--accelerator_count=1 or --strategy=mirrored"
        )
    if order.on_tpu:  # How many replicas its chips are is seen there.
        return
    replicas = order.num_workers * (settings.num_cpu_devices or order.gpus or 1)
    if strategy == "one_device":
        replicas = 1
    if settings.jit_compile and replicas > 1:
        raise ValueError(f"--jit_compile works with one replica only, got {replicas}")
    if settings.global_batch_size and settings.global_batch_size % replicas:
        raise ValueError(
            f"--global_batch_size must be a multiple of the {replicas} replicas, got "
            f"{settings.global_batch_size}"
        )


def _check_scheduling(order: Order) -> None:
    flexible = order.scheduling == "flex_start"
    if order.max_wait_seconds is not None and not flexible:
        raise ValueError(
            "max_wait_seconds needs scheduling flex_start, which waits; got "
            f"{order.scheduling}"
        )
    if order.disable_retries and order.restart_job_on_worker_restart:
        raise ValueError(
            "disable_retries would override restart_job_on_worker_restart, got both; "
            "leave one of them out"
        )
    if not flexible:
        return
    if not order.gpus:
        raise ValueError(
            "scheduling flex_start is for GPUs, got none; give --accelerator_type or "
            "another scheduling"
        )
    if (order.timeout_seconds or 0) > WEEK_SECONDS:
        raise ValueError(
            f"timeout_seconds must be at most {WEEK_SECONDS}, 7 days, with flex_start, "
            f"got {order.timeout_seconds}"
        )
    if order.reduction_servers:
        raise ValueError(
            "scheduling flex_start needs the same machine in all pools, which a "
            "Reduction Server is not; leave out reduction_servers"
        )


def _check_places(settings: Config) -> None:
    """Raises ValueError where the trainer would not find, or lose, what is named."""
    if settings.data_dir is None and not settings.try_gcs and not settings.fast_dev_run:
        raise ValueError(
            "data_dir must be given after --, such as -- --data_dir=gs://BUCKET/tfds; "
            "the bundled sample is for --fast_dev_run only"
        )
    for name in ("job_dir", "checkpoint_dir", "log_dir"):
        value = getattr(settings, name)
        if value is not None and not re.match("gs://[^/]", value):
            raise ValueError(
                f"{name} must be on gs://: what a container writes elsewhere is lost, or "
                f"under /gcs/ not written whole, got {value}"
            )
    for name in ("data_dir", "init_from"):
        value = getattr(settings, name)
        if value is not None and not re.match(f"{MOUNTED}[^/]", value):
            raise ValueError(
                f"{name} must be on gs://, for a container sees nothing else, got {value}"
            )
    weights = "none" if settings.init_from else settings.encoder_weights
    if weights not in ("imagenet", "none") and not re.match(MOUNTED, weights):
        raise ValueError(
            "encoder_weights must be imagenet, none or a file on gs://, for a container "
            f"sees nothing else, got {weights}"
        )
