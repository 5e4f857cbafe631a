"""The rules of the service for what one job is: names, machines, containers, places.

Source: the comments of CustomJob, CustomJobSpec and what they hold in the SDK, and the
product's pages on quotas and limits.
"""

import re
from collections.abc import Iterator

from google.protobuf.message import Message

from tests.vertex import wire

# Field and what is wrong with it.
Wrongs = Iterator[tuple[str, str]]
NAME_LENGTH, LABEL_LENGTH, LABELS, POOLS = 128, 64, 64, 4
VARIABLES, PACKAGES, ARGUMENTS_LENGTH = 100, 100, 100_000
DISK_GB = range(100, 64_001)
DISKS = {"", "pd-ssd", "pd-standard", "hyperdisk-balanced"}
FLEX_START, WEEK_SECONDS = 6, 7 * 24 * 3600
FLEX_GPUS = re.compile(r"NVIDIA_(L4|TESLA_A100|A100|H100|H200|B200)(_.*)?")
BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/[^*?\[\]#]*)?")
NETWORK = re.compile(r"projects/\d+/global/networks/[a-z][a-z0-9-]*")
ACCOUNT = re.compile(r"[^@\s/]+@[^@\s/]+\.[^@\s/]+")
TENSORBOARD = re.compile(r"projects/[^/]+/locations/([^/]+)/tensorboards/[^/]+")
KEY = re.compile(
    r"projects/[^/]+/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+",
)


def check(job: Message, region: str) -> None:
    """Refuses a custom job that breaks a rule; says all that it breaks.

    Raises:
        wire.Refusal: With status 400, or 404 for what is not in this region.
    """
    refuse_if(
        [*of_name(job), *of_key(job, region), *of_spec(job.job_spec, "job_spec")],
    )
    check_tensorboard(job.job_spec, region)


def refuse_if(wrongs: list[tuple[str, str]]) -> None:
    """Refuses where anything is wrong, in the words of the service."""
    lines = [
        f"{number}.Field: {field}; Message: {text}\t"
        for number, (field, text) in enumerate(wrongs, 1)
    ]
    if lines:
        raise wire.Refusal(400, "List of found errors:\t" + "".join(lines))


def of_name(job: Message) -> Wrongs:
    """Yields what is wrong with name and labels."""
    if not 0 < len(job.display_name) <= NAME_LENGTH:
        yield "display_name", f"required, at most {NAME_LENGTH} characters"
    if len(job.labels) > LABELS:
        yield "labels", f"at most {LABELS}"
    for key, value in job.labels.items():
        if not key or max(len(key), len(value)) > LABEL_LENGTH:
            yield "labels", f"keys and values have at most {LABEL_LENGTH} characters"
        elif not all(_fits_label(letter) for letter in key + value):
            told = "only lowercase letters, numeric characters, underscores and dashes"
            yield "labels", f"{told}, got {key}={value}"


def _fits_label(letter: str) -> bool:
    return letter in "_-" or (letter.isalnum() and letter == letter.lower())


def of_key(job: Message, region: str) -> Wrongs:
    """Yields what is wrong with the key of encryption."""
    if job.HasField("encryption_spec"):
        found = KEY.fullmatch(job.encryption_spec.kms_key_name)
        if found is None or found[1] != region:
            told = "must be projects/P/locations/L/keyRings/R/cryptoKeys/K with L"
            yield "encryption_spec.kms_key_name", f"{told} the job's region, {region}"


def check_tensorboard(spec: Message, region: str) -> None:
    """Refuses a TensorBoard that is not in the job's region: it is not found."""
    found = TENSORBOARD.fullmatch(spec.tensorboard)
    if found and found[1] != region:
        raise wire.Refusal(404, f"TensorBoard {spec.tensorboard} not found in {region}")


def of_spec(spec: Message, at: str) -> Wrongs:
    """Yields what is wrong with a CustomJobSpec, which is the field `at`."""
    pools = spec.worker_pool_specs
    if not 1 <= len(pools) <= POOLS:
        yield f"{at}.worker_pool_specs", f"1 to {POOLS} pools, got {len(pools)}"
    for index, pool in enumerate(pools):
        yield from _of_pool(pool, index, f"{at}.worker_pool_specs[{index}]")
    yield from _of_scheduling(spec, f"{at}.scheduling")
    yield from _of_places(spec, at)


def _of_places(spec: Message, at: str) -> Wrongs:
    base = spec.base_output_directory.output_uri_prefix
    if spec.HasField("base_output_directory") and not BUCKET.fullmatch(base):
        yield f"{at}.base_output_directory", f"must be gs://BUCKET/FOLDER, got {base!r}"
    if spec.network and not NETWORK.fullmatch(spec.network):
        told = "must be projects/NUMBER/global/networks/NAME, with the project's number"
        yield f"{at}.network", f"{told}, got {spec.network}"
    if spec.service_account and not ACCOUNT.fullmatch(spec.service_account):
        yield f"{at}.service_account", f"must be an address, got {spec.service_account}"
    if not spec.tensorboard:
        return
    if not TENSORBOARD.fullmatch(spec.tensorboard):
        told = "must be projects/P/locations/L/tensorboards/ID"
        yield f"{at}.tensorboard", f"{told}, got {spec.tensorboard}"
    if not spec.service_account:
        yield f"{at}.service_account", "required where tensorboard is set"
    if not spec.HasField("base_output_directory"):
        yield f"{at}.base_output_directory", "required where tensorboard is set"


def _of_pool(pool: Message, index: int, at: str) -> Wrongs:
    if index and not pool.ByteSize():
        return  # {} skips a pool.
    if index == 0 and pool.replica_count != 1:
        yield f"{at}.replica_count", f"must be 1, got {pool.replica_count}"
    elif pool.replica_count < 1:
        yield f"{at}.replica_count", f"must be positive, got {pool.replica_count}"
    task = pool.WhichOneof("task")
    if task is None:
        yield at, "needs container_spec or python_package_spec"
    else:
        yield from _of_task(getattr(pool, task), f"{at}.{task}")
    machine = pool.machine_spec
    if not machine.machine_type:
        yield f"{at}.machine_spec.machine_type", "required"
    if bool(machine.accelerator_type) != bool(machine.accelerator_count > 0):
        yield (
            f"{at}.machine_spec",
            "accelerator_count and accelerator_type need each other",
        )
    yield from of_enum(machine, "accelerator_type", f"{at}.machine_spec")
    disk = pool.disk_spec
    if disk.boot_disk_size_gb and disk.boot_disk_size_gb not in DISK_GB:
        yield (
            f"{at}.disk_spec.boot_disk_size_gb",
            f"{DISK_GB[0]} to {DISK_GB[-1]}, got {disk.boot_disk_size_gb}",
        )
    if disk.boot_disk_type not in DISKS:
        yield f"{at}.disk_spec.boot_disk_type", f"unknown: {disk.boot_disk_type}"


def _of_task(task: Message, at: str) -> Wrongs:
    if at.endswith("container_spec"):
        needed = ["image_uri"]
    else:
        needed = ["executor_image_uri", "package_uris", "python_module"]
        if len(task.package_uris) > PACKAGES:
            yield f"{at}.package_uris", f"at most {PACKAGES}"
    for field in needed:
        if not getattr(task, field):
            yield f"{at}.{field}", "required"
    if len(task.env) > VARIABLES:
        yield f"{at}.env", f"at most {VARIABLES} variables, got {len(task.env)}"
    for variable in task.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable.name):
            yield f"{at}.env", f"{variable.name!r} is not a valid C identifier"
    if (length := sum(map(len, task.args))) > ARGUMENTS_LENGTH:
        yield f"{at}.args", f"at most {ARGUMENTS_LENGTH} characters, got {length}"


def _of_scheduling(spec: Message, at: str) -> Wrongs:
    scheduling = spec.scheduling
    yield from of_enum(scheduling, "strategy", at)
    for field in ("timeout", "max_wait_duration"):
        if getattr(scheduling, field).ToNanoseconds() < 0:
            yield f"{at}.{field}", "must not be negative"
    if scheduling.strategy != FLEX_START:
        return
    if scheduling.timeout.ToNanoseconds() > WEEK_SECONDS * 10**9:
        yield f"{at}.timeout", "at most 7 days with FLEX_START"
    used = [pool.machine_spec for pool in spec.worker_pool_specs if pool.ByteSize()]
    if any(machine != used[0] for machine in used):
        yield f"{at}.strategy", "FLEX_START needs the same machine in all pools"
    for machine in used:
        gpu = wire.told(machine).get("acceleratorType", "none")
        if not FLEX_GPUS.fullmatch(str(gpu)):
            yield f"{at}.strategy", f"FLEX_START has no machines with {gpu}"


def of_enum(message: Message, field: str, at: str) -> Wrongs:
    """Yields what is wrong with a number that must be one of an enumeration."""
    known = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    if (value := getattr(message, field)) not in known:
        yield f"{at}.{field}", f"unknown value {value}"
